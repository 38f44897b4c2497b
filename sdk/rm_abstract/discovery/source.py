"""What a source file offers, read from its text. Nothing is imported.

What was read is plain JSON, so that it can be remembered and shared. A file that offers nothing is an empty object.
"""

import ast
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from rm_abstract.discovery.decorators import NAMES

Facts = dict[str, Any]
"""What is known of one file, empty if it offers nothing.

``plugins``: list of [type, name, attribute, version, attributes]; ``dynamic``: true where only an import can tell;
``classes``: bases by class, in full; ``functions``: names; ``imports``: full names of classes that are imported.
"""

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef

_OURS: Final = "rm_abstract"
_BLOCKS: Final = ("body", "orelse", "finalbody", "handlers", "cases")


class _Unknown(Exception):
    """The text does not tell; only an import does."""


def read_plugins(source: bytes, module: str, *, package: bool = False) -> Facts:
    """What the decorators of ``rm_abstract`` register when the module is imported. Raises SyntaxError.

    Decorators are understood at the top of a module with arguments that are literals or names of such. ``dynamic`` is
    what has others, or registers inside of a condition or by a call. Decorators that reach a module by way of another
    package than ours are not seen.
    """
    if _OURS.encode() not in source:
        return {}
    reader = _Reader(module, package)
    reader.block(ast.parse(source).body, top=True)
    if reader.dynamic:
        return {"dynamic": True}
    return {"plugins": reader.plugins} if reader.plugins else {}


def read_classes(source: bytes, module: str, *, package: bool = False) -> Facts:
    """Classes and functions at the top of a module, with the full names of the classes' bases. Raises SyntaxError."""
    names = _Names(module, package)
    classes, functions = {}, []
    for statement in ast.parse(source).body:
        names.learn(statement)
        if isinstance(statement, ast.ClassDef):
            names.known[statement.name] = f"{module}.{statement.name}"
            classes[statement.name] = [name for base in statement.bases if (name := names.full(base))]
        elif isinstance(statement, ast.FunctionDef):
            functions.append(statement.name)
    # A class may be imported from where it is imported itself. By custom the names of classes begin with a capital.
    imports = {name: full for name, full in names.known.items() if name[:1].isupper() and name not in classes}
    found = {"classes": classes, "functions": functions, "imports": imports}
    return {key: value for key, value in found.items() if value}


def check_facts(value: Any) -> Facts:
    """``value`` if it has the form of facts. Raises ValueError, so that nothing else comes from a cache of others."""
    match value:
        case {"dynamic": True} if len(value) == 1:
            return {"dynamic": True}
        case dict() as facts if facts.keys() <= {"plugins", "classes", "functions", "imports"}:
            plugins, classes, functions = facts.get("plugins", []), facts.get("classes", {}), facts.get("functions", [])
            imports = facts.get("imports", {})
            if (
                isinstance(plugins, list)
                and all(map(_is_plugin, plugins))
                and isinstance(classes, dict)
                and all(_is_name(name) and _are_names(bases) for name, bases in classes.items())
                and _are_names(functions)
                and isinstance(imports, dict)
                and all(_is_name(name) and _is_name(full) for name, full in imports.items())
            ):
                return dict(facts)
    raise ValueError("this does not describe a source file")


