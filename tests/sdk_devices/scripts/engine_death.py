"""An engine that is killed while it generates. Prints what it saw as JSON."""

import json
import os
import sys
import threading
from pathlib import Path

import rm_abstract
from transformers import AutoModelForCausalLM, AutoTokenizer

model_name, prompt, number = sys.argv[1:]
rm_abstract.init()
tokenizer = AutoTokenizer.from_pretrained(model_name)
model = AutoModelForCausalLM.from_pretrained(model_name)
inputs = tokenizer(prompt, return_tensors="pt")
seen: dict[str, str] = {}


class Kill:
    """A streamer that ends the engine at the third token."""

    count = 0

    def put(self, _value: object) -> None:
        self.count += 1
        if self.count == 3:
            for path in Path(f"/proc/self/task/{threading.main_thread().native_id}/children").read_text().split():
                if b"rm_abstract.backends.child" in Path(f"/proc/{path}/cmdline").read_bytes():
                    os.kill(int(path), int(number))

    def end(self) -> None:
        pass


try:
    model.generate(**inputs, max_new_tokens=900, eos_token_id=1, streamer=Kill())
except Exception as error:  # what it is, is what is asked
    seen["failed"] = f"{type(error).__name__}: {error}"
output = model.generate(**inputs, max_new_tokens=60)[0]
seen["again"] = tokenizer.decode(output[inputs["input_ids"].shape[1] :], skip_special_tokens=True)
rm_abstract.shutdown()
print(json.dumps(seen))
