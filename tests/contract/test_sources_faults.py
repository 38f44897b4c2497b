"""Each kind of source against each fault: what is told, that nothing is left half done, and whom credentials go to.

The registry and the server of buckets are real ones; the others are a web server, and one that speaks the hub's API. A
proxy before them does what goes wrong. A volume knows no network: only what can go wrong with files.
"""

import hashlib
import json
import os
import struct
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from faulty_proxy import Fault, FaultyProxy, Headers, faulty_proxy
from registry_server import running_registry
from rm_abstract.core.errors import ArtifactMismatch, BadInput, SourceUnreachable, WorkloadError
from rm_abstract.s3 import S3
from rm_abstract.sources import fetch_model, resolve_model
from rm_abstract.store import push_model
from s3_server import RunningS3, running_s3

sys.path.append(str(Path(__file__).parents[1] / "unit/sdk"))

from sdk_support import COMMIT, Hub, WebServer, ranged, running_web_server

SIZE = 3 << 20
WEIGHTS = "model.safetensors"
AGAIN_AND_AGAIN = 1000


@dataclass
class Place:
    """Where the model is."""

    uri: str
    path: str
    """How the path of a request for the weights looks."""
    proxy: FaultyProxy


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of some megabytes, no two parts of which are alike."""
    directory = tmp_path_factory.mktemp("model")
    config = {
        "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32,
        "max_position_embeddings": 128,
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config))
    header = json.dumps({"w": {"dtype": "U8", "shape": [SIZE], "data_offsets": [0, SIZE]}}).encode()
    (directory / WEIGHTS).write_bytes(
        struct.pack("<Q", len(header)) + header + hashlib.shake_256(b"weights").digest(SIZE)
    )
    return directory


@pytest.fixture(scope="module")
def elsewhere(model: Path) -> Iterator[WebServer]:
    """Another host that has the weights, too."""
    with running_web_server() as web:
        web.answer = lambda request: ranged(request, (model / WEIGHTS).read_bytes(), {"ETag": '"there"'})
        yield web


@pytest.fixture(scope="module")
def places(model: Path, elsewhere: WebServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Place]]:
    """Where it is, by scheme; for each host that is a server's there are credentials."""
    root = tmp_path_factory.mktemp("servers")
    for name in ("s3", "claim"):
        (root / name).mkdir()
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        registry = stack.enter_context(running_registry(root))
        buckets = stack.enter_context(running_s3(root / "s3"))
        web, hub = stack.enter_context(running_web_server()), stack.enter_context(running_web_server())
        web.serve_directory(model)
        Hub(hub, model)
        proxies = {
            scheme: stack.enter_context(faulty_proxy(host))
            for scheme, host in {"oci": registry.host, "s3": buckets.host, "https": web.host, "hf": hub.host}.items()
        }
        known = [registry.host, buckets.host, elsewhere.host, *(proxy.host for proxy in proxies.values())]
        patch.setenv("RMA_PLAIN_HTTP_HOSTS", ",".join(known))
        patch.setenv("HF_ENDPOINT", f"http://{proxies['hf'].host}")
        patch.setenv("RMA_PVC_DIR", str(root))
        (root / "netrc").write_text("".join(f"machine {p.host} login me password hush\n" for p in proxies.values()))
        patch.setenv("NETRC", str(root / "netrc"))
        patch.delenv("AWS_PROFILE", raising=False)
        seen = RunningS3(proxies["s3"].host, buckets.buckets)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(seen.credentials_file(root / "aws")))
        push_model(model, f"oci://{registry.host}/models/big:v1")
        buckets.make_bucket("models")
        weights = hashlib.sha256((model / WEIGHTS).read_bytes()).hexdigest()
        with S3(buckets.account) as s3:
            for path in model.iterdir():
                content = path.read_bytes()
                digest = "sha256:" + hashlib.sha256(content).hexdigest()
                s3.put("models", f"big/{path.name}", content, size=len(content), digest=digest)
        yield {
            "oci": Place(f"oci://{proxies['oci'].host}/models/big:v1", f"/blobs/sha256:{weights}", proxies["oci"]),
            "s3": Place("s3://models/big", f"/big/{WEIGHTS}", proxies["s3"]),
            "https": Place(f"https://{proxies['https'].host}/", f"/{WEIGHTS}", proxies["https"]),
            "hf": Place("hf://org/tiny", f"/resolve/{COMMIT}/{WEIGHTS}", proxies["hf"]),
        }


SCHEMES = pytest.mark.parametrize("scheme", ["oci", "s3", "https", "hf"])


@pytest.fixture
def place(scheme: str, places: dict[str, Place], elsewhere: WebServer) -> Iterator[Place]:
    """One of them, with which nothing is wrong yet."""
    found = places[scheme]
    found.proxy.hits = found.proxy.credentials = 0
    found.proxy.ranges.clear()
    elsewhere.requests.clear()
    yield found
    found.proxy.faults.clear()


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def fetch(uri: str, facts: dict[str, str], destination: Path) -> None:
    fetch_model(uri, facts["revision"], facts["weightsDigest"], destination)


