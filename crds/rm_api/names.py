"""Names, numbers and media types that the operator, the images, the chart and vendors share.

A change here is a change of contract: it needs a paragraph in ``docs/decisions/``.
Only the standard library is imported, so that every image can afford this module.
"""

import re
from collections.abc import Mapping
from enum import IntEnum
from typing import Final

GROUP: Final = "rm-abstract.io"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
CATEGORY: Final = "rma"

# Labels that we put on objects.
LABEL_MANAGED_BY: Final = "app.kubernetes.io/managed-by"
MANAGED_BY: Final = "rm-abstract"
LABEL_DEPLOYMENT: Final = f"{GROUP}/deployment"
LABEL_ACTIVE: Final = f"{GROUP}/active"
LABEL_ACCELERATOR: Final = f"{GROUP}/accelerator"
LABEL_ARTIFACT: Final = f"{GROUP}/artifact"
LABEL_MODEL: Final = f"{GROUP}/model"
LABEL_ARTIFACT_NAMESPACE: Final = f"{GROUP}/artifact-namespace"
"""Of serving pods and their Deployments: where their artifact is, if that is another namespace than theirs."""
LABEL_VARIANT: Final = f"{GROUP}/variant"
LABEL_ATTEMPT: Final = f"{GROUP}/attempt"
LABEL_STAGE: Final = f"{GROUP}/stage"
"""Of a build's Job: which part of the attempt it is, from 1; an attempt of one Job has none."""
LABEL_PROFILE: Final = f"{GROUP}/profile"
LABEL_ROLE: Final = f"{GROUP}/role"
ROLE_RESOLVE: Final = "resolve"
ROLE_BUILD: Final = "build"
ROLE_PROBE: Final = "probe"
ROLE_SERVE: Final = "serve"
ROLE_DEVICE_PLUGIN: Final = "device-plugin"
ROLE_DEVICE_OBSERVER: Final = "device-observer"
ROLE_REMOTE_PROXY: Final = "remote-proxy"

LABEL_HOSTNAME: Final = "kubernetes.io/hostname"
"""Label by which an affinity tells nodes apart."""

# What the operator writes on nodes, with the name of the AcceleratorResource after the slash.
NODE_LABEL_DRIVER: Final = f"driver.{GROUP}"
NODE_LABEL_SDK: Final = f"sdk.{GROUP}"
NODE_LABEL_FIRMWARE: Final = f"firmware.{GROUP}"
NODE_CONDITION_UNHEALTHY: Final = f"{GROUP}/AcceleratorUnhealthy"
"""Type of the Node condition: True while a device of the node is not well."""

DEVICE_CLASS_RESOURCE_PREFIX: Final = "deviceclass.resource.kubernetes.io/"
"""With the name of a DeviceClass after it: the extended resource by which Kubernetes lets pods request its devices."""

# Annotations.
ANNOTATION_APPLIED_HASH: Final = f"{GROUP}/applied-hash"
ANNOTATION_PROBE_AGAIN: Final = f"{GROUP}/probe-again"
"""On a BuildProfile: any text that is new has its toolchain probed again."""

FINALIZER_ARTIFACT: Final = f"{GROUP}/artifact"
FINALIZER_IN_USE: Final = f"{GROUP}/in-use"

FIELD_MANAGER: Final = "rm-abstract-operator"
FIELD_MANAGER_STATUS: Final = "rm-abstract-operator-status"
FIELD_MANAGER_IN_USE: Final = "rm-abstract-operator-in-use"
FIELD_MANAGER_NODES: Final = "rm-abstract-operator-nodes"
LEASE_NAME: Final = "rm-abstract-operator"

# The artifact store. An artifact is an OCI image: one image config with diff_ids, tar layers, and the facts in
# manifest annotations, so that image volumes, skopeo and every registry understand it.
MEDIA_TYPE_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
MEDIA_TYPE_INDEX: Final = "application/vnd.oci.image.index.v1+json"
MEDIA_TYPE_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
MEDIA_TYPE_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
OCI_ANNOTATION_PREFIX: Final = "io.rm-abstract."
OCI_ANNOTATION_KEY: Final = OCI_ANNOTATION_PREFIX + "artifact.key"
OCI_ANNOTATION_FORMAT: Final = OCI_ANNOTATION_PREFIX + "artifact.format"
OCI_ANNOTATION_PRODUCTS: Final = OCI_ANNOTATION_PREFIX + "artifact.products"
OCI_ANNOTATION_DRIVERS: Final = OCI_ANNOTATION_PREFIX + "artifact.drivers"
OCI_ANNOTATION_VERSIONS: Final = OCI_ANNOTATION_PREFIX + "artifact.versions"
OCI_ANNOTATION_TITLE: Final = "org.opencontainers.image.title"
MAX_LAYER_BYTES: Final = 4 * 1024**3
ARTIFACT_REPOSITORIES: Final = "artifacts"
"""First component of the repositories of artifacts; that of the namespace comes after it."""
BUILDS_NAMESPACE: Final = "rm-abstract-builds"
"""Namespace of artifacts that the deployments of all namespaces share, unless the installation names another one."""
REGISTRY_AUDIENCE: Final = "rm-abstract-registry"
"""Audience of the ServiceAccount tokens that the token service of our own registry takes."""
NODE_CACHE_AUDIENCE: Final = "rm-abstract-node-cache"
"""Audience of the ServiceAccount tokens that the weights cache of a node takes."""
REMOTE_AUDIENCE: Final = "rm-abstract-remote"
"""Audience of the ServiceAccount tokens that the proxy before an endpoint outside the cluster takes."""
ARTIFACT_TAG: Final = "v1"
STAGE_TAG: Final = "stage-{}"
"""Under which tag a build's Job leaves what the next one goes on with; the braces stand for its number, from 1."""

