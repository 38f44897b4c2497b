"""Our server with a real engine under ``rma-launch``, as in a pod: the official client, probabilities, a real hang."""

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families
from rm_abstract.backends.simulated_npu.compiler import BLOB
from rm_abstract.core.resource import BuildArtifact
from rm_api import names
from rm_api.conditions import Reason
from rm_api.names import ExitCode
from rm_device_plugins.simulator_tool import initialise
from rm_local_cluster import environments
from rma_launch_driver import PATIENCE, Launch, free_port, running, until
from scripted_model import SAMPLES, expected_text, write_model

PRODUCT = "Simulated NPU X1"
PROMPT = SAMPLES[0].prompt
OPEN = "The"
SERVE = [sys.executable, "-c", "from rm_cli.main import main; main()", "serve"]
COMPILE = [
    sys.executable, "-c", "import sys; from rm_abstract.backends.simulated_npu.compiler import main; sys.exit(main())",
]  # fmt: skip
PREPARE = """
import json, sys, torch
from pathlib import Path
from optimum.commands.optimum_cli import main
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
model, exported, told, prompt, opening = sys.argv[1:]
weights = model + "/model.safetensors"
tensors = load_file(weights)
tensors["model.norm.weight"] *= 0.1
save_file(tensors, weights, {"format": "pt"})
tokenizer = AutoTokenizer.from_pretrained(model)
native = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
ids = tokenizer.encode(prompt)
likeliest = []
with torch.inference_mode():
    for _ in range(6):
        scores = torch.log_softmax(native(torch.tensor([ids])).logits[0, -1], -1)
        best = scores.topk(5)
        ids.append(int(best.indices[0]))
        likeliest.append(best.values.tolist())
    scores = torch.log_softmax(native(torch.tensor([tokenizer.encode(opening)])).logits[0, -1], -1)
texts = {tokenizer.decode([token]): score for token, score in enumerate(scores.tolist())}
Path(told).write_text(json.dumps([likeliest, texts]))
options = ["--task=text-generation-with-past", "--weight-format=fp16"]
sys.argv = ["optimum-cli", "export", "openvino", "--model=" + model, *options, exported]
main()
"""
"""The scripted model is always certain. With smaller logits it says the same where the likeliest token is taken, and
has something to tell of probabilities; what, PyTorch tells, before the exporter has the model. All of it in one
process: it is the libraries that take long to load."""


@dataclass(frozen=True)
class Models:
    """The scripted model, and what the real compilers made of it, by plugin."""

    original: Path
    artifacts: dict[str, BuildArtifact]
    likeliest: list[list[float]]
    """Of the first tokens of the answer to PROMPT: the logarithms of the probabilities of the five likeliest."""
    texts: dict[str, float]
    """Of what may follow OPEN: text of a token → logarithm of its probability."""


def _say(line: str) -> None:
    # Making an environment takes a while on a fresh machine: whoever watches sees where it is.
    os.write(2, f"{line}\n".encode())


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    python = environments.ensure("pytorch-openvino", _say) / "bin/python"
    directory = tmp_path_factory.mktemp("models")
    original, exported, blob = directory / "original", directory / "ir", directory / "blob"
    write_model(original)
    told = directory / "told.json"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    subprocess.run(
        [python, "-c", PREPARE, original, exported, told, PROMPT, OPEN], env=environment, check=True,
        capture_output=True,
    )  # fmt: skip
    target = ["--model", exported, "--target", "simx1:driver=1.4.0", "--output", blob]
    subprocess.run([*COMPILE, *target], check=True, capture_output=True)
    assert (blob / BLOB).is_file()
    artifacts = {
        "openvino": BuildArtifact(exported, "k1", "openvino-ir"),
        "simulated-npu": BuildArtifact(blob, "k2", "simulated-npu", (PRODUCT,), ("1.4.0",)),
    }
    for artifact in artifacts.values():
        artifact.write()
    return Models(original, artifacts, *json.loads(told.read_text()))


@dataclass
class Pod:
    """A server under the launcher."""

    launch: Launch
    process: "subprocess.Popen[bytes]"
    port: int
    report_port: int

    @cached_property
    def client(self) -> openai.OpenAI:
        base = f"http://127.0.0.1:{self.port}/v1"
        return openai.OpenAI(base_url=base, api_key="none", max_retries=0, timeout=PATIENCE)

    def get(self, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.report_port, timeout=PATIENCE)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        except OSError:
            return 0, ""
        finally:
            connection.close()

    def wait_ready(self) -> "Pod":
        until("ready", lambda: self.process.poll() is not None or self.get(names.READY_PATH)[0] == 200)
        assert self.process.poll() is None, self.launch.end(self.process)
        return self

    def series(self) -> dict[str, float]:
        families = text_string_to_metric_families(self.get("/metrics")[1])
        return {sample.name: sample.value for family in families for sample in family.samples}

    def engine(self) -> int:
        """The process that computes: the child of the server."""
        (server,) = children(self.process.pid)
        return next(pid for pid in children(server) if b"backends.child" in Path(f"/proc/{pid}/cmdline").read_bytes())


