"""A cluster that the user names: checked and used, never changed."""

import os
import shutil
from pathlib import Path

from . import build
from .build import Progress
from .errors import LocalClusterError
from .families import HELM, KUBECTL
from .model import Cluster
from .shell import run


def use(name: str, kubeconfig: Path, progress: Progress) -> Cluster:
    """Return the cluster of a kubeconfig's current context. Raises LocalClusterError when it does not answer.

    Where images are pushed, and how its pods name them, is the user's to say: RM_IMAGE_REGISTRY, or
    RM_IMAGE_REGISTRY_PUSH and RM_IMAGE_REGISTRY_PULL where the two differ.
    """
    kubectl, helm = tools(progress)
    base: list[str | Path] = [kubectl, "--kubeconfig", kubeconfig, "--request-timeout=15s"]
    answer = run([*base, "get", "--raw", "/readyz"], check=False)
    if answer.returncode != 0:
        said = answer.stderr.strip().splitlines()[-1:] or ["no answer"]
        raise LocalClusterError(f"the cluster of {kubeconfig} is not ready: {said[0]}")
    context = run([*base, "config", "current-context"]).stdout.strip()
    progress(f"using context {context} of {kubeconfig}")
    both = os.environ.get("RM_IMAGE_REGISTRY")
    return Cluster(
        name=name,
        driver="existing",
        kubeconfig=kubeconfig,
        kubectl=kubectl,
        helm=helm,
        image_registry_push=os.environ.get("RM_IMAGE_REGISTRY_PUSH") or both,
        image_registry_pull=os.environ.get("RM_IMAGE_REGISTRY_PULL") or both,
    )


def tools(progress: Progress) -> tuple[Path, Path]:
    """The paths of kubectl and helm: the machine's own, else built."""
    found = {name: shutil.which(name) for name in ("kubectl", "helm")}
    lacking = [family for family in (KUBECTL, HELM) if found[family.name] is None]
    built = build.ensure(lacking, progress) if lacking else {}
    kubectl, helm = (Path(path) if path else built[name] for name, path in found.items())
    return kubectl, helm
