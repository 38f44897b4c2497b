"""Runs an artifact that a build compiled, after init, and a model with the hooks. Prints the tokens of both as JSON."""

import json
import sys
from pathlib import Path

import rm_abstract
from rm_abstract.core.resource import BuildArtifact
from transformers import AutoModelForCausalLM, AutoTokenizer

model_name, artifact, prompt = sys.argv[1:]
controller = rm_abstract.init()
prompt_ids = AutoTokenizer.from_pretrained(model_name)(prompt, return_tensors="pt")["input_ids"]
with controller.backend.prepare_model(BuildArtifact.read(Path(artifact))) as prepared:
    direct = controller.backend.execute(prepared, prompt_ids[0].tolist(), max_tokens=60)
hooked = AutoModelForCausalLM.from_pretrained(model_name).generate(prompt_ids, max_new_tokens=60)
seen = {"direct": direct, "hooked": hooked[0][prompt_ids.shape[1] :].tolist()}
rm_abstract.shutdown()
print(json.dumps(seen))
