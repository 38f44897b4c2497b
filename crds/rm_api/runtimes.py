"""What is known of runtime plugins without their engines: data that placement and the SDK's plugins share.

A plugin that is not in the table, such as a vendor's own, is taken to be able to do anything. What an
AcceleratorResource says in ``capability`` counts instead of what stands here. Only the standard library is imported.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from rm_api.dtypes import DType
from rm_api.tasks import FEATURE_EMBEDDINGS
from rm_api.vllm_architectures import VLLM_ARCHITECTURES, VLLM_EMBEDDING_ARCHITECTURES

FORMAT_HUGGING_FACE: Final = "huggingface"
"""A model's directory as it is: configuration, tokenizer and safetensors files."""
FORMAT_VLLM_CACHE: Final = "vllm-cache"
"""What vLLM has compiled and tuned, and not the model."""
FORMAT_RBLN: Final = "rbln"
FORMAT_FXB: Final = "furiosa-fxb"
FORMAT_TENSORRT_LLM: Final = "tensorrt-llm"


class EngineOption(StrEnum):
    """Options of ``ModelDeployment.spec.runtime`` that an engine may have or not, by their names there."""

    PREFIX_CACHING = "prefixCaching"
    REMOTE_CODE = "trustRemoteCode"


@dataclass(frozen=True)
class RuntimeFacts:
    """What a runtime plugin serves. Empty means that it is not known, and anything is tried."""

    formats: tuple[str, ...] = ()
    """Formats of artifacts."""
    own_server: bool = False
    """True if the engine comes with an OpenAI server, whose command the plugin knows without the engine."""
    architectures: tuple[str, ...] = ()
    """As in ``architectures`` of a model's config.json."""
    embedding_architectures: tuple[str, ...] = ()
    """Further ones, of models that it computes embeddings with."""
    dtypes: tuple[DType, ...] = ()
    """Number formats of weights, quantised ones too. Of what is compiled, the BuildProfile tells them."""
    features: tuple[str, ...] = ()
    """What its server does without further options, in the words of ``capability.features``."""
    options: frozenset[EngineOption] = frozenset()


_NOTHING_KNOWN: Final = RuntimeFacts()
_PLAIN: Final = (DType.FP32, DType.FP16, DType.BF16)
_VLLM_FEATURES: Final = (FEATURE_EMBEDDINGS, "logprobs", "prefix-caching", "structured-outputs")
_OWN_FEATURES: Final = ("logprobs",)
_OWN_WITH_EMBEDDINGS: Final = (*_OWN_FEATURES, FEATURE_EMBEDDINGS)
_PREFIX_CACHING: Final = frozenset({EngineOption.PREFIX_CACHING})
_OF_VLLM: Final = frozenset({EngineOption.PREFIX_CACHING, EngineOption.REMOTE_CODE})

