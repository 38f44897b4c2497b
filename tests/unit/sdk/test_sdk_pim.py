"""UPMEM's plugin on the host: where the weights lie, what the numbers become, and Llama without its projections."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rm_abstract.backends.pim import tensors
from rm_abstract.backends.pim.compiler import KERNEL, compile_model
from rm_abstract.backends.pim.layout import (
    INPUT_BYTES,
    PRODUCT_BYTES,
    WEIGHT_BYTES,
    Group,
    Layout,
    gathered,
    lay_out,
    place,
    planes,
    quantised,
    taken,
)
from rm_abstract.backends.pim.llama import KeyValues, Llama, LlamaConfig, Run
from rm_abstract.backends.pim.plugin import FORMAT, UpmemPlugin
from rm_abstract.core.errors import BadInput, WorkloadError
from rm_abstract.core.plugin import BackendConfig
from rm_abstract.core.registry import get_registry
from rm_api.conditions import Reason
from scripted_model import SAMPLES, Oracle, write_model
from scripted_model.oracle import Cache, read_safetensors

PIM = Path(tensors.__file__).parent
repeatable = settings(
    deadline=None, derandomize=True, max_examples=60, database=None, suppress_health_check=[HealthCheck.too_slow]
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    write_model(directory)
    return directory


sizes = st.integers(1, 40)
groups = st.lists(st.tuples(st.lists(sizes, min_size=1, max_size=3), sizes), min_size=1, max_size=4)


@repeatable
@given(groups, st.integers(1, 3), st.integers(1, 64), st.randoms(use_true_random=False))
def test_every_weight_lies_in_one_place(drawn: Any, ranks: int, units_per_rank: int, random: Any) -> None:
    """And what lies elsewhere is zero: so each is counted once, in whichever unit it is."""
    wanted = {
        str(number): [(f"{number}.{one}", rows, columns) for one, rows in enumerate(members)]
        for number, (members, columns) in enumerate(drawn)
    }
    layout = lay_out(wanted, ranks, units_per_rank)
    assert (layout.ranks, layout.units) == (ranks, ranks * units_per_rank)
    image = np.zeros((layout.units, layout.bytes_per_unit), np.int8)
    numbers = np.random.default_rng(random.randrange(1 << 30))
    matrices, end = {}, 0
    for group in layout.groups:
        assert group.rows == sum(rows for _, rows, _ in wanted[group.name])
        # No two overlap, none is larger than it has to be, and transfers are of 8 bytes.
        assert (group.offset, group.offset % 8, group.row_bytes % 8, group.rows_per_unit % 2) == (end, 0, 0, 0)
        assert group.row_bytes - group.columns < 8
        assert (group.rows_per_unit - 2) * layout.units < group.rows <= group.rows_per_unit * layout.units
        end = group.offset + group.bytes
        matrices[group.name] = numbers.integers(1, 128, (group.rows, group.columns), np.int8)
        place(image, layout, group, matrices[group.name])
    assert end == layout.bytes_per_unit
    assert np.count_nonzero(image) == sum(matrix.size for matrix in matrices.values())
    for group in layout.groups:
        assert (taken(image, layout, group) == matrices[group.name]).all()


@pytest.mark.parametrize(
    ("rows", "columns", "ranks", "units", "words"),
    [
        (8, 8, 0, 64, "0 ranks"),
        (8, 8, 1, 65, "65 units"),
        (8, 8, 1, 0, "0 units"),
        (8, INPUT_BYTES // 2 + 1, 1, 64, "more than a unit takes in one product"),
        (64 * PRODUCT_BYTES // 8 + 1, 8, 1, 64, "more than a unit takes in one product"),
        (WEIGHT_BYTES // 8192 * 64 + 1, 8192, 1, 64, f"has room for {WEIGHT_BYTES}"),
    ],
)
def test_what_does_not_fit(rows: int, columns: int, ranks: int, units: int, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        lay_out({"one": [("matrix", rows, columns)]}, ranks, units)


def test_what_just_fits() -> None:
    layout = lay_out({"one": [("matrix", WEIGHT_BYTES // 8192 * 64, 8192)]}, 1)
    assert layout.bytes_per_unit == WEIGHT_BYTES
    assert lay_out({"one": [("matrix", WEIGHT_BYTES // 8192 * 64 + 1, 8192)]}, 2).ranks == 2


def test_the_program_has_the_room_that_is_laid_out_for() -> None:
    source = (PIM / KERNEL).read_text()
    for name, size in (("INPUT_BYTES", INPUT_BYTES), ("WEIGHT_BYTES", WEIGHT_BYTES), ("PRODUCT_BYTES", PRODUCT_BYTES)):
        (line,) = [line for line in source.splitlines() if line.startswith(f"#define {name} ")]
        number, _, shift = line.partition("(")[2].rstrip(")").partition(" << ")
        assert int(number) << int(shift) == size


floats = st.floats(-1e6, 1e6, width=32)


@repeatable
@given(st.lists(st.lists(floats, min_size=5, max_size=5), min_size=1, max_size=6))
def test_weights_are_half_a_step_off_at_most(rows: list[list[float]]) -> None:
    matrix = np.array(rows, np.float32)
    numbers, scales = quantised(matrix)
    assert numbers.min() >= -127
    error = np.abs(numbers * scales[:, None].astype(np.float64) - matrix)
    assert (error <= scales[:, None] * (0.5 + 1e-4)).all()


@pytest.mark.parametrize("odd", [np.inf, -np.inf, np.nan])
def test_weights_that_are_no_numbers(odd: float) -> None:
    with pytest.raises(BadInput, match="no finite numbers"):
        quantised(np.array([[1, odd]], np.float32))


@repeatable
@given(st.data())
def test_products_of_the_planes_are_those_of_the_numbers(data: Any) -> None:
    """The high and the low byte, multiplied apart by integers, make the product with the 16-bit number, exactly."""
    random = np.random.default_rng(data.draw(st.integers(0, 1 << 30)))
    rows, columns, count = (data.draw(st.integers(1, 20)) for _ in range(3))
    layout = lay_out({"one": [("matrix", rows, columns)]}, 1, data.draw(st.integers(1, 8)))
    (group,) = layout.groups
    matrix = random.integers(-127, 128, (rows, columns), np.int8)
    inputs = (random.standard_normal((count, columns)) * 10.0 ** data.draw(st.integers(-6, 6))).astype(np.float32)
    image = np.zeros((layout.units, layout.bytes_per_unit), np.int8)
    place(image, layout, group, matrix)
    vectors, scales = planes(inputs, group.row_bytes)
    assert vectors.shape == (2 * count, group.row_bytes)
    held = image.reshape(layout.units, group.rows_per_unit, group.row_bytes).astype(np.int32)
    products = np.einsum("urc,vc->uvr", held, vectors.astype(np.int32))
    ones = np.ones(rows, np.float32)
    found = gathered(products, group, ones, scales)
    exact = inputs.astype(np.float64) @ matrix.T.astype(np.float64)
    bound = 0.5 * scales[:, None] * np.abs(matrix.astype(np.int64)).sum(1)[None] * 1.001
    assert (np.abs(found - exact) <= bound + np.abs(exact) * 1e-6).all()


def test_zeros_stay_zeros() -> None:
    group = Group("one", 2, 8, 2, 0)
    vectors, scales = planes(np.zeros((1, 8), np.float32), 8)
    assert not vectors.any()
    assert not gathered(np.zeros((1, 2, 2), np.int32), group, np.ones(2, np.float32), scales).any()


def logits(directory: Path, ids: list[int], chunks: int) -> np.ndarray[Any, Any]:
    """Of our Llama, with the model's own weights for projections, the prompt in as many pieces."""
    config = LlamaConfig.read(directory)
    weights = read_safetensors(directory / "model.safetensors")
    stacked = {name: np.concatenate([weights[one] for one, _, _ in parts]) for name, parts in config.groups().items()}
    llama = Llama(config, weights)
    past = KeyValues(config)
    pieces = [piece for piece in np.array_split(ids, chunks) if len(piece)]
    for piece in pieces:
        found = llama.forward([Run(piece.tolist(), past)], lambda name, rows: rows @ stacked[name].T)
    assert past.length == len(ids)
    return found[0]


