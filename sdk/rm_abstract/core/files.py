"""Files of a model's directory."""

import json
from pathlib import Path
from typing import Any

from rm_abstract.core.errors import ArtifactMismatch


def json_at(path: Path, *, optional: bool = False) -> Any:
    """What a file holds; None for one that is not there, if it is ``optional``. Raises ArtifactMismatch."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if optional:
            return None
        raise ArtifactMismatch(f"the artifact has no {path.name}") from None
    except ValueError as error:
        raise ArtifactMismatch(f"{path.name} of the artifact is not valid JSON: {error}") from None


def json_object(path: Path, *, optional: bool = False) -> dict[str, Any]:
    """The object that a file holds; an empty one for a file that is not there, if it is ``optional``."""
    value = json_at(path, optional=optional)
    if value is None and optional:
        return {}
    if not isinstance(value, dict):
        raise ArtifactMismatch(f"{path.name} of the artifact is no JSON object")
    return value
