"""The HorizontalPodAutoscaler of a deployment that asks for one."""

from typing import Any

from rolling import roll, served

Object = dict[str, Any]
AUTOSCALING = {
    "minReplicas": 2,
    "maxReplicas": 5,
    "metrics": [{"name": "requests_running", "averageValue": "4"}, {"name": "queue", "averageValue": 500}],
}


def test_it_scales_the_deployment_and_goes_with_the_wish() -> None:
    world = served(autoscaling=AUTOSCALING)
    (autoscaler,) = world.of("HorizontalPodAutoscaler")
    metadata = autoscaler["metadata"]
    (owner,) = metadata["ownerReferences"]
    assert (metadata["name"], owner["kind"], owner["name"], owner["controller"]) == (
        "hello", "ModelDeployment", "hello", True,
    )  # fmt: skip
    assert autoscaler["spec"] == {
        "scaleTargetRef": {"apiVersion": "rm-abstract.io/v1alpha1", "kind": "ModelDeployment", "name": "hello"},
        "minReplicas": 2,
        "maxReplicas": 5,
        "metrics": [
            {
                "type": "Pods",
                "pods": {
                    "metric": {"name": "requests_running"},
                    "target": {"type": "AverageValue", "averageValue": "4"},
                },
            },
            {
                "type": "Pods",
                "pods": {"metric": {"name": "queue"}, "target": {"type": "AverageValue", "averageValue": "500"}},
            },
        ],
    }
    autoscaler["spec"]["maxReplicas"] = 9
    world.settle()
    assert world.of("HorizontalPodAutoscaler")[0]["spec"]["maxReplicas"] == 5
    world.deploy()
    world.settle()
    assert world.of("HorizontalPodAutoscaler") == []
    assert world.reason() == "Ready"


def test_what_it_writes_is_followed_and_never_written_over() -> None:
    world = served(autoscaling=AUTOSCALING)
    (deployment,) = world.of("ModelDeployment")
    for replicas in (4, 2):
        deployment["spec"]["replicas"] = replicas
        roll(world)
        assert len(world.routed()) == replicas
        assert deployment["spec"]["replicas"] == replicas
        status = world.of("ModelDeployment")[0]["status"]
        assert (status["replicas"], status["selector"]) == (replicas, "rm-abstract.io/deployment=hello")


def test_somebody_elses_is_not_touched_and_everything_else_goes_on() -> None:
    theirs = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "hello", "namespace": "ns"},
        "spec": {"maxReplicas": 1},
    }
    world = served()
    world.add(theirs)
    world.settle()
    assert world.reason() == "Ready", "as long as none is asked for"
    assert len(world.of("HorizontalPodAutoscaler")) == 1
    world.deploy(autoscaling=AUTOSCALING)
    world.settle()
    assert world.reason() == world.reason(condition="Stalled") == "NameTaken"
    assert world.reason(condition="Available") == "Serving"
    assert world.of("HorizontalPodAutoscaler")[0]["spec"] == {"maxReplicas": 1}
    world.remove("HorizontalPodAutoscaler", "hello")
    world.settle()
    assert world.reason() == "Ready"
    assert world.of("HorizontalPodAutoscaler")[0]["spec"]["maxReplicas"] == 5


def test_it_outlives_a_suspension() -> None:
    world = served(autoscaling=AUTOSCALING)
    world.deploy(autoscaling=AUTOSCALING, suspend=True)
    roll(world)
    assert len(world.of("HorizontalPodAutoscaler")) == 1
