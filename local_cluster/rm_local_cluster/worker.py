"""What runs pods on the node: containerd and the image registry, kubelet and kube-proxy."""

import json
import sys
from pathlib import Path
from typing import Any

from . import addons, cgroups, kept_images
from .paths import NodePaths
from .pki import Authority
from .plan import REGISTRY_PORT, SYSTEM_PATH, NodePlan
from .spec import Component, Probe

CONTAINERD_SOCKET = "/run/containerd/containerd.sock"
_REGISTRY_CONFIG = "registry.yaml"


def containerd(plan: NodePlan) -> Component:
    """The container runtime, with the network of pods and the way to the image registry."""
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
        Probe(cri=CONTAINERD_SOCKET),
        # Its shim must be the one built with it, whatever the machine has installed.
        {"PATH": f"{plan.binaries['containerd'].parent}:{SYSTEM_PATH}"},
        outlived=True,
    )


def import_archive(plan: NodePlan, archive: Path) -> tuple[str, ...]:
    """The command that puts the images of an archive into the container runtime."""
    return (*_ctr(plan), "images", "import", "--local", str(archive))


def remove_outdated_images(plan: NodePlan) -> tuple[str, ...]:
    """The command that takes from the container runtime what the registry has no more."""
    return (sys.executable, "-m", kept_images.__name__, *_ctr(plan), str(registry_storage(plan.paths)))


def _ctr(plan: NodePlan) -> tuple[str, ...]:
    return (str(plan.binaries["ctr"]), "--address", CONTAINERD_SOCKET, "--namespace", "k8s.io")


def registry_storage(paths: NodePaths) -> Path:
    """Where the node's registry keeps what is pushed."""
    return paths.images / "registry"


def collect_garbage(plan: NodePlan) -> tuple[str, ...]:
    """The command that removes the blobs which no manifest in the registry names; it must not run meanwhile."""
    return (str(plan.binaries["registry"]), "garbage-collect", "--quiet", str(plan.paths.config / _REGISTRY_CONFIG))


def registry(plan: NodePlan) -> Component:
    """The image registry of the node, from which its pods take what this machine pushes."""
    document = {
        "version": 0.1,
        "log": {"level": "warn", "accesslog": {"disabled": True}},
        "storage": {
            "filesystem": {"rootdirectory": str(registry_storage(plan.paths))},
            "delete": {"enabled": True},
        },
        "http": {"addr": f":{REGISTRY_PORT}"},
    }
    config = plan.write_config(_REGISTRY_CONFIG, document)
    argv = (str(plan.binaries["registry"]), "serve", str(config))
    probe = Probe(url=f"http://{plan.registry}/v2/")
    return Component("registry", argv, probe, {"OTEL_TRACES_EXPORTER": "none"}, outlived=True)


def kubelet(plan: NodePlan, authority: Authority) -> Component:
    """The kubelet."""
    paths = plan.paths
    client = plan.write_client(authority, "kubelet", f"system:node:{paths.name}", ("system:nodes",))
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
    config = plan.write_config("kubelet.yaml", document)
    argv = (
        str(plan.binaries["kubelet"]),
        f"--config={config}",
        f"--kubeconfig={client}",
        f"--hostname-override={paths.name}",
        f"--node-ip={plan.addresses.node}",
    )
    return Component("kubelet", argv, Probe(url="http://127.0.0.1:10248/healthz"), {"PATH": SYSTEM_PATH})


def kube_proxy(plan: NodePlan, authority: Authority) -> Component:
    """What makes the addresses of Services work."""
    client = plan.write_client(authority, "kube-proxy", "system:kube-proxy")
    document = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "hostnameOverride": plan.paths.name,
        "clientConnection": {"kubeconfig": str(client)},
        "clusterCIDR": str(plan.addresses.pods),
        "iptables": {"minSyncPeriod": "100ms"},
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        # The machine's limits for connection tracking are not the node's to change.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    }
    config = plan.write_config("kube-proxy.yaml", document)
    argv = (str(plan.binaries["kube-proxy"]), f"--config={config}")
    return Component("kube-proxy", argv, Probe(url="http://127.0.0.1:10249/healthz"), {"PATH": SYSTEM_PATH})


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
sandbox = "{addons.image("pause")}"

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
