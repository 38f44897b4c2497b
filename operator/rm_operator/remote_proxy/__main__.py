"""``python -m rm_operator.remote_proxy``: the proxy before one endpoint, as a process."""

import argparse
import asyncio
import logging
import os
import ssl
import sys
from pathlib import Path
from typing import Any

from aiohttp import web
from rm_api import names
from rm_api.conditions import Reason
from rm_api.remote import RemoteProtocol
from rm_api.report import Report

from rm_operator.kube.accounts import token_reviews
from rm_operator.kube.auth import ConfigError, Connection, load
from rm_operator.remote_proxy.service import Proxy, Rules
from rm_operator.remote_proxy.upstream import Endpoint, session
from rm_operator.runtime.server_tls import RELOAD_SECONDS, keep_certificate, server_tls
from rm_operator.runtime.stopping import stop_event

USAGE_ERROR = 2
STOP_SECONDS = 45.0
"""For what was begun; a rollout leaves a pod a minute."""
LEAVE_SECONDS = 5.0
"""Until everybody has heard that a pod goes; what comes until then is answered."""

logger = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=arguments.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    endpoint = Endpoint(
        arguments.accelerator,
        arguments.endpoint,
        RemoteProtocol(arguments.protocol),
        arguments.key_file,
        arguments.ca_file,
        arguments.timeout,
    )
    rules = Rules(
        frozenset(arguments.namespace),
        frozenset(arguments.model),
        arguments.max_concurrency,
        arguments.requests_per_minute,
    )
    try:
        if endpoint.key_file is not None and not endpoint.url.startswith("https://"):
            raise ConfigError(f"a key is sent over TLS only, and {endpoint.url} is not https://")
        endpoint.tls()
        tls = server_tls(arguments.tls_certificate, arguments.tls_key)
        connection = load(arguments.kubeconfig)
    except (ConfigError, OSError, ssl.SSLError) as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE_ERROR
    return asyncio.run(_serve(arguments, connection, endpoint, rules, tls))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m rm_operator.remote_proxy", description="The proxy before an endpoint outside the cluster."
    )
    parser.add_argument("--accelerator", required=True, help="the AcceleratorResource, for messages")
    parser.add_argument("--endpoint", required=True, help="base URL, such as https://api.example.com/v1")
    parser.add_argument("--protocol", default="OpenAI", choices=[each.value for each in RemoteProtocol])
    parser.add_argument("--key-file", type=Path, help="file with the endpoint's key; read for each request")
    parser.add_argument("--ca-file", type=Path, help="PEM file of authorities to believe instead of the system's")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds for which the endpoint may send nothing")
    parser.add_argument("--max-concurrency", type=int, help="requests at the same time")
    parser.add_argument("--requests-per-minute", type=int, help="requests in any minute")
    parser.add_argument("--namespace", action="append", default=[], help="whose accounts may use it; repeatable")
    parser.add_argument("--model", action="append", default=[], help="name at the endpoint; repeatable")
    parser.add_argument("--audience", default=names.REMOTE_AUDIENCE, help="of ServiceAccount tokens that it takes")
    parser.add_argument("--tls-certificate", type=Path, help="PEM file; without it, tokens come in plain text")
    parser.add_argument("--tls-key", type=Path, help="PEM file")
    parser.add_argument("--port", type=int, default=names.REMOTE_PORT, help="for tenants")
    parser.add_argument("--management-port", type=int, default=8080, help="for health and metrics")
    parser.add_argument(
        "--drain-delay", type=float, default=LEAVE_SECONDS, help="seconds after SIGTERM until nothing new is taken"
    )
    parser.add_argument("--kubeconfig", help="path of a kubeconfig (default: as for the operator)")
    parser.add_argument("--log-level", default="INFO", choices=("DEBUG", "INFO", "WARNING", "ERROR"))
    return parser


async def _serve(
    arguments: argparse.Namespace,
    connection: Connection,
    endpoint: Endpoint,
    rules: Rules,
    tls: ssl.SSLContext | None,
) -> int:
    """Serve until SIGTERM or SIGINT, or until the endpoint refuses the key; the exit status says which."""
    stop = stop_event()
    async with (
        token_reviews(connection, audience=arguments.audience) as reviews,
        session(endpoint) as outside,
    ):
        proxy = Proxy(endpoint, rules, reviews, outside)
        if not await proxy.accepts_key():
            return _leave(endpoint)
        runners = []
        try:
            for app, port, context in (
                (proxy.app(), arguments.port, tls),
                (proxy.management(), arguments.management_port, None),
            ):
                # A client that goes takes its request at the endpoint along.
                runner = web.AppRunner(app, access_log=None, shutdown_timeout=STOP_SECONDS, handler_cancellation=True)
                runners.append(runner)
                await runner.setup()
                await web.TCPSite(runner, None, port, ssl_context=context).start()
            logger.info("listening on port %d for %s", arguments.port, endpoint.url)
            watching: list[asyncio.Task[Any]] = [asyncio.create_task(event.wait()) for event in (stop, proxy.refused)]
            if tls:
                kept = keep_certificate(tls, arguments.tls_certificate, arguments.tls_key, every=RELOAD_SECONDS)
                watching.append(asyncio.create_task(kept))
            await asyncio.wait(watching, return_when=asyncio.FIRST_COMPLETED)
            for task in watching:
                task.cancel()
            if stop.is_set():
                await asyncio.sleep(arguments.drain_delay)
        finally:
            for runner in runners:
                await runner.cleanup()
        return _leave(endpoint) if proxy.refused.is_set() else 0


def _leave(endpoint: Endpoint) -> int:
    """Say that the endpoint refuses the key: whoever has this pod run tells it where it is looked for."""
    message = f"{endpoint.url} refuses the key, or there is none; correct the Secret of credentialsSecretRef"
    text = Report(reason=Reason.CREDENTIALS_REFUSED, message=message).to_json()
    print(text, file=sys.stderr, flush=True)
    log = Path(os.environ.get("RMA_TERMINATION_LOG", names.TERMINATION_LOG))
    if log.exists():
        log.write_text(text, encoding="utf-8")
    return int(names.ExitCode.BAD_INPUT)


if __name__ == "__main__":
    sys.exit(main())
