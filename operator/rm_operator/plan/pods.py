"""What the pods that we make have in common: the restricted Pod Security standard, our directories and containers."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rm_api import names
from rm_api.base import EnvVar, Resources
from rm_api.kinds.build_artifact import ModelInput
from rm_api.kinds.model_deployment import ModelFacts

from rm_operator.plan.model import Settings

USER_ID = 65532

POD_SECURITY = {
    "runAsNonRoot": True,
    "runAsUser": USER_ID,
    "runAsGroup": USER_ID,
    "fsGroup": USER_ID,
    "seccompProfile": {"type": "RuntimeDefault"},
}
CONTAINER_SECURITY = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}

# Volume name → directory.
_DIRECTORIES = {
    "bin": names.BIN_DIR,
    "tmp": "/tmp",  # noqa: S108 (an emptyDir of the pod's own)
    "model": names.MODEL_DIR,
    "work": names.WORK_DIR,
    "output": names.OUTPUT_DIR,
    "cache": names.CACHE_DIR,
    "artifact": names.ARTIFACT_DIR,
    "report": names.REPORT_DIR,
    "inputs": names.INPUTS_DIR,
    "shm": "/dev/shm",  # noqa: S108 (memory of the pod's own)
}
_SHARED_MEMORY = "8Gi"
"""What the processes of an engine may share at most; only what is used counts as their memory.

Without a volume of its own a pod has 64 MiB, in which an engine on several devices dies.
"""


def labels(role: str, **others: str) -> dict[str, str]:
    """Labels of an object of ours."""
    return {names.LABEL_MANAGED_BY: names.MANAGED_BY, names.LABEL_ROLE: role, **others}


def volumes(wanted: Iterable[str], *, size_limit: str | None = None) -> list[dict[str, Any]]:
    """The emptyDir volumes that are wanted; ``size_limit`` bounds each but /tmp, /rma/bin and /dev/shm."""
    return [{"name": name, "emptyDir": _empty(name, size_limit)} for name in wanted]


def _empty(name: str, size_limit: str | None) -> dict[str, str]:
    if name == "shm":
        return {"medium": "Memory", "sizeLimit": _SHARED_MEMORY}
    return {"sizeLimit": size_limit} if size_limit and name not in ("tmp", "bin") else {}


def mounts(wanted: Iterable[str], *, read_only: Iterable[str] = ()) -> list[dict[str, Any]]:
    """Where the volumes that are wanted are seen in a container."""
    sealed = set(read_only)
    return [
        {"name": name, "mountPath": _DIRECTORIES[name], **({"readOnly": True} if name in sealed else {})}
        for name in wanted
    ]


def env(variables: Mapping[str, str], further: Iterable[EnvVar] = ()) -> list[dict[str, str]]:
    """A container's environment; what the recipe's author wrote reaches the program with its dollars as they are."""
    merged = {**variables, **{variable.name: literal(variable.value) for variable in further}}
    return [{"name": name, "value": value} for name, value in merged.items()]


def literal(text: str) -> str:
    """``text`` such that the kubelet hands it on as it is: the kubelet expands $(NAME) and halves $$."""
    return text.replace("$", "$$")


def resources(wanted: Resources) -> dict[str, Any]:
    """Requests and limits; memory is limited to what is requested, CPU is not limited."""
    requests = {name: value for name, value in (("cpu", wanted.cpu), ("memory", wanted.memory)) if value}
    result: dict[str, Any] = {}
    if requests:
        result["requests"] = requests
    if wanted.memory:
        result["limits"] = {"memory": wanted.memory}
    return result


def container(
    name: str,
    image: str,
    command: Sequence[str],
    settings: Settings,
    *,
    mounted: Sequence[dict[str, Any]],
    environment: Sequence[dict[str, str]] = (),
    compute: Mapping[str, Any] | None = None,
    **further: Any,
) -> dict[str, Any]:
    """A container under the restricted standard that leaves its report as termination message."""
    return {
        "name": name,
        "image": image,
        "imagePullPolicy": settings.images.pull_policy,
        "command": list(command),
        "env": [{"name": "HOME", "value": "/tmp"}, *environment],  # noqa: S108
        "volumeMounts": _once(mounted, "mountPath"),
        "securityContext": CONTAINER_SECURITY,
        "terminationMessagePath": names.TERMINATION_LOG,
        "terminationMessagePolicy": "File",
        **({"resources": dict(compute)} if compute else {}),
        **further,
    }


def install_launcher(settings: Settings) -> dict[str, Any]:
    """The init container that puts rma-launch where images that do not have it can run it."""
    return container(
        "launcher",
        settings.images.launcher,
        ["/rma-launch", "install", names.BIN_DIR],
        settings,
        mounted=mounts(["bin"]),
        compute={"requests": {"cpu": "10m", "memory": "16Mi"}},
    )


def digests_of(model: ModelFacts | ModelInput, code: str | None) -> list[str]:
    """Flags by which what is fetched is checked; ``code`` is the digest of the model's own code, if that is meant."""
    return [
        f"--weights-digest={model.weights_digest}",
        f"--config-digest={model.config_digest}",
        f"--tensors-digest={model.tensors_digest}",
        *([f"--scales-digest={model.scales_digest}"] if model.scales_digest else []),
        *([f"--code-digest={code}"] if code else []),
    ]


