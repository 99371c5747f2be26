"""One line a record, with its request."""

import io
import json
import logging
import sys

import pytest
from worldtree_runtime import logs


def record(message: str, *arguments: object, **fields: object) -> logging.LogRecord:
    made = logging.makeLogRecord({"name": "worldtree_video.engine", "levelno": 20, "levelname": "INFO"})
    made.msg, made.args = message, arguments
    vars(made).update(fields)
    return made


def test_a_json_line_has_its_fields_and_stays_one_line() -> None:
    with logs.request_context("r-1"):
        line = logs.JsonFormatter().format(record("tick\n%d", 7, batch_size=3, path=object))
    assert "\n" not in line
    found = json.loads(line)
    assert found["time"].endswith("Z")
    del found["time"]
    assert found == {
        "level": "info",
        "logger": "worldtree_video.engine",
        "message": "tick\n7",
        "request_id": "r-1",
        "batch_size": 3,
        "path": "<class 'object'>",
    }


def test_outside_of_a_request_no_id_is_made_up_and_an_explicit_one_wins() -> None:
    assert "request_id" not in json.loads(logs.JsonFormatter().format(record("x")))
    with logs.request_context("r-1"):
        assert json.loads(logs.JsonFormatter().format(record("x", request_id="r-2")))["request_id"] == "r-2"
    assert logs.current_request_id() is None


def test_a_traceback_is_in_the_line_of_its_error() -> None:
    try:
        raise ValueError("inside")
    except ValueError:
        failed = record("failed", exc_info=sys.exc_info())
    found = json.loads(logs.JsonFormatter().format(failed))
    assert "ValueError: inside" in found["error"]
    assert "ValueError: inside" in logs.ConsoleFormatter().format(failed)


def test_the_console_line_reads_in_order() -> None:
    with logs.request_context("r-1"):
        line = logs.ConsoleFormatter().format(record("served", frames=4))
    assert line.endswith("INFO    worldtree_video.engine: served frames=4 request_id=r-1")


def test_configuring_again_replaces_only_our_own_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    first, second = io.StringIO(), io.StringIO()
    try:
        monkeypatch.setattr(sys, "stderr", first)
        logs.configure("info", "json")
        monkeypatch.setattr(sys, "stderr", second)
        logs.configure("error", "console")
        logging.getLogger("x").info("quiet")
        logging.getLogger("x").error("loud")
        assert set(before) < set(root.handlers)
        assert len(root.handlers) == len(before) + 1
    finally:
        root.handlers[:] = before
        root.setLevel(level)
    assert first.getvalue() == ""
    assert second.getvalue().count("\n") == 1
    assert "loud" in second.getvalue()


def test_a_trace_that_is_given_is_in_the_line() -> None:
    line = json.loads(logs.JsonFormatter().format(record("x", trace_id="4bf9")))
    assert line["trace_id"] == "4bf9"
    assert logs.ConsoleFormatter().format(record("x", trace_id="4bf9")).endswith(": x trace_id=4bf9")
