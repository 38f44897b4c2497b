"""The serving side of a deployment: one apps/v1 Deployment per variant, and one Service in front.

A variant is an accelerator, an artifact and a pod template. The template is remembered in a ControllerRevision when it
is first rendered, so a later version of the operator that would render it differently restarts nobody.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

from rm_api import names
from rm_api.kinds import AcceleratorResourceSpec, BuildArtifactSpec, ModelDeploymentSpec
from rm_api.kinds.accelerator_resource import NodeVersions
from rm_api.kinds.build_profile import BuildInterface
from rm_api.kinds.model_deployment import ModelFacts
from rm_api.runtimes import facts_of

from rm_operator.plan import compatibility, image_volume, pods, remembered, startup
from rm_operator.plan.device_class import requested_resource
from rm_operator.plan.key import build_variables
from rm_operator.plan.memo import Memo
from rm_operator.plan.model import Object, Settings, StoreConfig, labels_of, name_of, namespace_of, owner_reference
from rm_operator.plan.remote_code import trusted

_SERVE_VOLUMES = ["bin", "tmp", "artifact", "cache", "report", "shm"]
_wire: Memo[[AcceleratorResourceSpec], dict[str, Any]] = Memo(AcceleratorResourceSpec.to_wire, most=64)


class AnyVariant(Protocol):
    """A set of serving pods, whatever they are made of."""

    @property
    def deployment(self) -> Object:
        """The ModelDeployment."""

    @property
    def spec(self) -> ModelDeploymentSpec:
        """Its spec."""

    @property
    def accelerator(self) -> str:
        """Where it runs."""

    @property
    def accelerator_spec(self) -> AcceleratorResourceSpec:
        """The spec of that."""

    @property
    def inputs_hash(self) -> str:
        """Hash of everything that asks for other pods when it changes; replicas and selectors of placement do not."""

    @property
    def name(self) -> str:
        """Name of its Deployment and ControllerRevision."""

    @property
    def labels(self) -> dict[str, str]:
        """Labels of its objects and pods."""

    def template(self, settings: Settings) -> dict[str, Any]:
        """Its pod template."""


@dataclass(frozen=True)
class Variant:
    """What a set of serving pods is made of."""

    deployment: Object
    spec: ModelDeploymentSpec
    accelerator: str
    accelerator_spec: AcceleratorResourceSpec
    artifact: str
    artifact_spec: BuildArtifactSpec
    location: str
    """The artifact in the store, with its digest."""
    facts: ModelFacts
    """The model, pinned: its weights may not be in the artifact."""
    versions: tuple[NodeVersions, ...]
    """Versions that the accelerator's nodes have."""
    store: StoreConfig
    """The store as the variant's pods reach it."""
    artifact_namespace: str | None = None
    """Where the artifact is, if all namespaces share it."""
    slowest_start: int = 0
    """Seconds that engines took at most until now to start with the artifact; 0 where that is not known."""

    @property
    def served_name(self) -> str:
        """The model's name in the OpenAI API."""
        return self.spec.model.served_name or name_of(self.deployment)

    @property
    def code(self) -> str | None:
        """Digest of the code that comes with the model, where the engine is to run that: the one it was built with."""
        code = trusted(self.spec, self.accelerator_spec, self.facts)
        return code if code == self.artifact_spec.model.code_digest else None

    @cached_property
    def inputs_hash(self) -> str:
        """Hash of everything that asks for other pods when it changes; replicas and selectors of placement do not."""
        accelerator = _wire(self.accelerator_spec)
        inputs = {
            "accelerator": self.accelerator,
            "runtime": {key: each for key, each in accelerator["runtime"].items() if key != "allowRemoteCode"},
            "resourceName": accelerator.get("resourceName"),
            "nodeSelector": accelerator.get("nodeSelector", {}),
            "tolerations": accelerator.get("tolerations", []),
            "artifact": self.artifact,
            "location": self.location,
            "servedName": self.served_name,
            "options": {key: each for key, each in self.spec.runtime.to_wire().items() if key != "trustRemoteCode"},
        }
        # What came later counts only where it is used: the pods of those who do not use it keep their variant.
        if self.code is not None:
            inputs["code"] = self.code
        if self.spec.priority_class_name is not None:
            inputs["priorityClassName"] = self.spec.priority_class_name
        if self.accelerator_spec.device_class_name is not None:
            inputs["deviceClassName"] = self.accelerator_spec.device_class_name
        if not self.artifact_spec.weights_in_artifact:
            # Others may share the artifact whose model has the same structure and other weights.
            inputs["model"] = [self.facts.config_digest, self.facts.weights_digest]
        if self.store.ca or self.store.token_audience:
            inputs["store"] = [self.store.ca, self.store.token_audience]
        if (how := self.store.image_volumes) is not None:
            inputs["imageVolumes"] = [how.host, how.pull_secret]
        return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:10]

    @property
    def name(self) -> str:
        """Name of the variant's Deployment and ControllerRevision."""
        return f"{name_of(self.deployment)}-{self.inputs_hash}"

    @property
    def labels(self) -> dict[str, str]:
        """Labels of its objects and pods."""
        return _labels(self)

    def template(self, settings: Settings) -> dict[str, Any]:
        """Its pod template."""
        return _template(self, settings)


