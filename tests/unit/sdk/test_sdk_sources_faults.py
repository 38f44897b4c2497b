"""The hub, its redirects, branches and mirrors; and several fetches at once."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import unquote

import pytest
from rm_abstract.core.errors import ArtifactMismatch, BadInput
from rm_abstract.sources import fetch_model, resolve_model
from sdk_support import COMMIT, Answer, Hub, Request, WebServer, ranged

WEIGHTS = "model.safetensors"


@pytest.fixture(params=["https", "hf"])
def uri(request: pytest.FixtureRequest, web: WebServer, model: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The model at each kind of server."""
    if request.param == "hf":
        monkeypatch.setenv("HF_ENDPOINT", f"http://{web.host}")
        Hub(web, model)
        return "hf://org/tiny"
    web.serve_directory(model)
    return f"https://{web.host}/"


def left(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


def test_several_at_once_do_not_disturb_each_other(uri: str, model: Path, tmp_path: Path) -> None:
    facts = resolve_model(uri)

    def fetch(number: int) -> dict[str, bytes]:
        destination = tmp_path / f"dest-{number}"
        fetch_model(uri, facts["revision"], facts["weightsDigest"], destination)
        return {path.name: path.read_bytes() for path in destination.iterdir() if path.is_file()}

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(fetch, range(4)))
    assert found == [{path.name: path.read_bytes() for path in model.iterdir()}] * 4


def test_the_hub_may_keep_files_elsewhere_and_the_token_does_not_go_there(
    new_web_server: Callable[[], WebServer], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large files are on another host, to which the hub redirects with a signed address."""
    front, elsewhere = new_web_server(), new_web_server()
    monkeypatch.setenv("RMA_PLAIN_HTTP_HOSTS", f"{front.host},{elsewhere.host}")
    monkeypatch.setenv("HF_ENDPOINT", f"http://{front.host}")
    (tmp_path / "netrc").write_text(f"machine {front.host} login me password hf_secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    hub = Hub(front, model, token="hf_secret")

    def answer(request: Request) -> Answer:
        found = hub.answer(request)
        if found.status in (200, 206) and request.path.endswith(WEIGHTS):
            size = (model / WEIGHTS).stat().st_size
            where = f"http://{elsewhere.host}/blobs/weights?signature=x"
            linked = {"X-Linked-Size": str(size), "X-Linked-Etag": found.headers["ETag"], "X-Repo-Commit": COMMIT}
            return Answer(302, b"", {"Location": where, **linked})
        return found

    front.answer = answer
    elsewhere.answer = lambda request: ranged(request, (model / WEIGHTS).read_bytes(), {"ETag": '"blob"'})
    facts = resolve_model("hf://org/tiny", "main")
    fetch_model("hf://org/tiny", facts["revision"], facts["weightsDigest"], tmp_path / "dest")
    assert (tmp_path / "dest" / WEIGHTS).read_bytes() == (model / WEIGHTS).read_bytes()
    assert elsewhere.requests
    assert not [r for r in elsewhere.requests if "hf_secret" in str(r.headers) or "authorization" in r.headers]
    assert all(r.headers.get("authorization") == "Bearer hf_secret" for r in front.requests)


def test_a_branch_is_pinned_to_the_commit_that_it_has_now(
    web: WebServer, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is fetched is asked for by the commit, never by the branch, which may be another one by then."""
    monkeypatch.setenv("HF_ENDPOINT", f"http://{web.host}")
    Hub(web, model)
    facts = resolve_model("hf://org/tiny", "main")
    assert facts["revision"] == COMMIT
    web.requests.clear()
    fetch_model("hf://org/tiny", facts["revision"], facts["weightsDigest"], tmp_path / "dest")
    paths = [unquote(request.path) for request in web.requests]
    assert paths
    assert not [path for path in paths if "/main" in path]


@pytest.mark.parametrize(
    ("status", "netrc", "message"),
    [
        (401, False, "accept its terms there, and put an entry for machine 127.0.0.1 with a token"),
        (403, True, "the account of the token in the netrc has not been let in; accept its terms there"),
    ],
)
def test_a_gated_model_says_what_is_missing(
    web: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, netrc: bool, message: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"http://{web.host}")
    if netrc:
        (tmp_path / "netrc").write_text(f"machine {web.host} login me password hf_secret\n")
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    web.answer = lambda _request: Answer(status, b"{}", {"X-Error-Code": "GatedRepo"})
    with pytest.raises(BadInput, match=message) as raised:
        resolve_model("hf://org/tiny")
    assert "is gated" in str(raised.value)
    assert "hf_secret" not in str(raised.value)


def test_a_mirror_that_has_another_model_under_the_same_name_is_found_out(
    new_web_server: Callable[[], WebServer], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The endpoint is the installation's; what it has is checked against what was resolved."""
    hub, mirror = new_web_server(), new_web_server()
    monkeypatch.setenv("RMA_PLAIN_HTTP_HOSTS", f"{hub.host},{mirror.host}")
    Hub(hub, model)
    monkeypatch.setenv("HF_ENDPOINT", f"http://{hub.host}")
    facts = resolve_model("hf://org/tiny")
    other = tmp_path / "other"
    other.mkdir()
    for path in model.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    raw = bytearray((other / WEIGHTS).read_bytes())
    raw[-1] ^= 1
    (other / WEIGHTS).write_bytes(raw)
    Hub(mirror, other)
    monkeypatch.setenv("HF_ENDPOINT", f"http://{mirror.host}")
    with pytest.raises(ArtifactMismatch, match="the weights of hf://org/tiny have digest"):
        fetch_model("hf://org/tiny", COMMIT, facts["weightsDigest"], tmp_path / "dest")
    assert not left(tmp_path / "dest")


def test_a_hub_without_tls_is_asked_nothing_unless_it_is_named_as_such(
    web: WebServer, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's own client would send the token in plain text."""
    Hub(web, model, token="hf_secret")
    (tmp_path / "netrc").write_text(f"machine {web.host} login me password hf_secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HF_ENDPOINT", f"http://{web.host}")
    monkeypatch.delenv("RMA_PLAIN_HTTP_HOSTS")
    with pytest.raises(BadInput, match=f"{web.host} was reached without TLS"):
        resolve_model("hf://org/tiny")
    assert not web.requests
