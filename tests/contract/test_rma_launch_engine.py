"""What ``rma-launch engine`` promises: ready never lies, and the end of an engine says why."""

import http.client
import json
import os
import shlex
import signal
import socket
import stat
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from rm_api import names
from rm_api.conditions import Reason
from rm_api.names import ExitCode
from rma_launch_driver import (
    OWN_REPORT,
    PATIENCE,
    Binaries,
    Engine,
    Launch,
    alive,
    lines_until,
    requires_root,
    running,
    spawned,
    until,
)

# --- engines ------------------------------------------------------------------------------------------------------

KEY = "sha256:" + "a" * 64
ARTIFACT = {
    "schema": 1, "key": KEY, "format": "npu-blob", "products": ["X1"], "drivers": ["1.4.0"],
    "versions": {"compiler": "2.0"},
}  # fmt: skip


@pytest.fixture
def engine(launch: Launch) -> Iterator[Engine]:
    """An engine that the test starts, gone when it ends."""
    made = Engine(launch)
    made.behave()
    yield made
    if hasattr(made, "process"):
        made.drain()
        with running(made.process):
            pass


def test_an_engine_is_ready_only_after_a_token(engine: Engine) -> None:
    engine.behave(Health=503, Completion="error")
    engine.start()
    answer = engine.wait_state("Starting", "GET /health answered 503")
    assert (answer["status"], answer["ready"], answer["reason"]) == (503, False, Reason.STARTING)
    assert engine.get(names.LIVE_PATH)[0] == 200

    engine.behave(Completion="error")
    answer = engine.wait_state("GeneratingToken", "POST /v1/completions answered 500")
    assert (answer["status"], answer["ready"]) == (503, False)
    assert engine.report()["ready"] is False

    engine.behave()
    engine.wait_ready()
    report = engine.report()
    assert (report["ready"], report["reason"], report["state"]) == (True, Reason.READY, "Ready")
    assert 0 < report["seconds"]["start"] <= report["seconds"]["ready"] < PATIENCE
    assert engine.get(names.LIVE_PATH)[0] == 200


@pytest.mark.parametrize(
    ("completion", "complaint"),
    [("empty", "no token"), ("nochoice", "without a choice"), ("error", "answered 500"), ("garbage", "no completion")],
)
def test_what_is_no_token(engine: Engine, completion: str, complaint: str) -> None:
    engine.behave(Completion=completion)
    engine.start()
    assert engine.wait_state("GeneratingToken", complaint)["status"] == 503


@pytest.mark.parametrize("how", [{"Completion": "text"}, {"Health": 404}, {"Health": 404, "Completion": "text"}])
def test_engines_that_speak_a_little_differently(engine: Engine, how: dict[str, object]) -> None:
    """Without usage in the completion, or without /health."""
    engine.behave(**how)
    engine.start()
    engine.wait_ready()


CHAT = '{"choices":[{"message":{"content":""}}],"usage":{"completion_tokens":1}}'
EMBEDDING = '{"data":[{"embedding":[0.5]}]}'


@pytest.mark.parametrize(
    ("how", "does", "path"),
    [
        ({"Completion": "absent", "Chat": CHAT}, "generates tokens", "/v1/chat/completions"),
        ({"Completion": "refused", "Chat": CHAT}, "generates tokens", "/v1/chat/completions"),
        ({"Completion": "absent", "Embedding": EMBEDDING}, "computes embeddings", "/v1/embeddings"),
    ],
)
def test_engines_that_do_not_complete(engine: Engine, how: dict[str, str], does: str, path: str) -> None:
    """Those that only chat, and those that generate nothing: each is ready by what it does, and watched by that."""
    engine.behave(**how)
    engine.start("--hang-timeout", "3")
    engine.wait_ready()
    assert engine.report()["message"] == f"the engine {does}"
    engine.behave(**{kind: "hang" if kind != "Completion" else said for kind, said in how.items()})
    engine.end().failed(ExitCode.TOOLCHAIN_FAILURE, Reason.ENGINE_FAILED, "the engine hangs", f"POST {path}")


