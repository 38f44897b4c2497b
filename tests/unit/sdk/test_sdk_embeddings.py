"""``/v1/embeddings`` over a model whose vectors are known, through a real server and the official client."""

import asyncio
import base64
import math
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import httpx2
import openai
import pytest
import uvicorn
from openai.types import CreateEmbeddingResponse
from rm_abstract.core.embedding import Embedder
from rm_abstract.serve.app import Api
from rm_abstract.serve.embeddings import EmbeddingEngine
from rm_abstract.serve.fields import FIELDS, Use
from test_sdk_serve import until
from test_sdk_serve_metrics import samples
from test_sdk_text import SPECIAL, ByteTokenizer


def vector(tokens: Sequence[int]) -> list[float]:
    """How many tokens there are, the first one and the last one, over their length: exact where that is."""
    numbers = [float(len(tokens)), float(tokens[0]), float(tokens[-1]), 0.0]
    length = math.sqrt(sum(number * number for number in numbers))
    return [number / length for number in numbers]


class KnownEmbedder(Embedder):
    """Computes ``vector``, at the pace that a test sets."""

    def __init__(self) -> None:
        self.tokenizer = ByteTokenizer()
        self.max_sequence_length = 20
        self.vocabulary_size = 257
        self.size = 4
        self.sizes = range(1, 5)
        self.normalized = True
        self.batches: list[list[Sequence[int]]] = []
        self.permits: threading.Semaphore | None = None
        self.broken = False
        self.closed = False

    def embed(self, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
        """See the base class."""
        self.batches.append(list(prompts))
        if self.permits is not None:
            self.permits.acquire()
        if self.broken:
            raise RuntimeError("the device\nhas gone")
        return [vector(prompt) for prompt in prompts]

    def close(self) -> None:
        """See the base class."""
        self.closed = True


@dataclass
class Serving:
    embedder: KnownEmbedder
    url: str
    engines: list[EmbeddingEngine] = field(default_factory=list)

    @property
    def engine(self) -> EmbeddingEngine:
        return self.engines[0]

    @cached_property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def post(self, path: str = "/v1/embeddings", **body: Any) -> httpx2.Response:
        return httpx2.post(f"{self.url}{path}", json={"model": "m", **body}, timeout=120)


@pytest.fixture
def serving() -> Iterator[Serving]:
    """Batches of two inputs; two requests are computed and two more may wait."""
    embedder = KnownEmbedder()
    listener = socket.create_server(("127.0.0.1", 0))
    made = Serving(embedder, f"http://127.0.0.1:{listener.getsockname()[1]}")
    servers: list[uvicorn.Server] = []

    async def main() -> None:
        made.engines.append(EmbeddingEngine(embedder, max_batch=2, max_queue=2))
        config = uvicorn.Config(Api(made.engine, "m").application(), lifespan="off", log_level="warning")
        servers.append(uvicorn.Server(config))
        await servers[0].serve([listener])

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    until(lambda: servers and servers[0].started)
    yield made
    made.client.close()
    if embedder.permits is not None:
        for _ in range(100):
            embedder.permits.release()
    servers[0].should_exit = True
    thread.join(30)
    made.engine.close()
    assert embedder.closed
    listener.close()


def test_a_text(serving: Serving) -> None:
    answer = serving.client.embeddings.create(model="m", input="hi")
    (only,) = answer.data
    wanted = vector([SPECIAL, *b"hi"])
    # The client asks for base64 where it is not told otherwise, and decodes it: 32 bits of each number are left.
    assert only.embedding == pytest.approx(wanted, abs=1e-7)
    assert (only.index, only.object, answer.object, answer.model) == (0, "embedding", "list", "m")
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (3, 3)


def test_the_answer_is_as_published(serving: Serving) -> None:
    body = serving.post(input=["a", "b"]).json()
    CreateEmbeddingResponse.model_validate(body, strict=True)
    assert set(body) == set(CreateEmbeddingResponse.model_fields)


def test_formats(serving: Serving) -> None:
    wanted = vector([SPECIAL, *b"hi"])
    floats = serving.post(input="hi", encoding_format="float").json()["data"][0]["embedding"]
    assert floats == wanted
    coded = serving.post(input="hi", encoding_format="base64").json()["data"][0]["embedding"]
    assert base64.b64decode(coded) == struct.pack("<4f", *wanted)
    assert serving.post(input="hi").json()["data"][0]["embedding"] == wanted
    assert serving.client.embeddings.create(model="m", input="hi", encoding_format="float").data[0].embedding == wanted


@pytest.mark.parametrize(
    ("value", "prompts"),
    [
        ("hi", [[SPECIAL, *b"hi"]]),
        (["a", "bc", "a"], [[SPECIAL, *b"a"], [SPECIAL, *b"bc"], [SPECIAL, *b"a"]]),
        ([7, 8], [[7, 8]]),
        ([[7, 8], [9]], [[7, 8], [9]]),
    ],
)
def test_what_an_input_may_be(serving: Serving, value: Any, prompts: list[list[int]]) -> None:
    """Tokens are taken as they are; a text gets the special ones of the model."""
    answer = serving.post(input=value).json()
    assert [each["index"] for each in answer["data"]] == list(range(len(prompts)))
    assert [each["embedding"] for each in answer["data"]] == [vector(prompt) for prompt in prompts]
    assert answer["usage"]["total_tokens"] == sum(map(len, prompts))


def test_as_many_inputs_as_published(serving: Serving) -> None:
    answer = serving.client.embeddings.create(model="m", input=["x"] * 2048)
    assert [each.index for each in answer.data] == list(range(2048))
    assert answer.usage.total_tokens == 2 * 2048
    assert {len(batch) for batch in serving.embedder.batches} == {2}


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({}, "input", None),
        ({"input": ""}, "input", None),
        ({"input": []}, "input", None),
        ({"input": ["a", ""]}, "input", None),
        ({"input": [[]]}, "input", None),
        ({"input": ["a", 1]}, "input", None),
        ({"input": [257]}, "input", None),
        ({"input": [-1]}, "input", None),
        ({"input": [True]}, "input", None),
        ({"input": {"text": "a"}}, "input", None),
        ({"input": ["a"] * 2049}, "input", None),
        ({"input": "x" * 20}, "input", "context_length_exceeded"),
        ({"input": ["a", [1] * 21]}, "input", None),
        ({"input": [[1], [1] * 21]}, "input", "context_length_exceeded"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format", None),
        ({"input": "a", "dimensions": 0}, "dimensions", None),
        ({"input": "a", "dimensions": "3"}, "dimensions", None),
        ({"input": "a", "dimensions": True}, "dimensions", None),
        ({"input": "a", "dimensions": 5}, "dimensions", "unsupported_parameter"),
        ({"input": "a", "truncate": "END"}, "truncate", "unknown_parameter"),
        ({"input": "a", "model": None}, "model", None),
    ],
)
def test_bad_requests(serving: Serving, body: dict[str, Any], param: str, code: str | None) -> None:
    response = serving.post(**body)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert (error["param"], error["code"], error["type"]) == (param, code, "invalid_request_error")
    assert serving.embedder.batches == []


