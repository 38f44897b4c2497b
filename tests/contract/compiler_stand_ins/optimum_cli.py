"""Stand-in for Hugging Face's optimum-cli: `export onnx`, which is real in the tests of IREE, and `export neuron`."""

import argparse
import json
import sys
from pathlib import Path

from stand_in import FAULT, config_of, fail, leave, weights_of

MODEL_TYPES = {"llama", "mistral", "qwen2", "qwen3", "granite"}
INSTANCES = ["trn1", "inf2", "trn1n", "trn2"]


def load(model: Path) -> dict[str, object]:
    """What transformers does first, for either export."""
    config = config_of(model)
    if config["model_type"] not in MODEL_TYPES:
        fail(
            f"ValueError: The checkpoint you are trying to load has model type `{config['model_type']}` but "
            "Transformers does not recognize this architecture."
        )
    weights_of(model)
    return config


def onnx(words: list[str]) -> None:
    """`export onnx`."""
    parser = argparse.ArgumentParser(prog="optimum-cli")
    parser.add_argument("-m", "--model", type=Path, required=True)
    parser.add_argument("--task", default="auto")
    parser.add_argument("--opset", type=int)
    parser.add_argument("output", type=Path)
    asked = parser.parse_args(words)
    config = load(asked.model)
    # The head of an ONNX file, which says its opset; atc's stand-in reads the architecture from the producer.
    leave(asked.output / "model.onnx", json.dumps({"opset": asked.opset, "producer": config["architectures"]}).encode())
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        leave(asked.output / name, (asked.model / name).read_bytes())


def neuron(words: list[str]) -> None:
    """`export neuron`."""
    parser = argparse.ArgumentParser(prog="optimum-cli")
    parser.add_argument("-m", "--model", type=Path, required=True)
    parser.add_argument("--task", default="auto")
    parser.add_argument("--instance_type", choices=INSTANCES, required=True)
    parser.add_argument("--batch_size", type=int)
    parser.add_argument("--sequence_length", type=int)
    parser.add_argument("--tensor_parallel_size", type=int, default=1)
    parser.add_argument("--auto_cast_type", choices=["bf16", "fp16", "tf32"], default="bf16")
    parser.add_argument("--torch_dtype", choices=["bfloat16", "float16", "float32"], default="float32")
    parser.add_argument("output", type=Path)
    asked = parser.parse_args(words)
    load(asked.model)
    print("INFO:Neuron: Compiling graphs to NEFFs")
    if FAULT == "liar":
        print("ERROR:Neuron: Compiler status ERROR: [NCC_EXTP004] more instructions than the typical limit")
        return
    settings = {
        "batch_size": asked.batch_size, "sequence_length": asked.sequence_length, "target": asked.instance_type,
        "tp_degree": asked.tensor_parallel_size, "torch_dtype": asked.torch_dtype,
    }  # fmt: skip
    leave(asked.output / "model.pt", b"stand-in graphs\n")
    leave(asked.output / "neuron_config.json", json.dumps(settings).encode())
    for name in ("config.json", "tokenizer.json"):
        leave(asked.output / name, (asked.model / name).read_bytes())


match sys.argv[1:]:
    case ["export", "onnx", *words]:
        onnx(words)
    case ["export", "neuron", *words]:
        neuron(words)
    case _:
        fail("usage: optimum-cli", code=2)
