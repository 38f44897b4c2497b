"""A cluster in miniature for tests of the planners: objects by name, a clock, and Jobs whose end a test chooses."""

import copy
import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from rm_api import names
from rm_api.kinds import AcceleratorResourceSpec, BuildProfileSpec
from rm_api.kinds.model_deployment import ModelSource
from rm_operator.controllers.indexes import artifacts_named
from rm_operator.plan import artifact, deployment, resolve, serving
from rm_operator.plan.attempt import observe
from rm_operator.plan.build_queue import Line
from rm_operator.plan.in_use import is_protected
from rm_operator.plan.model import Images, Plan, Protection, Settings, StoreConfig, is_deleting, to_timestamp
from rm_operator.plan.placement import AcceleratorView, ProfileView
from rm_operator.plan.serving_report import ServingReport

Object = dict[str, Any]

SETTINGS = Settings(
    images=Images("runtime:1", "launcher:1"),
    store=StoreConfig("store:5000", plain_http=True),
    system_namespace="system",
)
DIGEST = "sha256:" + "a" * 64
FACTS: Object = {
    "revision": "sha256:" + "b" * 64,
    "architecture": "LlamaForCausalLM",
    "parameters": 1000,
    "activeParameters": 1000,
    "weightBytes": 2000,
    "dtype": "bf16",
    "layers": 2,
    "heads": 4,
    "kvHeads": 2,
    "headDim": 64,
    "maxSequenceLength": 2048,
    "configDigest": DIGEST,
    "tensorsDigest": DIGEST,
    "weightsDigest": DIGEST,
}
NPU = AcceleratorResourceSpec.model_validate(
    {
        "type": "NPU",
        "vendor": "Acme",
        "product": "X1",
        "resourceName": "acme.com/npu",
        "runtime": {"plugin": "acme", "image": "acme/serve:1"},
    }
)
PROFILE = BuildProfileSpec.model_validate(
    {
        "target": {"type": "NPU", "vendor": "Acme", "products": ["X1"], "targetString": "x1"},
        "supports": {"dtypes": ["fp16"]},
        "steps": [{"name": "compile", "image": "acme/cc:1", "command": ["cc", "${MODEL_DIR}", "-o", "${OUTPUT}"]}],
        "compatibility": {"driver": ["1.4.0"]},
        "output": {"format": "acme"},
    }
)