@pytest.mark.parametrize(
    ("how", "complaint"),
    [
        ({"Chat": '{"choices":[]}'}, "POST /v1/chat/completions answered without a choice"),
        ({"Embedding": '{"data":[{"embedding":[0,0]}]}'}, "POST /v1/embeddings computed no embedding"),
        ({}, "POST /v1/completions answered 404"),
    ],
)
def test_what_shows_nothing_of_an_engine_that_does_not_complete(
    engine: Engine, how: dict[str, str], complaint: str
) -> None:
    engine.behave(Completion="absent", **how)
    engine.start()
    assert engine.wait_state("GeneratingToken", complaint)["status"] == 503


def test_an_engine_without_any_health(engine: Engine) -> None:
    engine.behave(Health=404, Models=404)
    engine.start()
    assert engine.wait_state("Starting", "GET /v1/models answered 404")["status"] == 503


def test_another_model_is_not_ready(engine: Engine) -> None:
    engine.served_name = "other"
    engine.start()
    assert engine.wait_state("GeneratingToken", "404", "no model other here")["status"] == 503


def test_probes_get_a_reason_before_the_engine_listens(engine: Engine) -> None:
    engine.start(actions=["sleep=600s"])
    answer = engine.wait_state("Starting", "GET /health", "refused")
    assert (answer["status"], answer["reason"]) == (503, Reason.STARTING)
    assert engine.get(names.LIVE_PATH)[0] == 200


def test_paths_and_methods(engine: Engine) -> None:
    engine.start()
    engine.wait_ready()
    for method, path, status in (("GET", "/", 404), ("POST", names.READY_PATH, 405), ("HEAD", names.READY_PATH, 200)):
        connection = http.client.HTTPConnection("127.0.0.1", engine.report_port, timeout=PATIENCE)
        connection.request(method, path)
        assert connection.getresponse().status == status
        connection.close()


def test_readiness_follows_the_engines_health(engine: Engine) -> None:
    engine.start()
    engine.wait_ready()
    engine.behave(Health=500)
    answer = engine.wait_state("Unhealthy", "GET /health answered 500")
    assert (answer["status"], answer["reason"]) == (503, Reason.ENGINE_FAILED)
    assert engine.report()["ready"] is False
    assert engine.get(names.LIVE_PATH)[0] == 200
    engine.behave()
    engine.wait_ready()


def test_an_engine_that_hangs_is_not_ready_and_the_probe_is_quick(engine: Engine) -> None:
    engine.start()
    engine.wait_ready()
    engine.behave(Slow="10m")
    engine.wait_state("Unhealthy", "does not answer in time")


def start_with_artifact(engine: Engine, text: str | None, *, make: bool = True) -> None:
    directory = engine.launch.directory / "artifact"
    if make:
        directory.mkdir()
    if text is not None:
        (directory / "rma-artifact.json").write_text(text)
    actions = [f"write={engine.launch.directory}/started:x", f"serve=${{PORT}},{engine.behaviour}"]
    engine.start("--artifact-dir", str(directory), "--artifact-key", KEY, actions=actions)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (None, "does not exist"),
        ("", "not what we write"),
        ("[]", "not what we write"),
        ("{}", "schema 0"),
        (json.dumps({**ARTIFACT, "schema": 2}), "schema 2"),
        (json.dumps({**ARTIFACT, "key": "sha256:" + "b" * 64}), "bbbb"),
        (json.dumps({**ARTIFACT, "key": KEY[:-1]}), "was made for"),
    ],
)
def test_a_wrong_artifact_is_never_loaded(engine: Engine, text: str | None, complaint: str) -> None:
    start_with_artifact(engine, text)
    engine.end().failed(ExitCode.ARTIFACT_MISMATCH, Reason.ARTIFACT_MISMATCH, complaint)
    assert not (engine.launch.directory / "started").exists()


def test_the_right_artifact_is_reported(engine: Engine) -> None:
    start_with_artifact(engine, json.dumps(ARTIFACT))
    engine.wait_ready()
    assert engine.report()["artifact"] == ARTIFACT
    assert engine.report()["versions"] == {"compiler": "2.0"}


