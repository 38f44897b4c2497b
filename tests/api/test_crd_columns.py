"""What people and tools see of the four kinds, from statuses that the planners wrote.

`kubectl get`: what, where, ready, and why not. Tools that wait (Flux, Helm, kpt) go by kstatus: done or not, or failed.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from custom_objects import Object, apply, changed, custom_object
from real_api import ApiServer
from rm_api.crd import KindInfo
from rm_api.kinds import (
    ACCELERATOR_RESOURCE,
    BUILD_ARTIFACT,
    BUILD_PROFILE,
    KINDS,
    MODEL_DEPLOYMENT,
    BuildProfileSpec,
)
from rm_operator.kube.http import HttpClient
from rm_operator.kube.resources import of_kind
from rm_operator.plan import accelerator, profile
from rm_operator.plan.accelerator import AcceleratorSnapshot
from rm_operator.plan.device_class import ClassView
from rm_operator.plan.model import to_timestamp
from rm_operator.plan.profile import ProfileSnapshot
from rm_operator.plan.serving_report import ServingReport
from rm_operator.plan.version_probe import recipe_hash

# The cluster in miniature of the planners' tests.
sys.path.append(str(Path(__file__).parents[1] / "unit/plan"))
from chain import SETTINGS, World
from test_device_class import device_class, slice_of

NOW = datetime(2026, 1, 1, tzinfo=UTC)
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"
Row = dict[str, Any]


@dataclass(frozen=True)
class State:
    """A state that objects come into, and what a person sees of it."""

    info: KindInfo
    make: Callable[[], Object]
    """The object with the status that was planned for it."""
    row: Row
    """Cells; those of the message contain what is given."""
    kstatus: str = "InProgress"


def _in_world(info: KindInfo, *steps: Callable[[World], Any]) -> Callable[[], Object]:
    def make() -> Object:
        world = World()
        for step in (*steps, World.settle):
            step(world)
        (obj,) = world.of(info.kind)
        return obj

    return make


def _placed(world: World) -> None:
    world.deploy()
    world.settle()
    world.resolve_model()
    world.settle()


def _fail(world: World) -> None:
    """Twice: once might have been the node."""
    for _ in range(2):
        for job in world.jobs("build"):
            world.finish(job, 70, report={"reason": "ToolchainFailed", "message": "cc: no such operator"})
        world.settle()


def _compiles(world: World) -> None:
    world.expected = 77
    _placed(world)
    (job,) = world.jobs("build")
    world.finish(job)
    del job["status"]
    running = [{"name": "compile", "image": "x", "state": {"running": {}}}]
    pod = world.objects["Pod", f"{job['metadata']['name']}-pod"]
    pod["status"] = {"phase": "Pending", "initContainerStatuses": running}


def _no_model(world: World) -> None:
    world.settle()
    for job in world.jobs("resolve"):
        world.finish(job, 64, report={"reason": "SourceInvalid", "message": "there is no config.json"})


def _say(world: World) -> None:
    (made,) = world.of("BuildArtifact")
    world.said = ServingReport(key=made["spec"]["key"], product="Acme X1", driver="1.2")
    world.settle()


def _nothing_there(world: World) -> None:
    world.accelerators = []


def _accelerator(**changes: Any) -> Callable[[], Object]:
    def make() -> Object:
        obj = custom_object(ACCELERATOR_RESOURCE.kind, changed(ACCELERATOR_RESOURCE.kind, **changes), "")
        found = {**obj, "metadata": {**obj["metadata"], "uid": "u", "generation": 1, "resourceVersion": "1"}}
        devices = {"capacity": {"acme.com/npu": "4"}, "allocatable": {"acme.com/npu": "3"}}
        nodes = [{"metadata": {"name": name, "labels": {}}, "status": devices} for name in ("n1", "n2")]
        wants = {"containers": [{"resources": {"limits": {"acme.com/npu": "1"}}}]}
        pods = [{"metadata": {"name": f"p{number}"}, "spec": {"nodeName": "n1", **wants}} for number in range(5)]
        snapshot = AcceleratorSnapshot(found, nodes, pods, (), (), SETTINGS)
        return {**obj, "status": accelerator.plan(snapshot, NOW).status}

    return make


def _accelerator_by_class() -> Object:
    named = changed(ACCELERATOR_RESOURCE.kind, resourceName=None, deviceClassName="npu.acme.com")
    obj = custom_object(ACCELERATOR_RESOURCE.kind, named, "")
    found = {**obj, "metadata": {**obj["metadata"], "uid": "u", "generation": 1, "resourceVersion": "1"}}
    nodes = [{"metadata": {"name": "n1", "labels": {}}}]
    view = ClassView(
        device_class=device_class("device.driver == 'npu.acme.com'"), slices=[slice_of("0", "1", pool="n1")]
    )
    snapshot = AcceleratorSnapshot(found, nodes, (), (), (), SETTINGS, by_class=view)
    return {**obj, "status": accelerator.plan(snapshot, NOW).status}


def _profile(*, spent: str = "0", **changes: Any) -> Callable[[], Object]:
    def make() -> Object:
        obj = custom_object(BUILD_PROFILE.kind, changed(BUILD_PROFILE.kind, **changes), "")
        found = {**obj, "metadata": {**obj["metadata"], "uid": "u", "generation": 1, "resourceVersion": "1"}}
        snapshot = ProfileSnapshot(found, 7, SETTINGS, spent_seconds=Decimal(spent))
        return {**obj, "status": profile.plan(snapshot, NOW).status}

    return make


def _probed_profile() -> Object:
    obj = custom_object(BUILD_PROFILE.kind, changed(BUILD_PROFILE.kind, **PROBED), "")
    spec = BuildProfileSpec.model_validate(obj["spec"])
    answer = {"recipe": recipe_hash(spec), "generation": 1, "again": "", "time": to_timestamp(NOW)}
    status = {"versions": {"toolchain": "7.1"}, "images": [], "probed": answer}
    metadata = {**obj["metadata"], "uid": "u", "generation": 1, "resourceVersion": "1"}
    found = {**obj, "metadata": metadata, "status": status}
    return {**obj, "status": profile.plan(ProfileSnapshot(found, 7, SETTINGS), NOW).status}


MODEL = {"Model": "oci://registry/model:1", "Policy": "Latency"}
PLACED = MODEL | {"Accelerator": "npu"}
SERVES = {"URL": "http://hello.ns.svc.cluster.local/v1"}
HARDWARE = {"Type": "NPU", "Product": "X1", "Vendor": "Acme", "Resource": "acme.com/npu"}
RECIPE = {"Target": "NPU", "Vendor": "Acme", "Interface": "CLI", "Format": "acme", "Products": '["X1","X2"]'}
PROBED = {"target__products": ["X1", "X2"], "versionProbe": {"image": "acme/cc:1", "command": ["cc", "--version"]}}
BUILD = {"Model": "oci://registry/model:1", "Target": "NPU", "Profile": "acme", "Users": 1}
STATES = {
    "a model that is read": State(
        MODEL_DEPLOYMENT, _in_world(MODEL_DEPLOYMENT, World.deploy),
        MODEL | {"Accelerator": None, "Ready": "False", "Reason": "Resolving", "Available": 0, "Replicas": 0,
                 "Message": "reading oci://registry/model:1"},
    ),
    "a model that is none": State(
        MODEL_DEPLOYMENT, _in_world(MODEL_DEPLOYMENT, World.deploy, _no_model),
        MODEL | {"Accelerator": None, "Ready": "False", "Reason": "SourceInvalid", "Message": "no config.json"},
        "Failed",
    ),
    "a model that nothing can take": State(
        MODEL_DEPLOYMENT, _in_world(MODEL_DEPLOYMENT, _nothing_there, _placed),
        MODEL | {"Accelerator": None, "Ready": "False", "Reason": "NoAccelerator", "Message": "create one"},
    ),
    "a model that is compiled": State(
        MODEL_DEPLOYMENT, _in_world(MODEL_DEPLOYMENT, _placed),
        PLACED | {"Ready": "False", "Reason": "Building", "Message": "attempt 1"},
    ),
    "a model that does not compile": State(
        MODEL_DEPLOYMENT, _in_world(MODEL_DEPLOYMENT, _placed, _fail),
        PLACED | {"Ready": "False", "Reason": "ToolchainFailed", "Message": "cc: no such operator"}, "Failed",
    ),
    "a model that starts": State(
        MODEL_DEPLOYMENT, _in_world(MODEL_DEPLOYMENT, _placed, World.build),
        PLACED | SERVES | {"Ready": "False", "Reason": "Starting", "Message": "0 of 1 pods ready"},
    ),
    "a model that is served": State(
        MODEL_DEPLOYMENT, _in_world(MODEL_DEPLOYMENT, World.serve),
        PLACED | SERVES | {"Ready": "True", "Reason": "Ready", "Available": 1, "Replicas": 1, "Message": "serving at"},
        "Current",
    ),
    "a model that is suspended": State(
        MODEL_DEPLOYMENT, _in_world(MODEL_DEPLOYMENT, World.serve, lambda world: world.deploy(suspend=True)),
        PLACED | {"Ready": "False", "Reason": "Suspended", "Message": "set spec.suspend to false"},
    ),
    "a build that goes on": State(
        BUILD_ARTIFACT, _in_world(BUILD_ARTIFACT, _compiles),
        BUILD | {"Ready": "False", "Reason": "Building", "Attempts": 1, "Size": None, "Message": "attempt 1",
                 "Stage": "compile", "Expected": 77},
    ),
    "a build that failed": State(
        BUILD_ARTIFACT, _in_world(BUILD_ARTIFACT, _placed, _fail),
        BUILD | {"Ready": "False", "Reason": "ToolchainFailed", "Attempts": 2, "Message": "cc: no such operator"},
        "Failed",
    ),
    "an artifact": State(
        BUILD_ARTIFACT, _in_world(BUILD_ARTIFACT, World.serve, _say),
        BUILD | {"Ready": "True", "Reason": "Ready", "Attempts": 1, "Size": 123, "Message": "built",
                 "Verified": "Acme X1"},
        "Current",
    ),
    "an accelerator": State(
        ACCELERATOR_RESOURCE, _accelerator(),
        HARDWARE | {"Ready": "True", "Reason": "Ready", "Nodes": 2, "Devices": 8, "Healthy": 6, "Allocated": 5,
                    "Message": "models can be placed on it"},
        "Current",
    ),
    "an accelerator by class": State(
        ACCELERATOR_RESOURCE, _accelerator_by_class,
        HARDWARE | {"Resource": None, "Class": "npu.acme.com", "Ready": "True", "Reason": "Ready", "Nodes": 1,
                    "Devices": 2, "Healthy": 2, "Allocated": 0},
        "Current",
    ),
    "an accelerator that no node has": State(
        ACCELERATOR_RESOURCE, _accelerator(resourceName="acme.com/other"),
        HARDWARE | {"Resource": "acme.com/other", "Ready": "False", "Reason": "NoDevices", "Nodes": 0, "Devices": 0,
                    "Message": "acme.com/other"},
    ),
    "a profile": State(
        BUILD_PROFILE, _profile(target__products=["X1", "X2"], spent="5460"),
        RECIPE | {"Ready": "True", "Reason": "Accepted", "Artifacts": 7, "Minutes": "91.0", "Toolchain": None},
        "Current",
    ),
    "a profile whose toolchain is known": State(
        BUILD_PROFILE, _probed_profile,
        RECIPE | {"Ready": "True", "Reason": "Accepted", "Toolchain": '{"toolchain":"7.1"}', "Message": "can be used"},
        "Current",
    ),
    "a profile whose toolchain is probed": State(
        BUILD_PROFILE, _profile(**PROBED),
        RECIPE | {"Ready": "False", "Reason": "Probing", "Toolchain": None, "Message": "is being probed"},
    ),
    "a profile that cannot be used": State(
        BUILD_PROFILE, _profile(target__products=["X1", "X2"], steps__0__name="push"),
        RECIPE | {"Ready": "False", "Reason": "InvalidSpec", "Message": "choose another"}, "Failed",
    ),
}  # fmt: skip


async def _shown(server: ApiServer, client: HttpClient, state: State, namespace: str) -> Row:
    """The object's cells by column, as the API server gives them to kubectl."""
    obj = state.make()
    resource = of_kind(state.info)
    metadata = {"name": obj["metadata"]["name"]} | ({"namespace": namespace} if state.info.namespaced else {})
    stored = await apply(client, {**obj, "metadata": metadata, "status": {}})
    await client.apply_status(resource, stored, obj["status"])
    connection = server.connection()
    url = connection.server + resource.path(namespace if state.info.namespaced else None, metadata["name"])
    headers = {"Accept": TABLE, "Authorization": f"Bearer {await connection.credentials.token()}"}
    async with aiohttp.ClientSession() as session, session.get(url, headers=headers, ssl=connection.tls) as answer:
        table = await answer.json()
    assert table["kind"] == "Table"
    (row,) = table["rows"]
    return dict(zip([column["name"] for column in table["columnDefinitions"]], row["cells"], strict=True))


