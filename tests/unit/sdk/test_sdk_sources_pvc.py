"""Models in mounted volumes."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rm_abstract.core.errors import ArtifactMismatch, BadInput
from rm_abstract.sources import fetch_model, open_source, resolve_model
from rm_api.kinds.model_deployment import ModelFacts


@pytest.fixture
def volume(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The volume of the claim ``shelf``, with a model in ``llms/tiny``."""
    monkeypatch.setenv("RMA_PVC_DIR", str(tmp_path / "mounts"))
    root = tmp_path / "mounts/shelf"
    (root / "llms").mkdir(parents=True)
    model.rename(root / "llms/tiny")
    return root


URI = "pvc://shelf/llms/tiny"


def test_a_model_in_a_volume_is_resolved_and_fetched(volume: Path, tmp_path: Path) -> None:
    tiny = volume / "llms/tiny"
    wanted = {path.name: path.read_bytes() for path in tiny.iterdir()}
    (tiny / "pytorch_model.bin").write_bytes(b"another format")
    (tiny / "original").mkdir()
    facts = resolve_model(URI)
    ModelFacts.model_validate(facts)
    assert facts["parameters"] == 544
    assert resolve_model(f"{URI}/", facts["revision"])["revision"] == facts["revision"]
    size = fetch_model(URI, facts["revision"], facts["weightsDigest"], tmp_path / "dest")
    assert {path.name: path.read_bytes() for path in (tmp_path / "dest").iterdir() if path.is_file()} == wanted
    assert size == sum(map(len, wanted.values()))


def test_the_modules_of_an_embedding_model_come_along(volume: Path, tmp_path: Path) -> None:
    pooling = volume / "llms/tiny/1_Pooling/config.json"
    pooling.parent.mkdir()
    pooling.write_text('{"pooling_mode_mean_tokens": true}')
    before = resolve_model(URI)
    fetch_model(URI, before["revision"], before["weightsDigest"], tmp_path / "dest")
    assert (tmp_path / "dest/1_Pooling/config.json").read_bytes() == pooling.read_bytes()
    pooling.write_text('{"pooling_mode_cls_token": true}')
    assert resolve_model(URI)["revision"] != before["revision"]


def flip(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (lambda tiny: flip(tiny / "model.safetensors"), False),
        (lambda tiny: (tiny / "tokenizer.json").unlink(), False),
        (lambda tiny: (tiny / "generation_config.json").write_text("{}"), False),
        (lambda tiny: (tiny / "tokenizer.json").rename(tiny / "vocab.json"), False),
        (lambda tiny: (tiny / "README.md").write_text("new"), True),
        (lambda tiny: (tiny / "config.json").touch(), True),
    ],
    ids=["one bit", "removed", "added", "renamed", "readme", "time"],
)
def test_the_revision_changes_with_what_is_fetched_and_nothing_else(
    volume: Path, tmp_path: Path, change: Callable[[Path], object], same: bool
) -> None:
    facts = resolve_model(URI)
    change(volume / "llms/tiny")
    if same:
        fetch_model(URI, facts["revision"], facts["weightsDigest"], tmp_path / "dest")
        return
    with pytest.raises(ArtifactMismatch, match="has changed"):
        fetch_model(URI, facts["revision"], facts["weightsDigest"], tmp_path / "dest")
    assert not [path for path in (tmp_path / "dest").rglob("*") if path.is_file()]


def test_a_file_that_is_written_to_while_it_is_fetched_is_noticed(volume: Path, tmp_path: Path) -> None:
    with open_source(URI) as source:
        flip(volume / "llms/tiny/model.safetensors")
        (tmp_path / "out").mkdir()
        with pytest.raises(ArtifactMismatch, match=r"model\.safetensors has digest"):
            source.fetch(tmp_path / "out")


def test_links_are_followed_inside_of_the_volume_only(volume: Path, tmp_path: Path) -> None:
    tiny = volume / "llms/tiny"
    before = resolve_model(URI)
    (tiny / "config.json").rename(volume / "blob")
    (tiny / "config.json").symlink_to("../../blob")
    assert resolve_model(URI) == before
    outside = tmp_path / "secret.json"
    outside.write_text(json.dumps({"password": "hush-hush"}))
    (tiny / "extra.json").symlink_to(outside)
    with pytest.raises(BadInput, match=r"llms/tiny/extra\.json .* leads out of the volume"):
        resolve_model(URI)
    (volume / "way-out").symlink_to(tmp_path)
    with pytest.raises(BadInput, match="leads out of the volume"):
        resolve_model("pvc://shelf/way-out")


@pytest.mark.usefixtures("volume")
@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("pvc://", "no directory of a claim"),
        ("pvc://Shelf/llms", "no directory of a claim"),
        ("pvc://../llms", "no directory of a claim"),
        ("pvc://shelf/llms/../../other", "no directory of a claim"),
        ("pvc://other/llms", "claim other is not mounted"),
        ("pvc://shelf/none", "is no directory with a model"),
        ("pvc://shelf/llms/tiny/config.json", "is no directory with a model"),
        ("pvc://shelf/llms", "has no file of a model"),
    ],
)
def test_places_that_have_no_model(uri: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        resolve_model(uri)


def test_a_directory_in_the_place_of_a_file(volume: Path) -> None:
    (volume / "llms/tiny/vocab.json").mkdir()
    with pytest.raises(BadInput, match=r"vocab\.json .* is no regular file"):
        resolve_model(URI)


def test_without_a_mount_the_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RMA_PVC_DIR", raising=False)
    with pytest.raises(BadInput, match="RMA_PVC_DIR"):
        resolve_model(URI)
