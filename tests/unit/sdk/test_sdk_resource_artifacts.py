"""The cache of artifacts: once for all who ask, complete or absent, validated, collected; with processes that die."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rm_abstract.core.artifacts import ArtifactCache
from rm_abstract.core.errors import ArtifactMismatch, BadInput, ToolchainFailure, Transient
from rm_abstract.core.resource import ARTIFACT_FILE, BuildArtifact

WORKER = Path(__file__).with_name("artifact_worker.py")


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def builder(key: str = "k", content: str = "engine", calls: list[str] | None = None) -> Callable[[Path], None]:
    def build(path: Path) -> None:
        path.mkdir()
        (path / "engine").write_text(content)
        BuildArtifact(path, key, "f", metadata={"model_id": "m"}).write()
        if calls is not None:
            calls.append(key)

    return build


def files(root: Path, part: str) -> list[str]:
    return sorted(path.name for path in (root / part).iterdir())


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, str(WORKER), *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


# Once, and complete


def test_an_artifact_is_built_once_and_found_again(tmp_path: Path) -> None:
    cache, calls = ArtifactCache(tmp_path), list[str]()
    assert cache.get("k") is None
    with cache.get_or_build("k", builder(calls=calls)) as first:
        assert first.built
        assert (first.path / "engine").read_text() == "engine"
        assert (first.artifact.model_id, first.artifact.files.keys()) == ("m", {"engine"})
    with cache.get_or_build("k", builder(calls=calls)) as second:
        assert not second.built
        assert second.artifact == first.artifact
    with ArtifactCache(tmp_path).get("k") or pytest.fail("another cache of the same directory finds it"):
        assert calls == ["k"]
    assert [(entry.key, entry.version, entry.size_bytes) for entry in cache.entries()] == [("k", 1, 6)]


def test_an_artifact_of_one_file(tmp_path: Path) -> None:
    def build(path: Path) -> None:
        path.write_text("engine")
        BuildArtifact(path, "k", "f").write()

    with ArtifactCache(tmp_path).get_or_build("k", build, name="engine.bin") as hold:
        assert hold.path.name == "engine.bin"
        hold.artifact.validate()


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (builder(key="other"), ArtifactMismatch, "has the key other, but k was asked for"),
        (lambda path: path.mkdir(), ArtifactMismatch, "is no artifact"),
        (lambda path: None, ArtifactMismatch, "is no artifact"),
        (builder(content=""), ArtifactMismatch, "is empty"),
    ],
)
def test_what_is_no_artifact_is_not_kept(
    tmp_path: Path, build: Callable[[Path], object], error: type[Exception], message: str
) -> None:
    cache = ArtifactCache(tmp_path)
    with pytest.raises(error, match=message):
        cache.get_or_build("k", build)
    assert (cache.get("k"), cache.entries(), files(tmp_path, "building")) == (None, [], [])


def test_a_build_that_fails_leaves_nothing_and_can_be_tried_again(tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path)

    def fail(path: Path) -> None:
        path.mkdir()
        (path / "half").write_text("x")
        raise ToolchainFailure("the compiler says no")

    for _ in range(2):
        with pytest.raises(ToolchainFailure, match="says no"):
            cache.get_or_build("k", fail)
    assert (cache.get("k"), files(tmp_path, "building")) == (None, [])
    cache.get_or_build("k", builder()).close()


@pytest.fixture
def slow_compiler(tmp_path: Path) -> Path:
    tool = tmp_path / "bin/slowcc"
    tool.parent.mkdir()
    tool.write_text(
        f'#!/bin/sh\necho x >> "{tmp_path}/calls"\nsleep 2\n[ -e "{tmp_path}/broken" ] && exit 3\ncp "$2" "$4"\n'
    )
    tool.chmod(0o755)
    (tmp_path / "model").write_text("graph")
    return tool


def test_one_compilation_for_processes_at_once(tmp_path: Path, slow_compiler: Path) -> None:
    workers = [start("compile", tmp_path, slow_compiler, tmp_path / "model") for _ in range(4)]
    results = [json.loads(worker.communicate()[0]) for worker in workers]
    assert (tmp_path / "calls").read_text() == "x\n"
    assert sorted(result["built"] for result in results) == [False, False, False, True]
    assert len({result["digest"] for result in results}) == 1


def test_a_failure_is_everybodys_who_waited(tmp_path: Path, slow_compiler: Path) -> None:
    (tmp_path / "broken").touch()
    cache = ArtifactCache(tmp_path / "cache")
    errors: list[str] = []
    building = threading.Event()
    waiting = threading.Event()

    def fail(path: Path) -> None:
        building.set()
        waiting.wait()
        raise BadInput("the model is none")

    def ask(build: Callable[[Path], None]) -> None:
        try:
            cache.get_or_build("k", build).close()
        except BadInput as error:
            errors.append(str(error))

    def not_again(path: Path) -> None:
        raise AssertionError("was tried again")

    first = threading.Thread(target=ask, args=(fail,))
    first.start()
    building.wait()
    others = [threading.Thread(target=ask, args=(not_again,)) for _ in range(3)]
    for other in others:
        other.start()
    # Each of them has asked the clock before it waits for the lock, which /proc shows.
    inode = str((tmp_path / "cache/locks").joinpath(*files(tmp_path / "cache", "locks")).stat().st_ino)
    while sum("->" in line and f":{inode} " in line for line in Path("/proc/locks").read_text().splitlines()) < 3:
        time.sleep(0.01)
    waiting.set()
    for thread in [first, *others]:
        thread.join()
    assert errors == ["the model is none"] * 4


def test_whoever_does_not_want_to_wait(tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path)
    building, done = threading.Event(), threading.Event()

    def build(path: Path) -> None:
        building.set()
        done.wait()
        builder()(path)

    thread = threading.Thread(target=lambda: cache.get_or_build("k", build).close())
    thread.start()
    building.wait()
    with pytest.raises(Transient, match="locked by another process"):
        cache.get_or_build("k", builder(), timeout=0.1)
    done.set()
    thread.join()


def test_a_builder_that_is_killed_leaves_nothing_to_be_found(tmp_path: Path) -> None:
    worker = start("die", tmp_path)
    worker.communicate()
    assert worker.returncode == -9
    cache = ArtifactCache(tmp_path / "cache")
    assert (cache.get("k"), cache.entries()) == (None, [])
    assert files(tmp_path / "cache", "building") != [], "the test would prove nothing"
    cache.collect()
    assert files(tmp_path / "cache", "building") == []
    with cache.get_or_build("k", builder()) as hold:
        assert hold.built


def test_processes_that_get_build_and_collect_at_random(tmp_path: Path) -> None:
    workers = [start("churn", tmp_path) for _ in range(3)]
    assert [worker.communicate()[0] for worker in workers] == ["whole\n"] * 3
    cache = ArtifactCache(tmp_path / "cache", max_bytes=3000)
    assert cache.verify() == {}
    assert files(tmp_path / "cache", "corrupted") == []
    assert cache.collect().total_bytes <= 3000


# Validation

HARM: list[Callable[[Path], object]] = [
    lambda path: (path / "engine").write_text("enginE"),
    lambda path: (path / "engine").write_text("eng"),
    lambda path: (path / "engine").unlink(),
    lambda path: (path / "more").write_text("x"),
    lambda path: (path / ARTIFACT_FILE).unlink(),
    lambda path: (path / ARTIFACT_FILE).write_text("{}"),
    lambda path: (path.parent / "entry.json").write_text("nonsense"),
    lambda path: (path.parent / "entry.json").write_text("[]"),
    lambda path: (path.parent / "entry.json").unlink(),
    lambda path: (path.parent / "use.lock").unlink(),
]


@pytest.mark.parametrize("harm", HARM)
def test_what_was_damaged_is_moved_aside_and_built_anew(tmp_path: Path, harm: Callable[[Path], object]) -> None:
    cache = ArtifactCache(tmp_path)
    with cache.get_or_build("k", builder()) as hold:
        path = hold.path
    harm(path)
    with cache.get_or_build("k", builder()) as hold:
        assert hold.built
        assert hold.version == 2, "a number is never given twice"
        hold.artifact.validate()
    assert len(files(tmp_path, "corrupted")) == 1


def test_a_file_that_was_merely_touched_is_not_damaged(tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path)
    with cache.get_or_build("k", builder()) as hold:
        (hold.path / "engine").write_text("engine")
    for _ in range(2):
        with cache.get("k") or pytest.fail("it is whole"):
            pass


def test_verify_reads_everything(tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path)
    for key in ("a", "b"):
        cache.get_or_build(key, builder(key)).close()
    with cache.get("a") or pytest.fail("it is there") as hold:
        about = (hold.path / "engine").stat()
        (hold.path / "engine").write_text("enginE")
        os.utime(hold.path / "engine", ns=(about.st_atime_ns, about.st_mtime_ns))
    with cache.get("a") or pytest.fail("sizes and times are all that a quick look sees"):
        pass
    assert ArtifactCache(tmp_path, check="full").get("a") is None
    cache.get_or_build("a", builder("a")).close()
    assert cache.verify() == {}
    with cache.get("b") or pytest.fail("it is there") as hold:
        (hold.path / "engine").unlink()
    ((key, version),) = cache.verify()
    assert (key, version) == ("b", 1)
    assert [entry.key for entry in cache.entries()] == ["a"]


# Versions, references, collection


def test_versions(tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path, keep_versions=2)
    for content in ("one", "two", "three"):
        cache.rebuild("k", builder(content=content)).close()
    assert cache.versions("k") == [1, 2, 3]
    for version, content in ((None, "three"), (1, "one")):
        with cache.get("k", version) or pytest.fail("it is there") as hold:
            assert (hold.path / "engine").read_text() == content
    assert cache.collect().removed == (("k", 1),)
    with cache.get("k", 3) or pytest.fail("it is there") as hold:
        (hold.path / "engine").write_text("damaged")
    with cache.get("k") or pytest.fail("the version before it is whole") as hold:
        assert hold.version == 2
    assert cache.get("k", 9) is None


def test_collection_by_age_spares_what_is_used(tmp_path: Path, clock: Clock) -> None:
    cache = ArtifactCache(tmp_path, max_age=100, clock=clock)
    for key in ("old", "used", "held", "referenced"):
        cache.get_or_build(key, builder(key)).close()
    clock.now += 90
    (cache.get("used") or pytest.fail("it is there")).close()
    cache.reference("referenced", "deployment/a b")
    hold = cache.get("held")
    assert hold is not None
    clock.now += 90
    assert cache.last_used("used", 1) == clock.now - 90
    clock.now += 5
    done = cache.collect()
    assert done.removed == (("old", 1),)
    assert done.kept == {("referenced", 1): "referenced by deployment/a b"}
    clock.now += 100
    done = cache.collect()
    assert done.removed == (("used", 1),)
    assert done.kept == {("held", 1): "in use", ("referenced", 1): "referenced by deployment/a b"}
    assert cache.references("referenced", 1) == ["deployment/a b"]
    hold.close()
    cache.unreference("referenced", "deployment/a b")
    assert {key for key, _ in cache.collect().removed} == {"held", "referenced"}
    assert cache.entries() == []


def test_collection_by_size_removes_the_longest_unused_first(tmp_path: Path, clock: Clock) -> None:
    cache = ArtifactCache(tmp_path, max_bytes=25, clock=clock)
    for key in "abcd":
        clock.now += 1
        cache.get_or_build(key, builder(key, content="x" * 10)).close()
        if key == "b":
            clock.now += 1
            (cache.get("a") or pytest.fail("it is there")).close()
    assert [entry.key for entry in cache.entries()] == ["c", "d"], "b gave way to c, and a to d"
    cache.max_bytes = 10
    done = cache.collect()
    assert (done.freed_bytes, done.total_bytes, [entry.key for entry in cache.entries()]) == (10, 10, ["d"])


def test_another_process_holds_an_artifact_until_it_dies(tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path / "cache")
    with cache.get_or_build("k", builder()):
        worker = start("hold", tmp_path)
        assert worker.stdout is not None
        assert worker.stdout.readline() == "holding\n"
    cache.max_bytes = 0
    assert cache.collect().kept == {("k", 1): "in use"}
    worker.kill()
    worker.communicate()
    assert cache.collect().removed == (("k", 1),)


def test_damaged_entries_go_when_they_are_old(tmp_path: Path, clock: Clock) -> None:
    cache = ArtifactCache(tmp_path, max_age=50, clock=clock)
    with cache.get_or_build("k", builder()) as hold:
        (hold.path / "engine").unlink()
    assert cache.get("k") is None
    cache.collect()
    assert len(files(tmp_path, "corrupted")) == 1
    clock.now += 51
    cache.collect()
    assert files(tmp_path, "corrupted") == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda root: ArtifactCache(root).get(""), "needs a key"),
        (lambda root: ArtifactCache(root).reference("k", "me"), "has no version 1 of k; it has none"),
        (lambda root: ArtifactCache(root, keep_versions=0), "at least the newest"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, call: Callable[[Path], object], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        call(tmp_path)