ORPHANS_CONFIG_MAP: Final = "rm-abstract-orphans"
"""In the system namespace: what the store has and no object names."""
ORPHANS_KEY: Final = "orphans.json"

KEY_SCHEMA_VERSION: Final = 1
"""Version of the canonical form that an artifact's key is the hash of. Raising it rebuilds every artifact."""

# Ports of serving pods and of device plugin pods.
SERVE_PORT: Final = 8000
REPORT_PORT: Final = 9009
REPORT_PATH: Final = "/rma/v1/report"
READY_PATH: Final = "/rma/v1/ready"
LIVE_PATH: Final = "/rma/v1/live"
DEVICE_PLUGIN_PORT: Final = 9010
NODE_CACHE_PORT: Final = 9011
REMOTE_PORT: Final = 8443
"""Of the proxy before an endpoint outside the cluster."""

MAX_TERMINATION_MESSAGE_BYTES: Final = 2048
TERMINATION_LOG: Final = "/dev/termination-log"

# Where containers of a workload pod find things. All of them are emptyDir volumes of the pod.
BIN_DIR: Final = "/rma/bin"
MODEL_DIR: Final = "/rma/model"
WORK_DIR: Final = "/rma/work"
OUTPUT_DIR: Final = "/rma/output"
CACHE_DIR: Final = "/rma/cache"
ARTIFACT_DIR: Final = "/rma/artifact"
REPORT_DIR: Final = "/rma/report"
CREDENTIALS_DIR: Final = "/rma/credentials"
VOLUMES_DIR: Final = "/rma/volumes"
"""Each claim that a model is read from, mounted at its name."""
INPUTS_DIR: Final = "/rma/inputs"
"""Each auxiliary input of a build in a directory of its name."""
SECRETS_DIR: Final = "/rma/secrets"
"""Each Secret of a build profile, such as a licence, in a directory of its name."""
STORE_DIR: Final = "/rma/store"
"""What containers of ours show to the artifact store: the token of their pod's account."""
NODE_CACHE_DIR: Final = "/rma/node-cache"
"""What the fetch of a model shows to the weights cache of its node: the token of the pod's account."""
REMOTE_DIR: Final = "/rma/remote"
"""What a serving pod shows to the proxy before an endpoint: the token of its account."""
LAUNCHER: Final = f"{BIN_DIR}/rma-launch"
ENGINE_REPORT_FILE: Final = f"{REPORT_DIR}/engine.json"
"""Where an engine that knows our contract writes what it observed; the launcher merges it into its report."""
ENGINE_COMMAND_FILE: Final = f"{BIN_DIR}/engine.json"
"""The command of an engine that has a server of its own, where it has to be worked out from artifact and model."""

# Variables that a device plugin sets for a container that it gave devices to.
ENV_DEVICE_IDS: Final = "DEVICE_IDS"
ENV_DEVICE_INDEXES: Final = "DEVICE_INDEXES"
ENV_DEVICE_NODES: Final = "RMA_DEVICE_NODES"
"""``path=major:minor`` of every allocated device node, separated by commas."""
ENV_DEVICE_SERIALS: Final = "RMA_DEVICE_SERIALS"
ENV_DEVICE_PRODUCT: Final = "RMA_DEVICE_PRODUCT"
ENV_DEVICE_DRIVER: Final = "RMA_DEVICE_DRIVER"
"""Version of the devices' driver; not set where the plugin does not know it."""
ENV_ENGINE_REPORT: Final = "RMA_ENGINE_REPORT"
ENV_CONFIG_TEMPLATE: Final = "RMA_CONFIG_TEMPLATE"
"""The template that ``rm-abstract config`` makes a compiler's configuration file of."""
ENV_STORE: Final = "RMA_STORE"
"""host:port of the artifact store."""
ENV_REGISTRY_TOKEN_FILE: Final = "RMA_REGISTRY_TOKEN_FILE"  # noqa: S105 - a name
"""File with the ServiceAccount token that the token service of the artifact store takes for a password."""
ENV_REGISTRY_CA: Final = "RMA_REGISTRY_CA"
"""Certificate authorities, as PEM, of the artifact store and its token service."""
ENV_PLAIN_HTTP_HOSTS: Final = "RMA_PLAIN_HTTP_HOSTS"
"""Hosts (``host:port``, comma-separated) that are spoken to without TLS."""
ENV_NODE_CACHE: Final = "RMA_NODE_CACHE"
"""host:port of the weights cache of the pod's node."""
ENV_NODE_CACHE_TOKEN_FILE: Final = "RMA_NODE_CACHE_TOKEN_FILE"  # noqa: S105 - a name
"""File with the ServiceAccount token that it takes."""
ENV_HF_ENDPOINT: Final = "HF_ENDPOINT"
"""URL of the hub that hf:// means, by the name that the hub's own clients read."""
ENV_CONNECT_TO: Final = "RMA_CONNECT_TO"
"""``HOST:PORT=ADDRESS:PORT``, comma-separated: hosts that are reached elsewhere, as through a forwarded port."""
ENV_REMOTE_TOKEN_FILE: Final = "RMA_REMOTE_TOKEN_FILE"  # noqa: S105 - a name
"""File with the ServiceAccount token that the proxy before an endpoint takes."""
ENV_REMOTE_CA: Final = "RMA_REMOTE_CA"
"""Certificate authorities, as PEM, of that proxy."""
STORE_TOKEN_FILE: Final = "token"  # noqa: S105 - a name
ENV_NETRC: Final = "NETRC"
CREDENTIALS_KEY_NETRC: Final = "netrc"
ENV_AWS_CREDENTIALS: Final = "AWS_SHARED_CREDENTIALS_FILE"
CREDENTIALS_KEY_AWS: Final = "aws"
ENV_PVC_DIR: Final = "RMA_PVC_DIR"
"""Directory that has a claim's volume mounted at the claim's name."""

