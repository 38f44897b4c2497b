"""Embedding models in their directories: which they are, how much they take, and what they make of the tokens."""

import json
import math
from pathlib import Path
from typing import Any

import numpy
import pytest
from rm_abstract.backends.embedding_model import EmbeddingModel, is_embedding_model, main, padded
from rm_abstract.core.embedding import embeds
from rm_abstract.core.errors import ArtifactMismatch
from rm_abstract.sources import resolve_model
from rm_api.kinds.model_deployment import ModelFacts
from rm_api.tasks import ModelTask
from sdk_support import WebServer, safetensors

CONFIG = {
    "architectures": ["BertModel"], "model_type": "bert", "max_position_embeddings": 64, "vocab_size": 9,
    "hidden_size": 2, "num_hidden_layers": 1, "num_attention_heads": 1, "pad_token_id": 0,
}  # fmt: skip
POOLED = [{"path": "", "type": "sentence_transformers.models.Transformer"},
          {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]  # fmt: skip
NORMALIZE = {"path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}
BY_MEAN = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}


def lay(directory: Path, **files: Any) -> Path:
    """A model's directory; files are named by their words, with what differs from the usual ones."""
    usual = {"config": CONFIG, "modules": POOLED, "pooling": BY_MEAN, **files}
    places = {"config": "config.json", "modules": "modules.json", "pooling": "1_Pooling/config.json",
              "sentence": "sentence_bert_config.json"}  # fmt: skip
    for name, content in usual.items():
        if content is not None:
            path = directory / places[name]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content))
    return directory


@pytest.mark.parametrize(
    ("architecture", "modules", "wanted"),
    [
        ("BertModel", None, True),
        ("XLMRobertaModel", None, True),
        ("MistralModel", None, True),
        ("Qwen3ForTextEmbedding", None, True),
        ("Qwen3ForCausalLM", POOLED, True),
        ("MPNetForMaskedLM", POOLED, True),
        ("Qwen3ForCausalLM", None, False),
        ("Qwen3ForCausalLM", POOLED[:1], False),
        ("Qwen3ForCausalLM", {"no": "list"}, False),
        ("BertForSequenceClassification", None, False),
        ("GPT2LMHeadModel", None, False),
        ("MidmLMHeadModel", None, False),
        ("ChatGLMModel", None, False),
        ("InternVLChatModel", None, False),
        ("UltravoxModel", None, False),
    ],
)
def test_which_models_embed(architecture: str, modules: Any, wanted: bool, tmp_path: Path) -> None:
    assert embeds(architecture, modules) is wanted
    lay(tmp_path, config={**CONFIG, "architectures": [architecture]}, modules=modules)
    assert is_embedding_model(tmp_path) is wanted


@pytest.mark.parametrize(
    ("config", "sentence", "longest"),
    [
        ({}, None, 64),
        ({}, {"max_seq_length": 32}, 32),
        ({}, {"max_seq_length": 128}, 64),
        ({}, {"max_seq_length": None}, 64),
        ({"model_type": "xlm-roberta", "pad_token_id": 1}, None, 62),
        ({"model_type": "roberta", "pad_token_id": None}, None, 62),
        ({"model_type": "mpnet", "pad_token_id": 1}, {"max_seq_length": 63}, 62),
    ],
)
def test_how_much_a_model_takes(config: dict[str, Any], sentence: Any, longest: int, tmp_path: Path) -> None:
    """RoBERTa's first positions are never used: a text of as many tokens as there are positions is out of bounds."""
    lay(tmp_path, config={**CONFIG, **config}, sentence=sentence)
    assert EmbeddingModel.read(tmp_path).max_sequence_length == longest
    assert EmbeddingModel.read(tmp_path, 5).max_sequence_length == 5
    assert EmbeddingModel.read(tmp_path, 500).max_sequence_length == longest


HIDDEN = numpy.array([[[3, 0], [0, 4], [9, 9]], [[1, 2], [5, -6], [3, 1]]], numpy.float32)
"""Two rows of three tokens; the last one of the first row is padding."""
MASK = numpy.array([[1, 1, 0], [1, 1, 1]])


