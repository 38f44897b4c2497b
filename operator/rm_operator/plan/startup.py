"""How long an engine may take until it has generated its first token."""

from math import ceil
from typing import Any

from rm_api import names
from rm_api.kinds import BuildArtifactSpec
from rm_api.kinds.build_profile import BuildInterface
from rm_api.kinds.model_deployment import ModelFacts

_START_SECONDS = 300
"""Libraries, device, server and the first token, where nothing is large."""
_COMPILE_SECONDS = 600
"""What an engine may compile for itself, where no build has done so."""
_SLOWEST_READ = 50_000_000
"""Bytes per second from a busy disk through the host's memory to the device."""
_PERIOD_SECONDS = 2
_SLACK_SECONDS = 120
"""Nobody but the launcher knows why an engine does not start: the kubelet ends it only where the launcher has not."""


def budget_seconds(artifact: BuildArtifactSpec, facts: ModelFacts) -> int:
    """Seconds from the engine's start to its first token, after which it is given up.

    A multiple of what is expected: a slow load that is ended begins anew and is no faster then.
    """
    warm = artifact.interface is BuildInterface.WARMUP
    return _START_SECONDS + (0 if warm else _COMPILE_SECONDS) + ceil(facts.weight_bytes / _SLOWEST_READ)


def startup_probe(budget: int) -> dict[str, Any]:
    """The probe that keeps the others away until the engine is ready, and gives up after the launcher has."""
    return {
        "httpGet": {"path": names.READY_PATH, "port": "report"},
        "periodSeconds": _PERIOD_SECONDS,
        "timeoutSeconds": 3,
        "failureThreshold": ceil((budget + _SLACK_SECONDS) / _PERIOD_SECONDS),
    }
