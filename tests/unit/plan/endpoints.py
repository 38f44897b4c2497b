"""An endpoint outside the cluster, for tests of the planners."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from chain import SETTINGS
from rm_api import names
from rm_api.kinds import AcceleratorResourceSpec
from rm_operator.plan import accelerator
from rm_operator.plan.model import Plan
from rm_operator.plan.placement import AcceleratorView

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SPEC: dict[str, Any] = {
    "type": "REMOTE",
    "vendor": "Vendor",
    "product": "API",
    "remote": {
        "endpoint": "https://api.example.com/v1",
        "models": [{"source": "oci://registry/model:1", "name": "large-1"}],
        "credentialsSecretRef": "vendor-key",
        "maxConcurrency": 64,
    },
    "allowedNamespaces": ["ns"],
}


def endpoint_spec(**members: Any) -> AcceleratorResourceSpec:
    return AcceleratorResourceSpec.model_validate(SPEC | members)


def endpoint_view(name: str = "vendor", **members: Any) -> AcceleratorView:
    return AcceleratorView(name, endpoint_spec(**members))


def endpoint_plan(its_pods: Sequence[dict[str, Any]], **members: Any) -> Plan:
    obj = {
        "apiVersion": names.API_VERSION, "kind": "AcceleratorResource",
        "metadata": {"name": "vendor", "uid": "u", "generation": 1, "resourceVersion": "1"}, "spec": SPEC | members,
    }  # fmt: skip
    return accelerator.plan(accelerator.AcceleratorSnapshot(obj, [], [], its_pods, [], SETTINGS), NOW)
