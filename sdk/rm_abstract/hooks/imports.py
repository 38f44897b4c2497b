"""Doing something with a module when it has been imported: now if it was, else right after it is."""

import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

Action = Callable[[ModuleType], None]


class ImportWatch(MetaPathFinder):
    """Calls ``actions[name]`` with the module of that name, once, as soon as it has been imported.

    An action that raises makes the import fail: whoever asked for another device must not run without it unaware.
    """

    def __init__(self, actions: Mapping[str, Action]) -> None:
        self._actions = dict(actions)
        self._lock = threading.Lock()
        self._local = threading.local()

    def start(self) -> None:
        """Begin. Actions of modules that are there already are called before this returns."""
        with self._lock:
            sys.meta_path.insert(0, self)
        for name in list(self._actions):
            if name in sys.modules:
                # Where another thread is importing it, this waits until it is whole.
                self._act(name, import_module(name))

    def stop(self) -> None:
        """Watch no longer. Harmless where it does not."""
        with self._lock:
            self._actions.clear()
            if self in sys.meta_path:
                sys.meta_path.remove(self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec that the others find, with a loader that tells."""
        if fullname not in self._actions or getattr(self._local, "busy", False):
            return None
        self._local.busy = True
        try:
            for finder in sys.meta_path:
                if finder is self:
                    continue
                spec = finder.find_spec(fullname, path, target)
                if spec is not None:
                    if spec.loader is not None:
                        spec.loader = _Loader(spec.loader, lambda module: self._act(fullname, module))
                    return spec
        finally:
            self._local.busy = False
        return None

    def _act(self, name: str, module: ModuleType) -> None:
        with self._lock:
            action = self._actions.pop(name, None)
        if action is not None:
            action(module)


class _Loader(Loader):
    """Another loader, that tells when it is done."""

    def __init__(self, loader: Loader, done: Action) -> None:
        self._loader = loader
        self._done = done

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # Before it runs, so that what it does with its own loader finds the real one.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self._done(module)
