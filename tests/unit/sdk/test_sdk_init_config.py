"""What init is asked for: devices, options, and what counts before what."""

from pathlib import Path
from typing import Any

import pytest
from rm_abstract.core.config import Config, Device
from rm_abstract.core.errors import BadInput
from rm_abstract.core.plugin import BackendConfig


@pytest.mark.parametrize(
    ("text", "kind", "index", "url", "shown"),
    [
        ("auto", "auto", None, "", "auto"),
        ("cpu", "cpu", None, "", "cpu"),
        (" GPU:1 ", "gpu", 1, "", "gpu:1"),
        ("npu:0", "npu", 0, "", "npu:0"),
        ("rbln:12", "rbln", 12, "", "rbln:12"),
        ("simulated-npu", "simulated-npu", None, "", "simulated-npu"),
        ("my_accel:3", "my_accel", 3, "", "my_accel:3"),
        ("remote:http://h:8000/v1/", "remote", None, "http://h:8000/v1", "remote:http://h:8000/v1"),
        ("Remote:https://h", "remote", None, "https://h", "remote:https://h"),
    ],
)
def test_a_device(text: str, kind: str, index: int | None, url: str, shown: str) -> None:
    device = Device.parse(text)
    assert (device.kind, device.index, device.url, str(device)) == (kind, index, url, shown)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be understood"),
        ("auto:0", "cannot be understood: use auto, a type or a plugin's name"),
        ("gpu:", "cannot be understood"),
        ("gpu:-1", "cannot be understood"),
        ("gpu:0,1", "cannot be understood"),
        ("gpu:00000", "cannot be understood"),
        ("0", "cannot be understood"),
        ("remote", "cannot be understood"),
        ("remote:", "remote: wants the URL of a server"),
        ("remote:host:80", "remote: wants the URL of a server"),
        ("remote:ftp://host", "such as remote:http://host:8000/v1"),
    ],
)
def test_no_device(text: str, message: str) -> None:
    with pytest.raises(BadInput) as raised:
        Device.parse(text)
    assert message in str(raised.value)


def resolved(environment: dict[str, str] | None = None, **arguments: Any) -> Config:
    return Config.resolve(**arguments, environment=environment or {})


@pytest.mark.parametrize(
    ("argument", "variable", "device"),
    [
        (None, None, "auto"),
        (None, "", "auto"),
        (None, "npu:0", "npu:0"),
        ("gpu:1", "npu:0", "gpu:1"),
        ("auto", "npu:0", "auto"),
        (Device("cpu"), "npu:0", "cpu"),
    ],
)
def test_the_device_of_the_argument_then_of_the_environment(
    argument: str | None, variable: str | None, device: str
) -> None:
    environment = {} if variable is None else {"RM_DEVICE": variable}
    assert str(resolved(environment, device=argument).device) == device


@pytest.mark.parametrize(
    ("argument", "environment", "directory"),
    [
        (None, {"HOME": "/h"}, Path.home() / ".cache/rm-abstract/compiled"),
        (None, {"XDG_CACHE_HOME": "/x"}, Path("/x/rm-abstract/compiled")),
        (None, {"RM_CACHE_DIR": "/data/npu_cache", "XDG_CACHE_HOME": "/x"}, Path("/data/npu_cache")),
        ("/own", {"RM_CACHE_DIR": "/data"}, Path("/own")),
        ("~/.rm_abstract/cache", {}, Path.home() / ".rm_abstract/cache"),
        ("relative", {}, Path.cwd() / "relative"),
    ],
)
def test_where_compiled_models_are_kept(argument: str | None, environment: dict[str, str], directory: Path) -> None:
    assert resolved(environment, cache_dir=argument).cache_dir == directory


@pytest.mark.parametrize(
    ("argument", "variable", "enabled"),
    [
        (None, None, False),
        (None, "true", True),
        (None, " Yes ", True),
        (None, "1", True),
        (None, "off", False),
        (None, "", False),
        (False, "true", False),
        (True, "false", True),
    ],
)
def test_the_plugin_system(argument: bool | None, variable: str | None, enabled: bool) -> None:
    environment = {} if variable is None else {"RM_USE_PLUGINS": variable}
    assert resolved(environment, use_plugin_system=argument).use_plugin_system is enabled


def test_a_variable_that_is_neither_true_nor_false() -> None:
    with pytest.raises(BadInput, match="RM_USE_PLUGINS is 'perhaps', but must be true or false"):
        resolved({"RM_USE_PLUGINS": "perhaps"})


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, BackendConfig()),
        ({"precision": "fp16"}, BackendConfig(dtype="fp16")),
        ({"dtype": "bf16", "precision": "bf16"}, BackendConfig(dtype="bf16")),
        ({"target": "simx1:driver=1.4.0"}, BackendConfig(target="simx1:driver=1.4.0")),
        (
            {"max_batch_size": 4, "max_sequence_length": 512},
            BackendConfig(max_batch_size=4, max_sequence_length=512),
        ),
        (
            {"optimization_level": 3, "fast": True, "share": 0.5, "mode": "a"},
            BackendConfig(options={"fast": "true", "mode": "a", "optimization_level": "3", "share": "0.5"}),
        ),
    ],
)
def test_compile_options(options: dict[str, Any], expected: BackendConfig) -> None:
    assert resolved(compile_options=options).backend_config() == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "fp16", "precision": "fp32"}, "dtype and precision mean the same, but are fp16 and fp32"),
        ({"max_batch_size": 0}, "max_batch_size is 0, but must be a whole number of at least 1"),
        ({"max_sequence_length": "long"}, "max_sequence_length is 'long', but must be a whole number"),
        ({"max_batch_size": True}, "max_batch_size is True"),
        ({"shapes": [1, 2]}, "shapes is a list, but must be text, a number, True or False"),
        ({7: "x"}, "7 is no name of an option"),
    ],
)
def test_compile_options_that_make_no_sense(options: dict[Any, Any], message: str) -> None:
    with pytest.raises(BadInput) as raised:
        resolved(compile_options=options)
    assert message in str(raised.value)
