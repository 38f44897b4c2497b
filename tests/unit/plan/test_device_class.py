"""Devices that are requested by class: what a class selects, what is counted, and what is said where nothing can be."""

from datetime import UTC, datetime
from typing import Any

import pytest
from chain import NPU, SETTINGS
from rm_api.conditions import Reason
from rm_api.kinds import AcceleratorResourceSpec
from rm_operator.kube.documents import Document, encode
from rm_operator.kube.trim_devices import trim_claim, trim_slice
from rm_operator.plan import accelerator
from rm_operator.plan.device_children import device_children
from rm_operator.plan.device_class import (
    ClassView,
    NotUnderstood,
    Selection,
    count,
    requested_resource,
    selection_of,
)
from rm_operator.plan.ownership import Surroundings, examine
from rm_operator.plan.placement.observed import observe
from rm_operator.plan.trouble import trouble

Object = dict[str, Any]
NOW = datetime(2026, 1, 1, tzinfo=UTC)
NODES: list[Object] = [{"metadata": {"name": name, "labels": {}}} for name in ("a", "b", "c")]


def device_class(*expressions: str, **spec: Any) -> Object:
    """A DeviceClass with these selectors."""
    selectors = [{"cel": {"expression": expression}} for expression in expressions]
    return {"metadata": {"name": "npu"}, "spec": {"selectors": selectors, **spec}}


def slice_of(
    *devices: str | Object,
    driver: str = "npu.acme.com",
    pool: str = "a",
    generation: int = 1,
    slices: int = 1,
    **spec: Any,
) -> Any:
    """A ResourceSlice as it is kept; a device is its name, or what is written of it."""
    written = [{"name": each} if isinstance(each, str) else each for each in devices]
    where = {} if spec else {"nodeName": pool}
    pooled = {"name": pool, "generation": generation, "resourceSliceCount": slices}
    body = {"driver": driver, "pool": pooled, "devices": written, **where, **spec}
    metadata = {"name": f"{pool}-{generation}", "uid": "u", "resourceVersion": "1"}
    return trim_slice(Document.of(encode({"metadata": metadata, "spec": body})))


def claim_on(*devices: str, pool: str = "a", driver: str = "npu.acme.com", **result: Any) -> Any:
    """A ResourceClaim that has devices, as it is kept."""
    results = [{"request": "r", "driver": driver, "pool": pool, "device": device, **result} for device in devices]
    metadata = {"namespace": "ns", "name": "c", "uid": "u", "resourceVersion": "1"}
    status = {"allocation": {"devices": {"results": results}}}
    return trim_claim(Document.of(encode({"metadata": metadata, "spec": {}, "status": status})))


ANY = device_class("device.driver == 'npu.acme.com'")


@pytest.mark.parametrize(
    ("spec", "resource"),
    [
        ({}, "acme.com/npu"),
        ({"resource_name": None}, None),
        (
            {"resource_name": None, "device_class_name": "npu.acme.com"},
            "deviceclass.resource.kubernetes.io/npu.acme.com",
        ),
    ],
)
def test_what_pods_request(spec: Object, resource: str | None) -> None:
    assert requested_resource(NPU.model_copy(update=spec)) == resource


@pytest.mark.parametrize(
    ("expressions", "drivers", "attributes"),
    [
        ([], set(), set()),
        (["device.driver == 'npu.acme.com'"], {"npu.acme.com"}, set()),
        (['device.driver=="npu.acme.com"'], {"npu.acme.com"}, set()),
        (
            ['device.driver == "gpu.nvidia.com" && device.attributes["gpu.nvidia.com"].type == "gpu"'],
            {"gpu.nvidia.com"}, {("gpu.nvidia.com/type", "gpu")},
        ),
        (
            ["(device.driver == 'x')", "device.attributes['x'].cores == 8 && (device.attributes['y']['ecc'] == true)"],
            {"x"}, {("x/cores", 8), ("y/ecc", True)},
        ),
        (["device.attributes['x'].offset == -1\n  && device.attributes['x'].on == false"], set(),
         {("x/offset", -1), ("x/on", False)}),
    ],
)  # fmt: skip
def test_what_a_class_selects_by(expressions: list[str], drivers: set[str], attributes: set[Any]) -> None:
    assert selection_of(device_class(*expressions)) == Selection(frozenset(drivers), frozenset(attributes))


