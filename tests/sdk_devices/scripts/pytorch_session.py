"""PyTorch's session, token by token. Prints what it saw as JSON."""

import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import rm_abstract
from rm_abstract.core.plugin import BackendConfig
from rm_abstract.core.session import FinishReason, GenerationRequest

model_name, prompt = sys.argv[1:]
controller = rm_abstract.init()
backend = controller.backend
streamed: list[int] = []
with backend.prepare_model(model_name) as prepared:
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(model_name)(prompt)["input_ids"]

    def generate(**options: object) -> list[int]:
        return backend.execute(prepared, GenerationRequest(ids, 60), **options)

    with ThreadPoolExecutor(3) as pool:
        at_once = [each.result() for each in [pool.submit(generate) for _ in range(3)]]
    hot = {"temperature": 8.0, "max_tokens": 12}
    seen = {
        "tokens": generate(),
        "streamed": generate(sink=lambda tokens, _finish: streamed.extend(tokens)) and streamed,
        "at once": at_once,
        "text": backend.execute(prepared, prompt, max_tokens=60),
        "cut": generate(max_tokens=5),
        "beyond the end": generate(ignore_eos=True),
        "seeds": [generate(seed=1, **hot) == generate(seed=number, **hot) for number in (1, 2)],
    }

plugin = controller.plugin
prepared_model = controller.prepare(plugin, Path(model_name), BackendConfig())
session = plugin.create_session(plugin.prepare_resource(prepared_model.artifact))
ended = threading.Event()
finishes: list[FinishReason] = []


def sink(_tokens: object, finish: FinishReason | None) -> None:
    if finish is not None:
        finishes.append(finish)
        ended.set()


generation = session.execute(GenerationRequest(ids, 900, ignore_eos=True), sink)
generation.cancel()
ended.wait()
seen["cancelled"] = finishes[0]
session.close()
rm_abstract.shutdown()
print(json.dumps(seen))
