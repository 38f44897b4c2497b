"""Which access an account is given. Pure."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from rm_api import names

MAX_SCOPES: Final = 16
"""In one request; a client names the repository that it works on, and the one that it mounts a layer from."""

_NAMESPACE: Final = r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?"
_ACCOUNT: Final = re.compile(rf"system:serviceaccount:({_NAMESPACE}):[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
# The grammar of the registry itself, which allows neither an empty component nor one of dots.
_COMPONENT: Final = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_ARTIFACT: Final = re.compile(rf"{names.ARTIFACT_REPOSITORIES}/({_NAMESPACE})/{_COMPONENT}(?:/{_COMPONENT})*")
_SCOPE: Final = re.compile(r"([a-z]+)(?:\([a-z]*\))?:([^\s:]+(?::[0-9]+/[^\s:]+)?):([a-z*]+(?:,[a-z*]+)*)")


class Malformed(Exception):
    """A request for access that cannot be read; the message says what is wrong with it."""


@dataclass(frozen=True)
class Access:
    """Actions on one thing of the registry, asked for or granted."""

    type: str
    name: str
    actions: frozenset[str]

    def to_claim(self) -> dict[str, Any]:
        """As the registry reads it in a token."""
        return {"type": self.type, "name": self.name, "actions": sorted(self.actions)}


def parse(scopes: Iterable[str]) -> tuple[Access, ...]:
    """What ``scope`` parameters ask for; each may hold several, separated by spaces. Raises Malformed."""
    asked = [each for scope in scopes for each in scope.split()]
    if len(asked) > MAX_SCOPES:
        raise Malformed(f"{len(asked)} scopes were asked for at once; {MAX_SCOPES} are the most")
    found = []
    for each in asked:
        match = _SCOPE.fullmatch(each)
        if match is None:
            raise Malformed(f"the scope {each[:200]!r} is not TYPE:NAME:ACTION,…")
        found.append(Access(match[1], match[2], frozenset(match[3].split(","))))
    return tuple(found)


def namespace_of(account: str) -> str | None:
    """The namespace of a ServiceAccount by its user name; None for any other user."""
    match = _ACCOUNT.fullmatch(account)
    return match[1] if match else None


def grant(account: str, asked: Iterable[Access], *, operator: str) -> tuple[Access, ...]:
    """What of ``asked`` an account gets.

    A ServiceAccount reads and writes what is of its own namespace. The operator's account (``operator``) reads and
    deletes everywhere and lists repositories: it writes nothing, so whoever has its token can put nothing in.
    """
    granted = []
    for each in asked:
        actions = each.actions & _allowed(account, each, operator)
        if actions:
            granted.append(Access(each.type, each.name, actions))
    return tuple(granted)


def _allowed(account: str, asked: Access, operator: str) -> frozenset[str]:
    if asked.type == "registry" and asked.name == "catalog":
        return frozenset("*") if account == operator else frozenset()
    match = _ARTIFACT.fullmatch(asked.name) if asked.type == "repository" else None
    if match is None:
        return frozenset()
    if account == operator:
        return frozenset({"pull", "delete"})
    return frozenset({"pull", "push"}) if match[1] == namespace_of(account) else frozenset()
