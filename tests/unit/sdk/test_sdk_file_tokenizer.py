"""Tokens and chats from a model's files, as transformers makes them."""

import json
from pathlib import Path
from typing import Any

import pytest
from rm_abstract.backends.file_tokenizer import FileTokenizer
from rm_abstract.core.errors import ArtifactMismatch
from scripted_model import SAMPLES, Oracle, write_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    write_model(directory)
    return directory


def test_the_tokenizer_is_the_models_own(model: Path) -> None:
    ours, oracle = FileTokenizer(model), Oracle(model).tokenizer
    for sample in SAMPLES:
        for special in (True, False):
            ids = ours.encode(sample.prompt, add_special_tokens=special)
            assert ids == oracle.encode(sample.prompt, add_special_tokens=special)
            assert ours.decode(ids) == sample.prompt
        messages = [{"role": "user", "content": sample.prompt}]
        assert ours.render_chat(messages) == oracle.render_chat(messages)


def test_chat_templates(model: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((model / "tokenizer.json").read_bytes())
    with pytest.raises(ValueError, match="no chat template"):
        FileTokenizer(tmp_path).render_chat([])
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": {"content": "<b>"}}')
    (tmp_path / "chat_template.jinja").write_text(
        "{{ bos_token }}{% if not messages %}{{ raise_exception('none') }}{% endif %}"
    )
    assert FileTokenizer(tmp_path).render_chat([{"role": "user"}]) == "<b>"
    with pytest.raises(ValueError, match="none"):
        FileTokenizer(tmp_path).render_chat([])
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ArtifactMismatch, match="tokenizer cannot be loaded"):
        FileTokenizer(tmp_path)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{% for m in messages %}{{ m.role }}{% break %}{% endfor %}", "user"),
        ("{{ messages[0] | tojson }}", '{"role": "user", "content": "<é&>"}'),
        ("{% if tools is none and documents is none and add_generation_prompt %}go{% endif %}", "go"),
        ("{{ strftime_now('%%') }}", "%"),
        ([{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}], "d"),
        ("  {% if true %}\nx\n  {% endif %}\n", "x\n"),
    ],
    ids=["break", "tojson", "what is not said", "date", "several", "blanks"],
)
def test_templates_find_what_transformers_gives_them(model: Path, tmp_path: Path, template: Any, text: str) -> None:
    (tmp_path / "tokenizer.json").write_bytes((model / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    messages = [{"role": "user", "content": "<é&>"}, {"role": "assistant", "content": ""}]
    assert FileTokenizer(tmp_path).render_chat(messages) == text


def test_without_a_default_template_there_is_none(model: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((model / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": [{"name": "rag", "template": "r"}]}))
    with pytest.raises(ValueError, match="no chat template"):
        FileTokenizer(tmp_path).render_chat([])
