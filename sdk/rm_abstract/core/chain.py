"""Several plugins one after the other, such as preprocessing, inference and postprocessing, as one."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self

from rm_abstract.core.dependencies import Dependency
from rm_abstract.core.engine import blamed
from rm_abstract.core.errors import BadInput
from rm_abstract.core.plugin import BackendConfig, Plugin, PluginMetadata
from rm_abstract.core.profiling import PluginProfiler

Step = Plugin | Callable[[Any], Any]


@dataclass(frozen=True)
class Stage:
    """One link of a chain: a plugin, which gets a resource to prepare, or a function of what comes before."""

    step: Step
    resource: Any = None
    """What ``prepare_resource`` gets; the chain's own resource where it is None. Of no use to a function."""
    name: str = ""

    @property
    def title(self) -> str:
        """Its name in messages and profiles."""
        if self.name:
            return self.name
        if isinstance(self.step, Plugin):
            return self.step.metadata().name
        return getattr(self.step, "__name__", type(self.step).__name__)


class PluginChain:
    """Hands what each stage gives to the next one. ``execute`` may be called from any thread.

    A context manager: initialized and prepared inside, cleaned up after, in the opposite order.
    """

    def __init__(self, *stages: Stage | Step, resource: Any = None, profiler: PluginProfiler | None = None) -> None:
        """``resource`` is what plugins prepare whose stage names none. Raises BadInput where no stage is given."""
        if not stages:
            raise BadInput("a chain needs at least one stage")
        self.stages = tuple(stage if isinstance(stage, Stage) else Stage(stage) for stage in stages)
        for stage in self.stages:
            if not isinstance(stage.step, Plugin) and not callable(stage.step):
                raise BadInput(f"a stage of a chain is a plugin or a function, but {stage.step!r} is neither")
        self.profiler = PluginProfiler() if profiler is None else profiler
        self._resource = resource
        self._initialized: list[Plugin] = []
        self._prepared: list[Any] | None = None

    def initialize(self) -> None:
        """Initialize every plugin, in order. Where one fails, those before it are cleaned up, and it is raised."""
        for stage in self.stages:
            plugin = stage.step
            if isinstance(plugin, Plugin) and not any(plugin is other for other in self._initialized):
                self._initialized.append(plugin)
                try:
                    with self.profiler.measure(stage.title, "initialize"), blamed(stage.title, "initialize"):
                        plugin.initialize()
                except BaseException:
                    self.cleanup()
                    raise

    def prepare(self, resource: Any = None, config: BackendConfig | None = None) -> list[Any]:
        """What each stage prepared; None for functions. Where one fails, what was prepared before is released."""
        prepared: list[Any] = []
        try:
            for stage in self.stages:
                value = None
                if isinstance(stage.step, Plugin):
                    wanted = resource if stage.resource is None else stage.resource
                    with self.profiler.measure(stage.title, "prepare_resource"), blamed(stage.title, "prepare"):
                        value = stage.step.prepare_resource(wanted, config)
                prepared.append(value)
        except BaseException:
            self.release(prepared)
            raise
        return prepared

    def release(self, prepared: Sequence[Any]) -> None:
        """Release what ``prepare`` gave, the last one first; one that fails keeps none of the others from it."""
        with ExitStack() as stack:
            for stage, value in zip(self.stages, prepared, strict=False):
                if isinstance(stage.step, Plugin):
                    stack.callback(stage.step.release_resource, value)

    def execute(self, inputs: Any, **kwargs: Any) -> Any:
        """Run all stages. ``kwargs`` go to each stage by its name: ``execute(x, acme={"max_tokens": 3})``.

        Raises PluginError with the stage's name where one fails, and BadInput outside of the context manager.
        """
        if self._prepared is None:
            raise BadInput("the chain is not initialized; use it as a context manager")
        return self.run(self._prepared, inputs, **kwargs)

    def run(self, prepared: Sequence[Any], inputs: Any, **kwargs: Any) -> Any:
        """As ``execute``, on what ``prepare`` gave."""
        unknown = kwargs.keys() - {stage.title for stage in self.stages}
        if unknown:
            raise BadInput(
                f"the chain has no stage {', '.join(sorted(unknown))}; there are "
                f"{', '.join(stage.title for stage in self.stages)}"
            )
        value = inputs
        for stage, ready in zip(self.stages, prepared, strict=True):
            options = kwargs.get(stage.title, {})
            with self.profiler.measure(stage.title, "execute"), blamed(stage.title, "execute"):
                if isinstance(stage.step, Plugin):
                    value = stage.step.execute(ready, value, **options)
                else:
                    value = stage.step(value, **options)
        return value

    def cleanup(self) -> None:
        """Release what is prepared and clean up the plugins, the last one first. Harmless if done before."""
        prepared, self._prepared = self._prepared, None
        initialized, self._initialized = self._initialized, []
        with ExitStack() as stack:
            for plugin in initialized:
                stack.callback(plugin.cleanup)
            if prepared is not None:
                self.release(prepared)

    def __enter__(self) -> Self:
        self.initialize()
        try:
            self._prepared = self.prepare(self._resource)
        except BaseException:
            self.cleanup()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cleanup()


def create_chain_plugin(about: PluginMetadata, *stages: str | Callable[[Any], Any]) -> type[Plugin]:
    """A plugin class that runs other plugins, named as dependencies are (``tokens ^1.2``), one after the other.

    The registry gives it new instances of them, and they start before it. Raises BadInput for a name that is none.
    """
    names = [Dependency.parse(stage) if isinstance(stage, str) else stage for stage in stages]
    wanted = dict.fromkeys(str(stage) for stage in names if isinstance(stage, Dependency))

    class ChainPlugin(Plugin):
        """Several plugins as one."""

        @classmethod
        def metadata(cls) -> PluginMetadata:
            """See the base class."""
            return replace(about, depends_on=(*about.depends_on, *wanted))

        def __init__(self) -> None:
            self.profiler = PluginProfiler()

        def _chain(self) -> PluginChain:
            steps = [self.dependencies[s.name] if isinstance(s, Dependency) else s for s in names]
            stages = (Stage(step, name=_title(stage)) for step, stage in zip(steps, names, strict=True))
            return PluginChain(*stages, profiler=self.profiler)

        def is_available(self) -> bool:
            """See the base class: all of its plugins are."""
            return all(plugin.is_available() for plugin in self.dependencies.values() if isinstance(plugin, Plugin))

        def prepare_resource(self, resource: Any, config: BackendConfig | None = None) -> Any:
            """See the base class: each plugin prepares the same resource."""
            chain = self._chain()
            return chain, chain.prepare(resource, config)

        def release_resource(self, resource: Any) -> None:
            """See the base class."""
            chain, prepared = resource
            chain.release(prepared)

        def execute(self, resource: Any, inputs: Any, **kwargs: Any) -> Any:
            """See the base class; ``kwargs`` are those of stages, by name."""
            chain, prepared = resource
            return chain.run(prepared, inputs, **kwargs)

    return ChainPlugin


def _title(stage: Dependency | Callable[[Any], Any]) -> str:
    return stage.name if isinstance(stage, Dependency) else ""
