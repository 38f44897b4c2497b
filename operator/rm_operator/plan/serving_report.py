"""What a serving pod says of itself, as far as the operator writes it down: what it runs, and on which device.

It is a pod's word, and comes over the network: everything in it is bounded, and what is not understood is an error with
a message, never half a report.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from math import ceil
from typing import Final

import msgspec
from rm_api.kinds.build_artifact import Verification

from rm_operator.plan.device_report import MAX_MESSAGE, MAX_VERSION, ReportError, one_line
from rm_operator.plan.model import Object, to_timestamp, uid_of
from rm_operator.plan.serving import is_ready

MAX_REPORT_BYTES: Final = 1 << 16
MAX_VERIFICATIONS: Final = 16
MAX_OBSERVED: Final = 256
_KEY_CHARACTERS: Final = 64
_MAX_VERSIONS: Final = 1024
_LONGEST_START: Final = 7 * 24 * 3600
"""What the launcher waits at most for an engine."""


@dataclass(frozen=True, slots=True)
class ServingReport:
    """What a pod said once it was ready; nothing of one that did not answer."""

    key: str = ""
    """The key of the artifact that it loaded."""
    product: str = ""
    """The device that it runs on, as its driver names it; several are joined by commas."""
    driver: str = ""
    sdk: str = ""
    start_seconds: int = 0
    """From its engine's start to its first token, rounded up to tens; 0 where it does not say."""


SILENT: Final = ServingReport()
"""Of a pod that does not answer, or says nothing that can be used."""


class _Artifact(msgspec.Struct, gc=False):
    key: str = ""


class _Device(msgspec.Struct, gc=False):
    product: str = ""


class _Report(msgspec.Struct, gc=False):
    ready: bool
    device: _Device | None = msgspec.field(name="observedDevice", default=None)
    driver: str = ""
    artifact: _Artifact | None = None
    versions: dict[str, str] | None = None
    seconds: dict[str, float] | None = None


_decode: Final = msgspec.json.Decoder(_Report).decode


def parse(body: bytes) -> ServingReport:
    """The report in ``body``, JSON. Raises ReportError, also where the pod says that it is not ready.

    Members that are not known are ignored, and only ``ready`` is required. Long texts are cut.
    """
    if len(body) > MAX_REPORT_BYTES:
        raise ReportError(f"the report has more than {MAX_REPORT_BYTES} bytes")
    try:
        said = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ReportError(f"the report cannot be read: {one_line(str(error), MAX_MESSAGE)}") from None
    if not said.ready:
        raise ReportError("the pod says that it is not ready")
    versions = said.versions or {}
    if len(versions) > _MAX_VERSIONS:
        raise ReportError(f"the report names {len(versions)} versions; at most {_MAX_VERSIONS} are understood")
    device, artifact = said.device or _Device(), said.artifact or _Artifact()
    if len(artifact.key) > _KEY_CHARACTERS:
        raise ReportError("the report names an artifact by what is no key")
    return ServingReport(
        key=artifact.key,
        product=one_line(device.product, MAX_VERSION),
        driver=one_line(said.driver, MAX_VERSION),
        sdk=one_line(versions.get("sdk", ""), MAX_VERSION),
        start_seconds=_rounded((said.seconds or {}).get("ready", 0.0)),
    )


def _rounded(seconds: float) -> int:
    """Up to tens: one more digit would be written down again and again. What cannot be is as if it was not said."""
    return ceil(seconds / 10) * 10 if 0 < seconds <= _LONGEST_START else 0


def verifications(
    before: Sequence[Verification], reports: Sequence[ServingReport], key: str, now: datetime
) -> list[Verification]:
    """What an artifact with ``key`` is known to run on: ``before``, and after it what ``reports`` add.

    The first time that a product and a driver are told of stays, and of the starts there the slowest. Reports for other
    keys, and those that name no product, say nothing of it; of more than there is room for, those that were there first
    are kept.
    """
    known = {(each.product, each.driver): each for each in before}
    told = {each for each in reports if each.key == key and each.product}
    for each in sorted(told, key=lambda each: (each.product, each.driver, each.sdk, each.start_seconds)):
        place = (each.product, each.driver)
        if place not in known and len(known) >= MAX_VERIFICATIONS:
            continue
        there = known.get(place) or Verification(
            product=each.product, driver=each.driver, sdk=each.sdk, at=to_timestamp(now)
        )
        slowest = max(there.start_seconds or 0, each.start_seconds) or None
        known[place] = there.model_copy(update={"start_seconds": slowest})
    return list(known.values())


def observed_device(pods: Sequence[Object], reports: Mapping[str, ServingReport], before: str | None) -> str | None:
    """The devices that the ready ones of ``pods`` run on, in words; None where that is not known.

    ``reports`` are by the uid of the pod. What was said ``before`` holds until each of them has been asked, so that a
    change of leaders changes nothing, and while those that answered name no device.
    """
    ready = [uid_of(pod) for pod in pods if is_ready(pod)]
    if not ready:
        return None
    if before and any(uid not in reports for uid in ready):
        return before
    said = sorted({_words(reports[uid]) for uid in ready if uid in reports} - {""})
    return one_line("; ".join(said), MAX_OBSERVED) or before


def _words(report: ServingReport) -> str:
    driver = f"driver {report.driver}" if report.driver else ""
    return ", ".join(each for each in (report.product, driver) if each)
