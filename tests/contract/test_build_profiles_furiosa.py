"""FuriosaAI's real compiler, up to the generated kernels: what compiles them takes minutes, see slow_compilers.py."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from build_profile_driver import Build, Image, Node, Profile, facts_of
from build_profile_shop import programs_of
from rm_api.conditions import Reason
from rma_launch_driver import Binaries

Object = dict[str, Any]
FURIOSA = ("furiosa/build-profile.yaml", "adopt-furiosa/accelerator.yaml")
LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    "max_position_embeddings": 131072, "hidden_act": "silu", "rms_norm_eps": 1e-05, "rope_theta": 500000.0,
    "rope_scaling": {
        "factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "attention_bias": False, "mlp_bias": False,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
"""What its publisher says of Llama 3.1 8B; no weights are needed."""


def write_llama(directory: Path, **changes: Any) -> Path:
    """Llama 3.1 8B without its weights: all that FuriosaAI's compiler looks at."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps({**LLAMA_8B, **changes}))
    header = json.dumps({"model.norm.weight": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]}}).encode()
    (directory / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    return directory


@pytest.fixture(scope="module")
def furiosa(binaries: Binaries, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Build]:
    """An attempt of FuriosaAI's profile at a model, up to the check: what compiles takes more than an hour."""
    llama = write_llama(tmp_path_factory.mktemp("hub") / "llama")
    images = {image: Image((programs_of("compiler-furiosa"),)) for image in Profile.load(*FURIOSA).images}
    artifact = Profile.load(*FURIOSA).artifact(facts_of(llama))

    def make(directory: Path) -> Build:
        return Node(binaries.launcher, directory, images).build(artifact)

    return make


def test_fxb_takes_a_model_by_its_config(furiosa: Callable[[Path], Build], tmp_path: Path) -> None:
    build = furiosa(tmp_path).lay(write_llama(tmp_path / "model"))
    (build.model / "model.safetensors").unlink()
    ended = build.vendor(only=["check"]).succeeded().containers["check"]
    assert "TCL kernels successfully" in ended.stdout
    assert "Dry run: skipping compilation" in ended.stdout


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "tape_recorder", "architectures": ["TapeRecorderForCausalLM"]}, ("TapeRecorder",)),
        ({"max_position_embeddings": 512}, ("exceeds max_position_embeddings=512",)),
        ({"vocab_size": 1000}, ("eos_token_ids",)),
        ({"head_dim": 128}, ("head_dim",)),
    ],
    ids=["an unknown architecture", "too long", "tokens that are none", "a member it does not know"],
)
def test_fxb_refuses_in_seconds(
    furiosa: Callable[[Path], Build], tmp_path: Path, changes: Object, words: tuple[str, ...]
) -> None:
    build = furiosa(tmp_path).lay(write_llama(tmp_path / "model", **changes))
    build.vendor(only=["check"]).last[1].failed(64, Reason.UNSUPPORTED_MODEL, *words)


def test_fxb_without_a_config(furiosa: Callable[[Path], Build], tmp_path: Path) -> None:
    build = furiosa(tmp_path).lay(write_llama(tmp_path / "model"))
    (build.model / "config.json").unlink()
    ended = build.vendor(only=["check"]).last[1]
    ended.failed(64, Reason.UNSUPPORTED_MODEL, "failed to read config file")


def test_a_bundle_that_is_none_is_not_pushed(furiosa: Callable[[Path], Build], tmp_path: Path) -> None:
    build = furiosa(tmp_path).lay(write_llama(tmp_path / "model"))
    build.output.mkdir(parents=True)
    (build.output / "model.fxb").write_bytes(b"PK\3\4 no bundle")
    build.vendor(only=["probe"]).last[1].failed(70, Reason.TOOLCHAIN_FAILED, "error")


def test_fxbs_version_is_read(furiosa: Callable[[Path], Build], tmp_path: Path) -> None:
    build, probe = furiosa(tmp_path), Profile.load(*FURIOSA).spec.version_probe
    assert probe is not None
    build.directory.mkdir()
    report = build.probe_version(probe, Image((programs_of("compiler-furiosa"),)))
    assert report.versions == {"toolchain": "2026.4.0"}


def test_fine_tunes_share_a_bundle(tmp_path: Path) -> None:
    """The result has no weights in it: it is the structure's."""
    profile = Profile.load(*FURIOSA)
    model = write_llama(tmp_path / "hub" / "base")
    tuned = write_llama(tmp_path / "hub" / "tuned")
    content = (tuned / "model.safetensors").read_bytes()
    (tuned / "model.safetensors").write_bytes(content[:-1] + b"\1")
    keys = {profile.artifact(facts_of(each))["spec"]["key"] for each in (model, tuned)}
    assert len(keys) == 1
