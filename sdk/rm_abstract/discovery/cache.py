"""What discovery found a while ago, in this process; and what files hold, for all machines, in Redis."""

import json
import logging
import threading
import time
from collections.abc import Hashable, Iterable, Mapping
from typing import Any, Final, Generic, TypeVar

from rm_abstract.core.errors import BadInput
from rm_abstract.discovery.source import Facts, check_facts
from rm_abstract.discovery.store import FORMAT

_log = logging.getLogger("rm_abstract.plugin")

Value = TypeVar("Value")

REDIS_DAYS: Final = 30
"""Days after which facts that nobody has written again leave Redis."""
_REDIS_SECONDS: Final = 5.0
_REDIS_PAUSE: Final = 60.0
_MAXIMUM: Final = 1 << 20


class TimedCache(Generic[Value]):
    """Values that hold for ``ttl`` seconds. With 0 none does. Safe to use from any thread."""

    def __init__(self, ttl: float) -> None:
        self.ttl = ttl
        self.hits = 0
        self.misses = 0
        self._values: dict[Hashable, tuple[float, Value]] = {}

    def get(self, key: Hashable) -> Value | None:
        """The value, while it holds."""
        found = self._values.get(key)
        return found[1] if found is not None and time.monotonic() < found[0] else None

    def put(self, key: Hashable, value: Value) -> None:
        """Remember a value from now on."""
        self._values[key] = time.monotonic() + self.ttl, value

    def clear(self) -> None:
        """Forget all values."""
        self._values.clear()


class RedisFacts:
    """What source files hold, by their content, in a Redis server that several machines use.

    What comes from there is checked like any input: a key is made of a file's digest, a value is JSON of a known form
    and names nothing but attributes of that very file. If the server is gone, or holds something else, a warning says
    so, and discovery goes on with the files at hand.
    """

    def __init__(self, url: str) -> None:
        try:
            import redis  # noqa: PLC0415 (an optional dependency)
        except ImportError:
            raise BadInput("redis_url is set, but the package redis is not installed: pip install redis") from None
        try:
            self._client: Any = redis.Redis.from_url(
                url, socket_timeout=_REDIS_SECONDS, socket_connect_timeout=_REDIS_SECONDS
            )
        except ValueError as error:
            raise BadInput(f"redis_url {url!r} is none: {error}; one looks like redis://host:6379/0") from None
        self._errors: tuple[type[Exception], ...] = (redis.RedisError, OSError)
        self._lock = threading.Lock()
        self._asleep_until = 0.0

    def get(self, keys: Iterable[str]) -> dict[str, Facts]:
        """Those of the facts that it knows."""
        wanted = list(keys)
        values = self._ask(lambda: self._client.mget([_name(key) for key in wanted])) if wanted else None
        found = {}
        for key, value in zip(wanted, values or (), strict=False):
            if value is not None:
                try:
                    if len(value) > _MAXIMUM:
                        raise ValueError(f"it has {len(value)} bytes")
                    found[key] = check_facts(json.loads(value))
                except (ValueError, RecursionError) as error:
                    _log.warning("Redis holds something else under %s, which is ignored: %s", _name(key), error)
        return found

    def put(self, facts: Mapping[str, Facts]) -> None:
        """Remember facts."""

        def write() -> None:
            pipeline = self._client.pipeline(transaction=False)
            for key, value in facts.items():
                pipeline.set(_name(key), json.dumps(value, separators=(",", ":")), ex=REDIS_DAYS * 86400)
            pipeline.execute()

        self._ask(write)

    def available(self) -> bool:
        """Whether the server answers now."""
        try:
            return bool(self._client.ping())
        except self._errors:
            return False

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _ask(self, question: Any) -> Any:
        with self._lock:
            if time.monotonic() < self._asleep_until:
                return None
        try:
            return question()
        except self._errors as error:
            with self._lock:
                self._asleep_until = time.monotonic() + _REDIS_PAUSE
            _log.warning(
                "the shared plugin cache is not used for %d s, as Redis fails: %s: %s",
                _REDIS_PAUSE, type(error).__name__, error,
            )  # fmt: skip
            return None


def _name(key: str) -> str:
    return f"rm-abstract:plugins:{FORMAT}:{key}"
