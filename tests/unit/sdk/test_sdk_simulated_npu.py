"""The simulated NPU: device checks against the real status tool, the blob's format, sampling."""

import dataclasses
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rm_abstract.backends.sampling import Sampler
from rm_abstract.backends.simulated_npu.blob import Target, read_header, read_program, write_blob
from rm_abstract.backends.simulated_npu.compiler import BLOB
from rm_abstract.backends.simulated_npu.device import observe
from rm_abstract.backends.simulated_npu.plugin import SimulatedNpuPlugin
from rm_abstract.core.errors import ArtifactMismatch, BadInput, DeviceMissing, DriverMismatch, WorkloadError
from rm_abstract.core.resource import BuildArtifact
from rm_abstract.core.session import GenerationRequest
from rm_device_plugins.simulator_tool import change, initialise

PRODUCT = "Simulated NPU X1"
PROGRAM = bytes(range(256)) * 8


@dataclasses.dataclass
class Node:
    """A node with two simulated NPUs, and a container that was given the first."""

    root: Path
    environment: dict[str, str]

    def announce(self, **variables: str | None) -> dict[str, str]:
        merged = {**self.environment, **variables}
        return {key: value for key, value in merged.items() if value is not None}


@pytest.fixture
def node(tmp_path: Path) -> Node:
    root = tmp_path / "sim"
    initialise(root, 2, PRODUCT, "1.4.0")
    tool = tmp_path / "rma-sim"
    tool.write_text(
        f'#!/bin/sh\nexec {sys.executable} -m rm_device_plugins.simulator_tool "$@" --driver-dir {root}/driver\n'
    )
    tool.chmod(0o755)
    return Node(
        root,
        {
            "RMA_SIM_TOOL": str(tool),
            "RMA_DEVICE_NODES": f"{root}/dev/npu0=1:3",
            "RMA_DEVICE_SERIALS": "SIMX1-0000",
            "RMA_DEVICE_PRODUCT": PRODUCT,
        },
    )


def test_the_device_that_was_allocated(node: Node) -> None:
    (device,) = observe(node.environment)
    assert (device.node, device.serial, device.product, device.driver, device.memory_bytes) == (
        f"{node.root}/dev/npu0", "SIMX1-0000", PRODUCT, "1.4.0", 16384 << 20,
    )  # fmt: skip


def test_two_devices(node: Node) -> None:
    both = node.announce(
        RMA_DEVICE_NODES=f"{node.root}/dev/npu1=1:5,{node.root}/dev/npu0=1:3",
        RMA_DEVICE_SERIALS="SIMX1-0001,SIMX1-0000",
    )
    assert [device.serial for device in observe(both)] == ["SIMX1-0001", "SIMX1-0000"]


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RMA_DEVICE_NODES": None}, "no device was allocated"),
        ({"RMA_DEVICE_NODES": ""}, "no device was allocated"),
        ({"RMA_DEVICE_NODES": "{dev}/npu0"}, "not path=major:minor"),
        ({"RMA_DEVICE_NODES": "{dev}/npu0=1:3,{dev}/npu1=1:5"}, "names 2 devices"),
        ({"RMA_DEVICE_NODES": "{dev}/npu0=1:5"}, "is device 1:3, but announced is 1:5"),
        ({"RMA_DEVICE_NODES": "{dev}/npu7=1:3"}, "knows no device npu7"),
        ({"RMA_DEVICE_SERIALS": "SIMX1-0001"}, "announced with serial SIMX1-0001, but is SIMX1-0000"),
        ({"RMA_DEVICE_PRODUCT": "Another NPU"}, "announced a Another NPU"),
        ({"RMA_SIM_TOOL": "/no/such/tool"}, "is not installed"),
        ({"RMA_SIM_TOOL": "true"}, "gave no status"),
        ({"RMA_SIM_TOOL": "false"}, "does not answer"),
    ],
)
def test_what_was_announced_is_not_what_is_there(node: Node, variables: dict[str, str | None], message: str) -> None:
    filled = {key: value and value.format(dev=f"{node.root}/dev") for key, value in variables.items()}
    with pytest.raises(DeviceMissing, match=message):
        observe(node.announce(**filled))


