"""An endpoint outside the cluster: proxy and relay as processes, before a real server behind TLS and a key."""

import gzip
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import yaml
from remote_provider import MODEL, Provider, Raw, running, until
from rm_abstract.serve.engine import Engine
from rm_api.names import REMOTE_AUDIENCE, ExitCode
from rm_local_cluster.pki import Authority
from scripted_session import ScriptedSession
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

KEY = "sk-provider-0123456789abcdef"
PROMPT = "what nobody else may read"
TOKENS = {
    "token-of-tenant": ("system:serviceaccount:tenant:default", REMOTE_AUDIENCE),
    "token-of-stranger": ("system:serviceaccount:stranger:default", REMOTE_AUDIENCE),
    "token-for-registry": ("system:serviceaccount:tenant:default", "rm-abstract-registry"),
    "token-of-person": ("someone@example.com", REMOTE_AUDIENCE),
}
RM_ABSTRACT = [sys.executable, "-c", "from rm_cli.main import main; main()"]
START_SECONDS = 120


async def _review(request: Request) -> JSONResponse:
    """TokenReview, as an API server answers it that knows these tokens."""
    body = await request.json()
    user, audience = TOKENS.get(body["spec"]["token"], ("", ""))
    known = bool(user) and audience in body["spec"]["audiences"]
    status: dict[str, Any] = {"authenticated": known}
    if known:
        status |= {"user": {"username": user}, "audiences": [audience]}
    else:
        status |= {"error": "invalid bearer token"}
    return JSONResponse({**body, "status": status}, status_code=201)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@dataclass
