"""All components of a node, in the order in which they start."""

from . import control_plane, kubeconfig, worker
from .pki import Authority
from .plan import SIMULATED_HARDWARE, VOLUMES, NodePlan
from .spec import NodeSpec, Stage


def prepare(plan: NodePlan) -> NodeSpec:
    """Write certificates and configuration below the node's directory, and return what its supervisor runs."""
    paths = plan.paths
    for directory in (paths.pki, paths.config, paths.logs):
        directory.mkdir(parents=True)
    paths.pki.chmod(0o700)
    authority = Authority(paths.pki, "cluster-ca")
    stages = (
        Stage(
            (
                control_plane.etcd(plan),
                worker.containerd(plan),
                worker.registry(plan),
                control_plane.api_server(plan, authority),
            )
        ),
        Stage(
            (control_plane.controller_manager(plan, authority), control_plane.scheduler(plan, authority)),
            commands=(
                *(worker.import_archive(plan, archive) for archive in plan.archives),
                worker.remove_outdated_images(plan),
            ),
        ),
        # kube-proxy asks for the node's address with growing pauses, so the kubelet has to announce it first.
        Stage((worker.kubelet(plan, authority), worker.kube_proxy(plan, authority))),
    )
    admin = authority.issue("admin", "rm-abstract-admin", groups=["system:masters"])
    kubeconfig.write(paths.kubeconfig, paths.name, plan.server, authority.pair.certificate, admin)
    return NodeSpec(
        name=paths.name,
        address=f"{plan.addresses.node}/{plan.addresses.link.prefixlen}",
        gateway=str(plan.addresses.host),
        services=str(plan.addresses.services),
        logs=str(paths.logs),
        report=str(paths.report),
        restart_request=str(paths.restart_request),
        binds=(
            (str(paths.root / "kubelet"), "/var/lib/kubelet"),
            (str(paths.root / "cni"), "/var/lib/cni"),
            (str(paths.logs / "var"), "/var/log"),
            (str(paths.root / "volumes"), VOLUMES),
            (str(paths.root / "simulator"), SIMULATED_HARDWARE),
        ),
        writable_below=VOLUMES,
        fixed_settings={
            "vm.overcommit_memory": "1",
            "kernel.panic": "10",
            "kernel.panic_on_oops": "1",
            "kernel.keys.root_maxkeys": "1000000",
            "kernel.keys.root_maxbytes": "25000000",
        },
        stages=stages,
    )
