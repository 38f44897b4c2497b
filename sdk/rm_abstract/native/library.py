"""A shared library as an object: ``info``, ``probe``, ``compile``, ``open``, whatever the library does."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from rm_abstract.core.errors import BadInput, PluginError, WorkloadError
from rm_abstract.core.versions import PluginInfo, VersionInfo
from rm_abstract.native.host import LibraryProcess, OnEnd, OnTokens

if TYPE_CHECKING:
    from rm_abstract.native.shim import Shim

_VERSIONS: Final = ("min_host_version", "max_host_version")
_FORMS: Final[Mapping[str, type]] = {
    **dict.fromkeys(("name", "version", "description", "author", "vendor", "display_name", *_VERSIONS), str),
    **dict.fromkeys(("device_types", "formats"), list),
    "priority": int,
    "compiler": dict,
}
"""What members of an info are, where they are there."""
_OWN: Final = frozenset({"name", "version", "description", "author", *_VERSIONS})
"""Those that PluginInfo has fields for."""


@dataclass(frozen=True)
class Deadlines:
    """Seconds after which a library that does not answer is taken to hang, and its process is ended."""

    load: float = 60
    info: float = 30
    probe: float = 60
    compile: float = 4 * 3600
    open: float = 1800
    run: float = 600
    """Of a run: from its beginning or its last token to the next one, or to its end."""
    cancel: float = 60
    """From a run's cancellation to its end."""
    close: float = 60


class NativeLibrary:
    """A shared library that exports ``rm_plugin.h``, or a plain C one with a ``shim``. Safe to use from any thread.

    It is loaded, in a process of its own, when something is first asked of it. Where that process crashes, hangs or
    speaks nonsense, what was asked fails with a PluginError that says what happened, and the next question loads the
    library again. A failure that the library itself reports is the WorkloadError of its code.
    """

    def __init__(self, path: Path | str, *, shim: "Shim | None" = None, deadlines: Deadlines | None = None) -> None:
        self.path = Path(path).absolute()
        self.shim = shim
        self.deadlines = deadlines or Deadlines()
        self._lock = threading.Lock()
        self._process: LibraryProcess | None = None
        self._info: PluginInfo | None = None
        if not self.path.is_file():
            raise BadInput(f"there is no library at {self.path}")

    def info(self) -> PluginInfo:
        """What the library says of itself; members beyond those of PluginInfo are in ``extra``.

        It is asked once, and again whenever it is loaded anew: PluginError where that is not valid, or where it then
        says that it is another one.
        """
        if self._info is None:
            self._loaded()
        with self._lock:
            assert self._info is not None
            return self._info

    def probe(self, devices: Sequence[str] = ()) -> list[Mapping[str, Any]]:
        """The devices that it can use, each with ``id``, ``type`` and ``attributes``."""
        answer = self._ask("probe", {"devices": list(devices)}, self.deadlines.probe)
        found = answer.get("devices")
        if not isinstance(found, list) or not all(_is_device(device) for device in found):
            raise PluginError(f"{self.path.name}: rma_probe answered no list of devices with id and type: {answer}")
        return found

    def compile(self, model: Path, output: Path, *, key: str = "", **options: Any) -> Mapping[str, Any]:
        """Compile the model in directory ``model`` into the empty directory ``output``; the library's answer.

        ``options`` are further members of ``rma_compile``'s request, such as ``target`` and ``dtype``.
        """
        request = {"model": str(model), "output": str(output), "key": key, **options}
        return self._ask("compile", request, self.deadlines.compile)

    def open(self, artifact: Path | str, devices: Sequence[str] = (), **options: Any) -> "NativeModel":
        """Load an artifact. ``options`` are further members of ``rma_open``'s request."""
        process = self._loaded()
        request = {"artifact": str(artifact), "devices": list(devices), **options}
        answer = process.call("open", request, seconds=self.deadlines.open)
        facts = answer["facts"] if isinstance(answer, dict) else None
        if not isinstance(facts, dict):
            raise PluginError(f"{self.path.name}: rma_open answered no JSON object, but {facts!r}")
        return NativeModel(self, process, answer["session"], facts)

    def close(self) -> None:
        """End its process. Models that are open are lost. Whoever asks something again loads it again."""
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            process.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, function: str, request: Mapping[str, Any], seconds: float) -> Mapping[str, Any]:
        answer = self._loaded().call(function, request, seconds=seconds)
        if not isinstance(answer, dict):
            raise PluginError(f"{self.path.name}: rma_{function} answered no JSON object, but {answer!r}")
        return answer

    def _loaded(self) -> LibraryProcess:
        """The process in which the library is loaded, and has said who it is."""
        with self._lock:
            if self._process is not None and not self._process.ended:
                return self._process
            if self._process is not None:
                self._process.close()
            self._process = None
            process = LibraryProcess(self.path.name)
            try:
                shim = None if self.shim is None else self.shim.to_json()
                process.call("load", {"path": str(self.path), "shim": shim}, seconds=self.deadlines.load)
                info = _read_info(self.path.name, process.call("info", {}, seconds=self.deadlines.info))
                if self._info is not None and info != self._info:
                    raise PluginError(f"{self.path.name}: it says that it is {info}, and said {self._info} before")
            except BaseException:
                process.close()
                raise
            self._process, self._info = process, info
            return process


