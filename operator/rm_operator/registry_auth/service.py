"""The service itself: GET /token, as the registry's challenge tells a client to ask it."""

import base64
import binascii
import logging
import time
from datetime import UTC, datetime
from typing import Final

from aiohttp import web

from rm_operator.kube.accounts import NotAccepted, Reviewer, namespace_of
from rm_operator.kube.errors import ApiError
from rm_operator.registry_auth.access import Malformed, Rules, grant, parse
from rm_operator.registry_auth.signing import LIFETIME_SECONDS, Signer

logger = logging.getLogger(__name__)

RETRY_SECONDS: Final = 2
"""When to come again while the API server does not answer."""


class Service:
    """Answers requests for tokens of the registry ``registry`` (the name by which its challenges call it)."""

    def __init__(self, reviewer: Reviewer, signer: Signer, *, registry: str, rules: Rules) -> None:
        self._reviewer = reviewer
        self._signer = signer
        self._registry = registry
        self._rules = rules

    def app(self) -> web.Application:
        """The service as a web application."""
        app = web.Application(client_max_size=1024)
        app.router.add_get("/token", self._token)
        app.router.add_get("/healthz", _healthy)
        return app

    async def _token(self, request: web.Request) -> web.Response:
        service = request.query.get("service", "")
        if service != self._registry:
            return _refused(400, "UNSUPPORTED", f"tokens are for the registry {self._registry}, not for {service!r}")
        try:
            asked = parse(request.query.getall("scope", []))
        except Malformed as error:
            return _refused(400, "UNSUPPORTED", str(error))
        password = _password(request.headers.get("Authorization", ""))
        if password is None:
            return _refused(401, "UNAUTHORIZED", "send a ServiceAccount token as the password of Basic authentication")
        try:
            account = await self._reviewer.account(password)
        except NotAccepted as error:
            logger.info("refused a token from %s: %s", request.remote, error)
            return _refused(401, "UNAUTHORIZED", "the API server does not accept the ServiceAccount token")
        except ApiError as error:
            logger.warning("the API server does not say whose a token is: %s", error)
            return _refused(503, "UNAVAILABLE", "the API server does not say whose the token is; come again")
        if namespace_of(account) is None:
            logger.info("refused %s, which is no ServiceAccount", account)
            return _refused(403, "DENIED", "only ServiceAccounts are given tokens")
        granted = grant(account, asked, self._rules)
        if short := sorted(f"{each.type}:{each.name}" for each in asked if each not in granted):
            logger.info("%s asked for more than it may have of %s", account, ", ".join(short))
        now = int(time.time())
        token = self._signer.sign(account, granted, now=now)
        return web.json_response(
            {
                "token": token,
                "access_token": token,
                "expires_in": LIFETIME_SECONDS,
                "issued_at": datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            },
            headers={"Cache-Control": "no-store"},
        )


async def _healthy(_request: web.Request) -> web.Response:
    return web.Response(text="ok\n")


def _password(authorization: str) -> str | None:
    """The password of Basic authentication, whatever the user's name; None where there is none."""
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        _, colon, password = base64.b64decode(encoded.strip(), validate=True).decode("ascii").partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return password if colon and password else None


def _refused(status: int, code: str, message: str) -> web.Response:
    headers = {"Cache-Control": "no-store"}
    if status == 401:
        headers["WWW-Authenticate"] = 'Basic realm="ServiceAccount token"'
    if status == 503:
        headers["Retry-After"] = str(RETRY_SECONDS)
    return web.json_response({"errors": [{"code": code, "message": message}]}, status=status, headers=headers)