@pytest.mark.parametrize(
    "expression",
    [
        "device.driver == 'x' || device.driver == 'y'",
        "(device.driver == 'x') || (device.driver == 'y')",
        "!(device.driver == 'x')",
        "device.driver != 'x'",
        "device.driver.startsWith('x')",
        "'x' in device.attributes",
        "device.driver == 'x' && device.capacity['x'].memory.compareTo(quantity('40Gi')) >= 0",
        "device.attributes['x'].model.matches('^a')",
        "device.attributes['x'].uuid == 'GPU-1'",
        "device.attributes['x'].cores == 8.5",
        "device.driver == 'a && b'",
        "(device.driver == 'x' && device.attributes['x'].on) == true",
        "",
    ],
)
def test_what_is_not_understood_is_not_guessed_at(expression: str) -> None:
    with pytest.raises(NotUnderstood):
        selection_of(device_class(expression))
    view = ClassView(device_class=device_class("device.driver == 'x'", expression), slices=[slice_of("d")])
    found = count("npu", view, NODES)
    assert found.uncounted
    assert (found.total, found.missing) == (0, "")


ATTRIBUTES = {"model": {"string": "X1"}, "acme.com/rev": {"int": 2}, "ecc": {"bool": True}, "v": {"version": "1.0.0"}}


@pytest.mark.parametrize(
    ("expression", "admitted"),
    [
        ("device.attributes['npu.acme.com'].model == 'X1'", True),
        ("device.attributes['npu.acme.com'].model == 'X2'", False),
        ("device.attributes['acme.com'].rev == 2", True),
        ("device.attributes['npu.acme.com'].rev == 2", False),
        ("device.attributes['npu.acme.com'].ecc == true", True),
        ("device.attributes['npu.acme.com'].ecc == 1", False),
        ("device.attributes['acme.com'].rev == true", False),
        ("device.attributes['npu.acme.com'].missing == 'x'", False),
        ("device.attributes['npu.acme.com'].v == '1.0.0'", False),
        ("device.driver == 'npu.acme.com'", True),
        ("device.driver == 'other'", False),
        ("device.driver == 'other' && device.driver == 'npu.acme.com'", False),
    ],
)
def test_which_devices_a_class_has(expression: str, admitted: bool) -> None:
    view = ClassView(device_class=device_class(expression), slices=[slice_of({"name": "d", "attributes": ATTRIBUTES})])
    assert count("npu", view, NODES).total == int(admitted)


TAINT = {"key": "npu.acme.com/unhealthy", "effect": "NoSchedule"}


@pytest.mark.parametrize(
    ("slices", "claims", "counts", "nodes"),
    [
        ([], [], (0, 0, 0), ""),
        ([slice_of("0", "1")], [], (2, 2, 0), "a"),
        ([slice_of("0", "1"), slice_of("0", pool="b")], [claim_on("0")], (3, 3, 1), "ab"),
        # Nodes of others.
        ([slice_of("0", pool="z"), slice_of("0")], [claim_on("0", pool="z")], (1, 1, 0), "a"),
        # Sick ones are there, and cannot be had.
        ([slice_of("0", {"name": "1", "taints": [TAINT]})], [claim_on("1")], (2, 1, 1), "a"),
        ([slice_of({"name": "0", "taints": [{**TAINT, "effect": "NoExecute"}]})], [], (1, 0, 0), "a"),
        ([slice_of({"name": "0", "taints": [{**TAINT, "effect": "None"}]})], [], (1, 1, 0), "a"),
        # An older generation of a pool is no more; one that is not complete cannot be allocated from.
        ([slice_of("0", "1"), slice_of("0", generation=2)], [], (1, 1, 0), "a"),
        ([slice_of("0", slices=2)], [], (1, 0, 0), "a"),
        ([slice_of("0", slices=2), slice_of("1", slices=2)], [], (2, 2, 0), "a"),
        # One device that several have, or look at, is one device.
        ([slice_of("0", "1")], [claim_on("0"), claim_on("0")], (2, 2, 1), "a"),
        # Those that belong to no single node are there for all, those that say themselves where they are for one.
        ([slice_of("0", allNodes=True)], [], (1, 1, 0), ""),
        ([slice_of({"name": "0", "nodeName": "b"}, {"name": "1", "nodeName": "z"}, perDeviceNodeSelection=True)], [],
         (1, 1, 0), "b"),
        ([slice_of("0", driver="other")], [], (0, 0, 0), ""),
    ],
)  # fmt: skip
def test_devices_are_counted_from_slices_and_claims(
    slices: list[Object], claims: list[Object], counts: tuple[int, int, int], nodes: str
) -> None:
    found = count("npu", ClassView(device_class=ANY, slices=slices, claims=claims), NODES)
    assert (found.total, found.healthy, found.allocated) == counts
    assert "".join(node["metadata"]["name"] for node in found.nodes) == nodes
    assert (found.missing, found.uncounted) == ("", "")


