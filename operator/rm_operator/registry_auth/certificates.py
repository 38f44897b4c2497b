"""``python -m rm_operator.registry_auth.certificates``: renews what the chart made, once; a CronJob runs it."""

import argparse
import asyncio
import base64
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Final

from rm_operator.kube.auth import ConfigError, load
from rm_operator.kube.errors import ApiError
from rm_operator.kube.http import HttpClient
from rm_operator.kube.resources import CONFIGMAPS, SECRETS, Resource
from rm_operator.registry_auth.renewal import NotRenewable, Secret, renew

logger = logging.getLogger(__name__)

FIELD_MANAGER: Final = "rm-abstract-certificates"
ATTEMPT_SECONDS: Final = 10.0
FAILED: Final = 1
USAGE_ERROR: Final = 2


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status. A run that failed in the middle is made good by the next."""
    parser = argparse.ArgumentParser(
        prog="python -m rm_operator.registry_auth.certificates",
        description="Renews certificates of the chart whose life is more than half over.",
    )
    parser.add_argument("--namespace", required=True, help="of what follows")
    parser.add_argument("--authority", required=True, help="Secret with ca.crt and ca.key")
    parser.add_argument("--served", required=True, help="Secret with ca.crt, tls.crt and tls.key")
    parser.add_argument("--description", help="ConfigMap with ca.crt; none without it")
    parser.add_argument("--kubeconfig", help="path of a kubeconfig (default: as for the operator)")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level="INFO", format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        connection = load(arguments.kubeconfig)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE_ERROR

    async def run() -> None:
        async with HttpClient(connection, attempt_seconds=ATTEMPT_SECONDS) as client:
            await _renew(client, arguments)

    try:
        asyncio.run(run())
    except (ApiError, NotRenewable) as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    return 0


async def _renew(client: HttpClient, arguments: argparse.Namespace) -> None:
    namespace = arguments.namespace
    authority = await client.get(SECRETS, namespace, arguments.authority)
    served = await client.get(SECRETS, namespace, arguments.served)
    before = (_decoded(authority), _decoded(served))
    changes = renew(*before, datetime.now(UTC))
    after = ({**before[0], **changes[0]}, {**before[1], **changes[1]})
    # What is applied by one manager is applied whole each time: what it leaves out is taken away.
    if after[0] != before[0]:
        await _apply(client, SECRETS, authority, _encoded(after[0], "ca.crt"))
    # The authority is known everywhere before anything is served that it has signed.
    if arguments.description is not None and after[1]["ca.crt"] != before[1].get("ca.crt"):
        description = {"metadata": {"namespace": namespace, "name": arguments.description}}
        await _apply(client, CONFIGMAPS, description, {"ca.crt": after[1]["ca.crt"].decode()})
    if after[1] != before[1]:
        await _apply(client, SECRETS, served, _encoded(after[1], "ca.crt", "tls.crt"))
    if after == before:
        logger.info("nothing is due")


async def _apply(client: HttpClient, resource: Resource, of: dict[str, Any], data: dict[str, str]) -> None:
    identity = ("namespace", "name", "uid", "resourceVersion")
    metadata = {key: of["metadata"][key] for key in identity if key in of["metadata"]}
    body = {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": metadata, "data": data}
    await client.apply(resource, body, field_manager=FIELD_MANAGER)
    logger.info("renewed %s of %s %s", ", ".join(data), resource.kind, metadata["name"])


def _decoded(secret: dict[str, Any]) -> Secret:
    return {key: base64.b64decode(value) for key, value in (secret.get("data") or {}).items()}


def _encoded(secret: Secret, *keys: str) -> dict[str, str]:
    return {key: base64.b64encode(secret[key]).decode() for key in keys}


if __name__ == "__main__":
    sys.exit(main())