class World:
    """One namespace. ``step`` plans everything once, like one round of reconciles; ``settle`` until nothing changes."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.facts = FACTS
        self.objects: dict[tuple[str, str], Object] = {}
        self.store: dict[str, artifact.StoreAnswer] = {}
        self.store_up = True
        self.held: dict[str, int] = {}
        """Artifact → Jobs, from the first, whose result the store has for the next one."""
        self.kinds: list[Object] = []
        """AcceleratorResources, for builds that need a device."""
        self.nodes: list[Object] = []
        self.lines: list[Line] = []
        """Limits of parallel builds."""
        self.expected: int | None = None
        self.said: ServingReport | None = None
        """What each ready pod says when it is asked; None if none has been asked yet."""
        self.accelerators = [AcceleratorView("npu", NPU, free=4, healthy=4, nodes=1)]
        self.profiles = [ProfileView("acme", PROFILE)]
        self.made: list[tuple[str, str]] = []
        self.plans: list[Plan] = []
        self.requeues: list[float] = []
        self.events: list[tuple[str, str]] = []
        self._uids = 0
        self._set: dict[tuple[str, str], dict[str, set[str]]] = {}
        self._pods = 0
        self.slices: frozenset[str] | None = None
        """Pods that the EndpointSlices name, where they do not follow at once."""

    def add(self, obj: Object) -> Object:
        """Creates or updates an object as the API server would."""
        key = (obj["kind"], obj["metadata"]["name"])
        before = self.objects.get(key)
        kept = copy.deepcopy(obj)
        metadata = kept["metadata"]
        if before is None:
            self._uids += 1
            metadata |= {"uid": f"uid-{self._uids}", "generation": 1, "creationTimestamp": to_timestamp(self.now)}
            self.made.append(key)
        else:
            metadata = kept["metadata"] = {**before["metadata"], **metadata, **self._merged(key, before, metadata)}
            kept = {**{part: before[part] for part in ("spec", "data") if part in before}, **kept}
            if before.get("spec") != kept.get("spec"):
                metadata["generation"] = before["metadata"]["generation"] + 1
            if "status" in before:
                kept.setdefault("status", before["status"])
        self.objects[key] = kept
        # A pod is made by its ReplicaSet or Job, not by the operator.
        mine = {} if before is None and obj["kind"] == "Pod" else obj["metadata"]
        self._set[key] = {part: set(mine.get(part, {})) for part in ("labels", "annotations")}
        return kept

    def _merged(self, key: tuple[str, str], before: Object, metadata: Object) -> Object:
        """Labels and annotations after an apply: what was applied before and is not now goes, others' stay."""
        merged = {}
        for part, ours in self._set[key].items():
            intent = metadata.get(part, {})
            others = {name: value for name, value in before["metadata"].get(part, {}).items() if name not in ours}
            if others or intent or part in before["metadata"]:
                merged[part] = {**others, **intent}
        return merged

    def deploy(self, name: str = "hello", **spec: Any) -> Object:
        """Applies a ModelDeployment."""
        return self.add(
            {
                "apiVersion": names.API_VERSION,
                "kind": "ModelDeployment",
                "metadata": {"name": name, "namespace": "ns"},
                "spec": {"model": {"source": "oci://registry/model:1"}, **spec},
            }
        )

    def of(self, kind: str) -> list[Object]:
        """All objects of a kind."""
        return [obj for (each, _), obj in sorted(self.objects.items()) if each == kind]

    def condition(self, kind: str, name: str, condition: str) -> Object:
        """A condition of an object; empty where it is not stated."""
        status = self.objects[kind, name].get("status") or {}
        return next((entry for entry in status.get("conditions") or [] if entry["type"] == condition), {})

    def reason(self, name: str = "hello", condition: str = "Ready") -> str:
        """Reason of a condition of a ModelDeployment."""
        return str(self.condition("ModelDeployment", name, condition)["reason"])

    def plan(self, obj: Object) -> Plan:
        """The plan for one object of ours."""
        if obj["kind"] == "BuildArtifact":
            return artifact.plan(self._artifact_snapshot(obj), self.now)
        return deployment.plan(self._deployment_snapshot(obj), self.now)

    def step(self) -> bool:
        """Plans and carries out once for every object; False if nothing changed."""
        before = copy.deepcopy(self.objects)
        for obj in [*self.of("ModelDeployment"), *self.of("BuildArtifact")]:
            if (obj["kind"], obj["metadata"]["name"]) not in self.objects:
                continue
            self.carry_out(obj, self.plan(obj))
        return self.objects != before

    def carry_out(self, obj: Object, plan: Plan, *, writes: int | None = None) -> None:
        """Does what the plan says, in its order; at most ``writes`` writes, as if the operator died then."""
        self.plans.append(plan)
        todo: list[Any] = []
        if plan.forget is not None:
            todo.append(lambda: self.store.pop(obj["metadata"]["name"], None))
        status = lambda: obj.__setitem__("status", copy.deepcopy(plan.status))  # noqa: E731
        if plan.status is not None and plan.status_first:
            todo.append(status)
        todo += [lambda each=each: self._protect(each) for each in plan.protect]
        todo += [lambda child=child: self.add(child) for child in plan.apply]
        todo += [lambda each=each: self.delete(each.kind, each.name) for each in plan.delete]
        if plan.status is not None and not plan.status_first:
            todo.append(status)
        for write in todo[:writes]:
            write()
        self.events += [(event.type, event.reason) for event in plan.events]
        if plan.requeue_after is not None:
            self.requeues.append(plan.requeue_after)

    def _protect(self, protection: Protection) -> None:
        metadata = self.objects[protection.kind, protection.name]["metadata"]
        metadata["finalizers"] = [protection.finalizer] if protection.present else []
        if "deletionTimestamp" in metadata and not metadata["finalizers"]:
            self.remove(protection.kind, protection.name)

    def settle(self) -> None:
        """Steps until nothing changes; fails if that never happens."""
        for _ in range(30):
            if not self.step():
                return
        raise AssertionError("it never settles")

    def delete(self, kind: str, name: str) -> None:
        """Asks for an object's deletion: one with finalizers stays until they are taken off."""
        metadata = self.objects.get((kind, name), {}).get("metadata", {})
        if metadata.get("finalizers"):
            metadata.setdefault("deletionTimestamp", to_timestamp(self.now))
        else:
            self.remove(kind, name)

    def remove(self, kind: str, name: str) -> None:
        """An object is gone, and, like the garbage collector, what it alone owned."""
        gone = self.objects.pop((kind, name), None)
        if gone is None:
            return
        for obj in list(self.objects.values()):
            owners = obj["metadata"].get("ownerReferences")
            if owners and all(not self._alive(owner["uid"]) for owner in owners):
                self.remove(obj["kind"], obj["metadata"]["name"])

    def _alive(self, uid: str) -> bool:
        return any(obj["metadata"]["uid"] == uid for obj in self.objects.values())

    def finish(
        self,
        job: Object,
        code: int = 0,
        *,
        report: Mapping[str, Any] | None = None,
        message: str | None = None,
        container: str = "",
        killed: str = "",
        node: str = "node",
    ) -> None:
        """Ends a Job's pod with ``code`` and a report, by a container of it, the last one where none is named."""
        text = message if message is not None else json.dumps({"reason": "Resolved", **(report or {})})
        last = container or job["spec"]["template"]["spec"]["containers"][0]["name"]
        ended = (self.now + timedelta(seconds=5)).strftime("%Y-%m-%dT%H:%M:%SZ")
        terminated = {
            "exitCode": code, "message": text, "startedAt": self.now.strftime("%Y-%m-%dT%H:%M:%SZ"), "finishedAt": ended
        }  # fmt: skip
        terminated |= {"reason": killed} if killed else {}
        pod = self._pod_of(job)
        pod["spec"] = {"nodeName": node}
        pod["status"] = {
            "phase": "Failed" if code else "Succeeded",
            "containerStatuses": [{"name": last, "image": "x", "state": {"terminated": terminated}}],
        }
        word = "Failed" if code else "Complete"
        job["status"] = {"conditions": [{"type": word, "status": "True", "lastTransitionTime": ended}]}

    def _pod_of(self, job: Object) -> Object:
        name = job["metadata"]["name"]
        return self.add(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "name": f"{name}-pod",
                    "namespace": "ns",
                    "labels": {**job["metadata"]["labels"], "batch.kubernetes.io/job-name": name},
                    "ownerReferences": [{"kind": "Job", "name": name, "uid": job["metadata"]["uid"]}],
                },
                "spec": {},
            }
        )

    def resolve_model(self) -> None:
        """Ends every resolve Job that runs with the facts of the model."""
        for job in self.jobs("resolve"):
            self.finish(job, report={"facts": self.facts})

    def build(self) -> None:
        """Ends every build Job that runs, and puts its artifact into the store."""
        for job in self.jobs("build"):
            name = job["metadata"]["labels"][names.LABEL_ARTIFACT]
            command = job["spec"]["template"]["spec"]["containers"][0]["command"]
            if command[1] == "stage":
                self.held[name] = int(job["metadata"]["labels"][names.LABEL_STAGE])
            else:
                self.push(name)
            self.finish(job, report={"reason": "Built", "digest": "sha256:" + "f" * 64})

    def push(self, name: str) -> None:
        """Puts the artifact of that name into the store."""
        key = self.objects["BuildArtifact", name]["spec"]["key"]
        self.store[name] = artifact.StoreAnswer(artifact.Presence.FOUND, "sha256:" + "e" * 64, 123, key)

    def jobs(self, role: str, *, running: bool = True) -> list[Object]:
        """Jobs of a role."""
        return [
            job
            for job in self.of("Job")
            if job["metadata"]["labels"][names.LABEL_ROLE] == role and not (running and job.get("status"))
        ]

    def start_pods(self, *, ready: bool = True, **status: Any) -> None:
        """Makes the pods of every apps/v1 Deployment, ready or in the state that is given."""
        for each in self.of("Deployment"):
            for number in range(each["spec"]["replicas"]):
                name = f"{each['metadata']['name']}-{number}"
                pod = self.add(
                    {
                        "apiVersion": "v1",
                        "kind": "Pod",
                        "metadata": {
                            "name": name,
                            "namespace": "ns",
                            "labels": dict(each["spec"]["template"]["metadata"]["labels"]),
                            "ownerReferences": [{"kind": "Deployment", "name": "x", "uid": each["metadata"]["uid"]}],
                        },
                        "spec": {},
                    }
                )
                conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
                pod["status"] = {"phase": "Running", "conditions": conditions, **status}

    def run_pods(self, *, devices: int = 1000, ready: Callable[[Object], bool] = lambda pod: True) -> bool:
        """One move of ReplicaSets, scheduler and kubelets; False if they had nothing to do.

        A pod that is asked to end is gone a move later, and holds its device until then. ``ready`` tells which of the
        pods that run are ready.
        """
        before = copy.deepcopy(self.objects)
        for pod in self.of("Pod"):
            if "deletionTimestamp" in pod["metadata"]:
                self.remove("Pod", pod["metadata"]["name"])
        for each in self.of("Deployment"):
            self._replicate(each)
        mine = [
            pod
            for pod in self.of("Pod")
            if names.LABEL_VARIANT in pod["metadata"]["labels"] and pod.get("status", {}).get("phase") != "Failed"
        ]
        used = sum("nodeName" in pod["spec"] for pod in mine)
        for pod in mine:
            if "nodeName" not in pod["spec"] and used < devices:
                used += 1
                pod["spec"]["nodeName"] = "node"
            if "nodeName" in pod["spec"]:
                self._set_ready(pod, ready(pod))
            else:
                message = "0/1 nodes are available: 1 Insufficient acme.com/npu."
                entry = {"type": "PodScheduled", "status": "False", "message": message}
                pod["status"] = {"phase": "Pending", "conditions": [entry]}
        return self.objects != before

    def _replicate(self, deployment: Object) -> None:
        metadata, uid = deployment["metadata"], deployment["metadata"]["uid"]
        mine = [
            pod
            for pod in self.of("Pod")
            if uid in [owner["uid"] for owner in pod["metadata"]["ownerReferences"]]
            and "deletionTimestamp" not in pod["metadata"]
        ]

        def cost(pod: Object) -> tuple[bool, bool, int]:
            scheduled = "nodeName" in pod["spec"]
            annotations = pod["metadata"].get("annotations") or {}
            return (
                scheduled,
                serving.is_ready(pod),
                int(annotations.get("controller.kubernetes.io/pod-deletion-cost", 0)),
            )

        surplus = len(mine) - deployment["spec"]["replicas"]
        for pod in sorted(mine, key=cost)[: max(0, surplus)]:
            pod["metadata"]["deletionTimestamp"] = to_timestamp(self.now)
        for _ in range(-surplus):
            self._pods += 1
            self.add(
                {
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "metadata": {
                        "name": f"{metadata['name']}-{self._pods:04}",
                        "namespace": "ns",
                        "labels": dict(deployment["spec"]["template"]["metadata"]["labels"]),
                        "ownerReferences": [{"kind": "Deployment", "name": metadata["name"], "uid": uid}],
                    },
                    "spec": {"containers": copy.deepcopy(deployment["spec"]["template"]["spec"]["containers"])},
                }
            )

    def _set_ready(self, pod: Object, ready: bool) -> None:
        word = "True" if ready else "False"
        before = (pod.get("status") or {}).get("conditions") or [{}]
        if before[0].get("type") == "Ready" and before[0]["status"] == word:
            return
        entry = {"type": "Ready", "status": word, "lastTransitionTime": to_timestamp(self.now)}
        pod["status"] = {"phase": "Running", "conditions": [entry]}

    def serve(self, name: str = "hello", **spec: Any) -> None:
        """Takes a deployment all the way to Ready."""
        self.deploy(name, **spec)
        for _ in range(4):
            self.settle()
            self.resolve_model()
            self.build()
            self.start_pods()
        self.settle()

    def routed(self) -> frozenset[str]:
        """Pods that the EndpointSlices name: ready and active."""
        return frozenset(
            pod["metadata"]["name"]
            for pod in self.of("Pod")
            if serving.is_ready(pod) and pod["metadata"]["labels"].get(names.LABEL_ACTIVE) == "true"
        )

    def _attempts(self, *, owner: str | None = None, model: str | None = None) -> list[Any]:
        found = []
        for job in self.of("Job"):
            metadata = job["metadata"]
            owned = owner is not None and owner in [each["uid"] for each in metadata["ownerReferences"]]
            if owned or (model is not None and metadata["labels"].get(names.LABEL_MODEL) == model):
                pods = [
                    pod
                    for pod in self.of("Pod")
                    if pod["metadata"]["labels"].get("batch.kubernetes.io/job-name") == metadata["name"]
                ]
                found.append(observe(job, pods))
        return found

    def _artifact_snapshot(self, obj: Object) -> artifact.ArtifactSnapshot:
        name = obj["metadata"]["name"]
        absent = artifact.StoreAnswer(artifact.Presence.ABSENT)
        down = artifact.StoreAnswer(artifact.Presence.UNREACHABLE, message="connection refused")
        attempts = self._attempts(owner=obj["metadata"]["uid"])
        running = any(attempt.state == "Running" for attempt in attempts)
        answer = self.store.get(name, absent) if self.store_up else down
        users = [each for each in self.of("ModelDeployment") if ("ns", name) in artifacts_named(each)]
        return artifact.ArtifactSnapshot(
            artifact=obj,
            referrers=len(users),
            suspended=sum(each["spec"].get("suspend", False) for each in users),
            attempts=attempts,
            answer=None if artifact.is_ready(obj) or running else answer,
            settings=SETTINGS,
            held=self.held.get(name, 0),
            accelerators=self.kinds,
            nodes=self.nodes,
            lines=self.lines,
            expected_seconds=self.expected,
            reports=list(self._reports(names.LABEL_ARTIFACT, name).values()),
            users=self._users(name),
            ready=[each for each in self.of("BuildArtifact") if artifact.is_ready(each)],
            users_now=bool(self._users(name)) if artifact.asks_for_users(obj, self.now) else None,
        )

    def _reports(self, label: str, value: str) -> dict[str, ServingReport]:
        """What ready serving pods with this label said, by uid."""
        said = self.said
        pods = [] if said is None else [each for each in self.of("Pod") if serving.is_ready(each)]
        return {
            pod["metadata"]["uid"]: said
            for pod in pods
            if said is not None and pod["metadata"]["labels"].get(label) == value
        }

    def _users(self, name: str) -> list[str]:
        """Who uses an artifact: deployments that name it or have pods of it, artifacts that are built from it."""
        naming = {
            each["metadata"]["name"] for each in self.of("ModelDeployment") if ("ns", name) in artifacts_named(each)
        }
        serving = {
            each["metadata"]["labels"][names.LABEL_DEPLOYMENT]
            for each in self.of("Deployment")
            if each["metadata"]["labels"].get(names.LABEL_ARTIFACT) == name
        }
        derived = {
            each["metadata"]["name"]
            for each in self.of("BuildArtifact")
            if artifact.in_build(each) and (each["spec"].get("base") or {}).get("name") == name
        }
        return sorted(naming | serving) + sorted(derived)

    def _deployment_snapshot(self, obj: Object) -> deployment.DeploymentSnapshot:
        hash_ = resolve.source_hash(ModelSource.model_validate(obj["spec"]["model"]))
        uid, name = obj["metadata"]["uid"], obj["metadata"]["name"]
        hashes = {
            resolve.source_hash(ModelSource.model_validate(each["spec"]["model"])): each
            for each in self.of("ModelDeployment")
        }

        def owned(kind: str) -> list[Object]:
            return [
                each
                for each in self.of(kind)
                if uid in [reference["uid"] for reference in each["metadata"].get("ownerReferences") or []]
            ]

        config_maps = [each for each in self.of("ConfigMap") if each["metadata"]["labels"][names.LABEL_MODEL] == hash_]
        return deployment.DeploymentSnapshot(
            deployment=obj,
            sharers=tuple(
                (each["metadata"]["name"], each["metadata"]["uid"])
                for each in self.of("ModelDeployment")
                if resolve.source_hash(ModelSource.model_validate(each["spec"]["model"])) == hash_
            ),
            config_map=config_maps[0] if config_maps else None,
            resolve_attempts=self._attempts(model=hash_),
            leftovers=[
                each
                for each in [*owned("ConfigMap"), *owned("Job")]
                if each["metadata"]["labels"].get(names.LABEL_MODEL) not in (None, *hashes)
            ],
            accelerators=self.accelerators,
            profiles=self.profiles,
            artifacts={each["metadata"]["name"]: each for each in self.of("BuildArtifact")},
            revisions={each["metadata"]["name"]: each for each in owned("ControllerRevision")},
            variants=owned("Deployment"),
            pods=[pod for pod in self.of("Pod") if pod["metadata"]["labels"].get(names.LABEL_DEPLOYMENT) == name],
            service=self.objects.get(("Service", name)),
            routed_pods=self.routed() if self.slices is None else self.slices,
            settings=SETTINGS,
            refused=lambda config: [
                each
                for each in self.of("BuildArtifact")
                if artifact.is_refused(each) and each["spec"]["model"]["configDigest"] == config
            ],
            removals=100,
            reports=self._reports(names.LABEL_DEPLOYMENT, name),
            autoscaler=self.objects.get(("HorizontalPodAutoscaler", name)),
            unprotected={
                (each["kind"], each["metadata"]["name"]): each
                for each in [*self.of("AcceleratorResource"), *self.of("BuildProfile")]
                if not is_protected(each)
            },
            leaving=frozenset(
                (each["kind"], each["metadata"]["name"])
                for each in [*self.of("AcceleratorResource"), *self.of("BuildProfile")]
                if is_deleting(each)
            ),
        )
