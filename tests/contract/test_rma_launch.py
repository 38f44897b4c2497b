"""What ``rma-launch`` promises to images, pods and the operator for the steps of a build."""

import hashlib
import os
import shutil
import signal
import stat
import subprocess
from pathlib import Path

import pytest
from rm_api import names
from rm_api.conditions import Reason
from rm_api.names import ExitCode
from rma_launch_driver import OWN_REPORT, PATIENCE, TERMINATION_LOG_VARIABLE, Launch, free_port

_VALUES = {name: f"value-of-{name.lower()}" for name in names.BUILD_VARIABLES | names.SERVE_VARIABLES}
_NO_OUTPUT = {key: value for key, value in _VALUES.items() if key not in ("OUTPUT", "WORK")}


# --- command line -------------------------------------------------------------------------------------------------


def test_version(launch: Launch) -> None:
    ended = launch("version")
    assert ended.code == 0
    assert ended.stdout.startswith("rma-launch ")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["walk"], 'no command "walk"'),
        (["run"], "after --"),
        (["run", "--name", "x"], "after --"),
        (["run", "--name", "x", "--"], "no program after --"),
        (["run", "--", "true"], "--name"),
        (["run", "--name", "x", "stray", "--", "true"], '"stray"'),
        (["run", "--name", "x", "--bogus", "1", "--", "true"], "bogus"),
        (["run", "--name", "x", "--success-pattern", "(", "--", "true"], "missing closing )"),
        (["run", "--name", "x", "--failure-pattern", "a(?=b)", "--", "true"], "invalid or unsupported Perl syntax"),
        (["run", "--name", "x", "--exit-code", "3", "--", "true"], "N=MEANING"),
        (["run", "--name", "x", "--exit-code", "0=BadInput", "--", "true"], "from 1 to 255"),
        (["run", "--name", "x", "--exit-code", "3=Sunny", "--", "true"], "UnsupportedModel"),
        (["run", "--name", "x", "--version", "gcc", "--", "true"], "NAME=VALUE"),
        (["run", "--name", "x", "--version", "a=1", "--version", "a=2", "--", "true"], "a is given twice"),
        (["run", "--name", "x", "--failure-meaning", "Sunny", "--", "true"], "want one of BadInput, UnsupportedModel"),
        (["run", "--name", "x", "--output", "[", "--", "true"], "no glob"),
        (["run", "--name", "x", "--output", "a/**/b", "--", "true"], "** is not known"),
        (["run", "--name", "x", "--require-devices", "-1", "--", "true"], "negative"),
        (["run", "--name", "x", "--require-driver", "1.4.0", "--", "true"], "--require-devices, which is missing"),
        (["run", "--name", "x", "--", "no-such-program"], "not in PATH"),
        (["run", "--name", "x", "--", "/no/such/program"], "no such file"),
        (["run", "--name", "x", "--", "/"], "permission denied"),
        (["run", "--name", "x", "--", ""], "empty"),
        (["engine", "--", "true"], "--served-name"),
        (["engine", "--served-name", "m", "--artifact-key", "k", "--", "true"], "go together"),
        (["engine", "--served-name", "m", "--artifact-dir", "/", "--", "true"], "go together"),
        (["engine", "--served-name", "m", "--port", "0", "--", "true"], "two ports"),
        (["engine", "--served-name", "m", "--port", "9009", "--", "true"], "two ports"),
        (["engine", "--served-name", "m", "--require-devices", "-1", "--", "true"], "negative"),
        (["engine", "--served-name", "m", "--ready-timeout", "0", "--", "true"], "more than 0"),
        (["engine", "--served-name", "m", "--ready-timeout", "soon", "--", "true"], "ready-timeout"),
        (["install"], "install takes one directory"),
        (["install", "/no/such/directory"], "no directory"),
    ],
)
def test_bad_command_lines_are_bad_input(launch: Launch, arguments: list[str], complaint: str) -> None:
    launch(*arguments).failed(ExitCode.BAD_INPUT, Reason.INVALID_SPEC, complaint)


