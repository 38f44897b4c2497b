"""A client of a device plugin's report and metrics."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

PATIENCE = 60.0


async def until(what: Callable[[], object], name: str) -> None:
    deadline = asyncio.get_running_loop().time() + PATIENCE
    while not what():
        assert asyncio.get_running_loop().time() < deadline, f"not within {PATIENCE:g} s: {name}"
        await asyncio.sleep(0.01)


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def report(self) -> dict[str, Any]:
        return json.loads(self.body)  # type: ignore[no-any-return]

    @property
    def tag(self) -> str:
        return self.headers["etag"]


class Client:
    """HTTP over a socket of its own for each request, so that a test decides when it is closed."""

    def __init__(self, port: int) -> None:
        self.port = port

    async def send(
        self, path: str = "/rma/v1/report", method: str = "GET", **headers: str
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        lines = [f"{method} {path} HTTP/1.1", "Host: x", *(f"{k.replace('_', '-')}: {v}" for k, v in headers.items())]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n")
        await writer.drain()
        return reader, writer

    @staticmethod
    async def receive(connection: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> Answer:
        reader, writer = connection
        raw = await asyncio.wait_for(reader.read(), PATIENCE)
        writer.close()
        head, _, body = raw.partition(b"\r\n\r\n")
        first, *rest = head.decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}
        return Answer(int(first.split(" ")[1]), headers, body)

    async def get(self, path: str = "/rma/v1/report", method: str = "GET", **headers: str) -> Answer:
        return await self.receive(await self.send(path, method, **headers))

    async def wait_for_change(self, tag: str, seconds: int = 60) -> Answer:
        return await self.get(if_none_match=tag, prefer=f"wait={seconds}")

    async def until(self, says: Any, what: str) -> dict[str, Any]:
        """Waits for a report of which ``says`` is true, as the operator does: from change to change."""
        async with asyncio.timeout(PATIENCE):
            answer = await self.get()
            while not says(answer.report):
                changed = await self.wait_for_change(answer.tag)
                answer = changed if changed.status == 200 else answer
        return answer.report

    async def until_series(self, name: str, expected: dict[tuple[str, ...], float]) -> None:
        """Waits until the metric's values are these."""
        deadline = asyncio.get_running_loop().time() + PATIENCE
        while (found := await self.series(name)) != expected:
            assert asyncio.get_running_loop().time() < deadline, found
            await asyncio.sleep(0.02)

    async def series(self, name: str) -> dict[tuple[str, ...], float]:
        """Values of a metric by their labels but the resource, in the order of the labels' names."""
        text = (await self.get("/metrics")).body.decode()
        return {
            tuple(value for key, value in sorted(sample.labels.items()) if key != "resource"): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name
        }
