"""The example in C behind ``rm_plugin.h``: it compiles a model, and says what a count of its text says."""

import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from native_support import EXAMPLE_C, build_c, greedy
from rm_abstract.core.errors import ArtifactMismatch, BadInput, DeviceMissing, WorkloadError
from rm_abstract.core.versions import VersionInfo
from rm_abstract.native import include_directory
from rm_abstract.native.library import NativeLibrary

CORPUS = """the quick brown fox jumps over the lazy dog
the lazy dog sleeps in the sun
grüße aus dem süden
the sun sets over the quiet sea
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NativeLibrary]:
    with NativeLibrary(build_c(EXAMPLE_C / "ngram.c", tmp_path_factory.mktemp("c") / "libngram.so")) as found:
        yield found


@pytest.fixture(scope="module")
def artifact(library: NativeLibrary, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, output = tmp_path_factory.mktemp("model"), tmp_path_factory.mktemp("output")
    (model / "corpus.txt").write_text(CORPUS)
    answer = library.compile(model, output, key="k", target="", options={})
    assert answer == {"format": "byte-ngram", "versions": {"byte-ngram": "1.2.0"}}
    return output


def generate(library: NativeLibrary, artifact: Path, prompt: str, **members: Any) -> tuple[list[int], str]:
    tokens: list[int] = []
    with library.open(artifact) as model:
        request = {"task": "generate", "prompt": list(prompt.encode()), "max_tokens": 60, **members}
        return tokens, model.run(request, tokens.extend)["finish"]


@pytest.mark.parametrize("dialect", [["cc", "-std=c99", "-x", "c"], ["cc", "-std=c11", "-x", "c"]])
def test_the_header_is_plain_c(dialect: list[str]) -> None:
    header = include_directory() / "rm_plugin.h"
    subprocess.run([*dialect, "-Wall", "-Wextra", "-pedantic", "-Werror", "-fsyntax-only", str(header)], check=True)


def test_what_it_says_of_itself(library: NativeLibrary) -> None:
    info = library.info()
    assert str(info) == "byte-ngram v1.2.0 by RM Abstract"
    assert info.min_host_version == VersionInfo(0, 1, 0)
    assert info.extra["device_types"] == ["cpu"]
    assert info.extra["compiler"]["format"] == "byte-ngram"
    assert library.probe() == library.probe(["cpu"])
    assert library.probe()[0]["id"] == "cpu"
    with pytest.raises(DeviceMissing, match="runs on the device cpu alone"):
        library.probe(["gpu0"])


@pytest.mark.parametrize("prompt", ["the l", "the quick", "grü", "sun", "zebra", "", "over the ", "x" * 50 + "the qu"])
def test_it_continues_as_its_text_does(library: NativeLibrary, artifact: Path, prompt: str) -> None:
    tokens, finish = generate(library, artifact, prompt)
    assert finish == ("stop" if tokens[-1] == 256 else "length")
    assert bytes(token for token in tokens if token < 256).decode() == greedy(CORPUS, prompt, 60)


def test_a_limit_ends_it(library: NativeLibrary, artifact: Path) -> None:
    tokens, finish = generate(library, artifact, "the quick", max_tokens=6)
    assert (bytes(tokens), finish) == (b" brown", "length")
    tokens, finish = generate(library, artifact, "quiet", ignore_eos=True)
    assert (tokens[:5], len(tokens), finish) == ([*b" sea", 256], 60, "length")


def test_drawing_is_repeatable(library: NativeLibrary, artifact: Path) -> None:
    def draw(seed: int) -> str:
        tokens, _ = generate(library, artifact, "the ", temperature=1.5, seed=seed, max_tokens=8)
        return bytes(token for token in tokens if token < 256).decode(errors="replace")

    texts = [draw(seed) for seed in range(20)]
    assert texts == [draw(seed) for seed in range(20)]
    assert {text.split()[0] for text in texts} <= {"quick", "lazy", "sun", "quiet"}
    assert len(set(texts)) > 2


def test_tokens_stream_until_somebody_cancels(library: NativeLibrary, artifact: Path) -> None:
    begun, ended = threading.Event(), threading.Event()
    answers: list[Any] = []
    pieces: list[int] = []

    def on_tokens(tokens: list[int]) -> None:
        pieces.append(len(tokens))
        begun.set()

    def on_end(answer: Any, error: WorkloadError | None) -> None:
        answers.append(answer or error)
        ended.set()

    with library.open(artifact) as model:
        request = {"task": "generate", "prompt": [116], "max_tokens": 10**9, "ignore_eos": True}
        run = model.start(request, on_end=on_end, on_tokens=on_tokens)
        assert begun.wait(60)
        assert not ended.is_set()
        assert model.run({"task": "generate", "prompt": [116], "max_tokens": 1}) == {"finish": "length"}
        run.cancel()
        assert ended.wait(60)
        run.cancel()
    assert answers == [{"finish": "cancelled"}]
    assert set(pieces) == {1}


def test_what_it_refuses(library: NativeLibrary, artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"libngram\.so: .*/corpus\.txt cannot be read: No such file"):
        library.compile(tmp_path, tmp_path)
    (tmp_path / "corpus.txt").touch()
    with pytest.raises(BadInput, match="is empty; a line of text is the least"):
        library.compile(tmp_path, tmp_path)
    with pytest.raises(ArtifactMismatch, match=r"has no ngram\.bin that can be read"):
        library.open(tmp_path)
    (tmp_path / "ngram.bin").write_bytes(b"something else")
    with pytest.raises(ArtifactMismatch, match="was not made by byte-ngram 1"):
        library.open(tmp_path)
    with library.open(artifact) as model:
        with pytest.raises(BadInput, match="the one task of byte-ngram is generate"):
            model.run({"task": "sing"})
        with pytest.raises(BadInput, match="a prompt, which is a list of tokens"):
            model.run({"task": "generate", "max_tokens": 3})
