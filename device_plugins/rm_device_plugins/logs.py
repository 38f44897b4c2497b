"""Structured logs: one JSON object a line on standard error."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

_FIELDS = "rma_fields"


class Log:
    """A logger whose calls take the facts as keyword arguments: ``log.info("registered", endpoint=name)``."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(f"rm_device_plugins.{name}")

    def info(self, message: str, **facts: Any) -> None:
        """Something changed."""
        self._logger.info(message, extra={_FIELDS: facts})

    def warning(self, message: str, **facts: Any) -> None:
        """Something is wrong that the plugin copes with."""
        self._logger.warning(message, extra={_FIELDS: facts})

    def error(self, message: str, **facts: Any) -> None:
        """Something is wrong that somebody has to look at."""
        self._logger.error(message, extra={_FIELDS: facts})


class JsonFormatter(logging.Formatter):
    """``{"time","level","logger","message",…facts}``; a traceback goes into ``exception``."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, _FIELDS, {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def configure(level: str) -> None:
    """Sends everything of ``level`` and above to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
