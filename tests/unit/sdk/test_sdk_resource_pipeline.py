"""Pipelines of stages on different resources, and several resources on one request."""

import itertools
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pytest
from rm_abstract.backends.stepping import SteppingSession
from rm_abstract.core.cooperation import Piece, PrefillDecode, run_batch, stream_session
from rm_abstract.core.errors import BadInput, DeviceMissing, PluginError, Transient
from rm_abstract.core.pipeline import Cancelled, Pipeline, Stage, StageContext
from rm_abstract.core.resource import Capability, Resource, ResourceType
from rm_abstract.core.resource_pool import Query, ResourcePool
from rm_abstract.core.session import FinishReason, GenerationRequest, generate

NPU, GPU = Query(types=(ResourceType.NPU,)), Query(types=(ResourceType.GPU,))


@pytest.fixture
def pool() -> Iterator[ResourcePool]:
    pool = ResourcePool([Resource("npu0", ResourceType.NPU), Resource("gpu0", ResourceType.GPU)])
    yield pool
    assert all(pool.free(resource.id) == 1 for resource in pool), "every resource was given back"


def double(items: Iterator[int], context: StageContext) -> Iterator[int]:
    for item in items:
        yield item * 2


def label(item: Any, context: StageContext) -> str:
    return f"{context.resource.id if context.resource else '-'}:{item}"


def test_items_go_through_all_stages_in_order(pool: ResourcePool) -> None:
    pipeline = Pipeline(
        [Stage("double", double, NPU), Stage.each("label", label, GPU), Stage.each("plain", label)], pool
    )
    with pipeline.run(range(20)) as run:
        assert {name: each and each.id for name, each in run.resources.items()} == {
            "double": "npu0",
            "label": "gpu0",
            "plain": None,
        }
        assert list(run) == [f"-:gpu0:{2 * number}" for number in range(20)]
    assert list(pipeline.run(())) == []


def test_stages_work_at_the_same_time() -> None:
    """Each waits for the other: one after the other, this would never end."""
    barrier = threading.Barrier(2)

    def meet(items: Iterator[int], context: StageContext) -> Iterator[int]:
        for item in items:
            barrier.wait()
            yield item

    # The second stage meets the first one over the item after its own.
    def second(items: Iterator[int], context: StageContext) -> Iterator[int]:
        for item in items:
            if item < 4:
                barrier.wait()
            yield item

    def first(items: Iterator[int], context: StageContext) -> Iterator[int]:
        for item in items:
            if item > 0:
                barrier.wait()
            yield item

    assert list(Pipeline([Stage("a", first), Stage("b", second)]).run(range(5))) == [0, 1, 2, 3, 4]


def test_the_first_result_comes_before_the_last_input() -> None:
    go_on = threading.Event()

    def inputs() -> Iterator[int]:
        yield 1
        go_on.wait()
        yield 2

    with Pipeline([Stage("a", double), Stage("b", double)]).run(inputs()) as run:
        assert next(run) == 4
        go_on.set()
        assert list(run) == [8]


def test_a_stage_waits_where_the_next_one_is_behind() -> None:
    made: list[int] = []

    def make(items: Iterator[int], context: StageContext) -> Iterator[int]:
        for item in items:
            made.append(item)
            yield item

    with Pipeline([Stage("make", make, buffer=2)]).run(itertools.count()) as run:
        assert [next(run) for _ in range(5)] == [0, 1, 2, 3, 4]
        while len(made) < 8:
            threading.Event().wait(0.001)
    assert len(made) == 8, "five were read, two wait, and one finds no room"


def failing(at: int, error: Exception) -> Stage:
    def run(items: Iterator[int], context: StageContext) -> Iterator[int]:
        for item in items:
            if item == at:
                raise error
            yield item

    return Stage("faulty", run, GPU)


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (DeviceMissing("it was unplugged"), DeviceMissing, "stage faulty failed: it was unplugged"),
        (ZeroDivisionError("by nothing"), PluginError, "stage faulty failed: ZeroDivisionError: by nothing"),
        (BadInput("too long"), BadInput, "stage faulty failed: too long"),
    ],
)
def test_a_failure_ends_all_stages_and_names_its_own(
    pool: ResourcePool, error: Exception, kind: type[Exception], message: str
) -> None:
    ended: list[str] = []

    def watch(name: str) -> Any:
        def run(items: Iterator[int], context: StageContext) -> Iterator[int]:
            try:
                yield from items
            finally:
                ended.append(name)

        return run

    stages = [Stage("before", watch("before"), NPU), failing(3, error), Stage("after", watch("after"))]
    with Pipeline(stages, pool).run(itertools.count()) as run:
        with pytest.raises(kind, match=message) as raised:
            list(run)
        assert raised.value.__cause__ is error
    assert sorted(ended) == ["after", "before"]


def test_a_failure_of_the_input_is_told_as_one() -> None:
    def inputs() -> Iterator[int]:
        yield 1
        raise OSError("the disk is gone")

    with pytest.raises(PluginError, match="the input failed: OSError: the disk is gone"):
        list(Pipeline([Stage("a", double)]).run(inputs()))