class NativeModel:
    """A model that a library has loaded. Safe to use from any thread. A context manager: closed after."""

    def __init__(self, library: NativeLibrary, process: LibraryProcess, session: int, facts: Mapping[str, Any]) -> None:
        self.library = library
        self.facts = facts
        """What ``rma_open`` answered."""
        self._process = process
        self._session = session
        self._idle = threading.Condition()
        self._running: set[NativeRun] = set()
        self._closed = False

    @property
    def lost(self) -> bool:
        """True once it can do no more, as its process is gone."""
        return self._closed or self._process.ended

    def watch(self, on_lost: Callable[[str], None]) -> None:
        """Have ``on_lost`` called with the reason once the model's process is gone, on another thread or at once."""
        self._process.watch(on_lost)

    def start(self, request: Mapping[str, Any], *, on_end: OnEnd, on_tokens: OnTokens | None = None) -> "NativeRun":
        """Begin a run and return at once; the callbacks are called on another thread, ``on_end`` once and last."""
        run = NativeRun(self)
        with self._idle:
            closed = self._closed
            if not closed:
                self._running.add(run)
        if closed:
            on_end(None, PluginError(f"{self.library.path.name}: the model was closed"))
            return run

        def end(answer: Any, error: WorkloadError | None) -> None:
            with self._idle:
                self._running.discard(run)
                self._idle.notify_all()
            if error is None and not isinstance(answer, dict):
                name = self.library.path.name
                answer, error = None, PluginError(f"{name}: rma_run answered no JSON object, but {answer!r}")
            on_end(answer, error)

        arguments = {"session": self._session, "request": dict(request)}
        seconds = self.library.deadlines.run
        run.number = self._process.begin("run", arguments, seconds=seconds, on_end=end, on_tokens=on_tokens)
        if run.cancelled:
            run.cancel()
        return run

    def run(self, request: Mapping[str, Any], on_tokens: OnTokens | None = None) -> Mapping[str, Any]:
        """Do one task and wait for its answer. Raises WorkloadError."""
        done = threading.Event()
        outcome: list[tuple[Any, WorkloadError | None]] = []

        def on_end(answer: Any, error: WorkloadError | None) -> None:
            outcome.append((answer, error))
            done.set()

        self._process.check_may_wait()
        self.start(request, on_end=on_end, on_tokens=on_tokens)
        done.wait()
        answer, error = outcome[0]
        if error is not None:
            raise error
        found: Mapping[str, Any] = answer
        return found

    def cancel(self, run: int) -> None:
        """See ``NativeRun.cancel``."""
        self._process.cancel(run, seconds=self.library.deadlines.cancel)

    def close(self) -> None:
        """Cancel what goes on, wait for it, and unload. Harmless where it is closed already or its process is gone."""
        with self._idle:
            if self._closed:
                return
            self._closed = True
            running = list(self._running)
        for run in running:
            run.cancel()
        with self._idle:
            self._idle.wait_for(lambda: not self._running)
        if not self._process.ended:
            self._process.call("close", {"session": self._session}, seconds=self.library.deadlines.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(eq=False)
class NativeRun:
    """A run that goes on."""

    model: NativeModel
    number: int = 0
    cancelled: bool = False

    def cancel(self) -> None:
        """End it soon. Harmless at any time and from any thread."""
        self.cancelled = True
        if self.number:
            self.model.cancel(self.number)


def _is_device(device: Any) -> bool:
    return (
        isinstance(device, dict)
        and all(isinstance(device.get(name), str) and device[name] for name in ("id", "type"))
        and isinstance(device.get("attributes", {}), dict)
    )


def _is_of(value: Any, kind: type) -> bool:
    """Whether a member has its form; lists are of texts."""
    if kind is list:
        return isinstance(value, list) and all(isinstance(word, str) for word in value)
    return isinstance(value, kind) and not isinstance(value, bool)


def _read_info(name: str, said: Any) -> PluginInfo:
    if not isinstance(said, dict):
        raise PluginError(f"{name}: rma_info answered no JSON object, but {said!r}")
    wrong = [key for key in ("name", "version") if not said.get(key)]
    wrong += [key for key, kind in _FORMS.items() if said.get(key) is not None and not _is_of(said[key], kind)]
    if wrong:
        raise PluginError(f"{name}: rma_info lacks {', '.join(wrong)}, or answers it in another form: {said}")

    try:
        least, most = (VersionInfo.parse(said[key]) if said.get(key) else None for key in _VERSIONS)
        return PluginInfo(
            said["name"],
            VersionInfo.parse(said["version"]),
            said.get("description") or "",
            said.get("author") or "",
            least,
            most,
            {key: value for key, value in said.items() if key not in _OWN and value is not None},
        )
    except BadInput as error:
        raise PluginError(f"{name}: what rma_info says is not valid: {error}") from None
