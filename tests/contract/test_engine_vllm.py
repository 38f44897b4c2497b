"""The real vLLM on the CPU: a command that was made without it, run by rma-launch as in its image."""

import os
import subprocess
from pathlib import Path

import vllm_image
from build_profile_driver import runtime_image
from rm_abstract.core.resource import BuildArtifact
from rma_launch_driver import Binaries, free_port
from scripted_model import expected_text, write_model
from scripted_model.texts import SAMPLES
from scripted_model.tokenizer import Tokenizer


def test_vllm_says_what_the_model_says(binaries: Binaries, tmp_path: Path) -> None:
    """Text, name, limit and version, with one start of the engine."""
    artifact, command = tmp_path / "artifact", tmp_path / "engine.json"
    write_model(artifact)
    BuildArtifact(artifact, "a" * 64, "huggingface").write()
    ours = runtime_image(tmp_path / "ours")
    asked = [
        "--plugin=vllm-cpu", f"--artifact={artifact}", "--served-name=tape", f"--output={command}", "--dtype=bf16",
        "--max-batch=2", "--max-sequence-length=256", "--no-prefix-caching",
    ]  # fmt: skip
    port, report_port = str(free_port()), str(free_port())
    made = [str(ours.programs[0] / "rm-abstract"), "engine-command", *asked, f"--port={port}"]
    subprocess.run(made, env={**os.environ, **ours.environment}, check=True, capture_output=True)

    engine = vllm_image.image(tmp_path / "image")
    environment = {
        "PATH": engine.path, **engine.environment, "HOME": str(tmp_path), "CACHE_DIR": str(tmp_path / "cache"),
        "VLLM_CPU_KVCACHE_SPACE": "1", "RMA_TERMINATION_LOG": str(tmp_path / "termination-log"),
    }  # fmt: skip
    launch = [
        binaries.launcher, "engine", "--served-name=tape", f"--port={port}", f"--report-port={report_port}",
        f"--command-file={command}", "--", "--seed=1",
    ]  # fmt: skip
    process = subprocess.Popen(
        launch, env=environment, cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, errors="replace",
    )  # fmt: skip
    tokenizer = Tokenizer(artifact)
    with vllm_image.ready(process, report_port, tmp_path / "log"):
        for sample in SAMPLES[:2]:
            said = vllm_image.completion(port, "tape", tokenizer.encode(sample.prompt), 60)
            assert said == expected_text(artifact, sample.prompt, 60)
        (model,) = vllm_image.get(f"http://127.0.0.1:{port}/v1/models")["data"]
        assert (model["id"], model["max_model_len"]) == ("tape", 256)
        report = vllm_image.get(f"http://127.0.0.1:{report_port}/rma/v1/report")
        assert report["versions"] == {"engine": vllm_image.VERSION}
    assert (tmp_path / "cache" / "vllm").is_dir(), "what it keeps goes where there is room for it"
