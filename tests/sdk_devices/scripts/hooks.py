"""What hooks do to transformers, and that nothing of it stays. Prints what it saw as JSON."""

import json
import sys
import threading

import rm_abstract
from rm_abstract.core.errors import WorkloadError

model_name, prompt = sys.argv[1:]
seen: dict[str, object] = {}
told: list[str] = []
first = rm_abstract.init(device="pytorch", on_progress=lambda progress: told.append(progress.stage))
seen["init imports nothing"] = [name for name in ("torch", "transformers", "openvino") if name in sys.modules]

import transformers.models.auto.modeling_auto as auto  # noqa: E402 (the hooks wait for it)
from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BatchEncoding,
    GenerationMixin,
    LlamaForCausalLM,
)


def held() -> dict[str, object]:
    """Every attribute that is hooked, as its class holds it."""
    found = {
        name: vars(kind)["from_pretrained"]
        for name, kind in vars(auto).items()
        if name.startswith("AutoModel") and "from_pretrained" in vars(kind)
    }
    return {**found, "generate": vars(GenerationMixin)["generate"], "to": vars(BatchEncoding)["to"]}


def code(attribute: object) -> str:
    """The file in which the function of a class was written."""
    return str(getattr(attribute, "__func__", attribute).__code__.co_filename)  # type: ignore[attr-defined]


seen["hooks are ours"] = "rm_abstract" in code(held()["AutoModelForCausalLM"])
tokenizer = AutoTokenizer.from_pretrained(model_name)
inputs = tokenizer(prompt, return_tensors="pt")


def said(model: object) -> str:
    output = model.generate(**inputs, max_new_tokens=60)[0]  # type: ignore[attr-defined]
    return tokenizer.decode(output[inputs["input_ids"].shape[1] :], skip_special_tokens=True)


native = AutoModelForCausalLM.from_pretrained(model_name)
seen["pytorch gives the model itself"] = type(native) is LlamaForCausalLM
seen["pytorch"] = said(native)
seen["beams"] = len(native.generate(**inputs, num_beams=3, max_new_tokens=4)[0]) - inputs["input_ids"].shape[1]
seen["again is the same controller"] = rm_abstract.init(device="pytorch", on_progress=None) is first

second = rm_abstract.init(device="openvino", use_plugin_system=True, on_progress=lambda p: told.append(p.stage))
seen["one after the other"] = [first.running, second.running, rm_abstract.get_controller() is second]
moved = AutoModelForCausalLM.from_pretrained(model_name)
seen["openvino"] = said(moved)
rm_abstract.get_resource_manager().switch_plugin("pytorch")
seen["after a switch"] = said(moved)
seen["switched"] = rm_abstract.get_resource_manager().active_name
rm_abstract.get_resource_manager().switch_plugin("openvino")

results: list[str] = []
models = [AutoModelForCausalLM.from_pretrained(model_name) for _ in range(2)]
threads = [threading.Thread(target=lambda m=model: results.append(said(m))) for model in models * 2]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
seen["threads"] = results

with second.backend.prepare_model(model_name) as prepared:
    seen["backend"] = second.backend.execute(prepared, prompt, max_tokens=60)

try:
    rm_abstract.init(device="nothing:7")
except WorkloadError as error:
    seen["a failing init changes nothing"] = [str(error)[:22], second.running, rm_abstract.get_controller() is second]

elsewhere = LlamaForCausalLM.from_pretrained(model_name)
seen["a model loaded elsewhere"] = [type(elsewhere) is LlamaForCausalLM, said(elsewhere)]
masked = None
try:
    AutoModelForMaskedLM.from_pretrained(model_name)
except ValueError as error:
    masked = "Unrecognized configuration class" in str(error)
seen["another task is left to transformers"] = masked

rm_abstract.shutdown()
originals = held()
seen["gone"] = [
    [name for name, value in originals.items() if "rm_abstract" in code(value)],
    any("rm_abstract" in type(finder).__module__ for finder in sys.meta_path),
]
rm_abstract.init(device="pytorch")
hooked = held()
seen["hooked"] = [name for name in originals if hooked[name] is originals[name]]
rm_abstract.shutdown()
rm_abstract.shutdown()
seen["restored"] = [name for name, value in held().items() if value is not originals[name]]
seen["transformers alone"] = said(AutoModelForCausalLM.from_pretrained(model_name))
seen["told"] = told
seen["closed"] = [second.running, [t.name for t in threading.enumerate() if t.name.startswith("engine")]]
print(json.dumps(seen))
