"""``rma-launch warmup`` around a real server: what it asks for, what it keeps, and how an engine can fail it."""

import http.client
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from rm_abstract.core.resource import BuildArtifact
from rm_api import names
from rm_api.conditions import Reason
from rm_api.names import ExitCode
from rma_launch_driver import PATIENCE, Ended, Engine, Launch, free_port, running, until
from warming_engine import FORMAT, HOLD

BUCKETS = ["--sequence", "128", "--batch", "3"]


@dataclass
class Warming:
    """The engine of ``warming_engine`` under the project's own server, under the launcher."""

    launch: Launch
    port: int

    @property
    def cache(self) -> Path:
        return self.launch.directory / "cache"

    @property
    def kept(self) -> Path:
        return self.launch.directory / "output" / "cache"

    @property
    def model(self) -> Path:
        return self.launch.directory / "model"

    @property
    def site(self) -> Path:
        """Where the engine is installed."""
        return self.launch.directory / "site"

    def install(self) -> None:
        about = self.site / "warming_engine-1.0.0.dist-info"
        about.mkdir(parents=True)
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: warming-engine\nVersion: 1.0.0\n")
        (about / "entry_points.txt").write_text(
            "[rm_abstract.plugins]\nruntime.warming = warming_engine:WarmingPlugin\n"
        )

    def environment(self, goes_wrong: str) -> dict[str, str]:
        return {
            "CACHE_DIR": str(self.cache), "OUTPUT": str(self.kept.parent), "MODEL_DIR": str(self.model),
            "PYTHONPATH": ":".join([str(self.site), str(Path(__file__).parent), *sys.path]),
            "HOME": str(self.launch.directory), "WARMING": goes_wrong,
        }  # fmt: skip

    def server(self, *flags: str) -> list[str]:
        program = [sys.executable, "-c", "from rm_cli.main import main; main()", "serve", "--plugin=warming"]
        place = ["--artifact=${MODEL_DIR}", "--served-name=tape", f"--port={self.port}", "--max-batch=3"]
        return ["--", *program, *place, *flags]

    def start(self, *flags: str, goes_wrong: str = "", serve: list[str] | None = None) -> "subprocess.Popen[bytes]":
        return self.launch.popen(
            "warmup", "--name=warm", f"--port={self.port}", *flags, *self.server(*(serve or [])),
            env=self.environment(goes_wrong),
        )  # fmt: skip

    def run(self, *flags: str, goes_wrong: str = "", serve: list[str] | None = None) -> Ended:
        with running(self.start(*flags, goes_wrong=goes_wrong, serve=serve)) as process:
            return self.launch.end(process)


@pytest.fixture
def warming(launch: Launch) -> Warming:
    made = Warming(launch, free_port())
    for directory in (made.cache, made.kept.parent, made.model):
        directory.mkdir()
    made.install()
    BuildArtifact(made.model, "k", FORMAT).write()
    return made


def shapes(ended: Ended) -> list[str]:
    """What the engine compiled or loaded, as it said."""
    return [line for line in ended.stdout.splitlines() if line.startswith(("compiled ", "loaded "))]


def test_every_bucket_is_compiled_and_the_cache_is_the_result(warming: Warming) -> None:
    ended = warming.run(*BUCKETS, "--output", "cache/*.blob")
    assert (ended.code, ended.report.reason) == (0, Reason.BUILT), ended.stderr
    # "hello", the prompt of the first bucket, and three answers at once.
    assert {"compiled 1x8", "compiled 1x128", "compiled 3x8"} <= set(shapes(ended))
    kept = {path.name for path in warming.kept.iterdir()}
    assert len(kept) == len(shapes(ended))
    assert list(warming.cache.iterdir()) == []
    facts = ended.report.facts
    assert facts["step"] == "warm"
    assert set(facts["bucketSeconds"]) == {"sequence=128", "batch=3"}
    assert all(0 < took < PATIENCE for took in [facts["readySeconds"], *facts["bucketSeconds"].values()])
    assert f"{len(kept)} files" in ended.report.message


def test_prompt_and_answer_fill_the_sequence(warming: Warming) -> None:
    """The engine takes no more than 128 tokens, so that one too many is refused; all but a word's are used."""
    ended = warming.run("--sequence", "128", serve=["--max-sequence-length=128"])
    assert ended.code == 0, ended.stderr
    prompt, answer = (
        int(word) for word in ended.stderr.split("warmup: ")[2].split() if word.isdigit()
    )  # "… N tokens in the prompt and M in the answer"
    assert prompt + answer == 128
    assert answer < 128 // 4


def test_without_buckets_a_token_is_enough(warming: Warming) -> None:
    ended = warming.run()
    assert (ended.code, shapes(ended)) == (0, ["compiled 1x8"])
    assert "bucketSeconds" not in ended.report.facts


