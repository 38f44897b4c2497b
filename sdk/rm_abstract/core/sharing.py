"""Things that are made once, used by several at a time, on any thread, and freed when the last one has let go."""

import logging
import threading
from collections.abc import Callable, Hashable
from functools import partial
from types import TracebackType
from typing import Any, Final, Generic, Self, TypeVar

from rm_abstract.core.errors import BadInput

_log = logging.getLogger(__name__)
T = TypeVar("T")


class Lease(Generic[T]):
    """The right to use a shared thing until ``release``; a context manager whose value is the thing."""

    def __init__(self, value: T, give_back: Callable[[], None]) -> None:
        self.value = value
        self._give_back = give_back
        self._lock = threading.Lock()
        self._held = True

    def release(self) -> None:
        """Let go. The last one to do so frees the thing. Harmless if done before."""
        with self._lock:
            held, self._held = self._held, False
        if held:
            self._give_back()

    def __enter__(self) -> T:
        return self.value

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class _Thing:
    """One shared thing: being made, there, or being freed."""

    def __init__(self) -> None:
        self.maker = threading.get_ident()
        self.users = 0
        self.value: Any = None
        self.error: BaseException | None = None
        self.free: Callable[[Any], None] | None = None
        self.made = threading.Event()
        self.gone = threading.Event()


class SharedResources:
    """Shared things by key. Safe to use from any thread; nothing is made or freed while a lock is held."""

    def __init__(self) -> None:
        self._lock: Final = threading.Lock()
        self._things: dict[Hashable, _Thing] = {}

    def acquire(self, key: Hashable, make: Callable[[], T], free: Callable[[T], None] | None = None) -> Lease[T]:
        """The thing of this key, from ``make`` where there is none; those who come meanwhile wait for it.

        What ``make`` raises is raised for all who waited; who comes later tries again. A key that is being freed is
        made anew only afterwards. ``free`` gets the thing when nobody uses it any more. Raises BadInput where
        ``make`` asks for the same key.
        """
        while True:
            with self._lock:
                thing = self._things.get(key)
                mine = thing is None
                if thing is None:
                    thing = self._things[key] = _Thing()
                elif thing.users == 0 and thing.made.is_set():
                    leaving = thing
                    thing = None
                if thing is not None:
                    thing.users += 1
            if thing is None:
                leaving.gone.wait()
                continue
            if mine:
                self._make(key, thing, make, free)
            elif thing.maker == threading.get_ident() and not thing.made.is_set():
                self._let_go(key, thing)
                raise BadInput(f"the shared resource {key!r} needs itself in order to be made")
            thing.made.wait()
            if thing.error is not None:
                raise thing.error
            return Lease(thing.value, partial(self._let_go, key, thing))

    def _make(self, key: Hashable, thing: _Thing, make: Callable[[], Any], free: Callable[[Any], None] | None) -> None:
        try:
            thing.value = make()
            thing.free = free
        except BaseException as error:
            thing.error = error
            with self._lock:
                if self._things.get(key) is thing:
                    del self._things[key]
        finally:
            thing.made.set()

    def _let_go(self, key: Hashable, thing: _Thing) -> None:
        with self._lock:
            if thing.gone.is_set() or thing.users == 0:
                return
            thing.users -= 1
            if thing.users or not thing.made.is_set():
                return
        self._free(key, thing)

    def _free(self, key: Hashable, thing: _Thing) -> None:
        try:
            if thing.free is not None and thing.error is None:
                thing.free(thing.value)
        except Exception:
            _log.exception("freeing the shared resource %r failed", key)
        finally:
            with self._lock:
                if self._things.get(key) is thing:
                    del self._things[key]
            thing.gone.set()

    def users(self, key: Hashable) -> int:
        """How many hold the thing of this key; 0 where there is none."""
        with self._lock:
            thing = self._things.get(key)
            return thing.users if thing else 0

    def clear(self) -> None:
        """Free everything that is made, whoever holds it; only for the end, when nobody uses it any more."""
        with self._lock:
            things = [(key, thing) for key, thing in self._things.items() if thing.made.is_set() and thing.users]
            for _, thing in things:
                thing.users = 0
        for key, thing in things:
            self._free(key, thing)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clear()


_shared: Final = SharedResources()


def shared_resources() -> SharedResources:
    """What the plugins of this process share, such as a tokenizer that several of them need.

    Keys are tuples that begin with a word for the kind of thing: ``("tokenizer", path)``.
    """
    return _shared
