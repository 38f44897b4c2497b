"""Kubernetes quantities, such as 500m or 8Gi."""

import re
from decimal import Decimal
from typing import Final

_UNITS: Final = {
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "": Decimal(1),
    "k": Decimal(10) ** 3,
    "M": Decimal(10) ** 6,
    "G": Decimal(10) ** 9,
    "T": Decimal(10) ** 12,
    "P": Decimal(10) ** 15,
    "E": Decimal(10) ** 18,
    "Ki": Decimal(2) ** 10,
    "Mi": Decimal(2) ** 20,
    "Gi": Decimal(2) ** 30,
    "Ti": Decimal(2) ** 40,
    "Pi": Decimal(2) ** 50,
    "Ei": Decimal(2) ** 60,
}
_QUANTITY: Final = re.compile(r"([+-]?[0-9]+(?:\.[0-9]*)?|[+-]?\.[0-9]+)(?:([eE][+-]?[0-9]+)|([numkMGTPE]|[KMGTPE]i))?")


def quantity(value: str | int | float) -> Decimal:
    """A Kubernetes quantity as a number: ``500m`` is 0.5, ``1Gi`` 1073741824. Raises ValueError."""
    found = _QUANTITY.fullmatch(str(value))
    if found is None:
        raise ValueError(f"{value!r} is not a quantity")
    number, exponent, unit = found.groups()
    return Decimal(number + (exponent or "")) * _UNITS[unit or ""]


def doubled(memory: str) -> str:
    """Twice the quantity, written with the same unit where that stays a whole number. Raises ValueError."""
    found = _QUANTITY.fullmatch(memory)
    if found is None:
        raise ValueError(f"{memory!r} is not a quantity")
    number, exponent, unit = found.groups()
    twice = Decimal(number) * 2
    return f"{twice.normalize():f}{exponent or ''}{unit or ''}"
