"""Kubeconfig files."""

import base64
import os
from pathlib import Path

import yaml

from . import paths
from .errors import LocalClusterError
from .pki import KeyPair


def write(path: Path, name: str, server: str, authority: Path, client: KeyPair) -> Path:
    """Write a kubeconfig that stands alone: it embeds certificates and key, and only its owner may read it."""
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": name,
        "clusters": [{"name": name, "cluster": {"server": server, "certificate-authority-data": _embedded(authority)}}],
        "users": [
            {
                "name": name,
                "user": {
                    "client-certificate-data": _embedded(client.certificate),
                    "client-key-data": _embedded(client.key),
                },
            }
        ],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
    }
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return path


def named_by_user(argument: Path | None) -> Path | None:
    """The kubeconfig that the user names: the argument, else RM_KUBECONFIG, else KUBECONFIG; None when there is none.

    One that this package wrote names no other cluster than ours, so it does not count. Raises LocalClusterError when
    there is no such file.
    """
    named = argument or os.environ.get("RM_KUBECONFIG") or os.environ.get("KUBECONFIG")
    if not named:
        return None
    path = Path(named).expanduser().absolute()
    if path.is_relative_to(paths.nodes_root().absolute()):
        return None
    if not path.is_file():
        raise LocalClusterError(
            f"there is no kubeconfig {path}; name one file by --kubeconfig, RM_KUBECONFIG or KUBECONFIG, or unset them"
        )
    return path


def _embedded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