def test_another_model(serving: Serving) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        serving.client.embeddings.create(model="other", input="a")
    assert caught.value.code == "model_not_found"


def test_a_vector_that_is_cut_has_length_1_again(serving: Serving) -> None:
    whole = vector([SPECIAL, *b"hi"])
    answer = serving.client.embeddings.create(model="m", input="hi", dimensions=2, encoding_format="float")
    length = math.hypot(*whole[:2])
    assert answer.data[0].embedding == pytest.approx([whole[0] / length, whole[1] / length])
    serving.embedder.normalized = False
    answer = serving.client.embeddings.create(model="m", input="hi", dimensions=2, encoding_format="float")
    assert answer.data[0].embedding == whole[:2]


def test_a_model_that_was_not_made_to_be_cut(serving: Serving) -> None:
    serving.embedder.sizes = (4,)
    assert serving.post(input="a", dimensions=4).status_code == 200
    with pytest.raises(openai.BadRequestError) as caught:
        serving.client.embeddings.create(model="m", input="hi", dimensions=2)
    assert (caught.value.param, caught.value.code) == ("dimensions", "unsupported_parameter")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
    ],
)
def test_it_generates_nothing(serving: Serving, path: str, body: dict[str, Any]) -> None:
    response = serving.post(path, **body)
    assert response.status_code == 404
    error = response.json()["error"]
    assert (error["code"], error["param"], error["type"]) == ("unsupported_model", "model", "invalid_request_error")
    assert "computes embeddings" in error["message"]


