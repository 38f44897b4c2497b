"""Our own device plugin, over the simulated NPU, keeps every rule of the conformance suite that applies to it."""

import sys
from dataclasses import replace
from pathlib import Path

import conformance_plugin_driver as driver
import yaml
from rm_device_plugins.conformance.cases.registration import reuses_numbers
from rm_device_plugins.conformance.launch import CommandLauncher
from rm_device_plugins.conformance.model import CASES, Verdict
from rm_device_plugins.conformance.runner import Target, run, select

RESOURCE = "rm-abstract.io/simulated-npu"
PLUGIN = {"intervalSeconds": 0.2, "discoveryTimeoutSeconds": 2, "healthyAfter": 2, "nodeWaitSeconds": 0.1}
TIMING = replace(driver.GENEROUS, quiet=5, settle=1, away=0.5)
NOT_FOR_IT = {
    "lifecycle.reload": "does not offer the action 'reload'",
    "health.siblings": "--shared-by",
    "allocate.deadline": "does not offer the action 'allocate-hang'",
    "allocate.pre-start": "do not ask for PreStartContainer",
}


def simulator(tmp_path: Path, devices: int = 4, **framework: object) -> Target:
    """The plugin over simulated NPUs on two NUMA nodes; ``framework`` are settings of the framework's."""
    root, config = tmp_path / "simulator", tmp_path / "config.yaml"
    settings = {"root": str(root), "devices": devices, "numaNodes": 2, "plugin": {**PLUGIN, **framework}}
    config.write_text(yaml.safe_dump(settings))
    plugin = [sys.executable, "-m", "rm_device_plugins", "--vendor", "simulator", "--config", str(config)]
    plugin += ["--plugin-dir", "{socket_dir}", "--port", "{port}"]
    hook = [sys.executable, "-m", "rm_device_plugins.simulator_faults", "--root", str(root), "{action}", "{device}"]
    launcher = CommandLauncher(plugin, {"RMA_RESOURCE_NAME": "{resource}"})
    return Target(launcher, None, hook, RESOURCE)


async def test_the_simulators_plugin_conforms(tmp_path: Path) -> None:
    report = await run(simulator(tmp_path), None, TIMING)

    verdicts = {result.case.id: (result.verdict, result.message) for result in report.results}
    assert verdicts.keys() == CASES.keys()
    if not reuses_numbers(tmp_path):
        del verdicts["registration.same-inode"]
    for case, reason in NOT_FOR_IT.items():
        verdict, message = verdicts.pop(case)
        assert verdict is Verdict.NOT_APPLICABLE
        assert reason in message
    assert {case: message for case, (verdict, message) in verdicts.items() if verdict is not Verdict.PASSED} == {}
    assert report.passed


async def test_shared_devices_fail_together_and_a_changed_configuration_ends_no_stream(tmp_path: Path) -> None:
    target = simulator(tmp_path, shares=2)
    config, hook = tmp_path / "config.yaml", list(target.inject or ())
    changed = config.read_text().replace("healthyAfter: 2", "healthyAfter: 3")
    assert changed != config.read_text()
    (tmp_path / "changed.yaml").write_text(changed)
    reload = f'[ "$1" = reload ] && exec mv {tmp_path}/changed.yaml {config}; shift 2; exec "$@"'
    hook = ["sh", "-c", reload, "hook", "{action}", "{device}", *hook]
    target = replace(target, inject=hook, siblings=lambda device: device.partition("::")[0])

    chosen = select(["lifecycle.reload", "health.siblings", "health.busy", "allocate.*", "preferred.*"])
    report = await run(target, chosen, TIMING)

    unmet = {r.case.id: r.message for r in report.results if r.verdict is not Verdict.PASSED}
    assert unmet.keys() <= {"allocate.deadline", "allocate.pre-start"}, unmet
    assert report.passed
    assert yaml.safe_load(config.read_text())["plugin"]["healthyAfter"] == 3, "the configuration was changed"


async def test_a_node_with_as_many_devices_as_the_largest_have(tmp_path: Path) -> None:
    chosen = select(["stream.*", "allocate.quick", "allocate.parallel", "preferred.*", "health.coalesced"])
    # The status tool looks at all of them, which takes seconds on a machine that is busy with other tests.
    report = await run(simulator(tmp_path, devices=256, discoveryTimeoutSeconds=20), chosen, TIMING)
    assert {r.case.id: r.message for r in report.results if r.verdict is not Verdict.PASSED} == {}
    (quick,) = [result.message for result in report.results if result.case.id == "allocate.quick"]
    assert quick.endswith("256 devices")
