"""Which artifacts an object names, by which they are kept: its own namespace's, or shared ones of another."""

from collections.abc import Iterable
from typing import Any

import pytest
from rm_api import names
from rm_operator.controllers.indexes import named_by
from rm_operator.kube.resources import BUILD_ARTIFACTS, DEPLOYMENTS, MODEL_DEPLOYMENTS, Resource

Object = dict[str, Any]


def obj(**parts: Any) -> Object:
    return {"metadata": {"namespace": "ns", "name": "x", **parts.pop("metadata", {})}, **parts}


@pytest.mark.parametrize(
    ("resource", "live", "places"),
    [
        (MODEL_DEPLOYMENTS, obj(), ()),
        (MODEL_DEPLOYMENTS, obj(status={}), ()),
        (MODEL_DEPLOYMENTS, obj(status={"artifact": "b-1"}), [("ns", "b-1")]),
        (MODEL_DEPLOYMENTS, obj(status={"artifact": "b-1", "artifactNamespace": "builds"}), [("builds", "b-1")]),
        # One for each class of nodes, of which some may be shared.
        (
            MODEL_DEPLOYMENTS,
            obj(
                status={
                    "artifact": "b-1",
                    "classes": [
                        {"artifact": "b-1"},
                        {"artifact": "b-4"},
                        {"artifact": "b-1", "artifactNamespace": "x"},
                    ],
                }
            ),
            [("ns", "b-1"), ("ns", "b-4"), ("x", "b-1")],
        ),
        (BUILD_ARTIFACTS, obj(spec={}), ()),
        (BUILD_ARTIFACTS, obj(spec={"base": {"name": "b-2"}}), [("ns", "b-2")]),
        (DEPLOYMENTS, obj(), ()),
        (DEPLOYMENTS, obj(metadata={"labels": {names.LABEL_ARTIFACT: "b-3"}}), [("ns", "b-3")]),
    ],
)
def test_what_it_names(resource: Resource, live: Object, places: Iterable[tuple[str, str]]) -> None:
    assert named_by(resource, live) == set(places)
