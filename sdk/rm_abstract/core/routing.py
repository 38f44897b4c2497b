"""Requests to resources: by what a request is like, by policy, to the least busy, past those that fail."""

import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

from rm_abstract.core.errors import BadInput, PluginError, Transient
from rm_abstract.core.policies import LatencyPolicy, Policy
from rm_abstract.core.resource import Capability, Resource
from rm_abstract.core.resource_pool import Lease, Query, ResourcePool
from rm_abstract.core.routing_health import Circuit, Record, ResourceStatistics

__all__ = ["Circuit", "Request", "ResourceStatistics", "Router", "Rule"]

T = TypeVar("T")
_LOOK_AGAIN: Final = 1.0
"""Seconds."""


@dataclass(frozen=True)
class Request:
    """What is known of a request before it runs."""

    input_tokens: int = 0
    output_tokens: int = 0
    """The most that it may generate."""
    batch_size: int = 1
    dtype: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Whatever else rules go by, such as ``tenant`` or ``priority``."""
    query: Query = field(default_factory=Query)
    """Resources that will do, beyond those that are capable of it."""

    def needs(self) -> Query:
        """The query, with what the request needs of a resource's capability."""
        own = self.query.capability
        length = self.input_tokens + self.output_tokens
        needed = Capability(
            max(self.batch_size, own.max_batch_size or 1),
            max(length, own.max_seq_len or 0) or None,
            (self.dtype,) if self.dtype else own.dtype,
            optimized_for=own.optimized_for,
        )
        return replace(self.query, capability=needed)


@dataclass(frozen=True)
class Rule:
    """For requests of a kind: another policy, and only some of the resources."""

    name: str
    when: Callable[[Request], bool]
    policy: Policy | None = None
    """None: the router's."""
    query: Query = field(default_factory=Query)


@dataclass
class _Attempt:
    """A request on one resource."""

    lease: Lease
    began: float
    error: Exception | None = None
    succeeded: bool = False

    @property
    def resource(self) -> Resource:
        return self.lease.resource


