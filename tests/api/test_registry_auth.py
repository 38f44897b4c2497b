"""The registry under TLS with our token service: real registry, real API server, the service as a process."""

import base64
import hashlib
import json
import os
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import NameOID
from real_api import ApiServer, free_port
from rm_abstract.core.errors import BadInput, SourceUnreachable
from rm_abstract.core.resource import BuildArtifact
from rm_abstract.store import ArtifactStore
from rm_api import names
from rm_api.conditions import Reason
from rm_cli import release
from rm_cli.kubectl import Kubectl
from rm_cli.store_access import Store, applied
from rm_local_cluster import Cluster, existing
from rm_local_cluster.pki import Authority, KeyPair
from rm_operator.kube import artifact_store
from rm_operator.kube.auth import FileToken, StaticToken
from rm_operator.plan.artifact import Presence
from rm_operator.registry_auth.access import Access
from rm_operator.registry_auth.renewal import again
from rm_operator.registry_auth.signing import ISSUER, Signer

sys.path.append(str(Path(__file__).parents[1] / "contract"))

from registry_server import RunningRegistry, running_registry

SYSTEM, MINE, OTHER = "registry-system", "tenant-a", "tenant-b"
BUILDS = names.BUILDS_NAMESPACE
OPERATOR = f"system:serviceaccount:{SYSTEM}:rma-operator"
ADMINISTRATOR, PUBLISHER = "rma-registry-admin", "publisher"
SERVICE = "store.test:5000"
CHART = Path(__file__).parents[2] / "charts/rm-abstract"
START_SECONDS = 60


