"""`rm-abstract serve` with real engines: exact text, usage, seeds, the device's part, graceful and failing ends.

The model is the scripted one, exported by `optimum-cli export openvino`.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from rm_abstract.backends.simulated_npu.blob import Target, read_program, write_blob
from rm_abstract.backends.simulated_npu.compiler import BLOB
from rm_abstract.core.resource import BuildArtifact
from rm_device_plugins.simulator_tool import change, initialise
from rm_local_cluster import environments
from scripted_model import SAMPLES, expected_text, write_model
from scripted_model.tokenizer import Tokenizer

PRODUCT = "Simulated NPU X1"
RM_ABSTRACT = [sys.executable, "-c", "from rm_cli.main import main; main()"]
RMA_SIM_COMPILE = [
    sys.executable,
    "-c",
    "import sys; from rm_abstract.backends.simulated_npu.compiler import main; sys.exit(main())",
]


def _say(line: str) -> None:
    # Making an environment takes a while on a fresh machine: whoever watches sees where it is.
    os.write(2, f"{line}\n".encode())


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model before it was exported, for the oracle."""
    directory = tmp_path_factory.mktemp("model")
    write_model(directory)
    return directory


@pytest.fixture(scope="module")
def exported(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the real compiler makes of the model."""
    directory = tmp_path_factory.mktemp("ir")
    program = environments.ensure("pytorch-openvino", _say) / "bin/optimum-cli"
    options = ["--task=text-generation-with-past", "--weight-format=fp16", directory]
    subprocess.run(
        [program, "export", "openvino", f"--model={original}", *options],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""},
        check=True,
        capture_output=True,
    )
    return directory


@dataclass(frozen=True)
class Node:
    """A node with a simulated NPU, as a container that was given it sees it."""

    root: Path
    environment: dict[str, str]


def make_node(directory: Path) -> Node:
    root = directory / "sim"
    initialise(root, 1, PRODUCT, "1.4.0")
    tool = directory / "rma-sim"
    tool.write_text(
        f'#!/bin/sh\nexec {sys.executable} -m rm_device_plugins.simulator_tool "$@" --driver-dir {root}/driver\n'
    )
    tool.chmod(0o755)
    environment = {
        "RMA_SIM_TOOL": str(tool),
        "RMA_DEVICE_NODES": f"{root}/dev/npu0=1:3",
        "RMA_DEVICE_SERIALS": "SIMX1-0000",
        "RMA_DEVICE_PRODUCT": PRODUCT,
    }
    return Node(root, environment)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return make_node(tmp_path)


def run_compiler(model: Path, output: Path, target: str = "simx1:driver=1.4.0") -> "subprocess.CompletedProcess[str]":
    arguments = ["--model", str(model), "--target", target, "--output", str(output)]
    return subprocess.run([*RMA_SIM_COMPILE, *arguments], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def artifacts(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, BuildArtifact]:
    """What the two build profiles make, by plugin."""
    root = tmp_path_factory.mktemp("artifacts")
    shutil.copytree(exported, root / "ir")
    compiled = run_compiler(exported, root / "blob")
    assert compiled.returncode == 0, compiled.stderr
    found = {
        "openvino": BuildArtifact(root / "ir", "k1", "openvino-ir"),
        "simulated-npu": BuildArtifact(root / "blob", "k2", "simulated-npu", (PRODUCT,), ("1.4.0",)),
    }
    for artifact in found.values():
        artifact.write()
    return found


@dataclass
class Serving:
    """A process that serves."""

    process: "subprocess.Popen[bytes]"
    url: str
    directory: Path

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60)

    def engine_report(self) -> dict[str, Any]:
        return dict(json.loads((self.directory / "engine.json").read_text()))

    def report(self) -> dict[str, Any]:
        return dict(json.loads((self.directory / "termination-log").read_text()))

    def log(self) -> str:
        return (self.directory / "log").read_text()

    def wait_until_healthy(self) -> "Serving":
        wait_for(lambda: self.process.poll() is not None or answers(f"{self.url}/health"), 60)
        assert self.process.poll() is None, self.log()
        return self

    def ended(self) -> int:
        return self.process.wait(60)


def answers(url: str) -> bool:
    try:
        return httpx2.get(url, timeout=5).status_code == 200
    except httpx2.TransportError:
        return False


def wait_for(condition: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


def start(
    plugin: str, artifact: BuildArtifact, directory: Path, environment: Mapping[str, str] | None = None, *options: str
) -> Serving:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    directory.mkdir(exist_ok=True)
    variables = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RMA_")},
        **(environment or {}),
        "RMA_ENGINE_REPORT": str(directory / "engine.json"),
        "RMA_TERMINATION_LOG": str(directory / "termination-log"),
    }
    arguments = ["--plugin", plugin, "--artifact", str(artifact.path), "--served-name", "tape", "--port", str(port)]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen([*RM_ABSTRACT, "serve", *arguments, *options], env=variables, stdout=log, stderr=log)
    return Serving(process, f"http://127.0.0.1:{port}", directory)


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., Serving]]:
    """Starts servers, and stops those that are left."""
    started: list[Serving] = []

    def launch(
        plugin: str, artifact: BuildArtifact, environment: Mapping[str, str] | None = None, *options: str
    ) -> Serving:
        started.append(start(plugin, artifact, tmp_path / f"serving-{len(started)}", environment, *options))
        return started[-1]

    yield launch
    for serving in started:
        serving.process.kill()
        serving.process.wait(10)


@pytest.fixture(scope="module", params=["openvino", "simulated-npu"])
def serving(
    request: pytest.FixtureRequest, artifacts: dict[str, BuildArtifact], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Serving]:
    """A server per engine, for the tests that leave it as it was."""
    directory = tmp_path_factory.mktemp("serving")
    environment = make_node(directory).environment if request.param == "simulated-npu" else {}
    serving = start(request.param, artifacts[request.param], directory, environment, "--max-batch", "4")
    try:
        yield serving.wait_until_healthy()
    finally:
        serving.process.kill()
        serving.process.wait(10)


def expected(original: Path, prompt: str, *, chat: bool) -> str:
    return expected_text(original, [{"role": "user", "content": prompt}] if chat else prompt)


@pytest.mark.parametrize("chat", [False, True], ids=["completion", "chat"])
def test_every_answer_is_the_oracles_also_when_all_are_asked_at_once(
    serving: Serving, original: Path, chat: bool
) -> None:
    tokenizer = Tokenizer(original)

    def ask(prompt: str) -> tuple[str, str, int, int]:
        if chat:
            answer = serving.client.chat.completions.create(
                model="tape", messages=[{"role": "user", "content": prompt}], temperature=0
            )
            text, finish = answer.choices[0].message.content, answer.choices[0].finish_reason
        else:
            answer = serving.client.completions.create(model="tape", prompt=prompt, temperature=0, max_tokens=128)  # type: ignore[assignment]
            text, finish = answer.choices[0].text, answer.choices[0].finish_reason  # type: ignore[attr-defined]
        assert answer.usage is not None
        return text or "", finish, answer.usage.prompt_tokens, answer.usage.completion_tokens

    prompts = [sample.prompt for sample in SAMPLES]
    with ThreadPoolExecutor(len(prompts)) as pool:
        found = list(pool.map(ask, prompts))
    for prompt, (text, finish, prompt_tokens, completion_tokens) in zip(prompts, found, strict=True):
        wanted = expected(original, prompt, chat=chat)
        message = [{"role": "user", "content": prompt}]
        asked = tokenizer.encode_chat(message) if chat else tokenizer.encode(prompt)
        spoken = tokenizer.encode(wanted, add_special_tokens=False)
        assert (text, finish, prompt_tokens, completion_tokens) == (wanted, "stop", len(asked), len(spoken) + 1)


def test_streamed_pieces_are_the_answer(serving: Serving, original: Path) -> None:
    prompt = SAMPLES[0].prompt
    chunks = list(
        serving.client.completions.create(model="tape", prompt=prompt, temperature=0, max_tokens=128, stream=True)
    )
    texts = [chunk.choices[0].text for chunk in chunks]
    assert "".join(texts) == expected(original, prompt, chat=False)
    assert len(texts) > 20


def test_limits_and_stop_strings_cut_the_answer(serving: Serving, original: Path) -> None:
    prompt = SAMPLES[0].prompt
    whole = expected(original, prompt, chat=False)
    tokens = Tokenizer(original).encode(whole, add_special_tokens=False)
    ask = serving.client.completions.create
    cut = ask(model="tape", prompt=prompt, temperature=0, max_tokens=7)
    assert cut.choices[0].text == Tokenizer(original).decode(tokens[:7])
    assert (cut.choices[0].finish_reason, cut.usage and cut.usage.completion_tokens) == ("length", 7)
    word = whole.split()[5]
    stopped = ask(model="tape", prompt=prompt, temperature=0, max_tokens=128, stop=word)
    assert (stopped.choices[0].text, stopped.choices[0].finish_reason) == (whole[: whole.index(word)], "stop")


def test_a_seed_fixes_what_is_sampled_whatever_else_is_running(serving: Serving) -> None:
    def ask(seed: int) -> str:
        answer = serving.client.completions.create(
            model="tape", prompt="The", temperature=2, max_tokens=300, seed=seed, extra_body={"ignore_eos": True},
            frequency_penalty=2, presence_penalty=2,
        )  # fmt: skip
        return answer.choices[0].text

    alone = [ask(1), ask(2)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(ask, [1, 2, 3, 4, 1, 2, 5, 6]))
    assert together[:2] == together[4:6] == alone
    assert len(set(together)) == 6


def test_a_client_that_leaves_does_not_disturb_the_next(serving: Serving, original: Path) -> None:
    for _ in range(6):
        with httpx2.stream(
            "POST", f"{serving.url}/v1/completions",
            json={"model": "tape", "prompt": "The", "max_tokens": 900, "ignore_eos": True, "stream": True},
        ) as response:  # fmt: skip
            next(response.iter_lines())
    answer = serving.client.completions.create(model="tape", prompt=SAMPLES[3].prompt, temperature=0, max_tokens=128)
    assert answer.choices[0].text == expected(original, SAMPLES[3].prompt, chat=False)


def test_a_prompt_of_the_whole_context(serving: Serving) -> None:
    (model,) = httpx2.get(f"{serving.url}/v1/models").json()["data"]
    prompt = [5] * (model["max_model_len"] - 1)
    answer = serving.client.completions.create(model="tape", prompt=prompt, max_tokens=1, temperature=0)
    assert answer.usage is not None
    assert answer.usage.total_tokens == model["max_model_len"]
    with pytest.raises(openai.BadRequestError):
        serving.client.completions.create(model="tape", prompt=prompt, max_tokens=2)


def test_a_message_that_the_chat_template_cannot_render_is_a_bad_request_or_is_rendered(serving: Serving) -> None:
    response = httpx2.post(
        f"{serving.url}/v1/chat/completions", timeout=30,
        json={"model": "tape", "messages": [{"role": "nobody", "content": "a"}], "max_tokens": 1},
    )  # fmt: skip
    assert response.status_code in (200, 400)


def test_what_was_observed_is_reported(serving: Serving) -> None:
    report = serving.engine_report()
    assert report["versions"]["openvino"].startswith("2026.4")
    if "driver" in report:
        assert report["observedDevice"] | {"node": "npu0"} == {
            "serial": "SIMX1-0000",
            "product": PRODUCT,
            "node": "npu0",
        }
        assert (report["driver"], Path(report["observedDevice"]["node"]).name) == ("1.4.0", "npu0")
    else:
        assert report["observedDevice"]["product"]


def test_the_blob_alone_is_what_is_served(
    launch: Callable[..., Serving], artifacts: dict[str, BuildArtifact], node: Node, original: Path
) -> None:
    artifact = artifacts["simulated-npu"]
    assert not list(artifact.path.glob("openvino_model.*")), "the exported model must not be part of the artifact"
    serving = launch("simulated-npu", artifact, node.environment).wait_until_healthy()
    answer = serving.client.completions.create(model="tape", prompt=SAMPLES[0].prompt, temperature=0, max_tokens=128)
    assert answer.choices[0].text == expected(original, SAMPLES[0].prompt, chat=False)


@pytest.mark.parametrize("plugin", ["openvino", "simulated-npu"])
def test_sigterm_finishes_what_was_begun(
    launch: Callable[..., Serving], artifacts: dict[str, BuildArtifact], node: Node, plugin: str
) -> None:
    serving = launch(plugin, artifacts[plugin], node.environment).wait_until_healthy()
    stream = serving.client.completions.create(
        model="tape", prompt="The", max_tokens=900, stream=True, extra_body={"ignore_eos": True},
        stream_options={"include_usage": True},
    )  # fmt: skip
    next(stream)
    serving.process.send_signal(signal.SIGTERM)
    wait_for(lambda: not answers(f"{serving.url}/health"), 10)
    with pytest.raises((openai.InternalServerError, openai.APIConnectionError)):
        serving.client.completions.create(model="tape", prompt="The")
    last = list(stream)[-1]
    assert last.usage is not None
    assert last.usage.completion_tokens == 900
    assert serving.ended() == 0


def forget_device(node: Node) -> None:
    (node.root / "dev/npu0").unlink()


@pytest.mark.parametrize(
    ("happen", "code", "reason"),
    [
        (lambda node: change(node.root, driver="1.5.0"), 67, "DriverMismatch"),
        (lambda node: change(node.root, device=0, serial="SIMX1-9999"), 66, "DeviceMissing"),
        (forget_device, 66, "DeviceMissing"),
        (lambda node: shutil.rmtree(node.root / "driver"), 66, "DeviceMissing"),
    ],
    ids=["driver", "serial", "node", "no driver"],
)
def test_a_device_that_is_not_the_one(
    launch: Callable[..., Serving],
    artifacts: dict[str, BuildArtifact],
    node: Node,
    happen: Callable[[Node], object],
    code: int,
    reason: str,
) -> None:
    happen(node)
    serving = launch("simulated-npu", artifacts["simulated-npu"], node.environment)
    assert serving.ended() == code, serving.log()
    assert serving.engine_report()["reason"] == serving.report()["reason"] == reason
    assert serving.report()["message"]


def copied(artifact: BuildArtifact, directory: Path, **changes: Any) -> BuildArtifact:
    shutil.copytree(artifact.path, directory)
    copy = replace(artifact, path=directory, **changes)
    copy.write()
    return copy


def rewrite(
    blob: Path, *, compiler: str | None = None, program: bytes | None = None, target: Target | None = None
) -> None:
    header, content = read_program(blob)
    target = target or Target(header.product, header.driver)
    write_blob(blob, target, compiler or header.compiler, content if program is None else program)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / BLOB).unlink(), "has no model.simx"),
        (lambda path: (path / BLOB).write_bytes((path / BLOB).read_bytes()[:-9]), "is damaged"),
        (lambda path: rewrite(path / BLOB, program=b"no program" * 100), "cannot be loaded"),
        (lambda path: rewrite(path / BLOB, compiler="2025.0"), "only that can load it"),
        (lambda path: rewrite(path / BLOB, target=Target(PRODUCT, "1.3.0")), "is bound to"),
        (lambda path: (path / "openvino_tokenizer.xml").unlink(), "has no openvino_tokenizer.xml"),
        (lambda path: (path / "config.json").write_text("{}"), "lacks max_position_embeddings"),
        (lambda path: (path / "rma-artifact.json").unlink(), "is no artifact"),
    ],
    ids=[
        "no blob",
        "truncated",
        "no program",
        "compiler",
        "driver of the blob",
        "tokenizer",
        "config",
        "no description",
    ],
)
def test_an_artifact_that_is_not_what_it_should_be(
    launch: Callable[..., Serving],
    artifacts: dict[str, BuildArtifact],
    node: Node,
    tmp_path: Path,
    damage: Callable[[Path], object],
    message: str,
) -> None:
    artifact = copied(artifacts["simulated-npu"], tmp_path / "copy")
    damage(artifact.path)
    serving = launch("simulated-npu", artifact, node.environment)
    assert serving.ended() == 65, serving.log()
    assert serving.report()["reason"] == "ArtifactMismatch"
    assert message in serving.report()["message"]


def test_an_exported_model_that_is_damaged(
    launch: Callable[..., Serving], artifacts: dict[str, BuildArtifact], tmp_path: Path
) -> None:
    artifact = copied(artifacts["openvino"], tmp_path / "copy")
    (artifact.path / "openvino_model.xml").write_text("<no model/>")
    serving = launch("openvino", artifact)
    assert serving.ended() == 65, serving.log()
    assert "cannot load the model" in serving.report()["message"]


@pytest.mark.parametrize(
    ("plugin", "artifact", "code", "message"),
    [
        ("openvino", "simulated-npu", 65, "but the artifact is simulated-npu"),
        ("simulated-npu", "openvino", 65, "but the artifact is openvino-ir"),
        ("no-such", "openvino", 64, "there is no runtime plugin named no-such"),
    ],
)
def test_a_plugin_that_does_not_go_with_the_artifact(
    launch: Callable[..., Serving],
    artifacts: dict[str, BuildArtifact],
    plugin: str,
    artifact: str,
    code: int,
    message: str,
) -> None:
    serving = launch(plugin, artifacts[artifact])
    assert serving.ended() == code
    assert message in serving.report()["message"]


def test_an_engine_that_dies_ends_the_server_with_its_reason(
    launch: Callable[..., Serving], artifacts: dict[str, BuildArtifact]
) -> None:
    serving = launch("openvino", artifacts["openvino"]).wait_until_healthy()
    children = Path(f"/proc/{serving.process.pid}/task/{serving.process.pid}/children").read_text().split()
    for child in children:
        os.kill(int(child), signal.SIGKILL)
    assert serving.ended() == 70, serving.log()
    assert serving.report()["reason"] == serving.engine_report()["reason"] == "EngineFailed"
    assert "ended with -9" in serving.report()["message"]


@pytest.mark.parametrize(
    ("target", "present", "code"),
    [("simx1:driver=1.4.0", False, 64), ("simx9:driver=1.4.0", True, 64), ("simx1", True, 64)],
    ids=["no model", "no such product", "no driver"],
)
def test_what_the_compiler_refuses(exported: Path, tmp_path: Path, target: str, present: bool, code: int) -> None:
    done = run_compiler(exported if present else tmp_path, tmp_path / "out", target)
    assert done.returncode == code
    assert json.loads(done.stdout)["message"]
    assert not (tmp_path / "out" / BLOB).exists()


def test_a_model_that_the_compiler_cannot_read(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "ir")
    (tmp_path / "ir/openvino_model.xml").write_text("<net/>")
    done = run_compiler(tmp_path / "ir", tmp_path / "out")
    assert done.returncode == 70
    assert json.loads(done.stdout)["reason"] == "ToolchainFailed"