def test_an_engine_that_writes_nothing(warming: Warming) -> None:
    ended = warming.run(*BUCKETS, goes_wrong="no cache")
    ended.failed(ExitCode.TOOLCHAIN_FAILURE, Reason.TOOLCHAIN_FAILED, "left nothing in", str(warming.cache))
    assert not any(warming.kept.rglob("*"))


def test_an_engine_that_crashes_at_its_start(warming: Warming) -> None:
    ended = warming.run(*BUCKETS, goes_wrong="crashes")
    ended.failed(ExitCode.TOOLCHAIN_FAILURE, Reason.TOOLCHAIN_FAILED, "ended with 1", "libnpu.so.2")
    assert not warming.kept.exists()


def test_an_engine_of_ours_that_refuses_at_its_start_says_why_itself(warming: Warming) -> None:
    ended = warming.run(*BUCKETS, goes_wrong="other driver")
    assert (ended.code, ended.report.reason) == (ExitCode.DRIVER_MISMATCH, Reason.DRIVER_MISMATCH)
    assert ended.report.message == "the driver is 1.3, and 1.4 is needed"


def test_an_engine_that_dies_in_the_middle(warming: Warming) -> None:
    ended = warming.run(*BUCKETS, goes_wrong="dies")
    words = ["the engine ended with 3", "the device has gone"]
    report = ended.failed(ExitCode.TOOLCHAIN_FAILURE, Reason.TOOLCHAIN_FAILED, *words)
    assert set(report.facts["bucketSeconds"]) == {"sequence=128"}
    assert not warming.kept.exists()


def test_an_engine_that_ends_by_itself(launch: Launch) -> None:
    env = {"CACHE_DIR": str(launch.directory / "cache"), "OUTPUT": str(launch.directory / "output")}
    ended = launch("warmup", "--name", "w", "--port", str(free_port()), *launch.child(["out=bye"]), env=env)
    ended.failed(ExitCode.TOOLCHAIN_FAILURE, Reason.TOOLCHAIN_FAILED, "ended with 0 before it was warm")


@pytest.mark.parametrize(
    ("flags", "serve", "words"),
    [
        (["--batch", "9"], ["--max-queue=0"], ["batch=9", "answered 429"]),
        (["--sequence", "1024"], [], ["sequence=1024", "answered 400", "context is 256 tokens"]),
        (["--sequence", "4"], [], ["sequence=4", "a prompt of one word has 6 tokens"]),
    ],
)
def test_a_bucket_that_the_engine_does_not_take(
    warming: Warming, flags: list[str], serve: list[str], words: list[str]
) -> None:
    ended = warming.run(*flags, serve=serve)
    ended.failed(ExitCode.TOOLCHAIN_FAILURE, Reason.TOOLCHAIN_FAILED, *words)


def test_an_engine_that_is_asked_to_stop_is_tried_again(warming: Warming) -> None:
    hold = warming.model / HOLD
    hold.touch()
    with running(warming.start(*BUCKETS)) as process:
        assert process.stderr is not None
        until("the server", lambda: b"running on" in process.stderr.readline() if process.stderr else True)
        process.terminate()
        hold.unlink()
        ended = warming.launch.end(process)
    ended.failed(ExitCode.TRANSIENT, Reason.RETRYING, "the engine was asked to stop")
    assert not warming.kept.exists()


def test_what_an_earlier_container_left_is_replaced(warming: Warming) -> None:
    warming.kept.mkdir()
    (warming.kept / "half.blob").write_text("half")
    assert warming.run().code == 0
    assert [path.suffix for path in warming.kept.iterdir()] == [".blob"]
    assert not (warming.kept / "half.blob").exists()


# --- an engine that will not ---------------------------------------------------------------------------------------


@pytest.fixture
def scripted(launch: Launch) -> Iterator[Engine]:
    """An engine whose answers are told, and that ends when it is told to."""
    engine = Engine(launch)
    engine.behave()
    yield engine
    if hasattr(engine, "process"):
        engine.drain()
        with running(engine.process):
            pass


def start_scripted(engine: Engine, *flags: str) -> None:
    directory = engine.launch.directory
    env = {"CACHE_DIR": str(directory / "cache"), "OUTPUT": str(directory / "output"), "EXPECTED_MODEL": "tiny"}
    engine.process = engine.launch.popen(
        "warmup", "--name", "w", "--port", str(engine.port), *flags,
        *engine.launch.child([f"serve={engine.port},{engine.behaviour}"]), env=env,
    )  # fmt: skip


