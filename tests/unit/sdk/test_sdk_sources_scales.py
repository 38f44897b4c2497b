"""The digest of a quantised model's scales: of their content, without reading the weights."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rm_abstract.core.errors import ArtifactMismatch
from rm_abstract.sources import resolve_model
from rm_abstract.sources.base import ModelSource, SourceFile
from rm_abstract.sources.safetensors import Tensor
from rm_abstract.sources.scales import scale_tensors, tensor_digests
from rm_api.kinds.model_deployment import ModelFacts
from sdk_support import Hub, WebServer, safetensors

LAYER = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("method", "scales", "others"),
    [
        ("GPTQ", ["qzeros", "scales", "g_idx"], ["qweight", "bias"]),
        ("AWQ", ["qzeros", "scales"], ["qweight"]),
        (
            "compressed-tensors",
            ["weight_scale", "weight_zero_point", "weight_g_idx", "input_scale", "input_zero_point", "output_scale",
             "weight_global_scale", "input_global_scale"],
            ["weight_packed", "weight_shape", "weight"],
        ),
        ("fp8 of DeepSeek", ["weight_scale_inv"], ["weight"]),
        ("fp8 per tensor", ["weight_scale", "input_scale", "k_scale", "v_scale"], ["weight"]),
        ("NVFP4", ["weight_scale", "weight_scale_2", "input_scale"], ["weight"]),
        ("MXFP4", ["gate_up_proj_scales", "down_proj_scales"], ["gate_up_proj_blocks", "gate_up_proj_bias"]),
        (
            "bitsandbytes",
            ["weight.absmax", "weight.quant_map", "weight.nested_absmax", "weight.nested_quant_map", "SCB",
             "weight.quant_state.bitsandbytes__nf4"],
            ["weight"],
        ),
        ("none", [], ["weight", "bias", "inv_freq", "norm.scale", "norm.weight", "embed_tokens.weight"]),
    ],
)  # fmt: skip
def test_what_is_a_scale(method: str, scales: list[str], others: list[str]) -> None:
    assert method
    tensors = [Tensor(f"{LAYER}.{name}", "F16", (2, 2)) for name in [*others, *scales]]
    assert [tensor.name.removeprefix(f"{LAYER}.") for tensor in scale_tensors(tensors)] == scales


FP8 = {
    f"{LAYER}.weight": ("F8_E4M3", [64, 64], 4096),
    f"{LAYER}.weight_scale": ("F32", [8, 8], 256),
    f"{LAYER}.input_scale": ("F32", [1], 4),
    "norm.weight": ("BF16", [64], 128),
}


def flipped(raw: bytes, tensor: str) -> bytes:
    """The file with one bit of a tensor's last byte changed."""
    length = int.from_bytes(raw[:8], "little")
    end = 8 + length + json.loads(raw[8 : 8 + length])[tensor]["data_offsets"][1] - 1
    return raw[:end] + bytes([raw[end] ^ 1]) + raw[end + 1 :]


def test_only_the_content_of_the_scales_counts(web: WebServer, model: Path) -> None:
    web.serve_directory(model)
    uri, path = f"https://{web.host}/", model / "model.safetensors"
    assert "scalesDigest" not in resolve_model(uri)
    raw = safetensors(FP8)
    path.write_bytes(raw)
    before = resolve_model(uri)
    length = int.from_bytes(raw[:8], "little")
    at = {name: entry["data_offsets"] for name, entry in json.loads(raw[8 : 8 + length]).items()}

    def content(name: str) -> str:
        return "sha256:" + hashlib.sha256(raw[8 + length :][slice(*at[name])]).hexdigest()

    rows = [[name, "F32", FP8[name][1], content(name)] for name in (f"{LAYER}.input_scale", f"{LAYER}.weight_scale")]
    listing = json.dumps(rows, separators=(",", ":"))
    assert before["scalesDigest"] == "sha256:" + hashlib.sha256(listing.encode()).hexdigest()
    assert ModelFacts.model_validate(before).scales_digest == before["scalesDigest"]
    for tensor in FP8:
        path.write_bytes(flipped(raw, tensor))
        after = resolve_model(uri)
        assert (after["scalesDigest"] != before["scalesDigest"]) == tensor.endswith("_scale")
        assert after["weightsDigest"] != before["weightsDigest"]
        assert after["tensorsDigest"] == before["tensorsDigest"]