def children(
    variant: AnyVariant, revision: Object | None, settings: Settings, *, replicas: int
) -> list[dict[str, Any]]:
    """ControllerRevision and Deployment of a variant. ``revision`` is the remembered template, if there is one."""
    metadata = _metadata(variant.name, variant.deployment, variant.labels)
    template = remembered.template_in(revision)
    if revision is not None and template is not None:
        data = revision["data"]
    else:
        template = variant.template(settings)
        data = remembered.data_of(template)
    memory = {"apiVersion": "apps/v1", "kind": "ControllerRevision", "metadata": metadata, "data": data, "revision": 1}
    return [memory, _deployment(metadata, template, variant.spec, replicas)]


def resized(
    live: Object, revision: Object | None, deployment: Object, spec: ModelDeploymentSpec, *, replicas: int
) -> dict[str, Any]:
    """The Deployment of a variant that is not the wanted one, as it is but for its size."""
    ours = {key: value for key, value in labels_of(live).items() if key.startswith(f"{names.GROUP}/")}
    metadata = _metadata(name_of(live), deployment, {names.LABEL_MANAGED_BY: names.MANAGED_BY, **ours})
    template = remembered.template_in(revision) or live["spec"]["template"]
    return _deployment(metadata, template, spec, replicas)


def _metadata(name: str, deployment: Object, label: Mapping[str, str]) -> dict[str, Any]:
    return {
        "name": name,
        "namespace": namespace_of(deployment),
        "labels": dict(label),
        "ownerReferences": [owner_reference(deployment, controller=True)],
    }


def _deployment(
    metadata: Mapping[str, Any], template: Mapping[str, Any], spec: ModelDeploymentSpec, replicas: int
) -> dict[str, Any]:
    label = metadata["labels"]
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata,
        "spec": {
            "replicas": replicas,
            "revisionHistoryLimit": 0,
            # Its own verdict comes with ours, not twenty minutes before.
            "progressDeadlineSeconds": spec.rollout.deadline_seconds,
            "selector": {"matchLabels": {key: label[key] for key in (names.LABEL_DEPLOYMENT, names.LABEL_VARIANT)}},
            "template": template,
        },
    }


def service(deployment: Object) -> dict[str, Any]:
    """The Service that clients use, whatever runs behind it."""
    name = name_of(deployment)
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": name,
            "namespace": namespace_of(deployment),
            "labels": pods.labels(names.ROLE_SERVE, **{names.LABEL_DEPLOYMENT: name}),
            "ownerReferences": [owner_reference(deployment, controller=True)],
        },
        "spec": {
            "selector": {names.LABEL_DEPLOYMENT: name, names.LABEL_ACTIVE: "true"},
            "ports": [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}],
        },
    }


def url(deployment: Object, settings: Settings) -> str:
    """Base URL of the OpenAI API inside the cluster."""
    return f"http://{name_of(deployment)}.{namespace_of(deployment)}.svc.{settings.cluster_domain}/v1"


def _labels(variant: Variant) -> dict[str, str]:
    return pods.labels(
        names.ROLE_SERVE,
        **{names.LABEL_DEPLOYMENT: name_of(variant.deployment), names.LABEL_VARIANT: variant.inputs_hash},
        **{names.LABEL_ACCELERATOR: variant.accelerator, names.LABEL_ARTIFACT: variant.artifact},
        **({names.LABEL_ARTIFACT_NAMESPACE: variant.artifact_namespace} if variant.artifact_namespace else {}),
    )


