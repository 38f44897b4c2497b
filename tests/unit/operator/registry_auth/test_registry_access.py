"""Who is granted what, how scopes are read, and with which keys the service starts."""

from pathlib import Path

import pytest
from rm_local_cluster.pki import Authority
from rm_operator.kube.accounts import namespace_of
from rm_operator.registry_auth.__main__ import main
from rm_operator.registry_auth.access import (
    MAX_SCOPES,
    Access,
    Malformed,
    Rules,
    UnusableRules,
    grant,
    parse,
)

OPERATOR = "system:serviceaccount:system:rma-operator"
TENANT = "system:serviceaccount:tenant:default"
ADMINISTRATOR = "system:serviceaccount:system:rma-registry-admin"
PUBLISHER = "system:serviceaccount:ci:publish"
RULES = Rules(OPERATOR, ADMINISTRATOR, frozenset({PUBLISHER}), ("models/", "inputs/eval/", "artifacts/builds/"))
ALL = "pull,push,delete,*"


@pytest.mark.parametrize(
    ("account", "namespace"),
    [
        (TENANT, "tenant"),
        ("system:serviceaccount:a-1:builder.v2", "a-1"),
        ("system:serviceaccount:tenant", None),
        ("system:serviceaccount::default", None),
        ("system:serviceaccount:te/nant:default", None),
        ("system:serviceaccount:tenant:default:more", None),
        ("x:system:serviceaccount:tenant:default", None),
        ("system:serviceaccount:tenant:default\n", None),
        ("system:node:a", None),
        ("admin", None),
        ("", None),
    ],
)
def test_only_a_service_account_has_a_namespace(account: str, namespace: str | None) -> None:
    assert namespace_of(account) == namespace


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ("repository:a/b:pull", [("repository", "a/b", {"pull"})]),
        ("repository:a/b:pull,push", [("repository", "a/b", {"pull", "push"})]),
        ("repository(plugin):a/b:pull", [("repository", "a/b", {"pull"})]),
        ("repository:host:5000/a:pull", [("repository", "host:5000/a", {"pull"})]),
        ("registry:catalog:*", [("registry", "catalog", {"*"})]),
        ("repository:a:pull repository:b:push", [("repository", "a", {"pull"}), ("repository", "b", {"push"})]),
        ("", []),
    ],
)
def test_scopes_that_can_be_read(scope: str, expected: list[tuple[str, str, set[str]]]) -> None:
    assert parse([scope]) == tuple(Access(kind, name, frozenset(actions)) for kind, name, actions in expected)


@pytest.mark.parametrize(
    "scope", ["a", "a:b", "repository::pull", "repository:a:", "repository:a:PULL", "a:b:c:d", ":"]
)
def test_scopes_that_cannot_be_read(scope: str) -> None:
    with pytest.raises(Malformed, match="is not TYPE:NAME:ACTION"):
        parse(["repository:fine:pull", scope])


def test_scopes_are_bounded() -> None:
    parse(["repository:a:pull"] * MAX_SCOPES)
    with pytest.raises(Malformed, match=f"{MAX_SCOPES} are the most"):
        parse([" ".join(["repository:a:pull"] * MAX_SCOPES), "repository:a:pull"])


def granted(account: str, scope: str) -> list[set[str]]:
    return [set(each.actions) for each in grant(account, parse([scope]), RULES)]


