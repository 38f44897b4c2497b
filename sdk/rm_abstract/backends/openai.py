"""A session over a server that speaks OpenAI's completions: an engine's own one, or one somewhere else."""

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

from rm_abstract.core.errors import BadInput, SourceUnreachable
from rm_abstract.core.session import FinishReason, Generation, GenerationRequest, Session, Sink, Tokenizer

_CONNECT_SECONDS: Final = 30
_SILENCE_SECONDS: Final = 600
"""How long the server may send nothing: a long queue and a long prompt before the first token."""
_BODY_IN_MESSAGE: Final = 500
_FINISH: Final = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


@dataclass(frozen=True)
class Endpoint:
    """Where a server is: its URL, ``/v1`` included."""

    url: str
    socket: str = ""
    """Path of the socket file that it listens on, instead of the URL's host."""
    token: str = field(default="", repr=False)
    """Sent as a bearer token; empty for none."""

    def connect(self, timeout: float = _CONNECT_SECONDS) -> http.client.HTTPConnection:
        """A connection that is opened by its first request; ``timeout`` in seconds for each thing it waits for."""
        if self.socket:
            return _UnixConnection(self.socket, timeout)
        parts = urlsplit(self.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        return kind(parts.hostname or "", parts.port, timeout=timeout)

    def path(self, name: str) -> str:
        """Path of one of its resources."""
        return f"{urlsplit(self.url).path.rstrip('/')}/{name}"

    def headers(self) -> dict[str, str]:
        """Headers of every request."""
        headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
        return {**headers, "Authorization": f"Bearer {self.token}"} if self.token else headers

    def models(self) -> dict[str, str]:
        """What it serves: names, and whose each says it is.

        Raises SourceUnreachable where it does not answer as such a server does.
        """
        connection = self.connect()
        try:
            connection.request("GET", self.path("models"), headers=self.headers())
            response = connection.getresponse()
            body = response.read()
            if response.status != http.client.OK:
                raise SourceUnreachable(f"{self.url}/models answered {response.status}: {_shown(body)}")
            return {str(model["id"]): str(model.get("owned_by", "")) for model in json.loads(body)["data"]}
        except (OSError, http.client.HTTPException) as error:
            raise SourceUnreachable(f"{self.url} does not answer: {error}") from error
        except (ValueError, KeyError, TypeError):
            raise SourceUnreachable(f"{self.url}/models is no list of models: {_shown(body)}") from None
        finally:
            connection.close()


class _Running(Generation):
    """One request on a connection and a thread of its own."""

    def __init__(self, session: "OpenAiSession", request: GenerationRequest, sink: Sink) -> None:
        self._session = session
        self._request = request
        self._sink = sink
        self._connection = session.endpoint.connect(_SILENCE_SECONDS)
        self._socket: socket.socket | None = None
        self._cancelled = False
        self.error = ""
        """Why it ended with ERROR."""

    def cancel(self) -> None:
        self._cancelled = True
        # Only a shutdown wakes the thread that reads; the server drops what nobody reads any more.
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def run(self) -> None:
        """Send it and pass on what comes."""
        finish: FinishReason | None = None
        try:
            for tokens, finish in self._stream():
                if finish is None and not self._cancelled:
                    self._sink(tokens, None)
                elif finish is not None:
                    self._sink(tokens, finish)
                    return
            self.error = self.error or "the server ended its answer without saying why"
        except (OSError, ValueError, LookupError, TypeError, AttributeError, http.client.HTTPException) as error:
            self.error = self.error or f"{type(error).__name__}: {error}"
        finally:
            self._connection.close()
            self._session.forget(self)
            if finish is None:
                self._sink((), FinishReason.CANCELLED if self._cancelled else FinishReason.ERROR)

    def _stream(self) -> Iterator[tuple[list[int], FinishReason | None]]:
        endpoint = self._session.endpoint
        body = json.dumps(self._session.body(self._request))
        self._connection.request("POST", endpoint.path("completions"), body, endpoint.headers())
        self._socket = self._connection.sock  # which forgets it when an answer ends with its connection
        if self._cancelled:  # before there was a connection that could be shut down
            return
        response = self._connection.getresponse()
        if response.status != http.client.OK:
            self.error = f"{endpoint.url} answered {response.status}: {_shown(response.read())}"
            return
        text = ""
        for line in response:
            if not line.startswith(b"data:") or line.strip() == b"data: [DONE]":
                continue
            event: dict[str, Any] = json.loads(line.removeprefix(b"data:"))
            if "error" in event:
                self.error = _shown(json.dumps(event["error"]).encode())
                return
            for choice in event.get("choices") or ():
                reason = choice.get("finish_reason")
                finish = None if reason is None else _FINISH.get(reason, FinishReason.ERROR)
                tokens = choice.get("token_ids")
                if tokens is None:
                    # A server that sends no tokens: where they are cut in its text is known only of the whole.
                    text += choice.get("text") or ""
                    tokens = [] if finish is None else self._session.encode(text, finish, self._request)
                yield [int(token) for token in tokens], finish
                if finish is not None:
                    return


class OpenAiSession(Session):
    """Generates with ``model`` on a server. ``end_tokens`` are those with which the model ends its text."""

    def __init__(
        self,
        endpoint: Endpoint,
        model: str,
        tokenizer: Tokenizer,
        *,
        max_sequence_length: int,
        vocabulary_size: int,
        end_tokens: frozenset[int],
    ) -> None:
        self.endpoint = endpoint
        self.tokenizer = tokenizer
        self.max_sequence_length = max_sequence_length
        self.vocabulary_size = vocabulary_size
        self._model = model
        self._end_tokens = end_tokens
        self._lock = threading.Lock()
        self._running: dict[_Running, threading.Thread] = {}
        self._failure = ""
        self._closed = False

    @property
    def failure(self) -> str:
        """See the base class."""
        return self._failure

    def fail(self, reason: str) -> None:
        """Say that the server has gone for good."""
        with self._lock:
            first, self._failure = not self._failure, self._failure or reason
        if first and self.on_failure is not None:
            self.on_failure()

    def body(self, request: GenerationRequest) -> dict[str, Any]:
        """The request as the API has it. What OpenAI's own API does not know is sent only where it matters."""
        body: dict[str, Any] = {
            "model": self._model,
            "prompt": list(request.prompt),
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "presence_penalty": request.presence_penalty,
            "frequency_penalty": request.frequency_penalty,
            "stream": True,
        }
        if request.seed is not None:
            body["seed"] = request.seed
        return body | self.extensions(request)

    def extensions(self, request: GenerationRequest) -> dict[str, Any]:
        """What engines understand beyond OpenAI's API."""
        extensions: dict[str, Any] = {}
        if request.top_k is not None:
            extensions["top_k"] = request.top_k
        if request.ignore_eos:
            extensions["ignore_eos"] = True
        return extensions

    def encode(self, text: str, finish: FinishReason, request: GenerationRequest) -> list[int]:
        """Tokens of an answer that came as text; with the one that ended it, which has no text."""
        tokens = self.tokenizer.encode(text, add_special_tokens=False)
        if finish is FinishReason.STOP and self._end_tokens and not request.ignore_eos:
            tokens.append(min(self._end_tokens))
        return tokens

    def execute(self, request: GenerationRequest, sink: Sink) -> Generation:
        """See the base class."""
        if len(request.prompt) + request.max_tokens > self.max_sequence_length:
            raise BadInput(
                f"{len(request.prompt)} tokens of prompt and {request.max_tokens} of answer are more than the "
                f"{self.max_sequence_length} that the model takes"
            )
        running = _Running(self, request, sink)
        with self._lock:
            gone = self._failure or ("the session is closed" if self._closed else "")
            if not gone:
                thread = threading.Thread(target=running.run, name="engine-request", daemon=True)
                self._running[running] = thread
                thread.start()
        if gone:
            running.error = gone
            sink((), FinishReason.ERROR)
        return running

    def forget(self, running: _Running) -> None:
        """A request has ended."""
        with self._lock:
            self._running.pop(running, None)

    def close(self) -> None:
        """See the base class."""
        with self._lock:
            self._closed = True
            running = list(self._running.items())
        for generation, _ in running:
            generation.cancel()
        for _, thread in running:
            if thread is not threading.current_thread():
                thread.join()


def _shown(body: bytes) -> str:
    return body[:_BODY_IN_MESSAGE].decode(errors="replace")
