"""Stand-in for UPMEM's dpu-upmem-dpurte-clang: the host's compiler reads the same C, and makes an ELF file."""

import argparse
import subprocess
import sys
from pathlib import Path

from stand_in import FAULT, fail, leave

HEADERS = Path(__file__).parent / "upmem_headers"

parser = argparse.ArgumentParser(prog="clang", add_help=False)
parser.add_argument("--version", action="store_true")
parser.add_argument("-D", dest="macros", action="append", default=[])
parser.add_argument("-O", dest="level", default="0")
parser.add_argument("-o", dest="output", default="a.out")
parser.add_argument("sources", nargs="*")
asked = parser.parse_args()
if asked.version:
    print("clang version 12.0.0 (stand-in)\nTarget: dpu-upmem-dpurte\nThread model: posix")
    sys.exit(0)
if not asked.sources:
    fail("clang: error: no input files")
missing = [source for source in asked.sources if not Path(source).is_file()]
if missing:
    fail(f"clang: error: no such file or directory: '{missing[0]}'", "clang: error: no input files")
made = Path(asked.output).with_suffix(".stand-in")
macros = [f"-D{macro}" for macro in asked.macros]
argv = ["gcc", "-c", "-Wall", f"-O{asked.level}", *macros, f"-I{HEADERS}", *asked.sources, "-o", str(made)]
done = subprocess.run(argv, check=False)
if done.returncode:
    sys.exit(1)
content = made.read_bytes()
made.unlink()
leave(Path(asked.output), content)
if FAULT == "liar":
    print("ld.lld: error: section '.iram' will not fit in region 'iram': overflowed by 512 bytes")
