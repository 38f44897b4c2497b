"""The toolchain of a BuildProfile: how it is found out, when it is asked for again, and what rests on it."""

import copy
import itertools
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from chain import FACTS, PROFILE, SETTINGS, World
from rm_api import names
from rm_api.dtypes import DType
from rm_api.kinds import BuildProfileSpec
from rm_api.kinds.build_artifact import ShapeBucket, Toolchain
from rm_api.kinds.model_deployment import ModelFacts
from rm_operator.plan import profile as planner
from rm_operator.plan.attempt import observe
from rm_operator.plan.in_use import some
from rm_operator.plan.key import KeyInputs, artifact_key
from rm_operator.plan.model import Images, Plan, Settings, to_timestamp
from rm_operator.plan.placement import ProfileView
from rm_operator.plan.profile import ProfileSnapshot, said_of_toolchain, view_of
from rm_operator.plan.version_probe import (
    PULL_SECONDS,
    RECHECK_SECONDS,
    RETRY_SECONDS,
    ProbeJob,
    digest_of,
    images,
)

Object = dict[str, Any]
ONE, TWO = "sha256:" + "1" * 64, "sha256:" + "2" * 64
PINNED = "acme/check@" + ONE
SPEC: Object = {
    "target": {"type": "NPU", "vendor": "Acme", "products": ["X1"]},
    "steps": [
        {"name": "export", "image": "acme/export:2", "command": ["export"]},
        {"name": "compile", "image": "acme/cc:1", "command": ["cc"]},
        {"name": "again", "image": "acme/cc:1", "command": ["cc", "-2"]},
    ],
    "check": {"image": PINNED, "command": ["check"]},
    "versionProbe": {"image": "acme/cc:1", "command": ["cc", "--version", "$$HOME$(X)"], "pattern": r"v(\d+)$"},
    "output": {"format": "acme"},
}
DIGESTS = {"acme/cc:1": ONE, "acme/export:2": TWO}


class Probes:
    """One profile, its Jobs, and a clock. ``step`` plans once, and carries out what is planned."""

    def __init__(self, spec: Object = SPEC, settings: Settings = SETTINGS) -> None:
        self.settings = settings
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        metadata = {"name": "acme", "uid": "u", "generation": 1, "resourceVersion": "1"}
        self.profile: Object = {
            "apiVersion": names.API_VERSION, "kind": "BuildProfile", "metadata": metadata, "spec": copy.deepcopy(spec),
        }  # fmt: skip
        self.jobs: dict[str, Object] = {}
        self.pods: dict[str, Object] = {}
        self.made: list[str] = []

    def plan(self) -> Plan:
        found = []
        for name, job in self.jobs.items():
            pod = self.pods.get(name)
            found.append(ProbeJob(observe(job, [pod] if pod else []), pod))
        return planner.plan(ProfileSnapshot(self.profile, 0, self.settings, probes=found), self.now)

    def step(self, *, writes: int | None = None) -> Plan:
        made = self.plan()
        todo: list[Any] = [lambda job=job: self._add(job) for job in made.apply]
        todo += [lambda name=each.name: self._drop(name) for each in made.delete]
        todo.append(lambda: self.profile.update(status=copy.deepcopy(made.status)))
        for write in todo[:writes]:
            write()
        return made

    def settle(self) -> Plan:
        for _ in range(10):
            before = copy.deepcopy((self.profile, self.jobs))
            made = self.step()
            if before == (self.profile, self.jobs):
                return made
        raise AssertionError("it never settles")

    def _add(self, job: Object) -> None:
        name = job["metadata"]["name"]
        if name not in self.jobs:
            self.jobs[name] = copy.deepcopy(job)
            self.jobs[name]["metadata"] |= {"uid": name, "creationTimestamp": to_timestamp(self.now)}
            self.made.append(name)

    def _drop(self, name: str) -> None:
        self.jobs.pop(name)
        self.pods.pop(name, None)

    @property
    def job(self) -> Object:
        (job,) = self.jobs.values()
        return job

    def pod(self, **status: Any) -> None:
        """The Job's pod is in a state."""
        self.pods[self.job["metadata"]["name"]] = {"metadata": {"name": "pod"}, "status": status}

    def finish(self, code: int = 0, report: Object | None = None, *, digests: Object = DIGESTS) -> None:
        """The Job ends; what is left out of ``digests`` was imported on the node."""
        text = json.dumps(report if report is not None else {"reason": "Ready", "versions": {"toolchain": "7"}})
        pod_spec = self.job["spec"]["template"]["spec"]

        def status(container: Object, message: str, exit_code: int) -> Object:
            image = container["image"]
            bare = image.partition("@")[0].rpartition(":")[0]
            found = f"docker.io/{bare}@{digests[image]}" if image in digests else "sha256:" + "f" * 64
            ended = {"exitCode": exit_code, "message": message}
            return {"name": container["name"], "image": image, "imageID": found, "state": {"terminated": ended}}

        self.pod(
            phase="Failed" if code else "Succeeded",
            initContainerStatuses=[status(each, "", 0) for each in pod_spec["initContainers"]],
            containerStatuses=[status(each, text, code) for each in pod_spec["containers"]],
        )
        entry = {"type": "Failed" if code else "Complete", "status": "True"}
        self.job["status"] = {"conditions": [{**entry, "lastTransitionTime": to_timestamp(self.now)}]}

    def change(self, **spec: Any) -> None:
        """The spec is changed; None takes a member away."""
        written = {**self.profile["spec"], **spec}
        self.profile["spec"] = {name: value for name, value in written.items() if value is not None}
        self.profile["metadata"]["generation"] += 1

    def ask_again(self, text: str) -> None:
        self.profile["metadata"]["annotations"] = {names.ANNOTATION_PROBE_AGAIN: text}

    def condition(self, kind: str) -> tuple[str, str]:
        """Status and reason; empty where it is not stated."""
        entries = self.profile["status"]["conditions"]
        return next(((each["status"], each["reason"]) for each in entries if each["type"] == kind), ("", ""))


