"""What becomes of a Job, read from the Job and its pods."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from rm_api.conditions import Reason
from rm_api.names import LABEL_ATTEMPT, ExitCode
from rm_operator.plan.attempt import Attempt, State, observe, telling

Object = dict[str, Any]
END = "2026-01-01T00:10:00Z"


def _job(*conditions: Object, attempt: str | None = "3") -> Object:
    labels = {LABEL_ATTEMPT: attempt} if attempt else {}
    return {
        "metadata": {"name": "b-1-3", "labels": labels},
        "spec": {"activeDeadlineSeconds": 600},
        "status": {"conditions": list(conditions)},
    }


def _ended(condition: str, reason: str = "", message: str = "") -> Object:
    return {"type": condition, "status": "True", "reason": reason, "message": message, "lastTransitionTime": END}


def _status(name: str, **state: Any) -> Object:
    return {"name": name, "image": f"{name}:1", "state": state}


def _terminated(name: str, code: int, message: str = "", **further: Any) -> Object:
    return _status(name, terminated={"exitCode": code, "message": message, **further})


def _report(reason: str, **members: Any) -> str:
    return json.dumps({"reason": reason, **members})


def _pod(*statuses: Object, created: str = "2026-01-01T00:00:00Z", push: Object | None = None, **status: Any) -> Object:
    return {
        "metadata": {"name": "pod", "creationTimestamp": created},
        "status": {"initContainerStatuses": list(statuses), "containerStatuses": [push] if push else [], **status},
    }


FAILED = _ended("Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit")
OVERDUE = _ended("Failed", "DeadlineExceeded", "Job was active longer than specified deadline")
RUNS = _status("compile", running={"startedAt": END})
UNSCHEDULED = [{"type": "PodScheduled", "status": "False", "message": "0/1 nodes: Insufficient memory"}]


def test_no_pod_yet_is_running() -> None:
    assert observe(_job(), []) == Attempt(_job(), 3, State.RUNNING)


def test_each_container_of_a_job_that_succeeded_knows_versions() -> None:
    pod = _pod(
        _terminated("fetch", 0, _report("Ready")),
        _terminated("compile", 0, _report("Built", versions={"acmec": "2.1", "cc": "9"})),
        _terminated("pack", 0, "no report"),
        push=_terminated("push", 0, _report("Built", digest="sha256:1", versions={"rm-abstract": "0.1"})),
    )
    found = observe(_job(_ended("Complete")), [pod])
    assert found.report is not None
    assert found.report.versions == {"acmec": "2.1", "cc": "9", "rm-abstract": "0.1"}
    assert found.report.digest == "sha256:1"


@pytest.mark.parametrize(
    ("name", "number", "part"),
    [
        ("b-k7-1", 1, 0),
        ("b-k7-12", 12, 0),
        ("b-k7-12-2", 12, 1),
        ("r-0123456789abcdef-3", 3, 0),
        ("b-k7-1-0", 1, 0),
        ("somebody-elses", 0, 0),
        ("b-k7-1234567890", 0, 0),
    ],
)
def test_a_job_is_told_by_its_name_whatever_its_labels_say(name: str, number: int, part: int) -> None:
    job = {**_job(attempt="77"), "metadata": {"name": name, "labels": {LABEL_ATTEMPT: "x"}}}
    found = observe(job, [])
    assert (found.number, found.part) == (number, part)


@pytest.mark.parametrize(
    ("pod", "stage", "reason", "said"),
    [
        (_pod(_terminated("fetch", 0), RUNS), "compile", None, ""),
        (_pod(_status("fetch", waiting={"reason": "PodInitializing"})), "", None, ""),
        (
            _pod(_status("compile", waiting={"reason": "ImagePullBackOff", "message": "no such manifest"})),
            "compile",
            Reason.IMAGE_PULL_FAILED,
            "the image of compile (compile:1) cannot be pulled: no such manifest",
        ),
        (
            _pod(_status("compile", waiting={"reason": "ErrImageNeverPull", "message": "absent"})),
            "compile",
            Reason.IMAGE_PULL_FAILED,
            "the image of compile (compile:1) cannot be pulled: absent",
        ),
        (
            _pod(conditions=UNSCHEDULED),
            "",
            Reason.UNSCHEDULABLE,
            "no node takes the pod: 0/1 nodes: Insufficient memory",
        ),
    ],
    ids=["runs", "starts", "image", "image-policy", "unschedulable"],
)
def test_a_job_that_runs(pod: Object, stage: str, reason: Reason | None, said: str) -> None:
    found = observe(_job(), [pod])
    assert (found.state, found.stage, found.reason, found.message) == (State.RUNNING, stage, reason, said)
    assert found.ended is None


@pytest.mark.parametrize("condition", ["Complete", "SuccessCriteriaMet"])
def test_success_has_report_and_times(condition: str) -> None:
    times = {"startedAt": "2026-01-01T00:00:00Z", "finishedAt": "2026-01-01T00:01:30Z"}
    text = _report("Built", digest="sha256:" + "0" * 64, sizeBytes=7)
    pod = _pod(_terminated("compile", 0, **times), push=_terminated("push", 0, text, **times))
    found = observe(_job(_ended(condition)), [pod])
    assert (found.state, found.stage, found.exit_code, found.reason) == (State.SUCCEEDED, "push", 0, None)
    assert found.report is not None
    assert found.report.sizeBytes == 7
    assert found.seconds == {"compile": 90.0, "push": 90.0}
    assert found.ended == datetime(2026, 1, 1, 0, 10, tzinfo=UTC)


def test_success_whose_pod_is_gone_has_no_report() -> None:
    found = observe(_job(_ended("Complete")), [])
    assert (found.state, found.report, found.stage) == (State.SUCCEEDED, None, "")


@pytest.mark.parametrize(
    ("terminated", "reason", "retryable", "said"),
    [
        (
            _terminated("compile", 64, _report("UnsupportedModel", message="no kernel for it")),
            Reason.UNSUPPORTED_MODEL,
            False,
            "compile: no kernel for it",
        ),
        (
            _terminated("compile", 70, _report("ToolchainFailed", message="segfault")),
            Reason.TOOLCHAIN_FAILED,
            False,
            "compile: segfault",
        ),
        (
            _terminated("fetch", 69, _report("SourceUnreachable", message="503")),
            Reason.SOURCE_UNREACHABLE,
            True,
            "fetch: 503",
        ),
        (_terminated("fetch", 75, _report("Retrying", message="later")), Reason.RETRYING, True, "fetch: later"),
        (
            _terminated("push", 70, _report("StoreUnreachable", retryable=True, message="busy")),
            Reason.STORE_UNREACHABLE,
            True,
            "push: busy",
        ),
        (_terminated("compile", 70, _report("Whatever", message="hm")), Reason.TOOLCHAIN_FAILED, False, "compile: hm"),
        (
            _terminated("compile", 137, reason="OOMKilled"),
            Reason.OUT_OF_MEMORY,
            False,
            "compile needed more memory than there was for it",
        ),
    ],
    ids=["model", "tool", "source", "transient", "says-retryable", "unknown-reason", "oom"],
)
def test_a_container_that_failed(terminated: Object, reason: Reason, retryable: bool, said: str) -> None:
    # The pod's end is seen before the Job's, and means the same.
    for job in (_job(FAILED), _job()):
        found = observe(job, [_pod(_terminated("launcher", 0), terminated)])
        assert (found.state, found.reason, found.retryable, found.message) == (State.FAILED, reason, retryable, said)
        assert found.stage == terminated["name"]
        assert found.exit_code == terminated["state"]["terminated"]["exitCode"]


@pytest.mark.parametrize("message", ["", "Traceback (most recent call last):", "[]", '{"message":"no reason"}'])
@pytest.mark.parametrize(
    ("code", "retryable"),
    [(1, True), (137, True), *((int(code), code.retryable) for code in ExitCode if code is not ExitCode.OK)],
)
def test_without_a_report_the_exit_code_decides(code: int, retryable: bool, message: str) -> None:
    found = observe(_job(FAILED), [_pod(_terminated("compile", code, message))])
    assert (found.reason, found.retryable, found.exit_code) == (Reason.REPORT_MISSING, retryable, code)
    assert found.message.startswith(f"compile of b-1-3 ended with {code} and left no report (")


def test_the_first_container_that_failed_tells() -> None:
    pod = _pod(_terminated("a", 64, _report("SourceInvalid", message="first")), _terminated("b", 75))
    assert observe(_job(FAILED), [pod]).message == "a: first"


@pytest.mark.parametrize(
    ("pods", "stage"),
    [
        ([_pod(_terminated("fetch", 0), RUNS)], "compile"),
        # The launcher reports that it was ended; that it may be tried again is not what the deadline says.
        ([_pod(_terminated("compile", 75, _report("Retrying", message="terminated")))], "compile"),
        ([_pod(_terminated("compile", 143))], "compile"),
        ([], ""),
    ],
    ids=["still-runs", "reports-its-end", "just-ended", "gone"],
)
@pytest.mark.parametrize("condition", ["Failed", "FailureTarget"])
def test_a_deadline_is_a_time_out_whatever_the_containers_said(condition: str, pods: list[Object], stage: str) -> None:
    found = observe(_job({**OVERDUE, "type": condition}), pods)
    assert (found.state, found.reason, found.retryable) == (State.FAILED, Reason.BUILD_TIMED_OUT, False)
    assert found.stage == stage
    where = f" while {stage} ran" if stage else ""
    assert found.message == f"the attempt exceeded its 600 seconds{where}"


@pytest.mark.parametrize("statuses", [[], [_terminated("compile", 137, reason="ContainerStatusUnknown")]])
def test_an_evicted_pod_is_tried_again_and_says_why(statuses: list[Object]) -> None:
    why = "The node was low on resource: memory."
    pod = _pod(*statuses, phase="Failed", reason="Evicted", message=why)
    for job in (_job(FAILED), _job()):
        found = observe(job, [pod])
        assert (found.state, found.reason, found.retryable) == (State.FAILED, Reason.RETRYING, True)
        assert found.message == f"Evicted: {why}"


def test_a_job_that_failed_without_a_pod_is_tried_again() -> None:
    found = observe(_job(FAILED), [])
    assert (found.reason, found.retryable, found.message) == (Reason.RETRYING, True, FAILED["message"])


def test_a_condition_that_is_not_true_says_nothing() -> None:
    assert observe(_job({**FAILED, "status": "False"}), [_pod(RUNS)]).state is State.RUNNING


def test_of_several_pods_the_newest_tells() -> None:
    old = _pod(_terminated("compile", 75), created="2026-01-01T00:00:00Z")
    new = _pod(RUNS, created="2026-01-01T00:05:00Z")
    for pods in ([old, new], [new, old]):
        assert observe(_job(), pods).state is State.RUNNING


def test_where_the_pod_ran_is_told() -> None:
    pod = {**_pod(_terminated("compile", 66)), "spec": {"nodeName": "n1"}}
    assert observe(_job(FAILED), [pod]).node == "n1"
    assert observe(_job(FAILED), []).node == ""


def test_time_is_told_by_the_containers_and_else_by_the_job() -> None:
    times = {"startedAt": "2026-01-01T00:00:00Z", "finishedAt": "2026-01-01T00:01:30Z"}
    job = _job(OVERDUE)
    job["status"]["startTime"] = "2026-01-01T00:00:10Z"
    assert observe(job, [_pod(_terminated("a", 0, **times), _terminated("b", 1, **times))]).spent == 180
    assert observe(job, []).spent == 590, "the pod is gone, the Job tells how long it was there"
    assert observe(_job(), []).spent == 0


@pytest.mark.parametrize(
    ("tail", "line"),
    [
        ("", ""),
        ("\n \n", ""),
        ("loading\nRuntimeError: no kernel for Foo\ncleaning up", "RuntimeError: no kernel for Foo"),
        ("ERROR: first\nERROR: second", "ERROR: second"),
        ("loading\nthe last thing", "the last thing"),
        (
            'Traceback (most recent call last):\n  File "fail.py", line 1, in fail\n    raise Error\nKeyError: 1\n',
            "KeyError: 1",
        ),
        ("error " + "x" * 400, "error " + "x" * 293 + "…"),
    ],
)
def test_the_line_that_tells_most(tail: str, line: str) -> None:
    assert telling(tail) == line


@pytest.mark.parametrize(
    ("job", "pod", "ended"),
    [
        (_job(FAILED), None, datetime(2026, 1, 1, 0, 10, tzinfo=UTC)),
        # Without a time of its end a pause would begin anew whenever it is looked at.
        (_job({"type": "Failed", "status": "True"}), None, datetime(2026, 1, 1, 0, 1, tzinfo=UTC)),
        (_job(), _pod(phase="Failed", reason="Evicted"), datetime(2026, 1, 1, 0, 1, tzinfo=UTC)),
        (_job(), _pod(RUNS), None),
    ],
    ids=["as-it-says", "without-a-time", "pod-evicted", "running"],
)
def test_the_end_of_what_has_ended_has_a_time(job: Object, pod: Object | None, ended: datetime | None) -> None:
    made = {**job, "metadata": {**job["metadata"], "creationTimestamp": "2026-01-01T00:01:00Z"}}
    assert observe(made, [pod] if pod else []).ended == ended
