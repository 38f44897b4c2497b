"""Models on the Hugging Face hub, or on a server that speaks its API (``HF_ENDPOINT``)."""

import glob
import os
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx2
from rm_api.conditions import Reason
from rm_api.names import ENV_HF_ENDPOINT

from rm_abstract.core.errors import BadInput, SourceUnreachable
from rm_abstract.http import Credentials, HostAuth, Http, NotFound, netloc
from rm_abstract.sources.base import ModelSource, SourceFile, hash_file

_REPOSITORY: Final = re.compile(r"(datasets/(?=[^/]+/))?([A-Za-z0-9][\w.-]*(?:/[\w][\w.-]*)?)")


class HfSource(ModelSource):
    """A model ``ORGANISATION/NAME``, or the data set ``datasets/ORGANISATION/NAME``; the revision is the commit.

    The token is the password in the netrc.
    """

    def __init__(self, location: str) -> None:
        place = _REPOSITORY.fullmatch(location)
        if place is None:
            raise BadInput(f"hf://{location} is no repository; one looks like hf://organisation/model")
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        try:
            import huggingface_hub  # noqa: PLC0415 (optional, and slow to import)
            from huggingface_hub import errors  # noqa: PLC0415
        except ImportError as error:
            raise BadInput(
                f"hf:// needs the package huggingface_hub, which this image does not have: {error}",
                reason=Reason.RESOLVE_FAILED,
            ) from error
        self._hub, self._errors = huggingface_hub, errors
        self._location = location
        self._place = {"repo_id": place[2], "repo_type": "dataset" if place[1] else "model"}
        self._endpoint = os.environ.get(ENV_HF_ENDPOINT, "https://huggingface.co").rstrip("/")
        credentials = Credentials.from_environment()
        credential = credentials.of(httpx2.URL(self._endpoint))
        self._token: str | bool = credential.password if credential else False
        self._http = Http(partial(HostAuth, bearer=True), credentials=credentials)
        # The hub's own client, which sends the token too, does not ask.
        self._http.refuse_plain_text(httpx2.URL(self._endpoint))

    def open(self, revision: str | None) -> None:
        """See the base class."""
        with self._translated():
            info = self._hub.HfApi(endpoint=self._endpoint, token=self._token).repo_info(
                **self._place, revision=revision, files_metadata=True, timeout=60
            )
        self.revision = str(info.sha)
        self.files = {
            sibling.rfilename: SourceFile(sibling.size, f"sha256:{sibling.lfs.sha256}" if sibling.lfs else "")
            for sibling in info.siblings or ()
            if self.means(sibling.rfilename)
        }

    @contextmanager
    def _translated(self) -> Iterator[None]:
        errors = self._errors
        host = netloc(httpx2.URL(self._endpoint))
        try:
            yield
        except errors.RevisionNotFoundError as error:
            raise NotFound(f"hf://{self._location} has no such revision") from error
        except errors.GatedRepoError as error:
            machine = httpx2.URL(self._endpoint).host
            why = (
                "the account of the token in the netrc has not been let in; accept its terms there"
                if self._token
                else f"it needs credentials: accept its terms there, and put an entry for machine {machine} with a "
                "token as password into the netrc"
            )
            raise BadInput(f"{host} says that hf://{self._location} is gated: {why}") from error
        except errors.RepositoryNotFoundError as error:
            raise BadInput(
                f"{host} shows no hf://{self._location}: it does not exist, or needs credentials; "
                f"put an entry for machine {httpx2.URL(self._endpoint).host} with a token as password into the netrc"
            ) from error
        except errors.HfHubHTTPError as error:
            status = error.response.status_code
            if status in (408, 429) or status >= 500:
                raise SourceUnreachable(f"{host} cannot answer now ({status})") from error
            raise BadInput(
                f"{host} refuses hf://{self._location} ({status}): {error.server_message or error}"
            ) from error
        except httpx2.HTTPError as error:
            raise SourceUnreachable(f"{host} does not answer: {str(error) or type(error).__name__}") from error
        except OSError as error:
            if error.errno is not None:  # of the disk
                raise
            # So the hub's client says that a file has another size than was announced.
            said = str(error).partition("\n")[0]
            raise SourceUnreachable(f"{host} does not give all of hf://{self._location}: {said}") from error

    def _url(self, name: str) -> str:
        options = {"filename": name, "revision": self.revision, "endpoint": self._endpoint}
        return str(self._hub.hf_hub_url(**self._place, **options))

    def read(self, name: str, start: int, length: int) -> bytes:
        """See the base class."""
        return self._http.read(self._url(name), start, length)

    def stream(self, name: str) -> Iterator[bytes]:
        """See the base class."""
        return self._http.download(self._url(name))

    def fetch(self, directory: Path, names: Collection[str] | None = None) -> dict[str, str]:
        """See the base class. The hub's client downloads, which is faster than one connection; the digests are ours."""
        wanted = sorted(self.files if names is None else names)
        options: dict[str, Any] = {
            "allow_patterns": [glob.escape(name) for name in wanted],
            "token": self._token,
            "endpoint": self._endpoint,
        }
        with self._translated():
            self._hub.snapshot_download(**self._place, revision=self.revision, local_dir=directory, **options)
        shutil.rmtree(directory / ".cache", ignore_errors=True)
        digests = {}
        for name in wanted:
            digests[name], size = hash_file(directory / name)
            self.check(name, size, digests[name])
        return digests

    def close(self) -> None:
        """See the base class."""
        self._http.close()
