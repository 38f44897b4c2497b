"""The node's components: their configuration files, flags, and the order in which they start."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from . import cgroups, kubeconfig
from .addons import Images
from .network import Addresses
from .paths import NodePaths
from .pki import Authority, KeyPair, write_signing_key
from .supervisor import Component, NodeSpec, Probe, Stage

REGISTRY_PORT = 5000
API_PORT = 6443
CONTAINERD_SOCKET = "/run/containerd/containerd.sock"
CNI_DIRECTORIES = (Path("/usr/lib/cni"), Path("/opt/cni/bin"), Path("/usr/libexec/cni"))
# Where the controller manager makes the directories of volumes; the path is fixed in it.
_VOLUMES = "/tmp/hostpath_pv"  # noqa: S108
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class NodePlan:
    """What a node is made from.

    `binaries` are paths by name; `images` are imported before the kubelet starts; `may_lower_oom_score` says whether
    processes here can protect themselves from the out-of-memory killer; `cgroup_version` is 1 or 2.
    """

    paths: NodePaths
    addresses: Addresses
    binaries: Mapping[str, Path]
    images: Images
    cni_directory: Path
    may_lower_oom_score: bool
    cgroup_version: int

    @property
    def server(self) -> str:
        """The API server's URL."""
        return f"https://{self.addresses.node}:{API_PORT}"

    @property
    def registry(self) -> str:
        """The `host:port` of the node's image registry."""
        return f"{self.addresses.node}:{REGISTRY_PORT}"


def prepare(plan: NodePlan) -> NodeSpec:
    """Write certificates and configuration below the node's directory, and return what its supervisor runs."""
    paths = plan.paths
    for directory in (paths.pki, paths.config, paths.logs):
        directory.mkdir(parents=True)
    paths.pki.chmod(0o700)
    authority = Authority(paths.pki, "cluster-ca")
    stages = (
        Stage((_etcd(plan), _containerd(plan), _registry(plan), _api_server(plan, authority))),
        Stage(
            (_controller_manager(plan, authority), _scheduler(plan, authority)),
            commands=tuple(_import(plan, archive) for archive in plan.images.archives),
        ),
        # kube-proxy asks for the node's address with growing pauses, so the kubelet has to announce it first.
        Stage((_kubelet(plan, authority), _kube_proxy(plan, authority))),
    )
    admin = authority.issue("admin", "rm-abstract-admin", groups=["system:masters"])
    kubeconfig.write(paths.kubeconfig, paths.name, plan.server, authority.pair.certificate, admin)
    return NodeSpec(
        name=paths.name,
        address=f"{plan.addresses.node}/{plan.addresses.link.prefixlen}",
        gateway=str(plan.addresses.host),
        logs=str(paths.logs),
        report=str(paths.report),
        binds=(
            (str(paths.root / "kubelet"), "/var/lib/kubelet"),
            (str(paths.root / "cni"), "/var/lib/cni"),
            (str(paths.logs / "var"), "/var/log"),
            (str(paths.root / "volumes"), _VOLUMES),
        ),
        writable_below=_VOLUMES,
        fixed_settings={
            "vm.overcommit_memory": "1",
            "kernel.panic": "10",
            "kernel.panic_on_oops": "1",
            "kernel.keys.root_maxkeys": "1000000",
            "kernel.keys.root_maxbytes": "25000000",
        },
        stages=stages,
    )


def _etcd(plan: NodePlan) -> Component:
    client, peer = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
    argv = (
        str(plan.binaries["etcd"]),
        "--name=rm-abstract",
        f"--data-dir={plan.paths.root / 'etcd'}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=rm-abstract={peer}",
        # The node's state is thrown away with it, so there is nothing to save from a crash of the machine.
        "--unsafe-no-fsync",
        f"--quota-backend-bytes={8 * 1024**3}",
        "--auto-compaction-mode=periodic",
        "--auto-compaction-retention=30m",
        "--log-level=warn",
    )
    return Component("etcd", argv, Probe(url=f"{client}/health"))


