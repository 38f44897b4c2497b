"""``rma-launch version-probe``: the version of a tool, from what it prints."""

import sys

import pytest
from rm_api.build_steps import VersionProbe
from rm_api.conditions import Reason
from rm_api.names import ExitCode
from rma_launch_driver import Launch

DEFAULT = VersionProbe.model_fields["pattern"].default


def test_the_version_of_a_real_tool(launch: Launch) -> None:
    ended = launch("version-probe", "--name=cpython", f"--pattern={DEFAULT}", "--", sys.executable, "--version")
    version = ".".join(map(str, sys.version_info[:3]))
    assert (ended.code, ended.report.versions) == (0, {"cpython": version})
    assert (ended.report.reason, ended.report.message) == (Reason.READY, f"cpython is {version}")


@pytest.mark.parametrize(
    ("pattern", "actions", "version"),
    [
        (DEFAULT, ["out=npucc release 2.1.0-rc1 (build 7)"], "2.1.0-rc1"),
        (DEFAULT, ["out=npucc", "out=version 2.1", "out=driver 1.4"], "2.1"),
        (DEFAULT, ["err=warning: glibc 2.31 is old", "out=npucc 3.0"], "3.0"),
        (DEFAULT, ["err=npucc 3.0"], "3.0"),
        (DEFAULT, [r"raw=\x1b[1mnpucc\x1b[0m 3.0\r\n"], "3.0"),
        ("^v([0-9]+)$", ["out=v", "out=v7"], "7"),
        ("build (.*)", ["out=build ", "out=build  x y "], "x y"),
        ("(?i)VERSION: (\\d+)(\\.\\d+)", ["out=Version: 7.1"], "7"),
    ],
)
def test_the_first_line_that_matches(launch: Launch, pattern: str, actions: list[str], version: str) -> None:
    ended = launch("version-probe", "--name=npucc", f"--pattern={pattern}", *launch.child(actions))
    assert (ended.code, ended.report.versions) == (0, {"npucc": version}), ended.stderr


@pytest.mark.parametrize(
    ("actions", "words"),
    [
        ([], ["matches the pattern"]),
        (["out=npucc"], ["matches the pattern", "last: npucc"]),
        (["out=v" + "1" * 300], ["longer than 256 bytes"]),
        (["out=v7", "err=no licence", "exit=1"], ["ended with 1", "no licence"]),
    ],
)
def test_a_tool_that_does_not_say(launch: Launch, actions: list[str], words: list[str]) -> None:
    ended = launch("version-probe", "--name=npucc", "--pattern=v([0-9]+)", *launch.child(actions))
    report = ended.failed(ExitCode.TOOLCHAIN_FAILURE, Reason.TOOLCHAIN_FAILED, *words)
    assert report.versions == {}


def test_exit_codes_mean_what_they_mean_for_a_step(launch: Launch) -> None:
    flags = ["--name=npucc", "--pattern=v([0-9]+)", "--exit-code", "3=Transient"]
    launch("version-probe", *flags, *launch.child(["err=busy", "exit=3"])).failed(75, Reason.RETRYING, "busy")


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--name=x"], "--pattern with a group"),
        (["--name=x", "--pattern=v[0-9]+"], "--pattern with a group"),
        (["--name=x", "--pattern=v(?:[0-9]+)"], "--pattern with a group"),
        (["--name=x", "--pattern=("], "missing closing )"),
        (["--pattern=(.)"], "needs --name"),
        (["--name=x", "--pattern=(.)", "--output=y"], "output"),
    ],
)
def test_bad_command_lines(launch: Launch, flags: list[str], complaint: str) -> None:
    ended = launch("version-probe", *flags, *launch.child(["out=v1"]))
    ended.failed(ExitCode.BAD_INPUT, Reason.INVALID_SPEC, complaint)