def children(pid: int) -> list[int]:
    threads = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for thread in threads for child in thread.read_text().split()]


Start = Callable[..., Pod]


def starter(launch: Launch, models: Models) -> Start:
    def start(plugin: str, *flags: str, queue: int = 16) -> Pod:
        node = launch.directory / "node"
        initialise(node, 1, PRODUCT, "1.4.0")
        tool = launch.directory / "rma-sim"
        arguments = f'-m rm_device_plugins.simulator_tool "$@" --driver-dir {node}/driver'
        tool.write_text(f"#!/bin/sh\nexec {sys.executable} {arguments}\n")
        tool.chmod(0o755)
        port, report_port = free_port(), free_port()
        env = {
            **os.environ, "RMA_SIM_TOOL": str(tool), "RMA_DEVICE_NODES": f"{node}/dev/npu0=1:3",
            "RMA_DEVICE_SERIALS": "SIMX1-0000", "RMA_DEVICE_PRODUCT": PRODUCT,
            names.ENV_ENGINE_REPORT: str(launch.directory / "engine.json"),
        }  # fmt: skip
        engine = ["--plugin", plugin, "--artifact", str(models.artifacts[plugin].path), "--served-name", "tape"]
        with (launch.directory / "log").open("wb") as log:
            process = launch.popen(
                "engine", "--served-name=tape", f"--port={port}", f"--report-port={report_port}", *flags,
                "--", *SERVE, *engine, "--port", str(port), "--max-batch", "4", f"--max-queue={queue}",
                env=env, stdout=log, stderr=log,
            )  # fmt: skip
        return Pod(launch, process, port, report_port)

    return start


@pytest.fixture
def start(launch: Launch, models: Models) -> Iterator[Start]:
    made: list[Pod] = []
    begin = starter(launch, models)

    def remembered(*arguments: Any, **options: Any) -> Pod:
        made.append(begin(*arguments, **options))
        return made[-1]

    yield remembered
    for pod in made:
        pod.client.close()
        with running(pod.process):
            # The launcher ends with its engine. Killed itself, it would leave the engine to nobody: here it is no
            # process 1, with which a container ends.
            if pod.process.poll() is None:
                os.kill(pod.engine(), signal.SIGKILL)
                pod.process.wait(60)


@pytest.fixture(scope="module", params=["openvino", "simulated-npu"])
def pod(
    request: pytest.FixtureRequest, binaries: Any, models: Models, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pod]:
    """A pod per engine, for the tests that leave it as it was."""
    launch = Launch(binaries, tmp_path_factory.mktemp("pod"))
    made = starter(launch, models)(request.param)
    with running(made.process):
        yield made.wait_ready()
        made.client.close()