class Site:
    """A provider, the proxy before it, and a relay before that."""

    directory: Path
    authority: Authority
    provider: Provider
    api: int
    processes: list["subprocess.Popen[bytes]"] = field(default_factory=list)
    proxy_port: int = 0
    management_port: int = 0
    relay_port: int = 0

    @property
    def key_file(self) -> Path:
        return self.directory / "key"

    def start(self, name: str, command: list[str], **environment: str) -> "subprocess.Popen[bytes]":
        with (self.directory / f"{name}.log").open("ab") as log:
            inherited = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
            process = subprocess.Popen(command, stdout=log, stderr=log, env=inherited | environment)
        self.processes.append(process)
        return process

    def proxy(self, *further: str, key: str | None = KEY, wait: bool = True) -> "subprocess.Popen[bytes]":
        self.proxy_port, self.management_port = free_port(), free_port()
        if key is not None:
            self.key_file.write_text(f"{key}\n")
        kubeconfig = self.directory / "kubeconfig"
        cluster = {"name": "c", "cluster": {"server": f"http://127.0.0.1:{self.api}"}}
        context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
        kubeconfig.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1", "kind": "Config", "clusters": [cluster], "contexts": [context],
                    "current-context": "c", "users": [{"name": "u", "user": {"token": "the proxy's own"}}],
                }
            )
        )  # fmt: skip
        log = self.directory / "termination"
        log.write_text("")
        served = self.authority.issue("proxy", "proxy", hosts=["localhost", "127.0.0.1"])
        process = self.start(
            "proxy",
            [
                sys.executable, "-m", "rm_operator.remote_proxy", "--accelerator=vendor-api",
                f"--endpoint={self.provider.url}", f"--key-file={self.key_file}",
                f"--ca-file={self.authority.pair.certificate}", "--namespace=tenant", f"--model={MODEL}",
                f"--port={self.proxy_port}", f"--management-port={self.management_port}",
                f"--tls-certificate={served.certificate}", f"--tls-key={served.key}", f"--kubeconfig={kubeconfig}",
                "--log-level=DEBUG", *further,
            ],
            RMA_TERMINATION_LOG=str(log),
        )  # fmt: skip
        if wait:
            until(lambda: process.poll() is not None or _listens(self.management_port), START_SECONDS)
            assert process.poll() is None, self.logs()
        return process

    def relay(self, token: str = "token-of-tenant") -> "subprocess.Popen[bytes]":
        self.relay_port = free_port()
        (self.directory / "token").write_text(token)
        process = self.start(
            "relay",
            [
                *RM_ABSTRACT, "relay", f"--endpoint=https://localhost:{self.proxy_port}", f"--model={MODEL}",
                "--served-name=mine", f"--port={self.relay_port}",
            ],
            RMA_REMOTE_TOKEN_FILE=str(self.directory / "token"),
            RMA_REMOTE_CA=self.authority.pair.certificate.read_text(),
            RMA_ENGINE_REPORT=str(self.directory / "engine.json"),
        )  # fmt: skip
        until(lambda: process.poll() is not None or _listens(self.relay_port), START_SECONDS)
        assert process.poll() is None, self.logs()
        return process

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.relay_port}/v1", api_key="none", max_retries=0)

    def ask(self, token: str | None = "token-of-tenant", **body: Any) -> httpx2.Response:
        """A request to the proxy itself."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return httpx2.post(
            f"https://localhost:{self.proxy_port}/v1/completions",
            json={"model": MODEL, "prompt": "ab", **body}, headers=headers, timeout=60,
            verify=str(self.authority.pair.certificate), trust_env=False,
        )  # fmt: skip

    def metrics(self) -> str:
        return httpx2.get(f"http://127.0.0.1:{self.management_port}/metrics", trust_env=False).text

    def logs(self) -> str:
        """Everything that was written by proxy and relay."""
        return "\n".join(each.read_text(errors="replace") for each in sorted(self.directory.glob("*.log")))


def _listens(port: int) -> bool:
    with socket.socket() as found:
        return found.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    authority = Authority(tmp_path, "ca")
    served = authority.issue("provider", "provider", hosts=["localhost", "127.0.0.1"])
    session = ScriptedSession()
    provider = Provider(0, session, Engine(session, max_batch=8, max_queue=8), KEY)
    api = Starlette(routes=[Route("/apis/authentication.k8s.io/v1/tokenreviews", _review, methods=["POST"])])
    with running(provider.application(), served) as port, running(api) as reviews:
        provider.port = port
        found = Site(tmp_path, authority, provider, reviews)
        yield found
        for process in found.processes:
            process.kill()
            process.wait()
        session.pace.permits = None
        # Whatever happened: nothing but the proxy's own file, and what the provider was shown, has the key.
        kept = [each for each in tmp_path.iterdir() if each.is_file() and KEY.encode() in each.read_bytes()]
        assert [each.name for each in kept] in ([], ["key"])
    session.close()


def test_answers_of_the_endpoint_come_as_they_are(site: Site) -> None:
    site.proxy()
    site.relay()
    client = site.client
    assert [model.id for model in client.models.list()] == ["mine"]
    whole = client.completions.create(model="mine", prompt="hello", temperature=0)
    assert (whole.choices[0].text, whole.choices[0].finish_reason) == ("HELLO", "stop")
    assert whole.usage is not None
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (6, 6)
    stream = client.chat.completions.create(
        model="mine", messages=[{"role": "user", "content": "grüß dich"}], stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "GRÜSS DICH"
    assert chunks[-1].usage is not None
    assert site.provider.bodies[0] == {"model": MODEL, "prompt": "hello", "temperature": 0}
    assert {shown for _, shown in site.provider.asked} == {f"Bearer {KEY}"}, "the pod's token stays in the cluster"
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model=MODEL, prompt="hello")
    assert 'rma_remote_requests_total{code="200",namespace="tenant"} 2.0' in site.metrics()
    assert json.loads((site.directory / "engine.json").read_text()) == {"drains": True}


def test_a_stream_comes_as_it_is_made_and_ends_with_its_reader(site: Site) -> None:
    site.proxy()
    site.relay()
    pace = site.provider.session.pace
    pace.permits = threading.Semaphore(2)
    stream = site.client.completions.create(model="mine", prompt="abcdefgh", stream=True)
    events = iter(stream)
    assert [next(events).choices[0].text for _ in range(2)] == ["A", "B"], "before the others are made"
    assert site.provider.engine.running == 1
    stream.close()
    until(lambda: site.provider.engine.running == 0)
    pace.permits = None
    assert len(pace.requests) == 1


def test_whom_the_proxy_refuses(site: Site) -> None:
    site.proxy()
    for token, status, code in (
        (None, 401, "unauthorized"),
        ("of nobody", 401, "unauthorized"),
        ("token-for-registry", 401, "unauthorized"),
        ("token-of-person", 403, "namespace_not_allowed"),
        ("token-of-stranger", 403, "namespace_not_allowed"),
    ):
        answer = site.ask(token)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), token
    assert [path for path, _ in site.provider.asked] == ["/v1/models"], "the check of the key at the start"


def test_only_models_that_are_listed_can_be_had(site: Site) -> None:
    site.proxy()
    assert site.ask(model="vendor/dear-1").status_code == 404
    raw = httpx2.post(
        f"https://localhost:{site.proxy_port}/v1/completions",
        content=b'{"model":"vendor/dear-1","prompt":"ab","model":"%s"}' % MODEL.encode(),
        headers={"Authorization": "Bearer token-of-tenant"}, verify=str(site.authority.pair.certificate), timeout=60,
        trust_env=False,
    )  # fmt: skip
    assert raw.status_code == 200
    assert [body["model"] for body in site.provider.bodies] == [MODEL], "sent as it was understood"


FAILURES: tuple[tuple[tuple[int, dict[str, str], Any], int, str, str | None], ...] = (
    ((429, {"Retry-After": "17"}, {"error": {"message": "slow down", "code": "rate"}}), 429, "slow down", "17"),
    ((429, {}, {"error": "Model is overloaded", "error_type": "overloaded"}), 429, "Model is overloaded", "2"),
    ((400, {}, {"error": {"message": f"no {KEY}"}}), 400, "no ***", None),
    ((500, {}, {"error": {"message": KEY}}), 502, "answered 500", None),
    ((504, {}, {}), 504, "504", None),
    ((307, {"Location": "https://elsewhere.example.com"}, {}), 502, "answered 307", None),
    ((403, {}, {"error": {"message": f"{KEY} may not"}}), 502, "refuses its credentials", None),
)


def test_what_failures_of_the_provider_become(site: Site) -> None:
    process = site.proxy()
    for answer, status, said, retry in FAILURES:
        site.provider.answers.append(answer)
        found = site.ask()
        assert (found.status_code, found.headers.get("retry-after")) == (status, retry), answer
        assert said in found.json()["error"]["message"]
        assert KEY not in found.text
        assert site.ask().status_code == 200, "one that fails spoils no other"
    assert process.poll() is None


def test_a_key_that_is_refused_is_told_and_a_corrected_one_is_used(site: Site) -> None:
    refused = site.proxy(key="sk-wrong", wait=False)
    assert refused.wait(START_SECONDS) == ExitCode.BAD_INPUT
    told = json.loads((site.directory / "termination").read_text())
    assert told["reason"] == "CredentialsRefused"
    assert "sk-wrong" not in site.logs()
    process = site.proxy()
    assert site.ask().status_code == 200
    site.provider.key = "sk-renewed"
    answer = site.ask()
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "credentials_refused")
    assert KEY not in answer.text
    assert process.wait(START_SECONDS) == ExitCode.BAD_INPUT
    assert json.loads((site.directory / "termination").read_text())["reason"] == "CredentialsRefused"
    site.proxy(key="sk-renewed")
    assert site.ask().status_code == 200


def test_a_key_that_is_renewed_is_used_by_the_next_request(site: Site) -> None:
    process = site.proxy()
    assert site.ask().status_code == 200
    site.provider.key = "sk-renewed"
    site.key_file.write_text("sk-renewed")
    assert site.ask().status_code == 200
    assert process.poll() is None, "without a restart"
    assert "rma_remote_credentials_refused_total 0.0" in site.metrics()


def test_neither_prompts_nor_answers_nor_keys_are_logged(site: Site) -> None:
    site.proxy()
    site.relay()
    site.client.completions.create(model="mine", prompt=PROMPT)
    for answer in ((500, {}, {"error": PROMPT}), (400, {}, {"error": {"message": f"{PROMPT} with {KEY}"}})):
        site.provider.answers.append(answer)
        with pytest.raises(openai.APIStatusError):
            site.client.completions.create(model="mine", prompt=PROMPT)
    assert site.ask("of nobody", prompt=PROMPT).status_code == 401
    assert len(site.logs()) > 0
    for secret in (PROMPT, PROMPT.upper(), KEY, "token-of-tenant", "of nobody"):
        assert secret not in site.logs()


EVENT = b'data: {"choices":[{"index":0,"text":"A","finish_reason":null}]}\n\n'
STREAM = {"Content-Type": "text/event-stream"}


def test_a_stream_that_breaks_between_two_events_ends_with_the_reason(site: Site) -> None:
    site.proxy()
    site.relay()
    breaks = threading.Event()
    site.provider.answers.append(Raw(EVENT, STREAM, breaks))
    stream = iter(site.client.completions.create(model="mine", prompt="ab", stream=True))
    assert next(stream).choices[0].text == "A"
    breaks.set()
    with pytest.raises(openai.APIError) as broken:
        next(stream)
    assert broken.value.code == "endpoint_unreachable"
    assert site.ask().status_code == 200


def test_what_breaks_in_the_middle_is_not_ended_as_if_it_were_whole(site: Site) -> None:
    site.proxy()
    site.relay()
    json_of = {"Content-Type": "application/json"}
    for content, headers in (
        (EVENT + EVENT[:20], STREAM), (b'{"choices":', json_of), (b'{"choices":', {**json_of, "Content-Length": "400"}),
    ):  # fmt: skip
        breaks = threading.Event()
        site.provider.answers.append(Raw(content, headers, breaks))
        with httpx2.stream(
            "POST", f"http://127.0.0.1:{site.relay_port}/v1/completions", json={"model": "mine", "prompt": "ab"},
            timeout=60, trust_env=False,
        ) as answer:  # fmt: skip
            pieces = answer.iter_raw()
            assert (answer.status_code, next(pieces)) == (200, content)
            breaks.set()
            with pytest.raises(httpx2.TransportError):
                next(pieces)


def test_an_answer_that_comes_compressed_although_it_was_not_to(site: Site) -> None:
    site.proxy()
    said = b'{"choices":[{"index":0,"text":"' + 500 * b"A" + b'","finish_reason":"stop"}]}'
    site.provider.answers.append(
        Raw(packed := gzip.compress(said), {"Content-Encoding": "gzip", "Content-Length": str(len(packed))})
    )
    assert site.ask().content == said


def test_what_an_endpoint_does_not_have_is_not_found(site: Site) -> None:
    site.provider.chats_only = True
    site.proxy()
    site.relay()
    with pytest.raises(openai.NotFoundError, match="this is a chat model"):
        site.client.completions.create(model="mine", prompt="hello")
    said = site.client.chat.completions.create(model="mine", messages=[{"role": "user", "content": "hello"}])
    assert said.choices[0].message.content == "HELLO"


def test_an_endpoint_without_a_list_of_models_is_used(site: Site) -> None:
    site.provider.lists_models = False
    site.proxy()
    assert site.ask().status_code == 200


def test_requests_a_minute(site: Site) -> None:
    site.proxy("--requests-per-minute=2")
    assert [site.ask().status_code for _ in range(2)] == [200, 200]
    answer = site.ask()
    assert answer.status_code == 429
    assert answer.json()["error"]["type"] == "rate_limit_error"
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert len(site.provider.bodies) == 2


def test_requests_at_the_same_time(site: Site) -> None:
    site.proxy("--max-concurrency=1")
    pace = site.provider.session.pace
    pace.permits = threading.Semaphore(0)
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(site.ask)
        until(lambda: site.provider.engine.running == 1)
        second = pool.submit(site.ask)
        until(lambda: "rma_remote_requests_waiting 1.0" in site.metrics())
        third = site.ask()
        assert (third.status_code, third.headers["retry-after"]) == (429, "1")
        assert site.provider.engine.running == 1
        pace.permits = None
        assert [each.result().status_code for each in (first, second)] == [200, 200]


def test_an_endpoint_that_says_nothing(site: Site) -> None:
    site.proxy("--timeout=3")
    pace = site.provider.session.pace
    pace.permits = threading.Semaphore(0)
    answer = site.ask()
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")
    until(lambda: site.provider.engine.running == 0)
    pace.permits = threading.Semaphore(1)
    streamed = site.ask(stream=True)
    assert streamed.status_code == 200
    *_, last = [json.loads(line) for line in re.findall(r"data: (\{.*\})", streamed.text)]
    assert last["error"]["code"] == "timeout", "in a stream that has begun it is the last event"


def test_an_endpoint_that_is_not_who_it_should_be(site: Site) -> None:
    other = site.directory / "other"
    other.mkdir()
    Authority(other, "other")
    site.proxy(f"--ca-file={other / 'other.crt'}")
    answer = site.ask()
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "endpoint_unreachable")
    assert site.provider.asked == [], "and hears nothing, the key least of all"


def test_what_was_begun_is_finished(site: Site) -> None:
    proxy, relay = site.proxy(), site.relay()
    pace = site.provider.session.pace
    pace.permits = threading.Semaphore(1)
    with ThreadPoolExecutor(1) as pool:
        begun = pool.submit(site.client.completions.create, model="mine", prompt="hello")
        until(lambda: site.provider.engine.running == 1)
        for process in (relay, proxy):
            process.send_signal(signal.SIGTERM)
        until(lambda: httpx2.get(f"http://127.0.0.1:{site.relay_port}/health").status_code == 503)
        with pytest.raises(openai.InternalServerError):
            site.client.completions.create(model="mine", prompt="late")
        pace.permits = None
        assert begun.result().choices[0].text == "HELLO"
    assert (relay.wait(START_SECONDS), proxy.wait(START_SECONDS)) == (0, 0)


def test_a_relay_whose_proxy_has_gone(site: Site) -> None:
    proxy = site.proxy()
    site.relay()
    proxy.kill()
    proxy.wait()
    with pytest.raises(openai.InternalServerError) as refused:
        site.client.completions.create(model="mine", prompt="hello")
    assert refused.value.status_code == 502
    assert "AcceleratorResource" in refused.value.message


def test_a_relay_of_another_namespace(site: Site) -> None:
    site.proxy()
    site.relay("token-of-stranger")
    with pytest.raises(openai.PermissionDeniedError) as refused:
        site.client.completions.create(model="mine", prompt="hello")
    assert "stranger may not use vendor-api" in refused.value.message
