"""Serves an artifact: device checks, load, server, graceful end, and the report of all of it."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import uvicorn
from rm_api.conditions import Reason
from rm_api.names import ENV_ENGINE_REPORT, SERVE_PORT, ExitCode, substitute
from starlette.applications import Starlette

from rm_abstract.core.errors import BadInput, ToolchainFailure, WorkloadError
from rm_abstract.core.plugin import BackendConfig, Plugin
from rm_abstract.core.resource import Resource
from rm_abstract.reporting import leave_report
from rm_abstract.serve.app import Api
from rm_abstract.serve.command import open_artifact
from rm_abstract.serve.embeddings import EmbeddingEngine
from rm_abstract.serve.engine import Engine
from rm_abstract.serve.logs import LOG_CONFIG

ServedEngine = Engine | EmbeddingEngine


def write_engine_report(members: Mapping[str, Any]) -> None:
    """Write what was observed to ``$RMA_ENGINE_REPORT``, whole or not at all; nothing without that variable."""
    name = os.environ.get(ENV_ENGINE_REPORT)
    if not name:
        return
    path = Path(name)
    part = path.with_suffix(".part")
    part.write_text(
        json.dumps({key: value for key, value in members.items() if value}, sort_keys=True), encoding="utf-8"
    )
    part.replace(path)


def _observed(resources: list[Resource], versions: Mapping[str, str]) -> dict[str, Any]:
    """Several devices of one pod are one entry, joined by commas."""

    def joined(name: str) -> str:
        values = [str(resource.attributes.get(name, "")) for resource in resources]
        return ",".join(values) if any(values) else ""

    products = sorted({str(resource.attributes.get("product", "")) for resource in resources} - {""})
    device = {"serial": joined("serial"), "node": joined("node"), "product": ",".join(products)}
    drivers = sorted({str(resource.attributes.get("driver", "")) for resource in resources} - {""})
    return {
        "observedDevice": {key: value for key, value in device.items() if value},
        "driver": ",".join(drivers),
        "versions": dict(versions),
    }


def serve(
    plugin_name: str,
    artifact_dir: Path,
    served_name: str,
    *,
    port: int = SERVE_PORT,
    max_batch: int = 8,
    max_queue: int | None = None,
    max_sequence_length: int | None = None,
    model: Path | None = None,
    prefill_chunk: int | None = None,
    tensor_parallel: int = 1,
    pipeline_parallel: int = 1,
) -> ExitCode:
    """Serve the artifact until SIGTERM, and return the exit code. What was begun is finished first.

    ``max_queue`` is how many requests may wait for a place in the batch; four batches by default. ``model`` is the
    directory of the model, for an artifact that is without its weights. An engine that serves from one device refuses
    ``tensor_parallel`` and ``pipeline_parallel`` above 1.
    """
    observed: dict[str, Any] = {}
    try:
        plugin, artifact = open_artifact(plugin_name, artifact_dir)
        observed = _observed(plugin.probe(), {})
        plugin.initialize()
        observed["versions"] = plugin.versions()
        config = BackendConfig(
            max_batch_size=max_batch,
            max_sequence_length=max_sequence_length,
            model=model,
            prefill_chunk=prefill_chunk,
            tensor_parallel=tensor_parallel,
            pipeline_parallel=pipeline_parallel,
        )
        prepared = plugin.prepare_resource(artifact, config)
        command = plugin.serve_command(prepared, served_name=served_name, port=port)
        if command is not None:
            write_engine_report(observed)
            _become(command, plugin.serve_environment(prepared))
        limits = {"max_batch": max_batch, "max_queue": 4 * max_batch if max_queue is None else max_queue}
        embedder = plugin.create_embedder(prepared)
        if embedder is not None:
            make: Callable[[], ServedEngine] = partial(EmbeddingEngine, embedder, **limits)
        else:
            make = partial(Engine, plugin.create_session(prepared), **limits)
        write_engine_report({**observed, "drains": True})
        _run(plugin, make, served_name, port=port)
    except WorkloadError as error:
        return failed(error, observed)
    return ExitCode.OK


def _become(command: Sequence[str], environment: Mapping[str, str]) -> None:
    """The engine's own server takes this process over, with the variables as rma-launch would replace them.

    One that names a variable which is not set here is left to the engine: outside of a pod not all of them are.
    """
    for name, text in environment.items():
        with suppress(KeyError):
            os.environ.setdefault(name, substitute(text, os.environ))
    try:
        argv = [substitute(word, os.environ) for word in command]
    except KeyError as error:
        raise BadInput(f"the command of the engine names ${{{error.args[0]}}}, which is not set here") from None
    os.execvp(argv[0], argv)  # noqa: S606


def failed(error: WorkloadError, observed: Mapping[str, Any]) -> ExitCode:
    """Tell of a failure, and return the exit code."""
    print(f"{error.reason}: {error}", file=sys.stderr, flush=True)
    with suppress(OSError):
        write_engine_report({**observed, "reason": error.reason, "message": str(error)})
    leave_report(error.report())
    return error.code


class Serving(Protocol):
    """What is behind the HTTP face."""

    draining: bool
    """What comes is refused; what was begun is finished."""

    async def drained(self) -> None:
        """Returns when nothing is begun any more."""

    async def failed(self) -> None:
        """Returns when nothing can be answered any more."""


def configuration(application: Starlette, port: int) -> uvicorn.Config:
    """How our servers serve."""
    return uvicorn.Config(
        application, host="", port=port, lifespan="off", access_log=False, log_config=LOG_CONFIG, timeout_keep_alive=75
    )


class Server(uvicorn.Server):
    """Answers 503 while it finishes what was begun, instead of closing its port at the first signal."""

    def __init__(self, config: uvicorn.Config, engine: Serving) -> None:
        super().__init__(config)
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._draining: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain; the second signal ends at once."""
        if self._engine.draining or sig == signal.SIGINT:
            self.should_exit = self.force_exit = True
        else:
            self._engine.draining = True
            self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        async def drain() -> None:
            await self._engine.drained()
            self.should_exit = True

        self._draining = asyncio.ensure_future(drain())

    async def watch(self) -> None:
        """End the server when the engine has failed: a process that can generate nothing must not look alive."""
        await self._engine.failed()
        self.should_exit = True


def _run(plugin: Plugin, make: Callable[[], ServedEngine], served_name: str, *, port: int) -> None:
    made: list[ServedEngine] = []

    async def main() -> None:
        engine = make()
        made.append(engine)
        application = Api(engine, served_name).application()
        config = configuration(application, port)
        server = Server(config, engine)
        watch = asyncio.create_task(server.watch())
        try:
            await server.serve()
        finally:
            watch.cancel()

    try:
        asyncio.run(main())
        if failure := made[0].failure:
            raise ToolchainFailure(f"the engine failed: {failure}", reason=Reason.ENGINE_FAILED)
    finally:
        for engine in made:
            engine.close()
        plugin.cleanup()
