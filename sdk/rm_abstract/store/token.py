"""The token by which a pod proves to the artifact store whose it is: for the store's own token service only."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import httpx2
from rm_api.names import ENV_REGISTRY_TOKEN_FILE, ENV_STORE

from rm_abstract.core.errors import BadInput
from rm_abstract.http import Credential, netloc

_LOGIN: Final = "serviceaccount"
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})


@dataclass(frozen=True)
class StoreToken:
    """A ServiceAccount token in a file that the kubelet renews, and the ``host:port`` of the store that it is for."""

    store: str
    path: Path

    @classmethod
    def from_environment(cls) -> Self | None:
        """That of ``$RMA_REGISTRY_TOKEN_FILE`` for ``$RMA_STORE``; None where neither is set. Raises BadInput."""
        store, path = os.environ.get(ENV_STORE, ""), os.environ.get(ENV_REGISTRY_TOKEN_FILE, "")
        if not path:
            return None
        if not store:
            raise BadInput(f"{ENV_REGISTRY_TOKEN_FILE} is for the store; name its host:port in {ENV_STORE}")
        return cls(store, Path(path))

    def is_for(self, url: httpx2.URL) -> bool:
        """True if a URL is the store's. One that is reached without TLS may be anybody, but on this machine."""
        return url.origin == httpx2.URL(f"{url.scheme}://{self.store}").origin and _is_safe(url)

    def credential(self, realm: httpx2.URL) -> Credential:
        """What to show to the token service at ``realm``, which the store named.

        Raises BadInput where it would go without TLS to another machine, and where there is no token.
        """
        if not _is_safe(realm):
            raise BadInput(f"the pod's token goes over TLS only, and the token service {netloc(realm)} has none")
        try:
            return Credential(_LOGIN, self.path.read_text("ascii").strip())
        except (OSError, ValueError) as error:
            raise BadInput(f"{ENV_REGISTRY_TOKEN_FILE} names {self.path}, which is no token: {error}") from None


def _is_safe(url: httpx2.URL) -> bool:
    return url.scheme == "https" or url.host in _LOOPBACK
