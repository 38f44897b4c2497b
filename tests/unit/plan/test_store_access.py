"""What containers are given to reach the store: who gets the token and the authorities, and who does not."""

from dataclasses import replace
from typing import Any

import chain
import pytest
from chain import SETTINGS, World
from rm_api import names
from rm_api.kinds import BuildArtifactSpec
from rm_operator.plan import build_job, pods
from rm_operator.plan.model import Settings, StoreConfig

Object = dict[str, Any]
CA = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
AUDIENCE = "rm-abstract-registry"
PROTECTED = replace(SETTINGS, store=StoreConfig("store:5000", False, ca=CA, token_audience=AUDIENCE))


def _pods(monkeypatch: pytest.MonkeyPatch, settings: Settings, **spec: Any) -> dict[str, Object]:
    """The pods of a build and of a variant."""
    monkeypatch.setattr(chain, "SETTINGS", settings)
    world = World()
    world.deploy(**spec)
    world.settle()
    found = {"resolve": world.jobs("resolve")[0]["spec"]["template"]["spec"]}
    world.resolve_model()
    world.settle()
    found["build"] = world.jobs("build")[0]["spec"]["template"]["spec"]
    world.build()
    world.settle()
    found["serve"] = world.of("Deployment")[0]["spec"]["template"]["spec"]
    return found


def _variables(container: Object) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in container["env"]}


@pytest.mark.parametrize("plain_http", [True, False])
def test_a_store_without_a_token_service_asks_for_nothing(plain_http: bool) -> None:
    settings = replace(SETTINGS, store=StoreConfig("store:5000", plain_http))
    environment = {"RMA_PLAIN_HTTP_HOSTS": "store:5000"} if plain_http else {}
    assert pods.store_access(settings) == (environment, [], [])


def test_certificate_authorities_go_without_a_token() -> None:
    settings = replace(SETTINGS, store=StoreConfig("store:5000", False, ca=CA))
    assert pods.store_access(settings) == ({"RMA_REGISTRY_CA": CA}, [], [])


@pytest.mark.parametrize(("role", "readers"), [("build", {"push"}), ("serve", {"fetch"})])
def test_only_our_containers_that_speak_to_the_store_see_the_token(
    monkeypatch: pytest.MonkeyPatch, role: str, readers: set[str]
) -> None:
    pod = _pods(monkeypatch, PROTECTED)[role]
    assert pod["automountServiceAccountToken"] is False
    (volume,) = [each for each in pod["volumes"] if "projected" in each]
    # For this audience alone: whoever sees it can neither speak to the Kubernetes API nor to anybody else.
    (source,) = volume["projected"]["sources"]
    assert source["serviceAccountToken"]["audience"] == AUDIENCE
    assert source["serviceAccountToken"]["expirationSeconds"] == 3600
    for container in (*pod["initContainers"], *pod["containers"]):
        mounts = [mount for mount in container["volumeMounts"] if mount["name"] == volume["name"]]
        variables = _variables(container)
        if container["name"] not in readers:
            assert mounts == []
            assert not {names.ENV_STORE, names.ENV_REGISTRY_TOKEN_FILE} & variables.keys()
            continue
        assert mounts == [{"name": volume["name"], "mountPath": names.STORE_DIR, "readOnly": True}]
        assert variables[names.ENV_STORE] == "store:5000"
        assert variables[names.ENV_REGISTRY_CA] == CA
        path = source["serviceAccountToken"]["path"]
        assert variables[names.ENV_REGISTRY_TOKEN_FILE] == f"{names.STORE_DIR}/{path}"
        assert "RMA_PLAIN_HTTP_HOSTS" not in variables


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("oci://store:5000/models/m:1", True),
        ("oci://store:5001/models/m:1", False),
        ("oci://store/models/m:1", False),
        ("oci://elsewhere/store:5000/m:1", False),
        ("https://store:5000/models/m", False),
        ("s3://store:5000/m", False),
        ("hf://store:5000/m", False),
    ],
)
def test_who_reads_models_shows_the_pods_token_to_the_store_and_to_nobody_else(source: str, shown: bool) -> None:
    environment, mounts, volumes = pods.source_access(PROTECTED, source, None)
    assert environment.pop(names.ENV_REGISTRY_CA) == CA
    assert bool(environment) == bool(mounts) == bool(volumes) == shown
    if shown:
        assert pods.source_access(PROTECTED, source, "creds") == pods.store_access(PROTECTED)


@pytest.mark.parametrize(("role", "readers"), [("resolve", {"resolve"}), ("build", {"fetch", "push"})])
def test_a_model_in_the_store_is_read_with_the_token_that_is_there_once(
    monkeypatch: pytest.MonkeyPatch, role: str, readers: set[str]
) -> None:
    pod = _pods(monkeypatch, PROTECTED, model={"source": "oci://store:5000/models/m:1"})[role]
    assert [volume["name"] for volume in pod["volumes"]].count("store") == 1
    seen = [
        container["name"]
        for container in (*pod.get("initContainers", []), *pod["containers"])
        for mount in container["volumeMounts"]
        if mount["name"] == "store"
    ]
    assert sorted(seen) == sorted(readers)


def test_vendors_containers_are_told_nothing_of_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    found = _pods(monkeypatch, PROTECTED)
    for role, name in (("build", "compile"), ("serve", "engine")):
        (container,) = [
            each for each in (*found[role]["initContainers"], *found[role]["containers"]) if each["name"] == name
        ]
        assert (
            not {names.ENV_STORE, names.ENV_REGISTRY_TOKEN_FILE, names.ENV_REGISTRY_CA} & _variables(container).keys()
        )


STEPS = [
    {"name": "lower", "image": "acme/cc:1", "command": ["lower"]},
    {"name": "tune", "image": "acme/cc:1", "command": ["tune"], "requiresDevice": True},
]


@pytest.mark.parametrize(("stage", "readers"), [(0, {"push"}), (1, {"earlier", "push"})])
def test_what_a_job_leaves_for_the_next_one_goes_with_the_token(stage: int, readers: set[str]) -> None:
    world = World()
    world.deploy()
    world.settle()
    world.resolve_model()
    world.settle()
    (artifact,) = world.of("BuildArtifact")
    spec = BuildArtifactSpec.model_validate({**artifact["spec"], "steps": STEPS})
    pod = build_job.render(artifact, spec, build_job.Run(1, stage), PROTECTED)["spec"]["template"]["spec"]
    assert [volume["name"] for volume in pod["volumes"]].count("store") == 1
    seen = {
        container["name"]
        for container in (*pod["initContainers"], *pod["containers"])
        if "store" in [mount["name"] for mount in container["volumeMounts"]]
    }
    assert seen == readers


def test_pods_that_would_not_reach_the_store_any_more_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.deploy()
    world.settle()
    world.resolve_model()
    world.settle()
    world.build()
    world.settle()
    (before,) = [each["metadata"]["name"] for each in world.of("Deployment")]
    monkeypatch.setattr(chain, "SETTINGS", PROTECTED)
    world.settle()
    after = {each["metadata"]["name"] for each in world.of("Deployment")}
    assert after - {before}, "a template that is remembered knows neither the token nor the certificates"