def test_it_does_not_matter_in_which_files_they_are(web: WebServer, model: Path) -> None:
    web.serve_directory(model)
    names = list(FP8)
    raw = safetensors(FP8)
    (model / "model.safetensors").write_bytes(raw)
    before = resolve_model(f"https://{web.host}/")
    length = int.from_bytes(raw[:8], "little")
    header, data = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    shards = {"a.safetensors": names[:1] + names[2:3], "b.safetensors": names[3:] + names[1:2]}
    for file, held in shards.items():
        own, end, body = {}, 0, b""
        for name in held:
            part = data[slice(*header[name]["data_offsets"])]
            own[name] = {**header[name], "data_offsets": [end, end + len(part)]}
            end, body = end + len(part), body + part
        text = json.dumps(own).encode()
        (model / file).write_bytes(len(text).to_bytes(8, "little") + text + body)
    (model / "model.safetensors").unlink()
    index = {"weight_map": {name: file for file, held in shards.items() for name in held}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    after = resolve_model(f"https://{web.host}/")
    assert after["scalesDigest"] == before["scalesDigest"]
    assert after["tensorsDigest"] == before["tensorsDigest"]


def test_the_weights_are_not_read_for_it(web: WebServer, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"http://{web.host}")
    weights = {f"layers.{n}.qweight": ("U8", [1 << 20], 1 << 20) for n in range(4)}
    scales = {f"layers.{n}.{part}": ("F16", [64], 128) for n in range(4) for part in ("scales", "qzeros")}
    mixed = dict(
        item for n in range(4) for item in [list(weights.items())[n], *list(scales.items())[2 * n : 2 * n + 2]]
    )
    (model / "model.safetensors").write_bytes(safetensors(mixed))
    Hub(web, model)
    assert resolve_model("hf://org/tiny")["scalesDigest"]
    read = 0
    for request in web.requests:
        if request.path.endswith(".safetensors"):
            first, last = map(int, request.headers["range"].removeprefix("bytes=").split("-"))
            read += last - first + 1
    assert read < 10_000 < sum(size for _, _, size in weights.values())


def test_where_parts_cannot_be_read_all_weights_count(web: WebServer, model: Path) -> None:
    (model / "model.safetensors").write_bytes(safetensors(FP8))
    web.serve_directory(model, ranges=False)
    uri = f"https://{web.host}/"
    before = resolve_model(uri)
    assert resolve_model(uri)["scalesDigest"] == before["scalesDigest"]
    (model / "model.safetensors").write_bytes(flipped(safetensors(FP8), f"{LAYER}.weight"))
    assert resolve_model(uri)["scalesDigest"] != before["scalesDigest"]


class MemorySource(ModelSource):
    """One file of tensors, in memory."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.files = {"w": SourceFile(len(content))}
        self.longest = 0

    def open(self, revision: str | None) -> None: ...

    def read(self, name: str, start: int, length: int) -> bytes:
        self.longest = max(self.longest, length)
        return self._content[start : start + length]

    def stream(self, name: str) -> Iterator[bytes]:
        yield self._content

    def close(self) -> None: ...


SIZES = st.sampled_from([0, 1, 100, 4096, 200_000, 300_000, 17 << 20])


@settings(deadline=None, max_examples=20)
@given(layout=st.lists(st.tuples(st.booleans(), SIZES), min_size=1, max_size=6), head=st.integers(0, 50))
def test_however_they_lie_each_has_its_own_bytes(layout: list[tuple[bool, int]], head: int) -> None:
    tensors = [Tensor(f"{n}.{'scales' if scale else 'w'}", "U8", (size,)) for n, (scale, size) in enumerate(layout)]
    parts = [hashlib.shake_256(str(n).encode()).digest(size) for n, (_, size) in enumerate(layout)]
    source = MemorySource(bytes(head) + b"".join(parts))
    wanted = [
        [tensor.name, "U8", list(tensor.shape), "sha256:" + hashlib.sha256(part).hexdigest()]
        for tensor, part in zip(tensors, parts, strict=True)
        if tensor.name.endswith("scales") and part
    ]
    assert tensor_digests(source, {"w": tensors}) == sorted(wanted)
    assert source.longest <= 16 << 20


def test_too_many_places_are_not_read_one_by_one() -> None:
    apart = [
        Tensor(f"{n}.{kind}", "U8", (size,)) for n in range(4097) for kind, size in (("w", 1 << 19), ("scales", 1))
    ]
    source = MemorySource(b"")
    source.files = {"w": SourceFile(sum(tensor.bytes for tensor in apart))}
    assert tensor_digests(source, {"w": apart}) is None
    assert not source.longest


def test_a_file_that_ends_too_early_is_noticed() -> None:
    source = MemorySource(bytes(9))
    source.files = {"w": SourceFile(10)}
    with pytest.raises(ArtifactMismatch, match="w ends 1 bytes before it should"):
        tensor_digests(source, {"w": [Tensor("a.scales", "U8", (10,))]})
