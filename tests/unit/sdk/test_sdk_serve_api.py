"""The published API, as the official client's types have it: every field of a request is known, every answer fits."""

import json
import typing
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types import Completion, Model, completion_create_params, embedding_create_params
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.chat import completion_create_params as chat_create_params
from pydantic import BaseModel
from rm_abstract.serve.fields import FIELDS, Use
from scripted_session import chance
from test_sdk_serve import Served, served

__all__ = ["served"]

DOCUMENT = Path(__file__).parents[3] / "docs/serving.md"
OURS = {"top_k", "ignore_eos"}
"""Fields of most engines that the published API has not."""
EXTENSIONS = {"max_model_len"}
"""Members of answers that are vLLM's."""
MESSAGES = [{"role": "user", "content": "hi"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "hi"},
    "/v1/chat/completions": {"messages": MESSAGES},
}


def published(*kinds: Any) -> set[str]:
    return {name for kind in kinds for name in typing.get_type_hints(kind)}


PUBLISHED = {
    "/v1/completions": published(
        completion_create_params.CompletionCreateParamsNonStreaming,
        completion_create_params.CompletionCreateParamsStreaming,
    ),
    "/v1/chat/completions": published(
        chat_create_params.CompletionCreateParamsNonStreaming, chat_create_params.CompletionCreateParamsStreaming
    ),
    "/v1/embeddings": published(embedding_create_params.EmbeddingCreateParams),
}


@pytest.mark.parametrize("endpoint", FIELDS)
def test_every_published_field_is_known(endpoint: str) -> None:
    """A new version of the client brings new fields; what becomes of each is to be decided and written down."""
    assert set(FIELDS[endpoint]) - OURS == PUBLISHED[endpoint]


def documented() -> Iterator[tuple[str, str, str]]:
    endpoint = ""
    for line in DOCUMENT.read_text().splitlines():
        if line.startswith("### `/v1/"):
            endpoint = line.split("`")[1]
        elif line.startswith("#"):
            endpoint = ""
        elif endpoint and line.startswith("| `"):
            names, use = line.split("|")[1:3]
            for name in names.split(","):
                yield endpoint, name.strip().strip("`"), use.strip()


def test_the_documents_tables_are_what_holds() -> None:
    holds = {(endpoint, name, field.use.value) for endpoint, fields in FIELDS.items() for name, field in fields.items()}
    assert set(documented()) == holds


ASKING: dict[str, Any] = {
    "logit_bias": {"5": 10}, "suffix": "end", "tools": [{"type": "function", "function": {"name": "f"}}],
    "tool_choice": "required", "functions": [{"name": "f"}], "function_call": {"name": "f"},
    "response_format": {"type": "json_object"}, "modalities": ["text", "audio"],
    "audio": {"voice": "alloy", "format": "wav"}, "web_search_options": {}, "moderation": {"model": "m"},
    "reasoning_effort": "high", "verbosity": "low", "service_tier": "flex", "store": True,
}  # fmt: skip
"""A value of each refused field that asks for something."""


def of_use(use: Use) -> list[tuple[str, str]]:
    """Endpoint and name of the fields of this use, where text is generated."""
    return [(path, name) for path in BODIES for name, field in FIELDS[path].items() if field.use is use]


@pytest.mark.parametrize(("endpoint", "name"), of_use(Use.REFUSED))
def test_what_is_refused_is_refused_by_name(served: Served, endpoint: str, name: str) -> None:
    response = served.post(endpoint, **BODIES[endpoint], **{name: ASKING[name]})
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["param"], error["code"]) == (name, "unsupported_parameter")
    assert name in error["message"]
    for neutral in (None, *FIELDS[endpoint][name].neutral):
        assert served.post(endpoint, **BODIES[endpoint], **{name: neutral}).status_code == 200


HARMLESS: dict[str, Any] = {
    "metadata": {"a": "b"}, "parallel_tool_calls": False, "prediction": {"type": "content", "content": "HI"},
    "prompt_cache_options": {"ttl": "1h"},
}  # fmt: skip


@pytest.mark.parametrize(("endpoint", "name"), of_use(Use.HARMLESS))
def test_what_is_harmless_changes_nothing(served: Served, endpoint: str, name: str) -> None:
    answers = [
        served.post(endpoint, **BODIES[endpoint], **further).json()["choices"]
        for further in ({}, {name: HARMLESS.get(name, "x")})
    ]
    assert answers[0] == answers[1]


@pytest.mark.parametrize("endpoint", ["/v1/completions", "/v1/chat/completions"])
def test_what_nobody_knows_is_refused_as_openai_does(served: Served, endpoint: str) -> None:
    error = served.post(endpoint, **BODIES[endpoint], guided_json={}).json()["error"]
    assert (error["param"], error["code"]) == ("guided_json", "unknown_parameter")


