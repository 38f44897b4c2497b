"""The operator under the chart's roles alone: it takes its Lease, writes states and makes children."""

import asyncio
import json
import ssl
import subprocess
import time
from pathlib import Path

import aiohttp
import pytest
import yaml
from custom_objects import SMALLEST, apply, custom_object
from plugin_pods import Fleet, Reporters
from real_api import ApiServer, eventually
from rm_api.names import LABEL_ROLE, ROLE_PROBE, ROLE_RESOLVE
from rm_local_cluster import existing
from rm_operator import controllers
from rm_operator.app import Operator
from rm_operator.config import Config
from rm_operator.kube.auth import Connection, StaticToken
from rm_operator.kube.errors import NotFound
from rm_operator.kube.http import HttpClient
from rm_operator.kube.resources import (
    ACCELERATOR_RESOURCES,
    BUILD_PROFILES,
    DAEMONSETS,
    DEPLOYMENTS,
    EVENTS,
    JOBS,
    LEASES,
    MODEL_DEPLOYMENTS,
    SERVICES,
)

CHART = Path(__file__).parents[2] / "charts/rm-abstract"
ENDPOINT = {
    "type": "REMOTE", "vendor": "Vendor", "product": "API",
    "remote": {"endpoint": "https://api.example.com/v1", "models": [{"source": "hf://a/b", "name": "b"}]},
}  # fmt: skip
KINDS = {"ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"}


def _token(server: ApiServer, kubeconfig: Path, namespace: str) -> str:
    """A token of the operator's account, with the rights that the chart gives it."""
    kubectl, helm = existing.tools(print)

    def run(*command: str, stdin: str | None = None) -> str:
        return subprocess.run(command, input=stdin, capture_output=True, text=True, check=True).stdout

    chart = run(str(helm), "template", namespace, str(CHART), f"--namespace={namespace}")
    wanted = [obj for obj in yaml.safe_load_all(chart) if obj and obj["kind"] in KINDS]
    on_server = (str(kubectl), "--kubeconfig", str(server.kubeconfig(kubeconfig)), "--namespace", namespace)
    run(*on_server, "apply", "-f", "-", stdin=yaml.safe_dump_all(wanted))
    account = f"--as=system:serviceaccount:{namespace}:{namespace}-operator"
    deadline = time.monotonic() + 60
    # The API server takes up roles and bindings a moment after they are there.
    for right in (("list", "accel"), ("get", "leases.coordination.k8s.io")):
        while subprocess.run([*on_server, "auth", "can-i", "--quiet", *right, account], check=False).returncode:
            assert time.monotonic() < deadline, f"the account may not {' '.join(right)}"
            time.sleep(0.1)
    return run(*on_server, "create", "token", f"{namespace}-operator").strip()


async def test_the_charts_roles_are_enough(
    api_server: ApiServer, client: HttpClient, api_namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet, reporters = Fleet(client, api_namespace), Reporters()
    monkeypatch.setattr(controllers, "Reports", reporters.keep)
    token = _token(api_server, tmp_path / "kubeconfig", api_namespace)
    connection = Connection(api_server.url, ssl.create_default_context(cafile=str(api_server.ca)), StaticToken(token))
    config = Config(
        system_namespace=api_namespace, store="store:5000", runtime_image="r", launcher_image="l", operator_image="o",
        metrics_port=0,
    )  # fmt: skip
    died: list[int] = []
    operator = Operator(config, connection, die=died.append)
    model = await apply(client, custom_object("ModelDeployment", SMALLEST["ModelDeployment"], api_namespace))
    plugin = {**SMALLEST["AcceleratorResource"], "devicePlugin": {"image": "acme/plugin:1", "config": "a: 1"}}
    accelerator = await apply(client, custom_object("AcceleratorResource", plugin, api_namespace))
    probed = {**SMALLEST["BuildProfile"], "versionProbe": {"image": "acme/cc:1", "command": ["cc", "--version"]}}
    recipe = await apply(client, custom_object("BuildProfile", probed, api_namespace))
    endpoint = await apply(client, custom_object("AcceleratorResource", ENDPOINT, api_namespace))
    proxy = f"remote-{endpoint['metadata']['name']}"
    stop = asyncio.Event()
    task = asyncio.create_task(operator.run(stop))
    try:

        async def settled() -> bool:
            jobs = {each["metadata"]["labels"][LABEL_ROLE] for each in (await client.list(JOBS, api_namespace)).items}
            services = (await client.list(SERVICES, api_namespace)).items
            states = [
                await client.get(ACCELERATOR_RESOURCES, None, accelerator["metadata"]["name"]),
                await client.get(MODEL_DEPLOYMENTS, api_namespace, model["metadata"]["name"]),
            ]
            try:
                await client.get(DAEMONSETS, api_namespace, f"device-plugin-{accelerator['metadata']['name']}")
                await client.get(LEASES, api_namespace, "rm-abstract-operator")
                await client.get(DEPLOYMENTS, api_namespace, proxy)
                await client.get(SERVICES, api_namespace, proxy)
            except NotFound:
                return False
            events = (await client.list(EVENTS, api_namespace)).items
            return bool(jobs == {ROLE_RESOLVE, ROLE_PROBE} and services and events) and all(
                state["status"].get("conditions") for state in states
            )

        await eventually(settled, "children, states, events and the Lease are there", 30)
        # What it writes on nodes.
        node = await fleet.node("a")
        sick = {"id": "npu-0", "health": "Unhealthy"}
        await fleet.pod(accelerator["metadata"]["name"], node, await reporters.say(1, sick, driver="1"))
        await fleet.until(node, "True", "npu-0 is not well")
        assert [name for name in await fleet.labels(node) if name.startswith("driver.")]
        processor = {**SMALLEST["AcceleratorResource"], "type": "CPU", "resourceName": None}
        again = custom_object("AcceleratorResource", {k: v for k, v in processor.items() if v}, api_namespace)
        await apply(client, {**again, "metadata": {"name": endpoint["metadata"]["name"]}})

        async def gone() -> bool:
            for resource in (DEPLOYMENTS, SERVICES):
                if proxy in {each["metadata"]["name"] for each in (await client.list(resource, api_namespace)).items}:
                    return False
            return True

        await eventually(gone, "what is no endpoint any more has no proxy", 30)
        async with aiohttp.ClientSession() as session:
            metrics = await (await session.get(f"http://127.0.0.1:{operator.port}/metrics")).text()
        assert [line for line in metrics.splitlines() if 'code="403"' in line] == []
    finally:
        stop.set()
        await asyncio.wait_for(task, 30)
        await client.delete(ACCELERATOR_RESOURCES, None, accelerator["metadata"]["name"])
        await client.delete(ACCELERATOR_RESOURCES, None, endpoint["metadata"]["name"])
        await client.delete(BUILD_PROFILES, None, recipe["metadata"]["name"])
        await reporters.close()
        await fleet.close()
    assert died == [], json.dumps(died)