def signing_pair(directory: Path) -> KeyPair:
    """A key on P-256 and a certificate that it signed itself, as the chart makes them."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "signing")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(hours=1))
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    pair = KeyPair(directory / "signing.crt", directory / "signing.key")
    pair.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    pair.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
    )
    return pair


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class World:
    """Accounts on the API server, keys, and how to start the service and the registry."""

    def __init__(self, server: ApiServer, directory: Path) -> None:
        self.server = server
        self.directory = directory
        self.kubectl, self.helm = existing.tools(print)
        self.kubeconfig = server.kubeconfig(directory / "admin.kubeconfig")
        authority = Authority(directory, "store-ca")
        self.ca = authority.pair.certificate
        in_cluster = [f"rma-registry{part}.{SYSTEM}.svc" for part in ("", "-auth")]
        self.tls = authority.issue("store", "store", hosts=["127.0.0.1", *in_cluster])
        self.signing = signing_pair(directory)
        self.port = free_port()
        self.trust = ssl.create_default_context(cafile=str(self.ca))
        for namespace in (SYSTEM, MINE, OTHER, BUILDS):
            self.run("create", "namespace", namespace)
            self.run("create", "serviceaccount", "default", "-n", namespace)
        for account in ("rma-operator", PUBLISHER):
            self.run("create", "serviceaccount", account, "-n", SYSTEM)
        self.install()
        self.run("create", "secret", "generic", "own-tls", f"--from-file=ca.crt={self.ca}", "-n", SYSTEM)

    def install(self) -> None:
        """What the chart gives the accounts, and how it describes the store."""
        self.run("delete", "configmap", "rma-store", "-n", SYSTEM, "--ignore-not-found")
        self.run("apply", "-n", SYSTEM, "-f", "-", stdin=yaml.safe_dump_all(self._installed()))

    def _installed(self) -> list[dict[str, Any]]:
        chart = subprocess.run(
            [
                str(self.helm), "template", "rma", str(CHART), "--namespace", SYSTEM,
                "--set=store.registry.tls.secretName=own-tls",
            ],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        wanted = {
            "ServiceAccount": {"rma-registry-auth", ADMINISTRATOR}, "ConfigMap": {"rma-store"},
            "ClusterRole": {"rma-registry-auth"}, "ClusterRoleBinding": {"rma-registry-auth"},
        }  # fmt: skip
        found = [obj for obj in yaml.safe_load_all(chart) if obj]
        return [obj for obj in found if obj["metadata"]["name"] in wanted.get(obj["kind"], ())]

    def run(self, *arguments: str, stdin: str | None = None) -> str:
        command = [str(self.kubectl), "--kubeconfig", str(self.kubeconfig), *arguments]
        return subprocess.run(command, input=stdin, capture_output=True, text=True, check=True).stdout

    def token(self, namespace: str, account: str = "default", audience: str | None = names.REGISTRY_AUDIENCE) -> str:
        """A token as the kubelet projects it."""
        flags = [f"--audience={audience}"] if audience else []
        return self.run("create", "token", account, "-n", namespace, *flags).strip()

    def service_kubeconfig(self) -> Path:
        """As a pod of the service's account would reach the API server."""
        path = self.directory / "service.kubeconfig"
        config = yaml.safe_load(self.kubeconfig.read_text())
        config["users"][0]["user"] = {"token": self.token(SYSTEM, "rma-registry-auth", None)}
        path.write_text(yaml.safe_dump(config))
        return path

    @contextmanager
    def service(self, kubeconfig: Path) -> Iterator[None]:
        """The token service as a process."""
        argv = [
            sys.executable, "-m", "rm_operator.registry_auth", f"--service={SERVICE}", f"--operator={OPERATOR}",
            f"--signing-key={self.signing.key}", f"--signing-certificate={self.signing.certificate}",
            f"--tls-certificate={self.tls.certificate}", f"--tls-key={self.tls.key}", f"--port={self.port}",
            f"--kubeconfig={kubeconfig}", f"--administrator=system:serviceaccount:{SYSTEM}:{ADMINISTRATOR}",
            f"--publisher=system:serviceaccount:{SYSTEM}:{PUBLISHER}", "--shared=models/",
            f"--shared=artifacts/{BUILDS}/",
        ]  # fmt: skip
        log = self.directory / "service.log"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        with log.open("ab") as out:
            process = subprocess.Popen(argv, stdout=out, stderr=subprocess.STDOUT, env=environment)
        try:
            deadline = time.monotonic() + START_SECONDS
            while True:
                assert process.poll() is None, log.read_text()[-4000:]
                try:
                    if self.send("GET", f"https://127.0.0.1:{self.port}/healthz").status == 200:
                        break
                except OSError:
                    assert time.monotonic() < deadline, log.read_text()[-4000:]
                    time.sleep(0.1)
            yield
        finally:
            process.terminate()
            assert process.wait(30) == 0, log.read_text()[-4000:]

    @contextmanager
    def registry(self, service: str | None = None) -> Iterator[RunningRegistry]:
        """The registry, configured as by the chart; ``service`` is host:port of the token service, as it names it."""
        token = {
            "realm": f"https://{service or f'127.0.0.1:{self.port}'}/token", "service": SERVICE, "issuer": ISSUER,
            "rootcertbundle": str(self.signing.certificate), "signingalgorithms": ["ES256"],
        }  # fmt: skip
        with running_registry(self.directory, {"token": token}, self.tls) as running:
            yield running

    def send(self, method: str, url: str, headers: dict[str, str] | None = None, body: bytes | None = None) -> Answer:
        request = urllib.request.Request(url, data=body, method=method, headers=headers or {})
        try:
            with urllib.request.urlopen(request, context=self.trust, timeout=60) as response:
                return Answer(response.status, dict(response.headers), response.read())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, dict(error.headers), error.read())

    def ask_for(self, password: str | None, *scopes: str, service: str = SERVICE) -> Answer:
        """An answer of the token service."""
        query = urllib.parse.urlencode([("service", service), *(("scope", scope) for scope in scopes)])
        shown = {} if password is None else {"Authorization": basic(password)}
        return self.send("GET", f"https://127.0.0.1:{self.port}/token?{query}", shown)


@dataclass
class Running:
    """The world with service and registry up."""

    world: World
    registry: RunningRegistry

    def as_(self, token: str, method: str, path: str, *scopes: str, body: bytes | None = None) -> Answer:
        """What the registry answers to who gets a token for ``scopes`` with this ServiceAccount token."""
        granted = self.world.ask_for(token, *scopes).json["token"]
        return self.world.send(
            method, f"https://{self.registry.host}{path}", {"Authorization": f"Bearer {granted}"}, body
        )


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"serviceaccount:{password}".encode()).decode()


def claims_of(token: str) -> dict[str, Any]:
    payload = token.split(".")[1]
    found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return found