def fits(kind: type[BaseModel], text: str) -> Any:
    """``text`` as the client's type, without any member that it does not have."""
    found = kind.model_validate_json(text, strict=True)
    for part in walk(found):
        assert set(part.model_extra or {}) <= EXTENSIONS, (type(part), part.model_extra)
    return found


def walk(value: Any) -> Iterator[BaseModel]:
    if isinstance(value, BaseModel):
        yield value
        value = [getattr(value, name) for name in type(value).model_fields]
    if isinstance(value, list):
        for item in value:
            yield from walk(item)


SETTINGS: list[dict[str, Any]] = [{}, {"n": 2}, {"max_tokens": 1}, {"stop": ["I"]}, {"seed": 3, "temperature": 0.5}]


@pytest.mark.parametrize("scored", [False, True])
@pytest.mark.parametrize("settings", SETTINGS)
def test_answers_fit_the_published_types(served: Served, settings: dict[str, Any], scored: bool) -> None:
    served.session.max_logprobs = 20
    asked = {"/v1/completions": {"logprobs": 2}, "/v1/chat/completions": {"logprobs": True, "top_logprobs": 2}}
    for endpoint, whole, chunk in (
        ("/v1/completions", Completion, Completion), ("/v1/chat/completions", ChatCompletion, ChatCompletionChunk),
    ):  # fmt: skip
        body = {**BODIES[endpoint], **settings, **(asked[endpoint] if scored else {})}
        answer = fits(whole, served.post(endpoint, **body).text)
        assert (answer.choices[0].logprobs is not None) is scored
        # The types leave out what a client could do without; clients of others do not.
        assert answer.usage is not None
        stream = served.post(endpoint, **body, stream=True, stream_options={"include_usage": True})
        events = [line.removeprefix("data: ") for line in stream.text.split("\n\n")[:-1]]
        assert events.pop() == "[DONE]"
        if endpoint == "/v1/completions":
            # The published type is that of a whole answer; in a stream, every client knows null for what goes on.
            events = [event.replace('"finish_reason":null', '"finish_reason":"stop"') for event in events]
        chunks = [fits(chunk, event) for event in events]
        assert chunks[-1].usage == answer.usage
        assert [each.usage for each in chunks[:-1]] == [None] * (len(chunks) - 1)
        assert len({(each.id, each.created, each.model) for each in chunks}) == 1


def test_models_fit_the_published_type(served: Served) -> None:
    listed = served.client.models.list()
    for model in listed.data:
        fits(Model, json.dumps(model.model_dump()))
    assert served.client.models.list(extra_query={}).object == "list"


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "kind", "code", "raised"),
    [
        ("POST", "/v1/completions", {"model": "m"}, 400, "invalid_request_error", None, openai.BadRequestError),
        ("POST", "/v1/completions", {"model": "x"}, 404, "invalid_request_error", "model_not_found",
         openai.NotFoundError),
        ("POST", "/v1/completions", {"model": "m", "prompt": "x" * 999}, 400, "invalid_request_error",
         "context_length_exceeded", openai.BadRequestError),
        ("POST", "/v1/responses", {"model": "m"}, 404, "invalid_request_error", "unknown_url", openai.NotFoundError),
        ("GET", "/v1/completions", None, 405, "invalid_request_error", "method_not_supported", openai.APIStatusError),
    ],
)  # fmt: skip
def test_errors_are_in_openais_shape(
    served: Served, method: str, path: str, body: Any, status: int, kind: str, code: str | None, raised: type[Exception]
) -> None:
    ask = served.client.get if method == "GET" else partial(served.client.post, body=body)
    with pytest.raises(raised) as caught:
        ask(path.removeprefix("/v1"), cast_to=object)
    error = caught.value
    assert isinstance(error, openai.APIStatusError)
    assert (error.status_code, error.type, error.code) == (status, kind, code)
    assert error.response.headers["content-type"] == "application/json"
    assert set(error.response.json()["error"]) == {"message", "type", "param", "code"}


def test_a_body_that_is_too_large(served: Served) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        served.client.completions.create(model="m", prompt="x" * (33 << 20))
    assert (caught.value.status_code, caught.value.code) == (413, "request_too_large")
    assert served.complete("after")["choices"][0]["text"] == "AFTER"


def test_the_prompt_comes_before_the_answer_where_it_is_asked_for(served: Served) -> None:
    answer = served.complete(["ab", "c"], echo=True, n=2)
    assert [choice["text"] for choice in answer["choices"]] == ["abAB", "abAB", "cC", "cC"]
    assert served.complete([104, 105], echo=True)["choices"][0]["text"] == "hiHI"
    chunks = served.client.completions.create(model="m", prompt=["ab", "c"], echo=True, stream=True)
    texts = ["", ""]
    for chunk in chunks:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == ["abAB", "cC"]
    served.session.max_logprobs = 5
    assert served.post("/v1/completions", prompt="a", echo=True, logprobs=1).json()["error"]["param"] == "echo"