def test_without_arguments_it_says_how(launch: Launch) -> None:
    ended = launch()
    assert ended.code == ExitCode.BAD_INPUT
    assert "rma-launch engine" in ended.stderr


@pytest.mark.parametrize(("mode", "complaint"), [(0o755, "exec format error"), (0o644, "permission denied")])
def test_a_file_that_is_no_program(launch: Launch, mode: int, complaint: str) -> None:
    text = launch.directory / "text"
    text.write_text("hello")
    text.chmod(mode)
    launch("run", "--name", "x", "--", str(text)).failed(ExitCode.BAD_INPUT, Reason.INVALID_SPEC, complaint)


def test_install_copies_itself(launch: Launch) -> None:
    target = launch.directory / "bin"
    target.mkdir()
    for _ in range(2):  # a pod's init container may run twice
        old = os.umask(0o077)
        try:
            ended = launch("install", str(target))
        finally:
            os.umask(old)
        assert ended.code == 0
        assert ended.report.reason in set(Reason)
    installed = target / "rma-launch"
    assert stat.S_IMODE(installed.stat().st_mode) == 0o755
    assert installed.read_bytes() == Path(launch.binaries.launcher).read_bytes()
    assert [entry.name for entry in target.iterdir()] == ["rma-launch"]


def test_install_over_a_running_one(launch: Launch) -> None:
    target = launch.directory / "bin"
    target.mkdir()
    assert launch("install", str(target)).code == 0
    arguments = [str(target / "rma-launch"), "run", "--name", "x", *launch.child(["out=up", "trap=15"])]
    with subprocess.Popen(arguments, env=launch.environment(), stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "up\n"
        assert launch("install", str(target)).code == 0
        running.terminate()
        assert running.wait(PATIENCE) == 0


# --- variables ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "catalogue", "inputs"),
    [
        (["run", "--name", "x"], names.BUILD_VARIABLES, f"and {names.input_variable('name')} for each input"),
        (["engine", "--served-name", "m"], names.SERVE_VARIABLES, None),
    ],
)
def test_the_catalogue_is_the_contracts(
    launch: Launch, command: list[str], catalogue: frozenset[str], inputs: str | None
) -> None:
    """An unknown name is refused with all that there are, and these are the operator's."""
    message = launch(*command, *launch.child(["out=${MODEL}"])).failed(64, Reason.INVALID_SPEC, "${MODEL}").message
    listed = message.split("there are ")[1].split(";")[0].split(", ")
    if inputs is not None:
        assert listed.pop() == inputs
    assert set(listed) == catalogue
    assert listed == sorted(listed)


def test_every_build_variable_is_expanded(launch: Launch) -> None:
    wanted = sorted(names.BUILD_VARIABLES)
    ended = launch.step(*(f"out=${{{name}}}" for name in wanted), env=_VALUES)
    assert ended.stdout.splitlines() == [_VALUES[name] for name in wanted]


def test_the_directories_of_inputs_are_variables(launch: Launch) -> None:
    env = {"INPUT_calibration": "/rma/inputs/${x}", "INPUT_from": "/rma/inputs/from", "ARCH": "${INPUT_from}/arch"}
    ended = launch.step("out=${INPUT_calibration}/a", "env=ARCH", env=env)
    assert ended.stdout.splitlines() == ["/rma/inputs/${x}/a", "/rma/inputs/from/arch"]


def test_every_serving_variable_is_expanded(launch: Launch) -> None:
    wanted = sorted(names.SERVE_VARIABLES)
    flags = ["--served-name", "m", "--port", str(free_port()), "--report-port", str(free_port())]
    ended = launch("engine", *flags, *launch.child([f"out=${{{name}}}" for name in wanted]), env=_NO_OUTPUT)
    assert ended.stdout.splitlines() == [_NO_OUTPUT[name] for name in wanted]


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("$$", "$"),
        ("$${TP}", "${TP}"),
        ("$$${TP}", "$4"),
        ("x${TP}y${TP}", "x4y4"),
        ("$TP $(id) `id` $x$", "$TP $(id) `id` $x$"),
        ("a b; echo c | d > e & *.go ~ 'q' \"r\" \\ #", "a b; echo c | d > e & *.go ~ 'q' \"r\" \\ #"),
        ("${TARGET}", "${TP} $$ *"),
        ("名 ${TP} é", "名 4 é"),
        ("", ""),
    ],
)
def test_arguments_reach_the_program_without_a_shell(launch: Launch, text: str, want: str) -> None:
    ended = launch.step(f"out={text}", env={"TP": "4", "TARGET": "${TP} $$ *"})
    assert (ended.code, ended.stdout) == (0, want + "\n")


