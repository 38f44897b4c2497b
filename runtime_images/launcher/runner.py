"""Calls a compiler that is a Python function: rma-launch hands this to the image's own python3.

It has to run wherever a vendor's image has any Python from 3.6 on. One line of JSON on a pipe tells how the call ended.
"""

import sys

# "python3 -c" looks for modules in the working directory first, where the files of earlier steps are.
sys.path[:] = [entry for entry in sys.path if entry]

import importlib  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import traceback  # noqa: E402
import types  # noqa: E402

MOST = 2000


class Refused(Exception):
    """What was to be called cannot be."""


def find(call):
    """The function that ``module:name`` stands for."""
    module, _, path = call.partition(":")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        # Another name is a module that this one needs: that is the image's fault.
        if error.name and (module + ".").startswith(error.name + "."):
            raise Refused(f"there is no module {module} in this image: {error}") from None
        raise
    for name in path.split("."):
        if not hasattr(found, name):
            raise Refused(f"there is no function {path} in the module {module}")
        found = getattr(found, name)
    if not callable(found):
        raise Refused(f"{call} is a {type(found).__name__} and no function")
    return found


def versions_of(call, result):
    """What the function said of its tools."""
    if result is None:
        return {}
    wanted = 'it returns None or {"versions": {name: version}}'
    if not isinstance(result, dict) or set(result) - {"versions"}:
        shown = sorted(map(str, result)) if isinstance(result, dict) else type(result).__name__
        raise TypeError(f"{call} returned {shown}; {wanted}")
    versions = result.get("versions", {})
    if not isinstance(versions, dict) or not all(
        isinstance(name, str) and name and isinstance(version, str) for name, version in versions.items()
    ):
        raise TypeError(f"{call} returned versions that are not texts by name; {wanted}")
    return versions


def name_of(kind):
    """The class as a traceback names it."""
    name = kind.__qualname__
    return name if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}.{name}"


def describe(error):
    """What was raised, as rma-launch is told."""
    if isinstance(error, Refused):
        return {"refused": str(error)}
    kind = type(error)
    try:
        text = str(error)
    except Exception as broken:  # the class's own __str__
        text = f"(its text cannot be had: {name_of(type(broken))})"
    if len(text) > MOST:
        text = text[: MOST // 2] + " ... " + text[-MOST // 2 :]
    told = {"raised": f"{name_of(kind)}: {text}" if text else name_of(kind)}
    code = getattr(kind, "rma_exit_code", None)
    if isinstance(code, int) and not isinstance(code, bool):
        told["code"] = int(code)
    told["unsupported"] = isinstance(error, NotImplementedError) or any(
        each.__name__ == "UnsupportedModel" for each in kind.__mro__
    )
    told["memory"] = isinstance(error, MemoryError)
    return told


def main():
    """Call it, tell how that ended, and give the exit code."""
    request = json.loads(sys.argv[1])
    os.set_inheritable(request["result"], False)
    pipe = os.fdopen(request["result"], "w", encoding="ascii")

    started = os.getpid()

    def tell(said):
        if os.getpid() != started:  # a fork of the function's that came back to us
            return
        pipe.write(json.dumps(said) + "\n")
        pipe.close()

    call = request["call"]
    sys.argv[:] = [call, *sys.argv[2:]]
    build = types.SimpleNamespace(args=sys.argv[1:], **request["build"])
    try:
        said = {"versions": versions_of(call, find(call)(build))}
    except SystemExit:
        tell({"left": True})
        raise
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        tell(describe(error))
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename == main.__code__.co_filename:
            trace = trace.tb_next
        traceback.print_exception(type(error), error, trace)
        return 1
    tell(said)
    return 0


sys.exit(main())