def remove_node(root: Path) -> None:
    (root / "dev/npu0").unlink()


def plain_file(root: Path) -> None:
    remove_node(root)
    (root / "dev/npu0").touch()


def other_device(root: Path) -> None:
    remove_node(root)
    os.mknod(root / "dev/npu0", 0o20666, os.makedev(1, 5))


@pytest.mark.parametrize(
    ("happen", "message"),
    [
        (remove_node, "cannot be opened"),
        (plain_file, "no character device"),
        (other_device, "is device 1:5, but announced is 1:3"),
        (lambda root: change(root, device=0, serial="SIMX1-9999"), "but is SIMX1-9999"),
        (lambda root: change(root, device=0, health="failed"), "that it is failed"),
        (lambda root: shutil.rmtree(root / "driver"), "no driver"),
        (lambda root: (root / "driver/status.json").write_text("{"), "no driver"),
    ],
    ids=["node gone", "a file", "another device", "exchanged", "failed", "no driver", "broken driver"],
)
def test_what_may_have_happened_to_a_device(node: Node, happen: Callable[[Path], object], message: str) -> None:
    happen(node.root)
    with pytest.raises(DeviceMissing, match=message):
        observe(node.environment)


@pytest.mark.parametrize("text", ["", "simx9:driver=1", "simx1", "simx1:driver=", "simx1:sdk=1", "simx1:driver=1,2"])
def test_targets_that_do_not_exist(text: str) -> None:
    with pytest.raises(BadInput):
        Target.parse(text)


@pytest.fixture
def blob(tmp_path: Path) -> Path:
    directory = tmp_path / "artifact"
    directory.mkdir()
    write_blob(directory / BLOB, Target.parse("simx1:driver=1.4.0"), "compiler 1", PROGRAM)
    (directory / "config.json").write_text(
        json.dumps({"max_position_embeddings": 64, "vocab_size": 8, "eos_token_id": 2})
    )
    return directory / BLOB


def test_a_blob_gives_back_its_program(blob: Path) -> None:
    header, program = read_program(blob)
    assert (header.product, header.driver, header.compiler) == (PRODUCT, "1.4.0", "compiler 1")
    assert program == PROGRAM


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[:-1],
        lambda raw: raw + b"x",
        lambda raw: raw[:-1] + b"\x00",
        lambda raw: b"\x00" + raw[1:],
        lambda raw: raw[:20],
        lambda raw: b"",
        lambda raw: raw.replace(b'"driver"', b'"drivel"'),
    ],
    ids=["truncated", "longer", "flipped", "magic", "stub", "empty", "header"],
)
def test_a_damaged_blob_is_refused(blob: Path, damage: Callable[[bytes], bytes]) -> None:
    blob.write_bytes(damage(blob.read_bytes()))
    with pytest.raises(ArtifactMismatch):
        read_program(blob)


