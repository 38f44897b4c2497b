"""What tests of the operator's lower layers share."""

from collections.abc import AsyncIterator

import pytest
from fake_api import FakeApi
from rm_operator.kube.http import HttpClient


@pytest.fixture
async def api() -> AsyncIterator[FakeApi]:
    async with FakeApi() as running:
        yield running


@pytest.fixture
async def client(api: FakeApi) -> AsyncIterator[HttpClient]:
    async with HttpClient(api.connection, attempt_seconds=0.5, deadline_seconds=5) as opened:
        yield opened
