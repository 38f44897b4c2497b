"""The ledger of devices that are requested by class: claims of others, pods that wait, and names that devices share."""

from collections.abc import Iterable
from typing import Any

import pytest
from fleet_cluster import Cluster
from rm_api import names
from rm_operator.kube.resources import DEVICE_CLASSES, PODS, RESOURCE_CLAIMS, RESOURCE_SLICES

Object = dict[str, Any]
DRIVER = "npu.acme.com"
IMPLIED = "deviceclass.resource.kubernetes.io/npu"


class ByClass(Cluster):
    """Devices of the class ``npu``, which is known as ``acme.com/npu``, too."""

    def kind(self, name: str = "npu", *, healthy: int, **spec: Any) -> None:
        """A kind whose devices are requested by class."""
        self.accelerator(name, healthy, resourceName=None, **{"deviceClassName": "npu", **spec})

    def device_class(self, name: str = "npu", expression: str = f"device.driver == '{DRIVER}'", **spec: Any) -> None:
        """A DeviceClass."""
        self.put("DeviceClass", name, {"selectors": [{"cel": {"expression": expression}}], **spec})

    def slice(self, node: str, *devices: str) -> None:
        """The devices of a node."""
        pool = {"name": node, "generation": 1, "resourceSliceCount": 1}
        written = [{"name": each} for each in devices]
        self.put("ResourceSlice", node, {"driver": DRIVER, "pool": pool, "nodeName": node, "devices": written})

    def claim(self, name: str, devices: Iterable[str], pod: str | None = None) -> None:
        """A claim that has devices, written ``node/device``, for a pod that it was made for, or for whoever."""
        results = [
            {"request": "r", "driver": DRIVER, "pool": each.partition("/")[0], "device": each.partition("/")[2]}
            for each in devices
        ]
        owners = [{"kind": "Pod", "name": pod, "uid": f"Pod-{pod}"}] if pod else []
        status = {"allocation": {"devices": {"results": results}}} if results else {}
        self.put("ResourceClaim", name, {}, status, namespace="ns", ownerReferences=owners)

    def asking(
        self, name: str, resource: str, deployment: str | None = None, *, node: str = "", phase: str = ""
    ) -> None:
        """A pod that requests one device by a name: a deployment's on the kind npu, or somebody else's."""
        label = {names.LABEL_DEPLOYMENT: deployment, names.LABEL_ACCELERATOR: "npu"} if deployment else {}
        container = {"name": "c", "resources": {"limits": {resource: "1"}}}
        spec = {"containers": [container], **({"nodeName": node} if node else {})}
        self.put("Pod", name, spec, {"phase": phase}, namespace="ns", labels=label)


@pytest.fixture
def cluster() -> ByClass:
    """Four devices on two nodes."""
    found = ByClass()
    found.device_class()
    found.kind(healthy=4)
    found.slice("a", "0", "1")
    found.slice("b", "0", "1")
    return found


def test_what_claims_of_others_hold_is_not_free(cluster: ByClass) -> None:
    assert cluster.free("npu") == 4
    cluster.claim("one", ["a/0"])
    cluster.claim("two", ["b/0", "b/1"])
    assert cluster.free("npu") == 1
    cluster.claim("two", [])
    assert cluster.free("npu") == 3
    cluster.stores[RESOURCE_CLAIMS].remove("ns", "one")
    assert cluster.free("npu") == 4


def test_what_is_not_of_the_class_does_not_count(cluster: ByClass) -> None:
    cluster.claim("elsewhere", ["z/0", "a/7"])
    assert cluster.free("npu") == 4


def test_a_claim_of_another_class_takes_the_same_device(cluster: ByClass) -> None:
    cluster.device_class("any", "device.driver == 'other'")
    cluster.accelerator("any", 1, resourceName=None, deviceClassName="any")
    cluster.claim("one", ["a/0"])
    assert (cluster.free("npu"), cluster.free("any")) == (3, 1)
    cluster.device_class("any", f"device.driver == '{DRIVER}'")
    assert (cluster.free("npu"), cluster.free("any")) == (3, 0)
    cluster.stores[DEVICE_CLASSES].remove(None, "any")
    assert (cluster.free("npu"), cluster.free("any")) == (3, 1)


def test_in_whatever_order_it_is_told(cluster: ByClass) -> None:
    early = ByClass()
    early.claim("one", ["a/0"])
    early.slice("a", "0")
    early.device_class()
    early.kind(healthy=4)
    assert early.free("npu") == 3
    early.restart()
    assert early.free("npu") == 3
    early.stores[RESOURCE_SLICES].remove(None, "a")
    assert early.free("npu") == 4


