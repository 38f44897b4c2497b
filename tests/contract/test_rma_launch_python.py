"""``rma-launch python``: a compiler that is a function of a Python package, called in a real Python."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from rm_api import names
from rm_api.conditions import Reason
from rm_api.names import ExitCode
from rma_launch_driver import (
    LAUNCHER_SOURCES,
    OWN_REPORT,
    TERMINATION_LOG_VARIABLE,
    Ended,
    Launch,
    lines_until,
    running,
)

COMPILER = '''
"""What a vendor's package looks like."""
import json, os, signal, sys
from pathlib import Path
import enum

def show(build):
    print(json.dumps(vars(build)))
    return {"versions": {"npu-sdk": "2.1.0", "numerics": "7"}}

def compile(build):
    Path(build.output, "model.bin").write_text(build.target)
    print("saved to model.bin")

class Tools:
    @staticmethod
    def compile(build):
        print("in a class")

class UnsupportedModel(Exception): pass
class UnsupportedRope(UnsupportedModel): pass
class Code(enum.IntEnum): DRIVER = 67
class Driver(Exception): rma_exit_code = Code.DRIVER
class Away(OSError): rma_exit_code = 69
class Deterministic(NotImplementedError): rma_exit_code = 70
class Unfit(UnsupportedModel): rma_exit_code = 64
class Strange(Exception): rma_exit_code = 7
class Success(Exception): rma_exit_code = 0
class Text(Exception): rma_exit_code = "75"
class Unspeakable(Exception):
    def __str__(self): raise RuntimeError("no words")

def raises(build):
    raise eval(build.args[0])

def returns(build):
    return eval(build.args[0])

def leaves(build):
    sys.exit(eval(build.args[0]))

def vanishes(build):
    os._exit(int(build.args[0]))

def crashes(build):
    import ctypes
    ctypes.string_at(0)

def reports(build):
    Path(os.environ["RMA_TERMINATION_LOG"]).write_text(os.environ["OWN"])
    sys.exit(69)

def forks(build):
    pid = os.fork()
    if pid == 0:
        return {"versions": {"of": "the fork"}}
    os.waitpid(pid, 0)
    return {"versions": {"of": "the parent"}}

def leaves_a_helper(build):
    import subprocess
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], close_fds=False)

def waits(build):
    print("waiting")
    sys.stdout.flush()
    signal.pause()

def searches(build):
    import json as found
    print(found.__name__, [entry for entry in sys.path if entry in ("", os.getcwd())])

def arguments(build):
    print(sys.argv, build.args)

