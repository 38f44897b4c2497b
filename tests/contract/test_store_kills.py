"""Whoever pushes or fetches is killed, at steps that matter and at any moment: what is there is whole, or not there."""

import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import rm_abstract.reporting
import rm_cli.runtime_commands
import rm_cli.stage_commands
from registry_server import running_registry
from rm_abstract.core.errors import ArtifactMismatch
from rm_abstract.core.resource import ARTIFACT_FILE, BuildArtifact
from rm_abstract.store import ArtifactStore, StageStore
from rm_abstract.store.destination import MARKER
from rm_cli.main import main
from s3_server import running_s3
from store_support import Tree, tree_of

SIZE = 3_000_000
EVENTS = frozenset(
    {
        "open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod",
        "socket.connect", "fcntl.flock", "shutil.rmtree", "told",
    }
)  # fmt: skip
"""Steps that matter, as Python tells of them; of opening files, only to write."""
IMPORTED = (rm_abstract.reporting, rm_cli.runtime_commands, rm_cli.stage_commands)
"""What the commands import when they are called, so that it need not be done in every process."""
UNTOLD: tuple[tuple[Any, str], ...] = (
    (socket.socket, "sendall"), (socket.socket, "recv"), (os, "write"), (os, "fsync"), (os, "fchmod"),
)  # fmt: skip
"""Those that it tells nothing of."""


@dataclass
class Place:
    """A store, and what reaches it."""

    base: str
    environment: dict[str, str]


