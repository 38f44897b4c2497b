"""``python -m rm_abstract.backends.pim.compiler``: lays a model's weights out for a number of ranks.

It leaves all that serving needs but the program for the units, whose source it puts beside, for UPMEM's compiler.
"""

import argparse
import shutil
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Final, NoReturn

import numpy as np
from rm_api.conditions import Reason
from rm_api.report import Report

from rm_abstract import __version__
from rm_abstract.backends.pim import tensors
from rm_abstract.backends.pim.layout import (
    LAYOUT_FILE,
    UNITS_PER_RANK,
    WEIGHTS_FILE,
    Float32,
    Layout,
    lay_out,
    place,
    quantised,
)
from rm_abstract.backends.pim.llama import LlamaConfig
from rm_abstract.core.errors import BadInput
from rm_abstract.reporting import run_reported

KERNEL: Final = "gemv_int8.c"
PROGRAM: Final = "gemv.dpu"
HOST_FILE: Final = "host.safetensors"
TOKENIZER_FILE: Final = "tokenizer.json"
_KEPT: Final = ("config.json", TOKENIZER_FILE)
_KEPT_IF_THERE: Final = (
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
SCALES: Final = "scales."
"""Before a group's name: the scales of its rows."""


def host_shapes(config: LlamaConfig, layout: Layout) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in ``host.safetensors``."""
    return {**config.host_tensors(), **{f"{SCALES}{group.name}": (group.rows,) for group in layout.groups}}


def compile_model(model: Path, output: Path, ranks: int, units_per_rank: int = UNITS_PER_RANK) -> Layout:
    """Lay the model in ``model`` out into ``output``. Raises BadInput where it cannot be."""
    config = LlamaConfig.read(model)
    groups = config.groups()
    layout = lay_out(groups, ranks, units_per_rank)
    for name in _KEPT:
        if not (model / name).is_file():
            raise BadInput(f"{model} has no {name}")
    source = tensors.Tensors(model)
    output.mkdir(parents=True, exist_ok=True)
    written = np.memmap(output / WEIGHTS_FILE, np.int8, "w+", shape=(layout.units, layout.bytes_per_unit))

    def kept() -> Iterator[tuple[str, Float32]]:
        for name, shape in config.host_tensors().items():
            yield name, source.read(name, shape)
        for group in layout.groups:
            whole = np.concatenate([source.read(name, (rows, columns)) for name, rows, columns in groups[group.name]])
            numbers, scales = quantised(whole)
            place(written, layout, group, numbers)
            yield f"{SCALES}{group.name}", scales

    tensors.write(output / HOST_FILE, kept(), host_shapes(config, layout))
    written.flush()
    (output / LAYOUT_FILE).write_text(layout.text(), encoding="utf-8")
    for name in (*_KEPT, *_KEPT_IF_THERE):
        if (model / name).is_file():
            shutil.copyfile(model / name, output / name)
    return layout


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise BadInput(message, reason=Reason.TOOLCHAIN_FAILED)


def main() -> int:
    """The command; returns an exit code of the workload contract."""
    parser = _Parser(prog="python -m rm_abstract.backends.pim.compiler", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="directory of the model")
    parser.add_argument("--ranks", type=int, required=True, help="ranks that will serve it")
    parser.add_argument("--units-per-rank", type=int, default=UNITS_PER_RANK, help="units that work in each rank")
    parser.add_argument("--output", type=Path, help="directory for the result; without it, only whether it can be done")
    parser.add_argument("--kernel", type=Path, help="directory for the source of the units' program")

    def action() -> Report:
        arguments = parser.parse_args()
        if arguments.output is None:
            layout = lay_out(LlamaConfig.read(arguments.model).groups(), arguments.ranks, arguments.units_per_rank)
        else:
            layout = compile_model(arguments.model, arguments.output, arguments.ranks, arguments.units_per_rank)
        if arguments.kernel is not None:
            arguments.kernel.mkdir(parents=True, exist_ok=True)
            (arguments.kernel / KERNEL).write_bytes(files(__package__).joinpath(KERNEL).read_bytes())
        return Report(
            reason=Reason.BUILT,
            message=f"{layout.bytes_per_unit} bytes in each of {layout.units} units, {layout.ranks} ranks",
            sizeBytes=layout.bytes,
            versions={"rm-abstract": __version__},
        )

    return run_reported(action)


if __name__ == "__main__":
    sys.exit(main())
