"""``artifacts ls`` and ``artifacts watch``: what they print, when they end, and with which status."""

import json
import os
import stat
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rm_cli import artifact_list
from rm_cli.main import main

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
KEY = "0123456789abcdef" * 4


def artifact(
    name: str = "a-one", namespace: str = "team", ready: str = "", stalled: str = "", **status: Any
) -> dict[str, Any]:
    said = {"message": status.pop("message", "")}
    conditions = (
        [{"type": "Ready", "status": str(ready in ("Built", "Adopted")), "reason": ready, **said}] if ready else []
    )
    if stalled:
        conditions.append({"type": "Stalled", "status": "True", "reason": stalled, "message": "mend it"})
    return {
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"key": KEY, "profile": "openvino", "format": "ir"},
        "status": {"conditions": conditions, **status},
    }


def test_a_row_has_what_the_object_says() -> None:
    made = artifact(
        ready="Built", sizeBytes=3 << 30, referrerCount=2, lastUsed="2026-03-01T10:30:00Z", message="in the store"
    )
    assert artifact_list.row(made).to_json() == {
        "namespace": "team", "name": "a-one", "key": KEY, "profile": "openvino", "format": "ir",
        "sizeBytes": 3 << 30, "state": "Ready", "reason": "Built", "referrers": 2,
        "lastUsed": "2026-03-01T10:30:00Z", "message": "in the store",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("made", "state"),
    [
        (artifact(), "Building"),
        (artifact(ready="Building"), "Building"),
        (artifact(ready="Adopted"), "Ready"),
        (artifact(ready="ToolchainFailed", stalled="ToolchainFailed"), "Stalled"),
    ],
)
def test_the_state(made: Mapping[str, Any], state: str) -> None:
    assert artifact_list.row(made).state == artifact_list.state(made) == state


def test_one_that_is_being_deleted() -> None:
    made = artifact(ready="Built")
    made["metadata"]["deletionTimestamp"] = "2026-03-01T10:30:00Z"
    assert artifact_list.row(made).state == "Deleting"


def test_the_table() -> None:
    rows = [
        artifact_list.row(artifact(ready="Built", sizeBytes=1536, referrerCount=2, lastUsed="2026-03-01T10:58:00Z")),
        artifact_list.row(artifact("a-two", "elsewhere")),
    ]
    assert artifact_list.table(rows, NOW).splitlines() == [
        "NAMESPACE  NAME   KEY           PROFILE   FORMAT  SIZE     STATE     REASON  USERS  LAST USED",
        "team       a-one  0123456789ab  openvino  ir      1.5 KiB  Ready     Built   2      1 h 02 min ago",
        "elsewhere  a-two  0123456789ab  openvino  ir      -        Building  -       0      -",
    ]


