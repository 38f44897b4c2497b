"""Stand-in for the script of TensorRT-LLM's examples that converts a Llama's checkpoint, in an image of NVIDIA's."""

import argparse
import json
from pathlib import Path

from stand_in import config_of, leave, weights_of

parser = argparse.ArgumentParser()
parser.add_argument("--model_dir", type=Path, required=True)
parser.add_argument("--output_dir", type=Path, required=True)
parser.add_argument("--dtype", default="auto", choices=["auto", "float16", "bfloat16", "float32"])
parser.add_argument("--tp_size", type=int, default=1)
parser.add_argument("--pp_size", type=int, default=1)
asked = parser.parse_args()
config, weights = config_of(asked.model_dir), weights_of(asked.model_dir)
said = {"architecture": config["architectures"][0], "dtype": asked.dtype, "longest": config["max_position_embeddings"]}
said["mapping"] = {"world_size": asked.tp_size * asked.pp_size, "tp_size": asked.tp_size, "pp_size": asked.pp_size}
for rank in range(asked.tp_size * asked.pp_size):
    leave(asked.output_dir / f"rank{rank}.safetensors", weights[0].read_bytes()[:4096])
leave(asked.output_dir / "config.json", json.dumps(said).encode())
print("Total time of converting checkpoints: 00:00:01")
