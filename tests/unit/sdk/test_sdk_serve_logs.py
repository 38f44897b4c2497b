"""Lines of our servers: the format of the launcher's."""

import logging
import shlex
import subprocess
import sys
from datetime import datetime

import pytest
from rm_abstract.serve.logs import Logfmt


def record(level: int, message: str, *facts: object, failure: BaseException | None = None) -> logging.LogRecord:
    told = (type(failure), failure, None) if failure else None
    return logging.LogRecord("uvicorn.error", level, "file.py", 1, message, facts, told)


@pytest.mark.parametrize(
    ("level", "name"),
    [(logging.DEBUG, "debug"), (logging.WARNING, "warn"), (logging.CRITICAL, "error"), (5, "info")],
)
def test_a_line(level: int, name: str) -> None:
    line = Logfmt().format(record(level, 'port %d is "taken"\nby C:\\x', 8000))
    fields = dict(pair.split("=", 1) for pair in shlex.split(line))
    assert (fields["level"], fields["from"], fields["msg"]) == (name, "rm-abstract", 'port 8000 is "taken" by C:\\x')
    assert datetime.fromisoformat(fields["time"]).tzinfo is not None


def test_an_exception_is_one_line_each() -> None:
    first, second = Logfmt().format(record(logging.ERROR, "it broke", failure=ValueError("no number"))).splitlines()
    assert first.endswith('level=error from=rm-abstract msg="it broke"')
    assert second.endswith('level=error from=rm-abstract msg="ValueError: no number"')


def test_what_libraries_warn_of_is_in_it_too() -> None:
    program = """
import logging.config
from rm_abstract.serve.logs import LOG_CONFIG
logging.config.dictConfig(LOG_CONFIG)
logging.getLogger("some.library").info("chatter")
logging.getLogger("some.library").warning("slow tokenizer")
logging.getLogger("uvicorn.error").info("started")
"""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stderr
    assert [line.split(" ", 1)[1] for line in said.splitlines()] == [
        'level=warn from=rm-abstract msg="slow tokenizer"',
        'level=info from=rm-abstract msg="started"',
    ]
