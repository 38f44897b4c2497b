"""Stand-in for the compiler of nobody in particular: that of examples/any-chip."""

import json
import shutil
import sys
from pathlib import Path

from stand_in import FAULT, fail, leave

model, options = Path(sys.argv[1]), sys.argv[2:]
given = dict(word.removeprefix("--").partition("=")[::2] for word in options)
if unknown := sorted(given.keys() - {"target", "max-tokens", "output", "copy-tokenizer"}):
    fail(f"acme-cc: unknown option --{unknown[0]}")
if given["target"] != "x1":
    fail(f"acme-cc: there is no target {given['target']}")
if not (model / "config.json").is_file():
    fail(f"acme-cc: {model}/config.json: No such file or directory")
if not list(model.glob("*.safetensors")):
    fail(f"acme-cc: {model}: no safetensors file")
architecture = json.loads((model / "config.json").read_bytes())["architectures"][0]
if architecture not in ("LlamaForCausalLM", "Qwen3ForCausalLM"):
    fail(f"acme-cc: error: {architecture} is not supported")
output = Path(given["output"])
leave(output, f"stand-in program for {given['max-tokens']} tokens\n".encode())
if "copy-tokenizer" in given and FAULT != "silent":
    shutil.copyfile(model / "tokenizer.json", output.parent / "tokenizer.json")
