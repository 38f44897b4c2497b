"""``python -m rm_operator.registry_auth``: the token service as a process."""

import argparse
import asyncio
import logging
import ssl
import sys
from pathlib import Path

from aiohttp import web
from rm_api import names

from rm_operator.kube.accounts import token_reviews
from rm_operator.kube.auth import ConfigError, Connection, load
from rm_operator.registry_auth.access import Rules, UnusableRules
from rm_operator.registry_auth.service import Service
from rm_operator.registry_auth.signing import Signer, UnusableKey
from rm_operator.runtime.server_tls import RELOAD_SECONDS, keep_certificate, server_tls
from rm_operator.runtime.stopping import stop_event

USAGE_ERROR = 2
LOOPBACK = "127.0.0.1"
STOP_SECONDS = 5.0

logger = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=arguments.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        rules = Rules(
            arguments.operator, arguments.administrator, frozenset(arguments.publisher), tuple(arguments.shared)
        )
        signer = Signer.load(arguments.signing_key, arguments.signing_certificate, audience=arguments.service)
        tls = server_tls(arguments.tls_certificate, arguments.tls_key)
        connection = load(arguments.kubeconfig)
    except (ConfigError, UnusableKey, UnusableRules) as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE_ERROR
    asyncio.run(_serve(arguments, connection, signer, rules, tls))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m rm_operator.registry_auth", description="The token service of the artifact registry."
    )
    parser.add_argument("--service", required=True, help="the registry, as its configuration calls it")
    parser.add_argument("--operator", required=True, help="user name of the operator's ServiceAccount")
    parser.add_argument(
        "--administrator", metavar="USER", default="", help="who pushes artifacts for every namespace; no pod has it"
    )
    parser.add_argument(
        "--publisher", metavar="USER", action="append", default=[], help="who pushes shared repositories; repeatable"
    )
    parser.add_argument(
        "--shared", metavar="PREFIX/", action="append", default=[],
        help="repositories that every ServiceAccount pulls from, such as models/; repeatable",
    )  # fmt: skip
    parser.add_argument("--audience", default=names.REGISTRY_AUDIENCE, help="of ServiceAccount tokens that it takes")
    parser.add_argument("--signing-key", type=Path, required=True, help="PEM file of a key on the curve P-256")
    parser.add_argument("--signing-certificate", type=Path, required=True, help="PEM file that the registry has too")
    parser.add_argument("--tls-certificate", type=Path, help=f"PEM file; without it, it listens on {LOOPBACK} only")
    parser.add_argument("--tls-key", type=Path, help="PEM file")
    parser.add_argument("--port", type=int, default=5001, help="default: 5001")
    parser.add_argument("--kubeconfig", help="path of a kubeconfig (default: as for the operator)")
    parser.add_argument("--log-level", default="INFO", choices=("DEBUG", "INFO", "WARNING", "ERROR"))
    return parser


async def _serve(
    arguments: argparse.Namespace,
    connection: Connection,
    signer: Signer,
    rules: Rules,
    tls: ssl.SSLContext | None,
) -> None:
    """Serve until SIGTERM or SIGINT."""
    stop = stop_event()
    async with token_reviews(connection, audience=arguments.audience) as reviews:
        service = Service(reviews, signer, registry=arguments.service, rules=rules)
        # No access log: a client's requests are in that of the registry, refusals are told by themselves.
        runner = web.AppRunner(service.app(), access_log=None, shutdown_timeout=STOP_SECONDS)
        await runner.setup()
        try:
            # Passwords in plain text go no further than this machine.
            await web.TCPSite(runner, None if tls else LOOPBACK, arguments.port, ssl_context=tls).start()
            logger.info("listening on port %d", arguments.port)
            async with asyncio.TaskGroup() as tasks:
                kept = tls and tasks.create_task(
                    keep_certificate(tls, arguments.tls_certificate, arguments.tls_key, every=RELOAD_SECONDS)
                )
                await stop.wait()
                if kept:
                    kept.cancel()
        finally:
            await runner.cleanup()


if __name__ == "__main__":
    sys.exit(main())
