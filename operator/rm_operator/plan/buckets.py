"""Shapes: what a deployment needs, and the compiled bucket that covers it."""

from collections.abc import Iterable
from dataclasses import dataclass

from rm_api.kinds.build_artifact import ShapeBucket
from rm_api.kinds.model_deployment import ModelDeploymentSpec, ModelFacts


@dataclass(frozen=True)
class Shape:
    """What a deployment needs of an engine."""

    sequence: int
    """Longest sequence, prompt and answer together, in tokens."""
    batch: int
    """Sequences at the same time."""


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


def bucket(sequence: int | None, batch: int | None) -> ShapeBucket:
    """The bucket with these sizes; None for a size that is not compiled in."""
    return ShapeBucket(max_sequence_length=sequence, max_batch_size=batch)