def test_a_stage_that_cannot_even_begin(pool: ResourcePool) -> None:
    def broken(items: Iterator[int], context: StageContext) -> Iterable[int]:
        raise RuntimeError("no driver")

    with pytest.raises(PluginError, match="stage broken failed: RuntimeError: no driver"):
        list(Pipeline([Stage("a", double, NPU), Stage("broken", broken, GPU)], pool).run(itertools.count()))


def test_whoever_stops_reading_ends_all_stages(pool: ResourcePool) -> None:
    closed: list[str] = []

    def inputs() -> Iterator[int]:
        try:
            yield from itertools.count()
        finally:
            closed.append("input")

    def waits(items: Iterator[int], context: StageContext) -> Iterator[int]:
        gone = threading.Event()
        context.on_cancel(gone.set)
        yield next(items)
        gone.wait()
        closed.append("stage")

    with Pipeline([Stage("a", double, NPU), Stage("b", waits, GPU)], pool).run(inputs()) as run:
        assert next(run) == 0
    assert sorted(closed) == ["input", "stage"]


def test_a_stage_that_wants_no_more_ends_those_before_it(pool: ResourcePool) -> None:
    def three(items: Iterator[int], context: StageContext) -> Iterator[int]:
        yield from itertools.islice(items, 3)

    assert list(Pipeline([Stage("a", double, NPU), Stage("three", three, GPU)], pool).run(itertools.count())) == [
        0,
        2,
        4,
    ]


def test_a_stage_that_swallows_everything_still_ends(pool: ResourcePool) -> None:
    def stubborn(items: Iterator[int], context: StageContext) -> Iterator[int]:
        while True:
            try:
                yield next(items)
            except Exception:
                continue

    with Pipeline([Stage("stubborn", stubborn, NPU)], pool).run(itertools.count()) as run:
        assert next(run) == 0


def test_cancelling_is_no_failure() -> None:
    run = Pipeline([Stage("a", double)]).run(itertools.count())
    assert next(run) == 0
    run.cancel()
    assert list(run) == []
    assert run.close()
    context = StageContext("x", None)
    context.check()
    context.cancel()
    with pytest.raises(Cancelled):
        context.check()


