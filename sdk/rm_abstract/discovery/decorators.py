"""Decorators that register a class or function where it is defined."""

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar, overload

from rm_abstract.core.errors import BadInput
from rm_abstract.core.registry import PluginType, get_registry

Defined = TypeVar("Defined", bound=Callable[..., Any])

NAMES: Final = frozenset({"transform", "kernel", "backend", "step"})
"""The decorators; each is named like the type that it registers."""

_VERSIONS: Final = frozenset({"version", "min_host_version", "max_host_version"})


@overload
def transform(plugin: Defined, /) -> Defined: ...
@overload
def transform(
    *, name: str = "", stage: str = "", description: str = "", version: str = "", **attributes: Any
) -> Callable[[Defined], Defined]: ...
def transform(
    plugin: Defined | None = None,
    /,
    *,
    name: str = "",
    stage: str = "",
    description: str = "",
    version: str = "",
    **attributes: Any,
) -> Defined | Callable[[Defined], Defined]:
    """Register a transform: a class with a method ``apply(model)``.

    ``stage`` is the phase of a build that it belongs to, such as ``topology_opt``. Attributes of any other name may be
    given too: ``version``, ``min_host_version`` and ``max_host_version`` are semantic versions, the latter two of RM
    Abstract. Without ``name`` it is the class's. Raises BadInput for a class that is none and for a version of RM
    Abstract that it does not work with, and ValueError for a name that is taken.
    """
    said = {"stage": stage, "description": description, "version": version, **attributes}

    def check(defined: Any) -> None:
        if not (isinstance(defined, type) and callable(getattr(defined, "apply", None))):
            raise BadInput(f"{defined!r} is no transform: it has to be a class with a method apply(model)")

    return _decorator(PluginType.TRANSFORM, plugin, name, said, check)


@overload
def kernel(plugin: Defined, /) -> Defined: ...
@overload
def kernel(
    *, name: str = "", description: str = "", version: str = "", **attributes: Any
) -> Callable[[Defined], Defined]: ...
def kernel(
    plugin: Defined | None = None,
    /,
    *,
    name: str = "",
    description: str = "",
    version: str = "",
    **attributes: Any,
) -> Defined | Callable[[Defined], Defined]:
    """Register a kernel: a class that says what is computed; its backends say how. Otherwise as ``transform``."""
    said = {"description": description, "version": version, **attributes}
    return _decorator(PluginType.KERNEL, plugin, name, said, _is_class)


def backend(
    *,
    kernel: str,
    backend_type: str,
    name: str = "",
    description: str = "",
    version: str = "",
    **attributes: Any,
) -> Callable[[Defined], Defined]:
    """Register a backend: a class that implements the kernel named ``kernel``, in the way ``backend_type`` (``hls``).

    Otherwise as ``transform``.
    """
    for word, value in (("kernel", kernel), ("backend_type", backend_type)):
        if not (isinstance(value, str) and value):
            raise BadInput(f"a backend needs {word}, a word that is not empty; it is {value!r}")
    said = {
        "kernel": kernel,
        "backend_type": backend_type,
        "description": description,
        "version": version,
        **attributes,
    }
    return _decorated(PluginType.BACKEND, name, said, _is_class)


@overload
def step(plugin: Defined, /) -> Defined: ...
@overload
def step(
    *, name: str = "", description: str = "", version: str = "", **attributes: Any
) -> Callable[[Defined], Defined]: ...
def step(
    plugin: Defined | None = None,
    /,
    *,
    name: str = "",
    description: str = "",
    version: str = "",
    **attributes: Any,
) -> Defined | Callable[[Defined], Defined]:
    """Register a step of a build: a function ``(model, config) -> model``, or a class whose instances are called.

    Otherwise as ``transform``.
    """

    def check(defined: Any) -> None:
        if not callable(defined):
            raise BadInput(f"{defined!r} is no step: it has to be callable with a model and a configuration")

    said = {"description": description, "version": version, **attributes}
    return _decorator(PluginType.STEP, plugin, name, said, check)


def _is_class(defined: Any) -> None:
    if not isinstance(defined, type):
        raise BadInput(f"{defined!r} has to be a class")


def _decorator(
    plugin_type: str, plugin: Defined | None, name: str, said: dict[str, Any], check: Callable[[Any], None]
) -> Defined | Callable[[Defined], Defined]:
    decorate: Callable[[Defined], Defined] = _decorated(plugin_type, name, said, check)
    return decorate if plugin is None else decorate(plugin)


def _decorated(
    plugin_type: str, name: str, said: dict[str, Any], check: Callable[[Any], None]
) -> Callable[[Defined], Defined]:
    if not isinstance(name, str):
        raise BadInput(f"the name of a {plugin_type} is a word, not {name!r}")
    attributes = {key: value for key, value in said.items() if value != ""}

    def decorate(defined: Defined) -> Defined:
        check(defined)
        if _VERSIONS & attributes.keys():
            _check_versions(name or defined.__name__, attributes)
        get_registry().register(defined, plugin_type=plugin_type, name=name, **attributes)
        return defined

    return decorate


def _check_versions(name: str, attributes: Mapping[str, Any]) -> None:
    from rm_abstract.core.versions import PluginInfo, VersionInfo  # noqa: PLC0415 (most plugins have none)

    try:
        own, least, most = (
            VersionInfo.parse(str(attributes[key]), partial=True) if key in attributes else None
            for key in ("version", "min_host_version", "max_host_version")
        )
        problem = PluginInfo(
            name, own or VersionInfo(0, 0, 0), min_host_version=least, max_host_version=most
        ).incompatibility()
    except BadInput as error:
        problem = f"plugin {name}: {error}"
    if problem:
        raise BadInput(problem)