def test_the_environment_is_expanded(launch: Launch) -> None:
    env = {"WORK": "/rma/work", "TARGET": "$$x", "LIBRARY": "${WORK}/lib", "PRICE": "$$5", "HOME": "/tmp"}
    ended = launch.step("env=LIBRARY", "env=PRICE", "env=TARGET", "env=HOME", env=env)
    assert ended.stdout.splitlines() == ["/rma/work/lib", "$5", "$$x", "/tmp"]


def test_the_program_is_found_along_the_expanded_path(launch: Launch) -> None:
    shutil.copy(launch.binaries.child, launch.directory / "tool")
    env = {"WORK": str(launch.directory), "PATH": "/bin:${WORK}"}
    ended = launch("run", "--name", "x", "--", "tool", "out=found", env=env)
    assert (ended.code, ended.stdout) == (0, "found\n")


@pytest.mark.parametrize(
    ("flags", "actions", "env", "words"),
    [
        ([], ["out=${HOME}"], {"HOME": "/"}, ["argument 1", "${HOME}", "MODEL_DIR"]),
        ([], ["out=${SERVED_NAME}"], {"SERVED_NAME": "m"}, ["${SERVED_NAME}", "no variable"]),
        ([], ["out=${TP"], {}, ["without }"]),
        ([], ["out=${DTYPE}"], {}, ["${DTYPE}", "not set"]),
        ([], ["out=${INPUT_data}"], {"INPUT_other": "/o"}, ["${INPUT_data}", "the build has no input data"]),
        ([], ["out=${INPUT_}"], {"INPUT_": "/o"}, ["${INPUT_}", "no variable"]),
        ([], ["out=${INPUT_a-b}"], {"INPUT_a-b": "/o"}, ["${INPUT_a-b}", "no variable"]),
        (["--output", "${RESULT}/x"], [], {}, ["output 0", "${RESULT}"]),
        ([], [], {"PS1": "${chroot}"}, ["environment variable PS1", "${chroot}", "set it in env"]),
    ],
)
def test_variables_that_are_refused(
    launch: Launch, flags: list[str], actions: list[str], env: dict[str, str], words: list[str]
) -> None:
    ended = launch.step(f"write={launch.directory}/started:x", *actions, flags=flags, env=env)
    # Argument 0 is the program and 1 the marker.
    ended.failed(ExitCode.BAD_INPUT, Reason.INVALID_SPEC, *(word.replace("argument 1", "argument 2") for word in words))
    assert not (launch.directory / "started").exists()


# --- what a step leaves -------------------------------------------------------------------------------------------


def test_a_step_that_succeeds(launch: Launch) -> None:
    flags = ["--version", "gcc=14.2", "--version", "sdk=1=2"]
    ended = launch.step("out=one", "err=two", "sleep=50ms", "out=three", flags=flags)
    assert (ended.code, ended.stdout, ended.stderr) == (0, "one\nthree\n", "two\n")
    report = ended.report
    assert report.reason == Reason.BUILT
    assert report.versions == {"gcc": "14.2", "sdk": "1=2"}
    assert sorted(report.facts["logTail"].splitlines()) == ["one", "three", "two"]
    assert report.facts["step"] == "compile"
    assert 0.05 <= report.seconds < PATIENCE


