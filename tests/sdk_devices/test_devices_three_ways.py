"""One plugin, three ways in: a build without a device, a server, and ``init``. The same tokens come out of all."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from engine_scripts import SECONDS, UNCHANGED, Engines, expected
from scripted_model import greedy
from scripted_model.tokenizer import Tokenizer

PROMPT = "Tell me a story about the sea."
OTHER = "Write a poem about the woods, please."
RM_ABSTRACT = ("-c", "import sys; from rm_cli.main import main; sys.exit(main())")


@contextmanager
def serving(command: Sequence[object], environment: Mapping[str, str], log: Path) -> Iterator[str]:
    """``rm-abstract serve`` with this command's arguments: gives its URL when it is healthy."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*map(str, command), "--port", str(port)], env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        deadline = time.monotonic() + SECONDS
        while not healthy(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(60)
        finally:
            process.kill()


def healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def completion(url: str, prompt: Sequence[int]) -> str:
    body = {"model": "tape", "prompt": list(prompt), "max_tokens": 60, "temperature": 0}
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:
        return str(json.load(answer)["choices"][0]["text"])


@pytest.fixture(scope="module")
def artifact(openvino: Engines, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a build makes of the model for the simulated NPU: no device is there."""
    output = tmp_path_factory.mktemp("build") / "artifact"
    done = openvino.script("compile.py", "simulated-npu", output)
    assert done.lines[-1] == str(output)
    return output


@pytest.fixture(scope="module")
def npu_server(openvino: Engines, artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """What a serving pod runs, with a device."""
    command = [sys.executable, *RM_ABSTRACT, "serve", "--plugin", "simulated-npu", "--artifact", artifact]
    log = tmp_path_factory.mktemp("serving") / "log"
    with serving([*command, "--served-name", "tape"], {**os.environ, **openvino.device}, log) as url:
        yield url


def test_compile_serve_and_init_give_the_same_tokens(openvino: Engines, artifact: Path, npu_server: str) -> None:
    tokenizer = Tokenizer(openvino.model)
    prompt = tokenizer.encode(PROMPT)
    tokens = greedy(openvino.model, prompt, 60)
    seen = openvino.script("run_artifact.py", artifact, PROMPT, RM_DEVICE="npu:0", **openvino.device).result
    assert seen == {"direct": tokens, "hooked": tokens}
    assert completion(npu_server, prompt) == tokenizer.decode(tokens)


def test_a_server_of_ours_as_a_remote_device(openvino: Engines, npu_server: str) -> None:
    """It sends text and no tokens."""
    done = openvino.run("-m", "rm_abstract", UNCHANGED, openvino.model, PROMPT, OTHER, RM_DEVICE=f"remote:{npu_server}")
    assert done.lines == [expected(openvino.model, prompt) for prompt in (PROMPT, OTHER)]


def test_an_artifact_for_another_driver_is_refused_by_init_as_by_serve(openvino: Engines, artifact: Path) -> None:
    tool = openvino.directory / "other-driver"
    text = (openvino.programs / "rma-sim").read_text().replace("exec ", "", 1)
    tool.write_text(text.rstrip("\n") + " | sed 's/1[.]4[.]0/2.0.0/'\n")
    tool.chmod(0o755)
    device = {**openvino.device, "RMA_SIM_TOOL": str(tool), "RM_DEVICE": "npu:0"}
    code = (
        "import pathlib, sys, rm_abstract; from rm_abstract.core.resource import BuildArtifact as A;"
        "rm_abstract.init().backend.prepare_model(A.read(pathlib.Path(sys.argv[1])))"
    )
    done = openvino.attempt("-c", code, artifact, **device)
    assert "DriverMismatch: the artifact was built for driver 1.4.0, but npu0 has 2.0.0" in done.stderr