@pytest.mark.parametrize(
    ("account", "scope", "expected"),
    [
        (TENANT, f"repository:artifacts/tenant/a-1:{ALL}", [{"pull", "push"}]),
        (TENANT, f"repository:artifacts/tenant/deep/er:{ALL}", [{"pull", "push"}]),
        (TENANT, "repository:artifacts/tenant/a-1:pull", [{"pull"}]),
        (TENANT, "repository:artifacts/tenant/a-1:delete", []),
        (TENANT, f"repository:artifacts/other/a-1:{ALL}", []),
        (TENANT, f"repository:artifacts/tenant-2/a-1:{ALL}", []),
        (TENANT, f"repository:artifacts/tenant:{ALL}", []),
        (TENANT, f"repository:artifacts/tenant/../other/a:{ALL}", []),
        (TENANT, f"repository:artifacts/tenant/./a:{ALL}", []),
        (TENANT, f"repository:artifacts/tenant/A:{ALL}", []),
        (TENANT, f"repository:artifacts/tenant//a:{ALL}", []),
        (TENANT, f"repository:/artifacts/tenant/a:{ALL}", []),
        (TENANT, f"repository:models/tenant/a:{ALL}", [{"pull"}]),
        (TENANT, f"repository:inputs/eval/a:{ALL}", [{"pull"}]),
        (TENANT, f"repository:inputs/a:{ALL}", []),
        (TENANT, f"repository:models:{ALL}", []),
        (TENANT, f"repository:models/:{ALL}", []),
        (TENANT, f"repository:models/../artifacts/other/a:{ALL}", []),
        (TENANT, f"repository:models-of-others/a:{ALL}", []),
        (TENANT, f"repository:x/models/a:{ALL}", []),
        (TENANT, f"repository:artifacts/builds/a-1:{ALL}", [{"pull"}]),
        ("system:serviceaccount:builds:default", f"repository:artifacts/builds/a-1:{ALL}", [{"pull", "push"}]),
        (PUBLISHER, f"repository:models/a:{ALL}", [{"pull", "push"}]),
        (PUBLISHER, f"repository:artifacts/builds/a-1:{ALL}", [{"pull"}]),
        (PUBLISHER, f"repository:artifacts/tenant/a-1:{ALL}", []),
        (PUBLISHER, f"repository:artifacts/ci/a-1:{ALL}", [{"pull", "push"}]),
        (PUBLISHER, f"repository:elsewhere/a:{ALL}", []),
        (PUBLISHER, "registry:catalog:*", []),
        ("system:serviceaccount:other:publish", f"repository:models/a:{ALL}", [{"pull"}]),
        (ADMINISTRATOR, f"repository:models/a:{ALL}", [{"pull", "push"}]),
        (ADMINISTRATOR, f"repository:artifacts/tenant/a-1:{ALL}", [{"pull", "push"}]),
        (ADMINISTRATOR, f"repository:artifacts/a:{ALL}", []),
        (ADMINISTRATOR, f"repository:elsewhere/a:{ALL}", []),
        (ADMINISTRATOR, "registry:catalog:*", []),
        (TENANT, f"registry:artifacts/tenant/a:{ALL}", []),
        (TENANT, "registry:catalog:*", []),
        (OPERATOR, "registry:catalog:*", [{"*"}]),
        (OPERATOR, f"repository:artifacts/tenant/a-1:{ALL}", [{"pull", "delete"}]),
        (OPERATOR, f"repository:artifacts/system/a-1:{ALL}", [{"pull", "delete"}]),
        (OPERATOR, f"repository:models/a:{ALL}", [{"pull"}]),
        (OPERATOR, f"repository:elsewhere/a:{ALL}", []),
        ("system:serviceaccount:system:default", f"repository:artifacts/tenant/a:{ALL}", []),
        ("system:serviceaccount:tenant:rma-operator", "registry:catalog:*", []),
        ("admin", f"repository:artifacts/tenant/a:{ALL}", []),
        ("admin", f"repository:models/a:{ALL}", []),
        ("", f"repository:models/a:{ALL}", []),
    ],
)
def test_who_gets_what(account: str, scope: str, expected: list[set[str]]) -> None:
    assert granted(account, scope) == expected


def test_nobody_has_no_administrators_rights() -> None:
    rules = Rules(OPERATOR, shared=("models/",))
    for account in ("", TENANT):
        assert all("push" not in each.actions for each in grant(account, parse([f"repository:models/a:{ALL}"]), rules))


@pytest.mark.parametrize("prefix", ["", "/", "models", "/models/", "models//", "Models/", "models/../", "artifacts/"])
def test_prefixes_that_cannot_be_shared(prefix: str) -> None:
    with pytest.raises(UnusableRules, match="is no prefix of repositories to share"):
        Rules(OPERATOR, shared=("models/", prefix))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"--operator": "admin"}, "is not system:serviceaccount"),
        ({"--administrator": "admin"}, "is not system:serviceaccount"),
        ({"--publisher": "system:serviceaccounts:ci"}, "is not system:serviceaccount"),
        ({"--shared": "artifacts/"}, "is no prefix"),
        ({"--signing-key": "other.key"}, "is not that of the key"),
        ({"--signing-key": "none"}, "cannot be read"),
        ({"--signing-certificate": "other.key"}, "cannot be read"),
        ({"--tls-key": "tokens.key"}, "go together"),
        ({"--tls-key": "other.key", "--tls-certificate": "tokens.crt"}, "no certificate and its key"),
        ({}, "kubeconfig"),
    ],
)
def test_what_it_is_started_with_is_checked(
    wrong: dict[str, str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for name in ("tokens", "other"):
        Authority(tmp_path, name)
    flags = {
        "--service": "store:5000", "--operator": OPERATOR, "--signing-key": "tokens.key",
        "--signing-certificate": "tokens.crt", "--kubeconfig": "no.kubeconfig", **wrong,
    }  # fmt: skip
    assert main([part for pair in flags.items() for part in pair]) == 2
    assert said in capsys.readouterr().err