@pytest.mark.parametrize(
    ("glob", "made", "problem"),
    [
        ("model.bin", {"model.bin": "x"}, None),
        ("${OUTPUT}/model.bin", {"model.bin": "x"}, None),
        ("*.bin", {"a.bin": "x", "b.bin": "y"}, None),
        ("tree", {"tree/deep/er/file": "x"}, None),
        ("tree/*", {"tree/a": "x", "tree/b/c": "x"}, None),
        ("tree", {"tree/a": "", "tree/b": "x"}, None),
        (".", {"a": "x"}, None),
        ("model.bin", {}, "missing"),
        ("model.bin", {"model.bi": "x"}, "missing"),
        ("*.bin", {"a.xml": "x"}, "missing"),
        ("model.bin", {"model.bin": ""}, "empty"),
        ("*.bin", {"a.bin": "x", "b.bin": ""}, "b.bin is empty"),
        ("tree", {"tree/": ""}, "empty"),
        ("tree", {"tree/sub/": ""}, "empty"),
        ("tree", {"tree/a": "", "tree/sub/b": ""}, "empty"),
    ],
)
def test_outputs(launch: Launch, glob: str, made: dict[str, str], problem: str | None) -> None:
    output = launch.directory / "output"
    output.mkdir()
    actions = []
    for path, content in made.items():
        parent = path if path.endswith("/") else str(Path(path).parent)
        actions.append(f"mkdir={output}/{parent}")
        if not path.endswith("/"):
            actions.append(f"write={output}/{path}:{content}")
    ended = launch.step(*actions, flags=["--output", glob], env={"OUTPUT": str(output)})
    if problem is None:
        assert (ended.code, ended.report.reason) == (0, Reason.BUILT)
    else:
        ended.failed(ExitCode.TOOLCHAIN_FAILURE, Reason.TOOLCHAIN_FAILED, problem, "ended with 0", str(output))


def test_one_of_several_outputs_is_missing(launch: Launch) -> None:
    flags = ["--output", "a", "--output", "b"]
    ended = launch.step(f"write={launch.directory}/a:x", flags=flags, env={"OUTPUT": str(launch.directory)})
    ended.failed(ExitCode.TOOLCHAIN_FAILURE, Reason.TOOLCHAIN_FAILED, "/b is missing")


def test_a_dangling_output(launch: Launch) -> None:
    (launch.directory / "link").symlink_to("nowhere")
    ended = launch.step("out=x", flags=["--output", str(launch.directory / "link")])
    ended.failed(ExitCode.TOOLCHAIN_FAILURE, Reason.TOOLCHAIN_FAILED, "missing")


@pytest.mark.parametrize(
    ("flags", "actions", "line"),
    [
        (["--success-pattern", "^saved to .*[.]bin$"], ["out=saved to x.bin"], None),
        (["--success-pattern", "saved"], ["err=saved"], None),
        (["--success-pattern", "^done$"], [r"raw=10%\rdone\r\n"], None),
        (["--success-pattern", "^saved"], [r"raw=\x1b[32msaved\x1b[0m"], None),
        (["--success-pattern", "saved"], ["out=nearly", "err=hm"], "hm"),
        (["--success-pattern", "^saved$"], ["out=not saved"], "not saved"),
        (["--failure-pattern", "ERROR"], ["out=fine"], None),
        (["--failure-pattern", "ERROR"], ["out=an ERROR: lost", "out=all good", "err=bye"], "an ERROR: lost"),
        (["--failure-pattern", "(?i)error"], ["err=Error 5"], "Error 5"),
        (["--failure-pattern", "lost", "--success-pattern", "done"], ["out=done", "out=lost"], "lost"),
        (["--failure-pattern", "lost", "--success-pattern", "done"], ["out=done"], None),
    ],
)
def test_patterns(launch: Launch, flags: list[str], actions: list[str], line: str | None) -> None:
    ended = launch.step(*actions, flags=flags)
    if line is None:
        assert (ended.code, ended.report.reason) == (0, Reason.BUILT)
    else:
        ended.failed(ExitCode.TOOLCHAIN_FAILURE, Reason.TOOLCHAIN_FAILED, line, "pattern")


