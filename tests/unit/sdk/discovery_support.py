"""Helpers of discovery's tests: plugin modules on disk that tell when they are imported or opened."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent

_listeners: list[list[str]] = []


def _audit(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and isinstance(arguments[0], str):
        for listener in _listeners:
            listener.append(arguments[0])


sys.addaudithook(_audit)


@contextmanager
def opened_files(below: Path) -> Iterator[list[str]]:
    """The names of the source files below a directory that this process opens, filled in at the end."""
    names: list[str] = []
    opened: list[str] = []
    _listeners.append(opened)
    try:
        yield names
    finally:
        _listeners.remove(opened)
        found = [path.removeprefix(f"{below}/") for path in opened if path.startswith(f"{below}/")]
        names += [name for name in found if name.endswith(".py")]


def transform(name: str) -> str:
    """The source of a transform."""
    return f"""
        from rm_abstract.discovery.decorators import transform

        @transform(name="{name}", stage="topology_opt")
        class {name}:
            def apply(self, model):
                return [*model, "{name}"], False
        """


def write(directory: Path, files: Mapping[str, str], *, imported: Path | None = None) -> Path:
    """Write source files. With ``imported``, each notes its name there when it is imported."""
    note = f"with open({str(imported)!r}, 'a') as file: file.write(__name__ + '\\n')\n" if imported else ""
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(note + dedent(text))
    return directory


def imports(note: Path) -> list[str]:
    """The names that were noted, in order."""
    return note.read_text().split() if note.exists() else []


@contextmanager
def fresh_modules(*prefixes: str) -> Iterator[None]:
    """Modules whose names begin so are forgotten before and after."""

    def forget() -> None:
        for name in [each for each in sys.modules if each.split(".")[0].startswith(prefixes)]:
            del sys.modules[name]

    forget()
    yield
    forget()