@pytest.mark.parametrize("name", [name for name, each in FIELDS["/v1/embeddings"].items() if each.use is Use.HARMLESS])
def test_what_is_harmless_changes_nothing(serving: Serving, name: str) -> None:
    assert serving.post(input="a", **{name: "x"}).json() == serving.post(input="a").json()


def ask(serving: Serving, value: Any, answers: list[httpx2.Response]) -> threading.Thread:
    thread = threading.Thread(target=lambda: answers.append(serving.post(input=value)))
    thread.start()
    return thread


def test_requests_take_turns(serving: Serving) -> None:
    """A large request that is there first does not keep a small one waiting for all of it."""
    serving.embedder.permits = threading.Semaphore(0)
    answers: list[httpx2.Response] = []
    large = ask(serving, [[index] for index in range(10)], answers)
    until(lambda: serving.embedder.batches)
    small = ask(serving, [99], answers)
    until(lambda: serving.engine.admitted == 2)
    for _ in range(2):
        serving.embedder.permits.release()
    small.join(60)
    assert [answer.json()["usage"]["total_tokens"] for answer in answers] == [1]
    for _ in range(10):
        serving.embedder.permits.release()
    large.join(60)
    assert [each["embedding"] for each in answers[1].json()["data"]] == [vector([index]) for index in range(10)]


def test_what_there_is_no_room_for_is_refused_at_once(serving: Serving) -> None:
    serving.embedder.permits = threading.Semaphore(0)
    answers: list[httpx2.Response] = []
    threads = [ask(serving, ["a", "b", "c"], answers) for _ in range(4)]
    until(lambda: serving.engine.admitted == 4)
    with pytest.raises(openai.RateLimitError) as caught:
        serving.client.embeddings.create(model="m", input="a")
    assert caught.value.response.headers["retry-after"] == "1"
    until(lambda: serving.engine.running == 2)
    found = samples(httpx2.get(f"{serving.url}/metrics").text)
    assert (found["vllm:num_requests_running"], found["vllm:num_requests_waiting"]) == (2, 10)
    for _ in range(20):
        serving.embedder.permits.release()
    for thread in threads:
        thread.join(60)
    assert [answer.status_code for answer in answers] == [200] * 4
    found = samples(httpx2.get(f"{serving.url}/metrics").text)
    assert (found["vllm:num_requests_running"], found["vllm:num_requests_waiting"]) == (0, 0)
    assert found["vllm:prompt_tokens_total"] == 4 * 3 * 2
    assert found["vllm:request_success_total{stop}"] == 4
    assert found["vllm:e2e_request_latency_seconds_count"] == 4


def test_a_client_that_leaves_costs_no_more(serving: Serving) -> None:
    serving.embedder.permits = threading.Semaphore(0)
    with socket.create_connection(("127.0.0.1", int(serving.url.rpartition(":")[2]))) as client:
        body = b'{"model": "m", "input": [[1], [2], [3], [4], [5], [6]]}'
        head = f"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body)
        until(lambda: serving.embedder.batches)
    until(lambda: serving.engine.admitted == 0)
    assert serving.engine.waiting == 0
    serving.embedder.permits.release()
    serving.embedder.permits.release()
    assert serving.post(input=[9]).status_code == 200
    assert serving.embedder.batches == [[[1], [2]], [[9]]]


def test_an_engine_that_fails(serving: Serving) -> None:
    serving.embedder.broken = True
    with pytest.raises(openai.InternalServerError) as caught:
        serving.client.embeddings.create(model="m", input="a")
    assert (caught.value.code, caught.value.status_code) == ("engine_failed", 500)
    assert serving.engine.failure == "RuntimeError: the device has gone"
    assert httpx2.get(f"{serving.url}/health").status_code == 503
    assert serving.post(input="a").status_code == 503
    assert len(serving.embedder.batches) == 1


def test_draining_finishes_what_was_begun(serving: Serving) -> None:
    serving.embedder.permits = threading.Semaphore(0)
    answers: list[httpx2.Response] = []
    begun = ask(serving, ["a", "b", "c"], answers)
    until(lambda: serving.embedder.batches)
    serving.engine.draining = True
    refused = serving.post(input="a")
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
    for _ in range(2):
        serving.embedder.permits.release()
    begun.join(60)
    assert answers[0].status_code == 200


def test_the_model_is_listed(serving: Serving) -> None:
    assert [model.id for model in serving.client.models.list().data] == ["m"]
    assert httpx2.get(f"{serving.url}/v1/models").json()["data"][0]["max_model_len"] == 20
