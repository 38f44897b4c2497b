"""Shapes: what is needed, and the smallest compiled size that covers it."""

import pytest
from rm_api.kinds import ModelDeploymentSpec, ModelFacts
from rm_operator.plan.buckets import Shape, bucket, required_shape, round_up


def facts(limit: int) -> ModelFacts:
    digest = "sha256:" + "0" * 64
    return ModelFacts(
        source="hf://a/b", revision="r", architecture="X", parameters=1, active_parameters=1, weight_bytes=2,
        dtype="bf16", layers=1, heads=1, kv_heads=1, head_dim=1, max_sequence_length=limit,
        config_digest=digest, tensors_digest=digest, weights_digest=digest,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("needed", "buckets", "limit", "found"),
    [
        (4000, [1024, 4096, 8192], None, 4096),
        (4096, [8192, 4096], None, 4096),
        (4097, [1024, 4096], None, None),
        (1, [], None, None),
        (100, [512, 128], 200, 128),
        (100, [512], 200, None),
        (100, [200], 200, 200),
    ],
)
def test_the_smallest_bucket_that_covers_and_stays_within_the_limit(
    needed: int, buckets: list[int], limit: int | None, found: int | None
) -> None:
    assert round_up(needed, buckets, limit) == found


@pytest.mark.parametrize(
    ("requirements", "workload", "limit", "shape"),
    [
        ({}, {}, 8192, Shape(1280, 8)),
        ({}, {"inputTokens": 100, "outputTokens": 28, "concurrency": 3}, 8192, Shape(128, 3)),
        ({}, {}, 512, Shape(512, 8)),
        ({"maxSequenceLength": 4096, "maxBatchSize": 32}, {}, 8192, Shape(4096, 32)),
        ({"maxSequenceLength": 64}, {}, 8192, Shape(64, 8)),
        ({"maxSequenceLength": 4096}, {}, 2048, Shape(4096, 8)),
    ],
)
def test_what_is_required_is_explicit_or_comes_from_the_workload_within_the_models_limit(
    requirements: dict[str, int], workload: dict[str, int], limit: int, shape: Shape
) -> None:
    spec = ModelDeploymentSpec.model_validate(
        {"model": {"source": "hf://a/b"}, "requirements": requirements, "workload": workload}
    )
    assert required_shape(spec, facts(limit)) == shape


def test_a_size_that_is_not_compiled_in_is_absent_on_the_wire() -> None:
    assert bucket(4096, None).to_wire() == {"maxSequenceLength": 4096}