@pytest.fixture
def devices(tmp_path: Path) -> Path:
    """Device nodes: null and zero, one that no driver stands behind, and things that are no devices."""
    requires_root()
    directory = tmp_path / "dev"
    directory.mkdir()
    for name, minor in (("npu0", 3), ("npu1", 5)):
        os.mknod(directory / name, 0o666 | stat.S_IFCHR, os.makedev(1, minor))
    os.mknod(directory / "dead", 0o666 | stat.S_IFCHR, os.makedev(4090, 4095))
    os.mknod(directory / "block", 0o666 | stat.S_IFBLK, os.makedev(1, 3))
    (directory / "file").write_text("npu")
    (directory / "link").symlink_to("npu0")
    return directory


@pytest.mark.parametrize(
    ("required", "nodes", "complaint"),
    [
        (1, None, "names none"),
        (1, "", "names none"),
        (2, "{}/npu0=1:3", "2 devices are required and RMA_DEVICE_NODES names 1"),
        (1, "{}/npu0=1:3,{}/npu1=1:5", "names 2"),
        (1, "{}/npu0", "path=major:minor"),
        (2, "{}/npu0=1:3,{}/npu0=1:3", "twice"),
        (1, "{}/gone=1:3", "not there"),
        (1, "{}/file=1:3", "no character device"),
        (1, "{}/block=1:3", "no character device"),
        (1, "{}/npu0=1:5", "is device 1:3; the device plugin announced 1:5"),
        (1, "{}/npu0=2:3", "announced 2:3"),
        (2, "{}/npu0=1:3,{}/npu1=1:3", "npu1 is device 1:5"),
        (1, "{}/dead=4090:4095", "does not open"),
    ],
)
def test_a_missing_or_other_device(
    engine: Engine, devices: Path, required: int, nodes: str | None, complaint: str
) -> None:
    env = {} if nodes is None else {names.ENV_DEVICE_NODES: nodes.replace("{}", str(devices))}
    marker = engine.launch.directory / "started"
    engine.start("--require-devices", str(required), env=env, actions=[f"write={marker}:x"])
    engine.end().failed(ExitCode.DEVICE_MISSING, Reason.DEVICE_MISSING, complaint)
    assert not marker.exists()


def test_the_allocated_devices_are_reported(engine: Engine, devices: Path) -> None:
    env = {
        names.ENV_DEVICE_NODES: f"{devices}/link=1:3,{devices}/npu1=1:5", names.ENV_DEVICE_PRODUCT: "X1",
        names.ENV_DEVICE_SERIALS: "S0,S1", names.ENV_DEVICE_IDS: "a,b",
    }  # fmt: skip
    engine.start("--require-devices", "2", env=env)
    engine.wait_ready()
    assert engine.report()["observedDevice"] == {
        "node": f"{devices}/link,{devices}/npu1", "product": "X1", "serial": "S0,S1", "id": "a,b",
    }  # fmt: skip


def test_a_device_may_have_several_nodes(engine: Engine, devices: Path) -> None:
    both = f"{devices}/npu0=1:3,{devices}/npu1=1:5"
    engine.start("--require-devices", "1", env={names.ENV_DEVICE_NODES: both, names.ENV_DEVICE_IDS: "a"})
    engine.wait_ready()
    assert engine.report()["observedDevice"]["id"] == "a"


def test_devices_are_counted_not_their_nodes(engine: Engine, devices: Path) -> None:
    both = f"{devices}/npu0=1:3,{devices}/npu1=1:5"
    engine.start("--require-devices", "2", env={names.ENV_DEVICE_NODES: both, names.ENV_DEVICE_IDS: "a"})
    engine.end().failed(ExitCode.DEVICE_MISSING, Reason.DEVICE_MISSING, "2 devices are required", "names 1")


