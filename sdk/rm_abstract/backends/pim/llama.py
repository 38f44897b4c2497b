"""Llama on the host, in NumPy: all but the projections, which whoever calls it computes where he likes."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from rm_api.conditions import Reason

from rm_abstract.core.errors import BadInput

Array = npt.NDArray[np.float32]
Project = Callable[[str, Array], Array]
"""(group, rows of numbers [n, columns]) to their products [n, rows of the group]."""

ARCHITECTURE = "LlamaForCausalLM"
_FIRST_CAPACITY = 256


@dataclass(frozen=True)
class LlamaConfig:
    """Of config.json, what the computation needs."""

    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    rope_theta: float
    norm_eps: float
    tied: bool
    """Whether the embeddings are the output head, too."""

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Of the model in ``directory``. BadInput where it is of a kind that is not computed."""
        try:
            config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise BadInput(f"{directory} has no config.json") from None
        except ValueError as error:
            raise BadInput(f"config.json is not valid JSON: {error}") from None
        return cls.of(config)

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self:
        """Of what config.json says."""
        if config.get("architectures") != [ARCHITECTURE]:
            raise _unsupported(f"architecture {config.get('architectures')}; {ARCHITECTURE} is laid out")
        rope = config.get("rope_parameters") or {}
        scaling = config.get("rope_scaling") or (rope if rope.get("rope_type", "default") != "default" else None)
        for name, wanted, found in (
            ("hidden_act", "silu", config.get("hidden_act", "silu")),
            ("attention_bias", False, config.get("attention_bias", False)),
            ("mlp_bias", False, config.get("mlp_bias", False)),
            ("rope_scaling", None, scaling),
        ):
            if found != wanted:
                raise _unsupported(f"{name} {found}; only {wanted} is computed")
        try:
            heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
            return cls(
                vocabulary=int(config["vocab_size"]),
                hidden=hidden,
                intermediate=int(config["intermediate_size"]),
                layers=int(config["num_hidden_layers"]),
                heads=heads,
                kv_heads=int(config.get("num_key_value_heads") or heads),
                head_size=int(config.get("head_dim") or hidden // heads),
                rope_theta=float(config.get("rope_theta") or rope.get("rope_theta") or 10000.0),
                norm_eps=float(config.get("rms_norm_eps", 1e-6)),
                tied=bool(config.get("tie_word_embeddings", False)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(f"config.json lacks a number of the model, or has none in its place: {error}") from None

    def groups(self) -> dict[str, list[tuple[str, int, int]]]:
        """Matrices with one input, which make one product: by the group's name, (tensor, rows, columns) of each."""
        heads, keys = self.heads * self.head_size, self.kv_heads * self.head_size
        found: dict[str, list[tuple[str, int, int]]] = {}
        for layer in range(self.layers):
            name = f"model.layers.{layer}"
            found[f"{layer}.qkv"] = [
                (f"{name}.self_attn.q_proj.weight", heads, self.hidden),
                (f"{name}.self_attn.k_proj.weight", keys, self.hidden),
                (f"{name}.self_attn.v_proj.weight", keys, self.hidden),
            ]
            found[f"{layer}.o"] = [(f"{name}.self_attn.o_proj.weight", self.hidden, heads)]
            found[f"{layer}.gate_up"] = [
                (f"{name}.mlp.{one}_proj.weight", self.intermediate, self.hidden) for one in ("gate", "up")
            ]
            found[f"{layer}.down"] = [(f"{name}.mlp.down_proj.weight", self.hidden, self.intermediate)]
        head = "model.embed_tokens.weight" if self.tied else "lm_head.weight"
        found["head"] = [(head, self.vocabulary, self.hidden)]
        return found

    def host_tensors(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the tensors that stay on the host."""
        norms = [
            f"model.layers.{layer}.{which}_layernorm.weight"
            for layer in range(self.layers)
            for which in ("input", "post_attention")
        ]
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys([*norms, "model.norm.weight"], (self.hidden,))
        return {"model.embed_tokens.weight": (self.vocabulary, self.hidden), **shapes}


def _unsupported(what: str) -> BadInput:
    return BadInput(f"the model has {what}", reason=Reason.UNSUPPORTED_MODEL)


@dataclass
class KeyValues:
    """Keys and values of one sequence, [key-value heads, tokens, head size] of each layer."""

    config: LlamaConfig
    length: int = 0
    _keys: list[Array] = field(default_factory=list)
    _values: list[Array] = field(default_factory=list)

    def __post_init__(self) -> None:
        shape = (self.config.kv_heads, _FIRST_CAPACITY, self.config.head_size)
        for store in (self._keys, self._values):
            store.extend(np.zeros(shape, np.float32) for _ in range(self.config.layers))

    def extend(self, layer: int, keys: Array, values: Array) -> tuple[Array, Array]:
        """Keys and values of all tokens, with new ones behind the ``length`` that there were."""
        end = self.length + keys.shape[1]
        for store, new in ((self._keys, keys), (self._values, values)):
            while store[layer].shape[1] < end:
                store[layer] = np.concatenate([store[layer], np.zeros_like(store[layer])], axis=1)
            store[layer][:, self.length : end] = new
        return self._keys[layer][:, :end], self._values[layer][:, :end]


@dataclass
class Run:
    """New tokens of one sequence, and what came before them."""

    tokens: Sequence[int]
    past: KeyValues


class Llama:
    """The model, without its projections."""

    def __init__(self, config: LlamaConfig, tensors: Mapping[str, Array]) -> None:
        """``tensors`` are those that ``host_tensors`` of the configuration names."""
        self.config = config
        self._tensors = tensors
        half = config.head_size // 2
        self._frequencies = config.rope_theta ** -(np.arange(half) / half)

    def forward(self, runs: Sequence[Run], project: Project) -> Array:
        """Logits behind the last token of each run, [runs, vocabulary]; the runs' pasts grow by their tokens."""
        ends = np.cumsum([len(run.tokens) for run in runs])
        begins = [0, *ends[:-1]]
        ids = np.concatenate([np.asarray(run.tokens, np.int64) for run in runs])
        positions = np.concatenate([np.arange(len(run.tokens)) + run.past.length for run in runs])
        turn = self._turn(positions)
        stream = self._tensors["model.embed_tokens.weight"][ids].astype(np.float32)
        for layer in range(self.config.layers):
            name = f"model.layers.{layer}"
            mixed = self._attend(
                project(f"{layer}.qkv", self._norm(stream, f"{name}.input_layernorm")), turn, layer, runs, begins
            )
            stream = stream + project(f"{layer}.o", mixed)
            both = project(f"{layer}.gate_up", self._norm(stream, f"{name}.post_attention_layernorm"))
            gate, up = np.split(both, 2, axis=-1)
            with np.errstate(over="ignore"):
                activated = gate / (1 + np.exp(-gate)) * up
            stream = stream + project(f"{layer}.down", activated)
        for run in runs:
            run.past.length += len(run.tokens)
        return project("head", self._norm(stream[ends - 1], "model.norm"))

    def _norm(self, rows: Array, name: str) -> Array:
        scale = 1 / np.sqrt(np.mean(rows**2, axis=-1, keepdims=True) + np.float32(self.config.norm_eps))
        normal: Array = (self._tensors[f"{name}.weight"] * (rows * scale)).astype(np.float32)
        return normal

    def _turn(self, positions: npt.NDArray[np.int64]) -> tuple[Array, Array]:
        angles = np.outer(positions, self._frequencies)[:, None, :]
        return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)

    def _attend(
        self, projected: Array, turn: tuple[Array, Array], layer: int, runs: Sequence[Run], begins: Sequence[int]
    ) -> Array:
        config = self.config
        heads, keys = config.heads * config.head_size, config.kv_heads * config.head_size
        query, key, value = (
            part.reshape(len(projected), -1, config.head_size)
            for part in np.split(projected, [heads, heads + keys], axis=-1)
        )
        query, key = _rotated(query, *turn), _rotated(key, *turn)
        mixed = np.empty((len(projected), heads), np.float32)
        for run, begin in zip(runs, begins, strict=True):
            own = slice(begin, begin + len(run.tokens))
            past = run.past.extend(layer, key[own].transpose(1, 0, 2), value[own].transpose(1, 0, 2))
            mixed[own] = self._mix(query[own], *past)
        return mixed

    def _mix(self, query: Array, keys: Array, values: Array) -> Array:
        """Of [new tokens, heads, head size] and [key-value heads, tokens, head size]: [new tokens, heads·head size]."""
        count, length = len(query), keys.shape[1]
        grouped = query.reshape(count, self.config.kv_heads, -1, self.config.head_size).transpose(1, 2, 0, 3)
        scores = grouped @ keys[:, None].swapaxes(-1, -2) / np.float32(np.sqrt(self.config.head_size))
        later = np.arange(length)[None, :] > np.arange(length - count, length)[:, None]
        scores = np.where(later, np.float32(-np.inf), scores)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        mixed: Array = (shares @ values[:, None]).transpose(2, 0, 1, 3).reshape(count, -1)
        return mixed


def _rotated(rows: Array, cos: Array, sin: Array) -> Array:
    first, second = np.split(rows, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
