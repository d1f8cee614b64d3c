"""runtime/console.py: what is printed drives no terminal, and harms nobody where it is not read."""

import contextlib
import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from runtime import console
from runtime.answers import show_conversations
from runtime.console import (
    LiveLine,
    accept_any_text,
    log,
    one_line,
    printable,
)
from runtime.session import StopSignals

ROOT = Path(console.__file__).resolve().parent.parent
DATA = ROOT / "data/tiny_instruct.jsonl"


@contextlib.contextmanager
def broken_pipe() -> Iterator[None]:
    """The standard output is a pipe whose reader is gone."""
    reader, writer = os.pipe()
    os.close(reader)
    before = sys.stdout
    with contextlib.suppress(BrokenPipeError), open(writer, "w") as sys.stdout:
        pipe = sys.stdout
        yield
        assert pipe is not sys.stdout
    sys.stdout = before


def test_where_nobody_reads_no_signal_is_raised():
    """Claim 19: the training loop asks, and saves, as after a signal; others go on unheard."""
    received = []
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        with StopSignals() as stop, broken_pipe():
            assert not hasattr(sys.stdout, "nobody_reads") and not stop.wanted_by_any()
            for _ in range(3):
                log("anybody there?")
            assert (
                hasattr(sys.stdout, "nobody_reads")
                and stop.wanted_by_any()
                and stop.status() == 143
            )
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == []


def test_a_closed_pipe_is_no_error(capsys):
    """`python chat_template.py FILE | head`: silence, in a process of its own, too, where Python
    writes out at its end what is left."""
    with broken_pipe():
        assert show_conversations([str(DATA)]) == 141
    assert capsys.readouterr().err == ""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, str(ROOT / "chat_template.py"), str(DATA)]
    ended = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (141, b"")


def test_whoever_reads_again_is_spoken_to(capsys):
    """A later run in the same process, with another output, is not stopped by the earlier one's."""
    with broken_pipe():
        log("lost")
        assert hasattr(sys.stdout, "nobody_reads")
    assert not hasattr(sys.stdout, "nobody_reads")
    log("heard")
    assert capsys.readouterr().out == "heard\n"


def test_signals_are_the_main_threads_business():
    """Claim 22: in another thread, which may not set handlers, there are none, and the others'
    stay."""
    before = signal.getsignal(signal.SIGTERM)
    found = []

    def enter() -> None:
        with StopSignals() as stop:
            found.append((signal.getsignal(signal.SIGTERM), stop.wanted_by_any()))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [(before, False)]
    with StopSignals() as stop:
        assert signal.getsignal(signal.SIGTERM) == stop.receive
    assert signal.getsignal(signal.SIGTERM) == before


def test_text_drives_no_terminal(capsys):
    """Whatever it is, and however long."""
    wild = "\x1b[2J\x07\r\u202e\x9b1m\ud800 é漢\n\t"
    assert printable(wild) == "\\x1b[2J\\x07\\r\\u202e\\x9b1m\\ud800 é漢\\n\\t"
    assert printable(wild, keep="\n") == printable(wild).replace("\\n", "\n")
    assert one_line("a" * 160) == "a" * 160 and one_line("a" * 161) == "a" * 160 + " ..."
    log("a\x1b[2J\nb")
    assert capsys.readouterr().out == "a\\x1b[2J\nb\n"


def test_one_process_speaks(monkeypatch, capsys):
    """Claim 10."""
    monkeypatch.setenv("RANK", "1")
    log("one of many")
    assert capsys.readouterr().out == ""


def test_in_a_pipe_a_line_every_few_seconds(monkeypatch, capsys):
    """And the last one in any case."""
    now = 100.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    live = LiveLine()
    for number in range(20):
        live.show(f"{number}", last=number == 19)
        now += 1
    assert capsys.readouterr().out.split() == ["0", "5", "10", "15", "19"]


def test_any_text_comes_in_and_goes_out(tmp_path: Path, monkeypatch):
    """What is no text is read, so that it can be refused; what the terminal does not know is
    escaped. An input that was read from before, or is no file, stays as it is."""
    (tmp_path / "in").write_bytes(b"first\n\xff\n")
    for n_read in (0, 1):
        with open(tmp_path / "in", encoding="utf-8", errors="replace") as source:
            with open(tmp_path / "out", "w", encoding="ascii") as out:
                monkeypatch.setattr(sys, "stdin", source)
                monkeypatch.setattr(sys, "stdout", out)
                for _ in range(n_read):
                    source.readline()
                accept_any_text()
                accept_any_text()
                print("é", end="")
            read = source.read()
        assert read == ("\ufffd\n" if n_read else "first\n\udcff\n")
        assert (tmp_path / "out").read_text() == "\\xe9"
    monkeypatch.undo()
    for nothing in (None, io.StringIO()):
        monkeypatch.setattr(sys, "stdin", nothing)
        accept_any_text()
