"""Kubeconfigs, service accounts, and tokens that change while we run."""

import asyncio
import stat
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web
from fake_api import FakeApi, status
from rm_operator.kube import auth
from rm_operator.kube.auth import ConfigError, Connection, ExecToken, FileToken, StaticToken, from_kubeconfig
from rm_operator.kube.errors import Unauthorized, Unreachable
from rm_operator.kube.http import HttpClient
from rm_operator.kube.resources import PODS


def write(path: Path, *, user: dict[str, Any] | None = None, server: str = "http://one:1", name: str = "x") -> Path:
    config = {
        "current-context": name,
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        "clusters": [{"name": name, "cluster": {"server": server}}],
        "users": [{"name": name, "user": user or {}}],
    }
    path.write_text(yaml.safe_dump(config))
    return path


async def test_the_current_context_is_taken(tmp_path: Path) -> None:
    found = from_kubeconfig([write(tmp_path / "config", user={"token": "t"}, server="http://one:1/")])
    assert found.server == "http://one:1"
    assert found.tls is None
    assert found.credentials is not None
    assert await found.credentials.token() == "t"


def test_of_several_files_the_first_word_counts_and_missing_ones_do_not(tmp_path: Path) -> None:
    first = write(tmp_path / "first", server="http://one:1")
    second = write(tmp_path / "second", server="http://two:2")
    assert from_kubeconfig([tmp_path / "absent", first, second]).server == "http://one:1"
    assert from_kubeconfig([second, first]).server == "http://two:2"


def test_environment_and_argument(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(write(tmp_path / "env", server="http://env:1")))
    assert auth.load().server == "http://env:1"
    assert auth.load(str(write(tmp_path / "argument", server="http://argument:1"))).server == "http://argument:1"


def test_nothing_configured_says_where_was_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ConfigError, match=r"set KUBECONFIG.*\.kube/config"):
        auth.load()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "no current-context"),
        ("current-context: y", "refers to 'y'"),
        ("current-context: [", "cannot be read"),
        ("current-context: x\ncontexts: [{name: x, context: {cluster: c}}]", "refers to 'c'"),
    ],
)
def test_broken_kubeconfigs_say_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "config"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        from_kubeconfig([path])


def test_certificates_that_are_none_say_so(tmp_path: Path) -> None:
    path = write(
        tmp_path / "config", server="https://one:1", user={"client-certificate": "absent.crt", "client-key": "k"}
    )
    with pytest.raises(ConfigError, match="certificates for https://one:1"):
        from_kubeconfig([path])


async def test_a_token_file_is_relative_to_its_kubeconfig(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("from-file\n")
    found = from_kubeconfig([write(tmp_path / "config", user={"tokenFile": "token"})])
    assert found.credentials is not None
    assert await found.credentials.token() == "from-file"


class TestInCluster:
    def test_needs_a_readable_authority(self, tmp_path: Path) -> None:
        environ = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "6443"}
        with pytest.raises(ConfigError, match=r"ca\.crt"):
            auth.in_cluster(tmp_path, environ)

    @pytest.mark.looptime
    async def test_a_rotated_token_is_read_within_a_minute(self, tmp_path: Path) -> None:
        path = tmp_path / "token"
        path.write_text("first")
        source = FileToken(path)
        assert await source.token() == "first"
        path.write_text("second")
        assert await source.token() == "first", "not read for each request"
        await asyncio.sleep(61)
        assert await source.token() == "second"
        path.unlink()
        await asyncio.sleep(61)
        assert await source.token() == "second", "the last one serves while the file is away"

    async def test_no_token_at_all_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="token file"):
            await FileToken(tmp_path / "absent").token()


