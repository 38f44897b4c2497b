"""Stand-in for TensorRT-LLM's trtllm-build, which needs a GPU: here, that a device plugin says that there is one."""

import argparse
import json
import os
from pathlib import Path

from stand_in import FAULT, fail, leave

KNOWN = {"max_batch_size", "max_seq_len", "max_input_len", "max_num_tokens", "kv_cache_type", "plugin_config"}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="trtllm-build")
    parser.add_argument("--checkpoint_dir", type=Path)
    parser.add_argument("--output_dir", type=Path, default=Path("engine_outputs"))
    parser.add_argument("--build_config", type=Path)
    parser.add_argument("--workers", type=int, default=1)
    asked = parser.parse_args()
    print("[TensorRT-LLM] TensorRT-LLM version: 1.0.0")
    traceback = ("Traceback (most recent call last):", '  File "/usr/local/bin/trtllm-build", line 8, in <module>')
    if not os.environ.get("NVIDIA_VISIBLE_DEVICES"):
        fail(*traceback, "RuntimeError: No CUDA GPUs are available")
    config = asked.checkpoint_dir / "config.json"
    if not config.is_file():
        fail(*traceback, f"FileNotFoundError: [Errno 2] No such file or directory: '{config}'")
    checkpoint, build = json.loads(config.read_text()), json.loads(asked.build_config.read_text())
    if unknown := build.keys() - KNOWN:
        fail(*traceback, f"TypeError: BuildConfig.__init__() got an unexpected keyword argument '{min(unknown)}'")
    if not all(isinstance(build[name], int) for name in ("max_batch_size", "max_seq_len")):
        fail(*traceback, "TypeError: '<' not supported between instances of 'str' and 'int'")
    if checkpoint["architecture"] != "LlamaForCausalLM":
        fail(*traceback, f"AssertionError: Unsupported model architecture: {checkpoint['architecture']}")
    if FAULT == "liar":
        # Under MPI it says so, and its launcher decides on the exit code.
        print("Engine building failed, please check error log.")
        return
    for rank in range(checkpoint["mapping"]["world_size"]):
        leave(asked.output_dir / f"rank{rank}.engine", b"stand-in engine\n" * build["max_batch_size"])
    leave(asked.output_dir / "config.json", json.dumps({"build_config": build, "version": "1.0.0"}).encode())
    print("[TRT-LLM] [I] Total time of building all engines: 00:00:01")


main()
