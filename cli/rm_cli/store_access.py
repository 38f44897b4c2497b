"""A way from this machine to the artifact store that the chart runs: forwarded ports, its authority, a token."""

import base64
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rm_api.names import (
    ENV_CONNECT_TO,
    ENV_PLAIN_HTTP_HOSTS,
    ENV_REGISTRY_CA,
    ENV_REGISTRY_TOKEN_FILE,
    ENV_STORE,
)

from rm_cli.kubectl import CommandFailed, Kubectl

_DESCRIPTION: Final = "app.kubernetes.io/name=rm-abstract,app.kubernetes.io/component=store"
_STORE_PORT: Final = 5000
_TOKEN_PORT: Final = 5001
_TOKEN_LIFETIME: Final = "6h"  # noqa: S105 - a time
"""Longer than what is fetched or pushed with it takes. An API server may give it less."""


@dataclass(frozen=True)
class Store:
    """The store of an installation, as its ConfigMap describes it."""

    namespace: str
    """That of the installation."""
    host: str
    """host:port by which pods know it."""
    service: str
    plain_http: bool
    authority: str
    """Certificates as PEM; empty where it has no TLS."""
    token_service: str
    """Service of who gives tokens; empty where none are needed."""
    audience: str
    administrator: str
    """ServiceAccount that may push everywhere."""

    @classmethod
    def find(cls, kubectl: Kubectl) -> "Store | None":
        """The one that the chart runs in the cluster; None where there is none, or it may not be looked for."""
        try:
            text = kubectl.run("get", "configmaps", "--all-namespaces", "-o", "json", "-l", _DESCRIPTION)
        except CommandFailed:
            return None
        items = json.loads(text)["items"]
        if not items:
            return None
        if len(items) > 1:
            where = ", ".join(sorted(each["metadata"]["namespace"] for each in items))
            raise CommandFailed(f"there are stores in the namespaces {where}: name one with --registry")
        namespace, data = items[0]["metadata"]["namespace"], items[0]["data"]
        authority = data.get("ca.crt", "")
        if not authority and data.get("tlsSecret"):
            authority = _authority(Kubectl(kubectl.cluster, namespace), data["tlsSecret"])
        return cls(
            namespace, data["host"], data["service"], data["plainHTTP"] == "true", authority,
            data.get("tokenService", ""), data.get("tokenAudience", ""), data.get("administrator", ""),
        )  # fmt: skip

    @contextmanager
    def reached(self, kubectl: Kubectl) -> Iterator[Mapping[str, str]]:
        """Variables with which clients on this machine reach it, by the name that pods know it by, while this is open.

        Whoever may not create tokens for the store's administrator gets CommandFailed.
        """
        system = Kubectl(kubectl.cluster, self.namespace)
        with ExitStack() as stack:
            port = stack.enter_context(system.port_forward(f"svc/{self.service}", _STORE_PORT))
            ways = [f"{self.host}=127.0.0.1:{port}"]
            variables = {ENV_STORE: self.host}
            if self.plain_http:
                variables[ENV_PLAIN_HTTP_HOSTS] = self.host
            if self.authority:
                variables[ENV_REGISTRY_CA] = self.authority
            if self.token_service:
                port = stack.enter_context(system.port_forward(f"svc/{self.token_service}", _TOKEN_PORT))
                ways.append(f"{self.token_service}.{self.namespace}.svc:{_TOKEN_PORT}=127.0.0.1:{port}")
                directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rma-token-")))
                file = directory / "token"
                file.write_text(self.token(system))
                variables[ENV_REGISTRY_TOKEN_FILE] = str(file)
            variables[ENV_CONNECT_TO] = ",".join(ways)
            yield variables

    def token(self, system: Kubectl) -> str:
        """A token of the administrator's for the token service."""
        flags = (f"--audience={self.audience}", f"--duration={_TOKEN_LIFETIME}")
        return system.run("create", "token", self.administrator, *flags).strip()


@contextmanager
def applied(variables: Mapping[str, str]) -> Iterator[None]:
    """The variables in this process's environment; lists of hosts get longer."""
    before = dict(os.environ)
    for name, value in variables.items():
        joined = name in (ENV_CONNECT_TO, ENV_PLAIN_HTTP_HOSTS) and before.get(name)
        os.environ[name] = f"{before[name]},{value}" if joined else value
    try:
        yield
    finally:
        for name in variables:
            os.environ.pop(name)
            if name in before:
                os.environ[name] = before[name]


def _authority(system: Kubectl, secret: str) -> str:
    found = system.get("secret", secret)
    if found is None or "ca.crt" not in found["data"]:
        raise CommandFailed(f"Secret {system.namespace}/{secret} with ca.crt, by which to know the store, is not there")
    return base64.b64decode(found["data"]["ca.crt"]).decode()
