"""What a model on a device does when a script uses it as a model of transformers. Prints what it saw as JSON."""

import json
import sys

import rm_abstract
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    TextIteratorStreamer,
    TextStreamer,
    pipeline,
)

model_name, prompt, other = sys.argv[1:]
rm_abstract.init()  # after transformers was imported
tokenizer = AutoTokenizer.from_pretrained(model_name, padding_side="left")
model = AutoModelForCausalLM.from_pretrained(model_name, device_map="auto", dtype=torch.bfloat16)
inputs = tokenizer(prompt, return_tensors="pt").to("cuda")
width = inputs["input_ids"].shape[1]
seen: dict[str, object] = {}


def text(output: torch.Tensor) -> str:
    return tokenizer.decode(output[width:], skip_special_tokens=True)


def tokens(**options: object) -> list[int]:
    return model.generate(**inputs, **options)[0][width:].tolist()


seen["is"] = [isinstance(model, PreTrainedModel), type(model).__name__, str(model.device), str(model.dtype)]
seen["moved"] = [model.to("cuda") is model, model.eval() is model, model.half() is model, model.cuda() is model]
seen["configuration"] = [model.config.vocab_size, model.generation_config.eos_token_id, model.config.name_or_path]
seen["plain"] = text(model.generate(**inputs, max_new_tokens=60)[0])
seen["ids only"] = text(model.generate(inputs["input_ids"], max_new_tokens=60)[0])
seen["twenty"] = len(tokens())
seen["max_length"] = len(tokens(max_length=width + 7))
seen["configured"] = len(tokens(generation_config=GenerationConfig(max_new_tokens=5)))
seen["argument before configuration"] = len(
    tokens(generation_config=GenerationConfig(max_new_tokens=5), max_new_tokens=6)
)
answer = tokens(max_new_tokens=60)
seen["ends"] = answer[-1] == model.generation_config.eos_token_id
seen["own end"] = tokens(max_new_tokens=60, eos_token_id=answer[4]) == answer[:5]
seen["two ends"] = tokens(max_new_tokens=60, eos_token_id=[answer[9], answer[3]]) == answer[:4]
result = model.generate(**inputs, max_new_tokens=60, return_dict_in_generate=True)
seen["dictionary"] = result.sequences[0][width:].tolist() == answer

both = tokenizer([prompt, other], return_tensors="pt", padding=True)
rows = model.generate(**both, max_new_tokens=60)
seen["batch"] = [tokenizer.decode(row[both["input_ids"].shape[1] :], skip_special_tokens=True) for row in rows]
seen["prompts are in it"] = rows[:, : both["input_ids"].shape[1]].tolist() == both["input_ids"].tolist()
seen["mask inferred"] = model.generate(both["input_ids"], max_new_tokens=60).tolist() == rows.tolist()

sampled = {"do_sample": True, "temperature": 8.0, "top_k": 0, "max_new_tokens": 12}
torch.manual_seed(3)
first = tokens(**sampled)
second = tokens(**sampled)
torch.manual_seed(3)
seen["seed"] = [tokens(**sampled) == first, first != second]
seen["top_k"] = tokens(do_sample=True, temperature=8.0, top_k=1, max_new_tokens=60) == answer
seen["top_p"] = tokens(do_sample=True, temperature=1.0, top_p=0.01, max_new_tokens=60) == answer
seen["several"] = len(model.generate(**inputs, num_return_sequences=3, **sampled))


class Lines(TextStreamer):
    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        pieces.append(text)


pieces: list[str] = []
model.generate(**inputs, max_new_tokens=60, streamer=Lines(tokenizer, skip_prompt=True, skip_special_tokens=True))
seen["streamed"] = "".join(pieces)
seen["in pieces"] = len(pieces) > 5
iterator = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
model.generate(**inputs, max_new_tokens=60, streamer=iterator)
seen["iterated"] = "".join(iterator)

pipe = pipeline("text-generation", model=model, tokenizer=tokenizer)
seen["pipeline"] = pipe(prompt, max_new_tokens=60, return_full_text=False)[0]["generated_text"]
named = pipeline("text-generation", model=model_name)
seen["pipeline by name"] = [type(named.model).__module__, named(other, max_new_tokens=60)[0]["generated_text"]]

refused: dict[str, str] = {}
attempts = {
    "num_beams": lambda: model.generate(**inputs, num_beams=4),
    "stopping_criteria": lambda: model.generate(**inputs, stopping_criteria=[lambda *_: True]),
    "output_scores": lambda: model.generate(**inputs, output_scores=True, return_dict_in_generate=True),
    "inputs_embeds": lambda: model.generate(inputs_embeds=torch.zeros(1, 2, 384)),
    "unknown": lambda: model.generate(**inputs, wings=2),
    "no sampling": lambda: model.generate(**inputs, num_return_sequences=2),
    "cold": lambda: model.generate(**inputs, do_sample=True, temperature=0.0),
    "short": lambda: model.generate(**inputs, max_length=3),
    "streamed batch": lambda: model.generate(**both, streamer=TextStreamer(tokenizer)),
    "long": lambda: model.generate(torch.ones(1, 2000, dtype=torch.long)),
    "one row": lambda: model.generate(inputs["input_ids"][0]),
    "forward": lambda: model(**inputs),
    "train": model.train,
    "save": lambda: model.save_pretrained("x"),
    "quantization_config": lambda: AutoModelForCausalLM.from_pretrained(model_name, quantization_config={"bits": 4}),
    "nowhere": lambda: AutoModelForCausalLM.from_pretrained("./nowhere"),
    "not on the hub": lambda: AutoModelForCausalLM.from_pretrained("nobody/nothing"),
}
for what, attempt in attempts.items():
    try:
        attempt()
    except Exception as error:  # what it is, is what is asked
        refused[what] = f"{type(error).__name__}: {error}"
seen["refused"] = refused
rm_abstract.shutdown()
print(json.dumps(seen))
