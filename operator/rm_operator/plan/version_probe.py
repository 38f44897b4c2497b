"""What do the names in a recipe stand for? One Job per profile finds out its toolchain's version and images' digests.

The Job runs in the operator's own namespace: it runs the profile's version probe, and starts each of the profile's
images, so that the pod's status tells what was pulled under its name. The answer is kept in the profile's status, with
what it is an answer to. It is asked for again when the profile's spec changes, and when the annotation
``rm-abstract.io/probe-again`` has a text that is new; until then a tag that moved changes nothing.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

from pydantic import ValidationError
from rm_api import names
from rm_api.conditions import ConditionType, Reason
from rm_api.kinds import BuildProfileSpec
from rm_api.kinds.build_artifact import Toolchain
from rm_api.kinds.build_profile import BuildProfileStatus, PinnedImage, Probed

from rm_operator.plan import pods
from rm_operator.plan.attempt import Attempt, State
from rm_operator.plan.conditions import Conditions
from rm_operator.plan.model import (
    Deletion,
    Object,
    Settings,
    deletion_of,
    from_timestamp,
    name_of,
    owner_reference,
    to_timestamp,
    uid_of,
)

TOOLCHAIN: Final = "toolchain"
"""What the version that is found is the version of. Not the profile's name, which does not count for an artifact."""
UNDER_WAY: Final = "its toolchain is being probed"
DEADLINE_SECONDS: Final = 3600
"""Images of compilers have tens of gigabytes, and one after the other is pulled."""
RETRY_SECONDS: Final = (10, 20, 40, 80, 160, 300)
"""Pause after the n-th failed attempt, where the failure may pass by itself."""
RECHECK_SECONDS: Final = 300
"""Pause after a failure that somebody has to mend, maybe outside of the spec: a registry, an image that is pushed."""
PULL_SECONDS: Final = 30
"""For so long an image must have been impossible to pull, before the one that the node has is taken."""

_PROBE: Final = "version-probe"
_IMAGE_ID: Final = re.compile(r"(?:docker-pullable://)?(?P<repository>[^@\s]+)@(?P<digest>sha256:[0-9a-f]{64})")


@dataclass(frozen=True)
class ProbeJob:
    """A Job that probes, and its pod, if there is one."""

    attempt: Attempt
    pod: Object | None = None


@dataclass(frozen=True)
class Probing:
    """What is to be done to find out, and what is known."""

    apply: tuple[dict[str, Any], ...] = ()
    delete: tuple[Deletion, ...] = ()
    requeue_after: float | None = None
    toolchain: Toolchain | None = None
    """Of the recipe as it is; None where it is not known."""
    probed: Probed | None = None
    """What ``toolchain`` is an answer to."""


def images(spec: BuildProfileSpec) -> list[str]:
    """All images that the profile names, each once."""
    named = [step.image for step in spec.steps]
    named += [each.image for each in (spec.probe, spec.check, spec.version_probe) if each is not None]
    return list(dict.fromkeys(named))


def recipe_hash(spec: BuildProfileSpec) -> str:
    """Identifies what is probed: 16 hexadecimal digits over the version probe and the images."""
    probe = spec.version_probe
    return _hash([probe.to_wire() if probe is not None else None, sorted(images(spec))])


def known_of(profile: Object, spec: BuildProfileSpec) -> tuple[Toolchain, Probed] | None:
    """What the profile's status says of the toolchain of the recipe as it is now; None where that is not known."""
    written = profile.get("status") or {}
    said = {name: written[name] for name in ("versions", "images", "probed") if name in written}
    try:
        status = BuildProfileStatus.model_validate(said)
    except ValidationError:
        # Kept by a version that knew another form.
        return None
    if status.probed is None or status.probed.recipe != recipe_hash(spec):
        return None
    return Toolchain(versions=status.versions or {}, images=status.images or []), status.probed


def plan(
    profile: Object,
    spec: BuildProfileSpec,
    jobs: Sequence[ProbeJob],
    *,
    conditions: Conditions,
    settings: Settings,
    now: datetime,
) -> Probing:
    """Decides what is next to know the toolchain of ``profile``, whose spec has a version probe, and states Ready.

    ``jobs`` are all that were made for it and are not on their way out.
    """
    return _Probe(profile, spec, conditions, settings, now).next(jobs)