def plain(value: Any) -> Any:
    """``value`` as JSON has it: tuples are lists. Raises ValueError for what JSON has not."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: plain(each) for key, each in value.items()}
    raise ValueError(f"{value!r} cannot be written as JSON")


def _is_name(value: object) -> bool:
    return isinstance(value, str) and all(part.isidentifier() for part in value.split("."))


def _are_names(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_name, value))


def _is_plugin(value: object) -> bool:
    match value:
        case [str(plugin_type), str(name), attribute, str(), {**attributes}]:
            return (
                bool(plugin_type and name) and _is_name(attribute) and all(isinstance(key, str) for key in attributes)
            )
    return False


class _Names:
    """What the names at the top of a module stand for, as far as imports tell."""

    def __init__(self, module: str, package: bool) -> None:
        self.known: dict[str, str] = {}
        self._package = module.split(".") if package else module.split(".")[:-1]

    def learn(self, statement: ast.stmt) -> None:
        """Note what an import brings."""
        if isinstance(statement, ast.Import):
            for alias in statement.names:
                name = alias.name if alias.asname else alias.name.partition(".")[0]
                self.known[alias.asname or name] = name
        elif isinstance(statement, ast.ImportFrom):
            above = self._package[: len(self._package) - statement.level + 1] if statement.level else []
            origin = ".".join([*above, *([statement.module] if statement.module else [])])
            for alias in statement.names:
                if alias.name != "*":
                    self.known[alias.asname or alias.name] = f"{origin}.{alias.name}"

    def full(self, expression: ast.expr) -> str:
        """The full name that a dotted expression stands for, or an empty text."""
        parts = []
        while isinstance(expression, ast.Attribute):
            parts.append(expression.attr)
            expression = expression.value
        if not isinstance(expression, ast.Name) or expression.id not in self.known:
            return ""
        return ".".join([self.known[expression.id], *reversed(parts)])


class _Reader:
    def __init__(self, module: str, package: bool) -> None:
        self.plugins: list[list[Any]] = []
        self.dynamic = False
        self._names = _Names(module, package)
        self._constants: dict[str, Any] = {}
        self._defined: set[str] = set()

    def block(self, statements: Iterable[ast.AST], *, top: bool) -> None:
        for statement in statements:
            if isinstance(statement, Definition):
                self._define(statement, top=top)
            elif isinstance(statement, ast.Import | ast.ImportFrom):
                self._names.learn(statement)
            elif isinstance(statement, ast.Assign):
                self._assign(statement)
            elif isinstance(statement, ast.Expr):
                self.dynamic |= isinstance(statement.value, ast.Call) and self._registers(statement.value.func)
            else:
                for name in _BLOCKS:
                    self.block(getattr(statement, name, ()), top=False)

    def _assign(self, statement: ast.Assign) -> None:
        for target in statement.targets:
            if isinstance(target, ast.Name):
                try:
                    self._constants[target.id] = ast.literal_eval(statement.value)
                except ValueError:
                    self._constants.pop(target.id, None)

    def _define(self, definition: Definition, *, top: bool) -> None:
        self._defined.add(definition.name)
        for decorator in definition.decorator_list:
            function = decorator.func if isinstance(decorator, ast.Call) else decorator
            owner, _, name = self._names.full(function).rpartition(".")
            if owner.partition(".")[0] == _OURS and name in NAMES:
                try:
                    self.plugins.append(self._plugin(name, definition.name, decorator))
                except _Unknown:
                    self.dynamic = True
                self.dynamic |= not top
            else:
                self.dynamic |= self._registers(function)
        if isinstance(definition, ast.ClassDef):
            self.block(definition.body, top=False)

    def _plugin(self, plugin_type: str, attribute: str, decorator: ast.expr) -> list[Any]:
        said = dict(self._arguments(decorator)) if isinstance(decorator, ast.Call) else {}
        said = {key: value for key, value in said.items() if value != ""}
        name, version = said.pop("name", attribute), said.pop("version", "")
        wanting = plugin_type == "backend" and not (said.get("kernel") and said.get("backend_type"))
        if wanting or not isinstance(name, str):
            raise _Unknown  # the decorator will say what is wrong
        return [plugin_type, name, attribute, str(version), said]

    def _arguments(self, call: ast.Call) -> Iterator[tuple[str, Any]]:
        if call.args:
            raise _Unknown
        for keyword in call.keywords:
            value = keyword.value
            if keyword.arg is None:
                raise _Unknown
            try:
                if isinstance(value, ast.Name):
                    yield keyword.arg, plain(self._constants[value.id])
                else:
                    yield keyword.arg, plain(ast.literal_eval(value))
            except (KeyError, ValueError):
                raise _Unknown from None

    def _registers(self, function: ast.expr) -> bool:
        """Whether calling this may register something: ``get_registry().register``, ``registry.register``."""
        if not (isinstance(function, ast.Attribute) and function.attr == "register"):
            return False
        root: ast.AST = function
        while isinstance(root, ast.Attribute | ast.Call):
            root = root.value if isinstance(root, ast.Attribute) else root.func
        if not isinstance(root, ast.Name):
            return False
        origin = self._names.known.get(root.id)
        return origin.partition(".")[0] == _OURS if origin else root.id not in self._defined
