"""Leaves a container's report where Kubernetes, or rma-launch, picks it up."""

import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from rm_api.conditions import Reason
from rm_api.names import TERMINATION_LOG, ExitCode
from rm_api.report import Report

from rm_abstract.core.errors import WorkloadError

ENV_TERMINATION_LOG: Final = "RMA_TERMINATION_LOG"
"""Overrides the path of the termination message, for use outside of a container."""


def leave_report(report: Report) -> None:
    """Print the report, and write it as the termination message if there is one to write."""
    text = report.to_json()
    print(text, flush=True)
    override = os.environ.get(ENV_TERMINATION_LOG)
    path = Path(override or TERMINATION_LOG)
    if override or path.exists():
        # The report has been printed, so it is not lost; a container without a writable log must not fail for it.
        with suppress(OSError):
            path.write_text(text, encoding="utf-8")


def run_reported(action: Callable[[], Report]) -> ExitCode:
    """Run ``action``, leave its report or that of its failure, and return the exit code to end with."""
    started = time.monotonic()
    try:
        report, code = action(), ExitCode.OK
    except WorkloadError as error:
        report, code = error.report(), error.code
        print(f"{error.reason}: {error}", file=sys.stderr, flush=True)
    except OSError as error:
        # A full disk or a vanished mount is the node's weather, not the model's fault.
        report = Report(reason=Reason.RETRYING, message=str(error), retryable=True)
        code = ExitCode.TRANSIENT
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    leave_report(replace(report, seconds=round(time.monotonic() - started, 3)))
    return code