def test_devices_that_exclude_one_another_are_not_counted() -> None:
    partition = {"name": "0", "consumesCounters": [{"counterSet": "c", "counters": {"m": {"value": "1"}}}]}
    found = count("npu", ClassView(device_class=ANY, slices=[slice_of("1", partition)]), NODES)
    assert (found.total, bool(found.uncounted)) == (0, True)


def test_who_administers_a_device_takes_it_from_nobody() -> None:
    assert claim_on("0", adminAccess=True).name == "DROPPED"


def test_alike_devices_share_what_is_kept_of_them() -> None:
    kept = slice_of(*({"name": f"d{n}", "attributes": {**ATTRIBUTES, "uuid": {"string": f"u{n}"}}} for n in range(3)))
    first, *others = [device["attributes"] for device in kept["spec"]["devices"]]
    assert all(each is first for each in others)
    assert first == {"npu.acme.com/model": "X1", "acme.com/rev": 2, "npu.acme.com/ecc": True}


def planned(view: ClassView, **spec: Any) -> accelerator.Plan:
    """The plan for a kind by class."""
    written = {**NPU.to_wire(), "resourceName": None, "deviceClassName": "npu", **spec}
    metadata = {"name": "npu", "uid": "u", "generation": 1}
    obj: Object = {"apiVersion": "v", "kind": "AcceleratorResource", "metadata": metadata, "spec": written}
    return accelerator.plan(
        accelerator.AcceleratorSnapshot(
            accelerator=obj, nodes=NODES, requesting=[], plugin_pods=[], children=[], settings=SETTINGS, by_class=view
        ),
        NOW,
    )


@pytest.mark.parametrize(
    ("view", "spec", "said"),
    [
        (ClassView(device_class=ANY, slices=[slice_of("0", "1")]), {}, ("True", "Advertised", "2 of 2 deviceclass")),
        (ClassView(device_class=ANY), {}, ("False", "NoDevices", "install the vendor's DRA driver")),
        (ClassView(), {}, ("False", "NoDevices", "there is no DeviceClass npu; install")),
        (ClassView(unserved="the API server is 1.33"), {}, ("False", "NoDevices", "needs Kubernetes 1.36, and")),
        (
            ClassView(unserved="the API server is 1.33"), {"devicePlugin": {"image": "i"}},
            ("False", "NoDevices", "needs Kubernetes 1.36, and the API server is 1.33"),
        ),
        (ClassView(device_class=device_class("true")), {}, ("True", "NotCounted", "not counted")),
    ],
)  # fmt: skip
def test_what_the_status_says(view: ClassView, spec: Object, said: tuple[str, str, str]) -> None:
    made = planned(view, **spec)
    assert made.status is not None
    advertised = next(each for each in made.status["conditions"] if each["type"] == "DevicesAdvertised")
    assert (advertised["status"], advertised["reason"]) == said[:2]
    assert said[2] in advertised["message"]


def test_where_classes_are_not_served_nothing_is_made() -> None:
    plugin = {"devicePlugin": {"image": "i"}}
    assert planned(ClassView(unserved="it is old"), **plugin).apply == ()
    assert {child["kind"] for child in planned(ClassView(), **plugin).apply} == {"DaemonSet", "DeviceClass"}


def test_what_cannot_be_counted_is_placed_on_without_a_limit() -> None:
    spec = AcceleratorResourceSpec.model_validate({**NPU.to_wire(), "resourceName": None, "deviceClassName": "npu"})
    for expression, healthy in (("true", None), ("device.driver == 'npu.acme.com'", 1)):
        made = planned(ClassView(device_class=device_class(expression), slices=[slice_of("0")]))
        assert made.status is not None
        seen = observe(spec, made.status)
        assert (seen.ready, seen.healthy, seen.most) == (True, healthy, healthy)


