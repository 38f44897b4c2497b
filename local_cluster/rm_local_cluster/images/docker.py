"""Docker with BuildKit; the images are in the engine's storage."""

import os
import shutil
from collections.abc import Sequence

from ..errors import LocalClusterError
from ..shell import run
from .builders import Builder
from .catalogue import REPOSITORY
from .plan import LOCAL, speaks_plain_http
from .process import Progress

_PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


class Docker(Builder):
    """Builds on the public base with the engine that DOCKER_HOST or the current context names."""

    name = "docker"

    @staticmethod
    def answers() -> bool:
        """Whether an engine can be reached with this environment."""
        if not shutil.which("docker"):
            return False
        try:
            return run(["docker", "version", "--format={{.Server.Version}}"], check=False, timeout=10).returncode == 0
        except LocalClusterError:
            return False

    def present(self) -> set[str]:
        """The references of our images in the engine's storage."""
        listed = run(["docker", "image", "ls", "--format={{.Repository}}:{{.Tag}}"]).stdout.split()
        return {name for name in listed if name.startswith(f"{LOCAL}/{REPOSITORY}/")}

    def push(self, local: str, remote: str, *, what: str, progress: Progress) -> None:
        """As for every builder; the engine decides which registries it speaks to without TLS."""
        run(["docker", "tag", local, remote])
        try:
            self._run(["docker", "push", remote], self._log(local, "push"), what=what, progress=progress)
        finally:
            run(["docker", "rmi", remote], check=False)

    def remove(self, references: Sequence[str]) -> None:
        """As for every builder."""
        if references:
            run(["docker", "rmi", *references], check=False)

    def _build_command(self) -> list[str]:
        # Named without a value, a proxy is taken from the environment and kept out of the image's history.
        proxies = [f"--build-arg={name}" for name in _PROXIES if name in os.environ]
        return ["env", "DOCKER_BUILDKIT=1", "docker", "build", "--progress=plain", *proxies]

    def _dated(self, epoch: int) -> list[str]:
        # BuildKit knows this argument without an ARG. Files keep the times at which they were written.
        return [f"--build-arg=SOURCE_DATE_EPOCH={epoch}"]

    def _inspect_command(self, reference: str) -> list[str]:
        insecure = ["--insecure"] if speaks_plain_http(reference) else []
        return ["docker", "manifest", "inspect", *insecure, reference]