@pytest.fixture(scope="module")
def world(api_server: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(api_server, tmp_path_factory.mktemp("registry-auth"))


@pytest.fixture(scope="module")
def running(world: World) -> Iterator[Running]:
    with world.service(world.service_kubeconfig()), world.registry() as registry:
        yield Running(world, registry)


@pytest.fixture
def artifact(tmp_path: Path) -> BuildArtifact:
    root = tmp_path / "built"
    root.mkdir()
    (root / "model.bin").write_bytes(os.urandom(100_000))
    return BuildArtifact(root, "key-1", "fmt", ("X1",), ("1.4.0",), {"tool": "2.0"})


@pytest.fixture
def repository(request: pytest.FixtureRequest) -> str:
    """The last component of a repository of the test's own."""
    return hashlib.sha256(request.node.name.encode()).hexdigest()[:12]


@contextmanager
def pod(running: Running, token: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ArtifactStore]:
    """The SDK with the environment that the operator gives a container of ours."""
    file = tmp_path / "token"
    file.write_text(token)
    with monkeypatch.context() as patch:
        for name in ("NETRC", "RMA_PLAIN_HTTP_HOSTS"):
            patch.delenv(name, raising=False)
        patch.setenv(names.ENV_STORE, running.registry.host)
        patch.setenv(names.ENV_REGISTRY_TOKEN_FILE, str(file))
        patch.setenv(names.ENV_REGISTRY_CA, running.world.ca.read_text())
        with ArtifactStore() as store:
            yield store


def test_a_pod_pushes_and_pulls_what_is_of_its_namespace(
    running: Running, artifact: BuildArtifact, repository: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = f"{running.registry.host}/artifacts/{MINE}/{repository}"
    with pod(running, running.world.token(MINE), monkeypatch, tmp_path) as store:
        pushed = store.push(artifact, f"{reference}:v1")
        store.pull(f"{reference}@{pushed.digest}", tmp_path / "dest", key="key-1")
    assert (tmp_path / "dest/model.bin").read_bytes() == (artifact.path / "model.bin").read_bytes()


def test_a_pod_neither_reads_nor_writes_what_is_of_another_namespace(
    running: Running, artifact: BuildArtifact, repository: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = f"{running.registry.host}/artifacts/{MINE}/{repository}"
    with pod(running, running.world.token(MINE), monkeypatch, tmp_path) as store:
        pushed = store.push(artifact, f"{reference}:v1")
    with pod(running, running.world.token(OTHER), monkeypatch, tmp_path) as store:
        with pytest.raises(BadInput, match="what belongs to its own namespace"):
            store.pull(f"{reference}@{pushed.digest}", tmp_path / "stolen", key="key-1")
        with pytest.raises(BadInput, match="what belongs to its own namespace"):
            store.push(artifact, f"{reference}:v2")
    assert not (tmp_path / "stolen").exists()

    name, token = f"artifacts/{MINE}/{repository}", running.world.token(OTHER)
    layer = manifest_of(running, name)["layers"][0]["digest"]
    everything = f"repository:{name}:pull,push,delete,*"
    for method, path in (
        ("GET", f"/v2/{name}/manifests/v1"),
        ("GET", f"/v2/{name}/tags/list"),
        ("GET", f"/v2/{name}/blobs/{layer}"),
        ("HEAD", f"/v2/{name}/blobs/{layer}"),
        ("POST", f"/v2/{name}/blobs/uploads/"),
        ("PUT", f"/v2/{name}/manifests/v1"),
        ("DELETE", f"/v2/{name}/manifests/{pushed.digest}"),
        ("DELETE", f"/v2/{name}/blobs/{layer}"),
    ):
        answer = running.as_(token, method, path, everything)
        assert (method, path, answer.status) == (method, path, 401)
    assert manifest_of(running, name)["layers"][0]["digest"] == layer, "it is as it was"


def test_what_all_namespaces_share_a_tenant_reads_and_cannot_replace(
    running: Running, artifact: BuildArtifact, repository: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"artifacts/{BUILDS}/{repository}"
    reference = f"{running.registry.host}/{name}"
    with pod(running, running.world.token(BUILDS), monkeypatch, tmp_path) as store:
        pushed = store.push(artifact, f"{reference}:v1")
    poison = tmp_path / "poison"
    poison.mkdir()
    (poison / "model.bin").write_bytes(b"poison")
    evil = BuildArtifact(poison, "key-1", "fmt", ("X1",), ("1.4.0",), {})
    with pod(running, running.world.token(MINE), monkeypatch, tmp_path) as store:
        store.pull(f"{reference}@{pushed.digest}", tmp_path / "dest", key="key-1")
        for tag in ("v1", "v2", "stage-1"):
            with pytest.raises(BadInput, match="what belongs to its own namespace"):
                store.push(evil, f"{reference}:{tag}")
        # One that nobody has built yet, so that it would be adopted.
        with pytest.raises(BadInput, match="what belongs to its own namespace"):
            store.push(evil, f"{running.registry.host}/artifacts/{BUILDS}/{repository}-next:v1")
    assert (tmp_path / "dest/model.bin").read_bytes() == (artifact.path / "model.bin").read_bytes()
    layer = manifest_of(running, name)["layers"][0]["digest"]
    token = running.world.token(MINE)
    for method, path in (
        ("POST", f"/v2/{name}/blobs/uploads/"),
        ("PUT", f"/v2/{name}/manifests/v1"),
        ("DELETE", f"/v2/{name}/manifests/{pushed.digest}"),
        ("DELETE", f"/v2/{name}/blobs/{layer}"),
    ):
        answer = running.as_(token, method, path, f"repository:{name}:pull,push,delete,*")
        assert (method, path, answer.status) == (method, path, 401)
    with pod(running, running.world.token(BUILDS), monkeypatch, tmp_path) as store:
        assert store.pull(f"{reference}@{pushed.digest}", tmp_path / "again", key="key-1").key == "key-1"
        with pytest.raises(BadInput, match="what belongs to its own namespace"):
            store.push(artifact, f"{running.registry.host}/artifacts/{MINE}/{repository}:v1")


def manifest_of(running: Running, name: str) -> dict[str, Any]:
    token = running.world.ask_for(running.world.token(MINE), f"repository:{name}:pull").json["token"]
    headers = {"Authorization": f"Bearer {token}", "Accept": names.MEDIA_TYPE_MANIFEST}
    found: dict[str, Any] = running.world.send(
        "GET", f"https://{running.registry.host}/v2/{name}/manifests/v1", headers
    ).json
    return found


def test_a_layer_of_another_namespace_is_not_mounted_by_its_digest(
    running: Running, artifact: BuildArtifact, repository: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, ours = f"artifacts/{MINE}/{repository}", f"artifacts/{OTHER}/{repository}"
    with pod(running, running.world.token(MINE), monkeypatch, tmp_path) as store:
        store.push(artifact, f"{running.registry.host}/{theirs}:v1")
    digest = manifest_of(running, theirs)["layers"][0]["digest"]
    scopes = (f"repository:{theirs}:pull", f"repository:{ours}:pull,push")
    mount = f"blobs/uploads/?mount={digest}&from={theirs}"

    token = running.world.token(OTHER)
    assert running.as_(token, "POST", f"/v2/{ours}/{mount}", *scopes, body=b"").status == 401
    assert running.as_(token, "GET", f"/v2/{ours}/blobs/{digest}", scopes[1]).status == 404
    # The same request of who may read the one and write the other: it is the namespace that decides.
    again = f"artifacts/{MINE}/{repository}-2"
    allowed = (f"repository:{theirs}:pull", f"repository:{again}:pull,push")
    answer = running.as_(running.world.token(MINE), "POST", f"/v2/{again}/{mount}", *allowed, body=b"")
    assert answer.status == 201


@pytest.mark.parametrize(
    "name",
    [
        "other/llama", "models", "models/", "models/../x", "artifacts", f"artifacts/{MINE}",
        f"artifacts/{MINE}/../{OTHER}/x", f"artifacts/{OTHER}/x",
        f"artifacts/{MINE}-b/x", f"artifacts//{MINE}/x", f"x/artifacts/{MINE}/y", f"artifacts/{MINE}//x",
    ],
)  # fmt: skip
def test_repositories_that_no_tenant_gets(running: Running, name: str) -> None:
    answer = running.world.ask_for(running.world.token(MINE), f"repository:{name}:pull,push")
    assert (answer.status, claims_of(answer.json["token"])["access"]) == (200, [])


def test_only_the_operator_lists_repositories_and_deletes(
    running: Running, artifact: BuildArtifact, repository: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"artifacts/{MINE}/{repository}"
    with pod(running, running.world.token(MINE), monkeypatch, tmp_path) as store:
        pushed = store.push(artifact, f"{running.registry.host}/{name}:v1")
    tenant, operator = running.world.token(MINE), running.world.token(SYSTEM, "rma-operator")
    everything = f"repository:{name}:pull,push,delete"
    assert running.as_(tenant, "GET", "/v2/_catalog", "registry:catalog:*").status == 401
    assert running.as_(tenant, "DELETE", f"/v2/{name}/manifests/{pushed.digest}", everything).status == 401
    assert name in running.as_(operator, "GET", "/v2/_catalog", "registry:catalog:*").json["repositories"]
    assert running.as_(operator, "POST", f"/v2/{name}/blobs/uploads/", everything, body=b"").status == 401
    assert running.as_(operator, "DELETE", f"/v2/{name}/manifests/{pushed.digest}", everything).status == 202
    assert running.as_(operator, "GET", f"/v2/{name}/manifests/v1", everything).status == 404
    # The same name in another namespace is nobody in particular.
    running.world.run("create", "serviceaccount", "rma-operator", "-n", OTHER)
    impostor = running.world.token(OTHER, "rma-operator")
    assert running.as_(impostor, "GET", "/v2/_catalog", "registry:catalog:*").status == 401


async def test_the_operator_finds_the_artifacts_of_every_namespace(
    running: Running, artifact: BuildArtifact, repository: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"artifacts/{MINE}/{repository}"
    with pod(running, running.world.token(MINE), monkeypatch, tmp_path) as store:
        pushed = store.push(artifact, f"{running.registry.host}/{name}:v1")
    file = tmp_path / "operator-token"
    file.write_text(running.world.token(SYSTEM, "rma-operator"))
    trust = running.world.ca.read_text()
    store_of = artifact_store.ArtifactStore
    host = running.registry.host
    for account, authority, expected in (
        (FileToken(file), trust, Presence.FOUND),
        (StaticToken("garbage"), trust, Presence.UNREACHABLE),
        (None, trust, Presence.UNREACHABLE),
        (FileToken(file), "", Presence.UNREACHABLE),
        (FileToken(tmp_path / "none"), trust, Presence.UNREACHABLE),
    ):
        client = store_of(host, plain_http=False, authority=authority, account=account)
        try:
            answer = await client.ask(name)
            assert answer.presence is expected, answer
            if expected is Presence.FOUND:
                assert (answer.digest, answer.key) == (pushed.digest, "key-1")
                assert (await client.ask(name)).presence is Presence.FOUND
                absent = await client.ask(f"artifacts/{OTHER}/none")
                assert absent.presence is Presence.ABSENT
        finally:
            await client.close()


def minted(world: World, *, lifetime: timedelta, key: ec.EllipticCurvePrivateKey | None = None, **claims: Any) -> str:
    """A token of the tenant's account as the API server would sign it, but of any age."""
    real = claims_of(world.token(MINE))
    now = datetime.now(UTC)
    times = {"iat": int(now.timestamp()) - 7200, "nbf": int(now.timestamp()) - 7200}
    body = {**real, **times, "exp": int((now + lifetime).timestamp()), **claims}
    header = json.loads(base64.urlsafe_b64decode(world.token(MINE).split(".")[0] + "=="))
    signer = key or load_pem_private_key(world.server.signing_key.read_bytes(), None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    signed = b".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (header, body))
    r, s = decode_dss_signature(signer.sign(signed, ec.ECDSA(hashes.SHA256())))
    signature = base64.urlsafe_b64encode(r.to_bytes(32, "big") + s.to_bytes(32, "big")).rstrip(b"=")
    return (signed + b"." + signature).decode()


def test_tokens_that_are_not_accepted(running: Running) -> None:
    world = running.world
    scope = f"repository:artifacts/{MINE}/x:pull"
    assert world.ask_for(minted(world, lifetime=timedelta(hours=1)), scope).status == 200, "minting works"
    world.run("create", "serviceaccount", "gone", "-n", MINE)
    gone = world.token(MINE, "gone")
    world.run("delete", "serviceaccount", "gone", "-n", MINE)
    refused = {
        "expired": minted(world, lifetime=timedelta(hours=-1)),
        "of another key": minted(world, lifetime=timedelta(hours=1), key=ec.generate_private_key(ec.SECP256R1())),
        "for the API server": world.token(MINE, audience=None),
        "for somebody else": world.token(MINE, audience="vault"),
        "of an account that is gone": gone,
        "garbage": "garbage",
        "three parts": "a.b.c",
        "of an administrator": world.server.token("admin"),
        "long": "x" * 5000,
    }
    for what, token in refused.items():
        answer = world.ask_for(token, scope)
        assert (what, answer.status) == (what, 401)
        assert token.encode() not in answer.body
    log = (world.directory / "service.log").read_text()
    assert "refused a token" in log
    assert not [what for what, token in refused.items() if len(token) > 100 and token in log], "no token is logged"


def test_requests_that_cannot_be_read(running: Running) -> None:
    world, token = running.world, running.world.token(MINE)
    answer = world.ask_for(None)
    assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, 'Basic realm="ServiceAccount token"')
    assert world.ask_for(token, service="elsewhere").status == 400
    for scope in ("x", "repository:a", "repository::pull", "repository:a:PULL", "a:b:c:d"):
        assert (scope, world.ask_for(token, scope).status) == (scope, 400)
    assert world.ask_for(token, *(f"repository:artifacts/{MINE}/x{number}:pull" for number in range(17))).status == 400
    url = f"https://127.0.0.1:{world.port}/token?service={SERVICE}"
    for shown in ("Basic", "Basic !!!", "Basic " + base64.b64encode(b"nocolon").decode(), "Bearer x", "Basic /w=="):
        assert (shown, world.send("GET", url, {"Authorization": shown}).status) == (shown, 401)


def test_the_registry_believes_nobody_but_the_service(running: Running, repository: str, tmp_path: Path) -> None:
    world, name = running.world, f"artifacts/{MINE}/{repository}"
    path = f"https://{running.registry.host}/v2/{name}/tags/list"
    access = [Access("repository", name, frozenset({"pull"}))]
    now = int(time.time())

    def status(token: str) -> int:
        return world.send("GET", path, {"Authorization": f"Bearer {token}"}).status

    def signer(pair: KeyPair, audience: str = SERVICE) -> Signer:
        return Signer.load(pair.key, pair.certificate, audience=audience)

    good = signer(world.signing).sign("me", access, now=now)
    assert status(good) == 404, "there is no such repository, and it says so to who may know"
    header, payload, signature = good.split(".")
    widened = {**claims_of(good), "access": [{"type": "repository", "name": name, "actions": ["pull", "push"]}]}
    changed = base64.urlsafe_b64encode(json.dumps(widened).encode()).rstrip(b"=").decode()
    none = base64.urlsafe_b64encode(b'{"typ":"JWT","alg":"none"}').rstrip(b"=").decode()
    forged = {
        "changed": f"{header}.{changed}.{signature}",
        "unsigned": f"{none}.{payload}.",
        "of the certificate that TLS is spoken with": signer(world.tls).sign("me", access, now=now),
        "of a key of their own": signer(signing_pair(tmp_path)).sign("me", access, now=now),
        "for another registry": signer(world.signing, "elsewhere").sign("me", access, now=now),
        "of yesterday": signer(world.signing).sign("me", access, now=now - 86400),
        "a ServiceAccount's": world.token(MINE),
    }
    for what, token in forged.items():
        assert (what, status(token)) == (what, 401)


def test_the_registry_may_be_started_again(
    world: World, running: Running, artifact: BuildArtifact, repository: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    name = f"artifacts/{MINE}/{repository}"
    with pod(running, world.token(MINE), monkeypatch, tmp_path) as store:
        pushed = store.push(artifact, f"{running.registry.host}/{name}:v1")
    granted = world.ask_for(world.token(MINE), f"repository:{name}:pull").json["token"]
    with world.registry() as again:
        # Another process over the same storage: nothing that a token depends on is in its memory.
        headers = {"Authorization": f"Bearer {granted}"}
        assert world.send("GET", f"https://{again.host}/v2/{name}/tags/list", headers).json["tags"] == ["v1"]
        with pod(Running(world, again), world.token(MINE), monkeypatch, tmp_path) as store:
            store.pull(f"{again.host}/{name}@{pushed.digest}", tmp_path / "dest", key="key-1")


@contextmanager
def moved(world: World) -> Iterator[World]:
    """The same world with the service at a port where nothing listens yet."""
    before, world.port = world.port, free_port()
    try:
        yield world
    finally:
        world.port = before


def test_without_the_service_it_is_worth_another_try(
    running: Running, artifact: BuildArtifact, repository: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = running.world.token(MINE)
    with moved(running.world) as world, world.registry() as registry:
        reference = f"{registry.host}/artifacts/{MINE}/{repository}:v1"
        with pod(Running(world, registry), token, monkeypatch, tmp_path) as store:
            with pytest.raises(SourceUnreachable, match=f"127.0.0.1:{world.port} does not answer") as down:
                store.push(artifact, reference)
            assert (down.value.reason, down.value.code) == (Reason.STORE_UNREACHABLE, names.ExitCode.SOURCE_UNREACHABLE)
            # There, but the API server does not say whose the token is.
            config = yaml.safe_load(world.kubeconfig.read_text())
            config["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{free_port()}"
            cut_off = tmp_path / "cut-off.kubeconfig"
            cut_off.write_text(yaml.safe_dump(config))
            with world.service(cut_off):
                answer = world.ask_for(token, "repository:artifacts/x/y:pull")
                assert (answer.status, answer.headers["Retry-After"]) == (503, "2")
                with pytest.raises(SourceUnreachable, match="cannot answer now") as deaf:
                    store.push(artifact, reference)
                assert deaf.value.code is names.ExitCode.SOURCE_UNREACHABLE
            with world.service(world.service_kubeconfig()):
                store.push(artifact, reference)


def rendered(world: World) -> str:
    """What an upgrade would apply: helm looks at what the cluster has."""
    return subprocess.run(
        [
            str(world.helm), "template", "rma", str(CHART), "--namespace", SYSTEM, "--dry-run=server",
            "--kubeconfig", str(world.kubeconfig),
        ],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip


def rendered_secrets(world: World, of: str = "rma-registry") -> dict[str, dict[str, str]]:
    """Keys and certificates after an upgrade."""
    found = [obj for obj in yaml.safe_load_all(rendered(world)) if obj and obj["kind"] == "Secret"]
    world.run("apply", "-n", SYSTEM, "-f", "-", stdin=yaml.safe_dump_all(found))
    named = {obj["metadata"]["name"]: obj["data"] for obj in found}
    return {name.removeprefix(f"{of}-"): data for name, data in named.items() if name.startswith(f"{of}-")}


def certificate(secrets: dict[str, dict[str, str]], name: str, key: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(base64.b64decode(secrets[name][key]))


def test_an_upgrade_keeps_keys_and_certificates_and_makes_what_is_missing(world: World) -> None:
    first = rendered_secrets(world)
    assert first.keys() == {"ca", "tls", "signing"}
    assert rendered_secrets(world) == first
    # Serving pods remember the authority: other certificates are of the same one.
    world.run("delete", "secret", "rma-registry-tls", "rma-registry-signing", "-n", SYSTEM)
    second = rendered_secrets(world)
    assert second["ca"] == first["ca"]
    assert second["tls"]["ca.crt"] == first["tls"]["ca.crt"]
    assert second["tls"]["tls.key"] != first["tls"]["tls.key"]
    assert second["signing"]["tls.key"] != first["signing"]["tls.key"]
    certificate(second, "tls", "tls.crt").verify_directly_issued_by(certificate(second, "ca", "ca.crt"))
    # Without the authority's key nothing more can be signed by it, so the certificates are of another one.
    world.run("delete", "secret", "rma-registry-ca", "-n", SYSTEM)
    third = rendered_secrets(world)
    assert third["tls"]["ca.crt"] == third["ca"]["ca.crt"] != first["ca"]["ca.crt"]
    assert third["signing"] == second["signing"]


def grown_old(world: World, of: str) -> None:
    """The chart's certificates in the cluster as they are after three quarters of their lives."""
    secrets = rendered_secrets(world, of)
    ca, leaf = certificate(secrets, "ca", "ca.crt"), certificate(secrets, "tls", "tls.crt")
    ca_key, key = (
        cast("ec.EllipticCurvePrivateKey", load_pem_private_key(base64.b64decode(secrets[name][entry]), None))
        for name, entry in (("ca", "ca.key"), ("tls", "tls.key"))
    )
    now = datetime.now(UTC)
    old = again(ca, ca_key, ca, ca_key, now - timedelta(days=3650 * 3 / 4))
    served = again(leaf, key, old, ca_key, now - timedelta(days=730 * 3 / 4))
    pem = {
        name: base64.b64encode(each.public_bytes(serialization.Encoding.PEM)).decode()
        for name, each in (("ca.crt", old), ("tls.crt", served))
    }
    for name, data in (("ca", {"ca.crt": pem["ca.crt"]}), ("tls", pem)):
        patch = json.dumps({"data": data})
        world.run("patch", "secret", f"{of}-{name}", "-n", SYSTEM, "--type=merge", "-p", patch)


@pytest.mark.parametrize(
    ("of", "described"), [("rma-registry", ("rma-store",)), ("rma-remote", ())], ids=["registry", "remote"]
)
def test_certificates_of_the_chart_are_renewed_by_who_may_do_nothing_else(
    world: World, tmp_path: Path, of: str, described: tuple[str, ...]
) -> None:
    account = f"{of}-certificates"
    objects = list(yaml.safe_load_all(rendered(world)))
    found = [obj for obj in objects if obj and obj["metadata"]["name"] == account and obj["kind"] != "CronJob"]
    world.run("apply", "-n", SYSTEM, "-f", "-", stdin=yaml.safe_dump_all(found))
    grown_old(world, of)
    before = rendered_secrets(world, of)
    config = yaml.safe_load(world.kubeconfig.read_text())
    config["users"][0]["user"] = {"token": world.token(SYSTEM, account, None)}
    file = tmp_path / "kubeconfig"
    file.write_text(yaml.safe_dump(config))
    flags = [f"--namespace={SYSTEM}", f"--kubeconfig={file}", *(f"--description={each}" for each in described)]

    def run(authority: str = f"{of}-ca") -> "subprocess.CompletedProcess[str]":
        module = [sys.executable, "-m", "rm_operator.registry_auth.certificates"]
        return subprocess.run(
            [*module, *flags, f"--authority={authority}", f"--served={of}-tls"],
            capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip

    done = run()
    assert done.returncode == 0, done.stderr
    after = rendered_secrets(world, of)
    assert after["ca"]["ca.crt"] == after["tls"]["ca.crt"] != before["ca"]["ca.crt"]
    assert after["tls"]["tls.crt"] != before["tls"]["tls.crt"]
    for name, key in (("ca", "ca.key"), ("tls", "tls.key")):
        assert after[name][key] == before[name][key]
    certificate(after, "tls", "tls.crt").verify_directly_issued_by(certificate(after, "ca", "ca.crt"))
    for name in described:
        data = yaml.safe_load(world.run("get", "configmap", name, "-n", SYSTEM, "-o", "yaml"))["data"]
        assert data["ca.crt"].encode() == base64.b64decode(after["ca"]["ca.crt"])
        assert data["tokenAudience"] == names.REGISTRY_AUDIENCE, "what else is said there stays"
        world.install()
    # The week after.
    again_ = run()
    assert (again_.returncode, "nothing is due" in again_.stderr) == (0, True)
    assert rendered_secrets(world, of) == after
    other = run("rma-registry-signing")
    assert (other.returncode, "forbidden" in other.stderr.lower()) == (1, True), "it sees no other Secret"
    assert "PRIVATE" not in "".join(each.stderr + each.stdout for each in (done, again_, other))


@pytest.fixture
def as_installed(world: World, running: Running, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """The store by the names that it has in a cluster, which nothing on this machine resolves."""
    with world.registry(f"rma-registry-auth.{SYSTEM}.svc:5001") as registry:
        ports = {5000: int(registry.host.rpartition(":")[2]), 5001: world.port}

        # There is no kubelet here that could forward one.
        @contextmanager
        def forwarded(_self: Kubectl, _target: str, port: int) -> Iterator[int]:
            yield ports[port]

        monkeypatch.setattr(Kubectl, "port_forward", forwarded)
        yield Cluster("tests", "existing", world.kubeconfig, Path(world.kubectl), Path(world.helm))


def test_what_an_administrator_pushes_from_outside_all_read_and_none_replace(
    as_installed: Cluster, running: Running, tmp_path: Path
) -> None:
    world = running.world
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    source = release.ModelRegistry(as_installed).push(tmp_path / "model", "models/a", "1")
    assert source == f"oci://rma-registry.{SYSTEM}.svc:5000/models/a:1"
    everything = "repository:models/a:pull,push,delete"
    for who, method, path, status in (
        (world.token(MINE), "GET", "tags/list", 200),
        (world.token(OTHER), "GET", "tags/list", 200),
        (world.token(MINE), "POST", "blobs/uploads/", 401),
        (world.token(MINE), "PUT", "manifests/1", 401),
        (world.token(SYSTEM, "rma-operator"), "POST", "blobs/uploads/", 401),
        (world.token(SYSTEM, PUBLISHER), "POST", "blobs/uploads/", 202),
        (world.token(SYSTEM, ADMINISTRATOR), "DELETE", "manifests/1", 401),
    ):
        body = b"" if method in ("POST", "PUT") else None
        answer = running.as_(who, method, f"/v2/models/a/{path}", everything, body=body)
        assert (method, path, answer.status) == (method, path, status)


def test_an_administrator_moves_artifacts_of_any_namespace_from_outside(
    as_installed: Cluster, running: Running, artifact: BuildArtifact, repository: str, tmp_path: Path
) -> None:
    kubectl = Kubectl(as_installed)
    store = Store.find(kubectl)
    assert store is not None
    assert store.authority == running.world.ca.read_text(), "from the Secret, where the chart has not made it"
    reference = f"{store.host}/artifacts/{OTHER}/{repository}"
    with store.reached(kubectl) as variables, applied(variables), ArtifactStore() as client:
        file = Path(variables[names.ENV_REGISTRY_TOKEN_FILE])
        pushed = client.push(artifact, f"{reference}:v1")
        client.pull(f"{reference}@{pushed.digest}", tmp_path / "dest", key="key-1")
        with pytest.raises(BadInput, match="what belongs to its own namespace"):
            client.push(artifact, f"{store.host}/elsewhere/{repository}:v1")
        assert file.parent.stat().st_mode & 0o077 == 0, "nobody else on this machine reads the token"
    assert not file.exists()
    assert (tmp_path / "dest/model.bin").read_bytes() == (artifact.path / "model.bin").read_bytes()
