"""The server's metrics, by vLLM's names where the meaning is the same: dashboards and schedulers know those."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS: Final = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
    20.0,
    40.0,
)
_LONG_SECONDS: Final = (
    0.3,
    0.5,
    0.8,
    1.0,
    1.5,
    2.0,
    2.5,
    5.0,
    10.0,
    15.0,
    20.0,
    30.0,
    40.0,
    50.0,
    60.0,
    120.0,
    240.0,
    480.0,
)


class Histogram:
    """Counts of values by upper bounds."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count ``value``, so many times."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def samples(self, name: str, labels: str) -> Iterator[str]:
        """Lines of the text format."""
        total = 0
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            total += count
            edge = "+Inf" if bound == float("inf") else repr(bound)
            yield f'{name}_bucket{{{labels},le="{edge}"}} {total}'
        yield f"{name}_sum{{{labels}}} {self._sum!r}"
        yield f"{name}_count{{{labels}}} {total}"


class ServerMetrics:
    """What the engine did. Times are in seconds; a prompt counts once its first token is there."""

    def __init__(self) -> None:
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.finished: Counter[str] = Counter()
        """Answers by why they ended: stop, length, abort or error."""
        self.queue_time = Histogram(_LONG_SECONDS)
        self.time_to_first_token = Histogram(_SECONDS)
        self.inter_token_latency = Histogram(_SECONDS)
        self.e2e_latency = Histogram(_LONG_SECONDS)

    def exposition(self, model: str, *, running: int, waiting: int) -> str:
        """All of it in Prometheus' text format."""
        escaped = model.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        label = f'model_name="{escaped}"'
        lines: list[str] = []

        def family(name: str, kind: str, text: str, samples: Iterator[str] | Sequence[str]) -> None:
            lines.extend((f"# HELP vllm:{name} {text}", f"# TYPE vllm:{name} {kind}", *samples))

        def number(name: str, kind: str, text: str, value: float) -> None:
            family(name, kind, text, [f"vllm:{name}{{{label}}} {value}"])

        def histogram(name: str, text: str, values: Histogram) -> None:
            family(name, "histogram", text, values.samples(f"vllm:{name}", label))

        number("num_requests_running", "gauge", "Answers that are being generated.", running)
        number("num_requests_waiting", "gauge", "Answers that wait for a place in the batch.", waiting)
        number("prompt_tokens_total", "counter", "Tokens of prompts that were computed.", self.prompt_tokens)
        number("generation_tokens_total", "counter", "Tokens that were generated.", self.generation_tokens)
        ends = [
            f'vllm:request_success_total{{{label},finished_reason="{reason}"}} {self.finished[reason]}'
            for reason in ("stop", "length", "abort", "error")
        ]
        family("request_success_total", "counter", "Answers by why they ended.", ends)
        histogram("request_queue_time_seconds", "Until an answer had a place in the batch.", self.queue_time)
        histogram("time_to_first_token_seconds", "Until the first token, waiting included.", self.time_to_first_token)
        histogram("inter_token_latency_seconds", "Between tokens of an answer.", self.inter_token_latency)
        histogram("e2e_request_latency_seconds", "Until an answer was whole, waiting included.", self.e2e_latency)
        return "\n".join(lines) + "\n"
