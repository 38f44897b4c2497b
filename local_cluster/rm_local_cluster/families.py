"""The binaries of the local cluster: which Go modules they come from, and how they are linked.

Each family is one Go module under `go/`, whose go.mod and go.sum pin every version. The version of what is built is
read from go.mod, so that it stands in one place.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from .errors import LocalClusterError

MODULES = Path(__file__).parent / "go"

# No debug information, no paths of the machine that builds; the same for all families, so that they share the
# standard library.
COMPILE_FLAGS = ("-trimpath", "-gcflags=all=-dwarf=false")


@dataclass(frozen=True)
class Family:
    """Binaries that are built together.

    `module` is the directory under `go/`; `packages` maps the name of each binary to its Go package; `versioned` is
    the module whose version they report; `variables` are linker variables, whose values may hold `{version}` (with
    its `v`), `{major}`, `{minor}`, and `{kubernetes_minor}`.
    """

    name: str
    module: str
    packages: Mapping[str, str]
    versioned: str
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def directory(self) -> Path:
        """The Go module's directory."""
        return MODULES / self.module

    @cached_property
    def version(self) -> str:
        """The version, with its leading `v`, at which go.mod requires `versioned`."""
        return _required(self.directory, self.versioned)

    @property
    def link_flags(self) -> str:
        """The value of `go build -ldflags`: stripped, and the version written into the binary."""
        major, minor = self.version.removeprefix("v").split(".")[:2]
        values = {"version": self.version, "major": major, "minor": minor}
        values["kubernetes_minor"] = _required(MODULES / "kubernetes", "k8s.io/kubernetes").split(".")[1]
        variables = [f"-X {name}={value.format(**values)}" for name, value in self.variables.items()]
        return " ".join(["-s", "-w", *variables])


def _required(directory: Path, module: str) -> str:
    go_mod = (directory / "go.mod").read_text(encoding="utf-8")
    found = re.search(rf"^\s*(?:require )?{re.escape(module)} (v\S+)", go_mod, re.MULTILINE)
    if found is None:
        raise LocalClusterError(f"{directory}/go.mod requires no version of {module}")
    return found[1]


def _kubernetes(name: str, commands: tuple[str, ...]) -> Family:
    packages = {command: f"k8s.io/kubernetes/cmd/{command}" for command in commands}
    fields = {"gitVersion": "{version}", "gitMajor": "{major}", "gitMinor": "{minor}", "gitTreeState": "clean"}
    reporters = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    variables = {f"{reporter}.{name}": value for reporter in reporters for name, value in fields.items()}
    return Family(name, "kubernetes", packages, "k8s.io/kubernetes", variables)


KUBERNETES = _kubernetes(
    "kubernetes",
    ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl"),
)
# For clusters that are not ours the client alone is enough, and takes a third of the time.
KUBECTL = _kubernetes("kubectl", ("kubectl",))
ETCD = Family("etcd", "etcd", {"etcd": "go.etcd.io/etcd/server/v3"}, "go.etcd.io/etcd/server/v3")
_CONTAINERD = "github.com/containerd/containerd/v2"
CONTAINERD = Family(
    "containerd",
    "containerd",
    {command: f"{_CONTAINERD}/cmd/{command}" for command in ("containerd", "containerd-shim-runc-v2", "ctr")},
    _CONTAINERD,
    {f"{_CONTAINERD}/version.Version": "{version}"},
)
# What runs inside the cluster; in one module, as `pause` needs nothing but the standard library.
COREDNS = Family(
    "coredns", "coredns", {"coredns": "./cmd/coredns", "pause": "./cmd/pause"}, "github.com/coredns/coredns"
)
_DISTRIBUTION = "github.com/distribution/distribution/v3"
REGISTRY = Family(
    "registry",
    "registry",
    {"registry": f"{_DISTRIBUTION}/cmd/registry"},
    _DISTRIBUTION,
    {f"{_DISTRIBUTION}/version.version": "{version}"},
)
_HELM = "helm.sh/helm/v3"
HELM = Family(
    "helm",
    "helm",
    {"helm": f"{_HELM}/cmd/helm"},
    _HELM,
    {
        f"{_HELM}/internal/version.version": "{version}",
        # Without a cluster, charts are rendered for this version.
        f"{_HELM}/pkg/chartutil.k8sVersionMinor": "{kubernetes_minor}",
        f"{_HELM}/pkg/lint/rules.k8sVersionMinor": "{kubernetes_minor}",
    },
)
# A server that speaks the interface of S3; what stores artifacts and models there is tested against it.
_S3 = "github.com/versity/versitygw"
S3 = Family("s3", "s3", {"versitygw": f"{_S3}/cmd/versitygw"}, _S3, {"main.Version": "{version}"})
KIND = Family("kind", "kind", {"kind": "sigs.k8s.io/kind"}, "sigs.k8s.io/kind")

# The slowest first: a failure in it shows before the others have cost anything.
NODE_FAMILIES = (KUBERNETES, CONTAINERD, ETCD, COREDNS, REGISTRY, HELM)