def known(version: str = "7", **digests: str) -> Probes:
    """Probed, and at rest."""
    probes = Probes()
    probes.step()
    probes.finish(report={"reason": "Ready", "versions": {"toolchain": version}}, digests={**DIGESTS, **digests})
    probes.settle()
    return probes


def test_the_job_runs_the_probe_and_every_image_whose_name_does_not_say_what_it_is() -> None:
    probes = Probes()
    probes.step()
    job, pod = probes.job, probes.job["spec"]["template"]["spec"]
    assert job["metadata"]["namespace"] == SETTINGS.system_namespace
    assert [owner["uid"] for owner in job["metadata"]["ownerReferences"]] == ["u"]
    assert job["metadata"]["labels"][names.LABEL_PROFILE] == "acme"
    launcher, *others = pod["initContainers"]
    assert launcher["command"][:2] == ["/rma-launch", "install"]
    assert [(each["image"], each["command"]) for each in others] == [("acme/export:2", [names.LAUNCHER, "version"])]
    (probe,) = pod["containers"]
    assert probe["image"] == "acme/cc:1"
    # The kubelet halves dollars.
    assert probe["command"] == [
        names.LAUNCHER, "version-probe", "--name=toolchain", r"--pattern=v(\d+)$$", "--",
        "cc", "--version", "$$$$HOME$$(X)",
    ]  # fmt: skip
    assert pod["automountServiceAccountToken"] is False
    assert "imagePullSecrets" not in pod
    assert probes.condition("Ready") == ("False", "Probing")
    assert probes.condition("Reconciling") == ("True", "Probing")


def test_images_are_pulled_with_what_the_installation_has_for_them() -> None:
    probes = Probes(settings=replace(SETTINGS, images=replace(SETTINGS.images, pull_secrets=("acme", "other"))))
    probes.step()
    assert probes.job["spec"]["template"]["spec"]["imagePullSecrets"] == [{"name": "acme"}, {"name": "other"}]


def test_all_images_are_named_once() -> None:
    spec = {**SPEC, "probe": {"image": "acme/look:3", "command": ["look"]}}
    found = images(BuildProfileSpec.model_validate(spec))
    assert found == ["acme/export:2", "acme/cc:1", "acme/look:3", PINNED]


