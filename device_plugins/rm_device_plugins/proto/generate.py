"""Generates the Python of the interface definitions beside them: ``python -m rm_device_plugins.proto.generate``.

Needs grpcio-tools, which only developers have. Only messages are generated: services are bound from their
descriptors in ``rm_device_plugins.kubelet_api``.
"""

import sys
from importlib import import_module
from pathlib import Path

IMPORT_ROOT = Path(__file__).resolve().parents[2]

DEFINITIONS = tuple(sorted(str(path.relative_to(IMPORT_ROOT)) for path in Path(__file__).parent.rglob("*.proto")))
"""Relative to the import root, so that each file has a name of its own in protobuf's pool."""


def generate(output: Path) -> list[Path]:
    """Writes ``*_pb2.py`` and ``*_pb2.pyi`` for every definition under ``output``; returns the files, absolute."""
    protoc = import_module("grpc_tools.protoc")
    arguments = ["protoc", f"-I{IMPORT_ROOT}", f"--python_out={output}", f"--pyi_out={output}", *DEFINITIONS]
    if protoc.main(arguments) != 0:
        raise RuntimeError("protoc failed; its message is above")
    for definition in DEFINITIONS:
        # The stubs do not pass the strict checks, and it is not us who can change that.
        stub = output / definition.replace(".proto", "_pb2.pyi")
        stub.write_text(f"# mypy: ignore-errors\n{stub.read_text()}")
    stems = [output / definition.removesuffix(".proto") for definition in DEFINITIONS]
    return [stem.with_name(f"{stem.name}_pb2{suffix}") for stem in stems for suffix in (".py", ".pyi")]


if __name__ == "__main__":
    for path in generate(IMPORT_ROOT):
        sys.stdout.write(f"{path.relative_to(IMPORT_ROOT)}\n")
