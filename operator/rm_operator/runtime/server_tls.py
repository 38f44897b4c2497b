"""What servers of ours show of themselves, renewed while they run."""

import asyncio
import logging
import ssl
from pathlib import Path
from typing import Final

from rm_operator.kube.auth import ConfigError

RELOAD_SECONDS: Final = 60.0
"""How often it is looked whether the certificate is another one."""

logger = logging.getLogger(__name__)


def server_tls(certificate: Path | None, key: Path | None) -> ssl.SSLContext | None:
    """What a server shows of itself; None without certificate and key. Raises ConfigError."""
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise ConfigError("--tls-certificate and --tls-key go together")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{certificate} and {key} are no certificate and its key: {error}") from None
    return context


async def keep_certificate(context: ssl.SSLContext, certificate: Path, key: Path, *, every: float) -> None:
    """Have connections to come use what is in the files by then, as certificates are renewed; ends never.

    ``every`` is in seconds. Files that are no pair are told of, and what was good is used on.
    """
    used = await asyncio.to_thread(certificate.read_bytes)
    while True:
        await asyncio.sleep(every)
        try:
            found = await asyncio.to_thread(certificate.read_bytes)
            if found != used:
                context.load_cert_chain(certificate, key)
                logger.info("the certificate of %s is another one now", certificate)
        except (OSError, ssl.SSLError) as error:
            logger.warning("%s and %s are no certificate and its key: %s", certificate, key, error)
            continue
        used = found
