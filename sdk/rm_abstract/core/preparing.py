"""From a model's directory to an artifact that a plugin loads: look into the cache, compile, keep."""

import re
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Final

from rm_abstract.core.artifacts import ArtifactCache, Hold
from rm_abstract.core.digests import digest_of, files_of, hash_of
from rm_abstract.core.errors import BadInput
from rm_abstract.core.plugin import BackendConfig, Plugin
from rm_abstract.core.resource import BuildArtifact, BuildProfile

_SCHEMA: Final = 1
_DIGEST: Final = 64
_REQUIRED_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
PLAIN_FORMAT: Final = "huggingface"
"""Format of a model's directory as it is."""


class Stage(StrEnum):
    """What is being done."""

    SELECTED = "selected"
    """A plugin was chosen for the device."""
    CACHED = "cached"
    """A compiled model was found."""
    COMPILING = "compiling"
    COMPILED = "compiled"
    LOADING = "loading"
    LOADED = "loaded"
    PASSED = "passed"
    """Something is left to transformers as it is."""


@dataclass(frozen=True)
class Progress:
    """Something that was done, or begins."""

    stage: Stage
    message: str
    """One line for a person."""
    seconds: float | None = None
    """How long it took, where it has ended."""


Tell = Callable[[Progress], None]


@dataclass(frozen=True)
class Prepared:
    """A model as a plugin loads it. One that is in the cache stays there until ``close``."""

    artifact: BuildArtifact
    hold: Hold | None = None

    def close(self) -> None:
        """Let it be collected."""
        if self.hold is not None:
            self.hold.close()


def prepare(plugin: Plugin, model: Path, config: BackendConfig, cache_dir: Path, tell: Tell) -> Prepared:
    """The model in directory ``model`` as ``plugin`` loads it: from the cache, or compiled now and kept there.

    Processes that ask at the same time compile once. Raises BadInput where ``model`` is no model, ToolchainFailure
    where the tools fail or are not installed; nothing is kept then.
    """
    if not (model / "config.json").is_file():
        raise BadInput(f"{model} is no model: it has no config.json")
    profiles = plugin.required_build_profiles(config)
    if not profiles:
        return Prepared(BuildArtifact(model, model_digest(model), PLAIN_FORMAT))
    profile = profiles[0]
    key = artifact_key(plugin, model, profile)
    started = time.monotonic()

    def build(output: Path) -> None:
        name = plugin.metadata().name
        tell(Progress(Stage.COMPILING, f"compiling for {name} with {profile.compiler}; this happens once for a model"))
        plugin.compile(model, output, profile, key=key)

    hold = ArtifactCache(cache_dir).get_or_build(key, build)
    if hold.built:
        seconds = time.monotonic() - started
        tell(Progress(Stage.COMPILED, f"compiled in {seconds:.1f} s, kept in {hold.path}", seconds))
    else:
        tell(Progress(Stage.CACHED, f"found the model compiled by {profile.compiler} in {hold.path}"))
    return Prepared(hold.artifact, hold)


def artifact_key(plugin: Plugin, model: Path, profile: BuildProfile) -> str:
    """What a compiled model depends on: the model's files, the profile, and the versions of plugin and tools."""
    about = plugin.metadata()
    versions = {**plugin.versions(), **tool_versions([profile.compiler, *about.requires]), about.name: about.version}
    return hash_of([_SCHEMA, model_digest(model), asdict(profile), versions])


def model_digest(model: Path) -> str:
    """Digest of all files of a model but hidden and descriptive ones."""
    files = {
        name: _blob_digest(path)
        for name, path in files_of(model)
        if not any(part.startswith(".") for part in name.split("/")) and not name.endswith(".md")
    }
    return hash_of(sorted(files.items()))


def _blob_digest(path: Path) -> str:
    """A file's digest. In the cache of Hugging Face's hub, large files are named by it: reading them takes long."""
    real = path.resolve()
    named = real.parent.name == "blobs" and len(real.name) == _DIGEST and not set(real.name) - set("0123456789abcdef")
    return f"sha256:{real.name}" if named else digest_of(real)


def tool_versions(distributions: Iterable[str]) -> dict[str, str]:
    """Versions of those of the distributions that are installed, and of what each needs directly."""
    found: dict[str, str] = {}
    for name in distributions:
        try:
            found[name] = version(name)
            needs = requires(name) or []
        except PackageNotFoundError:
            continue
        for requirement in needs:
            match = _REQUIRED_NAME.match(requirement)
            if match is None or "extra" in requirement.partition(";")[2]:
                continue
            with suppress(PackageNotFoundError):
                found.setdefault(match[0], version(match[0]))
    return found