def test_the_engines_own_words_are_merged(engine: Engine, devices: Path) -> None:
    engine.behave(Health=503)
    engine.note(reason="Ready", message="of an engine before")
    env = {names.ENV_DEVICE_NODES: f"{devices}/npu0=1:3", names.ENV_DEVICE_PRODUCT: "X1"}
    engine.start("--require-devices", "1", env=env)
    engine.wait_state("Starting", "503")  # what a container before this one left does not count

    engine.note(reason="WaitingForModel", message="loading 3 of 9")
    assert engine.wait_state("Starting", "loading 3 of 9")["reason"] == "WaitingForModel"
    engine.note(observedDevice={"product": "X1b", "serial": "S0"}, driver="1.4.0", versions={"sdk": "2"}, message="up")
    engine.behave()
    engine.wait_ready()
    engine.notes.write_text('{"driver": "1.')  # in the middle of writing
    report = engine.report()
    assert report["driver"] == "1.4.0"
    assert report["versions"] == {"sdk": "2"}
    assert report["observedDevice"] == {"node": f"{devices}/npu0", "product": "X1b", "serial": "S0"}
    assert (report["reason"], report["message"]) == (Reason.READY, "the engine generates tokens")


def test_a_bare_engine_reports_with_the_same_members(engine: Engine) -> None:
    engine.start()
    engine.wait_ready()
    report = engine.report()
    assert (report["observedDevice"], report["driver"], report["artifact"], report["versions"]) == ({}, "", {}, {})


@pytest.mark.parametrize(
    ("actions", "words"),
    [
        (["err=Traceback", "err=RuntimeError: no such op", "exit=1"], ["ended with 1", "RuntimeError: no such op"]),
        (["out=bye"], ["ended with 0", "bye"]),
        (["exit=68"], ["ended with 68"]),
        (["out=x", "raise=9"], ["signal 9"]),
    ],
)
def test_an_engine_that_ends_by_itself_has_failed(engine: Engine, actions: list[str], words: list[str]) -> None:
    engine.start(actions=actions)
    report = engine.end().failed(ExitCode.TOOLCHAIN_FAILURE, Reason.ENGINE_FAILED, *words)
    assert report.facts == {} or report.facts["logTail"]


def test_an_engine_that_crashes_after_it_was_ready(engine: Engine) -> None:
    engine.start()
    engine.wait_ready()
    engine.process.send_signal(signal.SIGUSR1)
    engine.end().failed(ExitCode.TOOLCHAIN_FAILURE, Reason.ENGINE_FAILED, "RuntimeError: device lost")


def test_an_engine_that_cannot_be_started(engine: Engine) -> None:
    engine.launch.binaries = Binaries(engine.launch.binaries.launcher, "/no/such/engine")
    engine.start()
    engine.end().failed(ExitCode.BAD_INPUT, Reason.INVALID_SPEC, "/no/such/engine")


def test_a_report_port_that_is_taken(engine: Engine) -> None:
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        engine.report_port = other.getsockname()[1]
        engine.start()
        engine.end().failed(ExitCode.BAD_INPUT, Reason.INVALID_SPEC, "report port")


REASON_OF = {
    ExitCode.BAD_INPUT: Reason.SOURCE_INVALID,
    ExitCode.ARTIFACT_MISMATCH: Reason.ARTIFACT_MISMATCH,
    ExitCode.DEVICE_MISSING: Reason.DEVICE_MISSING,
    ExitCode.DRIVER_MISMATCH: Reason.DRIVER_MISMATCH,
    ExitCode.SOURCE_UNREACHABLE: Reason.SOURCE_UNREACHABLE,
    ExitCode.TOOLCHAIN_FAILURE: Reason.ENGINE_FAILED,
    ExitCode.TRANSIENT: Reason.RETRYING,
}


@pytest.mark.parametrize("code", [code for code in ExitCode if code != ExitCode.OK])
def test_codes_of_ours_pass_through(engine: Engine, code: ExitCode) -> None:
    engine.start(actions=["err=the driver is 1.3", f"exit={int(code)}"])
    engine.end().failed(code, REASON_OF[code], "the driver is 1.3")


