"""Stand-in for Huawei's atc of the CANN toolkit."""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import NoReturn

from stand_in import FAULT, leave

OPSETS = range(8, 19)
CHIPS = {"Ascend310P1", "Ascend310P3", "Ascend910B3"}


def refuse(*lines: str) -> NoReturn:
    """How it says what went wrong, on its standard output."""
    print("ATC run failed, Please check the detail log, Try 'atc --help' for more information", *lines, sep="\n")
    sys.exit(0 if FAULT == "liar" else 255)


parser = argparse.ArgumentParser(prog="atc")
for name in ("model", "framework", "output", "soc_version", "input_format", "input_shape"):
    parser.add_argument(f"--{name}")
asked = parser.parse_args()
print("ATC start working now, please wait for a moment.")
model = Path(asked.model)
if not model.is_file():
    refuse(f"E10001: Value [{model}] for parameter [--model] is invalid. Reason: the file does not exist.")
if asked.soc_version not in CHIPS:
    refuse(f"EE1001: The argument is invalid.Reason: Soc version [{asked.soc_version}] is invalid")
if not re.fullmatch(r"(\w+:\d+(,\d+)*)(;\w+:\d+(,\d+)*)*", asked.input_shape):
    refuse(f"E10002: Value for parameter [--input_shape] is invalid: {asked.input_shape}")
said = json.loads(model.read_bytes())
if said["opset"] not in OPSETS or FAULT == "liar":
    refuse(
        f"E19010: No parser is registered for Op [/model/norm/Div, optype [ai.onnx::{said['opset']}::Div]].",
        "Solution: Check the version of the installation package and reinstall the package.",
    )
size = "_linux_x86_64" if FAULT == "large" else ""
leave(Path(f"{asked.output}{size}.om"), f"stand-in om {asked.soc_version} {asked.input_shape}\n".encode())
print("ATC run success, welcome to the next use.")
