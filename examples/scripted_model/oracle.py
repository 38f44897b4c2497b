"""What the model must answer, worked out from its files alone: a forward pass of Llama in NumPy.

It shares no code with the writer of the weights. Everything is float32 or, rounded after each operation, bfloat16.
An Ablation breaks one thing on purpose, so that a test can show that this thing matters to the text.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .tokenizer import Tokenizer

Array = npt.NDArray[np.float32]
Precision = Literal["float32", "bfloat16"]
Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Ablation:
    """One fault of a backend. The default is none.

    attention: False leaves the result of all attention out.
    position: the position that the token at an index gets, from (index, length of the prompt).
    hidden: indexes of tokens that no other token can attend to.
    rows: for each row of the batch, the row whose keys and values of the prompt it decodes with.
    """

    attention: bool = True
    position: Callable[[int, int], int] = lambda index, prompt_length: index
    hidden: frozenset[int] = frozenset()
    rows: tuple[int, ...] | None = None


NO_ABLATION = Ablation()


@dataclass(frozen=True)
class Generation:
    """One greedy continuation: its token ids, the last being the end token if the limit was not hit before.

    margins: for each of them, how far its logit is above the next best one's.
    """

    ids: list[int] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)


class Cache:
    """Keys and values of each layer, [batch, key-value heads, tokens, head size]."""

    def __init__(self, layers: int) -> None:
        self.layers: list[tuple[Array, Array] | None] = [None] * layers

    def extend(self, layer: int, key: Array, value: Array) -> tuple[Array, Array]:
        """Append the keys and values of new tokens and return those of all."""
        past = self.layers[layer]
        if past is not None:
            key, value = np.concatenate([past[0], key], axis=2), np.concatenate([past[1], value], axis=2)
        self.layers[layer] = key, value
        return key, value

    def take_rows(self, rows: Sequence[int]) -> None:
        """Reorder the rows of the batch."""
        order = list(rows)
        self.layers = [None if past is None else (past[0][order], past[1][order]) for past in self.layers]


class Oracle:
    """The model of a directory. ValueError if it is not a Llama of the kind that is understood here."""

    def __init__(self, directory: str | Path, precision: Precision = "float32") -> None:
        self.directory = Path(directory)
        self.config: dict[str, Any] = json.loads((self.directory / "config.json").read_text(encoding="utf-8"))
        if self.config["architectures"] != ["LlamaForCausalLM"] or self.config["rope_scaling"] is not None:
            raise ValueError(f"{directory}: the oracle computes only a LlamaForCausalLM without RoPE scaling")
        self.tokenizer = Tokenizer(directory)
        self._weights = read_safetensors(self.directory / "model.safetensors")
        self._round = _to_bfloat16 if precision == "bfloat16" else _as_is

    def logits(
        self,
        ids: npt.NDArray[np.int64],
        positions: npt.NDArray[np.int64],
        cache: Cache,
        ablation: Ablation = NO_ABLATION,
    ) -> Array:
        """Return [batch, tokens, vocabulary] for new ids, [batch, tokens], at positions, [tokens]; extend the cache."""
        stream = self._weights["model.embed_tokens.weight"][ids]
        for layer in range(self.config["num_hidden_layers"]):
            name = f"model.layers.{layer}"
            normal = self._norm(stream, f"{name}.input_layernorm")
            attended = self._attend(normal, layer, positions, cache, ablation.hidden)
            if ablation.attention:
                stream = self._round(stream + attended)
            normal = self._norm(stream, f"{name}.post_attention_layernorm")
            gate = self._linear(normal, f"{name}.mlp.gate_proj")
            with np.errstate(over="ignore"):
                activated = self._round(gate / (1 + np.exp(-gate)))
            product = self._round(activated * self._linear(normal, f"{name}.mlp.up_proj"))
            stream = self._round(stream + self._linear(product, f"{name}.mlp.down_proj"))
        return self._linear(self._norm(stream, "model.norm"), "lm_head")

    def generate(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, ablation: Ablation = NO_ABLATION
    ) -> list[Generation]:
        """Continue a batch of prompts of equal length greedily, each until its end token, with a key-value cache."""
        length = len(prompts[0])
        if any(len(prompt) != length for prompt in prompts):
            raise ValueError("the prompts of a batch must be equally long")
        cache, results = Cache(self.config["num_hidden_layers"]), [Generation() for _ in prompts]
        new, start = np.array(prompts, np.int64), 0
        for _ in range(max_new_tokens):
            positions = np.array([ablation.position(start + index, length) for index in range(new.shape[1])], np.int64)
            last = self.logits(new, positions, cache, ablation)[:, -1]
            if start == 0 and ablation.rows is not None:
                cache.take_rows(ablation.rows)
            chosen, start = last.argmax(-1), start + new.shape[1]
            for result, row, token in zip(results, last, chosen, strict=True):
                if self.tokenizer.eos_id not in result.ids[-1:]:
                    second, first = np.partition(row, -2)[-2:]
                    result.ids.append(int(token))
                    result.margins.append(float(first - second))
            if all(self.tokenizer.eos_id in result.ids[-1:] for result in results):
                break
            new = chosen[:, None]
        return results

    def _norm(self, values: Array, name: str) -> Array:
        scale = 1 / np.sqrt(np.mean(values**2, axis=-1, keepdims=True) + self.config["rms_norm_eps"])
        return self._round(self._weights[f"{name}.weight"] * self._round(values * scale))

    def _linear(self, values: Array, name: str) -> Array:
        return self._round(values @ self._weights[f"{name}.weight"].T)

    def _attend(
        self, normal: Array, layer: int, positions: npt.NDArray[np.int64], cache: Cache, hidden: frozenset[int]
    ) -> Array:
        heads, key_heads = self.config["num_attention_heads"], self.config["num_key_value_heads"]
        size = self.config["head_dim"]
        name, (batch, count, _) = f"model.layers.{layer}.self_attn", normal.shape

        def projected(kind: str, number: int) -> Array:
            flat = self._linear(normal, f"{name}.{kind}_proj")
            return flat.reshape(batch, count, number, size).transpose(0, 2, 1, 3)

        query = self._rotate(projected("q", heads), positions)
        key, value = cache.extend(layer, self._rotate(projected("k", key_heads), positions), projected("v", key_heads))
        key, value = (np.repeat(part, heads // key_heads, axis=1) for part in (key, value))
        scores = self._round(query @ key.swapaxes(-1, -2)) / np.float32(np.sqrt(size))
        own, others = np.arange(key.shape[2] - count, key.shape[2])[:, None], np.arange(key.shape[2])[None, :]
        visible = (others < own) & ~np.isin(others, list(hidden)) | (others == own)
        scores = np.where(visible, scores, -np.inf)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares = self._round(shares / shares.sum(-1, keepdims=True))
        mixed = self._round(shares @ value).transpose(0, 2, 1, 3).reshape(batch, count, heads * size)
        return self._linear(mixed, f"{name}.o_proj")

    def _rotate(self, values: Array, positions: npt.NDArray[np.int64]) -> Array:
        half = values.shape[-1] // 2
        angles = np.outer(positions, self.config["rope_theta"] ** -(np.arange(half) / half))
        cos, sin = self._round(np.cos(angles).astype(np.float32)), self._round(np.sin(angles).astype(np.float32))
        first, second = values[..., :half], values[..., half:]
        return self._round(np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1))


def greedy(
    directory: str | Path,
    prompt_ids: Sequence[int],
    max_new_tokens: int = 128,
    *,
    precision: Precision = "float32",
    ablation: Ablation = NO_ABLATION,
) -> list[int]:
    """Return the ids that greedily follow a prompt, the end token included if it comes within max_new_tokens."""
    return Oracle(directory, precision).generate([prompt_ids], max_new_tokens, ablation)[0].ids


def expected_text(directory: str | Path, request: str | Messages, max_new_tokens: int = 128) -> str:
    """Return the text that a correct server answers: to a prompt (completion) or to messages (chat)."""
    oracle = Oracle(directory)
    tokenizer = oracle.tokenizer
    ids = tokenizer.encode(request) if isinstance(request, str) else tokenizer.encode_chat(request)
    return tokenizer.decode(oracle.generate([ids], max_new_tokens)[0].ids)


def read_safetensors(path: Path) -> dict[str, Array]:
    """Return the tensors of a safetensors file that holds bfloat16 only, widened to float32."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    tensors: dict[str, Array] = {}
    for name, entry in json.loads(content[8:start]).items():
        if name == "__metadata__":
            continue
        if entry["dtype"] != "BF16":
            raise ValueError(f"{path}: tensor {name} is {entry['dtype']}; the oracle reads BF16")
        begin, end = entry["data_offsets"]
        bits = np.frombuffer(content[start + begin : start + end], "<u2").astype(np.uint32)
        tensors[name] = (bits << 16).view(np.float32).reshape(entry["shape"])
    return tensors


def _as_is(values: Array) -> Array:
    return values


def _to_bfloat16(values: Array) -> Array:
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    bits = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (bits & np.uint32(0xFFFF0000)).view(np.float32)
