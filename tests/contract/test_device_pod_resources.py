"""Who has which device: the client of Pod Resources against a server that speaks it, and against what is none."""

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from pod_resources_server import PodResourcesServer
from rm_device_plugins import sharing
from rm_device_plugins.pod_resources import KEEP_SECONDS, Hold, Holder, PodResources, PodResourcesError, PodWatch

NPU = "example.com/npu"
HERE = Holder("default", "serve", "main")


@pytest.fixture
async def kubelet(tmp_path: Path) -> AsyncIterator[PodResourcesServer]:
    async with PodResourcesServer(tmp_path / "kubelet.sock") as server:
        yield server


class Watch(PodWatch):
    """Of the devices ``a`` and ``b`` of the resource."""

    def __init__(self, path: Path) -> None:
        self.told = 0
        self.time = 0.0
        known = ("a", "b")

        def device_of(kubelet_id: str) -> str | None:
            device_id = sharing.device_of(kubelet_id)
            return device_id if device_id in known else None

        super().__init__(
            PodResources(path), lambda hold: hold.resource == NPU, device_of, self._tell, lambda: self.time
        )

    def _tell(self) -> None:
        self.told += 1

    async def look(self, *, problem: bool = False) -> dict[str, list[str]]:
        await self.refresh()
        assert bool(self.problem) == problem, self.problem
        return {each: [holder.pod for holder in self.of(each)] for each in ("a", "b") if self.of(each)}


async def test_what_pods_hold_is_listed_by_container(kubelet: PodResourcesServer) -> None:
    kubelet.give("serve", NPU, ["a", "b"])
    kubelet.give("serve", "other.io/x", ["x"], container="side")
    kubelet.claim("claimer", "npu.example.com", "dev-0")
    held = await PodResources(kubelet.path).list()
    assert held == (
        Hold(HERE, ("a",), resource=NPU),
        Hold(HERE, ("b",), resource=NPU),
        Hold(Holder("default", "serve", "side"), ("x",), resource="other.io/x"),
        Hold(Holder("default", "claimer", "main"), ("dev-0",), driver="npu.example.com", pool="node"),
    )


async def test_one_pod_is_asked_for_by_name(kubelet: PodResourcesServer) -> None:
    kubelet.give("serve", NPU, ["a"])
    kubelet.give("serve", NPU, ["b"], namespace="team")
    api = PodResources(kubelet.path)
    assert await api.get("team", "serve") == (Hold(Holder("team", "serve", "main"), ("b",), resource=NPU),)
    with pytest.raises(PodResourcesError, match="pod gone is not found"):
        await api.get("team", "gone")


async def test_what_the_kubelet_offers_of_a_resource(kubelet: PodResourcesServer) -> None:
    kubelet.offered = {NPU: ["a", "b"], "other.io/x": ["x"]}
    assert await PodResources(kubelet.path).allocatable(NPU) == {"a": (1,), "b": (1,)}


async def test_an_answer_that_is_bigger_than_grpc_likes_is_read(kubelet: PodResourcesServer) -> None:
    for number in range(250):
        kubelet.give(f"pod-{number}", NPU, [f"{number}-{each}-{'x' * 40}" for each in range(400)])
    assert len(await PodResources(kubelet.path, seconds=60).list()) == 100_000


async def test_who_has_a_device_follows_the_kubelet(kubelet: PodResourcesServer) -> None:
    watch = Watch(kubelet.path)
    assert not watch.free("a"), "before the kubelet has spoken nobody knows"
    assert await watch.look() == {}
    assert watch.free("a")
    assert watch.told == 0
    kubelet.give("serve", NPU, ["a"])
    assert await watch.look() == {"a": ["serve"]}
    assert (watch.free("a"), watch.free("b")) == (False, True)
    await watch.look()
    assert watch.told == 1, "who looks for changes is not disturbed by their absence"
    kubelet.end("serve")
    assert await watch.look() == {}
    assert watch.told == 2


async def test_shares_of_a_device_are_that_device(kubelet: PodResourcesServer) -> None:
    kubelet.give("one", NPU, ["a::0"])
    kubelet.give("two", NPU, ["a::3"])
    assert await Watch(kubelet.path).look() == {"a": ["one", "two"]}