def test_pipelines_that_need_the_same_resources_do_not_block_each_other(pool: ResourcePool) -> None:
    forth = Pipeline([Stage("a", double, NPU), Stage("b", double, GPU)], pool)
    back = Pipeline([Stage("a", double, GPU), Stage("b", double, NPU)], pool)
    results: list[list[int]] = []
    threads = [
        threading.Thread(target=lambda each=each: results.append(list(each.run(range(10)))))  # type: ignore[misc]
        for each in [forth, back] * 6
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [[4 * number for number in range(10)]] * 12


def test_what_makes_no_sense_is_refused(pool: ResourcePool) -> None:
    for stages, message in (
        ([], "not none"),
        ([Stage("a", double)] * 2, "names of their own"),
        ([Stage("a", double, NPU)], "has no pool"),
        ([Stage("a", double, buffer=0)], "at least one result"),
    ):
        with pytest.raises(BadInput, match=message):
            Pipeline(stages)
    with pool.acquire(NPU), pytest.raises(Transient):
        Pipeline([Stage("a", double, GPU), Stage("b", double, NPU)], pool).run((), timeout=0)


# A batch on several resources


@pytest.fixture
def gpus() -> Iterator[ResourcePool]:
    pool = ResourcePool()
    for number in range(3):
        pool.add(Resource(f"gpu{number}", ResourceType.GPU), Capability(max_batch_size=4))
    yield pool
    assert all(pool.free(resource.id) == 1 for resource in pool)


def test_a_batch_is_split_and_put_together_again(gpus: ResourcePool) -> None:
    sizes: list[tuple[str, int]] = []
    barrier = threading.Barrier(3)
    met = threading.local()

    def square(resource: Resource, items: Sequence[int]) -> list[int]:
        if not hasattr(met, "once"):
            met.once = barrier.wait()
        sizes.append((resource.id, len(items)))
        return [item * item for item in items]

    assert run_batch(gpus, range(50), square) == [number * number for number in range(50)]
    assert {name for name, _ in sizes} == {"gpu0", "gpu1", "gpu2"}
    assert max(size for _, size in sizes) == 4
    assert run_batch(gpus, [], square) == []


def test_the_share_of_one_that_fails_is_done_by_the_others(gpus: ResourcePool) -> None:
    done: Counter[int] = Counter()

    def call(resource: Resource, items: Sequence[int]) -> list[int]:
        if resource.id == "gpu1":
            raise DeviceMissing("gpu1 has gone")
        if resource.id == "gpu2":
            return [0] * (len(items) + 1)
        done.update(items)
        return list(items)

    assert run_batch(gpus, range(40), call) == list(range(40))
    assert set(done.values()) == {1}


def test_a_batch_that_nobody_can_do(gpus: ResourcePool) -> None:
    def call(resource: Resource, items: Sequence[int]) -> list[int]:
        raise PluginError(f"{resource.id} has gone")

    with pytest.raises(PluginError, match="has gone"):
        run_batch(gpus, range(9), call)
    calls: list[str] = []

    def refuse(resource: Resource, items: Sequence[int]) -> list[int]:
        calls.append(resource.id)
        raise BadInput("the second item is none")

    with pytest.raises(BadInput, match="second item"):
        run_batch(gpus, range(100), refuse)
    assert len(calls) <= 3, "a mistake of the user's is not tried again"


# A prompt and its answer on different resources


class Arithmetic(SteppingSession[list[int]]):
    """A model whose next token depends on all that came before: any token that is lost or doubled shows."""

    vocabulary_size = 97
    max_sequence_length = 1000

    def __init__(self, broken_at: int | None = None) -> None:
        super().__init__()
        self.broken_at = broken_at
        self.requests: list[GenerationRequest] = []
        self.start()

    def begin(self, request: GenerationRequest) -> list[int]:
        self.requests.append(request)
        return [request.max_tokens, *request.prompt]

    def step(self, slots: Sequence[list[int]]) -> Iterable[tuple[list[int], Sequence[int], FinishReason | None]]:
        for slot in slots:
            token = sum(index * number for index, number in enumerate(slot[1:], 1)) % 97
            slot[0] -= 1
            slot.append(token)
            if len(slot) == self.broken_at:
                raise RuntimeError("the device has gone")
            end = FinishReason.STOP if token == 0 else FinishReason.LENGTH if slot[0] == 0 else None
            yield slot, [token], end

    def drop(self, slot: list[int]) -> None:
        pass


@pytest.fixture
def sessions() -> Iterator[tuple[Arithmetic, Arithmetic]]:
    pair = Arithmetic(), Arithmetic()
    yield pair
    for session in pair:
        session.close()


def answers(pieces: Iterable[Piece]) -> dict[int, tuple[list[int], FinishReason | None]]:
    found: dict[int, tuple[list[int], FinishReason | None]] = {}
    for piece in pieces:
        tokens, finish = found.get(piece.number, ([], None))
        assert finish is None, "nothing comes after the end"
        found[piece.number] = (tokens + list(piece.tokens), piece.finish)
    return found


REQUESTS = [GenerationRequest([seed, 3, 5], most) for seed, most in ((1, 20), (2, 1), (7, 2), (40, 60), (96, 100))]


def test_a_split_answer_is_the_answer(pool: ResourcePool, sessions: tuple[Arithmetic, Arithmetic]) -> None:
    split = PrefillDecode(*sessions, pool, prefill_query=NPU, decode_query=GPU)
    with split.run(REQUESTS) as run:
        assert {name: each and each.id for name, each in run.resources.items()} == {"prefill": "npu0", "decode": "gpu0"}
        found = answers(run)
    whole = Arithmetic()
    assert found == {number: generate(whole, request) for number, request in enumerate(REQUESTS)}
    whole.close()
    assert all(request.max_tokens == 1 for request in sessions[0].requests)
    assert {len(request.prompt) for request in sessions[1].requests} == {4}
    assert FinishReason.STOP in {finish for _, finish in found.values()}, "one of them ends by itself"


def test_whoever_stops_reading_a_split_answer_ends_it(
    pool: ResourcePool, sessions: tuple[Arithmetic, Arithmetic]
) -> None:
    split = PrefillDecode(*sessions, pool, prefill_query=NPU, decode_query=GPU)
    with split.run(GenerationRequest([seed], 900) for seed in itertools.count(1)) as run:
        assert next(run).number == 0


def test_an_engine_that_fails_in_the_second_half(pool: ResourcePool) -> None:
    first, second = Arithmetic(), Arithmetic(broken_at=9)
    with (
        PrefillDecode(first, second).run([GenerationRequest([1, 3, 5], 50)]) as run,
        pytest.raises(PluginError, match=r"stage decode failed: the engine failed .* the device has gone"),
    ):
        list(run)
    first.close()
    second.close()


def test_what_cannot_be_split(sessions: tuple[Arithmetic, Arithmetic]) -> None:
    with pytest.raises(BadInput, match="stage prefill failed: penalties"):
        list(PrefillDecode(*sessions).run([GenerationRequest([1], 5, presence_penalty=1.0)]))
    sessions[1].vocabulary_size = 5
    with pytest.raises(BadInput, match="different models: one knows 97 tokens, the other 5"):
        PrefillDecode(*sessions)


def test_a_session_as_a_stream(sessions: tuple[Arithmetic, Arithmetic]) -> None:
    stream = stream_session(sessions[0], GenerationRequest([1, 3, 5], 900))
    first = next(stream)
    stream.close()
    assert first == generate(sessions[1], GenerationRequest([1, 3, 5], 1))[0]
