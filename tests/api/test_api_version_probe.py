"""A real Job probes a profile's toolchain, a stand-in for the kubelet runs its pod; who builds with it waits."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import real_api
from custom_objects import apply, custom_object
from real_api import ApiServer, eventually
from rm_api import names
from rm_operator.kube.errors import ApiError
from rm_operator.kube.http import HttpClient
from rm_operator.kube.resources import BUILD_ARTIFACTS, BUILD_PROFILES, JOBS, MODEL_DEPLOYMENTS, PODS
from whole_operator import WholeOperator, add_cpu, add_facts, artifact_of, whole_operator

Object = dict[str, Any]
ONE, TWO = "sha256:" + "1" * 64, "sha256:" + "2" * 64
SECONDS = 180
IS_A_PROBE = f"{names.LABEL_ROLE}={names.ROLE_PROBE}"


@pytest.fixture
def job_controller(api_server: ApiServer, tmp_path: Path) -> Iterator[None]:
    """kube-controller-manager with the one that makes pods of Jobs, and judges Jobs by them."""
    with real_api.controller_manager(api_server, tmp_path, "job-controller"):
        yield


@dataclass
class Kubelet:
    """Runs the pods of probes: ``digests`` is what its registry has under a tag, ``answer`` what a probe ends with."""

    client: HttpClient
    ns: str
    digests: dict[str, str] = field(default_factory=lambda: {"acme/cc:1": ONE})
    answer: tuple[int, Object] = (0, {"reason": "Ready", "versions": {"toolchain": "7.1"}})
    ran: set[str] = field(default_factory=set)
    """uids of pods."""

    async def run(self) -> None:
        while True:
            for pod in (await self.client.list(PODS, self.ns, label_selector=IS_A_PROBE)).items:
                with suppress(ApiError):  # whatever changed meanwhile is seen the next time
                    await self._look_after(pod)
            await asyncio.sleep(0.1)

    async def _look_after(self, pod: Object) -> None:
        if (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
            return
        code, report = self.answer
        spec = pod["spec"]
        status = {
            "phase": "Failed" if code else "Succeeded",
            "initContainerStatuses": [self._ended(each, 0, "") for each in spec["initContainers"]],
            "containerStatuses": [self._ended(each, code, json.dumps(report)) for each in spec["containers"]],
        }
        metadata = {key: pod["metadata"][key] for key in ("namespace", "name", "uid")}
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "status": status}
        await self.client.apply(PODS, body, field_manager="kubelet", subresource="status")
        self.ran.add(metadata["uid"])

    def _ended(self, container: Object, code: int, message: str) -> Object:
        image = container["image"]
        digest = self.digests.get(image)
        now = "2026-01-01T00:00:00Z"
        ended = {"exitCode": code, "message": message, "startedAt": now, "finishedAt": now}
        return {
            "name": container["name"], "image": image, "ready": False, "restartCount": 0,
            "imageID": f"docker.io/{image.rpartition(':')[0]}@{digest}" if digest else "sha256:" + "f" * 64,
            "state": {"terminated": ended},
        }  # fmt: skip


@asynccontextmanager
async def running(server: ApiServer, kubelet: Kubelet) -> AsyncIterator[WholeOperator]:
    """An operator, the kubelet, and a deployment ``d`` whose only profile has its toolchain probed."""
    client, ns = kubelet.client, kubelet.ns
    await add_cpu(client, ns)
    await add_facts(client, ns, "hf://acme/model")
    await apply(client, profile(ns))
    spec = {"model": {"source": "hf://acme/model"}, "accelerators": {"names": [ns]}}
    await apply(client, custom_object("ModelDeployment", spec, ns, "d"))
    async with whole_operator(server, ns) as found:
        task = asyncio.create_task(kubelet.run())
        try:
            yield found
            assert not task.done()
        finally:
            task.cancel()
            await asyncio.wait([task])


def profile(ns: str, image: str = "acme/cc:1", **annotations: str) -> Object:
    """A profile with a version probe, named after the namespace."""
    recipe = {
        "target": {"type": "CPU", "vendor": ns},
        "steps": [
            {"name": "prepare", "image": "acme/prepare:1", "command": ["prepare"]},
            {"name": "compile", "image": image, "command": ["cc"]},
        ],
        "versionProbe": {"image": image, "command": ["cc", "--version"]},
        "output": {"format": "f"},
    }
    obj = custom_object("BuildProfile", recipe, ns, ns)
    return {**obj, "metadata": {**obj["metadata"], "annotations": annotations}}


async def _condition(client: HttpClient, ns: str, name: str, kind: str) -> tuple[str, str, str]:
    live = await client.get(MODEL_DEPLOYMENTS, ns, name)
    for entry in (live.get("status") or {}).get("conditions") or []:
        if entry["type"] == kind:
            return entry["status"], entry["reason"], entry["message"]
    return "", "", ""


async def test_a_deployment_waits_for_the_toolchain_and_is_built_anew_when_a_tag_has_moved(
    api_server: ApiServer, client: HttpClient, api_namespace: str, job_controller: None
) -> None:
    ns = api_namespace
    kubelet = Kubelet(client, ns, answer=(70, {"reason": "ToolchainFailed", "message": "cc ended with 3"}))
    async with running(api_server, kubelet) as found:

        async def failed() -> bool:
            status = (await client.get(BUILD_PROFILES, None, ns)).get("status") or {}
            return "ToolchainFailed" in {each["reason"] for each in status.get("conditions") or []}

        await eventually(failed, "the profile says what its probe came to", SECONDS)

        async def told() -> bool:
            return "cc ended with 3" in (await _condition(client, ns, "d", "Placed"))[2]

        await eventually(told, "the deployment is told why it has no place", SECONDS)
        assert (await client.list(BUILD_ARTIFACTS, ns)).items == []

        # Whoever has mended it does not wait for the next attempt.
        kubelet.answer = Kubelet(client, ns).answer
        await apply(client, profile(ns, **{names.ANNOTATION_PROBE_AGAIN: "mended"}))
        first = await _artifact_other_than(client, ns, "")
        status = (await client.get(BUILD_PROFILES, None, ns))["status"]
        assert status["versions"] == {"toolchain": "7.1"}
        # The other one was imported on the node: there is no digest of it.
        assert status["images"] == [{"image": "acme/cc:1", "digest": ONE}]
        assert first["spec"]["toolchain"] == {"versions": status["versions"], "images": status["images"]}

        # The same once more: that is no news to anybody.
        before = len(kubelet.ran)
        await apply(client, profile(ns, **{names.ANNOTATION_PROBE_AGAIN: "just to see"}))
        await eventually(lambda: len(kubelet.ran) > before, "it is probed again", SECONDS)
        await eventually(lambda: _no_probes(client, ns), "and its Job is gone", SECONDS)
        assert (await artifact_of(client, ns, "d"))["metadata"]["name"] == first["metadata"]["name"]

        kubelet.digests = {"acme/cc:1": TWO}
        await apply(client, profile(ns, **{names.ANNOTATION_PROBE_AGAIN: "the tag has moved"}))
        second = await _artifact_other_than(client, ns, first["metadata"]["name"])
        assert second["spec"]["toolchain"]["images"] == [{"image": "acme/cc:1", "digest": TWO}]
        assert second["spec"]["key"] != first["spec"]["key"]

        # Another recipe is another question: until it is answered, nothing is built with it.
        kubelet.answer = (75, {"reason": "Retrying", "message": "not now", "retryable": True})
        await apply(client, profile(ns, image="acme/cc:2"))

        async def waits() -> bool:
            ready = await _condition(client, ns, "d", "ArtifactReady")
            return ready[:2] == ("False", "Probing") and "not now" in ready[2]

        await eventually(waits, "the deployment waits, and says for what", SECONDS)
        assert (await _condition(client, ns, "d", "Placed"))[0] == "True"
        kubelet.answer = (0, {"reason": "Ready", "versions": {"toolchain": "8.0"}})
        third = await _artifact_other_than(client, ns, second["metadata"]["name"])
        assert third["spec"]["toolchain"] == {"versions": {"toolchain": "8.0"}, "images": []}
        await eventually(lambda: found.idle, "it comes to rest", SECONDS)


async def _no_probes(client: HttpClient, ns: str) -> bool:
    return not (await client.list(JOBS, ns, label_selector=IS_A_PROBE)).items


async def _artifact_other_than(client: HttpClient, ns: str, name: str) -> Object:
    """The artifact that the deployment waits for, once it is another one than before."""

    async def another() -> bool:
        live = await client.get(MODEL_DEPLOYMENTS, ns, "d")
        return (live.get("status") or {}).get("artifact", "") not in ("", name)

    await eventually(another, f"the deployment asks for another artifact than {name or 'none'}", SECONDS)
    return await artifact_of(client, ns, "d")
