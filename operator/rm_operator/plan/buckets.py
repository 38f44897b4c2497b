"""Shapes: what a deployment needs, and the compiled bucket that covers it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

from rm_api.kinds.build_artifact import ShapeBucket
from rm_api.kinds.model_deployment import ModelDeploymentSpec, ModelFacts


@dataclass(frozen=True)
class Shape:
    """What a deployment needs of an engine."""

    sequence: int
    """Longest sequence, prompt and answer together, in tokens."""
    batch: int
    """Sequences at the same time."""


class Group(NamedTuple):
    """The devices of one replica, all of one node."""

    tensor: int = 1
    """Devices that compute one layer together."""
    pipeline: int = 1
    """Groups of such devices that have the layers one after the other."""

    @property
    def devices(self) -> int:
        """How many there are."""
        return self.tensor * self.pipeline


ONE_DEVICE = Group()
_MOST_COVERING: Final = 64


def required_shape(spec: ModelDeploymentSpec, facts: ModelFacts) -> Shape:
    """The shape that ``spec`` asks for; where it names none, its workload's, within what the model was made for.

    An explicit length beyond the model's limit is returned as it is: refusing it is the caller's matter.
    """
    workload, requirements = spec.workload, spec.requirements
    answer = 0 if facts.embeds else workload.output_tokens
    usual = min(workload.input_tokens + answer, facts.max_sequence_length)
    return Shape(
        sequence=requirements.max_sequence_length or usual,
        batch=requirements.max_batch_size or workload.concurrency,
    )


def round_up(needed: int, buckets: Iterable[int], limit: int | None = None) -> int | None:
    """The smallest of ``buckets`` that covers ``needed`` and stays within ``limit``; None where there is none."""
    return min((b for b in buckets if b >= needed and (limit is None or b <= limit)), default=None)


def chunk_of(prompt: int, buckets: Iterable[int]) -> int | None:
    """Tokens of a prompt in one pass: the smallest of ``buckets`` that takes it at once, else the largest of them."""
    sizes = list(buckets)
    return round_up(prompt, sizes) or max(sizes, default=None)


def covers(shape: ShapeBucket, needed: ShapeBucket) -> bool:
    """True if what is compiled to ``shape`` serves whatever is compiled to ``needed`` does, on the same devices."""
    alike = {"max_sequence_length": None, "max_batch_size": None}
    return (
        shape.model_copy(update=alike) == needed.model_copy(update=alike)
        and _at_least(shape.max_sequence_length, needed.max_sequence_length)
        and _at_least(shape.max_batch_size, needed.max_batch_size)
    )


def covering(
    wanted: ShapeBucket, sequences: Iterable[int], batches: Iterable[int], longest: int
) -> Sequence[ShapeBucket]:
    """Buckets other than ``wanted`` that cover it, the one with the least tokens first, of equals the shorter one.

    ``sequences`` and ``batches`` are what is compiled, ``longest`` the longest sequence that the model takes.
    """
    lengths: set[int | None] = {None}
    sizes: set[int | None] = {None}
    if wanted.max_sequence_length is not None:
        lengths = {min(each, longest) for each in sequences}
    if wanted.max_batch_size is not None:
        sizes = set(batches)
    group = Group(wanted.tensor_parallel or 1, wanted.pipeline_parallel or 1)
    shapes = (bucket(length, size, wanted.prefill_chunk, group) for length in lengths for size in sizes)
    found = [shape for shape in shapes if shape != wanted and covers(shape, wanted)]
    return sorted(found, key=_tokens)[:_MOST_COVERING]


def _at_least(compiled: int | None, needed: int | None) -> bool:
    return compiled is None if needed is None else compiled is not None and compiled >= needed


def _tokens(shape: ShapeBucket) -> tuple[int, int]:
    return (shape.max_sequence_length or 1) * (shape.max_batch_size or 1), shape.max_sequence_length or 0


@lru_cache(maxsize=1024)
def bucket(
    sequence: int | None, batch: int | None, prefill_chunk: int | None = None, group: Group = ONE_DEVICE
) -> ShapeBucket:
    """The bucket with these sizes, always the same object; None for a size that is not compiled in."""
    return ShapeBucket(
        max_sequence_length=sequence,
        max_batch_size=batch,
        prefill_chunk=prefill_chunk,
        tensor_parallel=group.tensor if group.tensor > 1 else None,
        pipeline_parallel=group.pipeline if group.pipeline > 1 else None,
    )
