"""The weights cache and a real API server: whose tokens it takes, with no more rights than the chart gives it."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from real_api import ApiServer, free_port
from rm_api import names
from rm_local_cluster import existing

sys.path.append(str(Path(__file__).parents[1] / "unit/sdk"))

from weights_cache_server import CacheServer, content, digest_of

CHART = Path(__file__).parents[2] / "charts/rm-abstract"
SYSTEM, MINE, OTHER = "cache-system", "cache-tenant-a", "cache-tenant-b"
ACCOUNT = "rma-weights-cache"


class World:
    """Namespaces with accounts, those of the chart among them, and how to get their tokens."""

    def __init__(self, server: ApiServer, directory: Path) -> None:
        self._kubectl, self._helm = existing.tools(print)
        self._directory = directory
        self.kubeconfig = server.kubeconfig(directory / "admin.kubeconfig")
        for namespace in (SYSTEM, MINE, OTHER):
            self.run("create", "namespace", namespace)
            self.run("create", "serviceaccount", "default", "-n", namespace)
        self.run("apply", "-n", SYSTEM, "-f", "-", stdin=self._rights())

    def _rights(self) -> str:
        command = [str(self._helm), "template", "rma", str(CHART), f"--namespace={SYSTEM}", "--set=cache.enabled=true"]
        chart = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        kinds = ("ServiceAccount", "ClusterRole", "ClusterRoleBinding")
        found = [obj for obj in yaml.safe_load_all(chart) if obj and obj["metadata"]["name"] == ACCOUNT]
        return yaml.safe_dump_all([obj for obj in found if obj["kind"] in kinds])

    def run(self, *arguments: str, stdin: str | None = None) -> str:
        command = [str(self._kubectl), "--kubeconfig", str(self.kubeconfig), *arguments]
        return subprocess.run(command, input=stdin, capture_output=True, text=True, check=True).stdout

    def token(self, namespace: str, account: str = "default", audience: str | None = names.NODE_CACHE_AUDIENCE) -> str:
        """A token as the kubelet projects it; without an audience one for the API server."""
        flags = [f"--audience={audience}"] if audience else []
        return self.run("create", "token", account, "-n", namespace, *flags).strip()

    def as_account(self, namespace: str, account: str, **cluster: str) -> Path:
        """A kubeconfig as a pod of the account has it."""
        config = yaml.safe_load(self.kubeconfig.read_text())
        config["users"][0]["user"] = {"token": self.token(namespace, account, None)}
        config["clusters"][0]["cluster"] |= cluster
        path = self._directory / f"{namespace}-{account}-{len(cluster)}.kubeconfig"
        path.write_text(yaml.safe_dump(config))
        return path


@pytest.fixture(scope="module")
def world(api_server: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(api_server, tmp_path_factory.mktemp("weights-cache"))


@pytest.fixture(scope="module")
def server(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CacheServer]:
    """The process, with the rights of the chart."""
    running = CacheServer(tmp_path_factory.mktemp("server"), world.as_account(SYSTEM, ACCOUNT))
    running.start()
    try:
        yield running
    finally:
        running.stop()


def asked(server: CacheServer, method: str, raw: bytes, token: str, **options: object) -> int:
    headers = {"Authorization": f"Bearer {token}"}
    return server.ask(method, digest_of(raw), "", headers=headers, **options).status_code


def test_a_namespace_has_what_it_stored_and_others_what_is_public(world: World, server: CacheServer) -> None:
    mine, other = world.token(MINE), world.token(OTHER)
    private, public = content("private", 5000), content("public", 5000)
    assert asked(server, "PUT", private, mine, content=private) == 201
    assert asked(server, "PUT", public, mine, content=public, params={"public": "true"}) == 201
    assert [asked(server, "GET", raw, mine) for raw in (private, public)] == [200, 200]
    assert [asked(server, "GET", raw, other) for raw in (private, public)] == [404, 200]
    assert asked(server, "PUT", private, other, content=private) == 201
    assert asked(server, "GET", private, other) == 200


def gone(world: World) -> str:
    world.run("create", "serviceaccount", "gone", "-n", MINE)
    token = world.token(MINE, "gone")
    world.run("delete", "serviceaccount", "gone", "-n", MINE)
    return token


WRONG: dict[str, Callable[[World], str]] = {
    "for the registry": lambda world: world.token(MINE, audience=names.REGISTRY_AUDIENCE),
    "for the API server": lambda world: world.token(MINE, audience=None),
    "of an account that is gone": gone,
    "of an administrator": lambda world: str(yaml.safe_load(world.kubeconfig.read_text())["users"][0]["user"]["token"]),
    "forged": lambda world: world.token(MINE)[:-8] + "AAAAAAAA",
    "none at all": lambda _world: "x",
}


@pytest.mark.parametrize("token", WRONG.values(), ids=WRONG)
def test_other_tokens_are_refused(world: World, server: CacheServer, token: Callable[[World], str]) -> None:
    raw = content("refused", 5000)
    shown = token(world)
    assert asked(server, "PUT", raw, world.token(MINE), content=raw, params={"public": "true"}) == 201
    assert [asked(server, "GET", raw, shown), asked(server, "PUT", raw, shown, content=raw)] == [401, 401]


def test_its_own_account_may_do_nothing_else(world: World) -> None:
    config = world.as_account(SYSTEM, ACCOUNT)
    for verb, resource, allowed in (
        ("create", "tokenreviews.authentication.k8s.io", "yes"),
        ("get", "secrets", "no"), ("list", "pods", "no"), ("create", "pods", "no"), ("get", "configmaps", "no"),
    ):  # fmt: skip
        asks = ["auth", "can-i", verb, resource, "-n", SYSTEM, f"--kubeconfig={config}"]
        done = subprocess.run([str(existing.tools(print)[0]), *asks], capture_output=True, text=True, check=False)
        assert done.stdout.strip() == allowed, (verb, resource, done.stderr)


@pytest.mark.parametrize("why", ["it may not ask", "nobody answers"])
def test_where_the_api_server_does_not_say_a_pod_is_told_to_come_again(world: World, tmp_path: Path, why: str) -> None:
    """It gives nothing to whom it does not know, and a pod goes to the model's source."""
    nobody = {"server": f"https://127.0.0.1:{free_port()}"} if why == "nobody answers" else {}
    unsure = CacheServer(tmp_path, world.as_account(OTHER, "default", **nobody))
    unsure.start()
    try:
        raw = content("unsure", 5000)
        assert asked(unsure, "PUT", raw, world.token(MINE), content=raw) == 503
        assert not unsure.files()
    finally:
        unsure.stop()
