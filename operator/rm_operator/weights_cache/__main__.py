"""``python -m rm_operator.weights_cache``: the cache of a node as a process."""

import argparse
import asyncio
import logging
import sys
from pathlib import Path

from aiohttp import web
from rm_api import names

from rm_operator.kube.accounts import token_reviews
from rm_operator.kube.auth import ConfigError, Connection, load
from rm_operator.runtime.stopping import stop_event
from rm_operator.weights_cache.blobs import Blobs
from rm_operator.weights_cache.service import Service

USAGE_ERROR = 2
STOP_SECONDS = 5.0

logger = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    arguments = parser().parse_args(argv)
    logging.basicConfig(level=arguments.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        connection = load(arguments.kubeconfig)
        blobs = Blobs(arguments.directory, limit=arguments.limit_bytes, share=arguments.namespace_bytes)
    except (ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE_ERROR
    logger.info("%d files of %d bytes in %s", blobs.count, blobs.bytes, arguments.directory)
    asyncio.run(_serve(arguments, connection, blobs))
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(prog="python -m rm_operator.weights_cache", description="The weights of a node.")
    found.add_argument("--directory", type=Path, required=True, help="where they are kept; nobody else writes there")
    found.add_argument("--limit-bytes", type=_bytes, required=True, help="bytes that are kept at most")
    found.add_argument(
        "--namespace-bytes", type=_bytes, required=True, help="bytes of these that one namespace may have"
    )
    found.add_argument("--audience", default=names.NODE_CACHE_AUDIENCE, help="of ServiceAccount tokens that it takes")
    found.add_argument("--port", type=int, default=names.NODE_CACHE_PORT, help="default: %(default)s")
    found.add_argument("--kubeconfig", help="path of a kubeconfig (default: as for the operator)")
    found.add_argument("--log-level", default="INFO", choices=("DEBUG", "INFO", "WARNING", "ERROR"))
    return found


def _bytes(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of bytes, such as 107374182400")
    return int(text)


async def _serve(arguments: argparse.Namespace, connection: Connection, blobs: Blobs) -> None:
    """Serve until SIGTERM or SIGINT."""
    stop = stop_event()
    async with token_reviews(connection, audience=arguments.audience) as reviews:
        service = Service(blobs, reviews)
        runner = web.AppRunner(service.app(), access_log=None, shutdown_timeout=STOP_SECONDS)
        await runner.setup()
        try:
            await web.TCPSite(runner, None, arguments.port).start()
            # With --port 0 free ones, which only this tells: of IPv4, whose addresses are the shorter ones, as IPv6 has
            # another one then.
            port = min(runner.addresses, key=len)[1]
            logger.info("listening on port %d", port)
            await stop.wait()
        finally:
            await runner.cleanup()


if __name__ == "__main__":
    sys.exit(main())