@pytest.mark.parametrize(
    ("pooling", "wanted"),
    [
        ({"pooling_mode_cls_token": True}, [[3, 0], [1, 2]]),
        ({"pooling_mode_lasttoken": True}, [[0, 4], [3, 1]]),
        (BY_MEAN, [[1.5, 2], [3, -1]]),
        ({"pooling_mode_max_tokens": True}, [[3, 4], [5, 2]]),
        ({"pooling_mode": "mean"}, [[1.5, 2], [3, -1]]),
    ],
)
def test_pooling(pooling: Any, wanted: Any, tmp_path: Path) -> None:
    model = EmbeddingModel.read(lay(tmp_path, pooling=pooling))
    assert model.pool(HIDDEN, MASK) == wanted
    assert not model.normalized
    lay(tmp_path, pooling=pooling, modules=[*POOLED, NORMALIZE])
    for row, plain in zip(EmbeddingModel.read(tmp_path).pool(HIDDEN, MASK), wanted, strict=True):
        assert row == pytest.approx([number / math.hypot(*plain) for number in plain])


def test_prompts_of_several_lengths() -> None:
    ids, mask = padded([[7], [5, 6, 4]])
    assert ids.tolist() == [[7, 0, 0], [5, 6, 4]]
    assert mask.tolist() == [[1, 0, 0], [1, 1, 1]]


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        ({}, [2]),
        ({"is_matryoshka": True}, [1, 2]),
        ({"matryoshka_dimensions": [1, "2", 7]}, [1, 2]),
        ({"is_matryoshka": False}, [2]),
    ],
)
def test_lengths_that_a_vector_may_be_cut_to(config: Any, sizes: list[int], tmp_path: Path) -> None:
    model = EmbeddingModel.read(lay(tmp_path, config={**CONFIG, **config}))
    assert (list(model.sizes), model.size) == (sizes, 2)


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({"modules": None}, "has no modules.json"),
        ({"modules": [*POOLED, {"type": "sentence_transformers.models.Dense"}]}, "names Dense; known here are"),
        ({"modules": POOLED[:1]}, "names 0"),
        ({"modules": [*POOLED, POOLED[1]]}, "names 2"),
        ({"modules": [POOLED[0], {**POOLED[1], "path": "../../secrets"}]}, "is no place of a module"),
        ({"pooling": None}, "has no config.json"),
        ({"pooling": {"pooling_mode_weightedmean_tokens": True}}, "pools by .'weightedmean'."),
        ({"pooling": {"pooling_mode_cls_token": True, **BY_MEAN, "pooling_mode_max_tokens": True}}, "pools by"),
        ({"pooling": {"pooling_mode": ["mean"]}}, "pools by"),
        ({"pooling": {}}, "pools by"),
        ({"config": {**CONFIG, "hidden_size": None}}, "lacks"),
        ({"config": []}, "no JSON object"),
    ],
)
def test_what_is_not_done_is_refused(files: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactMismatch, match=complaint):
        EmbeddingModel.read(lay(tmp_path, **files))


def test_what_a_compiler_leaves_out_is_put_beside_what_it_made(tmp_path: Path) -> None:
    model = lay(tmp_path / "model", modules=[*POOLED, NORMALIZE], sentence={"max_seq_length": 32})
    (tmp_path / "output").mkdir()
    (tmp_path / "output/config.json").write_text(json.dumps({**CONFIG, "made": "by a compiler"}))
    assert main([str(model), str(tmp_path / "output")]) == 0
    assert EmbeddingModel.read(tmp_path / "output") == EmbeddingModel.read(model)
    assert "made" in json.loads((tmp_path / "output/config.json").read_text())


def test_what_cannot_be_served_is_not_compiled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = lay(tmp_path / "model", pooling={"pooling_mode_weightedmean_tokens": True})
    assert main([str(model), str(tmp_path)]) == 65
    assert "weightedmean" in capsys.readouterr().err
    assert main([]) == 64


def test_facts_of_an_embedding_model(web: WebServer, tmp_path: Path) -> None:
    """How it pools counts for its digest: the same weights make other vectors."""
    model = lay(tmp_path / "model", sentence={"max_seq_length": 32})
    (model / "model.safetensors").write_bytes(safetensors({"embed.weight": ("F32", [9, 2], 72)}))
    web.serve_directory(model, "/models/tiny/")
    uri = f"https://{web.host}/models/tiny/"
    facts = ModelFacts.model_validate(resolve_model(uri))
    assert (facts.task, facts.architecture, facts.max_sequence_length) == (ModelTask.EMBED, "BertModel", 32)
    lay(model, pooling={"pooling_mode_cls_token": True})
    other = ModelFacts.model_validate(resolve_model(uri))
    assert other.config_digest != facts.config_digest
    assert other.weights_digest == facts.weights_digest