def test_codes_of_ours_come_with_the_engines_reason(engine: Engine) -> None:
    said = '{"reason":"DriverMismatch","message":"the artifact needs 1.4","versions":{"driver":"1.3"}}'
    engine.start(actions=[f"write={engine.notes}:{said}", "err=bye", "exit=67"])
    report = engine.end().failed(ExitCode.DRIVER_MISMATCH, Reason.DRIVER_MISMATCH, "the artifact needs 1.4")
    assert report.versions == {"driver": "1.3"}


def test_an_engine_of_ours_keeps_its_termination_message(engine: Engine) -> None:
    engine.start(actions=[f"report={OWN_REPORT}", "exit=69"])
    ended = engine.end()
    assert (ended.code, ended.left.decode()) == (ExitCode.SOURCE_UNREACHABLE, OWN_REPORT)


def test_notes_that_cannot_be_read_are_said(engine: Engine) -> None:
    engine.start(actions=[f"write={engine.notes}:not JSON", "exit=66"])
    ended = engine.end()
    ended.failed(ExitCode.DEVICE_MISSING, Reason.DEVICE_MISSING)
    assert "not a report of an engine" in ended.stderr


@pytest.mark.parametrize("how", [{"Completion": "hang"}, {"Health": 503}, {"Slow": "30s"}])
def test_an_engine_that_never_gets_ready_is_given_up(engine: Engine, how: dict[str, object]) -> None:
    engine.behave(**how)
    engine.start("--ready-timeout", "1.5", actions=["spawn=sleep=600s", f"serve=${{PORT}},{engine.behaviour}"])
    helper = spawned(engine.process)
    engine.drain()
    engine.end().failed(ExitCode.TOOLCHAIN_FAILURE, Reason.ENGINE_FAILED, "no token in 1.5s", "last: ")
    until("the helper's end", lambda: not alive(helper))


def test_an_engine_that_does_not_let_go_is_killed(engine: Engine) -> None:
    engine.start("--ready-timeout", "0.2", actions=["trap=15", "sleep=600s"])
    engine.end().failed(ExitCode.TOOLCHAIN_FAILURE, Reason.ENGINE_FAILED, "no token")


@pytest.mark.parametrize(
    ("child_ends_with", "code", "reason"),
    [(0, 0, Reason.DELETING), (143, 0, Reason.DELETING), (1, 70, Reason.ENGINE_FAILED), (75, 75, Reason.RETRYING)],
)
def test_sigterm_drains(engine: Engine, child_ends_with: int, code: int, reason: Reason) -> None:
    engine.start()
    engine.wait_ready()
    engine.process.terminate()
    answer = engine.wait_state("Draining", "asked to stop")
    assert (answer["status"], answer["ready"]) == (503, False)
    lines_until(engine.process, "draining")
    for _ in range(3):  # it stays so while the engine finishes what it has
        assert engine.ready()[0] == 503
        assert engine.report()["ready"] is False
        assert engine.get(names.LIVE_PATH)[0] == 200
    engine.drain(child_ends_with)
    ended = engine.end()
    assert (ended.code, ended.report.reason) == (code, reason)
    assert "drained" in ended.stdout


def test_sigterm_before_the_token(engine: Engine) -> None:
    engine.behave(Completion="hang")
    engine.start()
    engine.wait_state("GeneratingToken")
    engine.process.terminate()
    engine.wait_state("Draining")
    engine.drain()
    assert engine.end().code == 0


def test_an_engine_without_a_handler_ends_by_sigterm(engine: Engine) -> None:
    engine.start(actions=["out=up", "sleep=600s"])
    lines_until(engine.process, "up")
    engine.process.terminate()
    ended = engine.end()
    assert (ended.code, ended.report.reason) == (0, Reason.DELETING)


@pytest.mark.parametrize(("completion", "complaint"), [("hang", "POST /v1/completions"), ("error", "answered 500")])
@pytest.mark.parametrize("metrics", ["", "vllm:generation_tokens_total 7\n", "no metrics"])
def test_an_engine_that_hangs_is_ended_with_a_reason(
    engine: Engine, completion: str, complaint: str, metrics: str
) -> None:
    engine.behave(Metrics=metrics)
    engine.start("--hang-timeout", "1")
    engine.wait_ready()
    engine.behave(Metrics=metrics, Completion=completion)
    engine.drain()
    engine.end().failed(ExitCode.TOOLCHAIN_FAILURE, Reason.ENGINE_FAILED, "hangs: no token in 1s", complaint)