def test_our_pods_count_once(cluster: ByClass) -> None:
    cluster.deploy("d")
    assert cluster.place("d") == "npu"
    assert cluster.free("npu") == 3, "promised"
    cluster.asking("p", IMPLIED, "d")
    cluster.claim("c", ["a/0"], pod="p")
    cluster.asking("p", IMPLIED, "d", node="a", phase="Running")
    assert cluster.free("npu") == 3


def test_a_claim_that_comes_before_its_pod_is_known_as_its(cluster: ByClass) -> None:
    cluster.claim("c", ["a/0"], pod="p")
    assert cluster.free("npu") == 3
    cluster.asking("p", IMPLIED, "d", node="a")
    assert cluster.free("npu") == 3, "the pod's"
    cluster.end("p")
    assert cluster.free("npu") == 3, "until the claim is gone"
    cluster.stores[RESOURCE_CLAIMS].remove("ns", "c")
    assert cluster.free("npu") == 4


def test_an_ended_pod_of_ours_holds_its_device_as_long_as_its_claim(cluster: ByClass) -> None:
    cluster.asking("p", IMPLIED, "d", node="a", phase="Running")
    cluster.claim("c", ["a/0"], pod="p")
    cluster.asking("p", IMPLIED, "d", node="a", phase="Failed")
    assert cluster.free("npu") == 3
    cluster.stores[RESOURCE_CLAIMS].remove("ns", "c")
    assert cluster.free("npu") == 4


@pytest.mark.parametrize("resource", [IMPLIED, "acme.com/npu"])
def test_a_pod_of_others_counts_while_it_waits_and_then_by_its_claim(cluster: ByClass, resource: str) -> None:
    cluster.device_class(extendedResourceName="acme.com/npu")
    cluster.asking("p", resource)
    assert cluster.free("npu") == 3
    cluster.asking("p", resource, node="a")
    assert cluster.free("npu") == 4, "its claim tells"
    cluster.claim("c", ["a/0"], pod="p")
    assert cluster.free("npu") == 3


def test_the_name_goes_with_the_class(cluster: ByClass) -> None:
    cluster.asking("p", "acme.com/npu")
    assert cluster.free("npu") == 4
    cluster.device_class(extendedResourceName="acme.com/npu")
    assert cluster.free("npu") == 3
    cluster.device_class(extendedResourceName="acme.com/other")
    assert cluster.free("npu") == 4


def test_kinds_of_one_class_are_told_apart_by_their_nodes(cluster: ByClass) -> None:
    for node in ("a", "b"):
        cluster.put("Node", node, {}, {}, labels={"zone": node})
        cluster.kind(node, healthy=2, nodeSelector={"zone": node})
    cluster.claim("one", ["a/0"])
    assert (cluster.free("a"), cluster.free("b")) == (1, 2)


def test_a_resource_of_a_device_plugin_that_the_class_is_known_as_counts_on_its_nodes_only(cluster: ByClass) -> None:
    for node in ("a", "plugged"):
        cluster.put("Node", node, {}, {}, labels={"node": node})
    cluster.device_class(extendedResourceName="acme.com/npu")
    cluster.accelerator("plugged", 2, resourceName="acme.com/npu", nodeSelector={"node": "plugged"})
    cluster.asking("p", "acme.com/npu", node="a")
    cluster.claim("c", ["a/0"], pod="p")
    assert (cluster.free("plugged"), cluster.free("npu")) == (2, 3)
    cluster.asking("q", "acme.com/npu", node="plugged")
    assert (cluster.free("plugged"), cluster.free("npu")) == (1, 3)
    cluster.asking("r", "acme.com/npu")
    assert (cluster.free("plugged"), cluster.free("npu")) == (0, 2), "it may come to either"


def test_who_waits_is_woken_when_a_claim_goes(cluster: ByClass) -> None:
    cluster.claim("all", ["a/0", "a/1", "b/0", "b/1"])
    cluster.deploy("d")
    assert cluster.place("d") is None
    cluster.drain()
    cluster.claim("all", ["a/0", "a/1", "b/0"])
    assert cluster.drain() == ["d"]
    assert cluster.place("d") == "npu"


def test_pods_that_come_and_go_leave_nothing_behind(cluster: ByClass) -> None:
    for number in range(3):
        cluster.asking("p", IMPLIED)
        cluster.claim("c", [f"a/{number % 2}"], pod="p")
        cluster.asking("p", IMPLIED, node="a")
        cluster.stores[PODS].remove("ns", "p")
        cluster.stores[RESOURCE_CLAIMS].remove("ns", "c")
        assert cluster.free("npu") == 4
