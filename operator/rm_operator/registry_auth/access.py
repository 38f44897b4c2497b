"""Which access an account is given. Pure."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from rm_api import names

from rm_operator.kube.accounts import NAMESPACE, namespace_of

MAX_SCOPES: Final = 16
"""In one request; a client names the repository that it works on, and the one that it mounts a layer from."""

# The grammar of the registry itself, which allows neither an empty component nor one of dots.
_COMPONENT: Final = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH: Final = rf"{_COMPONENT}(?:/{_COMPONENT})*"
_REPOSITORY: Final = re.compile(_PATH)
_ARTIFACT: Final = re.compile(rf"{names.ARTIFACT_REPOSITORIES}/({NAMESPACE})/{_PATH}")
_ARTIFACTS: Final = f"{names.ARTIFACT_REPOSITORIES}/"
_PREFIX: Final = re.compile(rf"{_PATH}/")
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


class UnusableRules(Exception):
    """Rules that cannot be; the message says which and why."""


@dataclass(frozen=True)
class Rules:
    """Who may do what beside what every namespace may with its own. Accounts are user names of ServiceAccounts."""

    operator: str
    """Pulls and deletes artifacts everywhere, and lists repositories: it writes nothing."""
    administrator: str = ""
    """Pulls and pushes artifacts of every namespace and shared repositories. No pod runs under it; empty for nobody."""
    publishers: frozenset[str] = frozenset()
    """Push shared repositories, but none of artifacts."""
    shared: tuple[str, ...] = ()
    """Prefixes of repositories, each with a ``/`` at its end, that every ServiceAccount pulls from. Those under
    ``artifacts/NAMESPACE/`` are pushed by the accounts of that namespace only, as ever.
    """

    def __post_init__(self) -> None:
        """Raises UnusableRules."""
        for account in filter(None, (self.operator, self.administrator, *sorted(self.publishers))):
            if namespace_of(account) is None:
                raise UnusableRules(f"{account!r} is not system:serviceaccount:NAMESPACE:NAME")
        for prefix in self.shared:
            if _PREFIX.fullmatch(prefix) is None or prefix == _ARTIFACTS:
                raise UnusableRules(
                    f"{prefix!r} is no prefix of repositories to share: name a path that ends in /, such as models/"
                )


def grant(account: str, asked: Iterable[Access], rules: Rules) -> tuple[Access, ...]:
    """What of ``asked`` an account gets.

    A ServiceAccount reads and writes what is of its own namespace, and reads what is shared. See Rules for the rest.
    """
    granted = []
    for each in asked:
        actions = each.actions & _allowed(account, each, rules)
        if actions:
            granted.append(Access(each.type, each.name, actions))
    return tuple(granted)


def _allowed(account: str, asked: Access, rules: Rules) -> frozenset[str]:
    if asked.type == "registry" and asked.name == "catalog":
        return frozenset("*") if account == rules.operator else frozenset()
    namespace = namespace_of(account)
    if namespace is None or asked.type != "repository" or _REPOSITORY.fullmatch(asked.name) is None:
        return frozenset()
    allowed: set[str] = set()
    if asked.name.startswith(rules.shared):
        allowed.add("pull")
    artifact = _ARTIFACT.fullmatch(asked.name)
    if artifact is not None:
        if account == rules.operator:
            allowed |= {"pull", "delete"}
        elif account == rules.administrator or artifact[1] == namespace:
            allowed |= {"pull", "push"}
    elif allowed and account in (*rules.publishers, rules.administrator) and not asked.name.startswith(_ARTIFACTS):
        allowed.add("push")
    return frozenset(allowed)
