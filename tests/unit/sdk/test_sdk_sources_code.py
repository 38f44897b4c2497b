"""Code that comes with a model: told of, pinned by its digest, and not even fetched where it is not to be run."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rm_abstract.core.errors import ArtifactMismatch, BadInput
from rm_abstract.sources import Expected, fetch_model, resolve_model
from rm_api.kinds.model_deployment import ModelFacts
from rm_cli.main import main

URI = "pvc://shelf/tiny"
MODELING = "class Own: pass\n"


@pytest.fixture
def tiny(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model in a volume."""
    monkeypatch.setenv("RMA_PVC_DIR", str(tmp_path / "mounts"))
    (tmp_path / "mounts/shelf").mkdir(parents=True)
    return model.rename(tmp_path / "mounts/shelf/tiny")


@pytest.fixture
def with_code(tiny: Path) -> Path:
    """The model, which names code that is beside it."""
    names(tiny, {"AutoModelForCausalLM": "modeling_own.Own"})
    (tiny / "modeling_own.py").write_text(MODELING)
    return tiny


def names(model: Path, auto_map: object, file: str = "config.json") -> None:
    path = model / file
    path.write_text(json.dumps({**json.loads(path.read_text()), "auto_map": auto_map}))


def fetch(facts: dict[str, Any], destination: Path, code: str | None, *, shared: bool = False) -> list[str]:
    """Names of what was fetched."""
    expected = Expected(code=code)
    fetch_model(URI, facts["revision"], facts["weightsDigest"], destination, expected, shared=shared)
    return [path.name for path in destination.iterdir() if path.is_file()]


@pytest.mark.parametrize(
    ("auto_map", "pinned"),
    [
        ({"AutoModelForCausalLM": "modeling_own.Own"}, True),
        ({"AutoTokenizer": ["modeling_own.Own", None]}, True),
        ({"AutoConfig": "configuration_own.Own"}, False),
        ({"AutoModelForCausalLM": "modeling_own.Own", "AutoConfig": "other/repository--modeling_own.Own"}, False),
        ({"AutoModelForCausalLM": 7}, False),
        ({}, False),
        ("modeling_own.Own", True),
        ({"AutoModelForCausalLM": "../modeling_own.Own"}, False),
    ],
)
def test_what_is_named_must_be_there_to_be_pinned(tiny: Path, auto_map: object, pinned: bool) -> None:
    (tiny / "modeling_own.py").write_text(MODELING)
    assert "remoteCode" not in resolve_model(URI), "a file that no config names is not loaded"
    names(tiny, auto_map)
    facts = resolve_model(URI)
    assert facts["remoteCode"] is True
    assert ("remoteCodeDigest" in facts) is pinned
    ModelFacts.model_validate(facts)


def test_every_file_of_the_code_counts_for_its_digest_and_none_for_the_others(with_code: Path) -> None:
    before = resolve_model(URI)
    (with_code / "helper.py").write_text("one = 1\n")
    with_helper = resolve_model(URI)
    (with_code / "helper.py").write_text("one = 2\n")
    after = resolve_model(URI)
    assert len({each.pop("remoteCodeDigest") for each in (before, with_helper, after)}) == 3
    assert before == with_helper == after, "code that nobody may run rebuilds nothing"


def test_it_is_fetched_only_where_it_is_expected(with_code: Path, tmp_path: Path) -> None:
    facts = resolve_model(URI)
    assert "modeling_own.py" not in fetch(facts, tmp_path / "without", None)
    assert "modeling_own.py" in fetch(facts, tmp_path / "with", facts["remoteCodeDigest"])
    assert (tmp_path / "with/modeling_own.py").read_text() == MODELING


@pytest.mark.parametrize("change", ["changed", "added", "gone"])
def test_other_code_than_was_resolved_is_not_taken(with_code: Path, tmp_path: Path, change: str) -> None:
    facts = resolve_model(URI)
    if change == "gone":
        (with_code / "modeling_own.py").unlink()
    else:
        (with_code / ("modeling_own.py" if change == "changed" else "evil.py")).write_text("evil = True\n")
    with pytest.raises(ArtifactMismatch, match="files of the code of pvc://shelf/tiny are not what was resolved"):
        fetch(facts, tmp_path / "dest", facts["remoteCodeDigest"])
    assert not [path for path in (tmp_path / "dest").rglob("*") if path.is_file()]


def test_a_shared_build_refuses_it_whoever_expects_it(with_code: Path, tmp_path: Path) -> None:
    facts = resolve_model(URI)
    with pytest.raises(BadInput, match="no build may run whose result others share"):
        fetch(facts, tmp_path / "dest", facts["remoteCodeDigest"], shared=True)


def test_the_command_takes_the_digest(with_code: Path, tmp_path: Path) -> None:
    facts = resolve_model(URI)
    arguments = [
        "fetch", "model", f"--source={URI}", f"--revision={facts['revision']}",
        f"--weights-digest={facts['weightsDigest']}", f"--dest={tmp_path / 'dest'}",
    ]  # fmt: skip
    right, wrong = (f"--code-digest={each}" for each in (facts["remoteCodeDigest"], "sha256:" + "0" * 64))
    assert CliRunner().invoke(main, [*arguments, right]).exit_code == 0
    assert (tmp_path / "dest/modeling_own.py").exists()
    assert CliRunner().invoke(main, [*arguments, wrong]).exit_code == 65
    assert not (tmp_path / "dest/modeling_own.py").exists()
