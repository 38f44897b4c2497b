"""A model on several devices: which engines take it, in what words, and what the others say."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rm_abstract.backends.openvino import OpenVinoPlugin
from rm_abstract.backends.pytorch import PyTorchPlugin
from rm_abstract.backends.vllm import VllmPlugin
from rm_abstract.core.errors import BadInput
from rm_abstract.core.plugin import BackendConfig, Plugin
from rm_abstract.core.resource import ARTIFACT_SCHEMA, BuildArtifact
from rm_api.names import ExitCode
from rm_cli.main import main


@pytest.fixture
def model(tmp_path: Path) -> BuildArtifact:
    config = {"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 2048, "vocab_size": 8}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "openvino_model.xml").write_text("<net/>")
    return BuildArtifact(tmp_path, "k", "huggingface")


@pytest.mark.parametrize(
    ("config", "flags"),
    [
        ({}, []),
        ({"tensor_parallel": 4}, ["--tensor-parallel-size", "4"]),
        ({"pipeline_parallel": 2}, ["--pipeline-parallel-size", "2"]),
        ({"prefill_chunk": 512}, ["--max-num-batched-tokens", "512"]),
    ],
)
def test_vllm_is_told_in_its_own_words(model: BuildArtifact, config: dict[str, Any], flags: list[str]) -> None:
    plain = VllmPlugin().prepare_resource(model, BackendConfig()).arguments
    assert VllmPlugin().prepare_resource(model, BackendConfig(**config)).arguments == (*plain, *flags)


@pytest.mark.parametrize("plugin", [OpenVinoPlugin, PyTorchPlugin])
@pytest.mark.parametrize("config", [{"tensor_parallel": 2}, {"pipeline_parallel": 2}])
def test_who_serves_from_one_device_refuses_several(
    plugin: type[Plugin], config: dict[str, int], model: BuildArtifact
) -> None:
    plugin().prepare_resource(model, BackendConfig())
    with pytest.raises(BadInput, match=r"serves a model from one device, and 2 are asked for .* BuildProfile"):
        plugin().prepare_resource(model, BackendConfig(**config))


def test_the_command_hands_it_on(tmp_path: Path, model: BuildArtifact, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[BackendConfig] = []

    class Engine(OpenVinoPlugin):
        def prepare_resource(self, resource: BuildArtifact, config: BackendConfig | None = None) -> Any:
            seen.append(config or BackendConfig())
            raise BadInput("enough")

    class Registry:
        def get_plugin(self, name: str) -> Plugin:
            return Engine()

    described = {"schema": ARTIFACT_SCHEMA, "key": "k", "format": Engine().metadata().formats[0]}
    (tmp_path / "rma-artifact.json").write_text(json.dumps(described))
    monkeypatch.setattr("rm_abstract.serve.command.get_registry", Registry)
    monkeypatch.setattr("rm_abstract.serve.main.leave_report", lambda report: None)
    flags = ("--prefill-chunk=512", "--tensor-parallel=4", "--pipeline-parallel=2")
    served = ("serve", "--plugin=x", f"--artifact={tmp_path}", "--served-name=m")
    assert CliRunner().invoke(main, (*served, *flags)).exit_code == ExitCode.BAD_INPUT
    assert CliRunner().invoke(main, served).exit_code == ExitCode.BAD_INPUT
    asked = [(each.prefill_chunk, each.tensor_parallel, each.pipeline_parallel, each.devices) for each in seen]
    assert asked == [(512, 4, 2, 8), (None, 1, 1, 1)]
