"""Models in a directory of a web server."""

import hashlib
import json
from collections.abc import Iterator
from typing import Final

import httpx2

from rm_abstract.core.errors import ArtifactMismatch, BadInput
from rm_abstract.http import Http
from rm_abstract.sources.base import ModelSource, SourceFile
from rm_abstract.sources.safetensors import INDEX, SINGLE, shards_of

_REQUIRED: Final = "config.json"
_OPTIONAL: Final = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "merges.txt",
    "modules.json",
    "preprocessor_config.json",
    "sentence_bert_config.json",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
    "1_Pooling/config.json",
)
"""A web server has no listing that could be relied on, so these are asked for by name."""
_MAX_INDEX: Final = 64 << 20


class HttpsSource(ModelSource):
    """A model in ``HOST[:PORT]/DIRECTORY/``.

    The revision is a digest over names, sizes and validators (ETag, or Last-Modified) of the files, so replacing a file
    makes another revision.
    """

    def __init__(self, location: str) -> None:
        host, _, path = location.partition("/")
        if not host or any(mark in location for mark in "?#"):
            raise BadInput(f"https://{location} is no directory; one looks like https://host/models/name/")
        self._http = Http()
        self._by_parts: set[str] = set()
        self._base = f"{self._http.base(host)}/{path}".rstrip("/")

    def open(self, revision: str | None) -> None:
        """See the base class."""
        validators: dict[str, str] = {}
        files: dict[str, SourceFile] = {}

        def add(name: str, *, required: bool) -> None:
            try:
                response = self._head(name)
            except BadInput:
                # Not found, or forbidden, which some servers say of what does not exist.
                if required:
                    raise
                return
            size = response.headers.get("Content-Length", "")
            if response.headers.get("Content-Type", "").startswith("text/html") or not size.isdigit():
                if required:
                    raise BadInput(f"{self._base}/{name} is no plain file: the server gives no length, or a web page")
                return
            files[name] = SourceFile(int(size))
            if response.headers.get("Accept-Ranges") == "bytes":
                self._by_parts.add(name)
            validators[name] = response.headers.get("ETag", response.headers.get("Last-Modified", ""))

        add(_REQUIRED, required=True)
        add(INDEX, required=False)
        if INDEX in files:
            index = self._http.read(f"{self._base}/{INDEX}", 0, min(files[INDEX].size, _MAX_INDEX))
            weights = shards_of(index)
        else:
            weights = [SINGLE]
        for name in weights:
            add(name, required=True)
        for name in _OPTIONAL:
            add(name, required=False)
        self.files = files
        listing = [[name, files[name].size, validators[name]] for name in sorted(files)]
        text = json.dumps(listing, separators=(",", ":"), ensure_ascii=False)
        self.revision = "sha256:" + hashlib.sha256(text.encode()).hexdigest()
        if revision not in (None, self.revision):
            raise ArtifactMismatch(f"{self._base} has changed: it was {revision}, and is {self.revision} now")

    def _head(self, name: str) -> httpx2.Response:
        return self._http.request("HEAD", f"{self._base}/{name}", headers={"Accept-Encoding": "identity"})

    def read(self, name: str, start: int, length: int) -> bytes:
        """See the base class."""
        return self._http.read(f"{self._base}/{name}", start, length)

    def reads_parts(self, name: str) -> bool:
        """See the base class: the server has to say so."""
        return name in self._by_parts

    def stream(self, name: str) -> Iterator[bytes]:
        """See the base class."""
        return self._http.download(f"{self._base}/{name}")

    def close(self) -> None:
        """See the base class."""
        self._http.close()