@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
async def test_what_a_person_sees(api_server: ApiServer, client: HttpClient, api_namespace: str, state: State) -> None:
    shown = await _shown(api_server, client, state, api_namespace)
    assert list(shown) == ["Name", *(column.name for column in state.info.columns)]
    message = state.row.get("Message", "")
    assert {name: shown[name] for name in state.row if name != "Message"} == {
        name: cell for name, cell in state.row.items() if name != "Message"
    }
    assert message in shown["Message"]
    assert (shown["Message"] or "").strip(), "ready or not, it is said why"


@pytest.mark.parametrize("info", KINDS, ids=lambda info: info.kind)
async def test_every_column_has_something_to_show(
    api_server: ApiServer, client: HttpClient, api_namespace: str, info: KindInfo
) -> None:
    """In states in which all is well: no column reads a place that nothing is ever written to."""
    of_kind_ = [state for state in STATES.values() if state.info is info]
    well = [state for state in of_kind_ if state.row["Ready"] == "True" or state.row["Reason"] == "Building"]
    filled: set[str] = set()
    for state in well:
        shown = await _shown(api_server, client, state, api_namespace)
        filled |= {name for name, cell in shown.items() if cell not in (None, "")}
    assert {column.name for column in info.columns} <= filled
    # What comes first without -o wide.
    assert {"Ready", "Reason"} <= {column.name for column in info.columns if not column.priority}


