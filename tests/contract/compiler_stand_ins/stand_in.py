"""What the stand-ins for closed compilers share. docs/compilers.md names the documents that they follow.

Each looks at a model as its original would, and refuses what that refuses, in its words. A fault that no model brings
about is chosen by STAND_IN_FAULT, a variable of the image.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

FAULT = os.environ.get("STAND_IN_FAULT", "")
"""What goes wrong: `silent` leaves nothing, `empty` an empty file, `liar` says so in the log only; all end with 0."""


def fail(*lines: str, code: int = 1) -> NoReturn:
    """Ends the program as its original does."""
    print(*lines, sep="\n", file=sys.stderr)
    sys.exit(code)


def config_of(model: Path) -> dict[str, Any]:
    """The model's config.json, as transformers reads it; ends the program as Python does where that is not there."""
    file = model / "config.json"
    if not file.is_file():
        fail(f"OSError: {model} does not appear to have a file named config.json.")
    return dict(json.loads(file.read_text()))


def weights_of(model: Path) -> list[Path]:
    """The files of the weights; ends the program where there is none."""
    found = sorted(model.glob("*.safetensors"))
    if not found:
        fail(f"OSError: Error no file named model.safetensors, or pytorch_model.bin, found in directory {model}.")
    return found


def leave(path: Path, content: bytes) -> None:
    """Writes an output, if the fault lets it."""
    if FAULT == "silent":
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"" if FAULT == "empty" else content)
