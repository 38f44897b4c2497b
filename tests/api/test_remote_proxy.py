"""The proxy before an endpoint, under the chart's rights and certificates: real API server, the proxy as a process."""

import base64
import os
import ssl
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from real_api import ApiServer, free_port
from rm_abstract.serve.engine import Engine
from rm_api import names
from rm_local_cluster import existing
from rm_local_cluster.pki import Authority
from rm_operator.plan import remote

sys.path.append(str(Path(__file__).parents[1] / "contract"))

from remote_provider import MODEL, Provider, running, until
from scripted_session import ScriptedSession

SYSTEM, MINE, OTHER = "remote-system", "remote-tenant", "remote-other"
CHART = Path(__file__).parents[2] / "charts/rm-abstract"
KEY = "sk-provider-0123456789abcdef"
ACCOUNT = "rma-remote-proxy"


@dataclass
class Installed:
    """What the chart has made, and the proxy of the endpoint ``vendor-api``."""

    kubectl: tuple[str, ...]
    port: int
    authority: str
    """As the chart tells the operator, and that serving pods."""
    log: Path

    def run(self, *arguments: str) -> str:
        return subprocess.run([*self.kubectl, *arguments], capture_output=True, text=True, check=True).stdout

    def token(self, namespace: str, audience: str | None = names.REMOTE_AUDIENCE) -> str:
        """A token as the kubelet projects it."""
        flags = [f"--audience={audience}"] if audience else []
        return self.run("create", "token", "default", "-n", namespace, *flags).strip()

    def ask(self, token: str) -> httpx2.Response:
        """As a serving pod asks, by the proxy's name in the cluster, which nothing on this machine resolves."""
        host = f"{remote.proxy_name('vendor-api')}.{SYSTEM}.svc"
        with httpx2.Client(verify=ssl.create_default_context(cadata=self.authority), trust_env=False) as client:
            return client.post(
                f"https://127.0.0.1:{self.port}/v1/completions",
                json={"model": MODEL, "prompt": "hello"},
                headers={"Authorization": f"Bearer {token}", "Host": host},
                extensions={"sni_hostname": host},
                timeout=60,
            )


@pytest.fixture(scope="module")
def installed(api_server: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    directory = tmp_path_factory.mktemp("remote-proxy")
    tool, helm = existing.tools(print)
    kubeconfig = api_server.kubeconfig(directory / "admin.kubeconfig")
    kubectl = (str(tool), "--kubeconfig", str(kubeconfig))

    def run(*command: str, stdin: str | None = None) -> str:
        return subprocess.run(command, input=stdin, capture_output=True, text=True, check=True).stdout

    for namespace in (SYSTEM, MINE, OTHER):
        run(*kubectl, "create", "namespace", namespace)
        run(*kubectl, "create", "serviceaccount", "default", "-n", namespace)
    chart = [obj for obj in yaml.safe_load_all(run(str(helm), "template", "rma", str(CHART), "-n", SYSTEM)) if obj]
    rights = [obj for obj in chart if obj["metadata"]["name"] == ACCOUNT]
    run(*kubectl, "apply", "-n", SYSTEM, "-f", "-", stdin=yaml.safe_dump_all(rights))
    (served,) = [obj["data"] for obj in chart if obj["metadata"]["name"] == "rma-remote-tls"]
    for name, content in served.items():
        (directory / name).write_bytes(base64.b64decode(content))
    config: dict[str, Any] = yaml.safe_load(kubeconfig.read_text())
    config["users"][0]["user"] = {"token": run(*kubectl, "create", "token", ACCOUNT, "-n", SYSTEM).strip()}
    (directory / "proxy.kubeconfig").write_text(yaml.safe_dump(config))
    (directory / "key").write_text(KEY)
    authority = Authority(directory, "public")
    pair = authority.issue("provider", "provider", hosts=["localhost", "127.0.0.1"])
    session, port, log = ScriptedSession(), free_port(), directory / "proxy.log"
    provider = Provider(0, session, Engine(session, max_batch=4, max_queue=4), KEY)
    with running(provider.application(), pair) as provider.port, log.open("ab") as out:
        process = subprocess.Popen(
            [
                sys.executable, "-m", "rm_operator.remote_proxy", "--accelerator=vendor-api",
                f"--endpoint={provider.url}", f"--key-file={directory / 'key'}", "--drain-delay=0",
                f"--ca-file={authority.pair.certificate}", f"--namespace={MINE}", f"--model={MODEL}",
                f"--port={port}", f"--management-port={free_port()}", f"--tls-certificate={directory / 'tls.crt'}",
                f"--tls-key={directory / 'tls.key'}", f"--kubeconfig={directory / 'proxy.kubeconfig'}",
            ],
            stdout=out, stderr=out, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
        until(lambda: process.poll() is not None or "listening" in log.read_text(), 120)
        assert process.poll() is None, log.read_text()
        yield Installed(kubectl, port, (directory / "ca.crt").read_text(), log)
        process.terminate()
        assert process.wait(60) == 0, log.read_text()
    session.close()


def test_a_pod_of_a_namespace_that_is_listed_is_served(installed: Installed) -> None:
    answer = installed.ask(installed.token(MINE))
    assert (answer.status_code, answer.json()["choices"][0]["text"]) == (200, "HELLO")


def test_who_is_refused(installed: Installed) -> None:
    gone = installed.run("create", "serviceaccount", "gone", "-n", MINE)
    assert gone
    flags = ("-n", MINE, f"--audience={names.REMOTE_AUDIENCE}")
    token = installed.run("create", "token", "gone", *flags).strip()
    installed.run("delete", "serviceaccount", "gone", "-n", MINE)
    for name, shown, status, code in (
        ("a token for the API server", installed.token(MINE, None), 401, "unauthorized"),
        ("a token for the registry", installed.token(MINE, names.REGISTRY_AUDIENCE), 401, "unauthorized"),
        ("no token", "none", 401, "unauthorized"),
        ("an account that is gone", token, 401, "unauthorized"),
        ("another namespace", installed.token(OTHER), 403, "namespace_not_allowed"),
    ):
        answer = installed.ask(shown)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), name
        assert KEY not in answer.text
    assert KEY not in installed.log.read_text()


def test_the_proxys_account_asks_whose_tokens_are_and_may_do_nothing_else(installed: Installed) -> None:
    account = f"--as=system:serviceaccount:{SYSTEM}:{ACCOUNT}"

    def may(*right: str) -> bool:
        command = [*installed.kubectl, "auth", "can-i", "--quiet", *right, account]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0

    assert may("create", "tokenreviews.authentication.k8s.io")
    for right in (("get", "secrets"), ("list", "secrets"), ("create", "pods"), ("get", "modeldeployments")):
        assert not may(*right, "-n", SYSTEM), right
        assert not may(*right, "-n", MINE), right
