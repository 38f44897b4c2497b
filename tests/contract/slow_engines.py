"""What takes minutes, and so is no part of ``make test``: ``make test-slow-engines``.

vLLM on the CPU, warmed up: a build that starts the engine, compiles, and keeps the cache; then a serving pod that
starts from it. Both pods are those of the operator, as processes, with a registry between. And DeepSpeed on the CPU,
whose environment takes 5 GB.
"""

import os
import shutil
import subprocess
from pathlib import Path

import vllm_image
from build_profile_driver import ROOT, files_in
from build_profile_shop import Shop, original, programs_of, registry, shop, stranger
from rm_abstract.core.resource import BuildArtifact
from rm_api import names
from rma_launch_driver import Binaries, free_port
from scripted_model import expected_text
from scripted_model.texts import SAMPLES
from scripted_model.tokenizer import Tokenizer

FIXTURES = (original, registry, shop, stranger)
EXAMPLE = ("vllm-cpu/build-profile.yaml", "vllm-cpu/accelerator.yaml")
WORKLOAD = {"inputTokens": 128, "outputTokens": 64, "concurrency": 4}


def test_a_warm_vllm_starts_from_its_cache(shop: Shop, original: Path, tmp_path: Path) -> None:
    build = shop.build(tmp_path, EXAMPLE, {"vllm-openai-cpu": vllm_image.image(tmp_path / "image")}, workload=WORKLOAD)
    run = build.run().succeeded()
    warm = run.containers["warm"].report.facts
    pod = shop.serving_pod(EXAMPLE, build, run, workload=WORKLOAD)

    # The pod is another one, with volumes of its own at the same places.
    shutil.rmtree(build.directory)
    (engine,) = pod["containers"]
    build.pod(pod, lambda container: container is not engine).succeeded()
    port, report_port = (
        next(word.partition("=")[2] for word in engine["command"] if word.startswith(flag))
        for flag in ("--port=", "--report-port=")
    )
    kept = build.place(f"{names.ARTIFACT_DIR}/cache")
    with vllm_image.ready(build.start(engine, {}), report_port, tmp_path / "log") as seconds:
        prompt = SAMPLES[0].prompt
        tokens = Tokenizer(build.model).encode(prompt)
        assert vllm_image.completion(port, "hello", tokens, 60) == expected_text(original, prompt, 60)
        # It found everything that it would otherwise have compiled.
        compiled = {file for file in files_in(build.place(names.CACHE_DIR)) if file.endswith((".so", ".cpp", ".py"))}
        assert compiled
        assert compiled == {file for file in files_in(kept) if file.endswith((".so", ".cpp", ".py"))}
    size = sum(path.stat().st_size for path in kept.rglob("*") if path.is_file())
    print(f"warm after {warm['readySeconds']:.0f} s; from the cache of {size} bytes ready after {seconds:.0f} s")


def test_deepspeed_says_what_the_model_says(binaries: Binaries, original: Path, tmp_path: Path) -> None:
    """Its inference engine around the model of transformers, behind our server, under the launcher."""
    artifact = tmp_path / "artifact"
    shutil.copytree(original, artifact)
    BuildArtifact(artifact, "a" * 64, "huggingface").write()
    port, report_port = str(free_port()), str(free_port())
    engine = programs_of("deepspeed")
    # What DeepSpeed has taken over it says on the level INFO.
    start = (
        "import deepspeed; logger = deepspeed.utils.logger;"
        "[each.setLevel('INFO') for each in (logger, *logger.handlers)];"
        "from rm_cli.main import main; main()"
    )
    serve = [
        str(engine / "python"), "-c", start, "serve", "--plugin=deepspeed", f"--artifact={artifact}",
        "--served-name=tape", f"--port={port}", "--max-sequence-length=256",
    ]  # fmt: skip
    environment = {
        "PATH": f"{engine}:{os.environ['PATH']}", "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(f"{ROOT}/{part}" for part in ("sdk", "crds", "cli")),
        "RMA_TERMINATION_LOG": str(tmp_path / "termination-log"),
    }  # fmt: skip
    launch = [binaries.launcher, "engine", "--served-name=tape", f"--port={port}", f"--report-port={report_port}"]
    process = subprocess.Popen(
        [*launch, "--", *serve], env=environment, cwd=tmp_path, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
    )  # fmt: skip
    tokenizer = Tokenizer(artifact)
    with vllm_image.ready(process, report_port, tmp_path / "log") as seconds:
        for sample in SAMPLES:
            said = vllm_image.completion(port, "tape", tokenizer.encode(sample.prompt), 60)
            assert said == expected_text(artifact, sample.prompt, 60)
    # The engine, and not the model of transformers alone.
    assert "DeepSpeed info: version=" in (tmp_path / "log").read_text()
    print(f"DeepSpeed ready after {seconds:.0f} s")
