"""An inference script as they are written for transformers. It knows nothing of RM Abstract.

python unchanged_script.py MODEL PROMPT ...                         where PyTorch runs it
RM_DEVICE=npu:0 python -m rm_abstract unchanged_script.py MODEL PROMPT ...       on another device
"""

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer

model_name, *prompts = sys.argv[1:]

tokenizer = AutoTokenizer.from_pretrained(model_name, padding_side="left")
model = AutoModelForCausalLM.from_pretrained(model_name)
model.eval()

inputs = tokenizer(prompts, return_tensors="pt", padding=True).to(model.device)
outputs = model.generate(**inputs, max_new_tokens=60, do_sample=False)

for answer in outputs[:, inputs["input_ids"].shape[1] :]:
    print(tokenizer.decode(answer, skip_special_tokens=True))
