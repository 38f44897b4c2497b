"""Every option that a plugin can write, and those of the examples, before the engine's real parser.

The parsers are those of vLLM 0.32 and furiosa-llm 2026.4, in the environments of their tests; neither asks for a
device. vllm-rbln's command line is vLLM's. That of TensorRT-LLM comes with its libraries for GPUs alone, so its
stand-in follows the documentation.
"""

import json
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from build_profile_driver import read
from build_profile_shop import programs_of
from rm_abstract.core.plugin import BackendConfig
from rm_abstract.core.resource import BuildArtifact
from rm_abstract.serve.command import engine_command
from rm_api.names import BUILD_VARIABLES, SERVE_VARIABLES, substitute

PARSERS = Path(__file__).with_name("engine_parsers.py")
PATIENCE = 1200
"""Seconds for the imports of an engine's command line on a busy machine; reached only by a failure."""
CONFIG = {"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 2048, "vocab_size": 9}
FILES: Mapping[str, Any] = {"config.json": CONFIG, "rbln_config.json": {}, "model.fxb": 0}
FORMATS = {
    "vllm": "huggingface", "vllm-cpu": "huggingface", "rebellions": "rbln", "furiosa-llm": "furiosa-fxb",
}  # fmt: skip
SIZES = BackendConfig(
    max_batch_size=4, max_sequence_length=1024, tensor_parallel=2, pipeline_parallel=3, prefill_chunk=512
)
CONFIGS = [
    BackendConfig(),
    *(replace(SIZES, dtype=dtype, prefix_caching=True) for dtype in ("fp32", "fp16", "bf16", "fp8", "int8", "int4")),
    replace(SIZES, prefix_caching=False, trust_remote_code=True),
]
VARIABLES = dict.fromkeys(BUILD_VARIABLES | SERVE_VARIABLES, "1")


def understood(engine: str, environment: str, commands: list[list[str]]) -> list[dict[str, Any]]:
    """What the engine's parser makes of the commands, in their order; it takes them all, and not what is none."""
    # Otherwise this would hold whatever is written.
    wrong = [[engine, "serve", "/model", word] for word in ("--max-model-length=8", "--max-model-le=8", "--port=x")]
    done = subprocess.run(
        [str(programs_of(environment) / "python"), str(PARSERS), engine], input=json.dumps([*wrong, *commands]),
        capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    unknown, abbreviated, no_number, *told = json.loads(done.stdout.splitlines()[-1])
    assert (unknown, abbreviated) == ("no such option: --max-model-length", "no such option: --max-model-le")
    assert "'x'" in no_number
    refused = [(words, said) for words, said in zip(commands, told, strict=True) if isinstance(said, str)]
    assert not refused
    return list(told)


def command_of(plugin: str, directory: Path, config: BackendConfig, *further: str) -> list[str]:
    """The engine's command as rma-launch runs it, with ``runtime.args`` of an accelerator behind it."""
    model = replace(config, model=directory)
    argv = engine_command(plugin, directory, model, served_name="me$you", port=8123)["argv"]
    return [substitute(word, VARIABLES) for word in [*argv, *further]]


def further(example: str) -> list[str]:
    """``runtime.args`` of an example."""
    return list(read(f"{example}/accelerator.yaml", "AcceleratorResource")["spec"]["runtime"].get("args", []))


def warming(example: str) -> list[str]:
    """The command of the example's build, which starts the engine to fill its cache."""
    (step,) = read(f"{example}/build-profile.yaml", "BuildProfile")["spec"]["steps"]
    return [substitute(word, VARIABLES) for word in [*step["command"], *step["args"]]]


@pytest.fixture
def laid(tmp_path: Path) -> Path:
    """A directory that each plugin takes for what it serves."""
    for name, content in FILES.items():
        (tmp_path / name).write_text(json.dumps(content))
    return tmp_path


def artifact(directory: Path, plugin: str) -> Path:
    BuildArtifact(directory, "a" * 64, FORMATS[plugin]).write()
    return directory


def test_vllm_takes_what_its_plugins_write(laid: Path) -> None:
    """The plugins of three accelerators and the builds of two, with one start of Python."""
    commands = {}
    for plugin, example in (("vllm", "nvidia-vllm"), ("vllm-cpu", "vllm-cpu"), ("rebellions", "rebellions")):
        place = artifact(laid, plugin)
        for number, config in enumerate(CONFIGS):
            commands[plugin, number] = command_of(plugin, place, config, *further(example))
    options = replace(SIZES, options={"gpu_memory_utilization": "0.5", "enable-chunked-prefill": "false"})
    commands["options", 0] = command_of("vllm", artifact(laid, "vllm"), options)
    for example in ("nvidia-vllm", "vllm-cpu"):
        commands[f"warm {example}", 0] = warming(example)
    told = dict(zip(commands, understood("vllm", "vllm-cpu", list(commands.values())), strict=True))

    assert all(words[:2] == ["vllm", "serve"] for words in commands.values()), "as the images' own entry points"
    for plugin in ("vllm", "vllm-cpu", "rebellions"):
        for number in range(len(CONFIGS)):
            assert told[plugin, number]["model_tag"] == str(laid)
            assert (told[plugin, number]["served_model_name"], told[plugin, number]["port"]) == (["me$you"], 8123)
        caching = [told[plugin, number]["enable_prefix_caching"] for number in (0, 1, len(CONFIGS) - 1)]
        assert caching == [None, True, False]
    for plugin in ("vllm", "vllm-cpu"):
        last = told[plugin, len(CONFIGS) - 1]
        sizes = ("max_model_len", "max_num_seqs", "max_num_batched_tokens")
        assert [last[name] for name in sizes] == [1024, 4, 512]
        assert (last["tensor_parallel_size"], last["pipeline_parallel_size"]) == (2, 3)
        assert [told[plugin, number]["trust_remote_code"] for number in (0, len(CONFIGS) - 1)] == [False, True]
        assert [told[plugin, number]["dtype"] for number in range(1, 7)] == [
            "float32", "float16", "bfloat16", "auto", "auto", "auto",
        ]  # fmt: skip
    assert told["vllm", 0]["gpu_memory_utilization"] == 0.9
    assert (told["vllm", 0]["enforce_eager"], told["vllm-cpu", 0]["enforce_eager"]) == (False, True)
    assert told["options", 0]["gpu_memory_utilization"] == 0.5
    assert told["options", 0]["enable_chunked_prefill"] is False


def test_furiosa_llm_takes_what_its_plugin_writes(laid: Path) -> None:
    place = artifact(laid, "furiosa-llm")
    commands = [command_of("furiosa-llm", place, config, *further("furiosa")) for config in CONFIGS]
    told = understood("furiosa-llm", "compiler-furiosa", commands)
    assert all(words[:2] == ["furiosa-llm", "serve"] for words in commands)
    assert {(each["model"], each["served_model_name"], each["port"]) for each in told} == {(str(laid), "me$you", 8123)}
    assert {(each["fxb"], each["devices"]) for each in told} == {(str(laid / "model.fxb"), "npu:1")}
    last = told[-1]
    sizes = ("max_model_len", "max_concurrency", "max_num_batched_tokens", "pipeline_parallel_size")
    assert [last[name] for name in sizes] == [1024, 4, 512, 3]
    assert [told[number]["enable_prefix_caching"] for number in (0, 1, -1)] == [True, True, False]
