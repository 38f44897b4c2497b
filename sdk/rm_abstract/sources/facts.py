"""What a model is: figures from config.json and the tensors, and digests of what a compiled artifact depends on."""

import hashlib
import json
import posixpath
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, Final

from rm_api.tasks import ModelTask

from rm_abstract.core.embedding import MODULE_CONFIG, MODULES, SENTENCE_CONFIG, embeds, longest_input
from rm_abstract.core.errors import BadInput
from rm_abstract.sources.base import ModelSource, is_code
from rm_abstract.sources.safetensors import INDEX, MAX_HEADER, SINGLE, Tensor, header_length, shards_of, tensors_of
from rm_abstract.sources.scales import scale_tensors, tensor_digests

CONFIG_DENYLIST: Final = frozenset(
    {"_name_or_path", "_commit_hash", "transformers_version", "_attn_implementation_autoset"}
)
"""Fields of config.json that say where a model came from, and cannot change what is computed from it.

Everything else counts: a field that is left out by mistake would let two different models share an artifact.
"""

CODE_MEMBERS: Final = frozenset({"auto_map", "custom_pipelines"})
"""Members, at any depth, by which a model names code of its own."""
CODE_NAMING: Final = ("config.json", "tokenizer_config.json", "preprocessor_config.json", "generation_config.json")
_AUXILIARY: Final = (".json", ".txt", ".model", ".jinja", ".tiktoken")
_NOT_AUXILIARY: Final = frozenset({"config.json", INDEX})
_MAX_NAME: Final = 128
_EXPERT: Final = re.compile(r"\.experts\.")
_PACKED: Final = (".qweight", ".weight_packed")
_FORMATS: Final = {
    "F64": "fp32", "F32": "fp32", "F16": "fp16", "BF16": "bf16",
    "F8_E4M3": "fp8", "F8_E5M2": "fp8", "I8": "int8", "U8": "int8", "F4": "int4",
}  # fmt: skip
_ALIASES: Final = {
    "num_hidden_layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "num_attention_heads": ("num_attention_heads", "n_head", "n_heads"),
    "hidden_size": ("hidden_size", "n_embd", "d_model"),
    "max_position_embeddings": ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"),
    "num_key_value_heads": ("num_key_value_heads", "num_kv_heads", "n_head_kv"),
    "head_dim": ("head_dim",),
    "num_experts": ("num_local_experts", "num_experts", "n_routed_experts"),
    "num_experts_per_tok": ("num_experts_per_tok", "num_experts_per_token", "moe_top_k"),
}
"""The same figure has different names in different families."""


def canonical_digest(value: Any) -> str:
    """Digest of ``value`` as JSON with sorted members and no spaces."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def weights_digest(digests: Mapping[str, str]) -> str:
    """Digest of the weights, from the digests of their files by name."""
    return canonical_digest(sorted(digests.items()))


def weight_files(source: ModelSource) -> list[str]:
    """Names of the files that hold the weights. Raises BadInput where there are none in safetensors format."""
    if INDEX in source.files:
        names = shards_of(source.read(INDEX, 0, source.files[INDEX].size))
    elif SINGLE in source.files:
        names = [SINGLE]
    else:
        raise BadInput(
            f"the model has neither {SINGLE} nor {INDEX}; weights in other formats must be converted to safetensors"
        )
    for name in names:
        source.require(name)
    return names


def model_facts(source: ModelSource, *, digests: bool = True) -> dict[str, Any]:
    """The facts that a ModelDeployment's status keeps, less source and revision. BadInput where one cannot be told.

    Without ``digests`` only the figures: for the digests all of the weights may have to be read.
    """
    config = read_config(source)
    nested = config.get("text_config")
    text: dict[str, Any] = nested if isinstance(nested, dict) else config
    names = weight_files(source)
    files = {name: tensors_in(source, name) for name in names}
    tensors = [tensor for each in files.values() for tensor in each]
    if not tensors:
        raise BadInput("the weights hold no tensor")
    bits = _packed_bits(config)
    heads = _figure(text, "num_attention_heads")
    head_dim = _figure(text, "head_dim", optional=True) or max(1, _figure(text, "hidden_size") // heads)
    architectures = config.get("architectures")
    if not (isinstance(architectures, list) and architectures and _is_name(architectures[0])):
        raise BadInput("config.json names no architecture: architectures is missing or not a list of names")
    total, active = _parameters(tensors, text, bits)
    longest = _figure(text, "max_position_embeddings")
    embedding = embeds(architectures[0], _optional(source, MODULES))
    if embedding:
        sentence = _optional(source, SENTENCE_CONFIG)
        longest = longest_input(longest, text, sentence if isinstance(sentence, dict) else {})
    figures = {
        "architecture": architectures[0],
        "parameters": total,
        "activeParameters": active,
        "weightBytes": sum(tensor.bytes for tensor in tensors),
        "dtype": _dtype(tensors, config, bits),
        "layers": _figure(text, "num_hidden_layers"),
        "heads": heads,
        "kvHeads": _figure(text, "num_key_value_heads", optional=True) or heads,
        "headDim": head_dim,
        "maxSequenceLength": longest,
        **({"task": str(ModelTask.EMBED)} if embedding else {}),
    }
    if not digests:
        return figures
    return {
        **figures,
        **_digests(source, config, files, weights_digest({name: source.digest(name) for name in names})),
        **_code(source),
    }


def model_digests(source: ModelSource) -> dict[str, str]:
    """The digests among a model's facts, by their names there: what a key is made of. BadInput where it is no model."""
    names = weight_files(source)
    files = {name: tensors_in(source, name) for name in names}
    weights = weights_digest({name: source.digest(name) for name in names})
    return _digests(source, read_config(source), files, weights)