BUILD_VARIABLES: Final = frozenset(
    {
        "MODEL_DIR",
        "OUTPUT",
        "WORK",
        "CACHE_DIR",
        "TARGET",
        "DTYPE",
        "TP",
        "PP",
        "MAX_SEQ",
        "MAX_BATCH",
        "DEVICE_COUNT",
    }
)
"""Variables a build step may name as ``${NAME}`` in its command, arguments and environment, beside its inputs'."""

INPUT_VARIABLE_PREFIX: Final = "INPUT_"
"""``INPUT_calibration`` is the directory of the input ``calibration``."""
INPUT_FROM: Final = "from"
"""The input that is the artifact of the profile that another one starts from."""

SERVE_VARIABLES: Final = BUILD_VARIABLES - {"OUTPUT", "WORK"} | {
    "ARTIFACT_DIR",
    "SERVED_NAME",
    "PORT",
    ENV_DEVICE_IDS,
    ENV_DEVICE_INDEXES,
}
"""Variables an engine's arguments and environment may name."""

_VARIABLE = re.compile(r"\$\$|\$\{([^}]*)\}")
_REFERENCE = re.compile(r"\$\$|\$\{([^}]*)\}|\$")


def variables_in(text: str) -> set[str]:
    """Names that ``text`` refers to as ``${NAME}``; ``$$`` is a literal dollar."""
    return {match.group(1) for match in _VARIABLE.finditer(text) if match.group(1) is not None}


def expand(text: str, values: Mapping[str, str]) -> str:
    """``text`` with the variables in ``values`` replaced; all others stay as ``${NAME}``.

    A dollar is always written ``$$`` in the result, so a value or a literal that looks like a variable is not one.
    """

    def replacement(match: re.Match[str]) -> str:
        name = match.group(1)
        if name is None:
            return "$$"
        return values[name].replace("$", "$$") if name in values else match.group(0)

    return _REFERENCE.sub(replacement, text)


def literal(text: str) -> str:
    """``text`` such that ``substitute``, or rma-launch, makes ``text`` of it."""
    return text.replace("$", "$$")


def substitute(text: str, values: Mapping[str, str]) -> str:
    """``text`` with every ``${NAME}`` replaced and ``$$`` a dollar, as rma-launch has it. KeyError: not set."""

    def replacement(match: re.Match[str]) -> str:
        name = match.group(1)
        return "$" if name is None else values[name]

    return _REFERENCE.sub(replacement, text)


def input_variable(name: str) -> str:
    """The variable that is the directory of a build's input ``name``."""
    return f"{INPUT_VARIABLE_PREFIX}{name}"


class ExitCode(IntEnum):
    """Exit codes of our containers and of ``rma-launch`` (after sysexits.h where one fits)."""

    OK = 0
    BAD_INPUT = 64
    ARTIFACT_MISMATCH = 65
    DEVICE_MISSING = 66
    DRIVER_MISMATCH = 67
    SOURCE_UNREACHABLE = 69
    TOOLCHAIN_FAILURE = 70
    TRANSIENT = 75

    @property
    def retryable(self) -> bool:
        """True if the same thing may succeed later without anybody changing a spec."""
        return self in (ExitCode.SOURCE_UNREACHABLE, ExitCode.TRANSIENT)

    @property
    def excludes_node(self) -> bool:
        """True if the node, not the workload, is at fault."""
        return self in (ExitCode.DEVICE_MISSING, ExitCode.DRIVER_MISMATCH)


def artifact_repository(namespace: str, name: str) -> str:
    """Repository of a BuildArtifact in the store; the namespace is the trust domain, so it is in the path."""
    return f"{ARTIFACT_REPOSITORIES}/{namespace}/{name}"