def _containerd(plan: NodePlan) -> Component:
    paths = plan.paths
    network = {
        "cniVersion": "0.4.0",
        "name": "pods",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": True,
                "ipMasq": True,
                "hairpinMode": True,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": str(plan.addresses.pods)}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }
    cni = paths.config / "cni"
    cni.mkdir()
    (cni / "10-pods.conflist").write_text(json.dumps(network, indent=1), encoding="utf-8")
    hosts = paths.config / "registries" / plan.registry / "hosts.toml"
    hosts.parent.mkdir(parents=True)
    hosts.write_text(
        f'server = "http://{plan.registry}"\n\n[host."http://{plan.registry}"]\ncapabilities = ["pull", "resolve"]\n',
        encoding="utf-8",
    )
    config = paths.config / "containerd.toml"
    config.write_text(_containerd_config(plan, cni, hosts.parent.parent), encoding="utf-8")
    return Component(
        "containerd",
        (str(plan.binaries["containerd"]), "--config", str(config)),
        Probe(unix=CONTAINERD_SOCKET),
        # Its shim must be the one built with it, whatever the machine has installed.
        {"PATH": f"{plan.binaries['containerd'].parent}:{_SYSTEM_PATH}"},
        outlived=True,
    )


def _containerd_config(plan: NodePlan, cni: Path, registries: Path) -> str:
    return f"""version = 3
root = "{plan.paths.images / "containerd"}"
state = "/run/containerd/state"
disabled_plugins = [
  "io.containerd.internal.v1.opt",
  "io.containerd.nri.v1.nri",
  "io.containerd.snapshotter.v1.blockfile",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.erofs",
  "io.containerd.snapshotter.v1.zfs",
]

[grpc]
address = "{CONTAINERD_SOCKET}"

[plugins.'io.containerd.cri.v1.images']
snapshotter = "overlayfs"
discard_unpacked_layers = true

[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "{plan.images.pause}"

[plugins.'io.containerd.cri.v1.images'.registry]
config_path = "{registries}"

[plugins.'io.containerd.cri.v1.runtime']
enable_cdi = true
cdi_spec_dirs = ["/etc/cdi", "/var/run/cdi"]
device_ownership_from_security_context = true
restrict_oom_score_adj = {"false" if plan.may_lower_oom_score else "true"}

[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ["{plan.cni_directory}"]
conf_dir = "{cni}"

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
SystemdCgroup = false
"""


def _registry(plan: NodePlan) -> Component:
    document = {
        "version": 0.1,
        "log": {"level": "warn", "accesslog": {"disabled": True}},
        "storage": {
            "filesystem": {"rootdirectory": str(plan.paths.images / "registry")},
            "delete": {"enabled": True},
        },
        "http": {"addr": f":{REGISTRY_PORT}"},
    }
    config = _yaml(plan.paths.config / "registry.yaml", document)
    argv = (str(plan.binaries["registry"]), "serve", str(config))
    probe = Probe(url=f"http://{plan.registry}/v2/")
    return Component("registry", argv, probe, {"OTEL_TRACES_EXPORTER": "none"}, outlived=True)


def _api_server(plan: NodePlan, authority: Authority) -> Component:
    pki = plan.paths.pki
    names = [
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        "localhost",
    ]
    hosts = [*names, "127.0.0.1", str(plan.addresses.node), str(plan.addresses.api_service)]
    serving = authority.issue("apiserver", "kube-apiserver", hosts=hosts)
    to_kubelet = authority.issue("apiserver-kubelet-client", "kube-apiserver-kubelet-client", groups=["system:masters"])
    front = Authority(pki, "front-proxy-ca")
    front_client = front.issue("front-proxy-client", "front-proxy")
    probing = authority.issue("probe", "rm-abstract-probe", groups=["system:monitoring"])
    signing_key, signing_public = write_signing_key(pki, "service-account")
    audit_policy = _yaml(
        plan.paths.config / "audit.yaml",
        {
            "apiVersion": "audit.k8s.io/v1",
            "kind": "Policy",
            "omitStages": ["RequestReceived"],
            "rules": [{"level": "Metadata"}],
        },
    )
    argv = (
        str(plan.binaries["kube-apiserver"]),
        "--etcd-servers=http://127.0.0.1:2379",
        f"--secure-port={API_PORT}",
        "--bind-address=0.0.0.0",
        f"--advertise-address={plan.addresses.node}",
        f"--tls-cert-file={serving.certificate}",
        f"--tls-private-key-file={serving.key}",
        f"--client-ca-file={authority.pair.certificate}",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={signing_public}",
        f"--service-account-signing-key-file={signing_key}",
        f"--service-cluster-ip-range={plan.addresses.services}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        f"--kubelet-client-certificate={to_kubelet.certificate}",
        f"--kubelet-client-key={to_kubelet.key}",
        "--kubelet-preferred-address-types=InternalIP",
        f"--requestheader-client-ca-file={front.pair.certificate}",
        "--requestheader-allowed-names=front-proxy",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        f"--proxy-client-cert-file={front_client.certificate}",
        f"--proxy-client-key-file={front_client.key}",
        f"--audit-policy-file={audit_policy}",
        f"--audit-log-path={plan.paths.audit_log}",
        "--audit-log-maxsize=512",
        "--audit-log-maxbackup=2",
    )
    probe = Probe(
        url=f"{plan.server}/readyz",
        authority=str(authority.pair.certificate),
        certificate=str(probing.certificate),
        key=str(probing.key),
    )
    return Component("kube-apiserver", argv, probe, start_seconds=120)


def _client(plan: NodePlan, authority: Authority, component: str, user: str, groups: tuple[str, ...] = ()) -> Path:
    pair: KeyPair = authority.issue(component, user, groups=groups)
    path = plan.paths.config / f"{component}.kubeconfig"
    return kubeconfig.write(path, plan.paths.name, plan.server, authority.pair.certificate, pair)


def _controller_manager(plan: NodePlan, authority: Authority) -> Component:
    config = _client(plan, authority, "kube-controller-manager", "system:kube-controller-manager")
    argv = (
        str(plan.binaries["kube-controller-manager"]),
        f"--kubeconfig={config}",
        f"--authentication-kubeconfig={config}",
        f"--authorization-kubeconfig={config}",
        "--bind-address=127.0.0.1",
        f"--root-ca-file={authority.pair.certificate}",
        f"--service-account-private-key-file={plan.paths.pki / 'service-account.key'}",
        f"--cluster-signing-cert-file={authority.pair.certificate}",
        f"--cluster-signing-key-file={authority.pair.key}",
        "--use-service-account-credentials",
        # At the default of 20 requests a second its controllers take five seconds to come up.
        "--kube-api-qps=200",
        "--kube-api-burst=400",
        "--leader-elect=false",
        "--allocate-node-cidrs",
        f"--cluster-cidr={plan.addresses.pods}",
        f"--node-cidr-mask-size={plan.addresses.pods.prefixlen}",
        "--enable-hostpath-provisioner",
        f"--flex-volume-plugin-dir={plan.paths.root / 'volume-plugins'}",
        *_local_serving(authority, "kube-controller-manager"),
    )
    return Component("kube-controller-manager", argv, _local_probe(authority, 10257))


def _scheduler(plan: NodePlan, authority: Authority) -> Component:
    config = _client(plan, authority, "kube-scheduler", "system:kube-scheduler")
    argv = (
        str(plan.binaries["kube-scheduler"]),
        f"--kubeconfig={config}",
        f"--authentication-kubeconfig={config}",
        f"--authorization-kubeconfig={config}",
        "--bind-address=127.0.0.1",
        "--leader-elect=false",
        "--kube-api-qps=200",
        "--kube-api-burst=400",
        *_local_serving(authority, "kube-scheduler"),
    )
    return Component("kube-scheduler", argv, _local_probe(authority, 10259))


def _local_serving(authority: Authority, component: str) -> tuple[str, ...]:
    pair = authority.issue(f"{component}-serving", component, hosts=["127.0.0.1"])
    return (f"--tls-cert-file={pair.certificate}", f"--tls-private-key-file={pair.key}")


def _local_probe(authority: Authority, port: int) -> Probe:
    return Probe(url=f"https://127.0.0.1:{port}/healthz", authority=str(authority.pair.certificate))


def _kube_proxy(plan: NodePlan, authority: Authority) -> Component:
    client = _client(plan, authority, "kube-proxy", "system:kube-proxy")
    document = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "hostnameOverride": plan.paths.name,
        "clientConnection": {"kubeconfig": str(client)},
        "clusterCIDR": str(plan.addresses.pods),
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        # The machine's limits for connection tracking are not the node's to change.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    }
    config = _yaml(plan.paths.config / "kube-proxy.yaml", document)
    argv = (str(plan.binaries["kube-proxy"]), f"--config={config}")
    return Component("kube-proxy", argv, Probe(url="http://127.0.0.1:10249/healthz"), {"PATH": _SYSTEM_PATH})


def _kubelet(plan: NodePlan, authority: Authority) -> Component:
    paths = plan.paths
    client = _client(plan, authority, "kubelet", f"system:node:{paths.name}", ("system:nodes",))
    serving = authority.issue("kubelet-serving", paths.name, hosts=[paths.name, str(plan.addresses.node)])
    resolver = paths.config / "resolv.conf"
    resolver.write_text(f"nameserver {plan.addresses.dns_service}\n", encoding="ascii")
    document: dict[str, Any] = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(authority.pair.certificate)},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(serving.certificate),
        "tlsPrivateKeyFile": str(serving.key),
        "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": cgroups.group_of(paths.name),
        "cgroupsPerQOS": True,
        "enforceNodeAllocatable": ["pods"],
        "systemReserved": {"cpu": "200m", "memory": "1Gi"},
        "failSwapOn": False,
        "clusterDNS": [str(plan.addresses.dns_service)],
        "clusterDomain": "cluster.local",
        "resolvConf": str(resolver),
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "serializeImagePulls": False,
        "maxParallelImagePulls": 4,
        "podLogsDir": "/var/log/pods",
        "volumePluginDir": str(paths.root / "volume-plugins"),
        # What a device plugin announces shows in the node's status at this interval; unchanged, it is reported less
        # often.
        "nodeStatusUpdateFrequency": "2s",
        "nodeStatusReportFrequency": "1m",
        "healthzBindAddress": "127.0.0.1",
        "healthzPort": 10248,
    }
    if plan.cgroup_version == 1:
        document["failCgroupV1"] = False
    config = _yaml(paths.config / "kubelet.yaml", document)
    argv = (
        str(plan.binaries["kubelet"]),
        f"--config={config}",
        f"--kubeconfig={client}",
        f"--hostname-override={paths.name}",
        f"--node-ip={plan.addresses.node}",
    )
    return Component("kubelet", argv, Probe(url="http://127.0.0.1:10248/healthz"), {"PATH": _SYSTEM_PATH})


def _import(plan: NodePlan, archive: Path) -> tuple[str, ...]:
    ctr = str(plan.binaries["ctr"])
    return (ctr, "--address", CONTAINERD_SOCKET, "--namespace", "k8s.io", "images", "import", "--local", str(archive))


def _yaml(path: Path, document: Mapping[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(dict(document), sort_keys=False), encoding="utf-8")
    return path
