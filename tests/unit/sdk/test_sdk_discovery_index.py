"""The index: what is remembered between processes, when it is believed, and what becomes of it when it is damaged."""

import json
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pytest
from discovery_support import opened_files, transform, write
from rm_abstract.discovery import index as index_module
from rm_abstract.discovery.index import Index
from rm_abstract.discovery.places import Root
from rm_abstract.discovery.source import Facts, read_plugins
from rm_abstract.discovery.store import LIMIT, Store


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    return write(tmp_path / "modules", {"a.py": transform("A"), "sub/b.py": transform("B"), "none.py": "x = 1\n"})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


@pytest.fixture
def believing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are believed to be what they were, however young they are."""
    monkeypatch.setattr(index_module, "RACE_NS", -(10**15))


def names(index: Index) -> list[str]:
    return [plugin[1] for reading in index.readings for plugin in reading.facts.get("plugins", ())]


def new(modules: Path, store: Store, shared: index_module.SharedFacts | None = None) -> Index:
    return Index(Root(str(modules), "pkg"), read_plugins, store, shared=shared)


@pytest.mark.usefixtures("believing")
def test_a_second_process_opens_no_source_file(modules: Path, store: Store) -> None:
    with opened_files(modules) as opened:
        first = new(modules, store)
        assert first.update()
    assert sorted(opened) == ["a.py", "none.py", "sub/b.py"]
    with opened_files(modules) as opened:
        second = new(modules, store)
        assert second.update()
        assert not second.update()
    assert opened == []
    assert names(first) == names(second) == ["A", "B"]
    assert [reading.file.module for reading in second.readings] == ["pkg.a", "pkg.sub.b"]
    assert (first.understood, second.understood) == (3, 0)


def touch(modules: Path) -> None:
    os.utime(modules / "a.py", (1, 1))


def edit(modules: Path) -> None:
    write(modules, {"a.py": transform("Other")})


def edit_unseen(modules: Path) -> None:
    """As a restore from an archive does: of the same size, with the same time."""
    before = (modules / "a.py").stat()
    write(modules, {"a.py": transform("Z")})
    os.utime(modules / "a.py", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (modules / "a.py").stat().st_size == before.st_size


def remove(modules: Path) -> None:
    (modules / "a.py").unlink()


def add(modules: Path) -> None:
    write(modules, {"sub/deep/c.py": transform("C")})


def rename(modules: Path) -> None:
    (modules / "a.py").rename(modules / "sub" / "a.py")


@pytest.mark.usefixtures("believing")
@pytest.mark.parametrize(
    ("change", "opened", "understood", "changed", "found"),
    [
        (touch, ["a.py"], 0, False, ["A", "B"]),
        (edit, ["a.py"], 1, True, ["Other", "B"]),
        (edit_unseen, ["a.py"], 1, True, ["Z", "B"]),
        (remove, [], 0, True, ["B"]),
        (add, ["sub/deep/c.py"], 1, True, ["A", "B", "C"]),
        (rename, ["sub/a.py"], 1, True, ["A", "B"]),
    ],
)
@pytest.mark.parametrize("same_process", [True, False])
def test_only_what_has_changed_is_read(
    modules: Path, store: Store, change: Callable[[Path], None], opened: list[str], understood: int, changed: bool,
    found: list[str], same_process: bool,
) -> None:  # fmt: skip
    index = new(modules, store)
    index.update()
    before = index.understood if same_process else 0
    change(modules)
    with opened_files(modules) as seen:
        index = index if same_process else new(modules, store)
        assert index.update() is (changed or not same_process)
    assert seen == opened
    assert index.understood - before == understood
    assert names(index) == found
    again = new(modules, store)
    again.update()
    assert (names(again), again.understood) == (found, 0)


def test_a_file_that_has_just_been_written_is_read_again(modules: Path, store: Store) -> None:
    """It may be written once more within the same tick of the file system's clock."""
    new(modules, store).update()
    with opened_files(modules) as opened:
        index = new(modules, store)
        index.update()
    assert sorted(opened) == ["a.py", "none.py", "sub/b.py"]
    assert index.understood == 0, "its content is what it was"


def saved(store: Store) -> Path:
    (path,) = Path(store.directory).iterdir()
    return path