RUNTIMES: Final[Mapping[str, RuntimeFacts]] = MappingProxyType(
    {
        "vllm": RuntimeFacts(
            formats=(FORMAT_HUGGING_FACE, FORMAT_VLLM_CACHE),
            own_server=True,
            architectures=VLLM_ARCHITECTURES,
            embedding_architectures=VLLM_EMBEDDING_ARCHITECTURES,
            dtypes=(*_PLAIN, DType.FP8, DType.INT8, DType.INT4),
            features=_VLLM_FEATURES,
            options=_OF_VLLM,
        ),
        "vllm-cpu": RuntimeFacts(
            formats=(FORMAT_HUGGING_FACE, FORMAT_VLLM_CACHE),
            own_server=True,
            architectures=VLLM_ARCHITECTURES,
            embedding_architectures=VLLM_EMBEDDING_ARCHITECTURES,
            dtypes=(*_PLAIN, DType.INT8, DType.INT4),
            features=_VLLM_FEATURES,
            options=_OF_VLLM,
        ),
        # The registry of vllm-rbln, of what optimum-rbln compiles and that generates text.
        "rebellions": RuntimeFacts(
            formats=(FORMAT_RBLN,),
            own_server=True,
            architectures=(
                "Blip2ForConditionalGeneration",
                "ExaoneForCausalLM",
                "GPT2LMHeadModel",
                "Gemma2ForCausalLM",
                "Gemma3ForConditionalGeneration",
                "GemmaForCausalLM",
                "GptOssForCausalLM",
                "Idefics3ForConditionalGeneration",
                "LlamaForCausalLM",
                "LlavaForConditionalGeneration",
                "LlavaNextForConditionalGeneration",
                "MidmLMHeadModel",
                "MistralForCausalLM",
                "OPTForCausalLM",
                "PhiForCausalLM",
                "Qwen2ForCausalLM",
                "Qwen2VLForConditionalGeneration",
                "Qwen2_5_VLForConditionalGeneration",
                "Qwen3ForCausalLM",
            ),
            options=_PREFIX_CACHING,
        ),
        # Those that the packages of furiosa-llm 2026.4.0 name.
        "furiosa-llm": RuntimeFacts(
            formats=(FORMAT_FXB,),
            own_server=True,
            architectures=(
                "Exaone4ForCausalLM",
                "ExaoneMoEForCausalLM",
                "Gemma4ForConditionalGeneration",
                "GptOssForCausalLM",
                "LlamaForCausalLM",
                "MistralForCausalLM",
                "Qwen2ForCausalLM",
                "Qwen3ForCausalLM",
                "Qwen3MoeForCausalLM",
                "Qwen3VLForConditionalGeneration",
                "SolarOpenForCausalLM",
            ),
            features=("prefix-caching", "structured-outputs"),
            options=_PREFIX_CACHING,
        ),
        # Two backends with registries of their own, and what an engine was compiled for is the BuildProfile's.
        "tensorrt-llm": RuntimeFacts(formats=(FORMAT_TENSORRT_LLM, FORMAT_HUGGING_FACE), own_server=True),
        # Those that our own server serves. Of the compiled ones, architectures and formats are the BuildProfile's.
        "deepspeed": RuntimeFacts(formats=(FORMAT_HUGGING_FACE,), dtypes=_PLAIN, features=_OWN_FEATURES),
        "pytorch": RuntimeFacts(formats=(FORMAT_HUGGING_FACE,), dtypes=_PLAIN, features=_OWN_WITH_EMBEDDINGS),
        "openvino": RuntimeFacts(formats=("openvino-ir",), features=_OWN_WITH_EMBEDDINGS),
        "iree": RuntimeFacts(formats=("iree-vmfb",), features=_OWN_FEATURES),
        "upmem": RuntimeFacts(
            formats=("upmem-pim",), architectures=("LlamaForCausalLM",), dtypes=(DType.INT8,), features=_OWN_FEATURES
        ),
        "simulated-npu": RuntimeFacts(formats=("simulated-npu",), features=_OWN_FEATURES),
    }
)


def facts_of(plugin: str | None) -> RuntimeFacts:
    """What is known of a plugin, however its name is written; nothing where the table does not have it."""
    return RUNTIMES.get((plugin or "").lower().replace("_", "-"), _NOTHING_KNOWN)


_SERVED_BY: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        format_: tuple(sorted(name for name, facts in RUNTIMES.items() if format_ in facts.formats))
        for format_ in sorted({each for facts in RUNTIMES.values() for each in facts.formats})
    }
)


def plugins_serving(format_: str) -> tuple[str, ...]:
    """Plugins that are known to serve a format of artifacts, by name; empty for one of a vendor's or user's own."""
    return _SERVED_BY.get(format_, ())


def serves(plugin: str | None, format_: str) -> bool | None:
    """Whether a plugin serves a format of artifacts; True as well where nothing is known of the plugin.

    None for a format that no plugin is known by: an image may have been made to serve it.
    """
    formats = facts_of(plugin).formats
    if not formats or format_ in formats:
        return True
    return False if plugins_serving(format_) else None
