"""What a controller is given to work with."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from rm_operator.config import Config
from rm_operator.kube.client import KubeClient
from rm_operator.kube.store import Stores
from rm_operator.runtime.metrics import Metrics
from rm_operator.runtime.queue import Queue
from rm_operator.runtime.recorder import EventRecorder
from rm_operator.runtime.tracing import Tracing


@dataclass
class Context:
    """Made once per process, before the controllers."""

    client: KubeClient
    stores: Stores
    queue: Queue
    recorder: EventRecorder
    config: Config
    metrics: Metrics = field(default_factory=Metrics)
    tracing: Tracing | None = None
    image_volumes: bool = False
    """Whether artifacts are mounted by nodes: asked for, and known to the API server."""
    closers: list[Callable[[], Awaitable[None]]] = field(default_factory=list)
    openers: list[Callable[[], None]] = field(default_factory=list)

    def on_lead(self, opener: Callable[[], None]) -> None:
        """Have ``opener`` called once this replica works, all stores are synced, and before the first reconcile."""
        self.openers.append(opener)

    def on_close(self, closer: Callable[[], Awaitable[None]]) -> None:
        """Have ``closer`` awaited when the process stops, after the last reconcile."""
        self.closers.append(closer)
