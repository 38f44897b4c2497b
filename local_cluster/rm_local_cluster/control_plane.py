"""The node's control plane: etcd, API server, controller manager and scheduler."""

from .pki import Authority, write_signing_key
from .plan import API_PORT, NodePlan
from .spec import Component, Probe


def etcd(plan: NodePlan) -> Component:
    """The store of the API server."""
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
        "--log-level=warn",
    )
    return Component("etcd", argv, Probe(url=f"{client}/health"))


def api_server(plan: NodePlan, authority: Authority) -> Component:
    """The API server, with certificates of its own making below `authority`, and an audit log."""
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
    audit_policy = plan.write_config(
        "audit.yaml",
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


def controller_manager(plan: NodePlan, authority: Authority) -> Component:
    """The controllers; needs what `api_server` wrote."""
    config = plan.write_client(authority, "kube-controller-manager", "system:kube-controller-manager")
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


def scheduler(plan: NodePlan, authority: Authority) -> Component:
    """The scheduler."""
    config = plan.write_client(authority, "kube-scheduler", "system:kube-scheduler")
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
