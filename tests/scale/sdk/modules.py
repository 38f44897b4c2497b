"""Three hundred real plugin modules, as files of a package, and the distribution that offers them to others."""

import os
import time
from pathlib import Path
from textwrap import dedent

PACKAGE = "bench_plugins"
GROUP = "bench.plugins"
COUNT = 300

_HEAD = '''
    """Number {number}: {what}.

    A module as people write them: imports, a helper or two, documentation, and one thing that it offers.
    """

    import math
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

    from rm_abstract.discovery.decorators import {decorator}

    LIMIT = {number}
    UNITS = {{"ns": 1e-9, "us": 1e-6, "ms": 1e-3}}


    def bounded(values: Iterable[float], limit: float = LIMIT) -> list[float]:
        """The values, none of them above a limit."""
        return [min(value, limit) for value in values if not math.isnan(value)]
'''
_TRANSFORM = '''

    @transform(
        name="Transform{number}",
        stage="{stage}",
        description="Removes what costs nothing from a graph, in the way of number {number}",
        version="1.{number}.0",
    )
    class Transform{number}:
        """Removes operations without inputs until there are none."""

        def __init__(self, limit: int = LIMIT, **options: Any) -> None:
            self.limit = limit
            self.options: Mapping[str, Any] = options
            self.removed = 0

        def apply(self, model: Sequence[tuple[str, ...]]) -> tuple[list[tuple[str, ...]], bool]:
            """The model without such operations, and whether that changed it."""
            constants = {{each[-1] for each in model if len(each) == 2}}
            kept = []
            for name, *inputs, output in model:
                if inputs and all(value in constants for value in inputs) and self.removed < self.limit:
                    constants.add(output)
                    self.removed += 1
                else:
                    kept.append((name, *inputs, output))
            return kept, len(kept) != len(model)

        def cost(self, seconds: float, unit: str = "ms") -> float:
            """What it costs in a unit."""
            return bounded([seconds / UNITS[unit]])[0]
'''
_KERNEL = '''

    @kernel(name="Kernel{number}", description="An operation of hardware", inputs=2)
    class Kernel{number}:
        """What is computed."""

        def shape(self, *sizes: int) -> tuple[int, ...]:
            """The shape of the result."""
            return tuple(max(1, size // 2) for size in sizes)


    @backend(name="Kernel{number}HLS", kernel="Kernel{number}", backend_type="hls", language="C++")
    class Kernel{number}Hls(Kernel{number}):
        """How it is computed in high-level synthesis."""

        def generate(self, name: str) -> str:
            """The source."""
            return f"void {{name}}(hls::stream<int> &x) {{{{ /* {number} */ }}}}"


    @backend(name="Kernel{number}RTL", kernel="Kernel{number}", backend_type="rtl", language="Verilog")
    class Kernel{number}Rtl(Kernel{number}):
        """How it is computed in logic."""

        def generate(self, name: str) -> str:
            """The source."""
            return f"module {{name}}(input clk); endmodule // {number}"
'''
_STEP = '''

    @step(name="step{number}", description="A part of a build")
    def step{number}(model: Any, config: Mapping[str, Any]) -> Any:
        """Applies what the configuration names."""
        for each in config.get("transforms", ()):
            model, _ = each().apply(model)
        return model
'''
_STAGES = ("cleanup", "topology_opt", "kernel_opt", "dataflow_opt")


def _source(number: int) -> str:
    if number % 10 == 8:
        what, decorator, body = "a kernel and its backends", "backend, kernel", _KERNEL
    elif number % 10 == 9:
        what, decorator, body = "a step", "step", _STEP
    else:
        what, decorator, body = "a transform", "transform", _TRANSFORM
    values = {"number": number, "what": what, "decorator": decorator, "stage": _STAGES[number % 4]}
    return dedent(_HEAD).format(**values) + dedent(body).format(**values)


def write(directory: Path) -> None:
    """Write the package with ten packages of thirty modules each, and its distribution's entry points."""
    package = directory / PACKAGE
    points = []
    package.mkdir()
    (package / "__init__.py").write_text('"""Plugins to measure with."""\n')
    for number in range(COUNT):
        part = package / f"part{number // 30}"
        part.mkdir(exist_ok=True)
        (part / "__init__.py").write_text("")
        (part / f"plugin{number}.py").write_text(_source(number).lstrip())
        kind = {8: "Kernel", 9: "step"}.get(number % 10, "Transform")
        points.append(f"plugin{number} = {PACKAGE}.part{number // 30}.plugin{number}:{kind}{number}")
    about = directory / f"{PACKAGE}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[{GROUP}]\n" + "\n".join(points) + "\n")
    blueprint = {
        "transforms": [f"Transform{number}" for number in (0, 31, 62, 93, 124, 155, 186, 217)],
        "kernels": ["Kernel8", '{kernel: Kernel38, backends: [hls]}', "Kernel68"],
        "steps": ["step9", "step39"],
    }  # fmt: skip
    lines = [f"  {key}: [{', '.join(names)}]" for key, names in blueprint.items()]
    lines.append("  transforms_phased: {pre_hw: [Transform1, ~Missing], post_hw: [Transform2, Transform3]}")
    (directory / "blueprint.yaml").write_text("hw_compiler:\n" + "\n".join(lines) + "\n")


def module_names() -> list[str]:
    """The modules with plugins, in order."""
    return [f"{PACKAGE}.part{number // 30}.plugin{number}" for number in range(COUNT)]


def let_settle(directory: Path) -> None:
    """Wait until the files are old enough for their times to be believed, as those of any installation are."""
    latest = max(os.stat(path).st_ctime_ns for path in directory.rglob("*.py"))
    while time.time_ns() - latest < 2_200_000_000:
        time.sleep(0.1)