def test_what_it_finds_is_in_the_status_before_the_job_goes() -> None:
    probes = Probes()
    probes.step()
    probes.finish()
    made = probes.step()
    assert made.delete == ()
    assert made.status is not None
    assert made.status["versions"] == {"toolchain": "7"}
    assert made.status["images"] == [
        {"image": "acme/cc:1", "digest": ONE}, {"image": "acme/export:2", "digest": TWO},
    ]  # fmt: skip
    assert made.status["probed"]["generation"] == 1
    assert made.status["probed"]["time"] == "2026-01-01T00:00:00Z"
    assert probes.condition("Ready") == ("True", "Accepted")
    before = copy.deepcopy(probes.profile)
    after = probes.settle()
    assert (probes.jobs, probes.profile, after.requeue_after) == ({}, before, None)
    assert len(probes.made) == 1


@pytest.mark.parametrize(
    ("image", "image_id", "digest"),
    [
        ("acme/cc:1", f"docker.io/acme/cc@{ONE}", ONE),
        ("cc", f"docker.io/library/cc@{ONE}", ONE),
        ("cc:1", f"docker-pullable://cc@{ONE}", ONE),
        ("index.docker.io/acme/cc:1", f"docker.io/acme/cc@{ONE}", ONE),
        ("localhost:5000/cc:1", f"localhost:5000/cc@{ONE}", ONE),
        ("localhost/a/cc", f"localhost/a/cc@{ONE}", ONE),
        ("registry.acme.com/a/b/cc:1.2", f"registry.acme.com/a/b/cc@{ONE}", ONE),
        # Imported on the node: there is nowhere to pull it from by this.
        ("acme/cc:1", ONE, None),
        ("acme/cc:1", f"docker://{ONE}", None),
        ("acme/cc:1", f"docker.io/library/import-2026-01-01@{ONE}", None),
        # The same content was pulled from elsewhere before.
        ("acme/cc:1", f"mirror.example.com/acme/cc@{ONE}", None),
        ("acme/cc:1", "", None),
        ("acme/cc:1", "docker.io/acme/cc@sha256:12", None),
    ],
)
def test_digest_of_an_image(image: str, image_id: str, digest: str | None) -> None:
    assert digest_of(image, image_id) == digest


def test_an_image_without_a_digest_is_left_out() -> None:
    probes = Probes()
    probes.step()
    probes.finish(digests={"acme/cc:1": ONE})
    probes.settle()
    assert probes.profile["status"]["images"] == [{"image": "acme/cc:1", "digest": ONE}]
    assert probes.condition("Ready") == ("True", "Accepted")


OTHER_STEP = {"name": "export", "image": "acme/export:3", "command": ["export"]}
ASKED_AGAIN: list[tuple[str, Any, bool, bool]] = [
    # what changes, by whom, whether it is probed again, and whether what is known holds meanwhile
    ("nothing", lambda probes: None, False, True),
    ("the annotation comes", lambda probes: probes.ask_again("now"), True, True),
    ("any text", lambda probes: probes.ask_again("…" * 500), True, True),
    ("an empty annotation", lambda probes: probes.ask_again(""), False, True),
    ("a step's time limit", lambda probes: probes.change(timeoutSeconds=77), True, True),
    ("an image", lambda probes: probes.change(steps=[OTHER_STEP]), True, False),
    ("the probe", lambda probes: probes.change(versionProbe={**SPEC["versionProbe"], "pattern": "(.*)"}), True, False),
    ("no probe any more", lambda probes: probes.change(versionProbe=None), False, True),
]


@pytest.mark.parametrize(
    ("change", "again", "holds"), [each[1:] for each in ASKED_AGAIN], ids=[e[0] for e in ASKED_AGAIN]
)
def test_when_it_is_probed_again(change: Any, again: bool, holds: bool) -> None:
    probes = known()
    change(probes)
    probes.settle()
    assert len(probes.jobs) == int(again)
    view = view_of(probes.profile)
    assert (view.usable, view.awaited) == (holds, not holds)
    assert probes.condition("Ready")[0] == str(holds)
    assert probes.condition("Reconciling")[1] == ("Probing" if again else "")
    if again:
        probes.finish(report={"reason": "Ready", "versions": {"toolchain": "8"}})
        probes.settle()
        assert probes.profile["status"]["versions"] == {"toolchain": "8"}
        assert (probes.jobs, probes.condition("Reconciling")) == ({}, ("", ""))


