"""The conformance suite finds what is wrong with a plugin, and nothing else: a sound one, and one broken per rule."""

import asyncio
from dataclasses import replace
from pathlib import Path

import conformance_plugin_driver as driver
from rm_device_plugins.conformance.cases.registration import reuses_numbers
from rm_device_plugins.conformance.model import CASES, Verdict
from rm_device_plugins.conformance.runner import Report, run

AT_A_TIME = 5

# In the one case that must fail, what must not happen is awaited for longer, and what will not happen for less long.
JUDGING = replace(driver.GENEROUS, allowance=5, patience=10, quiet=10, settle=3, refusing=10, give_up=8)
STRICT = replace(JUDGING, allowance=1)
"""For defects that are slower than the rule on any machine."""

# Defect → the case that finds it, and what that says.
DEFECTS = {
    "never-registers": ("registration.registers", "not within 10 s: example.com/npu is registered"),
    "endpoint-is-path": ("registration.registers", "failed to dial device plugin"),
    "first-list-empty": ("registration.full-list", "lacked devices"),
    "serves-late": ("registration.serves-first", "nobody listened"),
    "options-differ": ("registration.options-agree", "Register said none"),
    "needs-kubelet": ("registration.waits-for-kubelet", "ended by itself, with 1"),
    "exits-on-restart": ("registration.kubelet-restart", "ended by itself, with 1"),
    "compares-inodes": ("registration.same-inode", "registered again after the kubelet's restart"),
    "ignores-lost-stream": ("registration.stream-lost", "registered again after its stream ended"),
    "gives-up": ("registration.retries-refusal", "ended by itself, with 1"),
    "hot-loop": ("registration.retries-refusal", "does not pause"),
    "no-register-deadline": ("registration.gives-up-register", "not answered is given up"),
    "registers-twice": ("registration.one-stream", "more than one stream"),
    "first-register-unretried": ("registration.interrupted", "after a Register that was cut off"),
    "ignores-own-socket": ("registration.own-socket-deleted", "after its socket was deleted"),
    "accepts-bad-name": ("registration.bad-resource-name", "still runs with the resource name 'npu'"),
    "late-first-list": ("stream.first-list", "the rule: 1 s"),
    "long-id": ("stream.valid-list", "has 64 characters"),
    "odd-health": ("stream.valid-list", "has the health 'OK'"),
    "duplicate-id": ("stream.valid-list", "'twin' is listed twice"),
    "periodic-list": ("stream.quiet", "sent again though nothing"),
    "few-workers": ("stream.concurrent", "each of 16 open streams"),
    "keeps-cancelled": ("stream.cancelled", "others were cancelled"),
    "leaves-socket": ("lifecycle.sigterm", "sockets are still there"),
    "ignores-sigterm": ("lifecycle.sigterm", "ends after SIGTERM"),
    "sigterm-waits-for-tool": ("lifecycle.sigterm-while-hanging", "ends after SIGTERM"),
    "wipes-directory": ("lifecycle.foreign-sockets", "deleted another plugin's socket"),
    "keeps-stale": ("lifecycle.stale-socket", "no socket of the killed instance is left"),
    "random-ids": ("lifecycle.restart-keeps-devices", "the first list after a restart has"),
    "forgets-inventory": ("lifecycle.restart-without-driver", "after a restart with a failing tool"),
    "fixed-socket-name": ("lifecycle.upgrade", "both instances use the socket"),
    "ignores-siblings": ("lifecycle.rollback", "registered again after the newer one has left"),
    "exits-without-devices": ("lifecycle.no-devices", "ended by itself, with 1"),
    "reload-drops-stream": ("lifecycle.reload", "stream ended when the configuration"),
    "leaks-files": ("lifecycle.flat", "it holds no more than before"),
    "ignores-health": ("health.unhealthy", "a failed device is unhealthy"),
    "never-recovers": ("health.recovers", "well again is Healthy"),
    "update-to-one-stream": ("health.every-stream", "of two streams tells of a failed device"),
    "every-flap": ("health.coalesced", "lists were sent while a device flapped"),
    "fails-all": ("health.others", "which did not, is no longer Healthy"),
    "one-replica": ("health.siblings", "every ID on the hardware"),
    "busy-is-unhealthy": ("health.busy", "which is in use, is Unhealthy"),
    "removed-stays-healthy": ("health.hot-remove", "a removed device is not Healthy"),
    "stays-gone": ("health.hot-remove", "a device that is back is Healthy"),
    "no-rescan": ("health.hot-add", "devices that come later"),
    "hang-unnoticed": ("health.tool-hangs", "of which nothing is known"),
    "drops-on-failure": ("health.tool-fails", "not listed any more because the vendor's tool failed"),
    "crashes-on-garbage": ("health.tool-garbage", "ended"),
    "drops-unlisted": ("health.tool-partial", "because the vendor's tool left it out"),
    "healthy-without-check": ("health.not-before-checked", "Healthy though the vendor's tool has failed"),
    "empty-response": ("allocate.answers", "had 0 container_responses"),
    "relative-path": ("allocate.well-formed", "'dev/card0', which is not absolute"),
    "accepts-unknown": ("allocate.unknown", "does not exist was answered with success"),
    "accepts-duplicate": ("allocate.duplicate", "twice was answered with success"),
    "changing-answer": ("allocate.repeatable", "and then with"),
    "first-container-only": ("allocate.containers", "had 1 responses"),
    "mixes-parallel": ("allocate.parallel", "beside others"),
    "slow-allocate": ("allocate.quick", "the rule is 50 ms"),
    "accepts-unhealthy": ("allocate.unhealthy", "which is unhealthy, was answered with success"),
    "ignores-missing-node": ("allocate.node-missing", "device file is gone, was answered with success"),
    "allocate-no-deadline": ("allocate.deadline", "allocate was not answered within 8 s"),
    "pre-start-fails": ("allocate.pre-start", "cannot be reset"),
    "ignores-must-include": ("preferred.honours", "preferred were"),
    "preferred-errors": ("preferred.no-error", "answered with an error"),
    "ignores-numa": ("preferred.numa", "on different NUMA nodes"),
}
NEEDS_REUSED_NUMBERS = "compares-inodes"
"""Shows only where the file system gives inode numbers away again."""
SLOW_ON_ANY_MACHINE = {"late-first-list", "slow-allocate"}