def _template(variant: Variant, settings: Settings) -> dict[str, Any]:
    runtime = variant.accelerator_spec.runtime
    assert runtime is not None
    resource = requested_resource(variant.accelerator_spec)
    devices = variant.artifact_spec.shape.devices if resource else 0
    fetch, artifact_volumes = _artifact(variant, settings)
    model, model_volumes = _model(variant, settings)
    sealed = ["bin", "artifact", *(["model"] if model else [])]
    mounted = [*_SERVE_VOLUMES, *(["model"] if model else [])]
    how = settings.store.image_volumes
    emptied = [name for name in mounted if how is None or name != image_volume.VOLUME]
    compute: dict[str, Any] = {"requests": {"cpu": "100m", "memory": "256Mi"}}
    if resource:
        compute["limits"] = {resource: str(devices)}
    served = pods.literal(variant.served_name)
    budget = startup.budget_seconds(variant.artifact_spec, variant.facts, variant.slowest_start)
    command = _Command.of(variant, settings, served=served, model_beside=bool(model))
    engine = pods.container(
        "engine",
        runtime.image,
        [
            names.LAUNCHER, "engine",
            f"--served-name={served}",
            f"--port={names.SERVE_PORT}",
            f"--report-port={names.REPORT_PORT}",
            f"--artifact-dir={names.ARTIFACT_DIR}",
            f"--artifact-key={variant.artifact_spec.key}",
            # Only plugins of ours say which nodes they have given.
            f"--require-devices={devices if variant.accelerator_spec.device_plugin else 0}",
            f"--ready-timeout={budget}",
            *startup.launcher_flags(settings),
            *([f"--cache-from={names.ARTIFACT_DIR}/cache"] if _has_cache(variant.artifact_spec) else []),
            *command.engine,
        ],
        settings,
        mounted=pods.mounts(mounted, read_only=sealed),
        environment=pods.env(
            {**_variables(variant), names.ENV_ENGINE_REPORT: names.ENGINE_REPORT_FILE},
            [*(runtime.env or []), *variant.spec.runtime.env],
        ),
        compute=compute,
        **startup.serving_probes(budget),
    )  # fmt: skip
    further: dict[str, Any] = {"terminationGracePeriodSeconds": startup.GRACE_SECONDS}
    if how is not None:
        further |= image_volume.further(how)
    artifact = variant.artifact_spec
    built_for = compatibility.class_of(artifact)
    further |= compatibility.affinity(variant.accelerator, variant.accelerator_spec, variant.versions, built_for)
    if variant.accelerator_spec.node_selector:
        further["nodeSelector"] = dict(variant.accelerator_spec.node_selector)
    if variant.accelerator_spec.tolerations:
        further["tolerations"] = [toleration.to_wire() for toleration in variant.accelerator_spec.tolerations]
    if variant.spec.priority_class_name is not None:
        further["priorityClassName"] = variant.spec.priority_class_name
    return {
        "metadata": {"labels": {**_labels(variant), names.LABEL_ACTIVE: "true"}},
        "spec": pods.pod_spec(
            init_containers=[pods.install_launcher(settings), *fetch, *model, *command.before],
            containers=[engine],
            pod_volumes=[*pods.volumes(emptied), *artifact_volumes, *model_volumes],
            **further,
        ),
    }


def _artifact(variant: Variant, settings: Settings) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The init container that fetches the artifact, and its volumes; or the volume that the node mounts."""
    if (how := settings.store.image_volumes) is not None:
        return [], [image_volume.volume(image_volume.reference(variant.location, settings.store, how))]
    store_environment, store_mounts, store_volumes = pods.store_access(settings)
    container = pods.container(
        "fetch",
        settings.images.runtime,
        [
            "rm-abstract", "fetch", "artifact",
            f"--reference={variant.location}",
            f"--key={variant.artifact_spec.key}",
            f"--dest={names.ARTIFACT_DIR}",
        ],
        settings,
        mounted=[*pods.mounts(["tmp", "artifact"]), *store_mounts],
        environment=pods.env(store_environment),
        compute={"requests": {"cpu": "100m", "memory": "128Mi"}},
    )  # fmt: skip
    return [container], store_volumes


class _Command(NamedTuple):
    """How the engine is started."""

    engine: list[str]
    """Arguments of rma-launch that say it."""
    before: list[dict[str, Any]]
    """The init container that works the command out, where artifact and model have to be read for it."""

    @classmethod
    def of(cls, variant: Variant, settings: Settings, *, served: str, model_beside: bool) -> "_Command":
        """The command that the accelerator states; else that of the engine's own server, or of ours over the plugin."""
        runtime = variant.accelerator_spec.runtime
        assert runtime is not None
        further = list(map(pods.literal, runtime.args or []))
        if runtime.command is not None:
            return cls(["--", *map(pods.literal, runtime.command), *further], [])
        serving = [
            f"--plugin={runtime.plugin}",
            f"--artifact={names.ARTIFACT_DIR}",
            *([f"--model={names.MODEL_DIR}"] if model_beside else []),
            f"--served-name={served}",
            f"--port={names.SERVE_PORT}",
            *_limits(variant.artifact_spec),
        ]
        if not facts_of(runtime.plugin).own_server:
            return cls(["--", "rm-abstract", "serve", *serving, *further], [])
        prefix_caching = variant.spec.runtime.prefix_caching
        read = ["artifact", *(["model"] if model_beside else [])]
        worked_out = pods.container(
            "engine-command",
            settings.images.runtime,
            [
                "rm-abstract", "engine-command",
                *serving,
                f"--dtype={variant.artifact_spec.dtype}",
                *([] if prefix_caching is None else [f"--{'' if prefix_caching else 'no-'}prefix-caching"]),
                *(["--trust-remote-code"] if variant.code else []),
                f"--output={names.ENGINE_COMMAND_FILE}",
            ],
            settings,
            mounted=pods.mounts(["bin", "tmp", *read], read_only=read),
            compute={"requests": {"cpu": "100m", "memory": "128Mi"}},
        )  # fmt: skip
        return cls(
            [f"--command-file={names.ENGINE_COMMAND_FILE}", *(["--", *further] if further else [])], [worked_out]
        )


