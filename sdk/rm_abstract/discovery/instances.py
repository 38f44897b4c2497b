"""Instances of plugins, of which there is one as long as somebody holds it."""

import logging
import threading
from collections import defaultdict
from typing import Any
from weakref import WeakValueDictionary

from rm_abstract.core.errors import PluginError, WorkloadError

_log = logging.getLogger("rm_abstract.plugin")

Key = tuple[str, str, type]


class InstanceCache:
    """One instance per plugin and class, made by one thread while the others wait; held only by who uses it.

    A class whose instances cannot be referred to weakly (``__slots__`` without ``__weakref__``) gives a new one each
    time.
    """

    def __init__(self) -> None:
        self._instances: WeakValueDictionary[Key, Any] = WeakValueDictionary()
        self._lock = threading.Lock()
        self._making: defaultdict[Key, threading.RLock] = defaultdict(threading.RLock)

    def get(self, plugin_type: str, name: str, made_of: type) -> Any:
        """The instance, or a new one made without arguments. Raises PluginError where that fails."""
        key = plugin_type, name, made_of
        with self._lock:
            found = self._instances.get(key)
            making = self._making[key]
        if found is not None:
            return found
        with making:
            with self._lock:
                found = self._instances.get(key)
            if found is not None:
                return found
            try:
                made = made_of()
            except WorkloadError:
                raise
            except Exception as error:
                raise PluginError(f"{plugin_type} {name} cannot be made: {type(error).__name__}: {error}") from error
            with self._lock:
                try:
                    self._instances[key] = made
                except TypeError:
                    _log.debug("%s %s is made anew each time: %s has no weak references", plugin_type, name, made_of)
            return made

    def __len__(self) -> int:
        return len(self._instances)

    def clear(self) -> None:
        """Forget all; who holds one keeps it."""
        with self._lock:
            self._instances.clear()
            self._making.clear()