def test_the_same_annotation_asks_once() -> None:
    probes = known()
    for text in ("a", "b"):
        probes.ask_again(text)
        probes.settle()
        probes.finish()
        probes.settle()
    assert len(set(probes.made)) == 3
    probes.ask_again("b")
    probes.settle()
    assert (len(probes.made), probes.jobs) == (3, {})


def test_without_a_probe_nothing_is_said_of_a_toolchain() -> None:
    probes = known()
    probes.change(versionProbe=None)
    made = probes.settle()
    assert made.status is not None
    assert not {"versions", "images", "probed"} & made.status.keys()
    assert view_of(probes.profile).toolchain is None


def test_a_change_while_it_is_probed_makes_another_job_of_it() -> None:
    probes = Probes()
    probes.step()
    probes.change(steps=[OTHER_STEP])
    probes.settle()
    assert len(probes.made) == 2
    assert probes.job["metadata"]["name"] == probes.made[1]
    assert "acme/export:3" in [each["image"] for each in probes.job["spec"]["template"]["spec"]["initContainers"]]


FAILURES: list[tuple[int, Object | None, str, bool, float]] = [
    (64, {"reason": "InvalidSpec", "message": "no such program"}, "InvalidSpec", True, RECHECK_SECONDS),
    (70, {"reason": "ToolchainFailed", "message": "ended with 3"}, "ToolchainFailed", True, RECHECK_SECONDS),
    (75, {"reason": "Retrying", "message": "m", "retryable": True}, "Retrying", False, RETRY_SECONDS[0]),
    (1, {}, "ReportMissing", False, RETRY_SECONDS[0]),
    (0, {}, "ReportMissing", False, RETRY_SECONDS[0]),
    (0, {"reason": "Ready"}, "ToolchainFailed", True, RECHECK_SECONDS),
    (0, {"reason": "Ready", "versions": {"t": "x" * 300}}, "ToolchainFailed", True, RECHECK_SECONDS),
]


@pytest.mark.parametrize(("code", "report", "reason", "stalled", "pause"), FAILURES)
def test_a_failure_is_said_and_tried_again_later(
    code: int, report: Object | None, reason: str, stalled: bool, pause: float
) -> None:
    probes = Probes()
    probes.step()
    probes.finish(code, report)
    made = probes.settle()
    assert probes.condition("Ready") == ("False", reason)
    assert (probes.condition("Stalled")[1], probes.condition("Reconciling")[1]) == (
        (reason, "") if stalled else ("", reason)
    )
    assert (len(probes.made), made.requeue_after) == (1, pause)
    view = view_of(probes.profile)
    # Who could wait for ever goes elsewhere, and is told why.
    assert (view.usable, view.awaited) == (False, not stalled)
    probes.now += timedelta(seconds=pause)
    probes.settle()
    assert [name.rpartition("-")[2] for name in probes.made] == ["1", "2"]
    assert len(probes.jobs) == 1
    # A try alone is no reason to wait for it anew.
    assert view_of(probes.profile).awaited is not stalled
    probes.finish()
    probes.settle()
    assert (probes.condition("Ready"), probes.condition("Stalled")) == (("True", "Accepted"), ("", ""))
    assert probes.jobs == {}


def test_what_is_known_holds_though_probing_again_fails() -> None:
    probes = known()
    probes.ask_again("x")
    probes.settle()
    probes.finish(70, {"reason": "ToolchainFailed", "message": "ended with 3"})
    made = probes.settle()
    assert probes.condition("Ready") == ("True", "Accepted")
    assert probes.condition("Reconciling") == ("True", "ToolchainFailed")
    assert probes.profile["status"]["versions"] == {"toolchain": "7"}
    assert view_of(probes.profile).usable
    assert made.requeue_after == RECHECK_SECONDS