@pytest.mark.parametrize("how", [{"Health": 503}, {"Completion": "loading"}, {"Completion": "hang"}])
def test_an_engine_that_never_gets_ready_is_given_up(scripted: Engine, how: dict[str, object]) -> None:
    scripted.behave(**how)
    scripted.drain()
    start_scripted(scripted, "--ready-timeout", "2")
    scripted.end().failed(ExitCode.TOOLCHAIN_FAILURE, Reason.TOOLCHAIN_FAILED, "was not ready in 2s; last: ")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"Completion": "error"}, "answered 500"),
        ({"Completion": "empty"}, "generated no token"),
        ({"Completion": "garbage"}, "answered no completion"),
        ({"Models": 404}, "GET /v1/models answered 404"),
    ],
)
def test_what_no_waiting_changes_is_said_at_once(scripted: Engine, how: dict[str, object], said: str) -> None:
    scripted.behave(**how)
    scripted.drain()
    start_scripted(scripted)
    scripted.end().failed(ExitCode.TOOLCHAIN_FAILURE, Reason.TOOLCHAIN_FAILED, said)


def test_a_bucket_that_takes_for_ever(scripted: Engine) -> None:
    scripted.behave(Completion="hang after one")
    scripted.drain()
    start_scripted(scripted, "--batch", "2", "--ready-timeout", "10")
    scripted.end().failed(ExitCode.TOOLCHAIN_FAILURE, Reason.TOOLCHAIN_FAILED, "batch=2", "it took more than 10s")


def test_without_usage_there_is_no_telling_how_long_a_prompt_is(scripted: Engine) -> None:
    scripted.behave(Completion="text")
    scripted.drain()
    start_scripted(scripted, "--sequence", "64")
    scripted.end().failed(ExitCode.TOOLCHAIN_FAILURE, Reason.TOOLCHAIN_FAILED, "sequence=64", "tell no usage")


def test_an_engine_that_does_not_end_is_killed_and_its_cache_not_believed(scripted: Engine) -> None:
    cache = scripted.launch.directory / "cache"
    (cache / "sub").mkdir(parents=True)
    (cache / "sub" / "kernel").write_text("half")
    start_scripted(scripted, "--stop-timeout", "2")
    scripted.end().failed(
        ExitCode.TOOLCHAIN_FAILURE, Reason.TOOLCHAIN_FAILED, "did not end within 2s", "may not be whole"
    )
    assert (cache / "sub" / "kernel").exists()


@pytest.mark.parametrize(("ends_with", "code"), [(0, 0), (143, 0), (1, ExitCode.TOOLCHAIN_FAILURE)])
def test_how_a_warm_engine_may_end(scripted: Engine, ends_with: int, code: int) -> None:
    cache = scripted.launch.directory / "cache"
    cache.mkdir()
    (cache / "kernel").write_text("k")
    start_scripted(scripted)
    scripted.drain(ends_with)
    ended = scripted.end()
    assert ended.code == code, ended.stderr
    if code:
        ended.failed(code, Reason.TOOLCHAIN_FAILED, "was warm and asked to stop, but ended with 1")


@pytest.mark.parametrize(
    ("flags", "code", "reason", "problem"),
    [
        (["--output", "cache/*.blob"], 70, Reason.TOOLCHAIN_FAILED, "cache/*.blob is missing"),
        (["--output", "cache/kernel", "--success-pattern", "^drained$"], 0, Reason.BUILT, ""),
        (["--success-pattern", "all kernels ready"], 70, Reason.TOOLCHAIN_FAILED, "success pattern"),
        (["--failure-pattern", "^drained$"], 70, Reason.TOOLCHAIN_FAILED, "failure pattern: drained"),
        (["--failure-pattern", "drained", "--failure-meaning", "UnsupportedModel"], 64, Reason.UNSUPPORTED_MODEL, ""),
    ],
)
def test_a_warm_engine_is_judged_as_a_step(
    scripted: Engine, flags: list[str], code: int, reason: Reason, problem: str
) -> None:
    cache = scripted.launch.directory / "cache"
    cache.mkdir()
    (cache / "kernel").write_text("k")
    scripted.drain()
    start_scripted(scripted, *flags)
    report = scripted.end().failed(code, reason, problem) if code else scripted.end().report
    assert report.reason == reason


# --- the second start ----------------------------------------------------------------------------------------------


