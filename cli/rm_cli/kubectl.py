"""kubectl and helm as a person uses them, for the demo and for tests."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rm_local_cluster
import yaml
from rm_local_cluster import Cluster


class CommandFailed(RuntimeError):
    """kubectl or helm ended with an error; the message is what it said."""


@dataclass(frozen=True)
class Kubectl:
    """Runs kubectl against one cluster, by default in one namespace."""

    cluster: Cluster
    namespace: str | None = None

    def run(self, *arguments: str, stdin: str | None = None, timeout: float = 120) -> str:
        """stdout of ``kubectl ARGUMENTS``. Raises CommandFailed with what it said."""
        scope = ["--namespace", self.namespace] if self.namespace else []
        command = [str(self.cluster.kubectl), "--kubeconfig", str(self.cluster.kubeconfig), *scope, *arguments]
        return run(command, stdin=stdin, timeout=timeout)

    def apply(self, *objects: Any) -> None:
        """``kubectl apply --server-side`` of objects as dictionaries."""
        self.run("apply", "--server-side", "-f", "-", stdin=yaml.safe_dump_all(objects))

    def get(self, kind: str, name: str) -> dict[str, Any] | None:
        """One object, or None."""
        text = self.run("get", kind, name, "--ignore-not-found", "-o", "json")
        return json.loads(text) if text.strip() else None

    def list(self, kind: str, *, selector: str | None = None) -> list[dict[str, Any]]:
        """All objects of a kind in the namespace."""
        further = ["-l", selector] if selector else []
        items: list[dict[str, Any]] = json.loads(self.run("get", kind, "-o", "json", *further))["items"]
        return items

    def delete(self, kind: str, name: str, *, wait: bool = True) -> None:
        """Deletes an object; nothing happens where there is none."""
        self.run("delete", kind, name, "--ignore-not-found", f"--wait={'true' if wait else 'false'}")

    def post(self, service: str, path: str, body: Any, *, timeout: float = 120) -> Any:
        """POST of JSON to a Service through the API server's proxy."""
        url = f"/api/v1/namespaces/{self.namespace}/services/{service}/proxy{path}"
        return json.loads(self.run("create", "--raw", url, "-f", "-", stdin=json.dumps(body), timeout=timeout))

    @contextlib.contextmanager
    def port_forward(self, target: str, port: int) -> Iterator[int]:
        """A local port that reaches ``port`` of ``target`` (such as svc/name) while the context is open."""
        scope = ["--namespace", self.namespace] if self.namespace else []
        command = [
            str(self.cluster.kubectl), "--kubeconfig", str(self.cluster.kubeconfig), *scope,
            "port-forward", "--address=127.0.0.1", target, f":{port}",
        ]  # fmt: skip
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            match = re.search(r"127\.0\.0\.1:(\d+) ->", line)
            if match is None:
                assert process.stderr is not None
                raise CommandFailed(f"port-forward to {target}: {line}{process.stderr.read()}".strip())
            # It writes a line for each connection: somebody has to read them.
            threading.Thread(target=process.stdout.read, daemon=True).start()
            yield int(match.group(1))
        finally:
            process.terminate()
            process.wait(10)
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    stream.close()


def named_cluster(kubeconfig: Path | None) -> Cluster:
    """The cluster of ``kubeconfig``, else of $KUBECONFIG, else the local one. CommandFailed where there is none."""
    named = kubeconfig or next((Path(path) for path in (os.environ.get("KUBECONFIG"),) if path), None)
    local = rm_local_cluster.status().cluster if named is None else None
    if local is not None:
        return local
    kubectl = shutil.which("kubectl")
    if named is None:
        raise CommandFailed(
            "no cluster is named, and there is no local one: give --kubeconfig, or, to plan, accelerators and profiles "
            "with -f"
        )
    if kubectl is None:
        raise CommandFailed("kubectl is not installed; with it the cluster can be asked")
    return Cluster("named", "existing", named, Path(kubectl), Path("helm"))


def helm(cluster: Cluster, *arguments: str, timeout: float = 600) -> str:
    """stdout of ``helm ARGUMENTS``. Raises CommandFailed with what it said."""
    return run([str(cluster.helm), "--kubeconfig", str(cluster.kubeconfig), *arguments], timeout=timeout)


def run(
    command: Sequence[str],
    *,
    stdin: str | None = None,
    timeout: float = 600,
    environment: Mapping[str, str] | None = None,
) -> str:
    """stdout of a command. Raises CommandFailed with what it said."""
    try:
        done = subprocess.run(
            command, input=stdin, capture_output=True, text=True, timeout=timeout, check=False, env=environment
        )
    except subprocess.TimeoutExpired:
        raise CommandFailed(
            f"{Path(command[0]).name} {' '.join(command[3:])} did not end within {timeout:.0f} s"
        ) from None
    if done.returncode != 0:
        raise CommandFailed((done.stderr or done.stdout).strip())
    return done.stdout


def condition(obj: dict[str, Any] | None, name: str) -> dict[str, Any]:
    """A condition of an object, or an empty dictionary."""
    for entry in ((obj or {}).get("status") or {}).get("conditions") or []:
        if entry["type"] == name:
            return dict(entry)
    return {}


def wait_until(what: str, check: Any, *, timeout: float, interval: float = 0.5) -> Any:
    """The first true value of ``check()``. Raises CommandFailed, naming ``what``, after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        value = check()
        if value:
            return value
        if time.monotonic() > deadline:
            raise CommandFailed(f"{what}: not within {timeout:.0f} s")
        time.sleep(interval)