WAITING = {"containerStatuses": [{"name": "version-probe", "state": {"waiting": {"reason": "ImagePullBackOff"}}}]}


def policies(probes: Probes) -> set[str]:
    """How the vendor's images are pulled."""
    pod = probes.job["spec"]["template"]["spec"]
    return {each["imagePullPolicy"] for each in (*pod["initContainers"][1:], *pod["containers"])}


def test_tags_are_pulled_anew_and_what_nodes_have_is_taken_where_that_is_impossible() -> None:
    probes = Probes()
    probes.step()
    assert policies(probes) == {"Always"}
    probes.pod(phase="Pending", **WAITING)
    made = probes.settle()
    assert probes.condition("Ready") == ("False", "ImagePullFailed")
    assert made.requeue_after == PULL_SECONDS
    probes.now += timedelta(seconds=PULL_SECONDS)
    probes.settle()
    assert (policies(probes), len(probes.jobs), len(probes.made)) == ({"IfNotPresent"}, 1, 2)
    probes.pod(phase="Pending", **WAITING)
    probes.now += timedelta(seconds=PULL_SECONDS)
    assert probes.settle().requeue_after is None
    assert (len(probes.made), probes.condition("Ready")) == (2, ("False", "ImagePullFailed"))


@pytest.mark.parametrize("policy", ["Always", "Never"])
def test_the_installations_own_policy_holds(policy: str) -> None:
    probes = Probes(settings=Settings(Images("r", "l", policy), SETTINGS.store, "system"))
    probes.step()
    assert policies(probes) == {policy}
    probes.pod(phase="Pending", **WAITING)
    probes.now += timedelta(seconds=PULL_SECONDS)
    probes.settle()
    assert len(probes.made) == 1


@pytest.mark.parametrize("writes", range(4))
@pytest.mark.parametrize("dies_at", ["the first", "the end", "the failure"])
def test_a_crash_after_any_write_makes_no_second_job(dies_at: str, writes: int) -> None:
    probes = Probes()
    if dies_at != "the first":
        probes.step()
        probes.finish(*((75, {"reason": "Retrying", "retryable": True}) if dies_at == "the failure" else ()))
        probes.now += timedelta(seconds=RETRY_SECONDS[0])
    probes.step(writes=writes)
    probes.settle()
    if dies_at != "the end":
        probes.finish()
        probes.settle()
    assert len(probes.made) == (2 if dies_at == "the failure" else 1)
    assert (probes.jobs, probes.condition("Ready")) == ({}, ("True", "Accepted"))


def test_a_job_that_somebody_else_has_made_is_let_be() -> None:
    probes = Probes()
    probes.step()
    probes.jobs["theirs"] = {
        "metadata": {"name": "theirs", "namespace": "system", "uid": "t", "labels": {}},
        "spec": {},
    }
    probes.settle()
    probes.change(steps=[OTHER_STEP])
    probes.settle()
    probes.change(versionProbe=None)
    probes.settle()
    assert list(probes.jobs) == ["theirs"]


def test_one_that_cannot_be_used_as_written_is_not_probed() -> None:
    probes = Probes()
    probes.step()
    probes.change(versionProbe={**SPEC["versionProbe"], "command": ["cc", "${MODEL_DIR}"]})
    probes.settle()
    assert probes.jobs == {}
    assert probes.condition("Ready") == ("False", "InvalidSpec")
    message = probes.profile["status"]["conditions"][0]["message"]
    assert message == "versionProbe: unknown variable MODEL_DIR; there are none"