@pytest.mark.parametrize("chunks", [1, 2, 5])
@pytest.mark.parametrize("sample", [0, 12, 16])
def test_llama_computes_what_the_oracle_does(model: Path, sample: int, chunks: int) -> None:
    oracle = Oracle(model)
    ids = oracle.tokenizer.encode(SAMPLES[sample].prompt)
    wanted = oracle.logits(np.array([ids]), np.arange(len(ids)), Cache(2))[0, -1]
    assert np.allclose(logits(model, ids, chunks), wanted, rtol=1e-3, atol=1e-2)


def test_runs_of_a_batch_do_not_see_each_other(model: Path) -> None:
    config = LlamaConfig.read(model)
    weights = read_safetensors(model / "model.safetensors")
    stacked = {name: np.concatenate([weights[one] for one, _, _ in parts]) for name, parts in config.groups().items()}
    llama = Llama(config, weights)

    def project(name: str, rows: Any) -> Any:
        return rows @ stacked[name].T

    together = [
        Run([880, 5, 7, 9], KeyValues(config)),
        Run([880, 11], KeyValues(config)),
        Run([880], KeyValues(config)),
    ]
    found = llama.forward(together, project)
    for run, row in zip(together, found, strict=True):
        alone = llama.forward([Run(run.tokens, KeyValues(config))], project)[0]
        assert np.allclose(row, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"architectures": ["MistralForCausalLM"]}, "MistralForCausalLM"),
        ({"hidden_act": "gelu"}, "hidden_act gelu"),
        ({"attention_bias": True}, "attention_bias True"),
        ({"mlp_bias": True}, "mlp_bias True"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_scaling"),
        ({"hidden_size": None}, "lacks a number"),
    ],
)
def test_models_that_are_not_computed(model: Path, tmp_path: Path, change: Mapping[str, Any], words: str) -> None:
    config = {**json.loads((model / "config.json").read_text()), **change}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput, match=words) as caught:
        LlamaConfig.read(tmp_path)
    assert caught.value.reason in (Reason.UNSUPPORTED_MODEL, Reason.SOURCE_INVALID)