def kstatus(obj: Object) -> str:
    """What the kstatus library says of an object of a kind that it does not know."""
    status = obj.get("status", {})
    conditions = {entry["type"]: entry["status"] for entry in status.get("conditions", ())}
    if "deletionTimestamp" in obj["metadata"]:
        return "Terminating"
    if status.get("observedGeneration", obj["metadata"]["generation"]) != obj["metadata"]["generation"]:
        return "InProgress"
    if conditions.get("Reconciling") == "True":
        return "InProgress"
    if conditions.get("Stalled") == "True":
        return "Failed"
    return "Current" if conditions.get("Ready", "True") == "True" else "InProgress"


@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
def test_what_a_tool_that_waits_sees(state: State) -> None:
    obj = state.make()
    assert kstatus({**obj, "metadata": {"generation": 1, **obj["metadata"]}}) == state.kstatus


@pytest.mark.parametrize("info", KINDS, ids=lambda info: info.kind)
async def test_nothing_is_done_before_the_operator_has_looked(
    client: HttpClient, api_namespace: str, info: KindInfo
) -> None:
    resource = of_kind(info)
    obj = await apply(client, custom_object(info.kind, changed(info.kind), api_namespace))
    assert kstatus(obj) == "InProgress"
    well = next(state for state in STATES.values() if state.info is info and state.kstatus == "Current")
    obj = await client.apply_status(resource, obj, well.make()["status"])
    assert kstatus(obj) == "Current"
    if info is not BUILD_ARTIFACT:
        changes = {"suspend": True} if info is MODEL_DEPLOYMENT else {"priority": 7}
        after = custom_object(info.kind, changed(info.kind, **changes), api_namespace, obj["metadata"]["name"])
        assert kstatus(await apply(client, after)) == "InProgress"
