"""The chart's monitor finds the pods that the operator makes, by their labels and their port."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from rm_api import names
from rm_local_cluster import existing
from rm_operator.plan import pods

CHART = Path(__file__).resolve().parents[2] / "charts/rm-abstract"


def monitors(**values: Any) -> list[dict[str, Any]]:
    _, helm = existing.tools(print)
    command = [str(helm), "template", "rma", str(CHART), "--namespace=system", "--values=-"]
    done = subprocess.run(
        command, input=json.dumps({"serving": {"podMonitor": values}}), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ValueError(done.stderr)
    return [obj for obj in yaml.safe_load_all(done.stdout) if obj and obj["kind"] == "PodMonitor"]


def test_a_cluster_without_the_prometheus_operator_gets_none() -> None:
    assert monitors() == []


def test_the_monitor_finds_serving_pods() -> None:
    (monitor,) = monitors(enabled=True, labels={"release": "prometheus"}, interval="15s")
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    wanted = monitor["spec"]["selector"]["matchLabels"]
    assert wanted.items() <= pods.labels(names.ROLE_SERVE).items()
    assert not wanted.items() <= pods.labels(names.ROLE_BUILD).items()
    assert monitor["spec"]["namespaceSelector"] == {"any": True}
    assert monitor["spec"]["podMetricsEndpoints"] == [{"port": "report", "path": "/metrics", "interval": "15s"}]
    assert set(monitor["spec"]["podTargetLabels"]) == {names.LABEL_DEPLOYMENT, names.LABEL_ACCELERATOR}


@pytest.mark.parametrize("values", [{"interval": "often"}, {"enabled": "yes"}, {"labels": {"a": 1}}, {"other": 1}])
def test_values_that_are_none(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="serving"):
        monitors(**values)
