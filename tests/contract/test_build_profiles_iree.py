"""IREE's real compiler: from a model in a registry to a program that says what the model does."""

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from build_profile_driver import ROOT, Build, Image, Profile, Run, files_in, program
from build_profile_shop import Shop, completion, original, programs_of, registry, serving, shop, stranger
from rm_api.conditions import Reason
from scripted_model.oracle import expected_text, greedy
from scripted_model.texts import SAMPLES
from scripted_model.tokenizer import Tokenizer

FIXTURES = (original, registry, shop, stranger)

IREE = ("iree/build-profile.yaml", "iree/accelerator.yaml")
LENGTH = 128
SHORT = {"requirements": {"maxSequenceLength": LENGTH - 8}, "workload": {"inputTokens": 64, "outputTokens": 24}}
"""The program is of one length, and computes all of it for each token."""


@dataclass
class Built:
    build: Build
    run: Run
    artifact: Path
    programs: Path


@pytest.fixture(scope="module")
def iree(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Built:
    programs, directory = programs_of("compiler-iree"), tmp_path_factory.mktemp("iree")
    engine = programs_of("iree") / "python"
    start = "from rm_cli.main import main; main()"
    path = {"PYTHONPATH": os.pathsep.join(f"{ROOT}/{part}" for part in ("sdk", "crds", "cli"))}
    program(directory / "image/rm-abstract", str(engine), "-c", start, environment=path)
    images = {"iree-compiler": Image((programs,)), "iree:": Image((directory / "image",))}
    build = shop.build(directory, IREE, images, **SHORT)
    run = build.run().succeeded()
    return Built(build, run, shop.fetched(build, run, directory / "artifact"), programs)


def test_iree_makes_a_program_of_the_model(iree: Built) -> None:
    assert list(iree.run.containers) == [
        "launcher", "fetch-config", "check", "fetch", "export", "import", "compile", "tokenizer", "probe", "push",
    ]  # fmt: skip
    assert files_in(iree.artifact) == {
        "model.vmfb", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
        "special_tokens_map.json", "chat_template.jinja", "rma-artifact.json",
    }  # fmt: skip


def test_what_iree_compiled_says_what_the_model_does(iree: Built, original: Path, tmp_path: Path) -> None:
    """The text of the oracle, token by token: from the pushed and fetched program alone, on IREE's own runtime."""
    tokenizer = Tokenizer(iree.artifact)
    ids = tokenizer.encode(SAMPLES[0].prompt)
    wanted = greedy(original, ids, 6)
    for want in wanted:
        assert next_token(iree, ids, tmp_path / "logits.npy") == want
        ids.append(want)


def next_token(iree: Built, ids: list[int], output: Path) -> int:
    def tensor(values: list[int]) -> str:
        filled = values + [0] * (LENGTH - len(values))
        return f"--input=1x{LENGTH}xi64={','.join(map(str, filled))}"

    command = [
        str(iree.programs / "iree-run-module"), f"--module={iree.artifact}/model.vmfb", "--device=local-task",
        "--function=main_graph", tensor(ids), tensor([1] * len(ids)), tensor(list(range(len(ids)))),
        f"--output=@{output}",
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    return int(np.argmax(np.load(output)[0, len(ids) - 1]))


def test_a_pod_serves_it(iree: Built, shop: Shop, original: Path, tmp_path: Path) -> None:
    """The text of the oracle, from the image's own engine, in a pod that the operator made."""
    pod, prompt = shop.serving_pod(IREE, iree.build, iree.run, **SHORT), SAMPLES[0].prompt
    with serving(replace(iree.build, directory=tmp_path / "pod"), pod) as url:
        assert completion(url, prompt, 24) == expected_text(original, prompt, 24)


def test_irees_version_is_read(iree: Built) -> None:
    probe = Profile.load(*IREE).spec.version_probe
    assert probe is not None
    assert iree.build.probe_version(probe, Image((iree.programs,))).versions["toolchain"].startswith("3.13.0")


def test_a_model_that_transformers_does_not_know_is_refused_before_it_is_fetched(
    iree: Built, stranger: Path, tmp_path: Path
) -> None:
    build = replace(iree.build, directory=tmp_path / "pod").lay(stranger)
    name, ended = build.vendor().last
    assert name == "check"
    ended.failed(64, Reason.UNSUPPORTED_MODEL, "model type `tape_recorder`")


@pytest.mark.parametrize(
    ("container", "damage", "words"),
    [
        ("import", lambda build: (build.work / "onnx/model.onnx").write_bytes(b"no model"), ("DecodeError",)),
        ("import", lambda build: (build.work / "onnx/model.onnx").unlink(), ("No such file",)),
        ("compile", lambda build: (build.work / "model.mlir").write_text("func.func @main() { bogus.op }"), ("bogus",)),
        ("compile", lambda build: (build.work / "model.mlir").unlink(), ("No such file or directory",)),
        ("probe", lambda build: os.truncate(build.output / "model.vmfb", 5000), ("INVALID_ARGUMENT",)),
        ("probe", lambda build: (build.output / "model.vmfb").write_bytes(b""), ("INVALID_ARGUMENT",)),
    ],
    ids=["no ONNX", "no file", "unknown operator", "no MLIR", "truncated", "empty"],
)
def test_what_iree_refuses(
    iree: Built, tmp_path: Path, container: str, damage: Callable[[Build], object], words: tuple[str, ...]
) -> None:
    shutil.copytree(iree.build.directory, tmp_path / "pod", symlinks=True)
    build = replace(iree.build, directory=tmp_path / "pod")
    damage(build)
    name, ended = build.vendor(only=[container]).last
    assert name == container
    ended.failed(70, Reason.TOOLCHAIN_FAILED, *words)
