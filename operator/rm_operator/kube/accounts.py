"""Whose a ServiceAccount token is, as the API server says."""

import asyncio
import hashlib
import math
import re
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol

from rm_api.names import FIELD_MANAGER

from rm_operator.kube.auth import Connection
from rm_operator.kube.http import HttpClient
from rm_operator.kube.resources import TOKEN_REVIEWS

NAMESPACE: Final = r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?"
"""Regular expression of a namespace's name."""
_ACCOUNT: Final = re.compile(rf"system:serviceaccount:({NAMESPACE}):[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
MAX_REVIEWS: Final = 32
"""Tokens that the API server is asked about at the same time; whoever comes after that waits."""
REVIEW_SECONDS: Final = 5.0
"""One try to ask the API server."""
ANSWER_SECONDS: Final = 8.0
"""All tries; a client has more patience than that, and is told to come again."""
ACCEPTED_SECONDS: Final = 60.0
REFUSED_SECONDS: Final = 5.0
"""For how long an answer of the API server about a token is used again."""
MAX_ACCOUNTS: Final = 4096


def namespace_of(account: str) -> str | None:
    """The namespace of a ServiceAccount by its user name; None for any other user."""
    match = _ACCOUNT.fullmatch(account)
    return match[1] if match else None


class NotAccepted(Exception):
    """A token that the API server does not vouch for; the message says what it said."""


class Reviewer(Protocol):
    """Says whose a ServiceAccount token is."""

    async def account(self, token: str) -> str:
        """The user name. Raises NotAccepted, or ApiError where it is not known now."""
        ...


class TokenReviews:
    """Asks the API server."""

    def __init__(self, client: HttpClient, *, audience: str) -> None:
        self._client = client
        self._audience = audience
        self._turns = asyncio.Semaphore(MAX_REVIEWS)

    async def account(self, token: str) -> str:
        """See Reviewer."""
        review = {
            "apiVersion": TOKEN_REVIEWS.api_version,
            "kind": TOKEN_REVIEWS.kind,
            "metadata": {},
            "spec": {"token": token, "audiences": [self._audience]},
        }
        async with self._turns:
            answer = await self._client.create(TOKEN_REVIEWS, review, field_manager=FIELD_MANAGER)
        status: dict[str, Any] = answer.get("status") or {}
        # A server that knows no audiences says yes without naming one: its yes is about itself, not about us.
        if status.get("authenticated") is not True or self._audience not in (status.get("audiences") or ()):
            raise NotAccepted(str(status.get("error") or "it is not for this audience"))
        return str((status.get("user") or {}).get("username", ""))


@asynccontextmanager
async def token_reviews(connection: Connection, *, audience: str) -> AsyncIterator[TokenReviews]:
    """For a server whose clients show ServiceAccount tokens: a few at a time, each answered soon or not at all."""
    async with HttpClient(
        connection, attempt_seconds=REVIEW_SECONDS, deadline_seconds=ANSWER_SECONDS, connections=MAX_REVIEWS
    ) as client:
        yield TokenReviews(client, audience=audience)


class Accounts:
    """Namespaces of tokens, as the API server says; what it said is used again for a minute."""

    def __init__(self, reviewer: Reviewer, clock: Callable[[], float] = time.monotonic) -> None:
        self._reviewer = reviewer
        self._clock = clock
        self._known: OrderedDict[bytes, tuple[float, str | NotAccepted]] = OrderedDict()

    async def namespace(self, token: str) -> str | None:
        """The namespace of a ServiceAccount, None for any other user.

        Raises NotAccepted, or ApiError where it is not known now.
        """
        # Tokens are not kept: who reads this memory learns no more than that there was one.
        key = hashlib.sha256(token.encode()).digest()
        until, found = self._known.get(key, (-math.inf, ""))
        if self._clock() >= until:
            try:
                found, lasts = await self._reviewer.account(token), ACCEPTED_SECONDS
            except NotAccepted as error:
                found, lasts = error, REFUSED_SECONDS
            self._known[key] = self._clock() + lasts, found
            self._known.move_to_end(key)
            if len(self._known) > MAX_ACCOUNTS:
                self._known.popitem(last=False)
        if isinstance(found, NotAccepted):
            raise found
        return namespace_of(found)
