"""How long an engine may take until it has generated its first token."""

from math import ceil
from typing import Any

from rm_api import names
from rm_api.kinds import BuildArtifactSpec
from rm_api.kinds.build_profile import BuildInterface
from rm_api.kinds.model_deployment import ModelFacts

from rm_operator.plan.model import Object, Settings

_START_SECONDS = 300
"""Libraries, device, server and the first token, where nothing is large."""
_COMPILE_SECONDS = 600
"""What an engine may compile for itself, where no build has done so."""
_SLOWEST_READ = 50_000_000
"""Bytes per second from a busy disk through the host's memory to the device."""
_TIMES_MEASURED = 3
_LONGEST = 7 * 24 * 3600
"""What the launcher waits at most."""
_PERIOD_SECONDS = 2
GRACE_SECONDS = 60
_DRAIN_DELAY_SECONDS, _DRAIN_TIMEOUT_SECONDS = 5, 40
"""Until everybody has heard that a pod goes, and how long its requests are waited for; the rest is for the engine."""
_SLACK_SECONDS = 120
"""Nobody but the launcher knows why an engine does not start: the kubelet ends it only where the launcher has not."""


def budget_seconds(artifact: BuildArtifactSpec, facts: ModelFacts, measured: int = 0) -> int:
    """Seconds from the engine's start to its first token, after which it is given up.

    A multiple of what is expected, also of the slowest start that was ``measured`` with this artifact: a slow load that
    is ended begins anew and is no faster then.
    """
    warm = artifact.interface is BuildInterface.WARMUP
    derived = _START_SECONDS + (0 if warm else _COMPILE_SECONDS) + ceil(facts.weight_bytes / _SLOWEST_READ)
    return max(derived, min(_TIMES_MEASURED * measured, _LONGEST))


def slowest_start(artifact: Object) -> int:
    """Seconds that the slowest start with a BuildArtifact took, as far as its pods have told; 0 where none has."""
    status = artifact.get("status") or {}
    return max((each.get("startSeconds") or 0 for each in status.get("verifications") or ()), default=0)


def launcher_flags(settings: Settings) -> list[str]:
    """Arguments of rma-launch that every serving container has."""
    flags = [f"--drain-delay={_DRAIN_DELAY_SECONDS}", f"--drain-timeout={_DRAIN_TIMEOUT_SECONDS}"]
    return flags if settings.native_logs else [*flags, "--log-format=logfmt"]


def serving_probes(budget: int) -> dict[str, Any]:
    """Ports and probes of a serving container; ``budget`` as for ``startup_probe``."""
    return {
        "ports": [
            {"name": "http", "containerPort": names.SERVE_PORT, "protocol": "TCP"},
            {"name": "report", "containerPort": names.REPORT_PORT, "protocol": "TCP"},
        ],
        # Ready never lies: the launcher answers 200 once the checks have passed and a token was generated.
        "startupProbe": startup_probe(budget),
        "readinessProbe": {
            "httpGet": {"path": names.READY_PATH, "port": "report"},
            "periodSeconds": 2,
            "timeoutSeconds": 3,
        },
        "livenessProbe": {
            "httpGet": {"path": names.LIVE_PATH, "port": "report"},
            "periodSeconds": 10,
            "timeoutSeconds": 5,
        },
    }


def startup_probe(budget: int) -> dict[str, Any]:
    """The probe that keeps the others away until the engine is ready, and gives up after the launcher has."""
    return {
        "httpGet": {"path": names.READY_PATH, "port": "report"},
        "periodSeconds": _PERIOD_SECONDS,
        "timeoutSeconds": 3,
        "failureThreshold": ceil((budget + _SLACK_SECONDS) / _PERIOD_SECONDS),
    }
