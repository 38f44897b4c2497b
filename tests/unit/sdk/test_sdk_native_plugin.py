"""Libraries as runtime plugins: compiled, prepared, served and cancelled like any other, in C and in Rust."""

import json
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx2
import pytest
from native_support import BROKEN, EXAMPLE_C, EXAMPLE_RUST, build_c, build_rust, greedy
from rm_abstract.core.errors import ArtifactMismatch, BadInput, DeviceMissing, DriverMismatch, PluginError
from rm_abstract.core.plugin import BackendConfig, Plugin, PluginPriority, run_session
from rm_abstract.core.registry import PluginRegistry
from rm_abstract.core.resource import BuildArtifact, Resource, ResourceType
from rm_abstract.core.session import FinishReason, Generation, GenerationRequest, Session, generate
from rm_abstract.core.text import TextStream
from rm_abstract.native.library import Deadlines, NativeLibrary
from rm_abstract.native.plugin import NativePlugin, native_plugin
from rm_abstract.serve.app import Api
from rm_abstract.serve.engine import Engine

CORPUS = "the quick brown fox\njumps over the lazy dog\nthe lazy dog sleeps in the süden\n"
LINES = "Kubernetes schedules pods onto nodes\nAn NPU computes what a compiler prepared\n\nA compiler reads a model\n"


@pytest.fixture(scope="module")
def rust(tmp_path_factory: pytest.TempPathFactory) -> Iterator[type[NativePlugin]]:
    library = NativeLibrary(build_rust(EXAMPLE_RUST, tmp_path_factory.mktemp("rust"), "line_recall"))
    yield native_plugin(library)
    library.close()


@pytest.fixture(scope="module")
def c(tmp_path_factory: pytest.TempPathFactory) -> Iterator[type[NativePlugin]]:
    library = NativeLibrary(build_c(EXAMPLE_C / "ngram.c", tmp_path_factory.mktemp("c") / "libngram.so"))
    yield native_plugin(library)
    library.close()


def compiled(plugin: Plugin, directory: Path, config: BackendConfig | None = None) -> BuildArtifact:
    model = directory / "model"
    model.mkdir()
    (model / "corpus.txt").write_text(CORPUS)
    (model / "lines.txt").write_text(LINES)
    (profile,) = plugin.required_build_profiles(config or BackendConfig())
    return plugin.compile(model, directory / "artifact", profile, key="sha256:1")


@pytest.fixture
def spoken(rust: type[NativePlugin], tmp_path: Path) -> Iterator[Session]:
    plugin = rust()
    session = plugin.create_session(plugin.prepare_resource(compiled(plugin, tmp_path)))
    yield session
    session.close()


def slow(rust: type[NativePlugin], directory: Path, milliseconds: int) -> Session:
    plugin = rust()
    config = BackendConfig(options={"milliseconds_per_token": str(milliseconds)})
    return plugin.create_session(plugin.prepare_resource(compiled(plugin, directory), config))


