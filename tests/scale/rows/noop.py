"""Reconciles with nothing to do: queue, worker, controller, plan and comparison, without an API server."""

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rm_operator.kube.resources import MODEL_DEPLOYMENTS
from rm_operator.kube.store import key_of
from rm_operator.runtime import garbage
from rm_operator.runtime.queue import Key

from scale import objects, settled
from scale.report import Row
from scale.sizes import Sizes

PER_NAMESPACE = 100
NAMESPACES = 10
WORKERS = 16


async def run(sizes: Sizes) -> Sequence[Row]:
    """Rates where nothing has changed at all, and where each object itself was touched and needs nothing."""
    template = await settled.settled(PER_NAMESPACE, replicas=0, model={"source": objects.SOURCE, "servedName": "llama"})
    engine = settled.Engine(WORKERS)
    for _, obj in template.fleet:
        engine.put(obj)
    for number, space in enumerate(objects.namespaces("scale", NAMESPACES)):
        for _, obj in template.copies(space, f"{number:08x}"):
            engine.put(obj)
    await engine.settle()
    asked = engine.api.requests
    keys = [Key(MODEL_DEPLOYMENTS.kind, *key) for key in map(key_of, engine.stores[MODEL_DEPLOYMENTS])]

    def line_up() -> None:
        for key in keys:
            engine.queue.add(key)

    def touch() -> None:
        # As after a write of somebody's that says nothing new: the object as it is known, at another version.
        for key in keys:
            known = engine.stores[MODEL_DEPLOYMENTS].get(key.namespace, key.name)
            assert known is not None
            engine.put(dict(known))

    rounds = max(1, sizes.reconciles // len(keys))
    with _collected_as_in_the_operator():
        unchanged = await _rate(engine, line_up, rounds, len(keys))
        touched = await _rate(engine, touch, max(1, rounds // 5), len(keys))
    await engine.close()
    return [
        Row("nothing to do", "reconciles, nothing changed", unchanged, "/s", ">=", 5000, f"{len(keys)} deployments"),
        Row("nothing to do", "reconciles, one own object touched", touched, "/s", note="decided anew"),
        Row("nothing to do", "API calls", engine.api.requests - asked, "", "<=", 0),
    ]


async def _rate(engine: settled.Engine, again: Callable[[], None], rounds: int, keys: int) -> float:
    spent = 0.0
    for _ in range(rounds):
        again()
        began = time.process_time()
        await engine.settle()
        spent += time.process_time() - began
    return rounds * keys / spent


@contextmanager
def _collected_as_in_the_operator() -> Iterator[None]:
    usual = gc.get_threshold()
    gc.collect()
    garbage.begin_working()
    try:
        yield
    finally:
        gc.set_threshold(*usual)
        gc.unfreeze()