@pytest.mark.parametrize(
    ("count", "text"),
    [(None, "-"), (0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (5 << 40, "5.0 TiB"), (5 << 50, "5120.0 TiB")],
)
def test_sizes(count: int | None, text: str) -> None:
    assert artifact_list.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(-3, "0 s"), (59.4, "59 s"), (60, "1 min 00 s"), (3599, "59 min 59 s"), (3720, "1 h 02 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert artifact_list.duration(seconds) == text


@pytest.mark.parametrize(
    ("made", "line"),
    [
        (artifact(), "a-one: Building"),
        (artifact(ready="Queued", message="place 3, limit 2"), "a-one: Queued, place 3, limit 2"),
        (
            artifact(ready="Building", stage="compile", startedAt="2026-03-01T11:58:00Z", expectedSeconds="600.0"),
            "a-one: Building, stage compile, 2 min 00 s of about 10 min 00 s",
        ),
        (
            artifact(ready="ImagePullFailed", message="cc:1 is not there", startedAt="2026-03-01T11:59:30Z"),
            "a-one: ImagePullFailed, 30 s, no earlier build to compare, cc:1 is not there",
        ),
        (
            artifact(
                ready="Building", stage="fetch", startedAt="2026-03-01T11:59:30Z", message="attempt 1, fetch runs"
            ),
            "a-one: Building, stage fetch, 30 s, no earlier build to compare",
        ),
        (
            artifact(ready="Built", buildSeconds="61.2", location="reg/a@sha256:1"),
            "a-one: Ready (Built), built in 1 min 01 s, reg/a@sha256:1",
        ),
        (artifact(ready="Adopted", location="reg/a@sha256:1"), "a-one: Ready (Adopted), reg/a@sha256:1"),
        (
            artifact(ready="OutOfMemory", stalled="OutOfMemory", message="compile took 9Gi"),
            "a-one: Stalled (OutOfMemory): compile took 9Gi",
        ),
    ],
)
def test_progress(made: Mapping[str, Any], line: str) -> None:
    assert artifact_list.progress(made, NOW) == line


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A stand-in for kubectl that gives one answer after another, and the last one from then on."""
    tool = tmp_path / "bin/kubectl"
    tool.parent.mkdir()
    tool.write_text(
        "#!/usr/bin/env python3\n"
        "import json, pathlib, sys\n"
        f"here = pathlib.Path({str(tmp_path)!r})\n"
        "kind = 'mdep' if any(word.startswith('modeldeployments') for word in sys.argv) else 'bart'\n"
        "count = here / f'{kind}.count'\n"
        "number = int(count.read_text()) if count.exists() else 0\n"
        "count.write_text(str(number + 1))\n"
        "given = json.loads((here / f'{kind}.json').read_text())\n"
        "answer = given[min(number, len(given) - 1)]\n"
        "single = '--ignore-not-found' in sys.argv\n"
        "sys.exit('you may not look at it') if answer == 0 else None\n"
        "print('' if answer is None else json.dumps(answer if single else {'items': answer}))\n"
    )
    tool.chmod(tool.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    (tmp_path / "kubeconfig").write_text("")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))

    def give(**given: list[Any]) -> None:
        for kind, each in given.items():
            (tmp_path / f"{kind}.json").write_text(json.dumps(each))

    return give


def watch(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["artifacts", "watch", "-n", "team", "--interval", "0.1", *arguments])


def test_watch_tells_each_stage_once_and_ends_when_it_is_ready(answers: Callable[..., None]) -> None:
    begun = {"startedAt": "2026-03-01T11:58:00Z", "expectedSeconds": "600"}
    answers(
        bart=[
            [artifact()],
            [artifact(ready="Building", stage="fetch", **begun)],
            [artifact(ready="Building", stage="fetch", **begun)],
            [artifact(ready="Building", stage="compile", **begun)],
            [artifact(ready="Built", location="reg/a@sha256:1")],
        ]
    )
    done = watch("a-one")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert [line.split(", ")[:2] for line in lines[:-1]] == [
        ["a-one: Building"], ["a-one: Building", "stage fetch"], ["a-one: Building", "stage compile"],
    ]  # fmt: skip
    assert lines[-1] == "a-one: Ready (Built), reg/a@sha256:1"


def test_watch_ends_with_3_and_the_compilers_last_lines_when_one_is_stalled(answers: Callable[..., None]) -> None:
    failed = artifact(ready="ToolchainFailed", stalled="ToolchainFailed", message="no such op", logTail=["x", "E: op"])
    answers(bart=[[failed, artifact("a-two", ready="Built")]])
    done = watch()
    assert done.exit_code == 3
    assert "a-one: Stalled (ToolchainFailed): no such op" in done.stdout
    assert done.stdout.endswith("  x\n  E: op\n")


def test_watch_waits_for_all_and_ends_with_4_when_the_time_is_up(answers: Callable[..., None]) -> None:
    answers(bart=[[artifact(ready="Built"), artifact("a-two", ready="Building")]])
    done = watch("--timeout", "0")
    assert done.exit_code == 4
    assert "the time is up" in done.stderr


def test_watch_waits_until_a_deployment_asks_for_an_artifact(answers: Callable[..., None]) -> None:
    answers(
        mdep=[{"status": {}}, {"status": {"artifact": "a-one"}}],
        bart=[None, artifact(ready="Adopted", location="reg/a@sha256:1")],
    )
    done = watch("--deployment", "chat")
    assert (done.exit_code, done.stdout) == (0, "a-one: Ready (Adopted), reg/a@sha256:1\n")


@pytest.mark.parametrize(
    ("arguments", "given", "said"),
    [
        (("a-none",), {"bart": [[artifact()]]}, "there is no artifact a-none in namespace team"),
        (("--deployment", "chat"), {"mdep": [None]}, "there is no ModelDeployment chat in namespace team"),
        (("a-one", "--deployment", "chat"), {}, "name artifacts, or a deployment, not both"),
    ],
)
def test_watch_of_what_is_not_there(
    answers: Callable[..., None], arguments: tuple[str, ...], given: dict[str, Any], said: str
) -> None:
    answers(**given)
    done = watch(*arguments)
    assert done.exit_code in (1, 2)
    assert said in done.stderr


def test_ls_in_all_formats(answers: Callable[..., None]) -> None:
    answers(bart=[[artifact("a-two", ready="Built"), artifact()]], mdep=[[]])
    run = CliRunner().invoke
    listed = run(main, ["artifacts", "ls", "-n", "team"])
    assert [line.split()[1] for line in listed.stdout.splitlines()] == ["NAME", "a-one", "a-two"]
    whole = json.loads(run(main, ["artifacts", "ls", "-A", "-o", "json"]).stdout)
    assert [row["name"] for row in whole] == ["a-one", "a-two"]
    assert "name: a-one" in run(main, ["artifacts", "ls", "-A", "-o", "yaml"]).stdout


SHARING = {"metadata": {"name": "chat"}, "status": {"artifact": "a-all", "artifactNamespace": "builds"}}


def test_ls_has_what_the_namespace_shares_with_others(answers: Callable[..., None]) -> None:
    shared = [artifact("a-all", namespace="builds", ready="Built"), artifact("a-of-others", namespace="builds")]
    answers(
        bart=[[artifact()], shared], mdep=[[SHARING, {"metadata": {"name": "own"}, "status": {"artifact": "a-one"}}]]
    )
    listed = CliRunner().invoke(main, ["artifacts", "ls", "-n", "team"])
    assert [line.split()[:2] for line in listed.stdout.splitlines()[1:]] == [["builds", "a-all"], ["team", "a-one"]]


def test_ls_says_what_it_may_not_see(answers: Callable[..., None]) -> None:
    # No answer at all stands for what kubectl says of a namespace that one may not look at.
    answers(bart=[[artifact()], 0], mdep=[[SHARING]])
    listed = CliRunner().invoke(main, ["artifacts", "ls", "-n", "team"])
    assert listed.exit_code == 0, listed.output
    assert "not listed: a-all in namespace builds" in listed.stderr


def test_watch_follows_a_deployment_to_what_it_shares(answers: Callable[..., None]) -> None:
    answers(bart=[artifact("a-all", namespace="builds", ready="Built", location="reg/a@sha256:1")], mdep=[SHARING])
    done = watch("--deployment", "chat")
    assert (done.exit_code, "a-all: Ready" in done.stdout) == (0, True)
