"""How the flags of a profile become arguments of a command line."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from rm_abstract.core.errors import BadInput


@dataclass(frozen=True)
class ArgumentStyle:
    """The manner of a command line: ``precision="fp16"`` is ``--precision fp16`` unless something else is said.

    Values are handed over as they are; nothing in them is expanded. A flag that is None is left out.
    """

    prefix: str = "--"
    """Before each flag's name."""
    joint: str = ""
    """Between name and value, such as ``=``; empty: name and value are two arguments."""
    dashes: bool = True
    """``optimization_level`` becomes ``optimization-level``."""
    truths: Literal["present", "value"] = "present"
    """A flag that is True is its name alone, and one that is False is left out; or their values are true and false."""
    lists: Literal["repeat", "join"] = "repeat"
    """A list is the option again and again, or once with its parts joined."""
    separator: str = ","
    """Between the parts of a joined list."""
    input_option: str = "--input"
    """The option that names the input, as it is; empty: the input comes after all options."""
    output_option: str = "--output"
    """The option that names the output, as it is; empty: the output comes after all else."""

    def arguments(self, flags: Mapping[str, Any], input_path: Path, output_path: Path) -> list[str]:
        """The arguments, without the program: input, output, then the flags in their order.

        Raises BadInput for a flag of another type, and where two become the same option.
        """
        places = [(self.input_option, str(input_path)), (self.output_option, str(output_path))]
        result = [word for option, text in places if option for word in self._option(option, text)]
        taken = {option for option, _ in places}
        for name, value in flags.items():
            option = self.prefix + (name.replace("_", "-") if self.dashes else name)
            if option in taken:
                raise BadInput(f"the flag {name} becomes {option}, which is there already")
            taken.add(option)
            result.extend(self._flag(option, name, value))
        return result + [text for option, text in places if not option]

    def _flag(self, option: str, name: str, value: Any) -> list[str]:
        if value is None:
            return []
        if isinstance(value, bool) and self.truths == "present":
            return [option] if value else []
        if isinstance(value, list | tuple):
            parts = [_text(name, part) for part in value]
            if self.lists == "repeat":
                return [word for part in parts for word in self._option(option, part)]
            return self._option(option, self.separator.join(parts)) if parts else []
        return self._option(option, _text(name, value))

    def _option(self, option: str, text: str) -> list[str]:
        return [f"{option}{self.joint}{text}"] if self.joint else [option, text]


def _text(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float | Path):
        return str(value)
    raise BadInput(f"the flag {name} is a {type(value).__name__}; flags are texts, numbers, truths and lists of them")


GNU: Final = ArgumentStyle()
"""``--optimization-level 3 --verbose``"""
EQUALS: Final = ArgumentStyle(joint="=")
"""``--optimization-level=3 --verbose``"""
SINGLE_DASH: Final = ArgumentStyle(prefix="-", dashes=False, input_option="-input", output_option="-output")
"""``-optimization_level 3 -verbose``"""
ASSIGNMENTS: Final = ArgumentStyle("", "=", False, "value", "join", input_option="input", output_option="output")
"""``optimization_level=3 verbose=true``"""