def test_tied_embeddings_are_the_head(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    tied = LlamaConfig.of({**config, "tie_word_embeddings": True})
    assert [name for name, _, _ in tied.groups()["head"]] == ["model.embed_tokens.weight"]


def test_the_same_model_makes_the_same_bytes(model: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        compile_model(model, tmp_path / name, 1)
    first, second = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert first == second
    assert Layout.read(tmp_path / "one") == lay_out(LlamaConfig.read(model).groups(), 1)


def test_a_models_files_that_are_damaged(model: Path, tmp_path: Path) -> None:
    for file in model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    for content, words in (
        (whole[:-2], "truncated"),
        (whole[:4], "no safetensors file"),
        (b"\xff" * 64, "no safetensors"),
    ):
        weights.write_bytes(content)
        with pytest.raises(BadInput, match=words):
            compile_model(tmp_path, tmp_path / "out", 1)
    weights.write_bytes(whole.replace(b"lm_head", b"my_head"))
    with pytest.raises(BadInput, match=r"no tensor lm_head\.weight"):
        compile_model(tmp_path, tmp_path / "out", 1)
    weights.unlink()
    with pytest.raises(BadInput, match="has no safetensors file"):
        compile_model(tmp_path, tmp_path / "out", 1)


@pytest.mark.parametrize(("dtype", "kind"), [("F32", "<f4"), ("F16", "<f2")])
def test_number_formats(tmp_path: Path, dtype: str, kind: str) -> None:
    wanted = np.array([[1.5, -2.25], [0.0, 3.0]], np.float32)
    content = wanted.astype(kind).tobytes()
    head = json.dumps({"one": {"dtype": dtype, "shape": [2, 2], "data_offsets": [0, len(content)]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + content)
    source = tensors.Tensors(tmp_path)
    assert (source.read("one", (2, 2)) == wanted).all()
    with pytest.raises(BadInput, match=r"to be one of F32, F16, BF16 of shape \[4\]"):
        source.read("one", (4,))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    wanted = {"a": np.arange(3, dtype=np.float32), "b": np.ones((2, 5), np.float32)}
    file = tmp_path / "host.safetensors"
    tensors.write(file, iter(wanted.items()), {name: one.shape for name, one in wanted.items()})
    source = tensors.Tensors(file)
    assert all((source.read(name, one.shape) == one).all() for name, one in wanted.items())


def test_the_plugin_says_what_it_serves() -> None:
    plugin = get_registry().get_plugin("upmem")
    assert isinstance(plugin, UpmemPlugin)
    about = plugin.metadata()
    assert (about.device_types, about.formats) == (("pim",), (FORMAT,))
    assert plugin.get_capabilities()["architectures"] == ["LlamaForCausalLM"]
    assert plugin.get_capabilities()["limits"]["dtype"] == ("int8",)
    assert not plugin.is_available()
    with pytest.raises(WorkloadError, match="no rank was allocated"):
        plugin.probe()


def test_the_plugins_profile_is_the_examples() -> None:
    """One recipe in two forms: the SDK's, and the one that the operator makes Jobs of."""
    example = yaml.safe_load((Path(__file__).parents[3] / "examples/upmem/build-profile.yaml").read_text())["spec"]
    (profile,) = UpmemPlugin().required_build_profiles(BackendConfig(max_batch_size=4, options={"ranks": "2"}))
    assert dict(profile.flags) == {"DEVICE_COUNT": "2", "MAX_BATCH": "4"}
    assert profile.output_format == example["output"]["format"]
    for step, said in zip(profile.steps, example["steps"], strict=True):
        assert (step.name, list(step.command)) == (said["name"], [*said["command"], *said["args"]])
        assert list(step.outputs) == said["outputs"]
