"""Builds the stand-in of UPMEM's SDK, and what of ours is compiled with it."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from system_packages import need

ROOT = Path(__file__).parents[2]
STAND_IN = Path(__file__).parent / "upmem_stand_in"
CLANG = Path(__file__).parent / "compiler_stand_ins" / "dpu_upmem_dpurte_clang.py"
PIM = ROOT / "sdk" / "rm_abstract" / "backends" / "pim"
COMPILER = {"gcc": "gcc libc6-dev", "ld": "binutils"}
"""Commands that the stand-ins need, and the packages that have them."""
_FLAGS = ("-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-fvisibility=hidden", f"-I{STAND_IN}")


@dataclass(frozen=True)
class Libraries:
    """The stand-in of libdpu, and librma_pim over it."""

    dpu: Path
    pim: Path


def build_libraries(directory: Path) -> Libraries:
    """Both, by the machine's compiler."""
    made = Libraries(directory / "libdpu.so", directory / "librma_pim.so")
    _gcc(*_FLAGS, str(STAND_IN / "dpu.c"), "-o", str(made.dpu), "-ldl", "-lpthread")
    version = '-DSDK_VERSION="2025.1.0 (stand-in)"'
    _gcc(
        *_FLAGS,
        version,
        str(PIM / "rma_pim.c"),
        f"-L{directory}",
        "-ldpu",
        f"-Wl,-rpath,{directory}",
        "-o",
        str(made.pim),
    )
    return made


def idle_launch(directory: Path, after: int) -> Path:
    """A library to preload that lets the units work for so many launches, and then no more, without a word."""
    source, made = directory / f"idle{after}.c", directory / f"idle{after}.so"
    source.write_text(
        "#define _GNU_SOURCE\n#include <dlfcn.h>\n#include <dpu.h>\n"
        "typedef dpu_error_t (*launch)(struct dpu_set_t, dpu_launch_policy_t);\n"
        '__attribute__((visibility("default")))\n'
        "dpu_error_t dpu_launch(struct dpu_set_t set, dpu_launch_policy_t policy) {\n"
        "    static int launches;\n"
        f"    if (launches++ >= {after})\n        return DPU_OK;\n"
        '    return ((launch)dlsym(RTLD_NEXT, "dpu_launch"))(set, policy);\n}\n'
    )
    _gcc(
        *_FLAGS,
        str(source),
        "-o",
        str(made),
        "-ldl",
        "-Wl,--no-as-needed",
        f"-L{directory}",
        "-ldpu",
        f"-Wl,-rpath,{directory}",
    )
    return made


def compile_program(source: Path, output: Path, *flags: str) -> "subprocess.CompletedProcess[str]":
    """What the stand-in of UPMEM's compiler makes, and says."""
    need(COMPILER)
    argv = [sys.executable, "-SE", str(CLANG), *flags, "-O2", "-o", str(output), str(source)]
    environment = {"PATH": os.environ["PATH"]}
    return subprocess.run(argv, capture_output=True, text=True, check=False, env=environment)


def _gcc(*arguments: str) -> None:
    need(COMPILER)
    subprocess.run(["gcc", *arguments], check=True)
