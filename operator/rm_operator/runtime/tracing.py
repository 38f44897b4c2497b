"""OpenTelemetry spans, where the standard ``OTEL_*`` variables ask for them; nothing is imported otherwise.

A reconcile is a span, and the requests that it makes of the API server and of the artifact store are its children.
Reflectors, renewals of the Lease and Events belong to no reconcile and make none. Objects carry no ``traceparent``:
a child is applied with its full intent, so an annotation that stands in it at its creation only would be taken away by
the next apply, and one that changed with each reconcile would make every apply a change.
"""

import asyncio
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from rm_operator.kube.client import Object
from rm_operator.kube.resources import Resource
from rm_operator.runtime.queue import Key

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

SERVICE_NAME: Final = "rm-abstract-operator"
_METHODS: Final = {"LIST": "GET"}


class ReconcileSpan:
    """The span of one reconcile."""

    def __init__(self, span: "Span") -> None:
        self._span = span

    def ended(self, result: str, error: Exception | None) -> None:
        """States the result, as in the metrics, and what was raised."""
        from opentelemetry.trace import StatusCode  # noqa: PLC0415

        self._span.set_attribute("rm_abstract.result", result)
        if error is not None:
            self._span.record_exception(error)
            if result in ("error", "terminal"):
                self._span.set_status(StatusCode.ERROR, str(error))


class Tracing:
    """Makes spans and sends them, from a thread of the SDK, to the collector that the environment names."""

    def __init__(self, provider: "TracerProvider", server: str) -> None:
        from opentelemetry import trace  # noqa: PLC0415

        self._provider = provider
        self._trace = trace
        self._tracer = provider.get_tracer("rm_operator")
        self._server = _address(server)

    @contextmanager
    def reconcile(self, key: Key, obj: Object | None) -> Iterator[ReconcileSpan]:
        """The span of one reconcile of ``obj``, which ``key`` names; requests made inside become its children."""
        attributes: dict[str, Any] = {"rm_abstract.kind": key.kind, "rm_abstract.name": key.name}
        if key.namespace:
            attributes["k8s.namespace.name"] = key.namespace
        if obj is not None:
            attributes["rm_abstract.uid"] = obj["metadata"].get("uid", "")
            attributes["rm_abstract.generation"] = obj["metadata"].get("generation", 0)
        with self._tracer.start_as_current_span(f"reconcile {key.kind}", attributes=attributes) as span:
            yield ReconcileSpan(span)

    def observe_request(self, verb: str, resource: Resource, status: int, seconds: float) -> None:
        """Hook for the API client: one attempt has just ended; ``status`` 0 is no answer."""
        attributes = {"rm_abstract.resource": resource.name}
        self._client_span(
            f"{verb} {resource.name}", _METHODS.get(verb, verb), self._server, status, seconds, attributes
        )

    def observe_store(self, url: str, status: int, seconds: float) -> None:
        """Hook for the artifact store: one request has just ended; ``status`` 0 is no answer."""
        self._client_span("GET artifact store", "GET", _address(url), status, seconds, {"url.full": url})

    async def close(self) -> None:
        """Send what is left; the SDK gives up on a collector that does not take it within some seconds."""
        await asyncio.to_thread(self._provider.shutdown)

    def _client_span(
        self, name: str, method: str, server: Mapping[str, Any], status: int, seconds: float, more: Mapping[str, Any]
    ) -> None:
        if not self._trace.get_current_span().is_recording():
            return
        end = time.time_ns()
        span = self._tracer.start_span(
            name,
            kind=self._trace.SpanKind.CLIENT,
            start_time=end - round(seconds * 1e9),
            attributes={"http.request.method": method, **server, **more},
        )
        if status:
            span.set_attribute("http.response.status_code", status)
        if not 0 < status < 400:
            span.set_attribute("error.type", str(status) if status else "no answer")
            span.set_status(self._trace.StatusCode.ERROR)
        span.end(end)


def start_tracing(server: str, *, instance: str) -> Tracing:
    """Tracing of this process, which talks to the API server at ``server``; configured by the ``OTEL_*`` variables."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    ours = Resource({"service.name": SERVICE_NAME, "service.instance.id": instance})
    # The SDK's defaults come first, so that the name is ours, and the environment's last, so that it may differ.
    resource = Resource.create().merge(ours).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider, server)


def _address(url: str) -> dict[str, Any]:
    parts = urlsplit(url)
    found: dict[str, Any] = {"server.address": parts.hostname or ""}
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return found | ({"server.port": port} if port else {})