class Heard:
    """What a sink gets."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.finishes: list[FinishReason] = []
        self.begun = threading.Event()
        self.ended = threading.Event()

    def __call__(self, tokens: Sequence[int], finish: FinishReason | None) -> None:
        assert not self.finishes, "something came after the end"
        self.tokens += tokens
        self.begun.set()
        if finish is not None:
            self.finishes.append(finish)
            self.ended.set()


def test_metadata_is_what_the_library_says(c: type[NativePlugin], rust: type[NativePlugin]) -> None:
    about = c.metadata()
    assert (about.name, about.version, about.vendor) == ("byte-ngram", "1.2.0", "RM Abstract")
    assert about.priority is PluginPriority.LOWEST  # it says 10; what there is are 0, 25, …
    assert about.min_host_version == "0.1.0"
    assert (c.__name__, rust.__name__) == ("NgramPlugin", "LineRecallPlugin")
    assert rust.metadata().formats == ("line-recall",)
    assert c().versions() == {"byte-ngram": "1.2.0"}
    capabilities = c().get_capabilities()
    assert (capabilities["compiles"], capabilities["sessions"]) == (True, True)


def test_the_registry_takes_it_like_any_plugin(c: type[NativePlugin]) -> None:
    registry = PluginRegistry(())
    registry.register(c)
    plugin = registry.get_plugin("Byte_NGram")
    assert isinstance(plugin, c)
    assert plugin.is_available()
    assert plugin.toolchain_available()
    assert registry.auto_select("cpu") is plugin
    assert [str(info) for info in registry.list_plugins()] == ["byte-ngram v1.2.0 by RM Abstract"]


def test_from_a_text_to_its_continuation(c: type[NativePlugin], tmp_path: Path) -> None:
    plugin = c()
    artifact = compiled(plugin, tmp_path)
    assert artifact == BuildArtifact.read(tmp_path / "artifact")
    assert (artifact.format, artifact.versions) == ("byte-ngram", {"byte-ngram": "1.2.0"})
    resource = plugin.prepare_resource(artifact)
    assert plugin.execute(resource, "the qui") == greedy(CORPUS, "the qui", 100)
    assert plugin.execute(resource, list(b"jum"), max_tokens=2) == list(b"ps")
    session = plugin.create_session(resource)
    try:
        assert (session.vocabulary_size, session.default_temperature) == (257, 0.0)
        chat = session.tokenizer.render_chat([{"role": "user", "content": "the laz"}])
        assert chat == "user: the laz\nassistant:"
    finally:
        session.close()


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("who READS a Compiler", "a compiler reads a model"),
        ("who schedules pods", "kubernetes schedules pods onto nodes"),
        ("which npu was prepared", "an npu computes what a compiler prepared"),
        ("nothing of this", ""),
    ],
)
def test_the_tokenizer_of_a_library(spoken: Session, question: str, answer: str) -> None:
    prompt = spoken.tokenizer.encode(question, add_special_tokens=True)
    assert len(prompt) == len(question.split())
    tokens, finish = generate(spoken, GenerationRequest(prompt, 100))
    assert finish is FinishReason.STOP
    assert spoken.tokenizer.decode(tokens) == answer
    text = TextStream(spoken.tokenizer)
    assert "".join(text.push([token]) for token in tokens) + text.finish() == answer
    assert run_session(spoken, question, max_tokens=2) == " ".join(answer.split()[:2])
    assert spoken.tokenizer.render_chat([{"content": "a"}, {"role": "user", "content": question}]) == question
    with pytest.raises(ValueError, match="a chat needs a message with a text in it"):
        spoken.tokenizer.render_chat([{"role": "user"}])


def test_a_sink_may_use_the_tokenizer(spoken: Session) -> None:
    words: list[str] = []
    ended = threading.Event()

    def sink(tokens: Sequence[int], finish: FinishReason | None) -> None:
        words.append(spoken.tokenizer.decode(tokens))
        if finish is not None:
            ended.set()

    spoken.execute(GenerationRequest(spoken.tokenizer.encode("schedules", add_special_tokens=False), 100), sink)
    assert ended.wait(60)
    assert words == ["kubernetes", "schedules", "pods", "onto", "nodes", "", ""]


def test_a_generation_is_cancelled_between_its_tokens(rust: type[NativePlugin], tmp_path: Path) -> None:
    session = slow(rust, tmp_path, 3_600_000)  # without being told, it would wait an hour
    heard = Heard()
    generation = session.execute(GenerationRequest([0], 100), heard)
    generation.cancel()
    assert heard.ended.wait(120)
    assert heard.finishes == [FinishReason.CANCELLED]
    generation.cancel()
    session.close()


def test_more_generations_than_the_library_takes_wait_for_their_turn(rust: type[NativePlugin], tmp_path: Path) -> None:
    session = slow(rust, tmp_path, 20)
    prompt = session.tokenizer.encode("pods", add_special_tokens=False)
    heard = [Heard() for _ in range(12)]
    generations = [session.execute(GenerationRequest(prompt, 100), sink) for sink in heard]
    generations[11].cancel()
    assert all(sink.ended.wait(120) for sink in heard)
    assert heard[11].finishes == [FinishReason.CANCELLED]
    assert [session.tokenizer.decode(sink.tokens) for sink in heard[:11]] == [
        "kubernetes schedules pods onto nodes"
    ] * 11
    session.close()


def test_closing_ends_what_goes_on_and_what_waits(rust: type[NativePlugin], tmp_path: Path) -> None:
    session = slow(rust, tmp_path, 3_600_000)
    heard = [Heard() for _ in range(8)]
    for sink in heard:
        session.execute(GenerationRequest([0], 100), sink)
    session.close()
    assert [sink.finishes for sink in heard] == [[FinishReason.CANCELLED]] * 8
    after = Heard()
    session.execute(GenerationRequest([0], 1), after)
    assert after.finishes == [FinishReason.ERROR]
    assert session.failure == ""
    session.close()


def test_an_artifact_must_fit(c: type[NativePlugin], tmp_path: Path) -> None:
    class Elsewhere(c):  # type: ignore[misc, valid-type]
        def probe(self, resources: Sequence[Resource] = ()) -> list[Resource]:
            return [Resource("npu0", ResourceType.NPU, {"product": "X1", "driver": "1.4"})]

    (tmp_path / "a").mkdir()
    with pytest.raises(ArtifactMismatch, match="the artifact's format is other; served are byte-ngram"):
        c().prepare_resource(BuildArtifact(tmp_path, "k", "other"))
    with pytest.raises(ArtifactMismatch, match="the artifact is for X2, but npu0 is a X1"):
        Elsewhere().prepare_resource(BuildArtifact(tmp_path, "k", "byte-ngram", ("X2",)))
    with pytest.raises(DriverMismatch, match=r"built for driver 2, but npu0 has 1\.4"):
        Elsewhere().prepare_resource(BuildArtifact(tmp_path, "k", "byte-ngram", ("X1",), ("2",)))
    resource = c().prepare_resource(BuildArtifact(tmp_path / "a", "k", "byte-ngram", ("X2",), ("2",)))
    with pytest.raises(ArtifactMismatch, match=r"has no ngram\.bin"):
        c().create_session(resource)
    with pytest.raises(DeviceMissing):
        c().probe([Resource("gpu0", ResourceType.GPU)])


def test_a_compile_is_complete_or_absent(c: type[NativePlugin], tmp_path: Path) -> None:
    (profile,) = c().required_build_profiles(BackendConfig())
    (tmp_path / "model").mkdir()
    with pytest.raises(BadInput, match=r"corpus\.txt cannot be read"):
        c().compile(tmp_path / "model", tmp_path / "artifact", profile, key="k")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    with pytest.raises(BadInput, match="is not empty"):
        c().compile(tmp_path, tmp_path, profile, key="k")


def broken(directory: Path, facts: str, deadlines: Deadlines | None = None) -> type[NativePlugin]:
    text = facts.replace('"', '\\"')
    path = build_c(BROKEN, directory / "libbroken.so", defines=(f'FACTS="{text}"',), libraries=("pthread",))
    return native_plugin(NativeLibrary(path, deadlines=deadlines))


def users_of(library: Path) -> set[int]:
    """The processes that have a library loaded."""
    found = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            if str(library) in maps.read_text():
                found.add(int(maps.parent.name))
        except OSError:
            continue
    return found


FACTS = '{"max_sequence_length":100,"vocabulary_size":%d,"max_concurrent_runs":1}'


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ("{}", "cannot generate text: rma_open answers max_sequence_length None"),
        ('{"max_sequence_length":4,"vocabulary_size":true}', "rma_open answers vocabulary_size True"),
        ('{"max_sequence_length":4,"vocabulary_size":9,"max_concurrent_runs":0}', "max_concurrent_runs 0"),
        ('{"max_sequence_length":4,"vocabulary_size":9,"tokenizer":"abc"}', "the tokenizer 'abc'; there are bytes"),
    ],
)
def test_a_library_that_cannot_serve_text(tmp_path: Path, facts: str, said: str) -> None:
    plugin = broken(tmp_path, facts)
    with pytest.raises(PluginError, match=said):
        plugin().create_session(plugin().prepare_resource(BuildArtifact(tmp_path, "k", "f")))
    plugin.library.close()


def test_tokens_that_do_not_exist_end_a_generation(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plugin = broken(tmp_path, FACTS % 2)  # it makes the tokens 1, 2, 3
    session = plugin().create_session(plugin().prepare_resource(BuildArtifact(tmp_path, "k", "f")))
    assert generate(session, GenerationRequest([1], 9)) == ([], FinishReason.ERROR)
    assert "it made the token 2, and has 2 of them" in caplog.text
    assert session.failure == ""
    session.close()
    plugin.library.close()


def test_more_tokens_than_were_asked_for_end_a_generation(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plugin = broken(tmp_path, FACTS % 9)
    session = plugin().create_session(plugin().prepare_resource(BuildArtifact(tmp_path, "k", "f")))
    assert generate(session, GenerationRequest([1], 2)) == ([], FinishReason.ERROR)
    assert "more than the 2 tokens that were asked for" in caplog.text
    assert generate(session, GenerationRequest([1], 3)) == ([1, 2, 3], FinishReason.STOP)
    session.close()
    plugin.library.close()


@pytest.mark.parametrize("end", ["the library's fault", "from outside"])
def test_a_crash_fails_the_session_alone(tmp_path: Path, end: str) -> None:
    plugin = broken(tmp_path, FACTS % 9)
    resource = plugin().prepare_resource(BuildArtifact(tmp_path, "k", "f"))
    before = users_of(plugin.library.path)
    session = plugin().create_session(resource)
    (process,) = users_of(plugin.library.path) - before
    other = plugin().create_session(resource)
    failed = threading.Event()
    session.on_failure = failed.set
    if end == "from outside":
        os.kill(process, signal.SIGKILL)
        assert failed.wait(60)
        assert "SIGKILL" in session.failure
    else:
        waiting: list[tuple[Heard, Generation]] = []
        for _ in range(50):
            heard = Heard()
            waiting.append((heard, session.execute(GenerationRequest([1], 9, seed=666), heard)))
        assert all(heard.ended.wait(60) for heard, _ in waiting)
        assert {heard.finishes[0] for heard, _ in waiting} == {FinishReason.ERROR}
        assert failed.wait(60)
        assert "was ended by SIGABRT" in session.failure
    assert generate(session, GenerationRequest([1], 3)) == ([], FinishReason.ERROR)
    assert generate(other, GenerationRequest([1], 3)) == ([1, 2, 3], FinishReason.STOP)
    again = plugin().create_session(resource)
    assert generate(again, GenerationRequest([1], 3)) == ([1, 2, 3], FinishReason.STOP)
    for one in (session, other, again):
        one.close()
    plugin.library.close()


def test_a_library_that_fails_takes_no_other_plugin_down(c: type[NativePlugin], tmp_path: Path) -> None:
    path = build_c(BROKEN, tmp_path / "libbroken.so", defines=('PROBE="[what"',), libraries=("pthread",))
    liar = native_plugin(NativeLibrary(path))
    registry = PluginRegistry(())
    registry.register(liar)
    registry.register(c)
    states = {state.entry.name: state for state in registry.survey()}
    assert states["byte-ngram"].available
    assert not states["broken"].available
    assert "rma_probe answered what is not valid JSON" in states["broken"].error
    assert isinstance(registry.auto_select(), c)
    liar.library.close()


async def test_a_library_is_served_over_http(rust: type[NativePlugin], tmp_path: Path) -> None:
    plugin = rust()
    session = plugin.create_session(plugin.prepare_resource(compiled(plugin, tmp_path)))
    application = Api(Engine(session, max_batch=2, max_queue=2), "m").application()
    body = {"model": "m", "messages": [{"role": "user", "content": "who schedules pods"}], "max_tokens": 100}
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(application), base_url="http://m") as client:
        (choice,) = (await client.post("/v1/chat/completions", json=body)).json()["choices"]
        streamed = (await client.post("/v1/chat/completions", json={**body, "stream": True})).text
    assert choice["message"]["content"] == "kubernetes schedules pods onto nodes"
    assert choice["finish_reason"] == "stop"
    pieces = [json.loads(line.removeprefix("data: ")) for line in streamed.splitlines() if line.startswith("data: {")]
    deltas = [piece["choices"][0]["delta"].get("content", "") for piece in pieces]
    assert "".join(deltas) == choice["message"]["content"]
    assert len([delta for delta in deltas if delta]) == 5
    session.close()
