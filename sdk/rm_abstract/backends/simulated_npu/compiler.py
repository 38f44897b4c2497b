"""``rma-sim-compile``: turns an exported OpenVINO model into a program for a product and a driver version."""

import argparse
import shutil
from pathlib import Path
from typing import Final, NoReturn

from rm_api.conditions import Reason
from rm_api.report import Report

from rm_abstract.backends.openvino_model import PROPERTIES, TOKENIZER_FILES
from rm_abstract.backends.simulated_npu.blob import Target, write_blob
from rm_abstract.core.errors import BadInput, ToolchainFailure
from rm_abstract.reporting import run_reported

BLOB: Final = "model.simx"
_REQUIRED: Final = ("config.json", *TOKENIZER_FILES)
_OPTIONAL: Final = ("generation_config.json", "chat_template.jinja", "tokenizer_config.json")


def compile_model(model: Path, target: Target, output: Path) -> str:
    """Compile the exported model in ``model`` into ``output``, and return the compiler's version.

    Raises BadInput where it is no exported model, ToolchainFailure where OpenVINO cannot compile it.
    """
    import openvino  # noqa: PLC0415 (heavy)

    source = model / "openvino_model.xml"
    missing = [path.name for path in (source, *(model / name for name in _REQUIRED)) if not path.is_file()]
    if missing:
        raise BadInput(
            f"{model} is no model that optimum-cli exported: it has no {missing[0]}", reason=Reason.TOOLCHAIN_FAILED
        )
    compiler = str(openvino.get_version())
    try:
        core = openvino.Core()
        program = core.compile_model(core.read_model(source), "CPU", dict(PROPERTIES)).export_model()
    except RuntimeError as error:
        raise ToolchainFailure(f"OpenVINO cannot compile the model: {error}") from error
    output.mkdir(parents=True, exist_ok=True)
    write_blob(output / BLOB, target, compiler, program.getbuffer())
    for name in (*_REQUIRED, *_OPTIONAL):
        if (model / name).is_file():
            shutil.copyfile(model / name, output / name)
    return compiler


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise BadInput(message, reason=Reason.TOOLCHAIN_FAILED)


def main() -> int:
    """The command; returns an exit code of the workload contract."""
    parser = _Parser(prog="rma-sim-compile", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="directory that optimum-cli export openvino wrote")
    parser.add_argument("--target", required=True, help="product and driver version, such as simx1:driver=1.4.0")
    parser.add_argument("--output", type=Path, required=True, help="directory for the result")

    def action() -> Report:
        arguments = parser.parse_args()
        target = Target.parse(arguments.target)
        compiler = compile_model(arguments.model, target, arguments.output)
        size = (arguments.output / BLOB).stat().st_size
        return Report(
            reason=Reason.BUILT,
            message=f"compiled for {target.product}, driver {target.driver}",
            sizeBytes=size,
            versions={"openvino": compiler},
        )

    return run_reported(action)