def test_the_text_is_the_oracles_whichever_way_it_is_asked(pod: Pod, models: Models) -> None:
    wanted = expected_text(models.original, PROMPT)
    ask: dict[str, Any] = {"model": "tape", "prompt": PROMPT, "temperature": 0, "max_tokens": 128}
    assert pod.client.completions.create(**ask).choices[0].text == wanted
    assert pod.client.completions.create(**ask, echo=True).choices[0].text == PROMPT + wanted
    assert [choice.text for choice in pod.client.completions.create(**ask, n=2, seed=1).choices] == [wanted] * 2
    stream = pod.client.completions.create(**ask, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == wanted


def test_probabilities_are_the_models(pod: Pod, models: Models) -> None:
    """Held against PyTorch's, of the same model in another precision."""
    alternatives = 0 if pod_plugin(pod) == "openvino" else 5
    answer = pod.client.completions.create(
        model="tape", prompt=PROMPT, temperature=0, max_tokens=len(models.likeliest), logprobs=alternatives
    )
    told = answer.choices[0].logprobs
    assert told is not None
    assert "".join(told.tokens or []) == answer.choices[0].text
    assert told.token_logprobs == [pytest.approx(chances[0], abs=0.05) for chances in models.likeliest]
    for top, chances in zip(told.top_logprobs or [], models.likeliest, strict=True):
        wanted = chances[: max(1, alternatives)]
        assert sorted(top.values(), reverse=True) == [pytest.approx(chance, abs=0.5) for chance in wanted]


def test_probabilities_are_those_before_the_temperature(pod: Pod, models: Models) -> None:
    answer = pod.client.completions.create(
        model="tape", prompt=OPEN, temperature=2, max_tokens=1, n=16, seed=1, logprobs=0,
        extra_body={"ignore_eos": True},
    )  # fmt: skip
    found = [choice.logprobs.token_logprobs[0] for choice in answer.choices
             if choice.logprobs and choice.logprobs.token_logprobs and "\ufffd" not in choice.text]  # fmt: skip
    wanted = [models.texts[choice.text] for choice in answer.choices if choice.logprobs and "\ufffd" not in choice.text]
    assert min(wanted) < -0.5, "all of them were certain: nothing was tried"
    assert found == [pytest.approx(chance, abs=0.1) for chance in wanted]


def pod_plugin(pod: Pod) -> str:
    return "openvino" if "simulated" not in pod.get(names.REPORT_PATH)[1].lower() else "simulated-npu"


def test_probabilities_of_a_chat(pod: Pod) -> None:
    ask: dict[str, Any] = {"model": "tape", "messages": [{"role": "user", "content": PROMPT}], "logprobs": True}
    answer = pod.client.chat.completions.create(**ask, temperature=0)
    told = answer.choices[0].logprobs
    assert told is not None
    assert "".join(entry.token for entry in told.content or []) == answer.choices[0].message.content
    assert all(entry.logprob <= 0 for entry in told.content or [])
    if pod_plugin(pod) == "openvino":
        with pytest.raises(openai.BadRequestError) as caught:
            pod.client.chat.completions.create(**ask, top_logprobs=1)
        assert caught.value.param == "top_logprobs"
    else:
        answer = pod.client.chat.completions.create(**ask, temperature=0, top_logprobs=3)
        assert answer.choices[0].logprobs is not None
        for entry in answer.choices[0].logprobs.content or []:
            assert len(entry.top_logprobs) == 3
            assert entry.top_logprobs[0].logprob == entry.logprob, "greedy: the likeliest was chosen"


def test_the_pods_metrics_are_the_servers_and_the_launchers(pod: Pod) -> None:
    before = pod.series()
    answer = pod.client.completions.create(model="tape", prompt=PROMPT, max_tokens=9, extra_body={"ignore_eos": True})
    after = pod.series()
    assert (after["rma_ready"], after["rma_engine_metrics"], after["rma_engine_starts_total"]) == (1, 1, 1)
    assert answer.usage is not None
    for name, tokens in (("prompt", answer.usage.prompt_tokens), ("generation", answer.usage.completion_tokens)):
        series = f"vllm:{name}_tokens_total"
        assert after[series] - before[series] == tokens


def test_an_engine_is_left_alone_while_it_computes_and_ended_when_it_hangs(start: Start) -> None:
    """All places are taken for longer than the limit, so that a probe would be refused; then it really hangs, though
    its server answers."""
    pod = start("openvino", "--hang-timeout", "10", queue=0).wait_ready()
    begun, refused = time.monotonic(), 0
    streams: list[Any] = []
    ask: dict[str, Any] = {"model": "tape", "prompt": "The", "max_tokens": 900, "extra_body": {"ignore_eos": True}}
    while time.monotonic() - begun < 15 or not refused:
        try:
            streams.append(pod.client.completions.create(**ask, stream=True))
        except openai.RateLimitError:
            refused += 1
            list(streams.pop(0))
        assert pod.process.poll() is None, pod.launch.end(pod.process)
    assert pod.get(names.LIVE_PATH)[0] == 200

    os.kill(pod.engine(), signal.SIGSTOP)
    ended = pod.launch.end(pod.process)
    assert (ended.code, ended.report.reason) == (ExitCode.TOOLCHAIN_FAILURE, Reason.ENGINE_FAILED)
    assert "hangs: no token in 10s and none of its counters of tokens moved" in ended.report.message


def test_sigterm_finishes_streams_and_refuses_what_is_new(pod: Pod) -> None:
    """The last test of a pod: it is over then."""
    stream = pod.client.completions.create(
        model="tape", prompt="The", max_tokens=300, stream=True, extra_body={"ignore_eos": True},
        stream_options={"include_usage": True},
    )  # fmt: skip
    next(iter(stream))
    pod.process.terminate()
    until("the end of readiness", lambda: pod.get(names.READY_PATH)[0] != 200)

    def refused() -> bool:
        try:
            pod.client.completions.create(model="tape", prompt="The", max_tokens=1)
        except (openai.InternalServerError, openai.APIConnectionError):
            return True
        return False

    until("a refusal", refused)
    last = list(stream)[-1]
    assert last.usage is not None
    assert last.usage.completion_tokens == 300
    ended = pod.launch.end(pod.process)
    assert (ended.code, ended.report.reason) == (0, Reason.DELETING)
