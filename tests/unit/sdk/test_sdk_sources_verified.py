"""What was fetched is what was resolved: servers that say one thing and give another; what shared builds leave out."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rm_abstract.core.errors import ArtifactMismatch, BadInput
from rm_abstract.sources import Expected, fetch_model, resolve_model
from rm_cli.main import main
from sdk_support import Answer, Hub, Request, WebServer, ranged, safetensors

Facts = dict[str, Any]
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def expected(facts: Facts) -> Expected:
    return Expected(facts["configDigest"], facts["tensorsDigest"], scales=facts.get("scalesDigest"))


def fetch(uri: str, facts: Facts, destination: Path, *, weights: bool = True, shared: bool = False) -> int:
    digest = facts["weightsDigest"] if weights else None
    return fetch_model(uri, facts["revision"], digest, destination, expected(facts), shared=shared)


def files(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


class Liar:
    """A server that shows one model to who looks, and gives another to who takes it; validators and sizes stay."""

    def __init__(self, web: WebServer, model: Path) -> None:
        self.shown = {path.name: path.read_bytes() for path in model.iterdir()}
        self.given = dict(self.shown)
        self.looking_too = False
        """Parts of files are lied about as well, and not only whole ones."""
        web.answer = self.answer

    def lie(self, name: str, before: bytes, after: bytes) -> None:
        assert len(before) == len(after)
        assert before in self.given[name]
        self.given[name] = self.given[name].replace(before, after)

    def answer(self, request: Request) -> Answer:
        name = request.path.lstrip("/")
        if name not in self.shown:
            return Answer(404)
        part = re.fullmatch(r"bytes=\d+-\d+", request.headers.get("range", ""))
        body = self.shown[name] if part and not self.looking_too else self.given[name]
        headers = {"ETag": f'"{name}"', "Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"}
        return ranged(request, body, headers)


@pytest.fixture
def liar(web: WebServer, model: Path) -> Liar:
    scaled = safetensors({"a.qweight": ("I8", [16, 32], 512), "a.scales": ("F16", [16], 32), "norm": ("BF16", [8], 16)})
    (model / WEIGHTS).write_bytes(scaled)
    return Liar(web, model)


# What is another one, and who notices: those who read it from the disk.
LIES: dict[str, tuple[str, bytes, bytes, str]] = {
    "config": ("config.json", b'"num_hidden_layers": 2', b'"num_hidden_layers": 3', "config and tokenizer"),
    "tokenizer": ("tokenizer.json", b"1.0", b"2.0", "config and tokenizer"),
    "chat template": ("tokenizer_config.json", b"messages", b"injected", "config and tokenizer"),
    "weights": (WEIGHTS, bytes([9, 10, 11, 12]), bytes([9, 10, 11, 99]), "weights"),
    "tensors": (WEIGHTS, b'"norm"', b'"mron"', "weights"),
}


@pytest.mark.parametrize("looking_too", [False, True], ids=["whole files", "parts, too"])
@pytest.mark.parametrize("shared", [False, True], ids=["of the namespace", "shared"])
@pytest.mark.parametrize(("name", "before", "after", "what"), LIES.values(), ids=LIES)
def test_a_server_that_changes_its_mind_after_the_resolve_is_found_out(
    web: WebServer, liar: Liar, tmp_path: Path, name: str, before: bytes, after: bytes, what: str, shared: bool,
    looking_too: bool,
) -> None:  # fmt: skip
    uri = f"https://{web.host}/"
    facts = resolve_model(uri)
    assert "scalesDigest" in facts
    fetch(uri, facts, tmp_path / "honest", shared=shared)
    liar.lie(name, before, after)
    liar.looking_too = looking_too
    with pytest.raises(ArtifactMismatch, match=what):
        fetch(uri, facts, tmp_path / "dest", shared=shared)
    assert not files(tmp_path / "dest"), "nothing of it is left"


@pytest.mark.parametrize("which", ["configDigest", "tensorsDigest", "weightsDigest", "scalesDigest"])
@pytest.mark.parametrize("shared", [False, True], ids=["of the namespace", "shared"])
def test_facts_that_were_forged_do_not_become_true(
    web: WebServer, liar: Liar, tmp_path: Path, which: str, shared: bool
) -> None:
    """A key is made of what a pod of the tenant has reported; the build asks the model."""
    uri = f"https://{web.host}/"
    facts = {**resolve_model(uri), which: "sha256:" + "f" * 64}
    with pytest.raises(ArtifactMismatch, match="f" * 64):
        fetch(uri, facts, tmp_path / "dest", shared=shared)
    assert not files(tmp_path / "dest")


def test_scales_that_were_kept_quiet_are_found(web: WebServer, liar: Liar, tmp_path: Path) -> None:
    uri = f"https://{web.host}/"
    facts = resolve_model(uri)
    del facts["scalesDigest"]
    with pytest.raises(ArtifactMismatch, match="has scales of a quantisation"):
        fetch(uri, facts, tmp_path / "dest", shared=True)


def test_scales_that_were_resolved_from_whole_files_are_the_same_ones(
    web: WebServer, model: Path, liar: Liar, tmp_path: Path
) -> None:
    web.serve_directory(model, ranges=False)
    facts = resolve_model(f"https://{web.host}/")
    fetch(f"https://{web.host}/", facts, tmp_path / "dest", shared=True)
    assert (tmp_path / "dest" / WEIGHTS).read_bytes() == (model / WEIGHTS).read_bytes()


def test_without_weights_what_is_fetched_is_checked(web: WebServer, liar: Liar, tmp_path: Path) -> None:
    uri = f"https://{web.host}/"
    facts = resolve_model(uri)
    fetch(uri, facts, tmp_path / "honest", weights=False, shared=True)
    assert set(files(tmp_path / "honest")) == {"config.json", "tokenizer.json", "tokenizer_config.json"}
    liar.lie("tokenizer.json", b"1.0", b"2.0")
    with pytest.raises(ArtifactMismatch, match="config and tokenizer"):
        fetch(uri, facts, tmp_path / "dest", weights=False)


CODE: dict[str, Callable[[Path], object]] = {
    "config": lambda model: add(model / "config.json", auto_map={"AutoModel": "modeling.Evil"}),
    "within config": lambda model: add(model / "config.json", vision_config={"auto_map": {"AutoModel": "o/r--m.Evil"}}),
    "tokenizer": lambda model: add(model / "tokenizer_config.json", auto_map={"AutoTokenizer": ["t.Evil", None]}),
    "pipeline": lambda model: add(model / "config.json", custom_pipelines={"x": {"impl": "p.Evil"}}),
}


def add(path: Path, **members: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **members}))


@pytest.mark.parametrize("change", CODE.values(), ids=CODE)
def test_code_of_the_models_own_is_told_and_kept_out_of_shared_builds(
    web: WebServer, model: Path, tmp_path: Path, change: Callable[[Path], object]
) -> None:
    web.serve_directory(model)
    uri = f"https://{web.host}/"
    assert "remoteCode" not in resolve_model(uri)
    change(model)
    facts = resolve_model(uri)
    assert facts["remoteCode"] is True
    with pytest.raises(BadInput, match="names code of its own"):
        fetch(uri, facts, tmp_path / "dest", shared=True)
    with pytest.raises(BadInput, match="names code of its own"):
        fetch(uri, facts, tmp_path / "dest", weights=False, shared=True)
    assert not files(tmp_path / "dest")
    fetch(uri, facts, tmp_path / "own")


def test_a_shared_build_gets_nothing_that_the_digests_do_not_cover(web: WebServer, model: Path, tmp_path: Path) -> None:
    """A copy of a well-known model with something beside it has the same digests; what is beside it stays there."""
    Hub(web, model)
    text = (model / "config.json").read_text().rstrip().removesuffix("}")
    (model / "config.json").write_text(text + ', "_name_or_path": "evil/model", "transformers_version": "9"}')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", f"http://{web.host}")
        clean = resolve_model("hf://org/tiny")
        (model / "consolidated.safetensors").write_bytes(safetensors({"x": ("F32", [4], 16)}))
        (model / "modeling.py").write_text("raise SystemExit")
        beside = resolve_model("hf://org/tiny")
        assert {**beside, "revision": ""} == {**clean, "revision": ""}
        fetch("hf://org/tiny", beside, tmp_path / "shared", shared=True)
        fetch("hf://org/tiny", beside, tmp_path / "own")
    assert set(files(tmp_path / "shared")) == {"config.json", "tokenizer.json", "tokenizer_config.json", WEIGHTS}
    assert "consolidated.safetensors" in files(tmp_path / "own")
    config = json.loads((tmp_path / "shared/config.json").read_text())
    assert config == {
        key: value
        for key, value in json.loads((model / "config.json").read_text()).items()
        if key not in ("_name_or_path", "transformers_version")
    }


def test_of_a_shared_build_whatever_two_readers_understand_differently_is_gone(
    web: WebServer, model: Path, tmp_path: Path
) -> None:
    """The same member twice: the one reader takes the first, the digest is of the last."""
    text = (model / "config.json").read_text()
    web.serve_directory(model)
    uri = f"https://{web.host}/"
    honest = resolve_model(uri)
    (model / "config.json").write_text(text.replace("{", '{"num_hidden_layers": 99, ', 1))
    twice = resolve_model(uri)
    assert twice["configDigest"] == honest["configDigest"]
    fetch(uri, twice, tmp_path / "dest", shared=True)
    assert "99" not in (tmp_path / "dest/config.json").read_text()


def test_the_index_of_a_shared_build_is_made_of_the_weights(web: WebServer, model: Path, tmp_path: Path) -> None:
    (model / WEIGHTS).unlink()
    for number, tensor in enumerate(("a", "b")):
        (model / f"part-{number}.safetensors").write_bytes(safetensors({tensor: ("F32", [4], 16)}))
    right = {"a": "part-0.safetensors", "b": "part-1.safetensors"}
    # What the index says is not in any digest: here each tensor is in the other file.
    (model / INDEX).write_text(json.dumps({"weight_map": {"a": right["b"], "b": right["a"]}}))
    web.serve_directory(model)
    uri = f"https://{web.host}/"
    facts = resolve_model(uri)
    fetch(uri, facts, tmp_path / "dest", shared=True)
    assert json.loads((tmp_path / "dest" / INDEX).read_text()) == {
        "metadata": {"total_size": 32},
        "weight_map": right,
    }
    fetch(uri, facts, tmp_path / "config", weights=False, shared=True)
    assert INDEX not in files(tmp_path / "config")


def test_the_command_takes_the_digests_and_says_what_differs(web: WebServer, liar: Liar, tmp_path: Path) -> None:
    uri = f"https://{web.host}/"
    facts = resolve_model(uri)
    arguments = [
        "fetch", "model", f"--source={uri}", f"--revision={facts['revision']}",
        *(f"--{part}-digest={facts[f'{part}Digest']}" for part in ("weights", "config", "tensors", "scales")),
        "--shared", f"--dest={tmp_path / 'dest'}",
    ]  # fmt: skip
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    liar.lie("config.json", b'"num_hidden_layers": 2', b'"num_hidden_layers": 3')
    failed = CliRunner().invoke(main, arguments)
    assert failed.exit_code == 65
