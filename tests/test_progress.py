"""A bar in a terminal, lines anywhere else."""

from __future__ import annotations

import io
import os
import pty

import pytest
from engine_case import digits_loader, images, make_engine

from distillation.hooks import Hooks
from distillation.progress import Progress, epoch_line


def trained(stream) -> None:
    make_engine(
        digits_loader(64, 32),
        epochs=2,
        hooks=[Progress(stream)],
        valid_loaders={"test": [images(32)]},
    ).fit()


@pytest.fixture
def terminal(monkeypatch):
    """A pseudo-terminal: the stream to write to, and a function that reads what was shown."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    ours, theirs = pty.openpty()
    stream = os.fdopen(theirs, "w")

    def shown() -> str:
        stream.flush()
        os.set_blocking(ours, False)
        read = b""
        while True:
            try:
                read += os.read(ours, 65536)
            except BlockingIOError:
                return read.decode()

    yield stream, shown
    stream.close()
    os.close(ours)


def test_a_pipe_gets_one_line_an_epoch_and_no_escape_codes():
    stream = io.StringIO()
    trained(stream)
    lines = stream.getvalue().splitlines()
    assert [line.split("  ")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"]
    assert "\x1b" not in stream.getvalue()
    assert "accuracy.test" in lines[0]


def test_a_terminal_gets_a_bar_and_the_lines(terminal):
    stream, shown = terminal
    trained(stream)
    text = shown()
    assert "epoch 1/2  accuracy.test" in text
    assert "\x1b[" in text
    assert "━" in text
    assert "2/2" in text


def test_no_color_is_respected(terminal, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    stream, shown = terminal
    trained(stream)
    text = shown()
    assert "epoch 2/2  accuracy.test" in text
    assert "\x1b[3" not in text
    assert "\x1b[38" not in text


def test_a_dumb_terminal_gets_lines_only(terminal, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    stream, shown = terminal
    trained(stream)
    text = shown()
    assert text.count("\n") == 2
    assert "\x1b" not in text


def test_the_cursor_comes_back_after_an_error(terminal):
    stream, shown = terminal

    class Fails(Hooks):
        def on_batch_end(self, engine, batch):
            raise RuntimeError("of the user")

    with pytest.raises(RuntimeError, match="of the user"):
        make_engine([images(8)], epochs=1, hooks=[Progress(stream), Fails()]).fit()
    text = shown()
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1


def test_a_line_is_aligned_sorted_and_without_parameter_statistics():
    line = epoch_line(
        3, 12, {"loss.train": 0.5, "accuracy.test": 0.78126, "param.fc.weight.norm": 1.0}, 2.04
    )
    assert line == "epoch  3/12  accuracy.test 0.7813  loss.train 0.5000  2.0 s"