@pytest.mark.parametrize(
    ("products", "drivers", "product", "driver", "expected"),
    [
        ((PRODUCT,), ("1.4.0",), PRODUCT, "1.4.0", None),
        ((), (), PRODUCT, "1.4.0", None),
        ((PRODUCT,), ("1.4.0",), PRODUCT, "1.5.0", DriverMismatch),
        ((PRODUCT,), ("1.4.0", "1.5.0"), PRODUCT, "1.5.0", ArtifactMismatch),
        ((), (), PRODUCT, "1.5.0", ArtifactMismatch),
        (("Another",), ("1.4.0",), PRODUCT, "1.4.0", ArtifactMismatch),
        (("Simulated NPU X2",), ("1.4.0",), "Simulated NPU X2", "1.4.0", ArtifactMismatch),
    ],
    ids=["fits", "unrestricted", "driver", "blob's driver", "blob's driver alone", "product", "blob's product"],
)
def test_an_artifact_is_served_only_where_it_fits(
    tmp_path: Path,
    blob: Path,
    monkeypatch: pytest.MonkeyPatch,
    products: tuple[str, ...],
    drivers: tuple[str, ...],
    product: str,
    driver: str,
    expected: type[WorkloadError] | None,
) -> None:
    root = tmp_path / "sim"
    initialise(root, 1, product, driver)
    tool = tmp_path / "rma-sim"
    tool.write_text(
        f'#!/bin/sh\nexec {sys.executable} -m rm_device_plugins.simulator_tool "$@" --driver-dir {root}/driver\n'
    )
    tool.chmod(0o755)
    serial = json.loads((root / "driver/status.json").read_text())["devices"][0]["serial"]
    for name, value in {
        "RMA_SIM_TOOL": str(tool), "RMA_DEVICE_NODES": f"{root}/dev/npu0=1:3",
        "RMA_DEVICE_SERIALS": serial, "RMA_DEVICE_PRODUCT": product,
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    plugin = SimulatedNpuPlugin()
    assert [resource.attributes["serial"] for resource in plugin.probe()] == [serial]
    artifact = BuildArtifact(blob.parent, "k", "simulated-npu", products, drivers)
    if expected is None:
        assert plugin.prepare_resource(artifact).info.max_sequence_length == 64
    else:
        with pytest.raises(expected):
            plugin.prepare_resource(artifact)


def test_the_header_is_enough_to_know_what_a_blob_fits(blob: Path) -> None:
    assert read_header(blob).driver == "1.4.0"
    with pytest.raises(ArtifactMismatch, match="has no other"):
        read_header(blob.with_name("other"))


LOGITS = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))


def draws(count: int = 4000, **options: Any) -> Counter[int]:
    sampler = Sampler(GenerationRequest([1], 1, seed=options.pop("seed", 1), **options))
    return Counter(sampler.choose(LOGITS) for _ in range(count))


def test_greedy_takes_the_most_likely() -> None:
    assert draws(temperature=0) == {0: 4000}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"temperature": 1.0}, [0.5, 0.3, 0.15, 0.05]),
        ({"temperature": 0.5}, [0.25 / 0.365, 0.09 / 0.365, 0.0225 / 0.365, 0.0025 / 0.365]),
        ({"temperature": 1.0, "top_k": 2}, [0.625, 0.375, 0, 0]),
        ({"temperature": 1.0, "top_p": 0.6}, [0.625, 0.375, 0, 0]),
        ({"temperature": 1.0, "top_p": 0.01}, [1, 0, 0, 0]),
    ],
)
def test_sampling_follows_the_distribution(options: dict[str, Any], expected: list[float]) -> None:
    found = draws(**options)
    for token, share in enumerate(expected):
        # Five standard deviations of a binomial share of 4000 draws.
        assert abs(found[token] / 4000 - share) <= 5 * (share * (1 - share) / 4000) ** 0.5


def test_the_same_seed_gives_the_same_tokens_and_others_do_not() -> None:
    def tokens(seed: int | None) -> list[int]:
        sampler = Sampler(GenerationRequest([1], 1, temperature=1.0, seed=seed))
        return [sampler.choose(LOGITS) for _ in range(50)]

    assert tokens(-7) == tokens(-7)
    assert len({tuple(tokens(seed)) for seed in (1, 2, None, None)}) == 4


def test_penalties_count_what_was_generated() -> None:
    frequency = Sampler(GenerationRequest([1], 1, frequency_penalty=1.0))
    assert [frequency.choose(LOGITS) for _ in range(4)] == [0, 1, 0, 2]
    presence = Sampler(GenerationRequest([1], 1, presence_penalty=2.0))
    assert [presence.choose(LOGITS) for _ in range(5)] == [0, 1, 2, 0, 0]
