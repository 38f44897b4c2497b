"""``rm-abstract conformance``: what it takes, what it writes, and how it ends."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as Xml

import conformance_plugin_driver as driver
import pytest
from click.testing import CliRunner, Result
from rm_cli.main import main
from rm_device_plugins.conformance.faults import ACTIONS
from rm_device_plugins.conformance.launch import ImageLauncher
from rm_device_plugins.conformance.model import CASES

SLOWLY = ("--allowance", "600", "--patience", "60", "--quiet-seconds", "1")


def conformance(*arguments: str, path: str | None = None) -> Result:
    env = {"PATH": path} if path is not None else {}
    return CliRunner().invoke(main, ["conformance", *arguments], env=env, terminal_width=200)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    path = tmp_path / "state"
    subprocess.run([driver.binary(), "init", "-state", str(path)], check=True)
    return path


def started(state: Path, defect: str = "") -> list[str]:
    return ["--command", " ".join(driver.command(state, defect)), "--resource", driver.RESOURCE]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "one of --command, --image and --socket is needed"),
        (["--command", "a", "--socket", "b"], "one of --command, --image and --socket is needed"),
        (["--command", ""], "--command is empty"),
        (["--command", "plugin 'x"], "cannot be read as a command line: No closing quotation"),
        (["--command", "no-such-plugin-here"], "there is no program 'no-such-plugin-here'"),
        (["--command", "sh {socketdir}"], "unknown placeholder {socketdir}; there are {socket_dir}"),
        (["--command", "sh", "--env", "DIR={dir}"], "--env DIR has the unknown placeholder {dir}"),
        (["--command", "sh", "--env", "DIR"], "'DIR' is not NAME=VALUE"),
        (["--command", "sh {resource}"], "say with --resource"),
        (["--command", "sh", "--resource", "npu"], "it must be domain/name"),
        (["--command", "sh", "--inject", "hook"], "--inject must contain {action}"),
        (["--command", "sh", "--inject", "hook {action} {id}"], "unknown placeholder {id}"),
        (
            ["--command", "sh", "--case", "allocate.quik"],
            "no case is called 'allocate.quik'; there are registration.registers",
        ),
        (["--command", "sh", "--shared-by", "("], "is not a regular expression"),
        (["--command", "sh", "--shared-by", "card"], "must have one group"),
        (["--command", "sh", "--junit", "/nowhere/at/all.xml"], "there is no directory /nowhere/at"),
        (["--command", "sh", "--jobs", "0"], "0 is not in the range"),
        (["--command", "sh", "--runtime", "docker"], "belong to --image"),
        (["--socket", "/nowhere/plugin.sock"], "/nowhere/plugin.sock is no unix socket"),
        (["--socket", "/dev/null"], "/dev/null is no unix socket"),
        (["--socket", "/x", "--env", "A=b"], "for a plugin that the suite starts"),
        (["--image", "x", "--runtime", "rkt run"], "has none of docker, podman, nerdctl, ctr in it"),
        (["--image", "x", "--runtime", "/nowhere/podman"], "there is no program '/nowhere/podman'"),
    ],
)
def test_what_cannot_be_run_is_said_with_what_to_do(arguments: list[str], says: str) -> None:
    result = conformance(*arguments)
    assert says in " ".join(result.output.split())
    assert result.exit_code == 2


def test_a_directory_too_long_for_sockets_is_said_before_anything_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / "a-directory-with-a-long-name"
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    result = conformance("--command", "true")
    assert f"TMPDIR is {long}, too long for the sockets in it" in result.output
    assert result.exit_code == 2


def test_an_image_needs_a_container_runtime(tmp_path: Path) -> None:
    result = conformance("--image", "example.com/plugin:1", path=str(tmp_path))
    assert "none of docker, podman, nerdctl, ctr is on the PATH" in result.output
    assert "--command" in result.output
    assert result.exit_code == 2


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("echo Cannot connect to the daemon >&2; exit 1", "and cannot pull it: Cannot connect to the daemon"),
        ('[ "$1" = image ] && exit 1; echo "no such image $2"; exit 125', "no such image example.com/plugin:1"),
    ],
)
def test_a_runtime_without_the_image_is_said_with_its_words(tmp_path: Path, script: str, says: str) -> None:
    runtime = tmp_path / "podman"
    runtime.write_text(f"#!/bin/sh\n{script}\n")
    runtime.chmod(0o755)
    result = conformance("--image", "example.com/plugin:1", "--runtime", str(runtime))
    assert "podman has no image example.com/plugin:1" in result.output
    assert says in result.output
    assert result.exit_code == 2


def test_a_plugin_that_ends_at_once_does_not_conform_and_its_words_are_shown() -> None:
    result = conformance(
        "--command", "sh -c 'echo libvendor.so is missing >&2; exit 3'", "--case", "registration.registers"
    )
    assert result.exit_code == 1
    assert "the plugin ended by itself, with 3" in result.output
    assert "libvendor.so is missing" in result.output


def test_selected_cases_run_with_what_they_build_on_and_all_formats_agree(state: Path, tmp_path: Path) -> None:
    json_file, junit_file = tmp_path / "results.json", tmp_path / "results.xml"
    files = ("--json", str(json_file), "--junit", str(junit_file))
    result = conformance(*started(state, "relative-path"), "--case", "allocate.[uw]*", *SLOWLY, *files)

    document = json.loads(json_file.read_text())
    verdicts = {case["id"]: case["verdict"] for case in document["cases"]}
    assert verdicts == {
        "registration.registers": "passed",
        "registration.full-list": "passed",
        "health.unhealthy": "not applicable",
        "allocate.answers": "passed",
        "allocate.well-formed": "failed",
        "allocate.unknown": "passed",
        "allocate.unhealthy": "not applicable",
    }
    assert not document["conforms"]
    assert document["counts"] == {"passed": 4, "failed": 1, "error": 0, "blocked": 0, "not applicable": 2}

    suite = Xml.parse(junit_file).getroot()
    assert {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")} == {
        "tests": "7", "failures": "1", "errors": "0", "skipped": "2",
    }  # fmt: skip
    failure = suite.find("testcase[@name='allocate.well-formed']/failure")
    assert failure is not None
    assert "which is not absolute" in failure.get("message", "")
    skipped = suite.find("testcase[@name='allocate.unhealthy']/skipped")
    assert skipped is not None
    assert "--inject" in skipped.get("message", "")

    assert result.exit_code == 1
    assert "FAIL    allocate.well-formed" in result.output
    assert "DOES NOT CONFORM: 4 passed, 1 failed, 2 not applicable" in result.output
    assert CASES["allocate.well-formed"].why.split(",", maxsplit=1)[0] in " ".join(result.output.split())


def test_json_on_standard_output_is_all_there_is(state: Path) -> None:
    result = conformance(*started(state), "--case", "preferred.*", "--json", "-", *SLOWLY)
    assert json.loads(result.stdout)["conforms"] is True
    assert result.exit_code == 0


def test_a_hook_that_fails_is_no_fault_of_the_plugin(state: Path) -> None:
    hook = "sh -c 'echo the crate is locked; exit 7' {action}"
    result = conformance(*started(state), "--inject", hook, "--case", "health.unhealthy", "--json", "-", *SLOWLY)
    (case,) = [each for each in json.loads(result.stdout)["cases"] if each["id"] == "health.unhealthy"]
    assert case["verdict"] == "error"
    assert "the hook ended with 7" in case["message"]
    assert "the crate is locked" in case["message"]
    assert result.exit_code == 1


@pytest.fixture
def listening(state: Path, tmp_path: Path) -> Iterator[Path]:
    """A plugin that somebody else has started, and its socket."""
    directory = tmp_path / "dp"
    directory.mkdir()
    values = {"{socket_dir}": str(directory), "{resource}": driver.RESOURCE}
    argv = [values.get(word, word) for word in driver.command(state)]
    with subprocess.Popen(argv) as process:
        try:
            deadline = time.monotonic() + 60
            while not (found := list(directory.glob("*.sock"))):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            yield found[0]
        finally:
            os.kill(process.pid, signal.SIGTERM)


def test_a_plugin_that_listens_already_is_tested_without_being_started(listening: Path, state: Path) -> None:
    hook = ("--inject", " ".join(driver.hook(state)), "--shared-by", driver.HARDWARE.pattern)
    result = conformance("--socket", str(listening), *hook, "--json", "-", *SLOWLY)
    assert result.exit_code == 0, result.output
    verdicts = {case["id"]: case for case in json.loads(result.stdout)["cases"]}
    passed = {name for name, case in verdicts.items() if case["verdict"] == "passed"}
    assert passed == {case.id for case in CASES.values() if not case.lane.needs_start}
    unable = {case["message"] for case in verdicts.values() if case["verdict"] == "not applicable"}
    assert unable == {"it needs the suite to start the plugin: use --command or --image"}
    assert listening.exists()


def test_a_socket_that_answers_something_else_is_refused(tmp_path: Path) -> None:
    import socket

    path = tmp_path / "other.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
    result = conformance("--socket", str(path), "--patience", "2")
    assert "is not answered by a device plugin" in result.output
    assert result.exit_code == 2


def test_the_list_tells_every_rule_and_why() -> None:
    result = conformance("--list")
    assert result.exit_code == 0
    for case in CASES.values():
        assert f"{case.id}\n    {case.rule}\n    Why: {case.why}\n" in result.output


def test_the_documentation_has_every_case_with_its_rule_and_every_action_of_the_hook() -> None:
    text = (Path(__file__).parents[2] / "docs" / "conformance.md").read_text()
    assert [line for case in CASES.values() if (line := f"| `{case.id}` | {case.rule} |") not in text] == []
    assert [line for name, what in ACTIONS.items() if (line := f"| `{name}` | {what} |") not in text] == []


@pytest.mark.parametrize(
    ("runtime", "expected"),
    [
        (
            "podman",
            "run --rm --name NAME --volume /s:/var/lib/kubelet/device-plugins --env R=a/b "
            "--env RMA_CONFORMANCE_INSTANCE=NAME --privileged IMG --port=1",
        ),
        (
            "ctr",
            "run --rm --net-host --mount type=bind,src=/s,dst=/var/lib/kubelet/device-plugins,options=rbind:rw "
            "--env R=a/b --env RMA_CONFORMANCE_INSTANCE=NAME --privileged IMG NAME --port=1",
        ),
    ],
)
def test_a_container_gets_the_suites_directory_in_the_place_of_the_kubelets(
    tmp_path: Path, runtime: str, expected: str
) -> None:
    program = tmp_path / runtime
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    prefix = ["env", "A=b", str(program)]
    launcher = ImageLauncher("IMG", ["--port={port}"], {"R": "{resource}"}, prefix, ["--privileged"])
    argv = launcher.argv("NAME", Path("/s"), {"port": "1", "resource": "a/b"})
    assert argv == [*prefix, *expected.split()]
    assert launcher.takes_resource