async def test_a_device_that_is_held_by_another_name_is_not_free_and_not_ours(kubelet: PodResourcesServer) -> None:
    kubelet.give("other", "vendor.com/partition", ["a"])
    watch = Watch(kubelet.path)
    assert await watch.look() == {}
    assert (watch.free("a"), watch.free("b")) == (False, True)


@pytest.mark.parametrize("by_claim", [True, False])
async def test_a_holder_of_we_do_not_know_which_device_leaves_none_certainly_free(
    kubelet: PodResourcesServer, by_claim: bool
) -> None:
    if by_claim:
        kubelet.claim("other", "npu.example.com", "dev-0")
    else:
        kubelet.give("other", NPU, ["by-another-name"])
    watch = Watch(kubelet.path)
    await watch.look()
    assert not watch.free("a")
    kubelet.end("other")
    await watch.look()
    assert watch.free("a")


async def test_that_nobody_has_a_device_is_asked_anew_and_believed_of_nobody_else(kubelet: PodResourcesServer) -> None:
    watch = Watch(kubelet.path)
    assert await watch.nobody_has(["a", "b"])
    kubelet.give("serve", NPU, ["b"])
    assert await watch.nobody_has(["a"])
    assert not await watch.nobody_has(["a", "b"])
    kubelet.end("serve")
    assert await watch.nobody_has(["a", "b"])
    await kubelet.stop()
    assert not await watch.nobody_has(["a"]), "what was said before is not enough"


async def test_a_kubelet_that_restarts_moves_no_pods_and_one_that_stays_away_is_not_believed_for_ever(
    kubelet: PodResourcesServer,
) -> None:
    kubelet.give("serve", NPU, ["a"])
    watch = Watch(kubelet.path)
    await watch.look()
    await kubelet.stop()
    watch.time += KEEP_SECONDS
    assert await watch.look(problem=True) == {"a": ["serve"]}
    watch.time += 1
    assert await watch.look(problem=True) == {}
    assert not watch.free("b")
    await kubelet.start()
    assert await watch.look() == {"a": ["serve"]}
    assert watch.told == 3


@pytest.mark.parametrize("code", [grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.RESOURCE_EXHAUSTED])
async def test_a_kubelet_that_refuses_leaves_it_unknown(kubelet: PodResourcesServer, code: grpc.StatusCode) -> None:
    kubelet.refuse = code
    watch = Watch(kubelet.path)
    assert await watch.look(problem=True) == {}
    assert code.name in watch.problem
    assert not watch.free("a")


async def test_a_kubelet_that_does_not_answer_is_given_up(kubelet: PodResourcesServer) -> None:
    kubelet.hold = asyncio.Event()
    with pytest.raises(PodResourcesError, match="DEADLINE_EXCEEDED"):
        await PodResources(kubelet.path, seconds=0.2).list()
    kubelet.hold.set()


async def test_no_socket(tmp_path: Path) -> None:
    watch = Watch(tmp_path / "none.sock")
    assert await watch.look(problem=True) == {}
    assert f"the kubelet does not tell which pods have devices: {tmp_path}/none.sock: UNAVAILABLE" in watch.problem


@pytest.mark.parametrize("says", [b"", b"HTTP/1.1 200 OK\r\n\r\nhello", b"\x00" * 64])
async def test_what_speaks_something_else_leaves_it_unknown(tmp_path: Path, says: bytes) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(says)
        writer.close()

    path = tmp_path / "kubelet.sock"
    async with await asyncio.start_unix_server(talk, path):
        with pytest.raises(PodResourcesError, match="does not tell"):
            await PodResources(path).list()


async def test_an_answer_that_is_no_message_leaves_it_unknown(tmp_path: Path) -> None:
    path = tmp_path / "kubelet.sock"
    server = grpc.aio.server()
    garbage = grpc.unary_unary_rpc_method_handler(
        lambda request, context: b"\x0a\xff\xff", lambda raw: raw, lambda raw: raw
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("v1.PodResourcesLister", {"List": garbage}),))
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    try:
        with pytest.raises(PodResourcesError, match="does not tell"):
            await PodResources(path).list()
        with pytest.raises(PodResourcesError, match="UNIMPLEMENTED"):
            await PodResources(path).allocatable(NPU)
    finally:
        await server.stop(0)


async def test_a_socket_that_nobody_serves(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead.sock"))
    await Watch(tmp_path / "dead.sock").look(problem=True)