class TestRequests:
    """What reaches the server."""

    @staticmethod
    def accept(api: FakeApi, token: str) -> None:
        async def check(request: web.Request) -> web.StreamResponse | None:
            if request.headers.get("Authorization") != f"Bearer {token}":
                return status(401, "Unauthorized")
            return None

        api.intercept = check

    async def test_a_refused_token_is_read_again_at_once(self, api: FakeApi, tmp_path: Path) -> None:
        path = tmp_path / "token"
        path.write_text("old")
        self.accept(api, "old")
        async with HttpClient(Connection(api.connection.server, None, FileToken(path))) as client:
            await client.list(PODS)
            path.write_text("new")
            self.accept(api, "new")
            await client.list(PODS)
        assert len(api.seen) == 3

    async def test_a_token_that_stays_refused_is_unauthorized(self, api: FakeApi) -> None:
        self.accept(api, "right")
        async with HttpClient(Connection(api.connection.server, None, StaticToken("wrong"))) as client:
            with pytest.raises(Unauthorized):
                await client.list(PODS)
        assert len(api.seen) == 1

    async def test_credentials_that_cannot_be_had_are_tried_for(self, api: FakeApi, tmp_path: Path) -> None:
        source = FileToken(tmp_path / "absent")
        async with HttpClient(Connection(api.connection.server, None, source), deadline_seconds=0.3) as client:
            with pytest.raises(Unreachable, match="no credentials"):
                await client.list(PODS)
        assert api.seen == []

    async def test_a_redirect_is_not_followed(self, api: FakeApi) -> None:
        async def redirect(_: web.Request) -> web.StreamResponse | None:
            raise web.HTTPFound("http://elsewhere.invalid/")

        api.intercept = redirect
        async with HttpClient(Connection(api.connection.server, None, StaticToken("secret"))) as client:
            with pytest.raises(Exception, match="302"):
                await client.list(PODS)


class TestPlugins:
    @staticmethod
    def plugin(tmp_path: Path, body: str) -> ExecToken:
        script = tmp_path / "plugin"
        script.write_text(f"#!{sys.executable}\n" + textwrap.dedent(body))
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        command = {"command": "./plugin", "args": ["a"], "env": [{"name": "EXTRA", "value": "e"}]}
        config = {"apiVersion": "client.authentication.k8s.io/v1", **command}
        found = from_kubeconfig([write(tmp_path / "config", user={"exec": config})])
        assert isinstance(found.credentials, ExecToken)
        return found.credentials

    async def test_are_run_once_until_the_token_expires(self, tmp_path: Path) -> None:
        source = self.plugin(
            tmp_path,
            """
            import json, os, pathlib, sys
            runs = pathlib.Path(__file__).with_name("runs")
            runs.write_text(runs.read_text() + "." if runs.exists() else ".")
            assert json.loads(os.environ["KUBERNETES_EXEC_INFO"])["kind"] == "ExecCredential"
            token = os.environ["EXTRA"] + sys.argv[1] + str(len(runs.read_text()))
            expires = "2000-01-01T00:00:00Z" if token == "ea2" else "2999-01-01T00:00:00Z"
            print(json.dumps({"status": {"token": token, "expirationTimestamp": expires}}))
            """,
        )
        assert list(await asyncio.gather(source.token(), source.token())) == ["ea1", "ea1"]
        source.invalidate()
        assert await source.token() == "ea2"
        assert await source.token() == "ea3", "the second had expired"

    async def test_that_fail_are_quoted(self, tmp_path: Path) -> None:
        source = self.plugin(tmp_path, "import sys; sys.exit('please log in')")
        with pytest.raises(ConfigError, match="please log in"):
            await source.token()

    async def test_that_print_something_else_say_so(self, tmp_path: Path) -> None:
        source = self.plugin(tmp_path, "print('hello')")
        with pytest.raises(ConfigError, match="printed no ExecCredential with a token"):
            await source.token()

    async def test_that_are_not_installed_say_so(self) -> None:
        with pytest.raises(ConfigError, match="cannot be started"):
            await ExecToken(["/nowhere/plugin"], {}, "v1").token()


def test_tokens_are_not_printed(tmp_path: Path) -> None:
    connection = Connection("http://x", None, StaticToken("secret"))
    assert "secret" not in repr(connection)
