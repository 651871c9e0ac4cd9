import io
import logging
import sys

import pytest
from conftest import tells

from tasks.runtime import progress as module
from tasks.runtime.progress import Reading, progress, read_progress


class Clock:
    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


class Stream(io.StringIO):
    def __init__(self, terminal):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal


def test_lines_tell_rate_and_time_left_but_not_more_than_every_ten_seconds(
    clock, caplog, monkeypatch
):
    monkeypatch.setattr(sys, "stderr", Stream(terminal=False))
    caplog.set_level(logging.INFO)
    with progress("features", 200) as meter:
        for _ in range(10):
            clock.now += 3
            meter.advance(15)
    facts = ("60 of 200 images", "28 s left"), ("120 of 200 images", "16 s left")
    for message, told in zip(caplog.messages, facts, strict=True):
        assert tells(message, "features", "5 a second", *told)


def test_a_slow_loop_tells_its_rate_and_is_read_again(clock, caplog, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Stream(terminal=False))
    caplog.set_level(logging.INFO)
    with progress("linear head", 54, "fits") as meter:
        clock.now += 20
        meter.advance()
    (message,) = caplog.messages
    assert tells(message, "1 of 54 fits", "0.05 a second")
    assert read_progress(message) == Reading("linear head", 1 / 54, 1060.0)


def test_a_short_loop_says_nothing(clock, caplog, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Stream(terminal=False))
    caplog.set_level(logging.INFO)
    with progress("features", 2) as meter:
        clock.now += 9
        meter.advance(2)
    assert caplog.records == []


def test_a_quiet_log_shows_no_bar(monkeypatch, caplog):
    stream = Stream(terminal=True)
    monkeypatch.setattr(sys, "stderr", stream)
    caplog.set_level(logging.WARNING)
    with progress("features", 4) as meter:
        meter.advance(4)
    assert stream.getvalue() == ""


def test_a_terminal_shows_a_bar(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    stream = Stream(terminal=True)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("TERM", "xterm")
    with progress("features", 4, unit="rows") as meter:
        meter.advance()
        meter.advance(3)
    shown = stream.getvalue()
    assert "features" in shown
    assert "4/4" in shown
    assert "rows/s" in shown


def test_an_error_inside_gets_out_and_ends_the_bar(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    stream = Stream(terminal=True)
    monkeypatch.setattr(sys, "stderr", stream)
    with pytest.raises(RuntimeError, match="inside"), progress("features", 4):
        raise RuntimeError("inside")


@pytest.mark.parametrize(
    ("line", "reading"),
    [
        (
            "extract: train: 50 of 200 views, 12 a second, 13 s left",
            Reading("train", 0.25, 13.0),
        ),
        ("features: 200 of 200 images, 7.5 a second, 0 s left", Reading("features", 1.0, 0.0)),
        (
            "finetune: phase 1 of 2, epoch 3 of 4: train loss 0.5, val loss 0.4",
            Reading("phase 1 of 2, epoch 3 of 4", 0.375, None),
        ),
        (
            "finetune: phase 2 of 2, epoch 1 of 4: 30 of 60 batches, 2 a second, 15 s left",
            Reading("phase 2 of 2, epoch 1 of 4", 0.5625, None),
        ),
        ("Running stage 'extract':", None),
        ("evaluate: test accuracy 0.9 on 50 of 200 images", None),
    ],
)
def test_a_line_of_a_log_is_read_as_progress(line, reading):
    assert read_progress(line) == reading


def test_what_a_loop_writes_can_be_read_again(clock, caplog, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Stream(terminal=False))
    caplog.set_level(logging.INFO)
    with progress("features", 400, "views") as meter:
        clock.now += 20
        meter.advance(100)
    assert read_progress(f"extract: {caplog.messages[-1]}") == Reading("features", 0.25, 60.0)
