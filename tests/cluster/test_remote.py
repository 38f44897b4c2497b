"""A model that a provider serves: through proxy and relay, for a namespace that never has the provider's key.

The provider is a deployment of ours in another namespace, behind TLS and a key of its own. The tests build on one
another, in order.
"""

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
import remote_door
from installation import Installed
from rm_api.names import REMOTE_AUDIENCE, REMOTE_PORT
from rm_cli import release
from rm_cli.kubectl import Kubectl, condition, wait_until
from rm_local_cluster.pki import Authority
from scripted_model import SAMPLES, expected_text
from support import ask, deploy, serving_pods, wait_for

COMPILE_SECONDS = 300
START_SECONDS = 180
# The kubelet looks after mounted Secrets once a minute or so.
ROTATION_SECONDS = 240
KEY, RENEWED = "sk-provider-0123456789abcdef", "sk-provider-fedcba9876543210"
SECRET, AUTHORITIES, ACCELERATOR, PROXY = "vendor-api-key", "vendor-authorities", "vendor-api", "remote-vendor-api"
SOURCE = "hf://vendor/large-1"
MESSAGES = [{"role": "user", "content": SAMPLES[0].prompt}]

Object = dict[str, Any]


@dataclass(frozen=True)
class Provider:
    """Where it is, and which keys it takes."""

    kubectl: Kubectl

    @property
    def host(self) -> str:
        return f"provider.{self.kubectl.namespace}.svc"

    def take(self, **keys: str) -> None:
        """Take these keys, too."""
        self.kubectl.apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys"}, "stringData": keys})

    def said(self) -> str:
        return self.kubectl.run("logs", "provider")


@pytest.fixture(scope="module")
def provider(
    installed: Installed, module_namespace: Kubectl, model_source: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Provider]:
    """A provider that serves the model `large`."""
    found = Provider(module_namespace)
    directory = tmp_path_factory.mktemp("provider")
    authority = Authority(directory, "authority")
    pair = authority.issue("provider", "provider", hosts=[found.host])
    found.take(first=KEY)
    deploy(module_namespace, "large", model_source)
    door = Path(remote_door.__file__).read_text()
    files = {"tls.crt": pair.certificate.read_text(), "tls.key": pair.key.read_text()}
    mounts = {"door": "/door", "keys": "/keys", "tls": "/tls"}
    module_namespace.apply(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "door"}, "data": {"door.py": door}},
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "tls"}, "stringData": files},
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "provider"},
            "spec": {"selector": {"app": "provider"}, "ports": [{"port": 443, "targetPort": 8443}]},
        },
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "provider", "labels": {"app": "provider"}},
            "spec": {
                "securityContext": {
                    "runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"},
                },
                "terminationGracePeriodSeconds": 0,
                "containers": [
                    {
                        "name": "door",
                        "image": installed.references["runtime"],
                        "command": ["python3", "/door/door.py"],
                        "env": [
                            {"name": "BEHIND", "value": f"http://large.{module_namespace.namespace}.svc"},
                            {"name": "HOME", "value": "/tmp"},
                        ],
                        "volumeMounts": [{"name": name, "mountPath": path} for name, path in mounts.items()],
                        "readinessProbe": {"tcpSocket": {"port": 8443}, "periodSeconds": 2},
                        "securityContext": {
                            "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]},
                        },
                    }
                ],
                "volumes": [
                    {"name": "door", "configMap": {"name": "door"}},
                    {"name": "keys", "secret": {"secretName": "keys"}},
                    {"name": "tls", "secret": {"secretName": "tls"}},
                ],
            },
        },
    )  # fmt: skip
    system = installed.system
    ca = {"ca.crt": authority.pair.certificate.read_text()}
    system.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": AUTHORITIES}, "data": ca})
    try:
        release.install(installed.cluster, installed.references, f"--set=remote.caConfigMapName={AUTHORITIES}")
        wait_for(module_namespace, "large", "Ready", timeout=COMPILE_SECONDS)
        module_namespace.run("wait", "--for=condition=Ready", "pod/provider", "--timeout=120s", timeout=130)
        yield found
    finally:
        release.install(installed.cluster, installed.references)
        system.delete("configmap", AUTHORITIES)