class Router:
    """Runs requests on the resources of a pool. Safe to use from any thread.

    The first of ``rules`` that holds for a request decides; then the policy's order, and where it sees no difference,
    who is less busy. A request that fails is run on another resource, on ``attempts`` of them at most; one that the
    user got wrong (BadInput) is not. A resource that failed ``failures`` times in a row gets no request for
    ``cooldown`` seconds, and then one to try. ``clock`` gives seconds that only grow.
    """

    def __init__(
        self,
        pool: ResourcePool,
        policy: Policy | None = None,
        rules: Sequence[Rule] = (),
        *,
        attempts: int = 3,
        failures: int = 3,
        cooldown: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if attempts < 1 or failures < 1:
            raise BadInput(f"attempts is {attempts} and failures {failures}; both are at least 1")
        self.pool = pool
        self.policy = policy or LatencyPolicy()
        self.rules = tuple(rules)
        self._attempts, self._failures, self._cooldown = attempts, failures, cooldown
        self._clock = clock
        # Taken while the pool is locked; so the pool is never asked while this is held.
        self._lock = threading.Lock()
        self._records: dict[str, Record] = {}
        self._waiting = 0

    def candidates(self, request: Request) -> list[Resource]:
        """The resources that would be tried now, in this order. Raises BadInput where none is capable of it."""
        return self._order(self._rule(request)[0], self._able(request), ())

    def run(self, request: Request, call: Callable[[Resource], T], *, timeout: float | None = None) -> T:
        """The result of ``call`` on a resource that is leased for it.

        Raises BadInput where no resource is capable of the request, Transient where none became free within ``timeout``
        seconds or all of them have failed of late; what ``call`` raised, where it was tried once; PluginError with all
        failures, where it was tried on several.
        """
        failed: dict[str, Exception] = {}
        while True:
            with self._on_one(request, failed, timeout) as attempt:
                try:
                    result = call(attempt.resource)
                except BadInput:
                    raise
                except Exception as error:
                    attempt.error = failed[attempt.resource.id] = error
                else:
                    attempt.succeeded = True
                    return result
            self._check_goes_on(request, failed)

    def stream(
        self, request: Request, call: Callable[[Resource], Iterator[T]], *, timeout: float | None = None
    ) -> Iterator[T]:
        """As ``run``, for what gives its result piece by piece. The resource is leased until the last one.

        After the first piece nobody else can go on: then the failure is raised as it is.
        """
        failed: dict[str, Exception] = {}
        while True:
            with self._on_one(request, failed, timeout) as attempt:
                began = False
                try:
                    for piece in call(attempt.resource):
                        began = True
                        yield piece
                except BadInput:
                    raise
                except Exception as error:
                    attempt.error = failed[attempt.resource.id] = error
                    if began:
                        raise
                else:
                    attempt.succeeded = True
                    return
            self._check_goes_on(request, failed)

    def race(
        self, request: Request, call: Callable[[Resource], T], copies: int = 2, *, timeout: float | None = None
    ) -> T:
        """The first result of several resources that run the same request at once. The others run on to their end.

        ``copies`` at most: as many as are free, once one is. Raises as ``run`` does.
        """
        attempts: dict[str, _Attempt] = {}
        while len(attempts) < copies:
            try:
                attempt = self._begin(request, attempts, 0 if attempts else timeout)
            except (Transient, BadInput):
                if not attempts:
                    raise
                break
            attempts[attempt.resource.id] = attempt
        changed = threading.Condition()
        results: list[T] = []
        failed: dict[str, Exception] = {}

        def work(attempt: _Attempt) -> None:
            try:
                result = call(attempt.resource)
            except Exception as error:
                attempt.error = None if isinstance(error, BadInput) else error
                self._end(attempt)
                with changed:
                    failed[attempt.resource.id] = error
                    changed.notify()
                return
            attempt.succeeded = True
            self._end(attempt)
            with changed:
                results.append(result)
                changed.notify()

        for name, attempt in attempts.items():
            threading.Thread(target=work, args=(attempt,), name=f"race-{name}", daemon=True).start()
        with changed:
            changed.wait_for(lambda: results or len(failed) == len(attempts))
        if results:
            return results[0]
        raise _failure(failed)

    def statistics(self) -> dict[str, ResourceStatistics]:
        """What was seen of each resource that is in the pool, or has had a request."""
        names = [resource.id for resource in self.pool]
        now = self._clock()
        with self._lock:
            records = {name: Record() for name in names} | self._records
            return {name: record.statistics(now) for name, record in records.items()}

    # Choosing

    def _rule(self, request: Request) -> tuple[Policy, Query]:
        for rule in self.rules:
            if rule.when(request):
                return rule.policy or self.policy, rule.query
        return self.policy, Query()

    def _able(self, request: Request) -> list[Resource]:
        needed, allowed = request.needs(), self._rule(request)[1]
        ids = {resource.id for resource in self.pool.find(allowed)}
        found = [resource for resource in self.pool.find(needed) if resource.id in ids]
        if not found:
            known = ", ".join(resource.id for resource in self.pool) or "none"
            raise BadInput(f"no resource is capable of {request}; the pool has {known}")
        return found

    def _order(self, policy: Policy, resources: Sequence[Resource], without: Collection[str]) -> list[Resource]:
        now = self._clock()
        usable, busy = [], {}
        with self._lock:
            for resource in resources:
                record = self._records.setdefault(resource.id, Record())
                circuit = record.circuit(now)
                tried = circuit is Circuit.HALF_OPEN and record.in_flight > 0
                if resource.id not in without and circuit is not Circuit.OPEN and not tried:
                    usable.append(resource)
                    busy[resource.id] = record.in_flight
        return sorted(usable, key=lambda resource: (policy.rank(resource), busy[resource.id], resource.id))

    # Running

    @contextmanager
    def _on_one(self, request: Request, without: Collection[str], timeout: float | None) -> Iterator[_Attempt]:
        attempt = self._begin(request, without, timeout)
        try:
            yield attempt
        finally:
            self._end(attempt)

    def _begin(self, request: Request, without: Collection[str], timeout: float | None) -> _Attempt:
        policy = self._rule(request)[0]
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._lock:
            self._waiting += 1
        try:
            while True:
                able = [resource.id for resource in self._able(request) if resource.id not in without]
                self._check_usable(able)
                policy.observe(self._load(able))
                left = None if deadline is None else deadline - time.monotonic()
                try:
                    lease = self.pool.acquire(
                        Query(ids=able),
                        # A circuit that closes by time tells nobody: look again now and then.
                        timeout=_LOOK_AGAIN if left is None else max(0.0, min(left, _LOOK_AGAIN)),
                        order=lambda found: self._order(policy, found, without),
                    )
                    break
                except Transient:
                    if left is not None and left <= _LOOK_AGAIN:
                        raise
        finally:
            with self._lock:
                self._waiting -= 1
        with self._lock:
            self._records.setdefault(lease.resource.id, Record()).in_flight += 1
        return _Attempt(lease, self._clock())

    def _end(self, attempt: _Attempt) -> None:
        now = self._clock()
        seconds = now - attempt.began
        with self._lock:
            record = self._records[attempt.resource.id]
            record.in_flight -= 1
            record.requests += 1
            record.seconds += seconds
            if attempt.succeeded:
                record.recent.append(seconds)
                record.in_a_row, record.open_until = 0, None
            elif attempt.error is not None:
                record.failures += 1
                record.in_a_row += 1
                record.last_error = f"{type(attempt.error).__name__}: {attempt.error}"
                if record.in_a_row >= self._failures:
                    record.open_until = now + self._cooldown
        # Whoever waits for it looks at the record: it is written first.
        attempt.lease.release()

    def _load(self, able: Sequence[str]) -> float:
        used, slots = self.pool.load(able)
        with self._lock:
            waiting = self._waiting
        return (used + waiting) / slots if slots else 0.0

    def _check_usable(self, able: Sequence[str]) -> None:
        now = self._clock()
        with self._lock:
            until = [self._records[name].open_until if name in self._records else None for name in able]
        open_until = [at for at in until if at is not None and at > now]
        if able and len(open_until) == len(able):
            raise Transient(
                f"every resource that is capable of it has failed of late; the first one is tried again in "
                f"{min(open_until) - now:.1f} s"
            )
        if not able:
            raise Transient("every resource that is capable of it has been tried")

    def _check_goes_on(self, request: Request, failed: Mapping[str, Exception]) -> None:
        if len(failed) < self._attempts:
            try:
                self._check_usable([resource.id for resource in self._able(request) if resource.id not in failed])
            except (BadInput, Transient):
                raise _failure(failed) from None
            return
        raise _failure(failed)


def _failure(failed: Mapping[str, Exception]) -> Exception:
    errors = list(failed.values())
    if len(errors) == 1:
        return errors[0]
    told = "; ".join(f"{name}: {type(error).__name__}: {error}" for name, error in failed.items())
    failure = PluginError(f"the request failed on every resource that was tried: {told}")
    failure.__cause__ = errors[-1]
    return failure