def half(headers: Headers, body: bytes) -> tuple[Headers, bytes]:
    """As of a proxy that has kept a part of a file, and takes that for all of it."""
    return headers, body[: len(body) // 2]


def other(headers: Headers, body: bytes) -> tuple[Headers, bytes]:
    """As large, and something else."""
    return headers, body[:-1] + bytes([body[-1] ^ 1])


SHORT = r"was announced with|but has size|broke off|bytes|digest"
DIFFERENT = r"digest|gave other bytes"


@SCHEMES
@pytest.mark.parametrize(("lie", "says"), [(half, SHORT), (other, DIFFERENT)], ids=["truncated", "another digest"])
def test_what_is_not_what_was_announced_is_never_there(place: Place, tmp_path: Path, lie: object, says: str) -> None:
    facts = resolve_model(place.uri)
    place.proxy.faults.append(Fault("GET", place.path, times=AGAIN_AND_AGAIN, lie=lie))  # type: ignore[arg-type]
    with pytest.raises((ArtifactMismatch, SourceUnreachable), match=says):
        fetch(place.uri, facts, tmp_path / "dest")
    assert place.proxy.hits
    assert not files(tmp_path / "dest")


@SCHEMES
def test_a_connection_that_breaks_once_is_gone_on_with(place: Place, scheme: str, model: Path, tmp_path: Path) -> None:
    facts = resolve_model(place.uri)
    place.proxy.ranges.clear()
    place.proxy.faults.append(Fault("GET", place.path, cut_answer_after=1_500_000))
    fetch(place.uri, facts, tmp_path / "dest")
    assert files(tmp_path / "dest") == files(model)
    assert place.proxy.hits == 1
    # The hub's own client goes on in pieces of 10 MiB, and so begins this file anew.
    if scheme != "hf":
        first = [int(each.removeprefix("bytes=").partition("-")[0]) for each in place.proxy.ranges]
        assert max(first) >= 1_000_000, "what was there already is not read again"


@SCHEMES
def test_a_connection_that_always_breaks_ends_with_the_host_and_leaves_nothing(place: Place, tmp_path: Path) -> None:
    facts = resolve_model(place.uri)
    place.proxy.faults.append(Fault("GET", place.path, times=AGAIN_AND_AGAIN, cut_answer_after=0))
    with pytest.raises(SourceUnreachable, match=place.proxy.host):
        fetch(place.uri, facts, tmp_path / "dest")
    assert not files(tmp_path / "dest")


@SCHEMES
def test_a_redirect_to_another_host_takes_no_credentials_there(
    place: Place, scheme: str, elsewhere: WebServer, model: Path, tmp_path: Path
) -> None:
    """Registries and hubs keep large files elsewhere. A server of buckets that does so means another region."""
    facts = resolve_model(place.uri)
    place.proxy.credentials = 0
    lead = Fault("GET", place.path, AGAIN_AND_AGAIN, status=307, location=f"http://{elsewhere.host}/signed?signature=x")
    place.proxy.faults.append(lead)
    if scheme == "s3":
        with pytest.raises(BadInput, match="in another region, or at another endpoint"):
            fetch(place.uri, facts, tmp_path / "dest")
        assert not files(tmp_path / "dest")
        assert not elsewhere.requests
    else:
        fetch(place.uri, facts, tmp_path / "dest")
        assert files(tmp_path / "dest") == files(model)
        assert elsewhere.requests
    assert not [request for request in elsewhere.requests if "authorization" in request.headers]
    # A registry that asks for none is shown none; the other ones were.
    assert bool(place.proxy.credentials) is (scheme != "oci")


FULL = textwrap.dedent("""
    import resource, sys
    from pathlib import Path
    from rm_abstract.core.errors import Transient
    from rm_abstract.sources import fetch_model

    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    try:
        fetch_model(sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4]))
    except Transient as error:
        print(error)
""")


def fetched_to_a_full_disk(uri: str, facts: dict[str, str], destination: Path) -> str:
    arguments = [uri, facts["revision"], facts["weightsDigest"], str(destination)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", FULL, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    return done.stdout + done.stderr


@SCHEMES
def test_a_disk_that_is_full_is_told_with_the_size_and_left_empty(place: Place, model: Path, tmp_path: Path) -> None:
    facts = resolve_model(place.uri)
    size = sum(map(len, files(model).values()))
    said = fetched_to_a_full_disk(place.uri, facts, tmp_path / "dest")
    assert f"has no room for the model of {size} bytes; give it more space" in said
    assert not files(tmp_path / "dest")


@pytest.fixture
def claim(places: dict[str, Place], model: Path) -> Path:
    """The model in a volume, which is there afresh."""
    assert places
    directory = Path(os.environ["RMA_PVC_DIR"]) / "claim" / "m"
    directory.mkdir(exist_ok=True)
    for name, content in files(model).items():
        (directory / name).write_bytes(content)
    return directory


@pytest.mark.parametrize("lie", [half, other], ids=["truncated", "another digest"])
def test_a_file_of_a_volume_that_is_another_one_than_was_resolved(claim: Path, tmp_path: Path, lie: object) -> None:
    facts = resolve_model("pvc://claim/m")
    path = claim / WEIGHTS
    path.write_bytes(lie([], path.read_bytes())[1])  # type: ignore[operator]
    with pytest.raises(WorkloadError, match=r"has changed|bytes|end"):
        fetch("pvc://claim/m", facts, tmp_path / "dest")
    assert not files(tmp_path / "dest")


def test_a_disk_that_is_too_small_for_what_is_in_a_volume(claim: Path, tmp_path: Path) -> None:
    facts = resolve_model("pvc://claim/m")
    size = sum(map(len, files(claim).values()))
    said = fetched_to_a_full_disk("pvc://claim/m", facts, tmp_path / "dest")
    assert f"has no room for the model of {size} bytes; give it more space" in said
    assert not files(tmp_path / "dest")
