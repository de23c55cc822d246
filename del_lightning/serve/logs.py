"""One line of JSON for every event, and never a payload.

A record consists of the message's fixed text and the fields given as ``extra``. Messages with arguments of other
libraries are left unformatted, but for those of uvicorn's own start and stop, and of an exception its type and the
places in the code are kept, not its message: either could quote what a request was about.
"""

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import Any, TextIO

LIFE_CYCLE = ("Started server process", "Uvicorn running on", "Finished server process")
"""Beginnings of messages that are formatted: their arguments are the process and the address."""

_STANDARD = frozenset(vars(logging.makeLogRecord({})))


class JsonFormatter(logging.Formatter):
    """Writes a record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Time, level, logger, text, and all extra fields."""
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": _text(record),
        }
        entry |= {key: value for key, value in vars(record).items() if key not in _STANDARD and key != "color_message"}
        if record.exc_info and record.exc_info[0] is not None:
            entry["error"] = record.exc_info[0].__name__
            entry["at"] = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(record.exc_info[2])]
        return json.dumps(entry, default=str)


def _text(record: logging.LogRecord) -> str:
    """The fixed text of a message."""
    if not isinstance(record.msg, str):
        return type(record.msg).__name__
    return record.getMessage() if record.msg.startswith(LIFE_CYCLE) else record.msg


def log_json(stream: TextIO | None = None) -> logging.Handler:
    """Send the records of this package and of uvicorn to ``stream`` (standard error if None) as JSON."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter())
    for name in ("del_lightning", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(logging.INFO)
        logger.propagate = False
    return handler