def scales_without_parts(weights: str) -> str:
    """The digest of the scales of a model of which parts cannot be read: that of all weights stands for it."""
    return canonical_digest({"weights": weights})


def config_digest(source: ModelSource) -> str:
    """The digest of what of a model are no weights."""
    return _config_digest(source, read_config(source))


def _code(source: ModelSource) -> dict[str, Any]:
    if not brings_code(source):
        return {}
    digest = code_digest(source)
    return {"remoteCode": True, **({"remoteCodeDigest": digest} if digest else {})}


def code_digest(source: ModelSource) -> str:
    """Digest of the model's own code: all of its files, by name; empty where what its configs name is not among them.

    What they name in another repository may change there at any time, so it cannot be pinned.
    """
    named: set[str] = set()
    for found in _configs(source):
        named.update(_code_named(found))
    files = {name: source.digest(name) for name in source.files if is_code(name)}
    return canonical_digest(sorted(files.items())) if named and named <= files.keys() else ""


def _code_named(config: Any) -> Iterator[str]:
    """The files that the members of a config that name code are about."""
    for each in _members(config):
        maps = [each["auto_map"]] if "auto_map" in each else []
        pipelines = each.get("custom_pipelines")
        if isinstance(pipelines, dict):
            maps += [one.get("impl") for one in pipelines.values() if isinstance(one, dict)]
        elif "custom_pipelines" in each:
            maps.append(pipelines)
        for one in maps:
            values = list(one.values()) if isinstance(one, dict) else [one]
            references = [name for value in values for name in (value if isinstance(value, list) else [value])]
            # Of what is no reference to a class of a module beside it, no file is found.
            yield from (f"{str(name).rpartition('.')[0]}.py" for name in references if name is not None)


def brings_code(source: ModelSource) -> bool:
    """True if the model names code of its own that loads it (``auto_map``, as transformers call it)."""
    return any(not CODE_MEMBERS.isdisjoint(each) for found in _configs(source) for each in _members(found))


def _configs(source: ModelSource) -> Iterator[Any]:
    """What the configs say that may name code; one that is no JSON says nothing."""
    for name in source.files:
        if name in CODE_NAMING and source.files[name].size <= MAX_HEADER:
            with suppress(ValueError):
                yield json.loads(source.read(name, 0, source.files[name].size))


def _members(value: Any) -> Iterator[dict[str, Any]]:
    """All objects in it, at any depth."""
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            yield each
            waiting += each.values()
        elif isinstance(each, list):
            waiting += each


def _digests(
    source: ModelSource, config: dict[str, Any], files: Mapping[str, list[Tensor]], weights: str
) -> dict[str, str]:
    tensors = [tensor for each in files.values() for tensor in each]
    return {
        "configDigest": _config_digest(source, config),
        "tensorsDigest": canonical_digest(
            sorted([tensor.name, tensor.dtype, list(tensor.shape)] for tensor in tensors)
        ),
        "weightsDigest": weights,
        **_scales_digest(source, files, weights),
    }


def _scales_digest(source: ModelSource, files: Mapping[str, list[Tensor]], weights: str) -> dict[str, str]:
    """Digest of the content of the scales, if there are any; of all weights where they cannot be read by themselves."""
    if not any(scale_tensors(tensors) for tensors in files.values()):
        return {}
    rows = tensor_digests(source, files)
    return {"scalesDigest": canonical_digest(rows) if rows else scales_without_parts(weights)}


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value.isidentifier() and len(value) <= _MAX_NAME