def _key(system: Kubectl, key: str) -> None:
    system.apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET}, "stringData": {"key": key}})


@pytest.fixture(scope="module")
def tenant(installed: Installed, provider: Provider) -> Iterator[Kubectl]:
    """A namespace that may use the provider, with a deployment `mine` that does."""
    kubectl = Kubectl(installed.cluster, f"{provider.kubectl.namespace}-tenant")
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": kubectl.namespace, "labels": labels}})
    accelerator = {
        "apiVersion": "rm-abstract.io/v1alpha1",
        "kind": "AcceleratorResource",
        "metadata": {"name": ACCELERATOR},
        "spec": {
            "type": "REMOTE",
            "vendor": "Vendor",
            "product": "Vendor API",
            "remote": {
                "endpoint": f"https://{provider.host}/v1",
                "credentialsSecretRef": SECRET,
                "models": [{"source": SOURCE, "name": "large"}],
            },
            "cost": {"perMillionInputTokens": "0.05", "perMillionOutputTokens": "0.10"},
            "allowedNamespaces": [kubectl.namespace],
        },
    }
    try:
        kubectl.apply(accelerator)
        deploy(kubectl, "mine", SOURCE, accelerators={"types": ["REMOTE"]})
        yield kubectl
    finally:
        kubectl.delete("mdep", "mine")
        kubectl.delete("accel", ACCELERATOR)
        kubectl.delete("namespace", str(kubectl.namespace), wait=False)
        installed.system.run("delete", "secret", SECRET, "--ignore-not-found")


def test_without_its_key_the_endpoint_says_what_it_lacks(tenant: Kubectl, installed: Installed) -> None:
    def told() -> bool:
        return (
            "it needs the Secret of spec.remote.credentialsSecretRef"
            in condition(tenant.get("accel", ACCELERATOR), "Ready")["message"]
        )

    wait_until("the accelerator does not say what its proxy lacks", told, timeout=60)
    assert serving_pods(tenant, "mine") == []
    _key(installed.system, KEY)
    tenant.run("wait", "--for=condition=Ready", f"accel/{ACCELERATOR}", f"--timeout={START_SECONDS}s", timeout=200)


def test_it_says_the_models_text_token_for_token(tenant: Kubectl, model_directory: Path) -> None:
    deployment = wait_for(tenant, "mine", "Ready", timeout=START_SECONDS)
    assert deployment["status"]["placement"]["chosen"] == ACCELERATOR
    assert condition(deployment, "ArtifactReady")["reason"] == "NotNeeded"
    assert tenant.list("jobs") == tenant.list("bart") == [], "nothing was resolved or built"
    for sample in SAMPLES:
        messages = [{"role": "user", "content": sample.prompt}]
        answer = ask(tenant, "mine", messages)
        assert answer["choices"][0]["message"]["content"] == expected_text(model_directory, messages)
        assert answer["usage"]["completion_tokens"] > 0, "which the provider has counted"


def test_streams_and_limits_are_the_providers(tenant: Kubectl, model_directory: Path) -> None:
    with tenant.port_forward("svc/mine", 80) as port:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
        assert [model.id for model in client.models.list()] == ["mine"]
        messages: Any = MESSAGES
        stream = client.chat.completions.create(
            model="mine", messages=messages, temperature=0, max_tokens=128, stream=True
        )
        pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
        assert len(pieces) > 5, "it comes in pieces"
        assert "".join(pieces) == expected_text(model_directory, MESSAGES)
        with pytest.raises(openai.RateLimitError) as busy:
            client.completions.create(model="mine", prompt=remote_door.BUSY)
        assert busy.value.response.headers["retry-after"] == remote_door.RETRY_AFTER


