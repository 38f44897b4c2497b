"""What the server's metrics count, read as Prometheus reads them."""

import socket
import threading

import httpx2
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families
from rm_abstract.serve.metrics import ServerMetrics
from test_sdk_serve import Served, served, until

__all__ = ["served"]


def samples(text: str) -> dict[str, float]:
    found = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {
        sample.name
        + "".join(f"{{{sample.labels[name]}}}" for name in sample.labels if name != "model_name"): sample.value
        for sample in found
    }


def metrics(served: Served) -> dict[str, float]:
    response = httpx2.get(f"{served.url}/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    return samples(response.text)


def test_tokens_and_times_of_what_was_answered(served: Served) -> None:
    served.complete("hello", n=2)
    served.complete("hello", max_tokens=2)
    found = metrics(served)
    assert found["vllm:prompt_tokens_total"] == 3 * 6
    assert found["vllm:generation_tokens_total"] == 2 * 6 + 2
    assert found["vllm:request_success_total{stop}"] == 2
    assert found["vllm:request_success_total{length}"] == 1
    for name in ("time_to_first_token", "e2e_request_latency", "request_queue_time"):
        assert found[f"vllm:{name}_seconds_count"] == found[f"vllm:{name}_seconds_bucket{{+Inf}}"] == 3
    assert found["vllm:inter_token_latency_seconds_count"] == 14 - 3
    assert 0 < found["vllm:time_to_first_token_seconds_sum"] <= found["vllm:e2e_request_latency_seconds_sum"]
    assert (found["vllm:num_requests_running"], found["vllm:num_requests_waiting"]) == (0, 0)


def test_what_runs_and_waits(served: Served) -> None:
    served.session.pace.permits = threading.Semaphore(0)
    threads = [threading.Thread(target=served.complete, args=("abc",)) for _ in range(3)]
    for thread in threads:
        thread.start()
    until(lambda: served.engine.admitted == 3)
    until(lambda: metrics(served)["vllm:num_requests_running"] == 2)
    found = metrics(served)
    assert found["vllm:num_requests_waiting"] == 1
    # A prompt that never comes to a token counts for nothing: whoever watches would take it for progress.
    assert (found["vllm:prompt_tokens_total"], found["vllm:generation_tokens_total"]) == (0, 0)
    served.session.pace.permits.release(1000)
    for thread in threads:
        thread.join(30)
    found = metrics(served)
    assert (found["vllm:num_requests_running"], found["vllm:num_requests_waiting"]) == (0, 0)
    assert found["vllm:prompt_tokens_total"] == 3 * 4


def test_who_leaves_and_what_fails(served: Served) -> None:
    served.session.pace.permits = threading.Semaphore(0)
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        body = b'{"model": "m", "prompt": ["ab", "cd", "ef"]}'
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        until(lambda: served.engine.running == 2)
    until(lambda: served.engine.admitted == 0)
    found = metrics(served)
    assert found["vllm:request_success_total{abort}"] == 3
    assert (found["vllm:num_requests_running"], found["vllm:num_requests_waiting"]) == (0, 0)
    served.session.broken.set()
    with pytest.raises(openai.InternalServerError):
        served.client.completions.create(model="m", prompt="a")
    assert metrics(served)["vllm:request_success_total{error}"] == 1


def test_any_name_is_a_label() -> None:
    odd = 'a "b"\\c\nd'
    families = list(text_string_to_metric_families(ServerMetrics().exposition(odd, running=1, waiting=2)))
    assert {sample.labels["model_name"] for family in families for sample in family.samples} == {odd}
    assert all(family.documentation and family.type != "unknown" for family in families)
