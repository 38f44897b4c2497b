"""Helpers of the tests of native plugins: compilers of this machine, and libraries that they make."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

from rm_abstract.native import include_directory
from system_packages import need

ROOT = Path(__file__).parents[3]
EXAMPLE_C = ROOT / "examples" / "native_plugin_c"
EXAMPLE_RUST = ROOT / "examples" / "native_plugin_rust"
BROKEN = Path(__file__).parent / "native_broken.c"


def build_c(source: Path, output: Path, *, defines: Sequence[str] = (), libraries: Sequence[str] = ("m",)) -> Path:
    """Compile a shared library; warnings are errors."""
    need({"cc": "gcc libc6-dev"})
    output.parent.mkdir(parents=True, exist_ok=True)
    run(
        "cc", "-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", f"-I{include_directory()}",
        *(f"-D{define}" for define in defines), "-o", str(output), str(source), *(f"-l{name}" for name in libraries),
    )  # fmt: skip
    return output


def build_rust(crate: Path, output: Path, name: str) -> Path:
    """Build a crate without dependencies and without the network; its library lies in ``output``."""
    need({"cargo": "cargo", "rustc": "rustc", "cc": "gcc libc6-dev"})
    manifest, target = str(crate / "Cargo.toml"), str(output)
    run("cargo", "build", "--release", "--offline", "--locked", "--manifest-path", manifest, "--target-dir", target)
    return output / "release" / f"lib{name}.so"


def run(*argv: str, cwd: Path | None = None) -> None:
    """Run a compiler; the assertion shows what it said."""
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, f"{' '.join(argv)}\n{done.stdout}{done.stderr}"


def greedy(corpus: str, prompt: str, most: int, order: int = 6) -> str:
    """What the example in C makes of a prompt: told anew here, over counts in a dictionary."""
    counts: dict[tuple[bytes, int], int] = {}
    for line in corpus.encode().splitlines():
        for at in range(len(line) + 1):
            following = line[at] if at < len(line) else 256
            for length in range(min(order, at) + 1):
                key = line[at - length : at], following
                counts[key] = counts.get(key, 0) + 1
    text = bytearray()
    while len(text) < most:
        known = (prompt.encode() + text)[-order:]
        contexts = (known[len(known) - length :] for length in range(len(known), -1, -1))
        rows = next(
            rows for rows in ([(n, -f) for (c, f), n in counts.items() if c == one] for one in contexts) if rows
        )
        following = -max(rows)[1]
        if following == 256:
            break
        text.append(following)
    return text.decode(errors="replace")
