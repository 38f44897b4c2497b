"""Lines of our servers, in the format of rma-launch's own: ``time=… level=… from=rm-abstract msg="…"``."""

import logging
from datetime import UTC, datetime
from typing import Any, Final

LOG_CONFIG: Final[dict[str, Any]] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"logfmt": {"()": f"{__name__}.Logfmt"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "logfmt"}},
    "root": {"handlers": ["stderr"], "level": "WARNING"},
    "loggers": {"uvicorn": {"level": "INFO"}},
}
"""For ``logging.config``: what uvicorn says, and what libraries warn of."""


class Logfmt(logging.Formatter):
    """One line a record; where there is an exception, its lines follow, each in a line of its own."""

    def format(self, record: logging.LogRecord) -> str:
        """The lines."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        said = [record.getMessage()]
        if record.exc_info:
            said.extend(self.formatException(record.exc_info).splitlines())
        return "\n".join(
            f'time={time} level={_LEVELS.get(record.levelno, "info")} from=rm-abstract msg="{_quoted(line)}"'
            for line in said
        )


_LEVELS: Final = {
    logging.DEBUG: "debug",
    logging.INFO: "info",
    logging.WARNING: "warn",
    logging.ERROR: "error",
    logging.CRITICAL: "error",
}


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ")