DAMAGE: Mapping[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "cut short": lambda text: text[: len(text) // 2],
    "one bit": lambda text: text[:-20] + bytes([text[-20] ^ 1]) + text[-19:],
    "noise": lambda _: os.urandom(500),
    "of another version": lambda text: text.replace(b"rm-abstract 1 ", b"rm-abstract 0 ", 1),
    "JSON without a head": lambda text: text.partition(b"\n")[2],
}


@pytest.mark.usefixtures("believing")
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_index_is_made_again(modules: Path, store: Store, damage: str) -> None:
    new(modules, store).update()
    good = saved(store).read_bytes()
    saved(store).write_bytes(DAMAGE[damage](good))
    index = new(modules, store)
    index.update()
    assert (names(index), index.understood) == (["A", "B"], 3)
    assert saved(store).read_bytes() == good


@pytest.mark.usefixtures("believing")
@pytest.mark.parametrize(
    "value", [None, [], {"what": 1}, {"files": {}}, {"what": "", "files": []}, {"what": "x", "files": {"a": [1]}}]
)
def test_an_index_of_another_form_is_made_again(modules: Path, store: Store, value: object) -> None:
    first = new(modules, store)
    first.update()
    name = saved(store).stem
    if isinstance(value, dict) and value.get("what") == "x":
        value = {**value, "what": store.read(name)["what"]}
    assert store.write(name, value)
    index = new(modules, store)
    index.update()
    assert (names(index), index.understood) == (["A", "B"], 3)


def test_without_a_place_for_the_index_all_is_found_all_the_same(modules: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = Store(str(tmp_path / "file" / "below"))
    assert not store.writable()
    for _ in range(2):
        index = new(modules, store)
        index.update()
        assert (names(index), index.understood) == (["A", "B"], 3)


def test_what_cannot_be_understood_is_told_and_not_read_again(modules: Path, store: Store, believing: None) -> None:
    write(modules, {"bad.py": "import rm_abstract\n(\n"})
    for understood in (4, 0):
        index = new(modules, store)
        index.update()
        assert index.understood == understood
        assert names(index) == ["A", "B"]
        errors = {r.file.module: r.facts["error"] for r in index.readings if "error" in r.facts}
        assert errors.keys() == {"pkg.bad"}
        assert errors["pkg.bad"].startswith("SyntaxError: '(' was never closed")


def test_what_is_kept_has_a_bound(store: Store) -> None:
    for number in range(LIMIT + 2):
        assert store.write(f"value-{number}", number)
        os.utime(store.path(f"value-{number}"), (number, number))
    kept = [store.read(f"value-{number}") for number in range(LIMIT + 2)]
    assert kept == [None] * (LIMIT // 2) + list(range(LIMIT // 2, LIMIT + 2))


class Remembering:
    """A shared cache in memory."""

    def __init__(self) -> None:
        self.facts: dict[str, Facts] = {}

    def get(self, keys: Iterable[str]) -> dict[str, Facts]:
        return {key: self.facts[key] for key in keys if key in self.facts}

    def put(self, facts: Mapping[str, Facts]) -> None:
        self.facts |= json.loads(json.dumps(facts))


def test_what_another_machine_has_understood_is_not_understood_again(modules: Path, tmp_path: Path) -> None:
    shared = Remembering()
    first = new(modules, Store(str(tmp_path / "one")), shared)
    first.update()
    assert first.understood == 3
    elsewhere = tmp_path / "elsewhere"
    modules.rename(elsewhere)
    second = new(elsewhere, Store(str(tmp_path / "two")), shared)
    second.update()
    assert (names(second), second.understood) == (["A", "B"], 0)
    edit(elsewhere)
    second.update()
    assert (names(second), second.understood) == (["Other", "B"], 1)


def _update(
    modules: Path, directory: Path, barrier: threading.Barrier, results: "multiprocessing.Queue[object]"
) -> None:
    barrier.wait(60)
    for number in range(20):
        index = new(modules, Store(str(directory)))
        index.update()
        found = names(index)
        if number % 5 == 0:
            # Somebody throws away what is there while others read and write it.
            for path in directory.glob("index-*"):
                path.unlink(missing_ok=True)
        if found != ["A", "B"]:
            results.put(found)
            return
    results.put("good")


def test_processes_at_once_find_the_same(modules: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(4), context.Queue()
    processes = [
        context.Process(target=_update, args=(modules, tmp_path / "store", barrier, results)) for _ in range(4)
    ]
    for process in processes:
        process.start()
    assert [results.get(timeout=120) for _ in processes] == ["good"] * 4
    for process in processes:
        process.join(60)
    left = [path.name for path in (tmp_path / "store").iterdir() if path.name.startswith(".")]
    assert left == [], "no half files are left behind"
