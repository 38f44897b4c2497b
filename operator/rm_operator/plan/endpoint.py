"""A deployment on an endpoint outside the cluster: nothing is resolved or built for it, and its pods relay requests.

A relay is a serving pod like others: the API, readiness after one generated token, draining, the report. It reaches the
endpoint through the proxy of the AcceleratorResource, and shows the ServiceAccount token of its namespace there.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from rm_api import names
from rm_api.accelerator_types import AcceleratorType
from rm_api.dtypes import DType
from rm_api.kinds import AcceleratorResourceSpec, ModelDeploymentSpec
from rm_api.kinds.model_deployment import ModelFacts

from rm_operator.plan import pods, remote, startup
from rm_operator.plan.model import Object, Settings, name_of
from rm_operator.plan.placement import AcceleratorView, PlacementRequest, selected

READY_SECONDS: Final = 600
"""For the first token: an endpoint loads nothing, but the proxy may have to be started."""
_LONGEST: Final = 2**31 - 1


def nothing_known(source: str) -> ModelFacts:
    """What placement is told of a model that only endpoints can serve: that no length is too long for it."""
    return ModelFacts.model_construct(
        source=source, revision="", architecture="", parameters=1, active_parameters=1, weight_bytes=0,
        dtype=DType.BF16, layers=1, heads=1, kv_heads=1, head_dim=1, max_sequence_length=_LONGEST,
        config_digest="", tensors_digest="", weights_digest="", scales_digest=None, remote_code=None,
    )  # fmt: skip


def only_endpoints(spec: ModelDeploymentSpec, namespace: str, accelerators: Sequence[AcceleratorView]) -> bool:
    """True if nothing but endpoints is left over by what the deployment selects, and by who may use what.

    So it is where the namespace may use none of them: that is what its owner should read, not that a hub lacks a name.
    """
    if all(view.spec.type is not AcceleratorType.REMOTE for view in accelerators):
        return False
    facts = nothing_known(spec.model.source)
    left = selected(PlacementRequest("", spec, facts, tuple(accelerators), namespace=namespace))
    return bool(left) and all(view.spec.type is AcceleratorType.REMOTE for view in left)


@dataclass(frozen=True)
class EndpointVariant:
    """What a set of relays is made of."""

    deployment: Object
    spec: ModelDeploymentSpec
    accelerator: str
    accelerator_spec: AcceleratorResourceSpec
    settings: Settings

    @property
    def served_name(self) -> str:
        """The model's name in the OpenAI API."""
        return self.spec.model.served_name or name_of(self.deployment)

    @property
    def model(self) -> str:
        """The model's name at the endpoint; empty where the endpoint has stopped to serve it."""
        assert self.accelerator_spec.remote is not None
        source = self.spec.model.source
        return next((each.name for each in self.accelerator_spec.remote.models if each.source == source), "")

    @cached_property
    def inputs_hash(self) -> str:
        """Hash of everything that asks for other pods when it changes: what only the proxy knows does not."""
        spec = self.accelerator_spec
        inputs = {
            "accelerator": self.accelerator,
            "model": self.model,
            "servedName": self.served_name,
            "url": remote.proxy_url(self.accelerator, self.settings),
            "ca": self.settings.remote.ca,
            "nodeSelector": dict(spec.node_selector),
            "tolerations": [each.to_wire() for each in spec.tolerations],
            "priorityClassName": self.spec.priority_class_name,
        }
        return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:10]

    @property
    def name(self) -> str:
        """Name of the variant's Deployment and ControllerRevision."""
        return f"{name_of(self.deployment)}-{self.inputs_hash}"

    @property
    def labels(self) -> dict[str, str]:
        """Labels of its objects and pods."""
        return pods.labels(
            names.ROLE_SERVE,
            **{names.LABEL_DEPLOYMENT: name_of(self.deployment), names.LABEL_VARIANT: self.inputs_hash},
            **{names.LABEL_ACCELERATOR: self.accelerator},
        )

    def template(self, settings: Settings) -> dict[str, Any]:
        """The pod template."""
        served = pods.literal(self.served_name)
        token_file = f"{names.REMOTE_DIR}/{names.STORE_TOKEN_FILE}"
        variables = {names.ENV_ENGINE_REPORT: names.ENGINE_REPORT_FILE, names.ENV_REMOTE_TOKEN_FILE: token_file}
        if settings.remote.ca:
            variables[names.ENV_REMOTE_CA] = pods.literal(settings.remote.ca)
        token = {
            "audience": names.REMOTE_AUDIENCE, "expirationSeconds": 3600, "path": names.STORE_TOKEN_FILE,
        }  # fmt: skip
        volume = {"name": "remote", "projected": {"defaultMode": 0o440, "sources": [{"serviceAccountToken": token}]}}
        engine = pods.container(
            "engine",
            settings.images.runtime,
            [
                names.LAUNCHER, "engine",
                f"--served-name={served}",
                f"--port={names.SERVE_PORT}",
                f"--report-port={names.REPORT_PORT}",
                f"--ready-timeout={READY_SECONDS}",
                "--hang-timeout=0",
                *startup.launcher_flags(settings),
                "--", "rm-abstract", "relay",
                f"--endpoint={remote.proxy_url(self.accelerator, settings)}",
                f"--model={pods.literal(self.model)}",
                f"--served-name={served}",
                f"--port={names.SERVE_PORT}",
            ],
            settings,
            mounted=[
                *pods.mounts(["bin", "tmp", "report"], read_only=["bin"]),
                {"name": "remote", "mountPath": names.REMOTE_DIR, "readOnly": True},
            ],
            environment=pods.env(variables),
            compute={"requests": {"cpu": "50m", "memory": "96Mi"}},
            **startup.serving_probes(READY_SECONDS),
        )  # fmt: skip
        spec, further = self.accelerator_spec, dict[str, Any](terminationGracePeriodSeconds=startup.GRACE_SECONDS)
        if spec.node_selector:
            further["nodeSelector"] = dict(spec.node_selector)
        if spec.tolerations:
            further["tolerations"] = [toleration.to_wire() for toleration in spec.tolerations]
        if self.spec.priority_class_name is not None:
            further["priorityClassName"] = self.spec.priority_class_name
        return {
            "metadata": {"labels": {**self.labels, names.LABEL_ACTIVE: "true"}},
            "spec": pods.pod_spec(
                init_containers=[pods.install_launcher(settings)],
                containers=[engine],
                pod_volumes=[*pods.volumes(["bin", "tmp", "report"]), volume],
                **further,
            ),
        }
