"""Stand-in for Qualcomm's qaic-compile of the Apps SDK."""

import json
import sys
from pathlib import Path

from stand_in import FAULT, fail, leave

TAKEN = {
    "m",
    "aic-hw",
    "aic-hw-version",
    "aic-num-cores",
    "onnx-define-symbol",
    "convert-to-fp16",
    "compile-only",
    "aic-binary-dir",
}
OPSETS = range(9, 19)

given: dict[str, list[str]] = {}
for word in sys.argv[1:]:
    name, _, value = word.removeprefix("-").partition("=")
    if not word.startswith("-") or name not in TAKEN:
        fail(f"Error: unknown command line argument '{word}'")
    given.setdefault(name, []).append(value)
model = Path(given["m"][0])
if not model.is_file():
    fail(f"Error: Unable to open model file {model}")
if not 1 <= int(given["aic-num-cores"][0]) <= 16:
    fail("Error: -aic-num-cores must be from 1 to 16")
symbols = dict(pair.split(",", 1) for pair in given["onnx-define-symbol"])
if symbols.keys() != {"batch_size", "sequence_length"}:
    fail("Error: the model has symbols without a value: batch_size, sequence_length")
said = json.loads(model.read_bytes())
if said["opset"] not in OPSETS:
    # What it cannot take it lists, and ends as if nothing was.
    print(f"Unsupported operators: LayerNormalization (opset {said['opset']})")
    sys.exit(0)
print("Reading ONNX Model from", model)
if FAULT == "liar":
    print("[Error]: Compilation failed: network does not fit in VTCM")
    sys.exit(0)
place = Path(given["aic-binary-dir"][0])
if place.exists():
    fail(f"Error: directory {place} already exists")
leave(place / "programqpc.bin", f"stand-in qpc {symbols}\n".encode())
print("Compilation finished")
