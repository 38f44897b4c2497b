"""Spans as a collector receives them: real OTLP over HTTP from the SDK, about reconciles over a real HTTP client."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from fake_api import FakeApi, status
from otlp_receiver import Receiver, receiving
from rm_operator.kube.artifact_store import ArtifactStore
from rm_operator.kube.errors import Terminal, Transient
from rm_operator.kube.http import HttpClient
from rm_operator.kube.resources import CONFIGMAPS
from rm_operator.kube.store import Store, Stores
from rm_operator.runtime.controller import Workers
from rm_operator.runtime.queue import Key, Queue
from rm_operator.runtime.tracing import Tracing, start_tracing
from waiting import eventually

KEY = Key("ConfigMap", "ns", "c")
CLIENT, ERROR = 3, 2
"""SPAN_KIND_CLIENT and STATUS_CODE_ERROR of the protocol."""


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    with receiving() as found:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", found.url)
        yield found


class Asks:
    """Reads the object, asks the artifact store, and ends as it is told."""

    kind = "ConfigMap"
    watches = ()

    def __init__(self, client: HttpClient, store: ArtifactStore, error: Exception | None) -> None:
        self._client, self._store, self._error = client, store, error
        self.done = asyncio.Event()

    async def reconcile(self, key: Key) -> float | None:
        await self._client.get(CONFIGMAPS, key.namespace, key.name)
        await self._client.list(CONFIGMAPS, key.namespace)
        await self._store.ask("ns/model")
        self.done.set()
        if self._error:
            raise self._error
        return None


async def reconcile_once(api: FakeApi, tracing: Tracing, error: Exception | None = None) -> None:
    stores = Stores([Store(CONFIGMAPS)])
    stores[CONFIGMAPS].upsert(api.put(CONFIGMAPS, "ns", "c", metadata={"generation": 7}))
    queue = Queue()
    async with HttpClient(api.connection, observe=tracing.observe_request) as client:
        # No reconcile is behind this one.
        await client.list(CONFIGMAPS)
        store = ArtifactStore(f"127.0.0.1:{api.port}", plain_http=True, observe=tracing.observe_store)
        controller = Asks(client, store, error)
        working = asyncio.create_task(Workers([controller], stores, queue, tracing=tracing, count=1).run())
        queue.add(KEY)
        await eventually(lambda: controller.done.is_set() and queue.idle, "it is reconciled")
        working.cancel()
        await asyncio.wait([working])
        await store.close()
    await tracing.close()


async def test_a_reconcile_is_a_span_and_its_requests_are_its_children(api: FakeApi, collector: Receiver) -> None:
    began = time.time_ns()
    await reconcile_once(api, start_tracing(api.connection.server, instance="pod-1"))
    (root,) = collector.named("reconcile ConfigMap")
    assert root["parent"] == b""
    assert root["attributes"] == {
        "k8s.namespace.name": "ns",
        "rm_abstract.kind": "ConfigMap",
        "rm_abstract.name": "c",
        "rm_abstract.uid": root["attributes"]["rm_abstract.uid"],
        "rm_abstract.generation": 7,
        "rm_abstract.result": "success",
    }
    children = [span for span in collector.spans if span["parent"] == root["id"]]
    assert [(span["name"], span["kind"]) for span in children] == [
        ("GET configmaps", CLIENT),
        ("LIST configmaps", CLIENT),
        ("GET artifact store", CLIENT),
    ]
    assert [span["attributes"].get("http.response.status_code") for span in children] == [200, 200, 404]
    for span in children:
        assert span["trace"] == root["trace"]
        assert span["attributes"]["http.request.method"] == "GET"
        assert span["attributes"]["server.address"] == "127.0.0.1"
        assert span["attributes"]["server.port"] == api.port
        assert began < root["start"] <= span["start"] + 1_000_000
        assert span["start"] <= span["end"] <= root["end"] + 1_000_000
    assert len(collector.spans) == 4, "the request outside of a reconcile made none"
    assert collector.resource["service.name"] == "rm-abstract-operator"
    assert collector.resource["service.instance.id"] == "pod-1"


@pytest.mark.parametrize(
    ("error", "result", "code"),
    [
        (Terminal("NameTaken", "no"), "terminal", ERROR),
        (ValueError("x"), "error", ERROR),
        (Transient(""), "requeue", 0),
    ],
)
async def test_a_failure_is_told_with_what_was_raised(
    api: FakeApi, collector: Receiver, error: Exception, result: str, code: int
) -> None:
    await reconcile_once(api, start_tracing(api.connection.server, instance="pod-1"), error)
    root = collector.named("reconcile ConfigMap")[0]
    assert (root["attributes"]["rm_abstract.result"], root["status"]) == (result, code)
    (told,) = root["exceptions"]
    assert told["exception.type"].endswith(type(error).__name__)


async def test_a_request_that_fails_is_a_failed_child(api: FakeApi, collector: Receiver) -> None:
    failed = 0

    async def once(request: Any) -> Any:
        nonlocal failed
        if request.path.endswith("/c") and not failed:
            failed += 1
            return status(503, "ServiceUnavailable", "not now")
        return None

    api.intercept = once
    await reconcile_once(api, start_tracing(api.connection.server, instance="pod-1"))
    first, second = collector.named("GET configmaps")
    assert (first["status"], first["attributes"]["error.type"]) == (ERROR, "503")
    assert (second["status"], second["attributes"]["http.response.status_code"]) == (0, 200)


async def test_the_standard_variables_decide(
    api: FakeApi, collector: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "k8s.cluster.name=here")
    await reconcile_once(api, start_tracing(api.connection.server, instance="pod-1"))
    assert (collector.resource["service.name"], collector.resource["k8s.cluster.name"]) == ("mine", "here")
    collector.spans.clear()
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    await reconcile_once(api, start_tracing(api.connection.server, instance="pod-1"))
    assert collector.spans == []


async def test_a_collector_that_is_away_costs_spans_only(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    async with asyncio.timeout(120):
        await reconcile_once(api, start_tracing(api.connection.server, instance="pod-1"))


def test_nothing_is_imported_unless_it_is_asked_for() -> None:
    code = (
        "import sys, rm_operator.app; print(sorted(name for name in sys.modules if name.startswith('opentelemetry')))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert found.stdout.strip() == "[]"