@pytest.mark.parametrize(
    "how",
    [
        {"Completion": "hang", "Metrics": 'vllm:generation_tokens_total{m="x"} N\n'},  # all places are taken
        {"Completion": "error", "Metrics": "vllm:prompt_tokens_total N\n"},
        {"Completion": "busy"},  # the queue is full, and nothing says how it moves
        {"Completion": "token", "Metrics": "vllm:generation_tokens_total 7\n"},  # nobody asks
        {"Completion": "token"},
    ],
)
def test_an_engine_that_is_busy_or_idle_does_not_hang(engine: Engine, how: dict[str, object]) -> None:
    engine.behave(**how | {"Completion": "token"})
    engine.start("--hang-timeout", "5")
    engine.wait_ready()
    engine.behave(**how)
    started = time.monotonic()
    until("three times the limit", lambda: time.monotonic() - started > 15 or engine.process.poll() is not None)
    assert engine.process.poll() is None, engine.end()
    assert engine.get(names.LIVE_PATH)[0] == 200


def test_a_probe_that_can_never_be_answered_is_not_made_while_tokens_flow(engine: Engine) -> None:
    engine.behave(Metrics="vllm:generation_tokens_total N\n")
    engine.start("--hang-timeout", "1")
    engine.wait_ready()
    until("some looks", lambda: int(series(engine)["vllm:generation_tokens_total"]) > 10)
    assert not [name for name in series(engine) if name.startswith("rma_probes_total")]


def series(engine: Engine) -> dict[str, float]:
    """Samples of the report port's metrics, by name and labels."""
    connection = http.client.HTTPConnection("127.0.0.1", engine.report_port, timeout=PATIENCE)
    connection.request("GET", "/metrics")
    response = connection.getresponse()
    assert (response.status, response.headers["content-type"].split(";")[0]) == (200, "text/plain")
    text = response.read().decode()
    connection.close()
    parsed = text_string_to_metric_families(text)  # refuses what is no exposition
    found = [
        (sample.name + "".join(f"{{{name}={value}}}" for name, value in sample.labels.items()), sample.value)
        for family in parsed
        for sample in family.samples
    ]
    assert len(found) == len(dict(found)), "a series comes twice"
    return dict(found)


def test_metrics_are_the_engines_and_ours(engine: Engine) -> None:
    own = '# HELP vllm:x Words.\n# TYPE vllm:x gauge\nvllm:x{a="1"} 3.0\n'
    engine.behave(Health=503, Metrics=own)
    engine.start("--hang-timeout", "1")
    engine.wait_state("Starting", "503")
    before = series(engine)
    assert (before["rma_ready"], before["rma_engine_metrics"], before["vllm:x{a=1}"]) == (0, 1, 3)
    assert "rma_start_seconds{until=ready}" not in before
    engine.behave(Metrics=own)
    engine.wait_ready()
    until("a probe", lambda: series(engine).get("rma_probes_total{result=token}"))
    after = series(engine)
    assert (after["rma_ready"], after["vllm:x{a=1}"], after["rma_engine_starts_total"]) == (1, 3, 1)
    assert 0 < after["rma_start_seconds{until=start}"] <= after["rma_start_seconds{until=ready}"] < PATIENCE
    assert 0 < after["rma_probe_seconds"] < PATIENCE
    assert 0 <= after["rma_progress_age_seconds"] < PATIENCE
    engine.behave(Metrics="<html>")
    assert series(engine)["rma_engine_metrics"] == 0


def test_starts_of_one_pod_are_counted(engine: Engine) -> None:
    for count in (1, 2):
        engine.start(actions=["sleep=600s"])
        until("the report port", lambda: engine.get(names.LIVE_PATH)[0] == 200)
        assert series(engine)["rma_engine_starts_total"] == count
        engine.process.terminate()
        engine.end()


