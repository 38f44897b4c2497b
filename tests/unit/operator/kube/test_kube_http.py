"""The client against a server that fails in every way it can."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web
from fake_api import FakeApi, status
from rm_operator.kube.documents import Document
from rm_operator.kube.errors import (
    AlreadyExists,
    ApiError,
    Conflict,
    Gone,
    Invalid,
    NotFound,
    NotLeader,
    ServerError,
    Silent,
    TooManyRequests,
    Unreachable,
)
from rm_operator.kube.http import HttpClient
from rm_operator.kube.resources import CONFIGMAPS, DEPLOYMENTS, NODES
from rm_operator.kube.throttle import TokenBucket
from waiting import eventually

CM: dict[str, Any] = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"namespace": "ns", "name": "a"}}


def first(count: int, answer: Callable[[], web.Response]) -> Any:
    """An interceptor that answers the first ``count`` requests so."""
    left = count

    async def intercept(_: web.Request) -> web.StreamResponse | None:
        nonlocal left
        left -= 1
        return answer() if left >= 0 else None

    return intercept


async def reset(request: web.Request) -> web.StreamResponse | None:
    """An interceptor that cuts the connection."""
    assert request.transport is not None
    request.transport.abort()
    return None


class TestRetries:
    @pytest.mark.parametrize("code", [429, 500, 502, 503, 504])
    async def test_an_apply_outlives_a_server_in_trouble(self, api: FakeApi, client: HttpClient, code: int) -> None:
        api.intercept = first(2, lambda: status(code, "Trouble"))
        answer = await client.apply(CONFIGMAPS, CM, field_manager="m")
        assert answer["metadata"]["uid"]
        assert len(api.requests("PATCH")) == 3

    async def test_and_a_cut_connection(self, api: FakeApi, client: HttpClient) -> None:
        left = 2

        async def intercept(request: web.Request) -> web.StreamResponse | None:
            nonlocal left
            left -= 1
            return await reset(request) if left >= 0 else None

        api.intercept = intercept
        await client.apply(CONFIGMAPS, CM, field_manager="m")
        assert len(api.requests("PATCH")) == 3

    async def test_give_up_with_the_last_error(self, api: FakeApi, client: HttpClient) -> None:
        api.intercept = first(99, lambda: status(503, "ServiceUnavailable", "no backend"))
        with pytest.raises(ServerError, match="no backend"):
            await client.get(CONFIGMAPS, "ns", "a")
        assert len(api.seen) == 5

    @pytest.mark.parametrize(
        ("code", "reason", "error"),
        [
            (400, "BadRequest", Invalid),
            (404, "NotFound", NotFound),
            (409, "Conflict", Conflict),
            (410, "Expired", Gone),
            (422, "Invalid", Invalid),
        ],
    )
    async def test_are_not_for_refusals(
        self, api: FakeApi, client: HttpClient, code: int, reason: str, error: type[ApiError]
    ) -> None:
        api.intercept = first(99, lambda: status(code, reason, "because"))
        with pytest.raises(error, match="because"):
            await client.apply(CONFIGMAPS, CM, field_manager="m")
        assert len(api.seen) == 1

    async def test_a_create_is_not_repeated_where_it_may_have_been_done(self, api: FakeApi, client: HttpClient) -> None:
        api.intercept = reset
        with pytest.raises(Unreachable):
            await client.create(CONFIGMAPS, CM, field_manager="m")
        assert len(api.requests("POST")) == 1

    async def test_a_create_that_was_turned_away_is(self, api: FakeApi, client: HttpClient) -> None:
        api.intercept = first(1, lambda: status(429, "TooManyRequests"))
        await client.create(CONFIGMAPS, CM, field_manager="m")
        with pytest.raises(AlreadyExists):
            await client.create(CONFIGMAPS, CM, field_manager="m")

    async def test_wait_as_long_as_the_server_asks(self, api: FakeApi, client: HttpClient) -> None:
        def busy() -> web.Response:
            answer = status(429, "TooManyRequests")
            answer.headers["Retry-After"] = "1"
            return answer

        api.intercept = first(1, busy)
        loop = asyncio.get_running_loop()
        start = loop.time()
        await client.apply(CONFIGMAPS, CM, field_manager="m")
        assert loop.time() - start >= 1

    async def test_a_wait_beyond_the_deadline_is_handed_to_the_caller(self, api: FakeApi, client: HttpClient) -> None:
        def busy() -> web.Response:
            return status(429, "TooManyRequests", retryAfterSeconds=60)

        api.intercept = first(99, busy)
        with pytest.raises(TooManyRequests) as caught:
            await client.apply(CONFIGMAPS, CM, field_manager="m")
        assert caught.value.retry_after == 60
        assert len(api.seen) == 1


class TestDeadlines:
    async def test_a_server_that_says_nothing(self, api: FakeApi) -> None:
        api.freeze()
        loop = asyncio.get_running_loop()
        start = loop.time()
        async with HttpClient(api.connection, attempt_seconds=60, deadline_seconds=0.2) as client:
            with pytest.raises(Unreachable, match="no answer"):
                await client.get(CONFIGMAPS, "ns", "a")
        assert loop.time() - start < 30

    async def test_a_server_that_fails_and_then_says_nothing_is_reported_as_it_failed(self, api: FakeApi) -> None:
        async def overloaded(_: web.Request) -> web.StreamResponse | None:
            api.freeze()
            return status(503, "ServiceUnavailable", "overloaded")

        api.intercept = overloaded
        async with HttpClient(api.connection, attempt_seconds=60, deadline_seconds=3) as client:
            with pytest.raises(ServerError, match="overloaded"):
                await client.get(CONFIGMAPS, "ns", "a")

    async def test_a_server_that_drips(self, api: FakeApi) -> None:
        async def drip(request: web.Request) -> web.StreamResponse | None:
            response = web.StreamResponse()
            await response.prepare(request)
            for _ in range(100):
                await response.write(b" ")
                await asyncio.sleep(0.05)
            return response

        api.intercept = drip
        async with HttpClient(api.connection, attempt_seconds=0.2, deadline_seconds=0.5) as client:
            with pytest.raises(Unreachable, match="no answer"):
                await client.get(CONFIGMAPS, "ns", "a")

    async def test_nobody_listens(self) -> None:
        async with FakeApi() as api:
            connection = api.connection
        async with HttpClient(connection, deadline_seconds=0.5) as client:
            with pytest.raises(Unreachable, match="cannot be reached"):
                await client.get(CONFIGMAPS, "ns", "a")

    @pytest.mark.parametrize("body", [b"", b"{", b"[]", b"<html>"])
    async def test_an_answer_that_is_none(self, api: FakeApi, body: bytes) -> None:
        api.intercept = first(99, lambda: web.Response(body=body))
        async with HttpClient(api.connection) as client:
            with pytest.raises(Unreachable, match="not a JSON object"):
                await client.create(CONFIGMAPS, CM, field_manager="m")


class TestLists:
    @pytest.mark.parametrize("count", [0, 1, 35])
    async def test_come_whole(self, api: FakeApi, client: HttpClient, count: int) -> None:
        for number in range(count):
            api.put(CONFIGMAPS, "ns", f"c{number:02}")
        listed = await client.list(CONFIGMAPS)
        assert [item["metadata"]["name"] for item in listed.items] == [f"c{number:02}" for number in range(count)]
        assert listed.resource_version == str(api.version)

    async def test_select(self, api: FakeApi, client: HttpClient) -> None:
        api.put(CONFIGMAPS, "ns", "ours", metadata={"labels": {"app": "x"}})
        api.put(CONFIGMAPS, "ns", "theirs")
        listed = await client.list(CONFIGMAPS, "ns", label_selector="app=x")
        assert [item["metadata"]["name"] for item in listed.items] == ["ours"]


class TestWrites:
    async def test_an_apply_names_its_manager_and_is_strict(self, api: FakeApi, client: HttpClient) -> None:
        await client.apply(CONFIGMAPS, CM, field_manager="m")
        (seen,) = api.requests("PATCH")
        assert seen.path == "/api/v1/namespaces/ns/configmaps/a"
        assert seen.query == {"fieldManager": "m", "force": "true", "fieldValidation": "Strict"}
        assert seen.headers["Content-Type"] == "application/apply-patch+yaml"
        assert seen.body == CM

    async def test_a_status_is_applied_for_the_very_object(self, api: FakeApi, client: HttpClient) -> None:
        obj = api.put(DEPLOYMENTS, "ns", "d", spec={"replicas": 1})
        await client.apply_status(DEPLOYMENTS, obj, {"replicas": 1})
        (seen,) = api.requests("PATCH")
        assert seen.path == "/apis/apps/v1/namespaces/ns/deployments/d/status"
        assert seen.body == {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {
                "namespace": "ns",
                "name": "d",
                "uid": obj["metadata"]["uid"],
                "resourceVersion": obj["metadata"]["resourceVersion"],
            },
            "status": {"replicas": 1},
        }

    async def test_a_delete_tells_whether_there_was_something(self, api: FakeApi, client: HttpClient) -> None:
        obj = api.put(NODES, None, "n")
        with pytest.raises(Conflict):
            await client.delete(NODES, None, "n", uid="another")
        assert await client.delete(NODES, None, "n", uid=obj["metadata"]["uid"])
        assert not await client.delete(NODES, None, "n")
        assert api.requests("DELETE")[1].body["propagationPolicy"] == "Background"

    async def test_without_the_lease_nothing_is_sent(self, api: FakeApi) -> None:
        async with HttpClient(api.connection, may_write=lambda: False) as client:
            for write in (
                client.apply(CONFIGMAPS, CM, field_manager="m"),
                client.create(CONFIGMAPS, CM, field_manager="m"),
                client.delete(CONFIGMAPS, "ns", "a"),
            ):
                with pytest.raises(NotLeader):
                    await write
            assert api.seen == []
            await client.list(CONFIGMAPS)

    async def test_losing_it_between_two_attempts_stops_the_second(self, api: FakeApi) -> None:
        held = True

        async def lose(_: web.Request) -> web.StreamResponse | None:
            nonlocal held
            held = False
            return status(503, "Trouble")

        api.intercept = lose
        async with HttpClient(api.connection, may_write=lambda: held) as client:
            with pytest.raises(NotLeader):
                await client.apply(CONFIGMAPS, CM, field_manager="m")
        assert len(api.seen) == 1


class TestWatches:
    @staticmethod
    async def collect(client: HttpClient, version: str, into: list[tuple[str, str]], **options: Any) -> None:
        async for event in client.watch(CONFIGMAPS, resource_version=version, **options):
            into.append((event.type, Document(event.object).key[1]))  # noqa: PERF401 - as it comes

    async def test_bring_what_happened_since_and_what_happens(self, api: FakeApi, client: HttpClient) -> None:
        api.put(CONFIGMAPS, "ns", "before")
        version = str(api.version)
        api.put(CONFIGMAPS, "ns", "missed")
        heard: list[tuple[str, str]] = []
        watching = asyncio.create_task(self.collect(client, version, heard))
        await eventually(lambda: len(heard) == 1, "the missed event")
        api.put(CONFIGMAPS, "ns", "before", data={"x": "y"})
        api.remove(CONFIGMAPS, "ns", "missed")
        await eventually(lambda: len(heard) == 3, "the new events")
        api.end_watches()
        await watching
        assert heard == [("ADDED", "missed"), ("MODIFIED", "before"), ("DELETED", "missed")]

    async def test_put_events_together_wherever_the_bytes_are_cut(self, api: FakeApi, client: HttpClient) -> None:
        heard: list[tuple[str, str]] = []
        watching = asyncio.create_task(self.collect(client, "100", heard))
        await eventually(lambda: api.watching == 1, "the watch is open")
        line = b'{"type":"ADDED","object":{"metadata":{"name":"\xc3\xa4","resourceVersion":"101"}}}\n'
        for byte in line:
            api.send(bytes([byte]))
            await asyncio.sleep(0)
        api.send(line * 3)
        api.end_watches()
        await watching
        assert heard == [("ADDED", "ä")] * 4

    async def test_take_objects_of_megabytes(self, api: FakeApi, client: HttpClient) -> None:
        heard: list[tuple[str, str]] = []
        watching = asyncio.create_task(self.collect(client, "100", heard))
        await eventually(lambda: api.watching == 1, "the watch is open")
        api.put(CONFIGMAPS, "ns", "big", data={"x": "y" * 3_000_000})
        api.end_watches()
        await watching
        assert heard == [("ADDED", "big")]

    async def test_silence_ends_them_and_bookmarks_are_none(self, api: FakeApi, client: HttpClient) -> None:
        api.bookmark_every = 0.1
        heard: list[tuple[str, str]] = []
        watching = asyncio.create_task(self.collect(client, "100", heard, inactivity_seconds=0.4))
        await eventually(lambda: len(heard) >= 8, "bookmarks")
        assert not watching.done()
        api.freeze()
        with pytest.raises(Silent, match="silent"):
            await watching
        assert {kind for kind, _ in heard} == {"BOOKMARK"}

    @pytest.mark.parametrize(
        ("sent", "message"),
        [
            (b'{"type":"ADDED","object":{"meta', "cut off in the middle"),
            (b"<html>\n", "no event"),
            (b'{"type":"ADDED"}\n', "no event"),
            (b'["ADDED"]\n', "no event"),
        ],
    )
    async def test_what_is_no_event_is_not_taken_for_one(
        self, api: FakeApi, client: HttpClient, sent: bytes, message: str
    ) -> None:
        heard: list[tuple[str, str]] = []
        watching = asyncio.create_task(self.collect(client, "100", heard))
        await eventually(lambda: api.watching == 1, "the watch is open")
        api.send(sent)
        api.end_watches()
        with pytest.raises(Unreachable, match=message):
            await watching
        assert heard == []

    async def test_an_expired_position_is_gone(self, api: FakeApi, client: HttpClient) -> None:
        api.put(CONFIGMAPS, "ns", "a")
        api.compact()
        with pytest.raises(Gone):
            await self.collect(client, "100", [])

    async def test_an_error_in_the_stream_has_its_type(self, api: FakeApi, client: HttpClient) -> None:
        watching = asyncio.create_task(self.collect(client, "100", []))
        await eventually(lambda: api.watching == 1, "the watch is open")
        api.send_event("ERROR", {"kind": "Status", "code": 500, "reason": "InternalError", "message": "etcd is away"})
        with pytest.raises(ServerError, match="etcd is away"):
            await watching

    async def test_a_refusal_has_its_type(self, api: FakeApi, client: HttpClient) -> None:
        api.intercept = first(1, lambda: status(429, "TooManyRequests"))
        with pytest.raises(TooManyRequests):
            await self.collect(client, "100", [])

    async def test_closing_one_early_frees_the_connection(self, api: FakeApi, client: HttpClient) -> None:
        stream = client.watch(CONFIGMAPS, resource_version="100")
        api.put(CONFIGMAPS, "ns", "a")
        assert (await anext(stream)).type == "ADDED"
        await stream.aclose()

        def ended() -> bool:
            api.put(CONFIGMAPS, "ns", "b")  # writing is what makes the server see that nobody listens
            return api.watching == 0

        await eventually(ended, "the server sees the end")


async def test_each_attempt_is_observed(api: FakeApi) -> None:
    observed: list[tuple[str, str, int]] = []
    api.intercept = first(1, lambda: status(503, "Trouble"))
    async with HttpClient(
        api.connection, observe=lambda verb, resource, code, _: observed.append((verb, resource.name, code))
    ) as client:
        await client.apply(CONFIGMAPS, CM, field_manager="m")
        await client.list(CONFIGMAPS)
    assert observed == [("PATCH", "configmaps", 503), ("PATCH", "configmaps", 201), ("LIST", "configmaps", 200)]


@pytest.mark.looptime
async def test_the_bucket_lets_a_burst_through_and_then_the_rate() -> None:
    bucket, loop = TokenBucket(rate=10, burst=5), asyncio.get_running_loop()
    start = loop.time()
    served: list[float] = []

    async def take() -> None:
        await bucket.take()
        served.append(round(loop.time() - start, 3))

    await asyncio.gather(*(take() for _ in range(10)))
    assert served == [0, 0, 0, 0, 0, 0.1, 0.2, 0.3, 0.4, 0.5]
    await asyncio.sleep(100)
    start = loop.time()
    served.clear()
    await asyncio.gather(*(take() for _ in range(6)))
    assert served == [0, 0, 0, 0, 0, 0.1]


async def test_serves_tells_whether_a_kind_is_there(api: FakeApi, client: HttpClient) -> None:
    async def discovery(request: web.Request) -> web.StreamResponse | None:
        if request.path == "/apis/apps/v1":
            return web.json_response({"resources": [{"name": "deployments"}, {"name": "deployments/status"}]})
        return status(404, "NotFound")

    api.intercept = discovery
    assert await client.serves(DEPLOYMENTS)
    assert not await client.serves(CONFIGMAPS)