def _bad(report: Report) -> dict[str, str]:
    """What failed, or could not be judged. A case that is blocked has found nothing."""
    wrong = (Verdict.FAILED, Verdict.ERROR)
    return {
        result.case.id: f"{result.verdict.value}: {result.message}"
        for result in report.results
        if result.verdict in wrong
    }


async def test_a_sound_plugin_in_another_language_keeps_every_rule(tmp_path: Path) -> None:
    report = await run(driver.target(tmp_path / "state"), None, driver.GENEROUS)
    unmet = {r.case.id: (r.verdict.value, r.message) for r in report.results if r.verdict is not Verdict.PASSED}
    if not reuses_numbers(tmp_path):
        del unmet["registration.same-inode"]
    assert unmet == {}
    assert [result.case.id for result in report.results] == list(CASES)
    assert report.passed


async def test_each_defect_is_found_by_its_case(tmp_path: Path) -> None:
    assert {case for case, _ in DEFECTS.values()} == CASES.keys(), "every rule has a plugin that breaks it"
    assert await surprises(tmp_path, whole=False) == {}


async def surprises(directory: Path, *, whole: bool) -> dict[str, dict[str, str]]:
    """Defect → what was found, for each that its case did not find, or another did. ``whole``: by all cases, which
    takes minutes; else by that case and those that it builds on.
    """
    slots = asyncio.Semaphore(AT_A_TIME)

    async def found(defect: str) -> dict[str, str]:
        case, _ = DEFECTS[defect]
        judging = STRICT if defect in SLOW_ON_ANY_MACHINE else JUDGING
        chosen = None if whole else [CASES[case]]
        async with slots:
            target = driver.target(directory / defect, defect)
            report = await run(target, chosen, driver.GENEROUS, timings={case: judging})
        return _bad(report)

    defects = [each for each in DEFECTS if each != NEEDS_REUSED_NUMBERS or reuses_numbers(directory)]
    reports = dict(zip(defects, await asyncio.gather(*map(found, defects)), strict=True))
    wrong = {}
    for defect, bad in reports.items():
        case, says = DEFECTS[defect]
        if bad.keys() != {case} or says not in bad[case]:
            wrong[f"{defect} (by {case}: {says})"] = bad
    return wrong
