"""Our own device plugin keeps the suite's rules with every vendor's module, over stand-ins for what is the vendor's."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import conformance_plugin_driver as driver
import conformance_vendor_host as hosts
import pytest
from rm_device_plugins.conformance.launch import CommandLauncher
from rm_device_plugins.conformance.model import CASES, Case, Verdict
from rm_device_plugins.conformance.runner import Report, Target, run, select

PLUGIN: dict[str, object] = {
    "intervalSeconds": 0.2, "discoveryTimeoutSeconds": 2, "healthyAfter": 2, "nodeWaitSeconds": 0.1,
    "allocateTimeoutSeconds": 3,
}  # fmt: skip
SHARES = {"nvidia": 2}
TIMING = replace(driver.GENEROUS, quiet=3, settle=1, away=0.5)

# What a vendor's interface cannot show, and so nobody can try: case → the reason that is given.
PRE_START = {"allocate.pre-start": "do not ask for PreStartContainer"}
NO_PARTS = {"health.siblings": "--shared-by"}
NO_WORK = {"allocate.deadline": "does not offer the action 'allocate-hang'"}
"""The module says which devices a container gets, and does nothing that could hang."""
NO_USE = {"health.busy": "does not offer the action 'busy'"}
"""Nothing that the module asks for depends on whether the device is in use."""
NOT_SHOWN = {
    "nvidia": PRE_START | NO_WORK,
    "rebellions": PRE_START | NO_PARTS,
    "furiosa": PRE_START | NO_PARTS | NO_WORK | NO_USE,
    "upmem": PRE_START | NO_PARTS | NO_WORK,
    "generic": PRE_START | NO_PARTS | NO_WORK,
}

VENDORS_OWN = (
    "registration.registers", "registration.full-list", "stream.first-list", "stream.valid-list", "lifecycle.sigterm*",
    "lifecycle.restart-*", "lifecycle.no-devices", "lifecycle.reload", "health.*", "allocate.*", "preferred.*",
)  # fmt: skip
"""What a vendor's module has a part in. The rest is the framework's, and tried with the simulated NPU's module."""


@pytest.fixture(autouse=True)
def nvml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in for NVIDIA's library, compiled."""
    library = tmp_path / "library"
    library.mkdir()
    compiler = ["gcc", "-Wall", "-Werror", "-shared", "-fPIC", "-o", str(library / "libnvidia-ml.so.1")]
    subprocess.run([*compiler, str(hosts.STAND_INS / "nvml.c")], check=True)
    monkeypatch.setenv("NVML_STAND_IN_LIBRARY", str(library))


def target(vendor: str, root: Path) -> Target:
    """The plugin with this vendor's module on a host of its own."""
    host = hosts.HOSTS[vendor](root)
    shares = SHARES.get(vendor, 1)
    host.create({**PLUGIN, "shares": shares})
    argv = [sys.executable, "-m", "rm_device_plugins", "--vendor", vendor, "--config", str(root / "config.yaml")]
    argv += ["--plugin-dir", "{socket_dir}", "--port", "{port}"]
    hook = [sys.executable, "-IS", hosts.__file__, vendor, str(root), "{action}", "{device}"]
    environment = dict(host.environment())
    if "PYTHONPATH" in environment and "PYTHONPATH" in os.environ:
        environment["PYTHONPATH"] += f":{os.environ['PYTHONPATH']}"
    launcher = CommandLauncher(argv, {"RMA_RESOURCE_NAME": "{resource}", **environment})
    hardware = (lambda device: device.partition("::")[0]) if shares > 1 else None
    return Target(launcher, None, hook, f"{vendor}.example.com/device", hardware)


async def conformance(tmp_path: Path, cases: Sequence[Case]) -> dict[str, Report]:
    """The suite over all vendors' modules at a time."""

    async def report(vendor: str) -> Report:
        return await run(target(vendor, tmp_path / vendor), cases, TIMING, jobs=2)

    return dict(zip(NOT_SHOWN, await asyncio.gather(*map(report, NOT_SHOWN)), strict=True))


def surprises(reports: dict[str, Report]) -> str:
    """What ended otherwise than it should."""
    found = []
    for vendor, report in reports.items():
        for result in report.results:
            reason = NOT_SHOWN[vendor].get(result.case.id)
            expected = Verdict.PASSED if reason is None else Verdict.NOT_APPLICABLE
            if result.verdict is not expected or (reason or "") not in result.message:
                found.append(f"{vendor} {result.case.id}: {result.verdict.value}: {result.message}")
                found += [f"    {line}" for line in result.output.splitlines()[-6:]]
    return "\n".join(found)


async def test_our_plugin_conforms_with_every_vendors_module(tmp_path: Path) -> None:
    cases = select(VENDORS_OWN)
    assert {each for reasons in NOT_SHOWN.values() for each in reasons} <= {case.id for case in cases}

    reports = await conformance(tmp_path, cases)

    assert not surprises(reports), surprises(reports)
    assert {case.id for case in CASES.values() if case.lane.needs_faults} <= {case.id for case in cases}
    for report in reports.values():
        assert {case.id for case in cases} <= {result.case.id for result in report.results}
