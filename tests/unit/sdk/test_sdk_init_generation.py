"""What ``generate`` of transformers asks for, as requests to a session; and running them."""

import threading
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import pytest
from rm_abstract.core.errors import BadInput, ToolchainFailure
from rm_abstract.core.session import FinishReason, Generation, GenerationRequest, Session, Sink
from rm_abstract.hooks import generation

END = 9
PROMPT = [1, 2, 3]


def planned(
    prompts: Sequence[Sequence[int]] = (PROMPT,), width: int = 3, longest: int = 100, **options: Any
) -> generation.Plan:
    seeds = count(100)
    ends = {"eos_token_id": END, **options}
    return generation.plan(
        prompts, width, ends, model_ends=frozenset({END}), longest=longest, new_seed=lambda: next(seeds)
    )


@pytest.mark.parametrize(
    ("defaults", "given", "name", "value"),
    [
        ({}, {}, "max_new_tokens", None),
        ({"max_new_tokens": 7}, {}, "max_new_tokens", 7),
        ({"max_new_tokens": 7}, {"max_new_tokens": 8}, "max_new_tokens", 8),
        ({"max_new_tokens": 7}, {"max_new_tokens": None}, "max_new_tokens", 7),
        ({"max_new_tokens": None}, {}, "max_new_tokens", None),
        ({"temperature": 0.5}, {"do_sample": True}, "temperature", 0.5),
    ],
)
def test_what_is_given_counts_before_what_is_recommended(
    defaults: dict[str, Any], given: dict[str, Any], name: str, value: object
) -> None:
    options, left_out = generation.options_of(defaults, given, "x")
    assert (options.get(name), left_out) == (value, [])


@pytest.mark.parametrize(
    "given",
    [
        {"num_beams": 1, "repetition_penalty": 1.0, "bad_words_ids": [], "stopping_criteria": None, "min_length": 0},
        {
            "use_cache": True,
            "length_penalty": 2.0,
            "early_stopping": True,
            "token_type_ids": object(),
            "synced_gpus": False,
        },
        {"wings": None},
    ],
)
def test_what_asks_for_nothing_is_no_matter(given: dict[str, Any]) -> None:
    generation.options_of({}, given, "x")


@pytest.mark.parametrize("name", sorted(generation._NEUTRAL))
def test_what_only_pytorch_can_do_is_refused_by_name(name: str) -> None:
    with pytest.raises(BadInput) as raised:
        generation.options_of({}, {name: object()}, "npu:0")
    assert f"generate({name}=" in str(raised.value)
    assert "is not possible on npu:0" in str(raised.value)
    assert "Leave it out, or load the model after rm_abstract.shutdown()" in str(raised.value)


def test_what_the_authors_recommend_and_nobody_asked_for_is_left_out_and_told() -> None:
    options, left_out = generation.options_of({"repetition_penalty": 1.1, "top_k": 20}, {}, "x")
    assert left_out == ["repetition_penalty"]
    assert options == {"top_k": 20}


@pytest.mark.parametrize(
    ("rows", "mask", "options", "prompts"),
    [
        ([[0, 1, 2], [1, 2, 3]], [[0, 1, 1], [1, 1, 1]], {}, [[1, 2], [1, 2, 3]]),
        ([[0, 1, 2], [1, 2, 3]], None, {"pad_token_id": 0}, [[1, 2], [1, 2, 3]]),
        ([[0, 1, 0]], None, {"pad_token_id": 0}, [[1, 0]]),
        ([[0, 1, 2]], None, {}, [[0, 1, 2]]),
        ([[9, 1, 2]], None, {"pad_token_id": 9, "eos_token_id": [9, 8]}, [[9, 1, 2]]),
        ([[1, 2, 0]], [[1, 1, 0]], {}, [[1, 2]]),
    ],
)
def test_padding_is_taken_off(
    rows: list[list[int]], mask: list[list[int]] | None, options: dict[str, Any], prompts: list[list[int]]
) -> None:
    assert generation.prompts_of(rows, mask, options) == prompts


@pytest.mark.parametrize(
    ("rows", "mask", "message"),
    [
        ([[1, 2]], [[0, 0]], "a prompt without a token"),
        ([[]], None, "a prompt without a token"),
        ([], None, "a prompt without a token"),
        ([[1, 2]], [[1]], "attention_mask does not have the shape of input_ids"),
        ([[1, 2]], [[1, 1], [1, 1]], "attention_mask does not have the shape of input_ids"),
    ],
)
def test_no_prompt(rows: list[list[int]], mask: list[list[int]] | None, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        generation.prompts_of(rows, mask, {})


@pytest.mark.parametrize(
    ("options", "tokens"),
    [
        ({}, 20),
        ({"max_new_tokens": 5}, 5),
        ({"max_length": 10}, 7),
        ({"max_length": 10, "max_new_tokens": 2}, 2),
        ({"max_new_tokens": 5.0}, 5),
    ],
)
def test_how_much(options: dict[str, Any], tokens: int) -> None:
    plan = planned(**options)
    assert (plan.requests[0].max_tokens, plan.clamped) == (tokens, "")


def test_no_more_than_the_model_takes_and_that_is_told() -> None:
    plan = planned(max_new_tokens=50, longest=10)
    assert plan.requests[0].max_tokens == 7
    assert plan.clamped == "50 new tokens were asked for, but the model takes 10 with the prompt"


def test_greedy_is_greedy_whatever_the_rest_says() -> None:
    (request,) = planned(do_sample=False, temperature=0.7, top_p=0.5, top_k=3).requests
    assert request == GenerationRequest(tuple(PROMPT), 20)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (1.0, 1.0, 50)),
        ({"temperature": 0.7, "top_p": 0.9, "top_k": 5}, (0.7, 0.9, 5)),
        ({"top_k": 0}, (1.0, 1.0, None)),
    ],
)
def test_sampling(options: dict[str, Any], expected: tuple[float, float, int | None]) -> None:
    (request,) = planned(do_sample=True, **options).requests
    assert (request.temperature, request.top_p, request.top_k) == expected