def test_the_class_is_its_drivers_and_the_driver_is_the_kinds() -> None:
    plugin = {"image": "i", "args": ["--vendor=acme"], "extendedResourceName": "acme.com/npu", "hostPaths": ["/x"]}
    accelerators = {"metadata": {"name": "npu", "uid": "u"}, "spec": {}, "apiVersion": "v", "kind": "k"}
    spec = AcceleratorResourceSpec.model_validate(
        {**NPU.to_wire(), "resourceName": None, "deviceClassName": "npu.acme.com", "devicePlugin": plugin}
    )
    made = {child["kind"]: child for child in device_children(accelerators, spec, SETTINGS)}
    found = made["DeviceClass"]
    assert found["metadata"]["name"] == "npu.acme.com"
    assert "namespace" not in found["metadata"]
    assert found["spec"]["extendedResourceName"] == "acme.com/npu"
    pod = made["DaemonSet"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    env = {each["name"]: each.get("value") for each in container["env"]}
    assert selection_of(found) == Selection(frozenset({env["RMA_DRA_DRIVER"]}), frozenset())
    assert "RMA_RESOURCE_NAME" not in env
    assert container["args"] == ["--dra", "--vendor=acme"]
    assert (pod["automountServiceAccountToken"], pod["serviceAccountName"]) == (True, SETTINGS.driver_service_account)
    assert {volume["hostPath"]["path"] for volume in pod["volumes"]} == {
        "/var/lib/kubelet/plugins_registry", f"/var/lib/kubelet/plugins/{env['RMA_DRA_DRIVER']}", "/var/run/cdi", "/x",
        "/var/lib/kubelet/pod-resources",
    }  # fmt: skip


def test_a_driver_of_a_vendor_is_run_as_its_command_says() -> None:
    spec = AcceleratorResourceSpec.model_validate(
        {
            **NPU.to_wire(), "resourceName": None, "deviceClassName": "x",
            "devicePlugin": {"image": "i", "command": ["/driver"], "args": ["-v"]},
        }
    )  # fmt: skip
    obj = {"metadata": {"name": "npu", "uid": "u"}, "spec": {}, "apiVersion": "v", "kind": "k"}
    daemonset = device_children(obj, spec, SETTINGS)[-1]
    (container,) = daemonset["spec"]["template"]["spec"]["containers"]
    assert (container["command"], container["args"]) == (["/driver"], ["-v"])


@pytest.mark.parametrize("length", [1, 45, 46, 63])
def test_names_of_drivers_fit_and_differ(length: int) -> None:
    spec = AcceleratorResourceSpec.model_validate(
        {**NPU.to_wire(), "resourceName": None, "deviceClassName": "x", "devicePlugin": {"image": "i"}}
    )
    drivers = set()
    for last in "ab":
        obj = {"metadata": {"name": "n" * (length - 1) + last, "uid": "u"}, "spec": {}, "apiVersion": "v", "kind": "k"}
        found = {child["kind"]: child for child in device_children(obj, spec, SETTINGS)}["DeviceClass"]
        drivers |= selection_of(found).drivers
    assert len(drivers) == 2
    assert all(len(each) <= 60 for each in drivers)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("0/3 nodes are available: 3 cannot allocate all claims. no new claims to deallocate.", "NoDevice"),
        ("0/1 nodes are available: 1 Insufficient deviceclass.resource.kubernetes.io/npu.", "NoDevice"),
        ("0/1 nodes are available: 1 Insufficient memory.", "Unschedulable"),
    ],
)
def test_the_scheduler_says_that_no_device_is_free_in_its_own_way(message: str, reason: str) -> None:
    said = {"type": "PodScheduled", "status": "False", "message": message}
    pod = {"metadata": {"name": "p"}, "status": {"conditions": [said]}}
    assert trouble([pod], "deviceclass.resource.kubernetes.io/npu").reason == reason


@pytest.mark.parametrize(
    ("advertised", "by_class", "begun", "lost", "kept_off"),
    [
        ("", "", "", "", ""),
        ("a", "", "", "a", "a"),
        ("a", "", "b", "a", "a"),
        # It runs already: it is told, and nothing is taken from those who have devices of it.
        ("a", "ab", "ab", "a", ""),
        ("", "ab", "", "", ""),
        ("c", "ab", "ab", "c", "c"),
    ],
    ids=["alone", "first", "elsewhere", "later", "its-daemonset-was-deleted", "on-another-node"],
)
def test_a_driver_is_not_rolled_out_where_a_device_plugin_has_the_name(
    advertised: str, by_class: str, begun: str, lost: str, kept_off: str
) -> None:
    plugin = {"image": "i", "extendedResourceName": "acme.com/npu"}
    written = {**NPU.to_wire(), "resourceName": None, "deviceClassName": "npu", "devicePlugin": plugin}
    nodes: list[Object] = [
        {
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": f"host-{name}"}},
            "status": {"allocatable": {"acme.com/npu": "4"} if name in advertised else {}},
        }
        for name in "abc"
    ]
    around = Surroundings(ours=set(begun), by_class=set(by_class), extended="acme.com/npu" if by_class else "")
    obj: Object = {"metadata": {"name": "npu", "uid": "u"}, "spec": written}
    found = examine(obj, AcceleratorResourceSpec.model_validate(written), nodes, around)
    assert (found.lost, found.keep_off) == (set(lost), {f"host-{name}" for name in kept_off})
    assert found.reason == (Reason.RESOURCE_NAME_CONFLICT if lost else None)
    assert not lost or "acme.com/npu" in found.message
