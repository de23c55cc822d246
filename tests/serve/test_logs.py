import io
import json
import logging
from collections.abc import Iterator

import pytest

from del_lightning.serve.logs import log_json

SECRET = "c0ffee5ec2e7"


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    loggers = [logging.getLogger(name) for name in ("del_lightning", "uvicorn")]
    before = [(one.handlers, one.level, one.propagate) for one in loggers]
    stream = io.StringIO()
    log_json(stream)
    yield stream
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


def test_a_record_is_one_line_of_json(lines: io.StringIO) -> None:
    logging.getLogger("del_lightning.serve").info("request", extra={"status": 200, "seconds": 0.5})
    entry = json.loads(lines.getvalue())
    assert entry.pop("time").endswith("+00:00")
    assert entry == {
        "level": "info",
        "logger": "del_lightning.serve",
        "event": "request",
        "status": 200,
        "seconds": 0.5,
    }


def test_an_exception_keeps_its_message_to_itself(lines: io.StringIO) -> None:
    try:
        int(SECRET)
    except ValueError:
        logging.getLogger("uvicorn.error").exception("Exception in ASGI application\n")
    entry = json.loads(lines.getvalue())
    assert entry["error"] == "ValueError"
    assert "test_logs.py" in entry["at"][-1]
    assert SECRET not in lines.getvalue()


def test_start_and_stop_say_where(lines: io.StringIO) -> None:
    message = "Uvicorn running on %s://%s:%d (Press CTRL+C to quit)"
    logging.getLogger("uvicorn.error").info(message, "http", "127.0.0.1", 8000, extra={"color_message": message})
    assert json.loads(lines.getvalue())["event"] == "Uvicorn running on http://127.0.0.1:8000 (Press CTRL+C to quit)"


def test_arguments_of_a_message_are_left_out(lines: io.StringIO) -> None:
    logging.getLogger("uvicorn.error").warning("Invalid request: %s", SECRET)
    logging.getLogger("uvicorn.error").error(ValueError(SECRET))
    events = [json.loads(line)["event"] for line in lines.getvalue().splitlines()]
    assert events == ["Invalid request: %s", "ValueError"]