def fetch_model(
    name: str, source: str, revision: str, digests: Sequence[str], settings: Settings, *,
    environment: Mapping[str, str], further_mounts: Sequence[dict[str, Any]], weights: bool = True,
    shared: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """The init container that fetches a model, or all of it but the weights; access as by ``source_access``.

    With ``shared`` only what its digests cover, for a build whose result all namespaces share. ``node_cache_volumes``
    of the settings belong into its pod.
    """
    cached = bool(settings.node_cache) and weights
    return container(
        name,
        settings.images.runtime,
        [
            "rm-abstract", "fetch", "model",
            f"--source={literal(source)}",
            f"--revision={literal(revision)}",
            *digests,
            f"--dest={names.MODEL_DIR}",
            *([] if weights else ["--no-weights"]),
            *(["--shared"] if shared else []),
        ],
        settings,
        mounted=[*mounts(["tmp", "model"]), *further_mounts, *(_NODE_CACHE_MOUNTS if cached else [])],
        environment=env({**environment, **(_node_cache(settings) if cached else {})}),
        compute={"requests": {"cpu": "100m", "memory": "256Mi"}},
    )  # fmt: skip


def pod_spec(
    *,
    init_containers: Sequence[dict[str, Any]],
    containers: Sequence[dict[str, Any]],
    pod_volumes: Sequence[dict[str, Any]],
    **further: Any,
) -> dict[str, Any]:
    """A pod without access to the Kubernetes API."""
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": POD_SECURITY,
        **({"initContainers": list(init_containers)} if init_containers else {}),
        "containers": list(containers),
        "volumes": _once(pod_volumes, "name"),
        **further,
    }


def pull_secrets(settings: Settings) -> dict[str, Any]:
    """The field of a pod in the system namespace by which its images are pulled. Tenants' pods have their account's."""
    return {"imagePullSecrets": [{"name": name} for name in found]} if (found := settings.images.pull_secrets) else {}


