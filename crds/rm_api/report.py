"""The report that a container leaves as its termination message: at most 2 KiB of JSON.

Standard library only: the images that write it do not carry pydantic.
"""

import json
from dataclasses import dataclass, field
from typing import Any

from rm_api.names import MAX_TERMINATION_MESSAGE_BYTES


class ReportInvalid(ValueError):
    """The text is no report of ours; the caller's reason for that is ``ReportMissing``."""


@dataclass(frozen=True)
class Report:
    """What a resolve, build or serving container says of itself when it ends."""

    reason: str
    """One CamelCase word, for a condition."""
    message: str = ""
    """One line for a person."""
    retryable: bool = False
    digest: str = ""
    """``sha256:…`` of what was produced."""
    sizeBytes: int = 0  # noqa: N815 (the wire name)
    seconds: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)
    """Tool name → version, as probed."""
    facts: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """Compact JSON that fits the termination message; a long message loses its middle, nothing else is cut.

        Raises ValueError if the facts alone do not fit: they are data, and half of them would be a lie.
        """
        message = self.message
        while True:
            body = {
                key: value
                for key, value in {**self.__dict__, "message": message}.items()
                if value or key in ("reason", "retryable")
            }
            text = json.dumps(body, separators=(",", ":"), ensure_ascii=False, sort_keys=True)
            excess = len(text.encode()) - MAX_TERMINATION_MESSAGE_BYTES
            if excess <= 0:
                return text
            if len(message) < 16:
                raise ValueError(f"the report's facts exceed {MAX_TERMINATION_MESSAGE_BYTES} bytes by {excess}")
            half = max(0, (len(message) - excess - 1) // 2)
            message = f"{message[:half]}…{message[-half:] if half else ''}" if half > 6 else message[:8]

    @classmethod
    def parse(cls, text: str) -> "Report":
        """The report in ``text``, ignoring unknown members. Raises ReportInvalid: no reason, or a wrong type."""
        try:
            raw = json.loads(text, parse_constant=_refuse)
            # Half of a surrogate pair is JSON, but nothing that could be written into a status.
            json.dumps(raw, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            raise ReportInvalid(f"not JSON: {error}") from None
        if not isinstance(raw, dict) or not isinstance(raw.get("reason"), str) or not raw["reason"]:
            raise ReportInvalid("no reason in it")
        expected: dict[str, tuple[type, ...]] = {
            "reason": (str,),
            "message": (str,),
            "retryable": (bool,),
            "digest": (str,),
            "sizeBytes": (int,),
            "seconds": (int, float),
            "versions": (dict,),
            "facts": (dict,),
        }
        known = {key: raw[key] for key in expected if key in raw}
        for key, value in known.items():
            if not isinstance(value, expected[key]) or (isinstance(value, bool) and key != "retryable"):
                raise ReportInvalid(f"{key} is a {type(value).__name__}")
            if isinstance(value, int | float) and value < 0:
                raise ReportInvalid(f"{key} is negative")
        for tool, version in known.get("versions", {}).items():
            if not isinstance(version, str):
                raise ReportInvalid(f"versions: that of {tool} is a {type(version).__name__}")
        return cls(**known)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")