@pytest.fixture(scope="module", params=["registry", "file", "s3"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    directory = tmp_path_factory.mktemp(request.param)
    if request.param == "registry":
        with running_registry(directory) as registry:
            yield Place(registry.host, {"RMA_PLAIN_HTTP_HOSTS": registry.host})
    elif request.param == "file":
        yield Place(f"file://{directory}/store", {})
    else:
        with running_s3(directory) as s3:
            s3.make_bucket("store")
            file = s3.credentials_file(directory / "aws")
            yield Place("s3://store", {"AWS_SHARED_CREDENTIALS_FILE": str(file), "RMA_PLAIN_HTTP_HOSTS": s3.host})


@pytest.fixture
def repository(place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.setenv("STEPS", str(tmp_path / "steps"))
    for name, value in place.environment.items():
        monkeypatch.setenv(name, value)
    return f"{place.base}/artifacts/t/{tmp_path.name.replace('_', '-').rstrip('-').lower()}"


@pytest.fixture
def built(tmp_path: Path) -> BuildArtifact:
    root = tmp_path / "built"
    (root / "nested/empty").mkdir(parents=True)
    (root / "model.bin").write_bytes(os.urandom(SIZE))
    (root / "nested/config.json").write_text("{}")
    (root / "link").symlink_to("nested/config.json")
    artifact = BuildArtifact(root, "k", "f")
    artifact.write()
    return artifact


def forked(command: Sequence[str], step: int = 0) -> int:
    """Start a command in a process of its own, which kills itself before a step if one is given; its id.

    The number of steps of one that came to its end is in the file ``$STEPS``.
    """
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.environ["RMA_TERMINATION_LOG"] = os.devnull
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        count = Counting(step)
        main(list(command), standalone_mode=False)
    except SystemExit as end:
        code = int(end.code or 0)
        if code == 0:
            Path(os.environ["STEPS"]).write_text(str(count.steps))
    finally:
        os._exit(code)


class Counting:
    """Counts the steps of this process, and kills it before one of them."""

    def __init__(self, last: int) -> None:
        self.steps = 0
        self._last = last
        for owner, name in UNTOLD:
            setattr(owner, name, self._telling(getattr(owner, name)))
        sys.addaudithook(self._watch)

    @staticmethod
    def _telling(whole: Callable[..., Any]) -> Callable[..., Any]:
        def telling(*arguments: Any, **options: Any) -> Any:
            sys.audit("told")
            return whole(*arguments, **options)

        return telling

    def _watch(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in EVENTS or (event == "open" and not _writes(arguments[2])):
            return
        self.steps += 1
        if self.steps == self._last:
            os.kill(os.getpid(), signal.SIGKILL)


def _writes(flags: Any) -> bool:
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR))


def ended(child: int) -> int:
    """How a process ends: its exit code, or minus the signal."""
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def killed_at(step: int, *command: str) -> int:
    """Run a command that is killed before a step; 0, or the number of steps that it took where it came to its end."""
    code = ended(forked(command, step))
    if code == -signal.SIGKILL:
        return 0
    assert code == 0
    return int(Path(os.environ["STEPS"]).read_text())


def steps(whole: int, most: int, seed: int) -> list[int]:
    """The first and the last steps, and some between, at most so many."""
    ends = [*range(1, 4), *range(whole - most // 2, whole + 1)]
    between = random.Random(seed).sample(range(4, max(5, whole)), k=min(most, max(1, whole - 4)))
    return sorted({step for step in (*ends, *between[: most // 2]) if step > 0})


def holds(repository: str, expected: Tree, tmp_path: Path) -> bool:
    """True if the tag is there; then all of the artifact is."""
    with ArtifactStore() as store:
        digest = store.resolve_manifest(f"{repository}:v1")
        if digest is None:
            return False
        store.pull(f"{repository}@{digest}", tmp_path / "held", key="k")
        assert tree_of(tmp_path / "held") == expected
    return True


def test_a_push_that_is_killed_at_a_step(repository: str, built: BuildArtifact, tmp_path: Path) -> None:
    options = [f"--dir={built.path}", "--key=k", "--format=f"]
    whole = killed_at(0, "push", *options, f"--reference={repository}/whole:v1")
    expected = tree_of(built.path)
    seen = set()
    for step in steps(whole, 12, seed=1):
        reference = f"{repository}/at-{step}"
        done = killed_at(step, "push", *options, f"--reference={reference}:v1")
        there = holds(reference, expected, tmp_path)
        assert there or not done
        seen.add(there)
        if step % 4 == 0:  # again, over what is left
            killed_at(0, "push", *options, f"--reference={reference}:v1")
            assert holds(reference, expected, tmp_path)
    assert False in seen


def looks_complete(directory: Path) -> bool:
    return (directory / ARTIFACT_FILE).exists()


def test_a_fetch_that_is_killed_at_a_step(repository: str, built: BuildArtifact, tmp_path: Path) -> None:
    with ArtifactStore() as store:
        reference = f"{repository}@{store.push(built, f'{repository}:v1').digest}"
    expected = tree_of(built.path)
    options = ["fetch", "artifact", f"--reference={reference}", "--key=k"]
    whole = killed_at(0, *options, f"--dest={tmp_path / 'whole'}")
    again = killed_at(0, *options, f"--dest={tmp_path / 'whole'}")
    incomplete = 0
    for begins, total in (("empty", whole), ("full", again)):
        for step in steps(total, 8, seed=2):
            destination = tmp_path / f"{begins}-{step}"
            if begins == "full":
                with ArtifactStore() as store:
                    store.pull(reference, destination, key="k")
            done = killed_at(step, *options, f"--dest={destination}")
            if looks_complete(destination):
                assert tree_of(destination) == expected
            else:
                assert not done
                incomplete += 1
            if step % 5 == 0:  # the container is started again
                killed_at(0, *options, f"--dest={destination}")
                assert tree_of(destination) == expected
    assert incomplete


def test_a_stage_that_is_killed_at_a_step(repository: str, built: BuildArtifact, tmp_path: Path) -> None:
    with StageStore() as store:
        store.push({"work": built.path, "cache": built.path / "nested"}, f"{repository}:stage-1", key="k", stage=1)

    def options(base: Path) -> list[str]:
        named = [f"--dir=work={base / 'work'}", f"--dir=cache={base / 'cache'}"]
        return ["stage", "fetch", f"--reference={repository}:stage-1", "--key=k", "--stage=1", *named]

    def before(base: Path) -> None:
        (base / "work").mkdir(parents=True)
        (base / "work/model.bin").write_text("earlier")
        (base / "work/other").write_text("theirs")

    before(tmp_path / "whole")
    whole = killed_at(0, *options(tmp_path / "whole"))
    wanted = {name: tree_of(tmp_path / "whole" / name) for name in ("work", "cache")}
    incomplete = 0
    for step in steps(whole, 12, seed=3):
        base = tmp_path / f"at-{step}"
        before(base)
        done = killed_at(step, *options(base))
        complete = not any((base / name / MARKER).exists() for name in wanted)
        now = {name: tree_of(base / name) if (base / name).exists() else {} for name in wanted}
        if complete and (base / "cache").exists():
            assert now == wanted
        else:
            assert not done
            incomplete += 1
        killed_at(0, *options(base))
        assert {name: tree_of(base / name) for name in wanted} == wanted
    assert incomplete


def lasting(*command: str) -> float:
    """Seconds that a command takes."""
    began = time.monotonic()
    assert ended(forked(command)) == 0
    return time.monotonic() - began


def killed_after(seconds: float, *command: str) -> bool:
    """Run a command that is killed from outside, so at any byte; True if it came to its end before."""
    child = forked(command)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return ended(child) == 0


def test_a_push_that_is_killed_at_any_moment(repository: str, built: BuildArtifact, tmp_path: Path) -> None:
    chance = random.Random(4)
    expected = tree_of(built.path)
    command = ("push", f"--dir={built.path}", "--key=k", "--format=f")
    lasts = lasting(*command, f"--reference={repository}/first:v1")
    for number in range(9):
        reference = f"{repository}/{number % 3}"
        done = killed_after(chance.uniform(0, 1.1) * lasts, *command, f"--reference={reference}:v1")
        assert holds(reference, expected, tmp_path) or not done


def test_a_fetch_that_is_killed_at_any_moment(repository: str, built: BuildArtifact, tmp_path: Path) -> None:
    chance = random.Random(5)
    with ArtifactStore() as store:
        reference = f"{repository}@{store.push(built, f'{repository}:v1').digest}"
    expected = tree_of(built.path)
    command = ("fetch", "artifact", f"--reference={reference}", "--key=k")
    lasts = lasting(*command, f"--dest={tmp_path / 'first'}")
    for number in range(9):
        destination = tmp_path / str(number % 3)
        done = killed_after(chance.uniform(0, 1.1) * lasts, *command, f"--dest={destination}")
        assert looks_complete(destination) or not done
        assert not looks_complete(destination) or tree_of(destination) == expected


def test_a_killed_fetch_that_cannot_be_done_again_leaves_nothing(
    repository: str, built: BuildArtifact, tmp_path: Path
) -> None:
    with ArtifactStore() as store:
        reference = f"{repository}@{store.push(built, f'{repository}:v1').digest}"
        options = ["fetch", "artifact", f"--reference={reference}", "--key=k", f"--dest={tmp_path / 'dest'}"]
        whole = killed_at(0, *options)
        killed_at(whole - 3, *options)
        with pytest.raises(ArtifactMismatch):
            store.pull(f"{repository}@sha256:{'0' * 64}", tmp_path / "dest", key="k")
        if looks_complete(tmp_path / "dest"):
            assert tree_of(tmp_path / "dest") == tree_of(built.path)
