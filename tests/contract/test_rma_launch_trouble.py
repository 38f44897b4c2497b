"""What an engine in a crash loop last said reaches the ModelDeployment: from its log, through the kubelet's status."""

import pytest
from rm_api import names
from rm_api.conditions import Reason
from rm_operator.plan.trouble import trouble
from rma_launch_driver import Engine, Launch

LOOP = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 5m0s restarting failed container=engine"}}


@pytest.mark.parametrize(
    ("actions", "flags", "reason", "words"),
    [
        (["err=Traceback", "err=torch.OutOfMemoryError: no room for 9 GiB", "err=advice", "exit=1"], [],
         Reason.ENGINE_FAILED, "torch.OutOfMemoryError: no room for 9 GiB"),
        (["out=loading", "out=cannot read the weights", "exit=3"], [], Reason.ENGINE_FAILED, "cannot read the weights"),
        (["err=the driver is 1.3", "exit=67"], [], Reason.DRIVER_MISMATCH, "the driver is 1.3"),
        (["err=lost", "raise=9"], [], Reason.ENGINE_FAILED, "signal 9"),
        ([], ["--require-devices", "1"], Reason.DEVICE_MISSING, "names none"),
        (["sleep=600s"], ["--ready-timeout", "0.3"], Reason.ENGINE_FAILED, "no token in 300ms"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("state", [LOOP, {"running": {}}], ids=["loop", "again"])
def test_the_reason_of_a_crash_loop(
    launch: Launch, actions: list[str], flags: list[str], reason: Reason, words: str, state: dict[str, object]
) -> None:
    engine = Engine(launch)
    engine.start(*flags, actions=actions)
    ended = engine.end()
    assert len(ended.left) <= names.MAX_TERMINATION_MESSAGE_BYTES
    terminated = {"exitCode": ended.code, "reason": "Error", "message": ended.left.decode()}
    status = {"name": "engine", "ready": False, "state": state, "lastState": {"terminated": terminated}}
    pod = {"metadata": {"name": "hello-1"}, "status": {"containerStatuses": [status]}}
    found = trouble([pod], None)
    assert found.reason is reason
    assert words in found.message
    assert found.message.startswith(f"hello-1: engine ended with {ended.code}: ")