@pytest.mark.parametrize(
    ("flags", "code", "want", "reason"),
    [
        ([], 1, 70, Reason.TOOLCHAIN_FAILED),
        ([], 2, 70, Reason.TOOLCHAIN_FAILED),
        ([], 255, 70, Reason.TOOLCHAIN_FAILED),
        ([], 66, 70, Reason.TOOLCHAIN_FAILED),  # a vendor's tool that says nothing must not exclude the node
        ([], 143, 75, Reason.RETRYING),
        (["--exit-code", "3=BadInput"], 3, 64, Reason.SOURCE_INVALID),
        (["--exit-code", "3=UnsupportedModel"], 3, 64, Reason.UNSUPPORTED_MODEL),
        (["--exit-code", "3=ToolchainFailure"], 3, 70, Reason.TOOLCHAIN_FAILED),
        (["--exit-code", "3=Transient"], 3, 75, Reason.RETRYING),
        (["--exit-code", "3=Transient", "--exit-code", "4=BadInput"], 4, 64, Reason.SOURCE_INVALID),
        (["--exit-code", "3=Transient"], 4, 70, Reason.TOOLCHAIN_FAILED),
        (["--exit-code", "65=UnsupportedModel"], 65, 64, Reason.UNSUPPORTED_MODEL),
    ],
)
def test_exit_codes(launch: Launch, flags: list[str], code: int, want: int, reason: Reason) -> None:
    ended = launch.step("out=working", "err=it broke", f"exit={code}", flags=flags)
    ended.failed(want, reason, "it broke")


UNSUPPORTED = ["--failure-meaning", "UnsupportedModel"]


@pytest.mark.parametrize(
    ("flags", "actions", "want", "reason"),
    [
        (UNSUPPORTED, ["exit=1"], 64, Reason.UNSUPPORTED_MODEL),
        (UNSUPPORTED, [f"raise={int(signal.SIGABRT)}"], 64, Reason.UNSUPPORTED_MODEL),
        ([*UNSUPPORTED, "--success-pattern", "fits"], ["out=too large"], 64, Reason.UNSUPPORTED_MODEL),
        ([*UNSUPPORTED, "--output", "/no/such/output"], [], 64, Reason.UNSUPPORTED_MODEL),
        ([*UNSUPPORTED, "--exit-code", "3=ToolchainFailure"], ["exit=3"], 70, Reason.TOOLCHAIN_FAILED),
        ([*UNSUPPORTED, "--exit-code", "3=ToolchainFailure"], ["exit=4"], 64, Reason.UNSUPPORTED_MODEL),
        (UNSUPPORTED, [f"raise={int(signal.SIGKILL)}"], 75, Reason.RETRYING),
        (UNSUPPORTED, [f"report={OWN_REPORT}", "exit=69"], 69, Reason.SOURCE_UNREACHABLE),
        (["--failure-meaning", "Transient"], ["exit=1"], 75, Reason.RETRYING),
        (["--failure-meaning", "BadInput"], ["exit=1"], 64, Reason.SOURCE_INVALID),
        (UNSUPPORTED, ["exit=0"], 0, Reason.BUILT),
    ],
)
def test_what_a_failure_means(launch: Launch, flags: list[str], actions: list[str], want: int, reason: Reason) -> None:
    ended = launch.step(*actions, flags=flags)
    assert (ended.code, ended.report.reason) == (want, reason), ended.stderr


@pytest.mark.parametrize(
    ("which", "want", "reason"),
    [
        (signal.SIGABRT, 70, Reason.TOOLCHAIN_FAILED),
        (signal.SIGSEGV, 70, Reason.TOOLCHAIN_FAILED),
        (signal.SIGTERM, 75, Reason.RETRYING),
        (signal.SIGKILL, 75, Reason.RETRYING),
    ],
)
def test_a_program_that_a_signal_ends(launch: Launch, which: signal.Signals, want: int, reason: Reason) -> None:
    ended = launch.step("out=working", f"raise={int(which)}")
    assert (ended.code, ended.report.reason) == (want, reason)
    if which in (signal.SIGTERM, signal.SIGKILL):  # Go's runtime turns the others into an exit with 2
        assert f"signal {int(which)}" in ended.report.message


