"""Commands of engines that have a server of their own, made where no engine and no device is."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rm_abstract.core.errors import ArtifactMismatch, BadInput, WorkloadError
from rm_abstract.core.plugin import BackendConfig, Plugin, get_registry
from rm_abstract.core.resource import BuildArtifact
from rm_abstract.serve.command import engine_command
from rm_api.names import literal, substitute
from rm_api.runtimes import RUNTIMES
from rm_cli.main import main

Lay = Callable[..., Path]


@pytest.fixture
def lay(tmp_path: Path) -> Lay:
    """Makes a directory with these files, and an artifact of it where it gets a format."""

    def made(name: str, files: dict[str, Any], format_: str = "") -> Path:
        directory = tmp_path / name
        directory.mkdir()
        for file, content in files.items():
            (directory / file).write_text(json.dumps(content))
        if format_:
            BuildArtifact(directory, "a" * 64, format_).write()
        return directory

    return made


MODEL = {"config.json": {"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 2000, "vocab_size": 9}}
ENGINE = {"config.json": {"pretrained_config": {}, "build_config": {}}, "rank0.engine": 0}
RBLN = {**MODEL, "rbln_config.json": {}, "prefill.rbln": 0}
ALL = BackendConfig(
    dtype="fp16", max_batch_size=4, max_sequence_length=2048, tensor_parallel=2, pipeline_parallel=3,
    prefill_chunk=512, prefix_caching=False, trust_remote_code=True,
)  # fmt: skip


def command(plugin: str, artifact: Path, config: BackendConfig) -> tuple[list[str], dict[str, str]]:
    made = engine_command(plugin, artifact, config, served_name="me$$you", port=8123)
    assert made.keys() == {"argv", "env"}
    return made["argv"], made["env"]


def test_vllm(lay: Lay) -> None:
    """The length was rounded up to a bucket, beyond what the model takes."""
    model = lay("model", MODEL, "huggingface")
    argv, env = command("vllm", model, ALL)
    assert argv == [
        "vllm", "serve", str(model), "--served-model-name", "me$$$$you", "--dtype", "float16",
        "--max-model-len", "2000", "--max-num-seqs", "4", "--tensor-parallel-size", "2",
        "--pipeline-parallel-size", "3", "--max-num-batched-tokens", "512", "--no-enable-prefix-caching",
        "--trust-remote-code", "--port", "8123",
    ]  # fmt: skip
    assert env["VLLM_CACHE_ROOT"] == "${CACHE_DIR}/vllm"
    assert env["HF_HUB_OFFLINE"] == "1"
    assert "CUDA_VISIBLE_DEVICES" not in env, "the container has what it was given, counted from 0"


def test_vllm_is_told_nothing_that_nobody_said(lay: Lay) -> None:
    model = lay("model", MODEL, "huggingface")
    argv, _ = command("vllm", model, BackendConfig())
    assert argv == [
        "vllm", "serve", str(model), "--served-model-name", "me$$$$you", "--dtype", "auto", "--port", "8123",
    ]  # fmt: skip


def test_vllm_is_told_that_a_model_embeds(lay: Lay) -> None:
    """Of an architecture that could generate as well, only the model's modules say it."""
    modules = [{"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]
    argv, _ = command("vllm", lay("model", {**MODEL, "modules.json": modules}, "huggingface"), BackendConfig())
    assert argv[argv.index("--runner") + 1] == "pooling"


@pytest.mark.parametrize(
    ("dtype", "said"), [("bf16", "bfloat16"), ("fp32", "float32"), ("int4", "auto"), ("fp8", "auto")]
)
def test_vllm_finds_out_about_quantised_weights_itself(lay: Lay, dtype: str, said: str) -> None:
    argv, _ = command("vllm", lay("model", MODEL, "huggingface"), BackendConfig(dtype=dtype))
    assert argv[argv.index("--dtype") + 1] == said


def test_a_cache_of_vllm_goes_with_the_model_and_with_compiling(lay: Lay) -> None:
    cache, model = lay("artifact", {}, "vllm-cache"), lay("model", MODEL)
    with pytest.raises(BadInput, match="the model's directory has to be given too"):
        command("vllm-cpu", cache, BackendConfig())
    argv, _ = command("vllm-cpu", cache, BackendConfig(model=model))
    assert argv[:3] == ["vllm", "serve", str(model)]
    assert "--enforce-eager" not in argv
    (model / "rma-artifact.json").write_text(
        (cache / "rma-artifact.json").read_text().replace("vllm-cache", "huggingface")
    )
    argv, _ = command("vllm-cpu", model, BackendConfig())
    assert "--enforce-eager" in argv


def test_rebellions(lay: Lay) -> None:
    """Devices and shapes are compiled in."""
    compiled = lay("artifact", RBLN, "rbln")
    argv, _ = command("rebellions", compiled, ALL)
    assert argv == [
        "vllm", "serve", str(compiled), "--served-model-name", "me$$$$you", "--port", "8123",
        "--max-model-len", "2000", "--max-num-seqs", "4", "--no-enable-prefix-caching",
    ]  # fmt: skip
    with pytest.raises(ArtifactMismatch, match="nothing that optimum-rbln has compiled"):
        command("rebellions", lay("other", MODEL, "rbln"), ALL)


def test_furiosa(lay: Lay) -> None:
    bundle, model = lay("artifact", {"model.fxb": 0}, "furiosa-fxb"), lay("model", MODEL)
    argv, _ = command("furiosa-llm", bundle, BackendConfig(max_sequence_length=1024, max_batch_size=4, model=model))
    assert argv == [
        "furiosa-llm", "serve", str(model), "--served-model-name", "me$$$$you", "--port", "8123",
        "--fxb", f"{bundle}/model.fxb", "--max-model-len", "1024", "--max-concurrency", "4",
    ]  # fmt: skip
    with pytest.raises(ArtifactMismatch, match=r"has 0 files \*\.fxb; one is expected"):
        command("furiosa-llm", lay("other", {}, "furiosa-fxb"), BackendConfig(model=model))
    with pytest.raises(BadInput, match="the model's directory has to be given too"):
        command("furiosa-llm", bundle, BackendConfig())


def test_tensorrt_llm(lay: Lay) -> None:
    engine = lay("artifact", ENGINE, "tensorrt-llm")
    argv, _ = command("tensorrt-llm", engine, ALL)
    assert argv == [
        "trtllm-serve", str(engine), "--host", "0.0.0.0", "--port", "8123", "--backend", "tensorrt",
        "--tokenizer", str(engine), "--max_seq_len", "2048", "--max_batch_size", "4", "--tp_size", "2",
        "--pp_size", "3",
    ]  # fmt: skip
    model = lay("model", MODEL, "huggingface")
    argv, _ = command("tensorrt-llm", model, BackendConfig(max_sequence_length=4096))
    assert argv[4:] == ["--port", "8123", "--backend", "pytorch", "--max_seq_len", "2000"]
    with pytest.raises(ArtifactMismatch, match="has no engine"):
        command("tensorrt-llm", lay("other", MODEL, "tensorrt-llm"), ALL)


@pytest.mark.parametrize("plugin", sorted(RUNTIMES))
def test_the_table_is_what_the_plugins_say(plugin: str, lay: Lay) -> None:
    """Placement believes the table, and `serve` the plugin."""
    made, facts = get_registry().get_plugin(plugin), RUNTIMES[plugin]
    assert made.metadata().name == plugin
    assert tuple(made.metadata().formats) == facts.formats
    assert facts.own_server is (type(made).serve_command is not Plugin.serve_command)
    with pytest.raises(ArtifactMismatch, match=f"plugin {plugin} serves .*, but the artifact is blob"):
        command(plugin, lay("artifact", {}, "blob"), BackendConfig())


def test_a_nested_model_tells_its_length_too(lay: Lay) -> None:
    nested = {"config.json": {"text_config": {"max_position_embeddings": 512}}}
    argv, _ = command("vllm", lay("model", nested, "huggingface"), BackendConfig(max_sequence_length=1024))
    assert argv[argv.index("--max-model-len") + 1] == "512"


@pytest.mark.parametrize("content", ["", "[]", "{"])
def test_a_model_that_is_none_is_said(lay: Lay, content: str) -> None:
    directory = lay("model", {}, "huggingface")
    if content:
        (directory / "config.json").write_text(content)
    with pytest.raises(WorkloadError, match=r"config\.json"):
        command("vllm", directory, BackendConfig(max_sequence_length=8))


def run(*arguments: object) -> Any:
    return CliRunner().invoke(main, ["engine-command", *map(str, arguments)])


def test_the_command_is_left_for_the_launcher(lay: Lay, tmp_path: Path) -> None:
    model, output = lay("model", MODEL, "huggingface"), tmp_path / "engine.json"
    place = [f"--artifact={model}", "--served-name=tape", f"--output={output}"]
    done = run("--plugin=vllm", *place, "--dtype=bf16", "--max-batch=2", "--tensor-parallel=2", "--prefix-caching")
    assert done.exit_code == 0, done.output
    assert json.loads(output.read_text())["argv"] == [
        "vllm", "serve", str(model), "--served-model-name", "tape", "--dtype", "bfloat16", "--max-num-seqs", "2",
        "--tensor-parallel-size", "2", "--enable-prefix-caching", "--port", "8000",
    ]  # fmt: skip
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_an_engine_without_a_server_is_refused(lay: Lay, tmp_path: Path) -> None:
    model, output = lay("model", MODEL, "huggingface"), tmp_path / "engine.json"
    done = run("--plugin=pytorch", f"--artifact={model}", "--served-name=tape", f"--output={output}")
    assert (done.exit_code, output.exists()) == (64, False)
    assert "the engine of plugin pytorch has no server of its own; `rm-abstract serve` serves it" in done.output


@pytest.mark.parametrize("text", ["plain", "$", "$$", "${PORT}", "a$b", "$${X}", "$(X)"])
def test_a_literal_is_itself_again(text: str) -> None:
    assert substitute(literal(text), {}) == text


def test_variables_are_replaced_as_the_launcher_does() -> None:
    assert substitute("${A}/$$/$x/${B}", {"A": "${B}", "B": "b"}) == "${B}/$/$x/b"
    with pytest.raises(KeyError, match="C"):
        substitute("${C}", {})
