"""Models from web servers and the hub: what is reported of them, and how they are fetched."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rm_abstract.core.errors import ArtifactMismatch, BadInput, SourceUnreachable, WorkloadError
from rm_abstract.sources import fetch_model, resolve_model
from rm_abstract.sources.inputs import fetch_input, files_digest
from rm_api.conditions import Reason
from rm_api.kinds.model_deployment import ModelFacts
from sdk_support import COMMIT, Answer, Hub, Request, WebServer, safetensors


def edit(model: Path, **changes: Any) -> None:
    config = {**json.loads((model / "config.json").read_text()), **changes}
    (model / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def test_facts_of_a_model_on_a_web_server(web: WebServer, model: Path) -> None:
    web.serve_directory(model, "/models/tiny/")
    uri = f"https://{web.host}/models/tiny/"
    facts = resolve_model(uri)
    checked = ModelFacts.model_validate(facts)
    assert (checked.architecture, checked.dtype, checked.parameters, checked.active_parameters) == (
        "LlamaForCausalLM", "bf16", 544, 544,
    )  # fmt: skip
    assert (checked.layers, checked.heads, checked.kv_heads, checked.head_dim) == (2, 4, 2, 8)
    assert (checked.max_sequence_length, checked.weight_bytes) == (128, 1088)
    weights = "sha256:" + hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()
    listing = json.dumps([["model.safetensors", weights]], separators=(",", ":"))
    assert checked.weights_digest == "sha256:" + hashlib.sha256(listing.encode()).hexdigest()
    assert facts == resolve_model(uri, facts["revision"])


DIGESTS = ("configDigest", "tensorsDigest", "weightsDigest")


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        (lambda model: edit(model, transformers_version="9.9.9", _name_or_path="/elsewhere"), set()),
        (lambda model: edit(model, rope_theta=1e6), {"configDigest"}),
        (lambda model: (model / "tokenizer_config.json").write_text('{"chat_template": "{}"}'), {"configDigest"}),
        (lambda model: (model / "README.md").write_text("new"), set()),
        (
            lambda model: (model / "model.safetensors").write_bytes(
                (model / "model.safetensors").read_bytes()[:-1] + b"\xff"
            ),
            {"weightsDigest"},
        ),
        (
            lambda model: (model / "model.safetensors").write_bytes(
                safetensors({"embed.weight": ("BF16", [32, 16], 1024), "norm.weight": ("BF16", [32], 64)})
            ),
            {"tensorsDigest", "weightsDigest"},
        ),
    ],
    ids=["where it came from", "config", "chat template", "readme", "weights", "shape"],
)
def test_digests_change_with_what_matters_and_nothing_else(
    web: WebServer, model: Path, change: Callable[[Path], object], changed: set[str]
) -> None:
    web.serve_directory(model)
    before = resolve_model(f"https://{web.host}/")
    change(model)
    after = resolve_model(f"https://{web.host}/")
    assert {name for name in DIGESTS if before[name] != after[name]} == changed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": None}, "lacks num_hidden_layers"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"num_attention_heads": "four"}, "num_attention_heads is 'four'"),
        ({"max_position_embeddings": None}, "lacks max_position_embeddings"),
        ({"architectures": []}, "names no architecture"),
        ({"architectures": ["A" * 2000]}, "names no architecture"),
        ({"architectures": ["not a name\n"]}, "names no architecture"),
    ],
)
def test_a_config_that_says_too_little_is_refused(
    web: WebServer, model: Path, changes: dict[str, Any], message: str
) -> None:
    web.serve_directory(model)
    edit(model, **changes)
    with pytest.raises(BadInput, match=message) as raised:
        resolve_model(f"https://{web.host}/")
    assert raised.value.reason is Reason.SOURCE_INVALID


def test_figures_go_by_other_names_in_other_families(web: WebServer, model: Path) -> None:
    web.serve_directory(model)
    (model / "config.json").write_text(
        json.dumps({"architectures": ["GPT2LMHeadModel"], "n_layer": 3, "n_head": 2, "n_embd": 32, "n_positions": 64})
    )
    facts = resolve_model(f"https://{web.host}/")
    assert [facts[name] for name in ("layers", "heads", "kvHeads", "headDim", "maxSequenceLength")] == [3, 2, 2, 16, 64]


def test_active_parameters_of_a_mixture_of_experts(web: WebServer, model: Path) -> None:
    web.serve_directory(model)
    edit(model, num_local_experts=4, num_experts_per_tok=1)
    tensors = {f"layers.0.experts.{n}.w": ("F16", [8, 8], 128) for n in range(4)} | {
        "shared_experts.w": ("F16", [8, 8], 128)
    }
    (model / "model.safetensors").write_bytes(safetensors(tensors))
    facts = resolve_model(f"https://{web.host}/")
    assert (facts["parameters"], facts["activeParameters"], facts["dtype"]) == (320, 128, "fp16")


def test_packed_weights_count_by_their_bits(web: WebServer, model: Path) -> None:
    web.serve_directory(model)
    edit(model, quantization_config={"quant_method": "gptq", "bits": 4})
    (model / "model.safetensors").write_bytes(
        safetensors({"a.qweight": ("I32", [4, 8], 128), "a.scales": ("F16", [8], 16)})
    )
    facts = resolve_model(f"https://{web.host}/")
    assert (facts["parameters"], facts["dtype"]) == (32 * 8 + 8, "int4")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: raw[:-1], "is damaged"),
        (lambda raw: raw + b"x", "is damaged"),
        (lambda raw: b"\xff" * 8 + raw[8:], "its header would have"),
        (lambda raw: raw[:4], "its header would have"),
        (lambda raw: raw.replace(b'"BF16"', b'"BF99"'), "which is not known"),
    ],
    ids=["truncated", "longer", "header length", "stub", "number format"],
)
def test_damaged_weights_are_refused(
    web: WebServer, model: Path, damage: Callable[[bytes], bytes], message: str
) -> None:
    web.serve_directory(model)
    path = model / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(BadInput, match=message):
        resolve_model(f"https://{web.host}/")


def shard(model: Path) -> None:
    (model / "model.safetensors").unlink()
    for number in (1, 2):
        (model / f"part-{number}.safetensors").write_bytes(safetensors({f"t{number}": ("F32", [4], 16)}))
    index = {"weight_map": {"t1": "part-1.safetensors", "t2": "part-2.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


def test_sharded_weights_are_found_by_their_index_and_fetched(web: WebServer, model: Path, tmp_path: Path) -> None:
    web.serve_directory(model)
    shard(model)
    facts = resolve_model(f"https://{web.host}/")
    assert (facts["parameters"], facts["dtype"]) == (8, "fp32")
    fetch_model(f"https://{web.host}/", facts["revision"], facts["weightsDigest"], tmp_path / "dest")
    names = {path.name for path in model.iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "dest").iterdir() if path.is_file()} == {
        name: (model / name).read_bytes() for name in names
    }


@pytest.mark.parametrize("name", ["../../etc/passwd.safetensors", "/etc/x.safetensors", "part.bin", 7])
def test_an_index_cannot_name_files_elsewhere(web: WebServer, model: Path, name: object) -> None:
    web.serve_directory(model)
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(BadInput, match=r"names|not valid"):
        resolve_model(f"https://{web.host}/")


def test_a_server_without_ranges_will_do(web: WebServer, model: Path, tmp_path: Path) -> None:
    web.serve_directory(model, ranges=False)
    facts = resolve_model(f"https://{web.host}/")
    fetch_model(f"https://{web.host}/", facts["revision"], facts["weightsDigest"], tmp_path / "dest")
    assert (tmp_path / "dest/model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()


def test_a_broken_download_is_resumed_where_it_broke(web: WebServer, model: Path) -> None:
    body = (model / "model.safetensors").read_bytes()
    web.serve_directory(model)
    whole = web.answer
    resumed = []

    def answer(request: Request) -> Answer:
        found = whole(request)
        wanted = request.headers.get("range", "")
        if request.method == "GET" and request.path.endswith(".safetensors") and (not wanted or wanted.endswith("-")):
            found.cut = len(found.body) // 2 if len(found.body) > 300 else None
            resumed.append(wanted)
        return found

    web.answer = answer
    facts = resolve_model(f"https://{web.host}/")
    weights = "sha256:" + hashlib.sha256(body).hexdigest()
    listing = json.dumps([["model.safetensors", weights]], separators=(",", ":"))
    assert facts["weightsDigest"] == "sha256:" + hashlib.sha256(listing.encode()).hexdigest()
    assert len(resumed) > 1, "the server never broke a connection, so nothing was tested"


def test_a_file_that_changed_since_it_was_resolved_is_not_fetched(web: WebServer, model: Path, tmp_path: Path) -> None:
    web.serve_directory(model)
    facts = resolve_model(f"https://{web.host}/")
    edit(model, rope_theta=5.0)
    with pytest.raises(ArtifactMismatch, match="has changed"):
        fetch_model(f"https://{web.host}/", facts["revision"], facts["weightsDigest"], tmp_path / "dest")


def test_wrong_weights_leave_nothing_behind(web: WebServer, model: Path, tmp_path: Path) -> None:
    web.serve_directory(model)
    facts = resolve_model(f"https://{web.host}/")
    with pytest.raises(ArtifactMismatch, match="the weights of"):
        fetch_model(f"https://{web.host}/", facts["revision"], "sha256:" + "0" * 64, tmp_path / "dest")
    assert not [path for path in (tmp_path / "dest").rglob("*") if path.is_file()]


def test_fetching_again_replaces_what_the_first_time_left(web: WebServer, model: Path, tmp_path: Path) -> None:
    web.serve_directory(model)
    facts = resolve_model(f"https://{web.host}/")
    destination = tmp_path / "dest"
    for _ in range(2):
        fetch_model(f"https://{web.host}/", facts["revision"], facts["weightsDigest"], destination)
        assert (destination / "config.json").is_file()
        (destination / "left-over").write_text("from a container that was killed")
    fetch_model(f"https://{web.host}/", facts["revision"], facts["weightsDigest"], destination)
    assert not (destination / "left-over").exists()


def test_a_directory_of_somebody_else_is_not_emptied(web: WebServer, model: Path, tmp_path: Path) -> None:
    web.serve_directory(model)
    facts = resolve_model(f"https://{web.host}/")
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    with pytest.raises(BadInput, match="is not empty"):
        fetch_model(f"https://{web.host}/", facts["revision"], facts["weightsDigest"], precious)
    assert (precious / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("ftp://host/model", Reason.UNKNOWN_SOURCE),
        ("model", Reason.UNKNOWN_SOURCE),
        ("https://user:secret@host/model/", Reason.SOURCE_INVALID),
        ("https://host/model/?token=x", Reason.SOURCE_INVALID),
        ("hf://../x", Reason.SOURCE_INVALID),
        ("oci://host/UPPER", Reason.SOURCE_INVALID),
        ("https://host/" + "a" * 2000, Reason.SOURCE_INVALID),
    ],
)
def test_sources_that_make_no_sense(uri: str, reason: Reason) -> None:
    with pytest.raises(BadInput) as raised:
        resolve_model(uri)
    assert raised.value.reason is reason
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("status", "expected", "message"),
    [
        (404, BadInput, "has no /config.json"),
        (401, BadInput, "netrc of the credentials Secret"),
        (403, BadInput, "netrc of the credentials Secret"),
        (429, SourceUnreachable, "cannot answer now"),
        (503, SourceUnreachable, "cannot answer now"),
    ],
)
def test_what_a_server_may_answer(web: WebServer, status: int, expected: type[WorkloadError], message: str) -> None:
    web.answer = lambda _request: Answer(status)
    with pytest.raises(expected, match=message):
        resolve_model(f"https://{web.host}/")


def test_a_server_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RMA_PLAIN_HTTP_HOSTS", "127.0.0.1:1")
    for uri in ("https://127.0.0.1:1/m/", "oci://127.0.0.1:1/m:v1"):
        with pytest.raises(SourceUnreachable, match=r"127\.0\.0\.1:1 does not answer"):
            resolve_model(uri)


def netrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    path = tmp_path / "netrc"
    path.write_text(text)
    monkeypatch.setenv("NETRC", str(path))


def test_a_credential_goes_to_its_host_only(
    new_web_server: Callable[[], WebServer], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    front, store = new_web_server(), new_web_server()
    monkeypatch.setenv("RMA_PLAIN_HTTP_HOSTS", f"{front.host},{store.host}")
    netrc(
        tmp_path, monkeypatch, f"machine {front.host} login me password secret\ndefault login all password everywhere\n"
    )
    store.serve_directory(model)

    def redirect(request: Request) -> Answer:
        if "authorization" not in request.headers:
            return Answer(401)
        return Answer(302, headers={"Location": f"http://{store.host}{request.path}"})

    front.answer = redirect
    facts = resolve_model(f"https://{front.host}/")
    assert facts["parameters"] == 544
    assert store.requests
    assert not [request for request in store.requests if "authorization" in request.headers]


def test_a_redirect_cannot_lead_to_plain_text(
    new_web_server: Callable[[], WebServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    front, elsewhere = new_web_server(), new_web_server()
    monkeypatch.setenv("RMA_PLAIN_HTTP_HOSTS", front.host)
    front.answer = lambda request: Answer(302, headers={"Location": f"http://{elsewhere.host}{request.path}"})
    with pytest.raises(BadInput, match="without TLS"):
        resolve_model(f"https://{front.host}/")
    assert not elsewhere.requests


@pytest.mark.parametrize(("content", "message"), [("machin x login y", "not a valid netrc"), (None, "does not exist")])
def test_credentials_that_cannot_be_read(
    web: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, message: str
) -> None:
    netrc(tmp_path, monkeypatch, content or "")
    if content is None:
        (tmp_path / "netrc").unlink()
    with pytest.raises(BadInput, match=message):
        resolve_model(f"https://{web.host}/")


@pytest.fixture
def hub_home(web: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"http://{web.host}")


@pytest.mark.usefixtures("hub_home")
def test_a_model_on_the_hub(web: WebServer, model: Path, tmp_path: Path) -> None:
    Hub(web, model)
    (model / "pytorch_model.bin").write_bytes(b"another format")
    (model / "original").mkdir()
    (model / "original/params.json").write_text("{}")
    facts = resolve_model("hf://org/tiny", "v1")
    ModelFacts.model_validate(facts)
    assert facts["revision"] == COMMIT
    downloaded = [
        request for request in web.requests if request.path.endswith("safetensors") and "range" not in request.headers
    ]
    assert not downloaded, "the hub knows the digest of the weights; they need not be downloaded for it"
    fetch_model("hf://org/tiny", COMMIT, facts["weightsDigest"], tmp_path / "dest")
    fetched = {
        path.relative_to(tmp_path / "dest").as_posix() for path in (tmp_path / "dest").rglob("*") if path.is_file()
    }
    assert fetched == {"config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"}


@pytest.mark.usefixtures("hub_home")
@pytest.mark.parametrize("dataset", [False, True], ids=["repository", "data set"])
def test_all_files_of_a_repository_on_the_hub_are_an_input(web: WebServer, tmp_path: Path, dataset: bool) -> None:
    contents = {
        "README.md": b"about",
        "data/train[1].bin": bytes(5000),
        ".gitattributes": b"*.bin",
        "data/a/b.txt": b"b",
    }
    for name, content in contents.items():
        path = tmp_path / "repository" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    Hub(web, tmp_path / "repository", dataset=dataset)
    uri = "hf://datasets/org/tiny" if dataset else "hf://org/tiny"
    digest = files_digest({name: "sha256:" + hashlib.sha256(raw).hexdigest() for name, raw in contents.items()})
    assert fetch_input(uri, digest, tmp_path / "dest") == sum(map(len, contents.values()))
    found = {path.relative_to(tmp_path / "dest").as_posix(): path for path in (tmp_path / "dest").rglob("*")}
    assert {name: path.read_bytes() for name, path in found.items() if path.is_file()} == contents
    (tmp_path / "repository/README.md").write_text("another")
    with pytest.raises(ArtifactMismatch, match=f"not {digest}"):
        fetch_input(uri, digest, tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.mark.usefixtures("hub_home")
def test_the_same_model_has_the_same_digests_wherever_it_is(web: WebServer, model: Path) -> None:
    Hub(web, model)
    on_the_hub = resolve_model("hf://org/tiny")
    web.serve_directory(model)
    on_a_server = resolve_model(f"https://{web.host}/")
    assert {name: on_the_hub[name] for name in DIGESTS} == {name: on_a_server[name] for name in DIGESTS}


@pytest.mark.usefixtures("hub_home")
def test_a_gated_model_needs_the_token_of_the_netrc(
    web: WebServer, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Hub(web, model, token="hf_right")
    with pytest.raises(BadInput, match="needs credentials"):
        resolve_model("hf://org/tiny")
    netrc(tmp_path, monkeypatch, f"machine {web.host} login me password hf_right\n")
    facts = resolve_model("hf://org/tiny")
    fetch_model("hf://org/tiny", COMMIT, facts["weightsDigest"], tmp_path / "dest")
    assert (tmp_path / "dest/config.json").is_file()


@pytest.mark.usefixtures("hub_home")
def test_what_the_hub_does_not_have(web: WebServer, model: Path) -> None:
    Hub(web, model)
    with pytest.raises(BadInput, match="no such revision"):
        resolve_model("hf://org/tiny", "v9")
    with pytest.raises(BadInput, match="does not exist"):
        resolve_model("hf://org/other")


@pytest.mark.usefixtures("hub_home")
def test_a_hub_that_is_down(web: WebServer) -> None:
    web.answer = lambda _request: Answer(503)
    with pytest.raises(SourceUnreachable, match="cannot answer now"):
        resolve_model("hf://org/tiny")


@pytest.mark.usefixtures("hub_home")
def test_a_model_that_the_hub_serves_otherwise_than_it_says(web: WebServer, model: Path, tmp_path: Path) -> None:
    hub = Hub(web, model)
    facts = resolve_model("hf://org/tiny")
    listed = hub._sibling(model / "model.safetensors")
    other = tmp_path / "other"
    shutil.copytree(model, other)
    raw = bytearray((other / "model.safetensors").read_bytes())
    raw[-1] ^= 1
    (other / "model.safetensors").write_bytes(raw)
    lying = Hub(web, other)
    honest = lying._sibling
    lying._sibling = lambda path: listed if path.name == "model.safetensors" else honest(path)  # type: ignore[method-assign]
    with pytest.raises(ArtifactMismatch, match=r"model\.safetensors has digest"):
        fetch_model("hf://org/tiny", COMMIT, facts["weightsDigest"], tmp_path / "dest")
    assert not (tmp_path / "dest/config.json").exists()


@pytest.mark.usefixtures("hub_home")
def test_a_hub_that_always_breaks_off_ends_with_a_reason_and_leaves_nothing(
    web: WebServer, model: Path, tmp_path: Path
) -> None:
    Hub(web, model)
    facts = resolve_model("hf://org/tiny")
    whole = web.answer

    def answer(request: Request) -> Answer:
        found = whole(request)
        if request.method == "GET" and request.path.endswith(".safetensors"):
            found.cut = 100
        return found

    web.answer = answer
    with pytest.raises(SourceUnreachable, match="does not answer: peer closed connection"):
        fetch_model("hf://org/tiny", COMMIT, facts["weightsDigest"], tmp_path / "dest")
    assert not [path for path in (tmp_path / "dest").rglob("*") if path.is_file()]
