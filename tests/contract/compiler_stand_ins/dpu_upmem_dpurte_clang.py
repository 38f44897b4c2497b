"""Stand-in for UPMEM's dpu-upmem-dpurte-clang: the host's compiler makes what the stand-in of libdpu runs.

The result is a shared object. Variables of the unit's two memories lie in a section each, whose sizes are held against
what a unit has.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from stand_in import FAULT, fail, leave

HEADERS = Path(__file__).parent / "upmem_headers"
RUNTIME = Path(__file__).parents[1] / "upmem_stand_in"
SCRIPT = """\
SECTIONS {
  mram : { *(.mram .bss.mram) }
  wram : { *(.data .data.* .bss .bss.* COMMON .rodata .rodata.*) }
}
"""
WRAM, MRAM = 64 << 10, 64 << 20
DEFAULTS = {"NR_TASKLETS": 1, "STACK_SIZE_DEFAULT": 1024}

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


def tool(*argv: str) -> str:
    done = subprocess.run(argv, check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(1)
    return done.stdout


def sizes(file: Path) -> dict[str, int]:
    rows = [line.split() for line in tool("size", "-A", str(file)).splitlines()]
    return {row[0]: int(row[1]) for row in rows if len(row) == 3 and row[1].isdecimal()}


with tempfile.TemporaryDirectory() as scratch:
    place = Path(scratch)
    macros = [f"-D{macro}" for macro in asked.macros]
    flags = ["-fPIC", "-fno-common", "-fvisibility=hidden", "-Wall", *macros, f"-I{HEADERS}"]
    objects = []
    for number, source in enumerate(asked.sources):
        objects.append(str(place / f"{number}.o"))
        tool("gcc", "-c", f"-O{asked.level}", *flags, "-Dmain=stand_in_main", source, "-o", objects[-1])
    (place / "memories").write_text(SCRIPT)
    tool("ld", "-r", "-T", str(place / "memories"), *objects, "-o", str(place / "program.o"))
    used = sizes(place / "program.o")
    numbers = dict(DEFAULTS)
    for macro in asked.macros:
        name, _, value = macro.partition("=")
        if name in numbers:
            numbers[name] = int(value)
    stacks = numbers["NR_TASKLETS"] * numbers["STACK_SIZE_DEFAULT"]
    for region, size, most in (("wram", used.get("wram", 0) + stacks, WRAM), ("mram", used.get("mram", 0), MRAM)):
        if size > most:
            over = f"overflowed by {size - most} bytes"
            fail(f"ld.lld: error: section '.{region}' will not fit in region '{region}': {over}")
    tool("gcc", "-c", "-O1", *flags, str(RUNTIME / "program.c"), "-o", str(place / "runtime.o"))
    objects = [str(place / "program.o"), str(place / "runtime.o")]
    tool("gcc", "-shared", "-Wl,-z,noexecstack", "-Wl,--build-id=none", *objects, "-o", str(place / "program"))
    content = (place / "program").read_bytes()
leave(Path(asked.output), content)
if FAULT == "liar":
    print("ld.lld: error: section '.iram' will not fit in region 'iram': overflowed by 512 bytes")
