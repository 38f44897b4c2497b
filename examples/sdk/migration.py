"""From code for one GPU to an application that runs on a GPU, an NPU and PIM without a change.

    python examples/sdk/migration.py                       five demonstrations, on any machine
    python examples/sdk/migration.py MODEL gpu npu cpu     the application on the plugins for these devices

The model of the demonstrations is the smallest that is one: which letter follows which, in the lines of a text. A
device that this machine lacks, or whose engine takes no such model, has a stand-in, and what is printed says so.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rm_abstract.core.artifacts import ArtifactCache
from rm_abstract.core.binary_adapter import BinaryRuntimeAdapter, DummyRuntimeAdapter, LibraryCompilerAdapter
from rm_abstract.core.device_runtime import BinaryDeviceRuntime, DeviceRuntime, PluginRuntime
from rm_abstract.core.errors import BadInput
from rm_abstract.core.registry import get_registry
from rm_abstract.core.resource import BuildProfile, ResourceType
from rm_abstract.native import include_directory

VENDOR = Path(__file__).parents[1] / "native_plugin_c" / "ngram.c"
CORPUS = "the cat sat on the mat\nthe dog sat on the log\n"
ORDER = 6
END = 256


# 1. The code before: one device, and nothing else will do.


class LettersModel:
    """The model in Python, as the original code has it: it stands in for PyTorch on a GPU."""

    def __init__(self, corpus: str) -> None:
        self.follows: dict[bytes, Counter[int]] = {}
        for line in corpus.encode().splitlines():
            for at in range(len(line) + 1):
                following = line[at] if at < len(line) else END
                for length in range(min(ORDER, at) + 1):
                    self.follows.setdefault(line[at - length : at], Counter())[following] += 1

    def generate(self, prompt: str, max_tokens: int) -> str:
        """What most often follows the longest context that is known; of equals, the smaller letter."""
        text = bytearray(prompt.encode())
        start = len(text)
        while len(text) - start < max_tokens:
            known = bytes(text[-ORDER:])
            context = next(known[at:] for at in range(len(known) + 1) if known[at:] in self.follows)
            counts = self.follows[context]
            following = max(counts, key=lambda letter: (counts[letter], -letter))
            if following == END:
                break
            text.append(following)
        return text[start:].decode(errors="replace")


def original(prompt: str, max_tokens: int) -> str:
    """What the application was: it makes its model itself, for its device."""
    return LettersModel(CORPUS).generate(prompt, max_tokens)


# 2. The application after: it is given a runtime. Nothing below this class makes it change.


class LLMApplication:
    """Processes requests on whatever it is given."""

    def __init__(self, runtime: DeviceRuntime) -> None:
        self.runtime = runtime

    def process_request(self, prompt: str, max_tokens: int) -> str:
        """The prompt and what follows it."""
        return prompt + self.runtime.generate(prompt, max_tokens)


class GpuStandIn(DeviceRuntime):
    """The original code behind the interface."""

    def __init__(self) -> None:
        self.device = f"GPU ({lack('gpu')}: Python on the CPU stands in)"
        self._model: LettersModel | None = None

    def load_model(self, model_path: str | os.PathLike[str]) -> None:
        """See the base class."""
        self._model = LettersModel((Path(model_path) / "corpus.txt").read_text())

    def generate(self, prompt: str, max_tokens: int) -> str:
        """See the base class."""
        if self._model is None:
            raise BadInput("no model is loaded; call load_model() first")
        return self._model.generate(prompt, max_tokens)

    def cleanup(self) -> None:
        """See the base class."""
        self._model = None


def on_plugins(model: str, devices: Sequence[str], cache_dir: Path) -> None:
    """The same application on the plugins for devices that are here: for a real model, or an artifact."""
    for device in devices:
        with PluginRuntime(device, cache_dir=cache_dir) as runtime:
            runtime.load_model(model)
            print(f"{device}, {runtime.device}: {LLMApplication(runtime).process_request('The capital of', 16)}")


def lack(kind: str) -> str:
    """Why a device has a stand-in."""
    try:
        plugin = get_registry().auto_select(kind)
    except BadInput:
        return "none here"
    return f"{plugin.metadata().display_name} is for other models"


def npu_runtime(work: Path) -> DeviceRuntime:
    """The NPU: a vendor's library for compiling and running, without source, in a process of its own."""
    compiler = shutil.which("cc")
    if compiler is None:
        return dummy(f"NPU ({lack('npu')}, nor a C compiler: a dummy says the prompt again)")
    library = work / "libnpu_runtime.so"
    subprocess.run(
        [compiler, "-O1", "-shared", "-fPIC", f"-I{include_directory()}", "-o", str(library), str(VENDOR), "-lm"],
        check=True,
    )
    profile = BuildProfile(ResourceType.NPU, "npu-ngram", interface="SharedLibrary", output_format="byte-ngram")
    return BinaryDeviceRuntime(
        lambda engine: BinaryRuntimeAdapter(engine, device_id=0, runtime_so="libnpu_runtime.so", search_paths=[work]),
        compiler=LibraryCompilerAdapter(profile, library),
        cache=ArtifactCache(work / "cache"),
        device=f"NPU ({lack('npu')}: a library in C on the CPU stands in)",
    )


def dummy(device: str) -> DeviceRuntime:
    """A device that only says its prompt again."""
    return BinaryDeviceRuntime(DummyRuntimeAdapter, device=device)


def pim_runtime() -> DeviceRuntime:
    """PIM: no stack for it is to be had here."""
    return dummy(f"PIM ({lack('pim')}: a dummy says the prompt again)")


def demonstrate() -> int:
    """The five demonstrations; 0 where all of them hold."""
    prompt, most = "the d", 30
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        model = work / "letters"
        model.mkdir()
        (model / "corpus.txt").write_text(CORPUS)

        print("1. The original code, for one device")
        expected = prompt + original(prompt, most)
        print(f"   {expected}")

        answers = {}
        runtimes = {"GPU": GpuStandIn(), "NPU": npu_runtime(work), "PIM": pim_runtime()}
        for number, (name, runtime) in enumerate(runtimes.items(), 2):
            print(f"{number}. The application on: {runtime.device}")
            with runtime:
                runtime.load_model(model)
                answers[name] = LLMApplication(runtime).process_request(prompt, most)
            print(f"   {answers[name]}")

        print("5. One application, from device to device while it lives")
        runtimes["GPU"].load_model(model)
        application = LLMApplication(runtimes["GPU"])
        print(f"   GPU: {application.process_request('the c', 4)}")
        for name in ("NPU", "PIM"):
            runtimes[name].load_model(model)  # the new one is ready before the old one goes
            application.runtime.cleanup()
            application.runtime = runtimes[name]
            print(f"   {name}: {application.process_request('the c', 4)}")
        application.runtime.cleanup()

    same = answers["GPU"] == expected and ("dummy" in runtimes["NPU"].device or answers["NPU"] == expected)
    print("GPU and NPU say what the original code said" if same else "The answers differ")
    return 0 if same else 1


def main(arguments: Sequence[str]) -> int:
    """The command."""
    if not arguments:
        return demonstrate()
    on_plugins(arguments[0], arguments[1:] or ["cpu"], Path.home() / ".cache" / "rm-abstract" / "compiled")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