def test_each_of_several_answers_has_a_seed_of_its_own() -> None:
    plan = planned([[1], [2]], do_sample=True, num_return_sequences=2)
    assert [request.prompt for request in plan.requests] == [(1,), (1,), (2,), (2,)]
    assert [request.seed for request in plan.requests] == [100, 101, 102, 103]


@pytest.mark.parametrize(
    ("ends", "engine_ends", "own"),
    [(END, True, {END}), ([END], True, {END}), (4, False, {4}), ([END, 4], False, {END, 4}), (None, False, set())],
)
def test_the_engine_ends_by_itself_only_at_the_models_own_ends(ends: Any, engine_ends: bool, own: set[int]) -> None:
    plan = planned(eos_token_id=ends)
    assert plan.requests[0].ignore_eos is not engine_ends
    assert plan.ends == own


@pytest.mark.parametrize(
    ("options", "pad"),
    [({}, END), ({"pad_token_id": 0}, 0), ({"eos_token_id": None}, 0), ({"pad_token_id": None}, END)],
)
def test_what_shorter_answers_are_filled_with(options: dict[str, Any], pad: int) -> None:
    assert planned(**options).pad == pad


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_return_sequences": 2}, "wants do_sample=True"),
        ({"do_sample": True, "temperature": 0.0}, "does not sample; say do_sample=False"),
        ({"do_sample": True, "top_p": 0.0}, "must be above 0 and at most 1"),
        ({"do_sample": True, "top_p": 1.1}, "must be above 0 and at most 1"),
        ({"max_new_tokens": 0}, "max_new_tokens=0) must be a whole number of at least 1"),
        ({"max_new_tokens": 2.5}, "must be a whole number"),
        ({"max_length": 3}, "counts the prompt, which has 3 tokens; say max_new_tokens"),
        ({"longest": 3}, "the prompt has 3 tokens, and the model takes 3 with the answer"),
    ],
)
def test_values_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput) as raised:
        planned(**options)
    assert message in str(raised.value)


class Script(Session):
    """A session whose answer to a prompt [n] is n, n + 1, …, on a thread for each; it notes what goes on."""

    def __init__(self, *, fail: bool = False, endless: bool = False) -> None:
        self.most = self.now = 0
        self.cancelled = threading.Semaphore(0)
        self._fail = fail
        self._endless = endless
        self._lock = threading.Lock()

    @property
    def failure(self) -> str:
        return "it broke" if self._fail else ""

    def execute(self, request: GenerationRequest, sink: Sink) -> Generation:
        stop = threading.Event()
        session = self

        class Running(Generation):
            def cancel(self) -> None:
                stop.set()
                session.cancelled.release()

        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        threading.Thread(target=self._answer, args=(request, sink, stop)).start()
        return Running()

    def _answer(self, request: GenerationRequest, sink: Sink, stop: threading.Event) -> None:
        finish = FinishReason.LENGTH
        for number in range(request.max_tokens):
            if self._fail and number == 1:
                finish = FinishReason.ERROR
                break
            sink([request.prompt[0] + number], None)
        if self._endless:
            stop.wait()
            finish = FinishReason.CANCELLED
        with self._lock:
            self.now -= 1
        sink((), finish)

    def close(self) -> None:
        pass


def run(
    session: Session,
    *prompts: int,
    ends: set[int] | None = None,
    at_once: int = 8,
    token: Callable[[int, int], None] = lambda _row, _token: None,
    tokens: int = 3,
) -> list[list[int]]:
    requests = [GenerationRequest((prompt,), tokens) for prompt in prompts]
    return generation.run(session, requests, frozenset(ends or ()), at_once=at_once, token=token)


def test_answers_keep_the_order_of_their_prompts() -> None:
    assert run(Script(), 10, 20, 30) == [[10, 11, 12], [20, 21, 22], [30, 31, 32]]


def test_no_more_at_once_than_allowed() -> None:
    session = Script()
    assert len(run(session, *range(20), at_once=3)) == 20
    assert session.most <= 3


def test_an_end_of_ones_own_cuts_the_answer_and_cancels_the_rest() -> None:
    session = Script(endless=True)
    assert run(session, 10, ends={11}, tokens=50) == [[10, 11]]
    assert session.cancelled.acquire(timeout=30)


def test_tokens_are_told_as_they_come() -> None:
    told: list[tuple[int, int]] = []
    run(Script(), 10, 20, token=lambda row, token: told.append((row, token)))
    assert [token for row, token in told if row == 1] == [20, 21, 22]


def test_an_engine_that_fails() -> None:
    with pytest.raises(ToolchainFailure, match="the engine failed: it broke"):
        run(Script(fail=True), 10)


def test_who_raises_while_tokens_come_cancels_everything() -> None:
    session = Script(endless=True)

    def stop(_row: int, _token: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(session, 10, 20, token=stop)
    assert all(session.cancelled.acquire(timeout=30) for _ in range(2))