def test_one_that_is_to_go_is_not_probed_and_stays_what_it_is_to_its_users() -> None:
    probes = known()
    probes.ask_again("x")
    probes.profile["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    snapshot = ProfileSnapshot(probes.profile, 0, SETTINGS, some(["ns/d"], 1))
    made = planner.plan(snapshot, probes.now)
    assert made.apply == ()
    assert made.status is not None
    assert made.status["versions"] == {"toolchain": "7"}


def test_a_status_of_another_form_is_probed_anew() -> None:
    probes = known()
    probes.profile["status"]["probed"] = {"recipe": "?"}
    probes.settle()
    assert len(probes.jobs) == 1
    assert view_of(probes.profile).awaited


# What rests on it.


def test_the_view_tells_the_toolchain() -> None:
    view = view_of(known().profile)
    assert view.toolchain is not None
    assert view.toolchain.to_wire() == {
        "versions": {"toolchain": "7"},
        "images": [{"image": "acme/cc:1", "digest": ONE}, {"image": "acme/export:2", "digest": TWO}],
    }


def test_whoever_looks_at_a_profile_is_told_when_it_looks_different() -> None:
    probes = Probes()
    seen = [(said_of_toolchain(probes.profile), view_of(probes.profile))]

    def look() -> None:
        seen.append((said_of_toolchain(probes.profile), view_of(probes.profile)))

    probes.step()
    look()
    probes.finish(70, {"reason": "ToolchainFailed", "message": "m"})
    probes.settle()
    look()
    probes.profile["status"]["artifacts"] = 9
    look()
    probes.now += timedelta(seconds=RECHECK_SECONDS)
    probes.settle()
    look()
    probes.finish()
    probes.settle()
    look()
    for (said, view), (said_next, view_next) in itertools.pairwise(seen):
        assert said != said_next or view == view_next
    assert seen[2][0] == seen[3][0]


def key_of(toolchain: Toolchain | None) -> str:
    facts = ModelFacts.model_validate({**FACTS, "source": "hf://a/b"})
    spec = BuildProfileSpec.model_validate(SPEC)
    return artifact_key(KeyInputs.from_profile(spec, facts, DType.FP16, ShapeBucket(), "x86_64", toolchain=toolchain))


def test_another_toolchain_is_another_key() -> None:
    seven = view_of(known().profile).toolchain
    keys = [
        key_of(None),
        key_of(seven),
        key_of(view_of(known("8").profile).toolchain),
        key_of(view_of(known(**{"acme/cc:1": TWO}).profile).toolchain),
    ]
    assert len(set(keys)) == len(keys)
    assert key_of(view_of(known().profile).toolchain) == keys[1]


def at_build(probes: Probes) -> World:
    """A deployment whose profile's toolchain is not known yet."""
    world = World()
    world.profiles = [view_of(probes.profile)]
    world.deploy()
    world.settle()
    world.resolve_model()
    world.settle()
    return world


def test_a_deployment_waits_until_the_toolchain_is_known_and_is_built_anew_for_another() -> None:
    probes = Probes()
    probes.settle()
    world = at_build(probes)
    assert world.condition("ModelDeployment", "hello", "Placed")["status"] == "True"
    waits = world.condition("ModelDeployment", "hello", "ArtifactReady")
    assert (waits["status"], waits["reason"]) == ("False", "Probing")
    assert waits["message"].startswith("BuildProfile acme: its toolchain is being probed")
    assert world.of("BuildArtifact") == []

    probes.finish()
    probes.settle()
    world.profiles = [view_of(probes.profile)]
    world.settle()
    (first,) = world.of("BuildArtifact")
    assert first["spec"]["toolchain"]["versions"] == {"toolchain": "7"}
    world.build()
    world.settle()
    world.start_pods()
    world.settle()
    assert world.reason() == "Ready"

    # Whatever is asked meanwhile, it goes on with what is known.
    probes.ask_again("1")
    probes.settle()
    world.profiles = [view_of(probes.profile)]
    world.settle()
    assert world.reason() == "Ready"
    probes.finish()
    probes.settle()
    world.profiles = [view_of(probes.profile)]
    world.settle()
    assert [each["metadata"]["name"] for each in world.of("BuildArtifact")] == [first["metadata"]["name"]]

    probes.ask_again("2")
    probes.settle()
    probes.finish(digests={**DIGESTS, "acme/cc:1": TWO})
    probes.settle()
    world.profiles = [view_of(probes.profile)]
    world.settle()
    (job,) = world.jobs("build")
    assert job["metadata"]["labels"][names.LABEL_ARTIFACT] != first["metadata"]["name"]
    (compile_,) = [each for each in job["spec"]["template"]["spec"]["initContainers"] if each["name"] == "compile"]
    assert compile_["image"] == f"acme/cc@{TWO}"


def test_what_serves_goes_on_to_while_another_recipe_is_probed() -> None:
    probes = known()
    world = at_build(probes)
    world.build()
    world.settle()
    world.start_pods()
    world.settle()
    assert world.reason() == "Ready"
    served = [each["metadata"]["name"] for each in world.of("Deployment")]
    probes.change(steps=[OTHER_STEP])
    probes.settle()
    world.profiles = [view_of(probes.profile)]
    world.settle()
    assert world.reason() == "Probing"
    assert world.condition("ModelDeployment", "hello", "Placed")["status"] == "True"
    assert [each["metadata"]["name"] for each in world.of("Deployment")] == served
    assert world.objects["ModelDeployment", "hello"]["status"]["readyReplicas"] == 1


def test_where_it_cannot_be_told_the_deployment_is_told_why() -> None:
    probes = Probes()
    probes.step()
    probes.finish(70, {"reason": "ToolchainFailed", "message": "cc: not found"})
    probes.settle()
    world = at_build(probes)
    placed = world.condition("ModelDeployment", "hello", "Placed")
    assert (placed["status"], placed["reason"]) == ("False", "NoEligibleAccelerator")
    assert "cc: not found" in placed["message"]


def test_one_that_goes_takes_no_new_users_though_it_is_awaited() -> None:
    probes = Probes()
    probes.settle()
    world = World()
    world.profiles = [view_of(probes.profile)]
    going = copy.deepcopy(probes.profile)
    going["metadata"] |= {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": [names.FINALIZER_IN_USE]}
    world.add(going)
    world.deploy()
    world.settle()
    world.resolve_model()
    world.settle()
    placed = world.condition("ModelDeployment", "hello", "Placed")
    assert (placed["status"], placed["reason"]) == ("False", "NoEligibleAccelerator")
    assert "it is being deleted" in placed["message"]


def test_the_toolchain_of_what_a_profile_starts_from_is_waited_for_too() -> None:
    probes = Probes({**SPEC, "target": {"type": "CPU", "vendor": "Generic"}})
    probes.profile["metadata"]["name"] = "export"
    probes.settle()
    world = World()
    derived = ProfileView("acme", BuildProfileSpec.model_validate({**PROFILE.to_wire(), "from": "export"}))
    world.profiles = [derived, view_of(probes.profile)]
    world.deploy()
    world.settle()
    world.resolve_model()
    world.settle()
    assert world.reason() == "Probing"
    assert "Stalled" not in {each["type"] for each in world.objects["ModelDeployment", "hello"]["status"]["conditions"]}
    assert world.condition("ModelDeployment", "hello", "Ready")["message"].startswith("BuildProfile export: ")
    assert world.of("BuildArtifact") == []
    probes.finish()
    probes.settle()
    world.profiles = [derived, view_of(probes.profile)]
    world.settle()
    (first,) = world.of("BuildArtifact")
    assert (first["spec"]["profile"], "toolchain" in first["spec"]) == ("export", True)


def test_that_a_compiler_refused_a_model_holds_until_it_is_known_to_be_another_one() -> None:
    probes = known()
    world = at_build(probes)
    for job in world.jobs("build"):
        world.finish(job, 64, report={"reason": "UnsupportedModel", "message": "no kernel"})
    world.settle()
    assert world.reason() == "UnsupportedModel"
    (refused,) = [each["metadata"]["name"] for each in world.of("BuildArtifact")]
    probes.change(versionProbe={**SPEC["versionProbe"], "pattern": "(.+)"})
    probes.settle()
    world.profiles = [view_of(probes.profile)]
    world.settle()
    assert world.reason() == "UnsupportedModel"
    assert ("BuildArtifact", refused) in world.objects
    probes.finish(report={"reason": "Ready", "versions": {"toolchain": "8"}})
    probes.settle()
    world.profiles = [view_of(probes.profile)]
    world.settle()
    assert world.reason() == "Building"
    assert refused not in [each["metadata"]["name"] for each in world.of("BuildArtifact")]
