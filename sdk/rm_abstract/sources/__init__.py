"""Where models come from (a hub, registries, web servers, buckets, volumes), what they are, and fetching them."""

import posixpath
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rm_api.conditions import Reason

from rm_abstract.core.errors import ArtifactMismatch, BadInput
from rm_abstract.sources.base import ModelSource, is_code, is_weights
from rm_abstract.sources.facts import model_facts
from rm_abstract.sources.verified import Expected, FetchedFiles, check, check_code, covered, refuse_code, seal
from rm_abstract.store.destination import Destination, room
from rm_abstract.store.layers import safe_name

if TYPE_CHECKING:
    from rm_abstract.sources.node_cache import NodeCache

__all__ = ["Expected", "ModelSource", "fetch_model", "open_source", "resolve_model"]

_MAX_SOURCE: Final = 1024


def _oci(location: str) -> ModelSource:
    from rm_abstract.sources.oci import OciSource  # noqa: PLC0415 (each scheme loads its own client)

    return OciSource(location)


def _https(location: str) -> ModelSource:
    from rm_abstract.sources.https import HttpsSource  # noqa: PLC0415

    return HttpsSource(location)


def _hf(location: str) -> ModelSource:
    from rm_abstract.sources.hf import HfSource  # noqa: PLC0415

    return HfSource(location)


def _pvc(location: str) -> ModelSource:
    from rm_abstract.sources.pvc import PvcSource  # noqa: PLC0415

    return PvcSource(location)


def _s3(location: str) -> ModelSource:
    from rm_abstract.sources.s3 import S3Source  # noqa: PLC0415

    return S3Source(location)


_SCHEMES: Final[dict[str, Callable[[str], ModelSource]]] = {
    "hf": _hf, "https": _https, "oci": _oci, "pvc": _pvc, "s3": _s3,
}  # fmt: skip


@contextmanager
def open_source(
    uri: str, revision: str | None = None, *, everything: bool = False, pinned: bool = True
) -> Iterator[ModelSource]:
    """The model at ``uri``, at ``revision`` or as it is now; with ``everything``, whatever files are there.

    Without ``pinned`` and a revision, that of the source may be empty. Raises BadInput, NotFound or SourceUnreachable.
    """
    scheme, separator, location = uri.partition("://")
    if not separator or scheme not in _SCHEMES:
        known = ", ".join(f"{name}://" for name in _SCHEMES)
        raise BadInput(f"{uri!r} has no scheme that is known here; known are {known}", reason=Reason.UNKNOWN_SOURCE)
    if "@" in location.partition("/")[0]:
        raise BadInput("the source holds a user name; put credentials into a netrc, never into a URI")
    source = _SCHEMES[scheme](location)
    source.everything, source.pinned = everything, pinned
    try:
        source.open(revision)
        _check_names(uri, source.files)
        yield source
    finally:
        source.close()


def _check_names(uri: str, names: Collection[str]) -> None:
    """Raise BadInput where the names cannot all be files under one directory."""
    for name in names:
        try:
            fits = safe_name(name) == name
        except ArtifactMismatch:
            fits = False
        above = posixpath.dirname(name)
        while fits and above:
            fits, above = above not in names, posixpath.dirname(above)
        if not fits:
            raise BadInput(f"{uri} has {name!r}, which cannot be a file beside the others; rename it there")


def resolve_model(uri: str, revision: str | None = None, *, digests: bool = True) -> dict[str, Any]:
    """Facts of the model at ``uri``, as the field ``model`` of a ModelDeployment's status has them.

    Without ``digests`` those are left out, and the weights are not read for them, nor for a revision.
    """
    if len(uri.encode()) > _MAX_SOURCE:
        raise BadInput(f"the source is longer than {_MAX_SOURCE} bytes, and would not fit the report")
    try:
        with open_source(uri, revision, pinned=digests) as source:
            pin = {"revision": source.revision} if source.revision else {}
            return {"source": uri, **pin, **model_facts(source, digests=digests)}
    except ArtifactMismatch as error:
        raise BadInput(str(error)) from error


def fetch_model(
    uri: str,
    revision: str,
    expected_weights: str | None,
    destination: Path,
    expected: Expected | None = None,
    *,
    shared: bool = False,
    cache: "NodeCache | None" = None,
) -> int:
    """Fetch the model into ``destination``, complete or not at all, and return its bytes.

    Without ``expected_weights`` all files but the weights; code that comes with the model only where its digest is
    expected. With ``shared``, for a build whose result others share, only
    what the digests cover is there, and a model that names code of its own is refused (BadInput). Files
    that ``cache`` has come from there, and it is given those that it did not have. Raises
    ArtifactMismatch where it is no longer at ``revision``, or what was fetched does not have the digests expected;
    Transient where the volume has no room for it, before anything is fetched if that can be told.
    """
    weights = expected_weights is not None
    wanted = replace(expected or Expected(), weights=expected_weights)
    with open_source(uri, revision) as source, Destination(destination) as place:
        if source.revision != revision:
            raise ArtifactMismatch(f"{uri} has changed: it was {revision}, and is {source.revision} now")
        names = [
            name
            for name in source.files
            if (weights or not is_weights(name)) and (wanted.code is not None or not is_code(name))
        ]
        if shared:
            # Before anything is fetched that is large; what counts is what is found on the disk in the end.
            check(uri, source, wanted, weights=False, strict=True)
            refuse_code(uri, source)
            names = covered(source, weights=weights)
        with room(place.path, sum(source.files[name].size for name in names), "model"):
            digests = cache.fetch(source, place.path, names) if cache else {}
            others = [name for name in names if name not in digests]
            fetched = FetchedFiles(place.path, {**digests, **(source.fetch(place.path, others) if others else {})})
        check(uri, fetched, wanted, weights=weights, strict=shared)
        check_code(uri, fetched, wanted)
        if shared:
            refuse_code(uri, fetched)
            seal(place.path, fetched)
        size = sum(path.stat().st_size for path in place.path.rglob("*") if path.is_file())
        place.publish(last="config.json")
        if cache:
            known = {name: source.files[name].digest for name in names if source.files[name].digest}
            cache.fill(source, destination, known)
        return size
