"""What was fetched of a model must be what was resolved: checked on what lies on the disk, not on what a server says.

A server may answer one question with one content and the next with another, so the digests are made anew from the files
that a build will read. For a build whose result others share, the directory is then made a function of the digests:
whatever they do not cover is not in it.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rm_abstract.core.errors import ArtifactMismatch, BadInput
from rm_abstract.sources.base import ModelSource, SourceFile
from rm_abstract.sources.facts import (
    CONFIG_DENYLIST,
    brings_code,
    code_digest,
    config_digest,
    is_auxiliary,
    model_digests,
    read_config,
    scales_without_parts,
    tensors_in,
    weight_files,
    weights_digest,
)
from rm_abstract.sources.safetensors import INDEX
from rm_abstract.store.layers import file_chunks


@dataclass(frozen=True)
class Expected:
    """The digests that a model must have; what is None is not looked at."""

    config: str | None = None
    tensors: str | None = None
    weights: str | None = None
    scales: str | None = None
    code: str | None = None
    """Of the model's own code, which is not fetched where this is None."""


class FetchedFiles(ModelSource):
    """The files of a model in a directory, with the digests of what was written there."""

    def __init__(self, directory: Path, digests: Mapping[str, str]) -> None:
        self._directory = directory
        self.revision = ""
        self.files = {name: SourceFile((directory / name).stat().st_size, digests[name]) for name in digests}

    def open(self, revision: str | None) -> None:
        """See the base class; they are there."""

    def read(self, name: str, start: int, length: int) -> bytes:
        """See the base class."""
        with (self._directory / name).open("rb") as file:
            file.seek(start)
            return file.read(length)

    def stream(self, name: str) -> Iterator[bytes]:
        """See the base class."""
        return file_chunks(self._directory / name)

    def close(self) -> None:
        """See the base class."""


def check(uri: str, found: ModelSource, expected: Expected, *, weights: bool, strict: bool) -> None:
    """Raise ArtifactMismatch where the model has another digest than expected.

    Without ``weights`` only the config's is looked at. With ``strict`` a model that should have no scales has none.
    """
    if not weights:
        if expected.config is not None:
            _same(uri, "config and tokenizer", config_digest(found), expected.config)
        return
    got = weights_digest({name: found.digest(name) for name in weight_files(found)})
    if expected.weights is not None and got != expected.weights:
        raise ArtifactMismatch(f"the weights of {uri} have digest {got}, not {expected.weights}")
    digests = model_digests(found)
    if expected.config is not None:
        _same(uri, "config and tokenizer", digests["configDigest"], expected.config)
    if expected.tensors is not None:
        _same(uri, "list of tensors", digests["tensorsDigest"], expected.tensors)
    scales = digests.get("scalesDigest")
    # A source of which parts cannot be read was resolved by all of its weights, which are right.
    if expected.scales is not None and expected.scales != scales_without_parts(got):
        _same(uri, "content of the scales", scales or "none", expected.scales)
    if strict and expected.scales is None and scales is not None:
        raise ArtifactMismatch(f"{uri} has scales of a quantisation, and was resolved as a model without any")


def check_code(uri: str, fetched: FetchedFiles, expected: Expected) -> None:
    """Raise ArtifactMismatch where the model's own code, that is to be run, is not what was resolved."""
    if expected.code is not None:
        _same(uri, "files of the code", code_digest(fetched) or "none", expected.code)


def _same(uri: str, what: str, found: str, expected: str) -> None:
    if found != expected:
        raise ArtifactMismatch(f"the {what} of {uri} are not what was resolved: digest {found}, not {expected}")


def covered(source: ModelSource, *, weights: bool) -> list[str]:
    """The files of ``source`` whose content the digests of a model tell."""
    names = [name for name in source.files if name == "config.json" or is_auxiliary(name)]
    if not weights:
        return names
    return [*names, *([INDEX] if INDEX in source.files else []), *weight_files(source)]


def refuse_code(uri: str, source: ModelSource) -> None:
    """Raise BadInput where the model names code of its own."""
    if brings_code(source):
        raise BadInput(f"{uri} names code of its own (auto_map), which no build may run whose result others share")


def seal(directory: Path, fetched: FetchedFiles) -> None:
    """Write anew what the digests tell in part only, from what they tell.

    config.json loses the fields that do not count, and whatever two readers of JSON may understand differently; the
    index of the weights is made of their heads.
    """
    config = {key: value for key, value in read_config(fetched).items() if key not in CONFIG_DENYLIST}
    _write(directory / "config.json", config)
    if INDEX in fetched.files:
        heads = {name: tensors_in(fetched, name) for name in weight_files(fetched)}
        total = sum(tensor.bytes for tensors in heads.values() for tensor in tensors)
        files = {tensor.name: name for name, tensors in heads.items() for tensor in tensors}
        _write(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": files})


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
