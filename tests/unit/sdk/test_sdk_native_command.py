"""A library from the command line, as a build step runs it; and a host that ends takes the library's process along."""

import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from native_support import BROKEN, EXAMPLE_C, build_c, greedy
from rm_abstract.core.binary_adapter import CLICompilerAdapter
from rm_abstract.core.plugin import BackendConfig
from rm_abstract.core.resource import BuildInterface
from rm_abstract.native.library import NativeLibrary
from rm_abstract.native.plugin import native_plugin
from rm_api.names import ExitCode
from rm_api.report import Report

CORPUS = "one two three four\n"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_c(EXAMPLE_C / "ngram.c", tmp_path_factory.mktemp("c") / "libngram.so")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "corpus.txt").write_text(CORPUS)
    return tmp_path / "model"


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "rm_abstract.native", *map(str, arguments)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=250, check=False)


def test_what_a_library_says(library: Path) -> None:
    info = json.loads(command("info", library).stdout)
    assert (info["name"], info["version"], info["min_host_version"]) == ("byte-ngram", "1.2.0", "0.1.0")
    assert info["extra"]["formats"] == ["byte-ngram"]
    assert json.loads(command("probe", library).stdout) == [{"id": "cpu", "type": "cpu", "attributes": {}}]


def test_a_model_is_compiled_and_continues_a_text(library: Path, model: Path, tmp_path: Path) -> None:
    done = command("compile", library, "--model", model, "--output", tmp_path / "artifact")
    report = Report.parse(done.stdout)
    assert (done.returncode, report.reason, report.versions) == (ExitCode.OK, "Built", {"byte-ngram": "1.2.0"})
    done = command("generate", library, "--artifact", tmp_path / "artifact", "--prompt", "two")
    assert done.stdout == greedy(CORPUS, "two", 64) + "\n" == " three four\n"


def test_the_step_of_its_profile_compiles_where_there_is_only_a_command_line(
    library: Path, model: Path, tmp_path: Path
) -> None:
    plugin = native_plugin(NativeLibrary(library))
    (profile,) = plugin().required_build_profiles(BackendConfig(target="any", dtype="u8"))
    assert profile.interface is BuildInterface.SHARED_LIBRARY
    adapter = CLICompilerAdapter(profile, search_paths=[str(Path(sys.executable).parent)])
    artifact = adapter.compile(model, tmp_path / "artifact", "k")
    resource = plugin().prepare_resource(artifact)
    assert plugin().execute(resource, "one") == " two three four"
    plugin.library.close()


@pytest.mark.parametrize(
    ("limits", "sequence", "runs"),
    [
        ([], 100_000, 8),
        (["--max-sequence-length=12", "--max-batch-size=2"], 12, 2),
        (["--max-sequence-length=12"], 12, 8),
        (["--max-batch-size=1000"], 100_000, 8),
    ],
)
def test_the_shape_that_is_asked_for_is_compiled_in(
    library: Path, model: Path, tmp_path: Path, limits: list[str], sequence: int, runs: int
) -> None:
    done = command("compile", library, "--model", model, "--output", tmp_path / "artifact", *limits)
    assert done.returncode == 0
    with NativeLibrary(library) as native, native.open(tmp_path / "artifact") as opened:
        assert (opened.facts["max_sequence_length"], opened.facts["max_concurrent_runs"]) == (sequence, runs)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["compile", "LIBRARY", "--model", "none", "--output", "o"], ExitCode.BAD_INPUT, "there is no directory none"),
        (["compile", "LIBRARY", "--model", ".", "--output", "."], ExitCode.BAD_INPUT, "is not empty"),
        (["compile", "LIBRARY", "--model", ".", "--output", "o", "--option", "x"], ExitCode.BAD_INPUT, "NAME=VALUE"),
        (["compile", "LIBRARY", "--model", ".", "--output", "o"], ExitCode.BAD_INPUT, "corpus.txt cannot be read"),
        (
            ["compile", "LIBRARY", "--model", ".", "--output", "o", "--max-batch-size", "0"],
            ExitCode.BAD_INPUT,
            "--max-batch-size is '0', but must be a whole number of at least 1",
        ),
        (["generate", "LIBRARY", "--artifact", ".", "--prompt", "a"], ExitCode.ARTIFACT_MISMATCH, "has no ngram.bin"),
        (["info", "none.so"], ExitCode.BAD_INPUT, "there is no library at none.so"),
        (["info", "BROKEN"], ExitCode.TOOLCHAIN_FAILURE, "was ended by SIGABRT in loading the library"),
    ],
)
def test_failures_have_the_codes_of_containers(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: ExitCode, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "something").touch()
    if "BROKEN" in arguments:
        build_c(BROKEN, tmp_path / "libbroken.so", defines=("CRASH_ON_LOAD",), libraries=("pthread",))
    names = {"LIBRARY": str(library), "BROKEN": str(tmp_path / "libbroken.so")}
    done = command(*(names.get(word, word) for word in arguments))
    assert done.returncode == code
    assert said in done.stderr


HOST = """
import sys, threading
from rm_abstract.native.library import NativeLibrary
model = NativeLibrary(sys.argv[1]).open(sys.argv[2])
begun = threading.Event()
request = {"task": "generate", "prompt": [116], "max_tokens": 10**9, "ignore_eos": True}
model.start(request, on_tokens=lambda _: begun.set(), on_end=lambda *_: None)
begun.wait()
print("running", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("end", ["by itself", "killed"])
def test_the_library_ends_with_its_host(library: Path, model: Path, tmp_path: Path, end: str) -> None:
    command("compile", library, "--model", model, "--output", tmp_path / "artifact")
    library = shutil.copy(library, tmp_path / "libown.so")
    argv = [sys.executable, "-c", HOST, str(library), str(tmp_path / "artifact")]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as host:
        assert host.stdin is not None
        assert host.stdout is not None
        assert host.stdout.readline() == b"running\n"
        assert users_of(library)
        if end == "killed":
            host.kill()
        else:
            host.stdin.close()
        host.wait()
    patience = threading.Event()
    while users_of(library):  # the process sees the end of its pipe, and goes
        patience.wait(0.05)


def users_of(library: Path) -> list[str]:
    """Processes that have the library loaded."""
    found = []
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            if str(library) in maps.read_text():
                found.append(maps.parent.name)
        except OSError:
            continue
    return found
