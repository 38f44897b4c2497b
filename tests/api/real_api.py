"""etcd and kube-apiserver as processes of the tests' own, and what else a test of them needs."""

import asyncio
import secrets
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml
from rm_local_cluster import build, families
from rm_local_cluster.pki import Authority, write_signing_key
from rm_operator.kube.auth import Connection, StaticToken
from rm_operator.kube.resources import Resource

NAMESPACES = Resource("", "v1", "namespaces", "Namespace", False)
CRD = Resource("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", False)
START_SECONDS = 90


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class ApiServer:
    """etcd and kube-apiserver as processes of ours, with an administrator and a user without rights.

    ``etcd_flags`` and ``server_flags`` are added to their command lines; ``admins`` are further administrators, for who
    wants to tell in the audit log who did what.
    """

    def __init__(
        self,
        directory: Path,
        *,
        etcd_flags: Sequence[str] = (),
        server_flags: Sequence[str] = (),
        admins: Sequence[str] = (),
    ) -> None:
        binaries = build.ensure([families.KUBERNETES, families.ETCD], print)
        self._directory = directory
        self._flags = {"etcd": tuple(etcd_flags), "kube-apiserver": tuple(server_flags)}
        self._etcd = str(binaries["etcd"])
        self._binary = str(binaries["kube-apiserver"])
        self._etcd_port, self._peer_port, self.port = free_port(), free_port(), free_port()
        authority = Authority(directory, "ca")
        self._serving = authority.issue("apiserver", "kube-apiserver", hosts=["127.0.0.1", "localhost"])
        self.signing_key, self._signing_public = write_signing_key(directory, "service-account")
        self.ca = authority.pair.certificate
        self.url = f"https://127.0.0.1:{self.port}"
        self._tokens = {name: secrets.token_hex(16) for name in ("admin", "nobody", *admins)}
        groups = dict.fromkeys(self._tokens, "system:masters") | {"nobody": "nobody"}
        lines = [f'{token},{name},{name},"{groups[name]}"' for name, token in self._tokens.items()]
        (directory / "tokens.csv").write_text("\n".join(lines))
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Start what does not run; returns when it accepts connections."""
        etcd = (
            self._etcd,
            f"--data-dir={self._directory / 'etcd'}",
            f"--listen-client-urls=http://127.0.0.1:{self._etcd_port}",
            f"--advertise-client-urls=http://127.0.0.1:{self._etcd_port}",
            f"--listen-peer-urls=http://127.0.0.1:{self._peer_port}",
            "--unsafe-no-fsync",
        )
        server = (
            self._binary,
            f"--etcd-servers=http://127.0.0.1:{self._etcd_port}",
            f"--secure-port={self.port}",
            "--bind-address=127.0.0.1",
            f"--tls-cert-file={self._serving.certificate}",
            f"--tls-private-key-file={self._serving.key}",
            f"--token-auth-file={self._directory / 'tokens.csv'}",
            "--authorization-mode=RBAC",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={self._signing_public}",
            f"--service-account-signing-key-file={self.signing_key}",
            "--service-cluster-ip-range=10.250.0.0/16",
            # Nobody makes the accounts that pods would need here.
            "--disable-admission-plugins=ServiceAccount",
            "--shutdown-delay-duration=0s",
        )
        for name, argv in (("etcd", etcd), ("kube-apiserver", server)):
            if name not in self._processes:
                with (self._directory / f"{name}.log").open("ab") as log:
                    self._processes[name] = subprocess.Popen(
                        (*argv, *self._flags[name]), stdout=log, stderr=subprocess.STDOUT
                    )
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if (code := self._processes["kube-apiserver"].poll()) is not None:
                raise AssertionError(f"kube-apiserver ended with {code}; see {self._directory}/kube-apiserver.log")
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                time.sleep(0.1)
        raise AssertionError(f"kube-apiserver does not listen; see {self._directory}/kube-apiserver.log")

    @property
    def etcd_address(self) -> str:
        """host:port of etcd's client API, without TLS."""
        return f"127.0.0.1:{self._etcd_port}"

    def pid(self, name: str) -> int:
        """Process id of ``etcd`` or ``kube-apiserver``."""
        return self._processes[name].pid

    def kill(self) -> None:
        """End kube-apiserver without grace; etcd, and so the cluster's state, stays."""
        server = self._processes.pop("kube-apiserver")
        server.kill()
        server.wait()

    def freeze(self) -> None:
        """Stop kube-apiserver in its tracks: connections stay open and say nothing."""
        self._processes["kube-apiserver"].send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._processes["kube-apiserver"].send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """End both processes."""
        for process in self._processes.values():
            process.send_signal(signal.SIGCONT)
            process.kill()
        for process in self._processes.values():
            process.wait()

    def token(self, user: str) -> str:
        """The token of ``admin``, ``nobody`` or a further administrator."""
        return self._tokens[user]

    def connection(self, user: str = "admin") -> Connection:
        """The address, with the credentials of ``admin`` (everything) or ``nobody`` (nothing)."""
        tls = ssl.create_default_context(cafile=str(self.ca))
        return Connection(self.url, tls, StaticToken(self._tokens[user]))

    def kubeconfig(self, path: Path, user: str = "admin") -> Path:
        """Write a kubeconfig for ``user`` to ``path``."""
        path.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "tests",
                    "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": user}}],
                    "clusters": [
                        {"name": "tests", "cluster": {"server": self.url, "certificate-authority": str(self.ca)}}
                    ],
                    "users": [{"name": user, "user": {"token": self._tokens[user]}}],
                }
            )
        )
        return path


@contextmanager
def controller_manager(server: ApiServer, directory: Path, controllers: str, *flags: str) -> Iterator[None]:
    """kube-controller-manager with these controllers alone; fails if it ends by itself."""
    program = build.ensure([families.KUBERNETES], print)["kube-controller-manager"]
    argv = (
        str(program),
        f"--kubeconfig={server.kubeconfig(directory / 'kubeconfig')}",
        f"--controllers={controllers}",
        "--leader-elect=false",
        "--bind-address=127.0.0.1",
        f"--secure-port={free_port()}",
        f"--cert-dir={directory}",
        *flags,
    )
    log = directory / "kube-controller-manager.log"
    with log.open("wb") as out:
        process = subprocess.Popen(argv, stdout=out, stderr=subprocess.STDOUT)
    try:
        yield
        assert process.poll() is None, log.read_text()[-4000:]
    finally:
        process.kill()
        process.wait()


async def eventually(
    condition: Callable[[], Awaitable[bool] | bool], what: str, seconds: float = 180.0, *, every: float = 0.02
) -> None:
    """Return once ``condition`` holds; fail with ``what`` if it does not within ``seconds``."""
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        found = condition()
        if found if isinstance(found, bool) else await found:
            return
        assert asyncio.get_running_loop().time() < deadline, f"not within {seconds:.0f} s: {what}"
        await asyncio.sleep(every)