def _once(entries: Sequence[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """Each of a name once: what reads a source and what reads the store may need the same."""
    return list({entry[name]: entry for entry in entries}.values())


def job(
    *, name: str, namespace: str, owners: Sequence[dict[str, Any]], label: Mapping[str, str], deadline: int,
    template: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """A Job that runs one pod once: retries are the operator's, which remembers why."""
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": namespace, "labels": dict(label), "ownerReferences": list(owners)},
        "spec": {
            "backoffLimit": 0,
            "completions": 1,
            "parallelism": 1,
            "activeDeadlineSeconds": deadline,
            "podReplacementPolicy": "Failed",
            "template": {
                "metadata": {"labels": dict(label)},
                "spec": {**template, "restartPolicy": "Never"},
            },
        },
    }


_TOKEN_SECONDS = 3600
"""The kubelet renews a token before that; what is fetched or pushed with it may take longer."""
_NODE_CACHE_MOUNTS = [{"name": "node-cache", "mountPath": names.NODE_CACHE_DIR, "readOnly": True}]


def node_cache_volumes(settings: Settings) -> list[dict[str, Any]]:
    """What a pod that fetches a model needs for the weights cache of its node: a token that says its namespace."""
    if not settings.node_cache:
        return []
    token = {
        "audience": names.NODE_CACHE_AUDIENCE, "expirationSeconds": _TOKEN_SECONDS, "path": names.STORE_TOKEN_FILE,
    }  # fmt: skip
    return [{"name": "node-cache", "projected": {"defaultMode": 0o440, "sources": [{"serviceAccountToken": token}]}}]


def _node_cache(settings: Settings) -> dict[str, str]:
    return {
        names.ENV_NODE_CACHE: settings.node_cache,
        names.ENV_NODE_CACHE_TOKEN_FILE: f"{names.NODE_CACHE_DIR}/{names.STORE_TOKEN_FILE}",
    }


def store_access(settings: Settings) -> tuple[dict[str, str], list[dict[str, Any]], list[dict[str, Any]]]:
    """Environment, mounts and volumes of a container of ours that reads or writes the artifact store."""
    store = settings.store
    environment = _store_connection(settings)
    if not store.token_audience:
        return environment, [], []
    environment[names.ENV_STORE] = store.host
    environment[names.ENV_REGISTRY_TOKEN_FILE] = f"{names.STORE_DIR}/{names.STORE_TOKEN_FILE}"
    token = {
        "audience": store.token_audience, "expirationSeconds": _TOKEN_SECONDS, "path": names.STORE_TOKEN_FILE,
    }  # fmt: skip
    volume = {"name": "store", "projected": {"defaultMode": 0o440, "sources": [{"serviceAccountToken": token}]}}
    mount = {"name": "store", "mountPath": names.STORE_DIR, "readOnly": True}
    return environment, [mount], [volume]


def _store_connection(settings: Settings) -> dict[str, str]:
    """How the store is reached."""
    environment: dict[str, str] = {}
    if settings.store.plain_http:
        environment[names.ENV_PLAIN_HTTP_HOSTS] = settings.store.host
    if settings.store.ca:
        # By value: a pod can mount what its own namespace has only, and no namespace has it.
        environment[names.ENV_REGISTRY_CA] = settings.store.ca
    return environment


def _hub(settings: Settings, environment: Mapping[str, str]) -> dict[str, str]:
    """Where the hub is. One without TLS was named as such by whoever installs."""
    host = settings.hf_endpoint.removeprefix("http://").partition("/")[0]
    if not settings.hf_endpoint.startswith("http://"):
        return {names.ENV_HF_ENDPOINT: settings.hf_endpoint}
    plain = [*filter(None, [environment.get(names.ENV_PLAIN_HTTP_HOSTS)]), host]
    return {names.ENV_HF_ENDPOINT: settings.hf_endpoint, names.ENV_PLAIN_HTTP_HOSTS: ",".join(plain)}


def source_access(
    settings: Settings, source: str, credentials_secret: str | None, *, optional: bool = False
) -> tuple[dict[str, str], list[dict[str, Any]], list[dict[str, Any]]]:
    """Environment, mounts and volumes of a container that reads ``source`` with the tenant's credentials.

    A source in the artifact store is read with the pod's account instead: as what all may read, or as its own. With
    ``optional``, a Secret without the key that is needed does not keep the pod from starting: the container says that
    it is missing.
    """
    scheme, _, place = source.partition("://")
    environment = _store_connection(settings)
    if scheme == "pvc":
        claim = place.partition("/")[0]
        environment[names.ENV_PVC_DIR] = names.VOLUMES_DIR
        # Read-only for the kubelet, too, which would make all files ours otherwise.
        volume = {"name": "source", "persistentVolumeClaim": {"claimName": claim, "readOnly": True}}
        mount = {"name": "source", "mountPath": f"{names.VOLUMES_DIR}/{claim}", "readOnly": True}
        return environment, [mount], [volume]
    if scheme == "oci" and place.partition("/")[0] == settings.store.host and settings.store.token_audience:
        return store_access(settings)
    if scheme == "hf" and settings.hf_endpoint:
        environment |= _hub(settings, environment)
    if credentials_secret is None:
        return environment, [], []
    key, variable, name = names.CREDENTIALS_KEY_NETRC, names.ENV_NETRC, "credentials"
    if scheme == "s3":
        key, variable, name = names.CREDENTIALS_KEY_AWS, names.ENV_AWS_CREDENTIALS, "credentials-aws"
    environment[variable] = f"{names.CREDENTIALS_DIR}/{key}"
    # Only the one key: whatever else the Secret holds is none of the container's business.
    secret = {"secretName": credentials_secret, "defaultMode": 0o440, "items": [{"key": key, "path": key}]}
    volume = {"name": name, "secret": {**secret, "optional": True} if optional else secret}
    return environment, [{"name": name, "mountPath": names.CREDENTIALS_DIR, "readOnly": True}], [volume]