class _Probe:
    def __init__(
        self, profile: Object, spec: BuildProfileSpec, conditions: Conditions, settings: Settings, now: datetime
    ) -> None:
        self._profile = profile
        self._spec = spec
        self._conditions = conditions
        self._settings = settings
        self._now = now
        self._generation = int(profile["metadata"].get("generation", 0))
        again = (profile["metadata"].get("annotations") or {}).get(names.ANNOTATION_PROBE_AGAIN)
        self._again = _hash(again) if again else ""
        self._recipe = recipe_hash(spec)
        # With the uid: what a profile of the same name left behind is none of ours.
        self._hash = _hash([uid_of(profile), self._recipe, self._generation, self._again])

    def next(self, jobs: Sequence[ProbeJob]) -> Probing:
        mine = [each for each in jobs if name_of(each.attempt.job).startswith(f"{self._prefix}-")]
        last = max(mine, key=lambda each: each.attempt.number, default=None)
        # What is asked no more, and attempts that another one has followed.
        others = tuple(deletion_of(each.attempt.job) for each in jobs if each is not last)
        before = known_of(self._profile, self._spec)
        if before is not None and (before[1].generation, before[1].again) == (self._generation, self._again):
            self._know(before[0])
            spent = () if last is None else (deletion_of(last.attempt.job),)
            return Probing(delete=(*others, *spent), toolchain=before[0], probed=before[1])
        made = self._attempt(last, known=before is not None)
        if made.toolchain is None and before is not None:
            # What is known of this recipe goes on to hold until there is something newer.
            made = replace(made, toolchain=before[0], probed=before[1])
        return replace(made, delete=(*others, *made.delete))

    @property
    def _prefix(self) -> str:
        return f"p-{self._hash}"

    def _attempt(self, last: ProbeJob | None, *, known: bool) -> Probing:
        if last is None:
            self._say(Reason.PROBING, UNDER_WAY, known=known)
            return Probing(apply=(self._job(1),))
        attempt = last.attempt
        if attempt.state is State.RUNNING:
            return self._running(attempt, known=known)
        if attempt.state is State.SUCCEEDED:
            return self._ended(last, known=known)
        pause = RETRY_SECONDS[min(attempt.number, len(RETRY_SECONDS)) - 1] if attempt.retryable else RECHECK_SECONDS
        return self._wait(
            attempt, pause, attempt.reason or Reason.TOOLCHAIN_FAILED, attempt.message,
            known=known, stalled=not attempt.retryable,
        )  # fmt: skip

    def _running(self, attempt: Attempt, *, known: bool) -> Probing:
        failed_before = attempt.number > 1 and self._conditions.before(ConditionType.STALLED) is not None
        if failed_before and not known:
            # That it is tried once more is no reason to wait for it anew.
            self._conditions.as_before(ConditionType.READY)
            self._conditions.as_before(ConditionType.STALLED)
        else:
            message = attempt.message or f"{UNDER_WAY} by Job {name_of(attempt.job)}"
            self._say(attempt.reason or Reason.PROBING, message, known=known)
        if attempt.reason is not Reason.IMAGE_PULL_FAILED or not self._pulls_anew(attempt.number):
            return Probing()
        # Without a registry in reach there still is what the nodes have: builds run just that.
        patience = from_timestamp(attempt.job["metadata"]["creationTimestamp"]) + timedelta(seconds=PULL_SECONDS)
        if self._now < patience:
            return Probing(requeue_after=(patience - self._now).total_seconds())
        return Probing(apply=(self._job(attempt.number + 1),), delete=(deletion_of(attempt.job),))

    def _ended(self, last: ProbeJob, *, known: bool) -> Probing:
        attempt = last.attempt
        if attempt.report is None:
            # The Job may be known to have ended before its pod is.
            return self._wait(
                attempt, RETRY_SECONDS[0], Reason.REPORT_MISSING, f"Job {name_of(attempt.job)} left no report",
                known=known, stalled=False,
            )  # fmt: skip
        try:
            toolchain = Toolchain(versions=attempt.report.versions, images=self._images(last))
        except ValidationError as error:
            problem = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()[:3])
        else:
            problem = "" if toolchain.versions else "there is no version in it"
        if problem:
            return self._wait(
                attempt, RECHECK_SECONDS, Reason.TOOLCHAIN_FAILED, f"what the probe reports cannot be used: {problem}",
                known=known, stalled=True,
            )  # fmt: skip
        self._know(toolchain)
        when = to_timestamp(attempt.ended or self._now)
        probed = Probed(recipe=self._recipe, generation=self._generation, again=self._again, time=when)
        # The Job is there until the status says what it found out.
        return Probing(toolchain=toolchain, probed=probed)

    def _wait(
        self, attempt: Attempt, pause: float, reason: Reason, message: str, *, known: bool, stalled: bool
    ) -> Probing:
        due = (attempt.ended or self._now) + timedelta(seconds=pause)
        text = f"{message}; attempt {attempt.number} failed, the next one is due at {to_timestamp(due)}"
        self._say(reason, text, known=known, stalled=stalled)
        if self._now < due:
            return Probing(requeue_after=(due - self._now).total_seconds())
        return Probing(apply=(self._job(attempt.number + 1),), delete=(deletion_of(attempt.job),))

    def _know(self, toolchain: Toolchain) -> None:
        versions = ", ".join(f"{name} {version}" for name, version in sorted(toolchain.versions.items()))
        self._conditions.set(ConditionType.READY, True, Reason.ACCEPTED, f"can be used; {versions}")

    def _say(self, reason: Reason, message: str, *, known: bool, stalled: bool = False) -> None:
        if known:
            self._conditions.set(
                ConditionType.READY, True, Reason.ACCEPTED, "can be used with the toolchain that is known"
            )
            self._conditions.set(ConditionType.RECONCILING, True, reason, f"probed again: {message}")
            return
        self._conditions.set(ConditionType.READY, False, reason, message)
        self._conditions.set(ConditionType.STALLED if stalled else ConditionType.RECONCILING, True, reason, message)

    def _pulls_anew(self, number: int) -> bool:
        """True if the attempt asks registries what tags stand for; every other one takes what the nodes have."""
        return number % 2 == 1 and self._settings.images.pull_policy == "IfNotPresent"

    def _images(self, last: ProbeJob) -> list[PinnedImage]:
        """Digests that the pod's status tells, of images whose names do not."""
        template = last.attempt.job["spec"]["template"]["spec"]
        asked = {each["name"]: each["image"] for part in _PARTS for each in template.get(part) or []}
        status = (last.pod or {}).get("status") or {}
        found = {}
        for part in ("initContainerStatuses", "containerStatuses"):
            for each in status.get(part) or []:
                image = asked.get(each["name"])
                digest = digest_of(image, each.get("imageID") or "") if image in _unpinned(self._spec) else None
                if image is not None and digest is not None:
                    found[image] = PinnedImage(image=image, digest=digest)
        return [found[image] for image in sorted(found)]

    def _job(self, number: int) -> dict[str, Any]:
        probe, settings = self._spec.version_probe, self._settings
        assert probe is not None
        policy: dict[str, Any] = {"imagePullPolicy": "Always"} if self._pulls_anew(number) else {}
        others = [image for image in _unpinned(self._spec) if image != probe.image]
        return pods.job(
            name=f"{self._prefix}-{number}",
            namespace=settings.system_namespace,
            owners=[owner_reference(self._profile, controller=False)],
            label=pods.labels(
                names.ROLE_PROBE,
                **{names.LABEL_PROFILE: name_of(self._profile), names.LABEL_ATTEMPT: str(number)},
            ),
            deadline=DEADLINE_SECONDS,
            template=pods.pod_spec(
                init_containers=[
                    pods.install_launcher(settings),
                    *(
                        pods.container(
                            f"image-{position}",
                            image,
                            [names.LAUNCHER, "version"],
                            settings,
                            mounted=pods.mounts(["bin"], read_only=["bin"]),
                            compute={"requests": {"cpu": "10m", "memory": "16Mi"}},
                            **policy,
                        )
                        for position, image in enumerate(others)
                    ),
                ],
                containers=[
                    pods.container(
                        _PROBE,
                        probe.image,
                        [
                            names.LAUNCHER, "version-probe",
                            f"--name={TOOLCHAIN}",
                            f"--pattern={pods.literal(probe.pattern)}",
                            "--", *map(pods.literal, probe.command),
                        ],
                        settings,
                        mounted=pods.mounts(["bin", "tmp"], read_only=["bin"]),
                        compute={"requests": {"cpu": "50m", "memory": "128Mi"}},
                        **policy,
                    )
                ],
                pod_volumes=pods.volumes(["bin", "tmp"]),
                **pods.pull_secrets(settings),
            ),
        )  # fmt: skip


_PARTS: Final = ("initContainers", "containers")


def _unpinned(spec: BuildProfileSpec) -> list[str]:
    """Images whose name does not say what they are."""
    return [image for image in images(spec) if "@" not in image]


def digest_of(image: str, image_id: str) -> str | None:
    """The digest under which the repository of ``image`` has what a container runtime calls ``image_id``.

    None where there is none, as with an image that was imported on the node, or where it is that of another repository:
    the same content need not have that digest in both, and by a digest that is not there nothing can be pulled.
    """
    match = _IMAGE_ID.fullmatch(image_id)
    if match is None or _repository(match["repository"]) != _repository(image):
        return None
    return match["digest"]


def _repository(reference: str) -> str:
    """Registry and path of an image's name, written out as container runtimes do."""
    name, _, _ = reference.partition("@")
    head, slash, last = name.rpartition("/")
    name = f"{head}{slash}{last.partition(':')[0]}"
    first, slash, rest = name.partition("/")
    if not slash or not (first == "localhost" or "." in first or ":" in first):
        first, rest = "docker.io", name
    if first in ("docker.io", "index.docker.io"):
        return f"docker.io/{rest if '/' in rest else f'library/{rest}'}"
    return f"{first}/{rest}"


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
