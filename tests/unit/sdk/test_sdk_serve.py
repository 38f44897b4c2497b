"""The OpenAI API over a session whose tokens are known, through a real server and the official client."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx2
import openai
import pytest
import uvicorn
from rm_abstract.serve.app import Api
from rm_abstract.serve.engine import Engine
from scripted_session import ScriptedSession


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.002)


@dataclass
class Served:
    session: ScriptedSession
    engine: Engine
    url: str

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def post(self, path: str, **body: Any) -> httpx2.Response:
        return httpx2.post(f"{self.url}{path}", json={"model": "m", **body}, timeout=120)

    def complete(self, prompt: Any, **body: Any) -> dict[str, Any]:
        response = self.post("/v1/completions", prompt=prompt, **body)
        assert response.status_code == 200, response.text
        return dict(response.json())

    def one_step(self) -> None:
        assert self.session.pace.permits is not None
        self.session.pace.permits.release()


@pytest.fixture
def served() -> Iterator[Served]:
    """Two generations at a time, two more may wait."""
    session = ScriptedSession()
    engine = Engine(session, max_batch=2, max_queue=2)
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(Api(engine, "m").application(), lifespan="off", log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])), daemon=True)
    thread.start()
    until(lambda: server.started)
    yield Served(session, engine, f"http://127.0.0.1:{listener.getsockname()[1]}")
    session.pace.permits = None
    server.should_exit = True
    thread.join(10)
    session.close()
    listener.close()


def test_models(served: Served) -> None:
    (model,) = served.client.models.list().data
    assert (model.id, served.client.models.retrieve("m").id) == ("m", "m")
    with pytest.raises(openai.NotFoundError):
        served.client.models.retrieve("other")


def test_a_completion(served: Served) -> None:
    answer = served.client.completions.create(model="m", prompt="hello", temperature=0)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("HELLO", "stop")
    assert answer.usage is not None
    # The prompt has a token at its beginning, the answer one at its end.
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (6, 6, 12)


def test_a_chat(served: Served) -> None:
    messages: Any = [
        {"role": "system", "content": "be "},
        {"role": "user", "content": [{"type": "text", "text": "loud"}]},
    ]
    answer = served.client.chat.completions.create(model="m", messages=messages)
    assert answer.choices[0].message.content == "BE LOUD"
    assert answer.choices[0].message.role == "assistant"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 7, "the template has put in what is needed; nothing is added to it"


@pytest.mark.parametrize("usage", [True, False])
def test_a_streamed_chat(served: Served, usage: bool) -> None:
    options: Any = {"stream_options": {"include_usage": True}} if usage else {}
    stream = served.client.chat.completions.create(
        model="m", messages=[{"role": "user", "content": "grüß dich"}], stream=True, **options
    )
    chunks = list(stream)
    texts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(text or "" for text in texts) == "GRÜSS DICH"
    assert len([text for text in texts if text]) > 5
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert len({chunk.id for chunk in chunks}) == 1
    if usage:
        assert chunks[-1].choices == []
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == len("GRÜSS DICH".encode()) + 1
    assert all(chunk.usage is None for chunk in chunks[: -1 if usage else None])


def test_a_stream_as_it_is_on_the_wire(served: Served) -> None:
    response = served.post("/v1/completions", prompt="ab", stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = response.text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    assert [event["choices"][0]["text"] for event in events] == ["A", "B", ""]
    assert [event["choices"][0]["finish_reason"] for event in events] == [None, None, "stop"]


@pytest.mark.parametrize(
    ("options", "text", "finish", "tokens"),
    [
        ({"max_tokens": 3}, "HEL", "length", 3),
        ({"max_tokens": 11}, "HELLO WORLD", "length", 11),
        ({"max_tokens": 12}, "HELLO WORLD", "stop", 12),
        ({"stop": "WOR"}, "HELLO ", "stop", 9),
        ({"stop": ["nothing", " "]}, "HELLO", "stop", 6),
        ({"stop": "LD!"}, "HELLO WORLD", "stop", 12),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_where_an_answer_ends(
    served: Served, options: dict[str, Any], text: str, finish: str, tokens: int, stream: bool
) -> None:
    if not stream:
        answer = served.complete("hello world", **options)
        choice = answer["choices"][0]
        assert (choice["text"], choice["finish_reason"], answer["usage"]["completion_tokens"]) == (text, finish, tokens)
        return
    chunks = list(
        served.client.completions.create(
            model="m", prompt="hello world", stream=True, stream_options={"include_usage": True}, **options
        )
    )
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == text
    assert chunks[-2].choices[0].finish_reason == finish
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == tokens


def test_without_a_limit_a_completion_has_16_tokens_and_a_chat_what_fits(served: Served) -> None:
    assert served.complete("x" * 50)["usage"]["completion_tokens"] == 16
    chat = served.post("/v1/chat/completions", messages=[{"role": "user", "content": "x" * 150}]).json()
    assert (chat["choices"][0]["finish_reason"], chat["usage"]["total_tokens"]) == ("length", 200)


def test_several_prompts_and_several_answers(served: Served) -> None:
    answer = served.complete(["ab", "c"], n=2, seed=5)
    assert [(choice["index"], choice["text"]) for choice in answer["choices"]] == [
        (0, "AB"),
        (1, "AB"),
        (2, "C"),
        (3, "C"),
    ]
    assert answer["usage"] == {"prompt_tokens": 5, "completion_tokens": 10, "total_tokens": 15}
    assert sorted((request.seed, bytes(request.prompt[1:])) for request in served.session.pace.requests) == [
        (5, b"ab"), (5, b"c"), (6, b"ab"), (6, b"c"),
    ]  # fmt: skip


def test_prompts_of_tokens(served: Served) -> None:
    assert served.complete([104, 105])["choices"][0]["text"] == "HI"
    assert [choice["text"] for choice in served.complete([[104], [105]])["choices"]] == ["H", "I"]


def test_options_reach_the_engine(served: Served) -> None:
    served.complete(
        "a", temperature=0.5, top_p=0.25, top_k=7, seed=3, presence_penalty=1, frequency_penalty=-1, ignore_eos=True
    )
    (request,) = served.session.pace.requests
    assert (request.temperature, request.top_p, request.top_k, request.seed) == (0.5, 0.25, 7, 3)
    assert (request.presence_penalty, request.frequency_penalty, request.ignore_eos) == (1, -1, True)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("completions", {}, "prompt"),
        ("completions", {"prompt": []}, "prompt"),
        ("completions", {"prompt": [1, "a"]}, "prompt"),
        ("completions", {"prompt": [257]}, "prompt"),
        ("completions", {"prompt": [-1]}, "prompt"),
        ("completions", {"prompt": "a", "temperature": 3}, "temperature"),
        ("completions", {"prompt": "a", "temperature": True}, "temperature"),
        ("completions", {"prompt": "a", "top_p": 0}, "top_p"),
        ("completions", {"prompt": "a", "n": 0}, "n"),
        ("completions", {"prompt": "a", "max_tokens": 1.5}, "max_tokens"),
        ("completions", {"prompt": "a", "stop": [""]}, "stop"),
        ("completions", {"prompt": "a", "stream": "yes"}, "stream"),
        ("completions", {"prompt": "a", "stream_options": {"include_usage": True}}, "stream_options"),
        ("completions", {"prompt": "a", "logprobs": 3}, "logprobs"),
        ("completions", {"prompt": "a", "model": 7}, "model"),
        ("chat/completions", {}, "messages"),
        ("chat/completions", {"messages": []}, "messages"),
        ("chat/completions", {"messages": [{"content": "a"}]}, "messages"),
        ("chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
        ("chat/completions", {"messages": [{"role": "user", "content": "a"}], "tools": [{}]}, "tools"),
    ],
)
def test_bad_requests_name_the_parameter(served: Served, path: str, body: dict[str, Any], param: str) -> None:
    response = served.post(f"/v1/{path}", **body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert error["message"]


def test_neutral_values_of_what_is_not_supported_are_accepted(served: Served) -> None:
    served.complete("a", echo=False, logprobs=None, best_of=1, suffix=None, logit_bias={}, user="me", unknown=None)


def test_a_model_that_is_not_here(served: Served) -> None:
    with pytest.raises(openai.NotFoundError) as raised:
        served.client.completions.create(model="gpt", prompt="a")
    assert raised.value.code == "model_not_found"


@pytest.mark.parametrize(("length", "limit"), [(201, None), (150, 60), (199, 2)])
def test_a_context_that_is_too_long(served: Served, length: int, limit: int | None) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        served.client.completions.create(model="m", prompt="x" * (length - 1), max_tokens=limit)
    assert raised.value.code == "context_length_exceeded"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff"])
def test_bodies_that_are_no_request(served: Served, body: bytes) -> None:
    response = httpx2.post(f"{served.url}/v1/completions", content=body)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_errors_of_the_server_have_the_same_shape(served: Served) -> None:
    assert httpx2.get(f"{served.url}/nothing").json()["error"]["message"]
    response = httpx2.get(f"{served.url}/v1/completions")
    assert (response.status_code, response.headers["allow"]) == (405, "POST")


def test_no_more_run_at_once_than_the_batch_and_no_more_wait_than_the_queue(served: Served) -> None:
    served.session.pace.permits = threading.Semaphore(0)
    results: list[str] = []
    threads = [
        threading.Thread(target=lambda text=text: results.append(served.complete(text)["choices"][0]["text"]))  # type: ignore[misc]
        for text in ("a", "b", "c", "d")
    ]
    for thread in threads:
        thread.start()
    until(lambda: served.engine.admitted == 4)
    with pytest.raises(openai.RateLimitError) as raised:
        served.client.completions.create(model="m", prompt="e")
    assert raised.value.response.headers["retry-after"]
    served.session.pace.permits.release(1000)
    for thread in threads:
        thread.join(10)
    assert sorted(results) == ["A", "B", "C", "D"]
    assert served.session.pace.most_at_once == 2
    assert served.complete("e")["choices"][0]["text"] == "E"


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_place(served: Served, stream: bool) -> None:
    served.session.pace.permits = threading.Semaphore(1)
    with socket.create_connection(served.url.removeprefix("http://").split(":")) as connection:  # type: ignore[arg-type]
        body = json.dumps({"model": "m", "prompt": "long", "stream": stream}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        until(lambda: served.session.pace.requests)
    until(lambda: served.session.pace.dropped)
    until(lambda: served.engine.admitted == 0)


def test_what_waits_is_never_begun_when_its_client_leaves(served: Served) -> None:
    served.session.pace.permits = threading.Semaphore(0)
    with httpx2.Client(timeout=0.3) as client, pytest.raises(httpx2.TimeoutException):
        client.post(f"{served.url}/v1/completions", json={"model": "m", "prompt": ["a", "b", "never"]})
    until(lambda: served.engine.admitted == 0)
    assert len(served.session.pace.requests) == 2


def test_a_server_that_drains_finishes_and_takes_no_more(served: Served) -> None:
    served.session.pace.permits = threading.Semaphore(1)
    stream = served.client.completions.create(model="m", prompt="bye", stream=True)
    first = next(stream)
    served.engine.draining = True
    assert httpx2.get(f"{served.url}/health").status_code == 503
    with pytest.raises(openai.InternalServerError) as raised:
        served.client.completions.create(model="m", prompt="too late")
    assert raised.value.status_code == 503
    served.session.pace.permits.release(100)
    assert first.choices[0].text + "".join(chunk.choices[0].text for chunk in stream) == "BYE"


def test_an_engine_that_fails_says_so_everywhere(served: Served) -> None:
    served.session.pace.permits = threading.Semaphore(1)
    stream = served.client.completions.create(model="m", prompt="bye", stream=True)
    next(stream)
    served.session.broken.set()
    with pytest.raises(openai.APIError, match="the device has gone"):
        list(stream)
    assert httpx2.get(f"{served.url}/health").status_code == 503
    response = served.post("/v1/completions", prompt="a")
    assert (response.status_code, response.json()["error"]["code"]) == (503, "engine_failed")


def test_who_waits_for_a_failure_is_told(served: Served) -> None:
    async def scenario() -> None:
        waiting = asyncio.create_task(served.engine.failed())
        await asyncio.sleep(0)
        assert not waiting.done()
        served.session.broken.set()
        await asyncio.to_thread(served.post, "/v1/completions", prompt="a")
        await asyncio.wait_for(waiting, 10)
        await asyncio.wait_for(served.engine.failed(), 10)

    with asyncio.Runner() as runner:
        runner.run(scenario())


def test_health(served: Served) -> None:
    assert httpx2.get(f"{served.url}/health").status_code == 200