@pytest.mark.parametrize("stream", [False, True])
def test_the_probabilities_of_a_completion(served: Served, stream: bool) -> None:
    served.session.max_logprobs = 20
    asked = {"prompt": "grüß x", "logprobs": 2, "stop": " X"}
    if stream:
        chunks = list(served.client.completions.create(model="m", stream=True, **asked))  # type: ignore[call-overload]
        told = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices[0].logprobs]
        text = "".join(chunk.choices[0].text for chunk in chunks)
        parts = {name: [each for one in told for each in getattr(one, name)]
                 for name in ("tokens", "token_logprobs", "text_offset", "top_logprobs")}  # fmt: skip
    else:
        choice = served.complete(**asked)["choices"][0]
        parts, text = choice["logprobs"], choice["text"]
    assert text == "GRÜSS"
    # One entry for each token whose text is in the answer: not for those of the stop string.
    tokens = list(text.encode())
    assert parts["token_logprobs"] == [pytest.approx(chance(token)) for token in tokens]
    assert parts["text_offset"] == [0, 1, 2, 2, 3, 4]
    assert [each for each in parts["tokens"] if "\ufffd" not in each] == ["G", "R", "S", "S"]
    assert all(
        len(top) in (2, 3) and name in top for top, name in zip(parts["top_logprobs"], parts["tokens"], strict=True)
    )


@pytest.mark.parametrize("stream", [False, True])
def test_the_probabilities_of_a_chat(served: Served, stream: bool) -> None:
    served.session.max_logprobs = 20
    asked: dict[str, Any] = {"messages": MESSAGES, "logprobs": True, "top_logprobs": 3}
    if stream:
        chunks = list(served.client.chat.completions.create(model="m", stream=True, **asked))
        entries = [each for chunk in chunks if chunk.choices[0].logprobs
                   for each in chunk.choices[0].logprobs.content or []]  # fmt: skip
    else:
        answer = served.client.chat.completions.create(model="m", **asked)
        assert answer.choices[0].logprobs is not None
        entries = list(answer.choices[0].logprobs.content or [])
    assert [(entry.token, entry.bytes) for entry in entries] == [("H", [72]), ("I", [73])]
    assert [entry.logprob for entry in entries] == [pytest.approx(chance(token)) for token in b"HI"]
    for entry in entries:
        told = [other.logprob for other in entry.top_logprobs]
        assert told == sorted(told, reverse=True)
        assert len(told) == 3


@pytest.mark.parametrize(
    ("path", "body", "most", "param"),
    [
        ("completions", {"prompt": "a", "logprobs": 0}, None, "logprobs"),
        ("completions", {"prompt": "a", "logprobs": 1}, 0, "logprobs"),
        ("completions", {"prompt": "a", "logprobs": 6}, 20, "logprobs"),
        ("completions", {"prompt": "a", "logprobs": True}, 20, "logprobs"),
        ("chat/completions", {"messages": MESSAGES, "logprobs": True}, None, "logprobs"),
        ("chat/completions", {"messages": MESSAGES, "logprobs": True, "top_logprobs": 1}, 0, "top_logprobs"),
        ("chat/completions", {"messages": MESSAGES, "top_logprobs": 1}, 20, "top_logprobs"),
        ("chat/completions", {"messages": MESSAGES, "logprobs": True, "top_logprobs": 21}, 20, "top_logprobs"),
        ("chat/completions", {"messages": MESSAGES, "logprobs": 2}, 20, "logprobs"),
    ],
)
def test_probabilities_that_cannot_be_told(
    served: Served, path: str, body: dict[str, Any], most: int | None, param: str
) -> None:
    served.session.max_logprobs = most
    response = served.post(f"/v1/{path}", **body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"include_usage": "yes"}, "stream_options.include_usage"),
        ({"include_obfuscation": True}, "stream_options.include_obfuscation"),
        ({"other": True}, "stream_options.other"),
        ([], "stream_options"),
    ],
)
def test_options_of_a_stream(served: Served, options: Any, param: str) -> None:
    error = served.post("/v1/completions", prompt="a", stream=True, stream_options=options).json()["error"]
    assert error["param"] == param
    assert served.post("/v1/completions", prompt="a", stream=True, stream_options={}).status_code == 200


def test_embeddings_are_not_for_a_model_that_generates(served: Served) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        served.client.embeddings.create(model="m", input="hi")
    assert (caught.value.code, caught.value.param) == ("unsupported_model", "model")
