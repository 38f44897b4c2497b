"""Pod templates as ControllerRevisions remember them: in ``data.gzip``, the base64 of a template's JSON made smaller.

Every start of the operator reads all of them, and a template is some four kilobytes: this is a third of it. Read one
with ``kubectl get controllerrevision NAME -o jsonpath='{.data.gzip}' | base64 -d | gunzip``. Earlier versions wrote the
template itself, as ``data.template``; such data stay as they are, since a revision's cannot be changed.
"""

import base64
import binascii
import gzip
import json
import zlib
from collections.abc import Mapping
from typing import Any, Final

from rm_operator.plan.memo import Memo
from rm_operator.plan.model import Object

MOST_BYTES: Final = 1 << 20
"""No object of the API server is larger: what says it is, is no template of ours."""
_GZIP: Final = 31
"""zlib's word for a stream with gzip's header."""


def data_of(template: Mapping[str, Any]) -> dict[str, Any]:
    """The data of a ControllerRevision that remembers ``template``."""
    content = json.dumps(template, sort_keys=True, separators=(",", ":")).encode()
    return {"gzip": base64.b64encode(gzip.compress(content, mtime=0)).decode()}


def template_in(revision: Object | None) -> Mapping[str, Any] | None:
    """The template in a ControllerRevision; None where there is none, or what is there is no template of ours."""
    data = revision.get("data") if revision is not None else None
    if not isinstance(data, Mapping):
        return None
    small = data.get("gzip")
    template = _unpacked(small) if isinstance(small, str) else data.get("template")
    if isinstance(template, Mapping) and {"metadata", "spec"} <= template.keys():
        return template
    return None


def _unpack(small: str) -> object:
    try:
        stream = zlib.decompressobj(_GZIP)
        content = stream.decompress(base64.b64decode(small, validate=True), MOST_BYTES)
        return json.loads(content) if stream.eof else None
    except (binascii.Error, zlib.error, ValueError, RecursionError):
        return None


_unpacked: Memo[[str], object] = Memo(_unpack, most=64)