def test_requests_that_run_are_waited_for_before_an_engine_is_asked_to_stop(engine: Engine) -> None:
    """Most engines break off at a signal what they have begun."""
    engine.behave(Metrics="vllm:num_requests_running 2\n")
    engine.start()
    engine.wait_ready()
    engine.process.terminate()
    engine.wait_state("Draining", "asked to stop")
    for _ in range(20):
        assert series(engine)["vllm:num_requests_running"] == 2
    assert engine.process.poll() is None
    engine.drain()
    engine.behave(Metrics="vllm:num_requests_running 0\n")
    lines_until(engine.process, "draining")
    assert engine.end().code == 0


@pytest.mark.parametrize(
    "flags", [["--drain-timeout", "0.5"], ["--drain-timeout", "600"]], ids=["in time", "of its own accord"]
)
def test_an_engine_is_not_waited_for_without_end(engine: Engine, flags: list[str]) -> None:
    engine.behave(Metrics="vllm:num_requests_running 2\n")
    engine.start(*flags)
    engine.wait_ready()
    if "600" in flags:
        engine.note(drains=True)
    engine.process.terminate()
    lines_until(engine.process, "draining")
    engine.drain()
    assert engine.end().code == 0


def test_an_engine_serves_on_while_others_hear_that_it_goes(engine: Engine) -> None:
    engine.start("--drain-delay", "600")
    engine.wait_ready()
    engine.process.terminate()
    assert engine.wait_state("Draining")["status"] == 503
    connection = http.client.HTTPConnection("127.0.0.1", engine.port, timeout=PATIENCE)
    body = json.dumps({"model": "tiny", "prompt": "a", "max_tokens": 1})
    connection.request("POST", "/v1/completions", body)
    assert connection.getresponse().status == 200
    connection.close()
    engine.process.terminate()  # once more: no more waiting
    lines_until(engine.process, "draining")
    engine.drain()
    ended = engine.end()
    assert (ended.code, ended.report.reason) == (0, Reason.DELETING)


def test_our_lines_are_told_from_the_engines(engine: Engine) -> None:
    engine.start(actions=["out=plain out", 'err={"level": "info", "x": 1}', "exit=1"])
    ended = engine.end()
    assert ended.stdout == "plain out\n"
    theirs, ours = ended.stderr.splitlines()
    assert theirs == '{"level": "info", "x": 1}'
    fields = dict(pair.split("=", 1) for pair in shlex.split(ours))
    assert (fields["level"], fields["from"]) == ("warn", "rma-launch")
    assert datetime.fromisoformat(fields["time"]).tzinfo is not None
    assert fields["msg"].startswith("EngineFailed: ")


def test_all_lines_in_one_format(engine: Engine) -> None:
    said = 'time=2026-01-01T00:00:00.000Z level=info from=rm-abstract msg="ours"'
    words = ["out=\x1b[32mgreen\x1b[0m", f"out={said}", "err= ", "err=10%\r100%", 'err=a "quoted" \\ word', "exit=1"]
    engine.start("--log-format=logfmt", actions=words)
    ended = engine.end()
    green, ours = ended.stdout.splitlines()
    assert ours == said
    assert shlex.split(green)[1:] == ["from=engine", "stream=stdout", "msg=green"]
    progress, quoted, failed = (
        dict(pair.split("=", 1) for pair in shlex.split(line)) for line in ended.stderr.splitlines()
    )
    assert (quoted["from"], quoted["stream"], quoted["msg"]) == ("engine", "stderr", 'a "quoted" \\ word')
    assert progress["msg"] == "100%"
    assert failed["from"] == "rma-launch"
    # What is told of the failure is what the engine wrote.
    assert ended.report.message.endswith('a "quoted" \\ word')


@pytest.mark.parametrize(
    "flags",
    [
        ["--log-format", "json"],
        ["--hang-timeout", "-1"],
        ["--drain-delay", "-1"],
        ["--drain-timeout", "1e9"],
        ["--hang-timeout", "x"],
    ],
)
def test_times_that_are_none(engine: Engine, flags: list[str]) -> None:
    engine.start(*flags)
    engine.end().failed(ExitCode.BAD_INPUT, Reason.INVALID_SPEC)
