"""A tiny BERT that embeds, written without any library, and what it computes, worked out without any engine.

Its words are the small letters. Weights are drawn from a seed, so the oracle is the arithmetic below and no table.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
from scripted_model.write import bfloat16_bits, safetensors_bytes

Array = numpy.ndarray[Any, numpy.dtype[numpy.float32]]

SIZE, HEADS, LAYERS, INNER, POSITIONS = 32, 2, 2, 48, 40
MOST_TOKENS = 24
"""What sentence_bert_config.json allows; less than there are positions."""
EPSILON = 1e-12
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = (*SPECIAL, *"abcdefghijklmnopqrstuvwxyz")
CLS, SEP = WORDS.index("[CLS]"), WORDS.index("[SEP]")
_LAYER = {
    "attention.self.query": (SIZE, SIZE), "attention.self.key": (SIZE, SIZE), "attention.self.value": (SIZE, SIZE),
    "attention.output.dense": (SIZE, SIZE), "intermediate.dense": (INNER, SIZE), "output.dense": (SIZE, INNER),
}  # fmt: skip


def tensors(seed: int = 7) -> dict[str, Array]:
    """The weights by their names, as they are after bfloat16."""
    draw = numpy.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (len(WORDS), SIZE),
        "embeddings.position_embeddings.weight": (POSITIONS, SIZE),
        "embeddings.token_type_embeddings.weight": (2, SIZE),
        "pooler.dense.weight": (SIZE, SIZE), "pooler.dense.bias": (SIZE,),
    }  # fmt: skip
    norms = ["embeddings.LayerNorm"]
    for layer in range(LAYERS):
        at = f"encoder.layer.{layer}"
        for name, shape in _LAYER.items():
            shapes |= {f"{at}.{name}.weight": shape, f"{at}.{name}.bias": shape[:1]}
        norms += [f"{at}.attention.output.LayerNorm", f"{at}.output.LayerNorm"]
    found = {name: draw.normal(0, 0.4, shape) for name, shape in shapes.items()}
    for norm in norms:
        found |= {f"{norm}.weight": draw.normal(1, 0.2, SIZE), f"{norm}.bias": draw.normal(0, 0.2, SIZE)}
    return {name: _rounded(values.astype(numpy.float32)) for name, values in found.items()}


def _rounded(values: Array) -> Array:
    return (bfloat16_bits(values).astype(numpy.uint32) << 16).view(numpy.float32).reshape(values.shape)


def write(directory: Path) -> None:
    """Write the model as sentence-transformers would: mean of the tokens, length 1."""
    (directory / "1_Pooling").mkdir(parents=True)
    (directory / "model.safetensors").write_bytes(safetensors_bytes(tensors()))
    module = "sentence_transformers.models"
    for name, content in {
        "config.json": {
            "architectures": ["BertModel"], "model_type": "bert", "vocab_size": len(WORDS), "hidden_size": SIZE,
            "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "intermediate_size": INNER,
            "hidden_act": "gelu", "max_position_embeddings": POSITIONS, "type_vocab_size": 2, "pad_token_id": 0,
            "layer_norm_eps": EPSILON, "torch_dtype": "bfloat16",
        },
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": f"{module}.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{module}.Pooling"},
            {"idx": 2, "name": "2", "path": "2_Normalize", "type": f"{module}.Normalize"},
        ],
        "1_Pooling/config.json": {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True},
        "sentence_bert_config.json": {"max_seq_length": MOST_TOKENS, "do_lower_case": False},
        "tokenizer.json": _tokenizer(),
        "tokenizer_config.json": {
            "tokenizer_class": "BertTokenizerFast", "model_max_length": MOST_TOKENS, "pad_token": "[PAD]",
            "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]",
        },
    }.items():  # fmt: skip
        (directory / name).write_text(json.dumps(content, indent=1))


def _tokenizer() -> dict[str, Any]:
    def special(word: str) -> dict[str, Any]:
        return {"SpecialToken": {"id": word, "type_id": 0}}

    single = [special("[CLS]"), {"Sequence": {"id": "A", "type_id": 0}}, special("[SEP]")]
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [
            {"id": number, "content": word, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": True}
            for number, word in enumerate(SPECIAL)
        ],
        "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
                       "strip_accents": None, "lowercase": True},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing", "single": single,
            "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}, special("[SEP]")],
            "special_tokens": {
                word: {"id": word, "ids": [WORDS.index(word)], "tokens": [word]} for word in ("[CLS]", "[SEP]")
            },
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": {word: number for number, word in enumerate(WORDS)},
        },
    }  # fmt: skip


def tokens(text: str) -> list[int]:
    """Of letters with blanks between them."""
    return [CLS, *map(WORDS.index, text.lower().split()), SEP]


def embedding(ids: Sequence[int]) -> list[float]:
    """What the model makes of the tokens, by its weights: the arithmetic of BERT, mean, length 1."""
    weights = tensors()
    count = len(ids)

    def norm(values: Array, name: str) -> Array:
        centred = values - values.mean(-1, keepdims=True)
        scaled = centred / numpy.sqrt((centred**2).mean(-1, keepdims=True) + EPSILON)
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def dense(values: Array, name: str) -> Array:
        return values @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def heads(values: Array) -> Array:
        return values.reshape(count, HEADS, SIZE // HEADS).transpose(1, 0, 2)

    erf = numpy.vectorize(math.erf, otypes=[numpy.float64])
    stream = (
        weights["embeddings.word_embeddings.weight"][list(ids)]
        + weights["embeddings.position_embeddings.weight"][:count]
        + weights["embeddings.token_type_embeddings.weight"][0]
    )
    stream = norm(stream, "embeddings.LayerNorm")
    for layer in range(LAYERS):
        at = f"encoder.layer.{layer}"
        query, key, value = (heads(dense(stream, f"{at}.attention.self.{name}")) for name in ("query", "key", "value"))
        scores = numpy.exp(query @ key.transpose(0, 2, 1) / math.sqrt(SIZE // HEADS))
        mixed = (scores / scores.sum(-1, keepdims=True) @ value).transpose(1, 0, 2).reshape(count, SIZE)
        stream = norm(stream + dense(mixed, f"{at}.attention.output.dense"), f"{at}.attention.output.LayerNorm")
        inner = dense(stream, f"{at}.intermediate.dense")
        inner = inner * 0.5 * (1 + erf(inner / math.sqrt(2)))
        stream = norm(stream + dense(inner, f"{at}.output.dense"), f"{at}.output.LayerNorm")
    mean = stream.mean(0)
    found: list[float] = (mean / numpy.linalg.norm(mean)).tolist()
    return found