def read_config(source: ModelSource) -> dict[str, Any]:
    """config.json. Raises BadInput where there is none that can be read."""
    size = source.require("config.json").size
    if size > MAX_HEADER:
        raise BadInput(f"config.json has {size} bytes, which cannot be right")
    try:
        config = json.loads(source.read("config.json", 0, size))
    except ValueError as error:
        raise BadInput(f"config.json is not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise BadInput("config.json is no JSON object")
    return config


def _optional(source: ModelSource, name: str) -> Any:
    """What a file of the model holds, as JSON; None where it has none of that name. BadInput where it is not valid."""
    if name not in source.files:
        return None
    size = source.files[name].size
    if size > MAX_HEADER:
        raise BadInput(f"{name} has {size} bytes, which cannot be right")
    try:
        return json.loads(source.read(name, 0, size))
    except ValueError as error:
        raise BadInput(f"{name} is not valid JSON: {error}") from None


def _config_digest(source: ModelSource, config: dict[str, Any]) -> str:
    """Config, and what else a compiler takes over into its result: tokenizer, chat template, generation defaults.

    A corrected chat template leaves config.json and weights as they are, and must still not get the old artifact.
    """
    kept = {key: value for key, value in config.items() if key not in CONFIG_DENYLIST}
    auxiliary = {name: source.digest(name) for name in source.files if is_auxiliary(name)}
    return canonical_digest({"config": kept, "files": auxiliary})


def is_auxiliary(name: str) -> bool:
    """True if the content of a file counts for the config's digest, beside config.json."""
    if MODULE_CONFIG.fullmatch(name):
        return True
    return "/" not in name and name not in _NOT_AUXILIARY and posixpath.splitext(name)[1] in _AUXILIARY


def tensors_in(source: ModelSource, name: str) -> list[Tensor]:
    """The tensors of a safetensors file. Raises BadInput where it is none."""
    size = source.files[name].size
    head = source.read(name, 0, min(size, 8))
    length = header_length(head)
    if len(head) < 8 or length > min(MAX_HEADER, size - 8):
        raise BadInput(f"{name} is no safetensors file: its header would have {length} of its {size} bytes")
    header = source.read(name, 8, length)
    return tensors_of(name, header, size)


def _figure(config: Mapping[str, Any], name: str, *, optional: bool = False) -> int:
    """A figure of config.json by any of its names, at least 1; 0 if it is optional and not there."""
    for alias in _ALIASES[name]:
        value = config.get(alias)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise BadInput(f"config.json: {alias} is {value!r}, but must be a whole number of at least 1")
        return value
    if optional:
        return 0
    raise BadInput(f"config.json lacks {name}; known names of it are {', '.join(_ALIASES[name])}")


def _packed_bits(config: Mapping[str, Any]) -> int:
    """Bits of a weight where several are packed into one number (GPTQ, AWQ, compressed-tensors); 0 where none are."""
    quantization = config.get("quantization_config")
    if not isinstance(quantization, dict):
        return 0
    bits = quantization.get("bits") or quantization.get("w_bit")
    if bits is None and isinstance(quantization.get("config_groups"), dict):
        groups = [group for group in quantization["config_groups"].values() if isinstance(group, dict)]
        bits = next((group["weights"]["num_bits"] for group in groups if isinstance(group.get("weights"), dict)), None)
    return bits if bits in (4, 8) else 0


def _parameters(tensors: list[Tensor], config: Mapping[str, Any], bits: int) -> tuple[int, int]:
    """Parameters, and those that one token uses: of a mixture of experts, only as many experts as it is routed to."""
    total = experts = 0
    for tensor in tensors:
        count = tensor.elements
        if bits and tensor.name.endswith(_PACKED) and tensor.dtype in ("I32", "U32"):
            count = count * 32 // bits
        total += count
        if _EXPERT.search(tensor.name):
            experts += count
    available = _figure(config, "num_experts", optional=True)
    routed = _figure(config, "num_experts_per_tok", optional=True)
    if not experts or not available or not routed:
        return total, total
    return total, total - experts + experts * min(routed, available) // available


def _dtype(tensors: list[Tensor], config: Mapping[str, Any], bits: int) -> str:
    """The format of most bytes."""
    if bits:
        return f"int{bits}"
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        sizes[_FORMATS.get(tensor.dtype, "")] += tensor.bytes
    dtype = sizes.most_common(1)[0][0]
    if not dtype:
        raise BadInput(
            f"the weights are in number formats that are not supported: {', '.join(sorted({t.dtype for t in tensors}))}"
        )
    return dtype