def next_shape(process: "subprocess.Popen[bytes]") -> str:
    """What the engine compiles or loads next; empty when it ends."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith((b"compiled ", b"loaded ")):
            return line.decode().strip()
    return ""


def test_a_second_start_finds_the_cache(warming: Warming) -> None:
    """The serving pod's engine compiles nothing that the build has compiled."""
    warmed = warming.run("--sequence", "128")
    assert warmed.code == 0, warmed.stderr
    artifact = warming.kept.rename(warming.launch.directory / "artifact")
    env = {key: value for key, value in warming.environment("").items() if key != "OUTPUT"}
    flags = ["--served-name=tape", f"--port={warming.port}", f"--report-port={free_port()}", f"--cache-from={artifact}"]
    flags.append(f"--ready-timeout={PATIENCE}")
    with running(warming.launch.popen("engine", *flags, *warming.server(), env=env)) as process:
        assert next_shape(process) == "loaded 1x8"  # the token of the readiness probe
        connection = http.client.HTTPConnection("127.0.0.1", warming.port, timeout=PATIENCE)
        body = json.dumps({"model": "tape", "prompt": "x" * 100, "max_tokens": 2})
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        assert connection.getresponse().status == 200
        connection.close()
        assert next_shape(process) == "loaded 1x128"
        process.terminate()
        assert warming.launch.end(process).code == 0
    assert any(artifact.iterdir()), "the cache was copied, not moved"


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda path: None, "there is no cache in"),
        (lambda path: path.mkdir(), "there is no cache in"),
        (lambda path: [path.mkdir(), (path / "empty").touch()], "there is no cache in"),
        (lambda path: path.write_text("no directory"), "there is no cache in"),
        (lambda path: [path.mkdir(), (path / "a").write_text("a"), (path / "out").symlink_to("/")], "cannot be used"),
    ],
)
def test_an_engine_does_not_start_without_its_cache(
    launch: Launch, make: "Callable[[Path], object]", complaint: str
) -> None:
    place = launch.directory / "cached"
    make(place)
    flags = ["--served-name", "m", "--report-port", str(free_port()), "--cache-from", str(place)]
    marker = launch.directory / "started"
    ended = launch("engine", *flags, *launch.child([f"write={marker}:x"]), env={"CACHE_DIR": str(launch.directory)})
    ended.failed(ExitCode.ARTIFACT_MISMATCH, Reason.ARTIFACT_MISMATCH, complaint)
    assert not marker.exists()


def test_the_cache_comes_over_what_an_earlier_container_left(launch: Launch) -> None:
    source, cache = launch.directory / "cached", launch.directory / "cache"
    for directory in (source / "deep", cache / "deep"):
        directory.mkdir(parents=True)
    (source / "deep" / "kernel").write_text("whole")
    (source / "deep" / "link").symlink_to("kernel")
    (source / "absolute").symlink_to(source / "deep" / "kernel")
    (source / "deep" / "kernel").chmod(0o444)
    (cache / "deep" / "kernel").write_text("half")
    (cache / "deep" / "kernel").chmod(0o444)
    flags = ["--served-name", "m", "--report-port", str(free_port()), "--cache-from", str(source)]
    launch("engine", *flags, *launch.child(["out=up"]), env={"CACHE_DIR": str(cache)})
    kernel = cache / "deep" / "kernel"
    assert kernel.read_text() == "whole"
    assert kernel.stat().st_mode & 0o600 == 0o600, "an engine may write to its cache"
    assert [(cache / name).resolve() for name in ("deep/link", "absolute")] == [kernel, kernel]


@pytest.mark.parametrize(
    ("arguments", "env", "complaint"),
    [
        (["warmup", "--name", "w", "--sequence", "1"], {}, "--sequence 1 has to be at least 2"),
        (["warmup", "--name", "w", "--batch", "0"], {}, "--batch 0 has to be at least 1"),
        (["warmup", "--name", "w", "--port", "70000"], {}, "from 1 to 65535"),
        (["warmup", "--name", "w", "--ready-timeout", "0"], {}, "more than 0"),
        (["warmup", "--name", "w", "--stop-timeout", "-1"], {}, "more than 0"),
        (["warmup", "--name", "w"], {"CACHE_DIR": ""}, "CACHE_DIR"),
        (["warmup", "--name", "w"], {"OUTPUT": "/o", "CACHE_DIR": "/o/cache"}, "have to be two directories"),
        (["warmup", "--name", "w"], {"OUTPUT": "/o", "CACHE_DIR": "/o"}, "have to be two directories"),
        (["warmup", "--name", "w"], {"OUTPUT": "/o", "CACHE_DIR": "/o/cache/mine"}, "have to be two directories"),
        (["warmup"], {}, "needs --name"),
        (["engine", "--served-name", "m", "--cache-from", "/c"], {"CACHE_DIR": ""}, "--cache-from needs CACHE_DIR"),
    ],
)
def test_bad_command_lines(launch: Launch, arguments: list[str], env: dict[str, str], complaint: str) -> None:
    environment = {"CACHE_DIR": "/c", **({"OUTPUT": "/o"} if arguments[0] == "warmup" else {}), **env}
    ended = launch(*arguments, *launch.child(["out=up"]), env=environment)
    ended.failed(ExitCode.BAD_INPUT, Reason.INVALID_SPEC, complaint)


def test_the_launchers_port_is_the_contracts(warming: Warming) -> None:
    usage = warming.launch("help").stdout
    assert f"warmup JUDGED [--port {names.SERVE_PORT}]" in usage