@pytest.mark.parametrize("code", sorted(ExitCode))
def test_a_program_of_ours_keeps_its_report(launch: Launch, code: ExitCode) -> None:
    ended = launch.step(f"report={OWN_REPORT}", f"exit={int(code)}")
    assert (ended.code, ended.left.decode()) == (code, OWN_REPORT)


@pytest.mark.parametrize(
    ("flags", "own", "code", "want", "reason"),
    [
        ([], OWN_REPORT, 1, 70, Reason.TOOLCHAIN_FAILED),
        ([], "not JSON", 69, 70, Reason.TOOLCHAIN_FAILED),
        ([], '{"message":"no reason"}', 69, 70, Reason.TOOLCHAIN_FAILED),
        ([], '{"reason":"X","retryable":"yes"}', 69, 70, Reason.TOOLCHAIN_FAILED),
        ([], '{"reason":"X","message":"' + "m" * 2048 + '"}', 69, 70, Reason.TOOLCHAIN_FAILED),
        (["--success-pattern", "done"], OWN_REPORT, 0, 70, Reason.TOOLCHAIN_FAILED),
        (["--output", "/no/such/output"], OWN_REPORT, 0, 70, Reason.TOOLCHAIN_FAILED),
    ],
)
def test_reports_that_are_not_kept(
    launch: Launch, flags: list[str], own: str, code: int, want: int, reason: Reason
) -> None:
    launch.step(f"report={own}", f"exit={code}", flags=flags).failed(want, reason)


def test_a_report_of_an_earlier_container_is_not_the_childs(launch: Launch) -> None:
    launch.log.write_text(OWN_REPORT)
    launch.step("exit=69").failed(ExitCode.TOOLCHAIN_FAILURE, Reason.TOOLCHAIN_FAILED)


def test_without_a_termination_log_it_just_runs(launch: Launch) -> None:
    gone = str(launch.directory / "no" / "log")
    ended = launch.step("exit=1", env={TERMINATION_LOG_VARIABLE: gone})
    assert ended.code == ExitCode.TOOLCHAIN_FAILURE
    assert "cannot leave the report" in ended.stderr


def test_ten_megabytes_of_log_pass_unchanged(launch: Launch) -> None:
    ended = launch.step("lines=100000", "out=the end", flags=["--failure-pattern", "ERROR [0-9]+"])
    want = ("x" * 99 + "\n") * 100000 + "the end\n"
    assert hashlib.sha256(ended.stdout.encode()).digest() == hashlib.sha256(want.encode()).digest()
    tail = ended.report.facts["logTail"].splitlines()
    assert tail[-1] == "the end"
    assert 10 <= len(tail) <= 20


def test_raw_bytes_pass_unchanged_and_the_report_is_clean(launch: Launch) -> None:
    ended = launch.step(r"raw= 1%\r 99%\r\x1b[1;31mbad\x1b[0m \xff 名\r\n\xe5\x90")
    said = ended.stdout.encode(errors="surrogateescape")
    assert said == b" 1%\r 99%\r\x1b[1;31mbad\x1b[0m \xff \xe5\x90\x8d\r\n\xe5\x90"
    assert ended.report.facts["logTail"] == "bad � 名\n�"


@pytest.mark.parametrize(
    "text",
    ["名" * 5000, "é" * 5001, '"\\' * 3000, "\U0001f680 " * 3000, "\x1b[1m" * 3000 + "x", "\t" * 4000 + "y"],
    ids=["three bytes", "two bytes", "escapes of JSON", "four bytes", "colours", "tabs"],
)
def test_the_report_fits_whatever_was_said(launch: Launch, text: str) -> None:
    ended = launch.step(*[f"err={text}"] * 20, "exit=1", flags=["--version", "v=" + "1" * 500])
    report = ended.failed(ExitCode.TOOLCHAIN_FAILURE, Reason.TOOLCHAIN_FAILED, "ended with 1")
    assert report.versions == {"v": "1" * 500}
    assert "�" not in ended.left.decode()
    assert "\n" not in report.message