not_callable = 5
'''


@pytest.fixture
def package(launch: Launch) -> Path:
    """Installs the compiler."""
    site = launch.directory / "site"
    (site / "npu_sdk").mkdir(parents=True)
    (site / "npu_sdk" / "__init__.py").touch()
    (site / "npu_sdk" / "compiler.py").write_text(textwrap.dedent(COMPILER))
    (site / "npu_sdk" / "needy.py").write_text("import npu_runtime\n")
    (site / "npu_sdk" / "broken.py").write_text("def f(:\n")
    (site / "npu_sdk" / "raising.py").write_text("raise NotImplementedError('not on this CPU')\n")
    launch.env = {"PYTHONPATH": str(site), "RMA_PYTHON": sys.executable}
    return site


def call(
    launch: Launch, what: str, *args: str, flags: list[str] | None = None, env: dict[str, str] | None = None
) -> Ended:
    target = what if ":" in what else f"npu_sdk.compiler:{what}"
    return launch("python", "--name", "compile", *(flags or []), "--", target, *args, env=env)


def test_the_function_gets_what_is_to_be_built(launch: Launch, package: Path) -> None:
    env = {
        "MODEL_DIR": names.MODEL_DIR, "OUTPUT": names.OUTPUT_DIR, "WORK": names.WORK_DIR, "CACHE_DIR": names.CACHE_DIR,
        "TARGET": "x1 ${TP} $$", "DTYPE": "bf16", "TP": "2", "PP": "1", "MAX_SEQ": "4096", "MAX_BATCH": "",
        "DEVICE_COUNT": "2", "INPUT_calibration": "/rma/inputs/calibration", "INPUT_from": "/rma/inputs/from",
    }  # fmt: skip
    flags = ["--flag", "opt=${TP}=$$", "--flag", "empty=", "--version", "base=1"]
    ended = call(launch, "show", "--fast", "${DTYPE}/名", flags=flags, env=env)
    assert ended.code == 0, ended.stderr
    assert json.loads(ended.stdout) == {
        "model_dir": "/rma/model", "output": "/rma/output", "work": "/rma/work", "cache_dir": "/rma/cache",
        "target": "x1 ${TP} $$", "dtype": "bf16", "tp": 2, "pp": 1, "max_seq": 4096, "max_batch": None,
        "device_count": 2, "inputs": {"calibration": "/rma/inputs/calibration", "from": "/rma/inputs/from"},
        "flags": {"opt": "${TP}=$$", "empty": ""}, "args": ["--fast", "bf16/名"],
    }  # fmt: skip
    assert ended.report.reason == Reason.BUILT
    assert ended.report.versions == {"base": "1", "npu-sdk": "2.1.0", "numerics": "7"}
    assert ended.report.facts["step"] == "compile"


@pytest.mark.parametrize("function", ["Tools.compile", "arguments"])
def test_names_and_arguments(launch: Launch, package: Path, function: str) -> None:
    ended = call(launch, function, "a", "b")
    wanted = {"Tools.compile": "in a class", "arguments": "['npu_sdk.compiler:arguments', 'a', 'b'] ['a', 'b']"}
    assert (ended.code, ended.stdout.strip()) == (0, wanted[function])


def test_it_is_judged_as_a_step(launch: Launch, package: Path) -> None:
    env = {"OUTPUT": str(launch.directory), "TARGET": "x1"}
    good = ["--output", "model.bin", "--success-pattern", "^saved to"]
    assert call(launch, "compile", flags=good, env=env).code == 0
    for flags, words in (
        (["--output", "other.bin"], "other.bin is missing"),
        (["--success-pattern", "done"], "success pattern"),
        (["--failure-pattern", "saved"], "failure pattern: saved to model.bin"),
    ):
        ended = call(launch, "compile", flags=flags, env=env)
        ended.failed(ExitCode.TOOLCHAIN_FAILURE, Reason.TOOLCHAIN_FAILED, words)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("npu_sdk.missing:f", "there is no module npu_sdk.missing in this image"),
        ("no_such_package.compiler:f", "there is no module no_such_package.compiler in this image"),
        ("npu_sdk.compiler.deeper:f", "there is no module npu_sdk.compiler.deeper in this image"),
        ("npu_sdk.compiler:missing", "there is no function missing in the module npu_sdk.compiler"),
        ("npu_sdk.compiler:Tools.missing", "there is no function Tools.missing"),
        ("npu_sdk.compiler:not_callable", "is a int and no function"),
    ],
)
def test_what_is_not_there_is_a_wrong_spec(launch: Launch, package: Path, what: str, words: str) -> None:
    call(launch, what).failed(ExitCode.BAD_INPUT, Reason.INVALID_SPEC, words)


@pytest.mark.parametrize(
    "what", ["npu_sdk", "npu_sdk.compiler:", ":f", "a b:f", "a:f()", "a:b:c", "-m:f", ".a:f", "1a:f"]
)
def test_what_names_no_function(launch: Launch, package: Path, what: str) -> None:
    ended = launch("python", "--name", "compile", "--", what)
    ended.failed(ExitCode.BAD_INPUT, Reason.INVALID_SPEC, "should be MODULE:FUNCTION")


@pytest.mark.parametrize(
    ("what", "code", "reason", "words"),
    [
        ("npu_sdk.needy:f", 70, Reason.TOOLCHAIN_FAILED, "ModuleNotFoundError: No module named 'npu_runtime'"),
        ("npu_sdk.broken:f", 70, Reason.TOOLCHAIN_FAILED, "SyntaxError: "),
        ("npu_sdk.raising:f", 64, Reason.UNSUPPORTED_MODEL, "NotImplementedError: not on this CPU"),
    ],
)
def test_a_module_that_cannot_be_loaded(
    launch: Launch, package: Path, what: str, code: int, reason: Reason, words: str
) -> None:
    call(launch, what).failed(code, reason, words)


OWN = "npu_sdk.compiler."


@pytest.mark.parametrize(
    ("raised", "code", "reason", "words"),
    [
        ("ValueError('no such op')", 70, Reason.TOOLCHAIN_FAILED, "the step raised ValueError: no such op"),
        ("KeyError('a')", 70, Reason.TOOLCHAIN_FAILED, "KeyError: 'a'"),
        ("ValueError()", 70, Reason.TOOLCHAIN_FAILED, "the step raised ValueError"),
        ("ValueError('a\\nb\\udc00 名 ' + 'x' * 9000)", 70, Reason.TOOLCHAIN_FAILED, "ValueError: a"),
        ("Unspeakable()", 70, Reason.TOOLCHAIN_FAILED, f"{OWN}Unspeakable: (its text cannot be had: RuntimeError)"),
        ("BaseException('odd')", 70, Reason.TOOLCHAIN_FAILED, "BaseException: odd"),
        ("OSError(28, 'No space left on device')", 70, Reason.TOOLCHAIN_FAILED, "OSError: [Errno 28]"),
        ("NotImplementedError('rope')", 64, Reason.UNSUPPORTED_MODEL, "NotImplementedError: rope"),
        ("UnsupportedModel('rope')", 64, Reason.UNSUPPORTED_MODEL, f"{OWN}UnsupportedModel: rope"),
        ("UnsupportedRope('yarn')", 64, Reason.UNSUPPORTED_MODEL, f"{OWN}UnsupportedRope: yarn"),
        ("Unfit('moe')", 64, Reason.UNSUPPORTED_MODEL, f"{OWN}Unfit: moe"),
        ("MemoryError('8 GiB')", 75, Reason.OUT_OF_MEMORY, "MemoryError: 8 GiB; raise resources.memory"),
        ("Driver('1.3')", 67, Reason.DRIVER_MISMATCH, f"{OWN}Driver: 1.3"),
        ("Away('hub')", 69, Reason.SOURCE_UNREACHABLE, f"{OWN}Away: hub"),
        ("Deterministic('x')", 70, Reason.TOOLCHAIN_FAILED, f"{OWN}Deterministic: x"),
        ("Strange('x')", 70, Reason.TOOLCHAIN_FAILED, f"{OWN}Strange: x"),
        ("Success('x')", 70, Reason.TOOLCHAIN_FAILED, f"{OWN}Success: x"),
        ("Text('x')", 70, Reason.TOOLCHAIN_FAILED, f"{OWN}Text: x"),
    ],
)
def test_exceptions(launch: Launch, package: Path, raised: str, code: int, reason: Reason, words: str) -> None:
    ended = call(launch, "raises", raised)
    ended.failed(code, reason, words)
    assert "Traceback" in ended.stderr
    assert "compiler.py" in ended.stderr
    assert 'File "<string>"' not in ended.stderr, "only the vendor's lines are of interest"


@pytest.mark.parametrize(
    ("flags", "raised", "code", "reason"),
    [
        (["--exit-code", "1=Transient"], "ValueError()", 75, Reason.RETRYING),
        (["--exit-code", "1=Transient"], "NotImplementedError()", 64, Reason.UNSUPPORTED_MODEL),
        (["--failure-meaning", "UnsupportedModel"], "ValueError()", 64, Reason.UNSUPPORTED_MODEL),
        (["--failure-meaning", "UnsupportedModel"], "Driver()", 67, Reason.DRIVER_MISMATCH),
    ],
)
def test_an_exception_like_any_other_is_an_exit_with_1(
    launch: Launch, package: Path, flags: list[str], raised: str, code: int, reason: Reason
) -> None:
    call(launch, "raises", raised, flags=flags).failed(code, reason)


@pytest.mark.parametrize(
    ("code", "want", "reason"),
    [
        ("None", 0, Reason.BUILT),
        ("0", 0, Reason.BUILT),
        ("1", 70, Reason.TOOLCHAIN_FAILED),
        ("'the licence has expired'", 70, Reason.TOOLCHAIN_FAILED),
        ("3", 64, Reason.UNSUPPORTED_MODEL),
        ("66", 70, Reason.TOOLCHAIN_FAILED),
    ],
)
def test_system_exit_is_the_exit_of_a_program(
    launch: Launch, package: Path, code: str, want: int, reason: Reason
) -> None:
    ended = call(launch, "leaves", code, flags=["--exit-code", "3=UnsupportedModel"])
    assert (ended.code, ended.report.reason) == (want, reason), ended.stderr
    if "licence" in code:
        assert "the licence has expired" in ended.report.message


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        ("5", "returned int"),
        ("['1']", "returned list"),
        ("{'version': '1'}", "returned ['version']"),
        ("{'versions': ['1']}", "versions that are not texts by name"),
        ("{'versions': {'sdk': 2}}", "versions that are not texts by name"),
        ("{'versions': {'': '2'}}", "versions that are not texts by name"),
    ],
)
def test_what_it_must_not_return(launch: Launch, package: Path, returned: str, words: str) -> None:
    ended = call(launch, "returns", returned)
    ended.failed(ExitCode.TOOLCHAIN_FAILURE, Reason.TOOLCHAIN_FAILED, words, 'None or {"versions": {name: version}}')


@pytest.mark.parametrize("returned", ["None", "{}", "{'versions': {}}"])
def test_what_it_may_return(launch: Launch, package: Path, returned: str) -> None:
    ended = call(launch, "returns", returned)
    assert (ended.code, ended.report.versions) == (0, {}), ended.stderr


def test_a_function_that_never_returns_has_not_succeeded(launch: Launch, package: Path) -> None:
    ended = call(launch, "vanishes", "0")
    ended.failed(70, Reason.TOOLCHAIN_FAILED, "ended with 0 without having returned")
    call(launch, "vanishes", "7").failed(70, Reason.TOOLCHAIN_FAILED, "ended with 7")


def test_a_crash_of_native_code_says_where(launch: Launch, package: Path) -> None:
    ended = call(launch, "crashes")
    ended.failed(70, Reason.TOOLCHAIN_FAILED, f"signal {int(signal.SIGSEGV)}", "Segmentation fault")
    assert "compiler.py" in ended.report.facts["logTail"]


def test_a_report_of_its_own(launch: Launch, package: Path) -> None:
    ended = call(launch, "reports", env={"OWN": OWN_REPORT, TERMINATION_LOG_VARIABLE: str(launch.log)})
    assert (ended.code, ended.left.decode()) == (ExitCode.SOURCE_UNREACHABLE, OWN_REPORT)


def test_a_fork_that_comes_back_says_nothing(launch: Launch, package: Path) -> None:
    assert call(launch, "forks").report.versions == {"of": "the parent"}


def test_a_helper_that_it_leaves_does_not_hold_it_up(launch: Launch, package: Path) -> None:
    assert call(launch, "leaves_a_helper").code == 0


def test_files_of_earlier_steps_are_not_taken_for_modules(launch: Launch, package: Path) -> None:
    for name in ("json.py", "traceback.py", "npu_sdk.py"):
        (launch.directory / name).write_text("raise RuntimeError('a file of the working directory')")
    ended = call(launch, "searches")
    assert (ended.code, ended.stdout.strip()) == (0, "json []")


def test_sigterm_means_again(launch: Launch, package: Path) -> None:
    with running(launch.popen("python", "--name", "x", "--", "npu_sdk.compiler:waits")) as process:
        lines_until(process, "waiting")
        process.terminate()
        launch.end(process).failed(ExitCode.TRANSIENT, Reason.RETRYING, "asked to stop", "signal 15")


def test_python3_of_the_image_is_what_runs(launch: Launch, package: Path) -> None:
    binaries = launch.directory / "bin"
    binaries.mkdir()
    (binaries / "python3").symlink_to(sys.executable)
    del launch.env["RMA_PYTHON"]
    assert call(launch, "returns", "None", env={"PATH": str(binaries)}).code == 0
    ended = call(launch, "returns", "None", env={"PATH": "/no/such/directory"})
    ended.failed(64, Reason.INVALID_SPEC, "python3 is not in PATH", "RMA_PYTHON")
    ended = call(launch, "returns", "None", env={"RMA_PYTHON": "/no/such/python"})
    ended.failed(64, Reason.INVALID_SPEC, "/no/such/python", "RMA_PYTHON")


def test_what_is_no_python_has_not_called_anything(launch: Launch, package: Path) -> None:
    true = shutil.which("true")
    assert true
    ended = call(launch, "returns", "None", env={"RMA_PYTHON": true})
    ended.failed(70, Reason.TOOLCHAIN_FAILED, "without having returned")


@pytest.mark.parametrize(
    ("flags", "env", "complaint"),
    [
        (["--flag", "opt"], {}, "NAME=VALUE"),
        (["--flag", "=1"], {}, "NAME=VALUE"),
        (["--flag", "a=1", "--flag", "a=2"], {}, "a is given twice"),
        ([], {"TP": "two"}, 'TP is "two" and no number'),
        ([], {"MAX_SEQ": "4k"}, 'MAX_SEQ is "4k" and no number'),
    ],
)
def test_bad_command_lines(
    launch: Launch, package: Path, flags: list[str], env: dict[str, str], complaint: str
) -> None:
    call(launch, "show", flags=flags, env=env).failed(ExitCode.BAD_INPUT, Reason.INVALID_SPEC, complaint)


def test_the_runner_is_of_the_oldest_python_that_images_have() -> None:
    """What is handed to a Python of unknown age has to be ASCII, and the syntax of 3.6."""
    import ast

    text = (LAUNCHER_SOURCES / "runner.py").read_text(encoding="ascii")
    ast.parse(text, feature_version=(3, 6))


def test_every_python_of_this_machine_runs_it(launch: Launch, package: Path) -> None:
    """Also without the variables of a locale, as in a bare image."""
    found = {shutil.which(f"python3.{minor}", path=f"{os.environ['PATH']}:/usr/bin") for minor in range(6, 20)}
    works = [
        path
        for path in found
        if path and subprocess.run([path, "-c", ""], check=False, capture_output=True).returncode == 0
    ]
    for python in {sys.executable, *works}:
        ended = call(launch, "returns", "{'versions': {'a': '1'}}", env={"RMA_PYTHON": python, "LC_ALL": "C"})
        assert (ended.code, ended.report.versions) == (0, {"a": "1"}), (python, ended.stderr)