def test_the_tenant_has_the_key_nowhere(tenant: Kubectl, installed: Installed, provider: Provider) -> None:
    objects = tenant.list("pods,secrets,configmaps,deployments,replicasets,controllerrevisions,mdep,events")
    (pod,) = serving_pods(tenant, "mine")
    name = pod["metadata"]["name"]
    assert name in {each["metadata"]["name"] for each in objects}
    inside = (
        "import os, pathlib; print(dict(os.environ));"
        "[print(p.read_text()) for p in pathlib.Path('/rma').rglob('*') if p.is_file() and p.stat().st_size < 100000]"
    )
    mounted = tenant.run("exec", name, "-c", "engine", "--", "python3", "-c", inside)
    assert "RMA_REMOTE_CA" in mounted
    shown = json.dumps(objects) + mounted + tenant.run("logs", name, "--all-containers")
    proxy = installed.system.run("logs", f"deploy/{PROXY}")
    assert provider.said().count("with first") > len(SAMPLES)
    for secret in (KEY, base64.b64encode(KEY.encode()).decode()):
        assert secret not in shown
        assert secret not in proxy
    assert SECRET not in shown, "not even its name"
    for prompt in (sample.prompt for sample in SAMPLES):
        assert prompt not in proxy


def test_another_namespace_is_refused_and_told_why(tenant: Kubectl, namespace: Kubectl) -> None:
    deploy(namespace, "theirs", SOURCE, accelerators={"names": [ACCELERATOR]})
    wait_for(namespace, "theirs", "NoEligibleAccelerator", on="Placed", timeout=120)
    described = namespace.run("describe", "mdep", "theirs")
    assert "allowedNamespaces" in described
    assert serving_pods(namespace, "theirs") == []
    # Nor does it help to go to the proxy oneself.
    token = namespace.run("create", "token", "default", f"--audience={REMOTE_AUDIENCE}").strip()
    url = f"https://{PROXY}.{release.SYSTEM_NAMESPACE}.svc:{REMOTE_PORT}/v1/completions"
    script = (
        "import os, ssl, sys, httpx2;"
        "trusted = ssl.create_default_context(cadata=os.environ['RMA_REMOTE_CA']);"
        f"answer = httpx2.post({url!r}, json={{'model': 'large', 'prompt': 'a'}}, verify=trusted, trust_env=False,"
        " headers={'Authorization': 'Bearer ' + sys.argv[1]});"
        "print(answer.status_code, answer.text)"
    )
    name = serving_pods(tenant, "mine")[0]["metadata"]["name"]
    refused = tenant.run("exec", name, "-c", "engine", "--", "python3", "-c", script, token)
    assert refused.startswith("403 ")
    assert f"namespace {namespace.namespace} may not use {ACCELERATOR}" in refused


def test_a_renewed_key_is_used_without_a_restart(
    tenant: Kubectl, installed: Installed, provider: Provider, model_directory: Path
) -> None:
    provider.take(first=KEY, second=RENEWED)
    text = expected_text(model_directory, MESSAGES)

    def used() -> bool:
        assert ask(tenant, "mine", MESSAGES)["choices"][0]["message"]["content"] == text
        return "with second" in provider.said()

    def known() -> bool:
        keys = provider.kubectl.run("exec", "provider", "--", "ls", "/keys")
        return "second" in keys

    wait_until("the provider takes no second key", known, timeout=ROTATION_SECONDS)
    _key(installed.system, RENEWED)
    wait_until("the proxy still shows the old key", used, timeout=ROTATION_SECONDS)
    (proxy,) = installed.system.list("pods", selector=f"rm-abstract.io/accelerator={ACCELERATOR}")
    (container,) = proxy["status"]["containerStatuses"]
    assert container["restartCount"] == 0