def test_a_reader_that_goes_away_does_not_stop_the_step(launch: Launch) -> None:
    reader, writer = os.pipe()
    marker = launch.directory / "done"
    process = launch.popen("run", "--name", "x", *launch.child(["lines=50000", f"write={marker}:x"]), stdout=writer)
    os.close(writer)
    os.read(reader, 10)
    os.close(reader)
    assert launch.end(process).code == 0
    assert marker.exists()


def test_the_programs_streams_block(launch: Launch) -> None:
    assert launch.step("flags=").stdout.count("nonblocking false true") == 3


# --- devices ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["run", "python", "warmup"])
@pytest.mark.parametrize(
    ("announced", "said"),
    [
        ({}, "RMA_DEVICE_NODES names none"),
        ({"DEVICE_IDS": "a,b", "RMA_DEVICE_NODES": "/dev/null=1:3,/dev/zero=1:5"}, "DEVICE_IDS names 2"),
        ({"DEVICE_IDS": "a", "RMA_DEVICE_NODES": "/dev/none-such=1:3"}, "/dev/none-such is not there"),
        ({"DEVICE_IDS": "a", "RMA_DEVICE_NODES": "/dev/null=1:4"}, "announced 1:4"),
    ],
)
def test_without_its_device_a_step_does_not_begin(
    launch: Launch, tmp_path: Path, command: str, announced: dict[str, str], said: str
) -> None:
    trace = tmp_path / "begun"
    directories = {"OUTPUT": str(tmp_path / "output"), "CACHE_DIR": str(tmp_path / "cache")}
    argv = ["os:mkdir", str(trace)] if command == "python" else ["mkdir", str(trace)]
    ended = launch(command, "--name=tune", "--require-devices=1", "--", *argv, env={**directories, **announced})
    assert ended.code == ExitCode.DEVICE_MISSING
    assert ended.report.reason == Reason.DEVICE_MISSING
    assert said in ended.report.message
    assert not trace.exists()


@pytest.mark.parametrize("command", ["run", "python", "warmup"])
@pytest.mark.parametrize(
    ("driver", "wanted", "fits"),
    [
        ("1.4.0", ["1.4.0"], True),
        ("1.4.0", ["1.3.0", "1.4.0"], True),
        ("1.4.0 (build 7)", ["1.4.0__build_7"], True),
        (None, ["1.4.0"], True),
        ("1.4.0", [], True),
        ("1.4.0", ["1.3.0"], False),
        ("1.4.0", ["1.4"], False),
        ("1.4.0", ["1.3.0", "1.5.0"], False),
    ],
)
def test_a_step_does_not_begin_under_a_driver_that_its_result_is_not_for(
    launch: Launch, tmp_path: Path, command: str, driver: str | None, wanted: list[str], fits: bool
) -> None:
    trace = tmp_path / "begun"
    env = {"DEVICE_IDS": "a", "RMA_DEVICE_NODES": "/dev/null=1:3", **({"RMA_DEVICE_DRIVER": driver} if driver else {})}
    env |= {"OUTPUT": str(tmp_path / "output"), "CACHE_DIR": str(tmp_path / "cache")}
    argv = ["os:mkdir", str(trace)] if command == "python" else ["mkdir", str(trace)]
    flags = ["--require-devices=1", *(f"--require-driver={version}" for version in wanted)]
    ended = launch(command, "--name=tune", *flags, "--", *argv, env=env)
    if fits:
        # os.mkdir is given a build, which is no path: it was called.
        assert "os.PathLike" in ended.report.message if command == "python" else trace.exists()
    else:
        assert not trace.exists()
        assert (ended.code, ended.report.reason) == (ExitCode.DRIVER_MISMATCH, Reason.DRIVER_MISMATCH)
        assert ended.report.message == f"the devices have driver {driver}, and the step is for {' or '.join(wanted)}"


def test_with_its_device_a_step_begins(launch: Launch) -> None:
    announced = {"DEVICE_IDS": "a", "RMA_DEVICE_NODES": "/dev/null=1:3,/dev/zero=1:5"}
    ended = launch("run", "--name=tune", "--require-devices=1", "--", "true", env=announced)
    assert ended.code == 0
