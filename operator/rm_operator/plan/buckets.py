"""Shapes: what a deployment needs, and the compiled bucket that covers it."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

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


def required_shape(spec: ModelDeploymentSpec, facts: ModelFacts) -> Shape:
    """The shape that ``spec`` asks for; where it names none, its workload's, within what the model was made for.

    An explicit length beyond the model's limit is returned as it is: refusing it is the caller's matter.
    """
    workload, requirements = spec.workload, spec.requirements
    usual = min(workload.input_tokens + workload.output_tokens, facts.max_sequence_length)
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