def _limits(artifact: BuildArtifactSpec) -> list[str]:
    """What is compiled in is what the engine may take, on the devices that it is compiled for."""
    shape = artifact.shape
    return [
        *([f"--max-batch={shape.max_batch_size}"] if shape.max_batch_size else []),
        *([f"--max-sequence-length={shape.max_sequence_length}"] if shape.max_sequence_length else []),
        *([f"--prefill-chunk={shape.prefill_chunk}"] if shape.prefill_chunk else []),
        *([f"--tensor-parallel={shape.tensor_parallel}"] if shape.tensor_parallel else []),
        *([f"--pipeline-parallel={shape.pipeline_parallel}"] if shape.pipeline_parallel else []),
    ]


def _variables(variant: Variant) -> dict[str, str]:
    spec = variant.artifact_spec
    return {
        "MODEL_DIR": names.ARTIFACT_DIR if variant.artifact_spec.weights_in_artifact else names.MODEL_DIR,
        "ARTIFACT_DIR": names.ARTIFACT_DIR,
        "CACHE_DIR": names.CACHE_DIR,
        "SERVED_NAME": variant.served_name,
        "PORT": str(names.SERVE_PORT),
        **build_variables(spec.target, spec.dtype, spec.shape),
    }


def _model(variant: Variant, settings: Settings) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The init container that fetches the model, and its volumes, where the artifact is without the weights."""
    if variant.artifact_spec.weights_in_artifact:
        return [], []
    facts, credentials = variant.facts, variant.spec.model.credentials_secret_ref
    environment, source_mounts, source_volumes = pods.source_access(settings, facts.source, credentials)
    container = pods.fetch_model(
        "fetch-model", facts.source, facts.revision, pods.digests_of(facts, variant.code), settings,
        environment=environment, further_mounts=source_mounts,
    )  # fmt: skip
    return [container], [*source_volumes, *pods.node_cache_volumes(settings)]


def _has_cache(spec: BuildArtifactSpec) -> bool:
    return spec.interface is BuildInterface.WARMUP


def devices_of(its_pods: Iterable[Object]) -> int:
    """Devices that each of a variant's pods has; 1 where it has none, or there is no pod to tell."""
    for pod in its_pods:
        for container in (pod.get("spec") or {}).get("containers") or []:
            limits = (container.get("resources") or {}).get("limits") or {}
            # An engine has devices of one kind.
            return max([1, *(int(number) for name, number in limits.items() if "/" in name)])
    return 1


def is_ready(pod: Object) -> bool:
    """True if the pod is Ready and is not on its way out."""
    if "deletionTimestamp" in pod["metadata"]:
        return False
    return any(
        entry["type"] == "Ready" and entry["status"] == "True"
        for entry in (pod.get("status") or {}).get("conditions") or []
    )


def is_live(pod: Object) -> bool:
    """True if the pod has neither ended nor been asked to."""
    ended = (pod.get("status") or {}).get("phase") in ("Failed", "Succeeded")
    return not ended and "deletionTimestamp" not in pod["metadata"]


def is_active(pod: Object) -> bool:
    """True if the Service selects the pod."""
    return labels_of(pod).get(names.LABEL_ACTIVE) == "true"


def serves(pod: Object) -> bool:
    """True if requests come to the pod."""
    return is_ready(pod) and is_active(pod)


def variant_label(obj: Object) -> str:
    """The variant that a Deployment or pod belongs to."""
    return labels_of(obj).get(names.LABEL_VARIANT, "")
