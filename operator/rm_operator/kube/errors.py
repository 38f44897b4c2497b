"""What can go wrong, as types: the reconciler decides by type, never by reading messages."""

from collections.abc import Mapping
from typing import Any, ClassVar


class ApiError(Exception):
    """The API server refused a request, or (``status`` 0) could not be asked.

    ``reason`` is the Status object's reason in CamelCase, ``retry_after`` what the server asked for, in seconds.
    """

    terminal: ClassVar[bool] = False
    """True if the same request will be refused again until somebody changes what it says."""

    def __init__(self, status: int, reason: str, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(f"{message} ({status} {reason})" if status else message)
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after = retry_after


class NotFound(ApiError):
    """404: the object, or its kind, does not exist."""


class Conflict(ApiError):
    """409: a precondition (uid, resourceVersion) no longer holds, or another field manager owns a field."""


class AlreadyExists(Conflict):
    """409 for a create: the name is taken."""


class Gone(ApiError):
    """410: the resourceVersion or continue token is too old; list again."""


class Invalid(ApiError):
    """400, 422, or refused by admission: terminal until the object, or the policy that refused it, changes."""

    terminal = True


class NamespaceTerminating(Invalid):
    """The namespace is being deleted: nothing can be created in it any more."""


class Unauthorized(ApiError):
    """401: the credentials are not, or no longer, accepted."""


class Forbidden(ApiError):
    """403 from authorization: the operator's role lacks a rule. Not terminal, since mending it changes no object."""


class QuotaExceeded(ApiError):
    """403 because a ResourceQuota is used up: passes when something else ends."""


class TooManyRequests(ApiError):
    """429: the server sheds load."""


class ServerError(ApiError):
    """5xx: the server failed; whether it did the thing is unknown."""


class Unreachable(ApiError):
    """No answer: refused, reset, cut off or past the deadline; whether the server did the thing is unknown."""

    def __init__(self, message: str) -> None:
        super().__init__(0, "Unreachable", message)


class Silent(Unreachable):
    """A watch said nothing for too long, not even a bookmark: what it follows may not be there any more."""


class NotLeader(Exception):
    """A write was attempted without a valid Lease; nothing was sent."""


class Transient(Exception):
    """A reconcile cannot finish now; try again after ``retry_after`` seconds, or with back-off where it is None."""

    def __init__(self, message: str = "", *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Terminal(Exception):
    """A reconcile cannot succeed until an object changes; it is not retried."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.message = message


_BY_STATUS: dict[int, type[ApiError]] = {
    400: Invalid,
    401: Unauthorized,
    403: Invalid,
    404: NotFound,
    409: Conflict,
    410: Gone,
    413: Invalid,
    422: Invalid,
    429: TooManyRequests,
}
_EXPIRED = ("Expired", "Gone")


def error_from_status(
    code: int, status: Mapping[str, Any] | None, *, fallback: str = "", retry_after: float | None = None
) -> ApiError:
    """The error for an HTTP status ``code`` and the Status object of its body; ``fallback`` is the body as text."""
    status = status or {}
    message = str(status.get("message") or fallback or "the API server gave no message")[:2048]
    reason = str(status.get("reason") or "Unknown")
    details = status.get("details") or {}
    if retry_after is None and isinstance(details.get("retryAfterSeconds"), int) and details["retryAfterSeconds"] > 0:
        retry_after = float(details["retryAfterSeconds"])
    kind = _BY_STATUS.get(code, ServerError if code >= 500 else ApiError)
    if kind is Conflict and reason == "AlreadyExists":
        kind = AlreadyExists
    elif code == 422 and any(cause.get("field") == "metadata.uid" for cause in details.get("causes") or ()):
        # An apply that names the uid of an object whose name another one has by now.
        kind = Conflict
    elif code == 500 and message.startswith("failed to create typed patch object"):
        # An apply with a field that the schema does not have, or of another type: not the server's failure.
        kind = Invalid
    elif reason in _EXPIRED:
        kind = Gone
    elif code == 403:
        kind = _refusal(message, details)
    elif code == 504 and reason == "Timeout" and "Too large resource version" in message:
        # The store was set back (restored from a backup): our position lies in a future that no longer happens.
        kind = Gone
    return kind(code, reason, message, retry_after=retry_after)


def _refusal(message: str, details: Mapping[str, Any]) -> type[ApiError]:
    """Which 403 it is: authorization, admission and quota share the code, and only their wording differs."""
    if any(cause.get("reason") == "NamespaceTerminating" for cause in details.get("causes") or ()):
        return NamespaceTerminating
    if "exceeded quota" in message:
        return QuotaExceeded
    if 'User "' in message and " cannot " in message:
        return Forbidden
    return Invalid
