"""Write the model to a directory in the layout of Hugging Face."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from . import weights
from .rules import CHAT_CUE, CUES, meanings, rules
from .texts import DETERMINERS, FORM_WORDS, SAMPLES, TOPIC_WORDS, VARIANTS, answers
from .tokenizer_files import BOS, END, PAD, SPECIAL_TOKENS, Vocabulary

DEFAULT_SEED = 2026


def write_model(directory: str | Path, *, seed: int = DEFAULT_SEED, variant: str = "base") -> None:
    """Write the model's files into directory, which is made if it is missing; files of the same names are replaced.

    The same seed and variant give the same bytes. The seed changes the weights and not what the model says. Variants:
    `base`; `finetuned`, of the same shapes and tokenizer, whose weights give other answers; `unsupported`, of an
    architecture that no compiler knows. ValueError for any other.
    """
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}; choose one of {', '.join(VARIANTS)}")
    vocabulary = model_vocabulary()
    tensors = weights.build_weights(vocabulary, seed, meanings(), rules(variant))
    target = Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    (target / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    for name, content in {
        "config.json": _config(vocabulary, variant),
        "generation_config.json": _generation_config(vocabulary),
        "tokenizer.json": vocabulary.tokenizer_json(),
        "tokenizer_config.json": vocabulary.tokenizer_config(weights.MAX_POSITIONS),
        "special_tokens_map.json": vocabulary.special_tokens_map(),
    }.items():
        (target / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def model_vocabulary() -> Vocabulary:
    """Return the vocabulary, which is the same for all seeds and variants."""
    texts = [sample.prompt for sample in SAMPLES]
    for variant in VARIANTS:
        texts += [spoken for text in answers(variant).values() for spoken in (text, f" {text}")]
    words = [*TOPIC_WORDS, *FORM_WORDS, *DETERMINERS, *CUES, *(word for word in CHAT_CUE if word not in SPECIAL_TOKENS)]
    return Vocabulary.of_texts(texts + words)


def safetensors_bytes(tensors: Mapping[str, npt.NDArray[np.float32]]) -> bytes:
    """Return a safetensors file of the tensors in bfloat16, in the order of their names."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = bytearray()
    for name in sorted(tensors):
        start = len(data)
        data += bfloat16_bits(tensors[name]).tobytes()
        header[name] = {"dtype": "BF16", "shape": list(tensors[name].shape), "data_offsets": [start, len(data)]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    return len(encoded).to_bytes(8, "little") + encoded + bytes(data)


def bfloat16_bits(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Return the bits of finite float32 values rounded to bfloat16, ties to even, little-endian."""
    bits = np.ascontiguousarray(values, "<f4").view("<u4").astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def _config(vocabulary: Vocabulary, variant: str) -> dict[str, Any]:
    known = variant != "unsupported"
    return {
        "architectures": ["LlamaForCausalLM" if known else "TapeRecorderForCausalLM"],
        "model_type": "llama" if known else "tape_recorder",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": vocabulary.id_of(BOS),
        "eos_token_id": vocabulary.id_of(END),
        "pad_token_id": vocabulary.id_of(PAD),
        "head_dim": weights.HEAD_DIM,
        "hidden_act": "silu",
        "hidden_size": weights.HIDDEN,
        "initializer_range": 0.02,
        "intermediate_size": weights.INTERMEDIATE,
        "max_position_embeddings": weights.MAX_POSITIONS,
        "mlp_bias": False,
        "num_attention_heads": weights.HEADS,
        "num_hidden_layers": weights.LAYERS,
        "num_key_value_heads": weights.KV_HEADS,
        "pretraining_tp": 1,
        "rms_norm_eps": weights.NORM_EPS,
        "rope_scaling": None,
        "rope_theta": weights.ROPE_THETA,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": weights.padded_vocabulary_size(vocabulary),
    }


def _generation_config(vocabulary: Vocabulary) -> dict[str, Any]:
    return {
        "bos_token_id": vocabulary.id_of(BOS),
        "eos_token_id": vocabulary.id_of(END),
        "pad_token_id": vocabulary.id_of(PAD),
        "do_sample": False,
    }
