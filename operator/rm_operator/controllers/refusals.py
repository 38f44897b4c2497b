"""Which errors a person should read in a status, and in which words."""

import re
from typing import Final

from rm_api.conditions import Reason

from rm_operator.kube.errors import (
    ApiError,
    Forbidden,
    Invalid,
    NamespaceTerminating,
    NotFound,
    NotLeader,
    QuotaExceeded,
    Terminal,
    Transient,
)
from rm_operator.plan.conditions import reason_or
from rm_operator.plan.refusal import Refusal

_NO_NAMESPACE: Final = re.compile(r'namespaces "[^"]+" not found')
STALLED_AFTER: Final = 5
"""A defect that shows so many times in a row will not pass by itself."""


def refusal_of(error: Exception, *, times: int) -> Refusal | None:
    """What to say of ``error``, which came ``times`` in a row; None where it passes, or is nobody's business.

    Lost races, an API server that is away or busy, and a namespace that is going are not told: there is nothing to do
    about them, and often no way to write it down.
    """
    if isinstance(error, Terminal):
        return Refusal(reason_or(error.reason, Reason.REFUSED), error.message, stalled=True)
    if isinstance(error, NamespaceTerminating):
        return None
    if isinstance(error, Invalid | QuotaExceeded | Forbidden):
        message = f"the API server refuses what this needs: {error.message}"
        return Refusal(Reason.REFUSED, message, stalled=error.terminal)
    if isinstance(error, NotFound) and _NO_NAMESPACE.match(error.message):
        # One that is to hold what others share may never have been made.
        return Refusal(Reason.REFUSED, f"{error.message}; create that namespace", stalled=False)
    if isinstance(error, ApiError | Transient | NotLeader | TimeoutError):
        return None
    message = f"the operator failed with {type(error).__name__}: {error}; its log has the details, please report it"
    return Refusal(Reason.INTERNAL_ERROR, message, stalled=times >= STALLED_AFTER)
