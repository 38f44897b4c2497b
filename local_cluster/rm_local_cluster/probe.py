"""Seeing whether a component is up."""

import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.request

from .spec import Probe


def complaint(probe: Probe) -> str | None:
    """Why the probe does not succeed yet, or None."""
    try:
        if probe.unix is not None:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(2)
                connection.connect(probe.unix)
        if probe.cri is not None:
            argv = [sys.executable, "-m", f"{__package__}.cri_probe", probe.cri]
            asked = subprocess.run(
                argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False
            )
            if asked.returncode:
                return asked.stderr.strip()[-500:] or f"the question ended with {asked.returncode}"
        if probe.url is not None:
            context = ssl.create_default_context(cafile=probe.authority) if probe.url.startswith("https:") else None
            if context is not None and probe.certificate is not None:
                context.load_cert_chain(probe.certificate, probe.key)
            # Whatever proxy the machine uses, the node's own addresses are not behind it.
            opener = urllib.request.build_opener(
                urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
            )
            with opener.open(probe.url, timeout=5):
                pass
    except (OSError, subprocess.TimeoutExpired, urllib.error.URLError) as error:
        return str(error)
    return None
