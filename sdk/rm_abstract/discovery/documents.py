"""YAML files, read without a YAML reader while they are what they were: importing one takes twenty milliseconds."""

import os
import zlib
from contextlib import suppress
from typing import Any

from rm_abstract.core.errors import BadInput
from rm_abstract.discovery.source import plain
from rm_abstract.discovery.store import Store


def read_yaml(path: str | os.PathLike[str], store: Store) -> Any:
    """What a YAML file says. Raises BadInput if it cannot be read or is no YAML."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{os.fspath(path)} cannot be read: {error}") from None
    name = f"yaml-{zlib.crc32(os.path.abspath(path).encode()):08x}"
    known = store.read(name)
    if isinstance(known, dict) and known.get("text") == text:
        return known.get("value")
    try:
        import yaml  # noqa: PLC0415 (see above)
    except ImportError:
        raise BadInput(
            f"{os.fspath(path)} is YAML, and the package pyyaml is not installed: pip install pyyaml"
        ) from None
    try:
        value = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 (both are the safe one)
    except yaml.YAMLError as error:
        raise BadInput(f"{os.fspath(path)} is no YAML: {' '.join(str(error).split())}") from None
    with suppress(ValueError):  # a date, or a key that is no word
        store.write(name, {"text": text, "value": plain(value)})
    return value
