"""What a run says: one process speaks, and nothing that it prints can drive the terminal."""

import math
import os
import reprlib
import signal
import sys
import time

from runtime.distributed import rank


def printable(text: str, keep: str = "") -> str:
    """Text for the screen: unprintable characters are escaped (but for `keep`), so that data drives no terminal."""
    return "".join(
        char if char.isprintable() or char in keep else repr(char)[1:-1] for char in text
    )


def one_line(text: str, width: int = 160) -> str:
    """As `printable`, and no longer than a few lines of the screen."""
    return printable(text) if len(text) <= width else printable(text[:width]) + " ..."


def quoted(value: object) -> str:
    """Any value out of a file, for an error: however large or deeply nested it is, a short text."""
    return printable(reprlib.repr(value))


def escape_what_cannot_be_printed() -> None:
    """In a terminal that knows no é, and for file names that are not Unicode."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")


def log(text: str, start: str = "", end: str = "\n") -> None:
    """Print, as process 0, and nothing that drives the terminal: a file's name may hold anything. Where nobody reads (a
    closed terminal or pipe), the run is asked to save and stop."""
    if rank() != 0:
        return
    try:
        print(start + printable(text, keep="\n"), end=end, flush=True)
    except OSError:
        sys.stdout = open(os.devnull, "w")
        signal.raise_signal(signal.SIGTERM)


class LiveLine:
    """A line that is rewritten in place on a terminal, and printed every few seconds elsewhere."""

    SECONDS_BETWEEN_LINES = 5.0

    def __init__(self) -> None:
        self.printed_at = -math.inf

    def show(self, text: str, last: bool = False) -> None:
        if sys.stdout.isatty():
            log(text, start="\r\x1b[K", end="\n" if last else "")
        elif last or time.monotonic() - self.printed_at >= self.SECONDS_BETWEEN_LINES:
            self.printed_at = time.monotonic()
            log(text)


def fail(error: Exception | str) -> int:
    before = "\n" if sys.stdout.isatty() else ""
    print(f"{before}error: {printable(str(error))}", file=sys.stderr)
    return 2
