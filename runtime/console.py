"""What a run says: one process speaks, and nothing that it prints can drive the terminal."""

import contextlib
import os
import reprlib
import sys
import time

from runtime.distributed import rank


def printable(text: str, keep: str = "") -> str:
    """Text for the screen, what cannot be printed escaped, but for `keep`."""
    return "".join(c if c.isprintable() or c in keep else repr(c)[1:-1] for c in text)


def one_line(text: str, width: int = 160) -> str:
    """As `printable`, and no longer than a few lines of the screen."""
    return printable(text) if len(text) <= width else printable(text[:width]) + " ..."


def quoted(value: object) -> str:
    """Any value out of a file, for an error: however large or deeply nested it is, a short text."""
    return printable(reprlib.repr(value))


def accept_any_text() -> None:
    """Print in a terminal that knows no é, too; read bytes that are no text, to refuse them."""
    for stream, errors in ((sys.stdout, "backslashreplace"), (sys.stdin, "surrogateescape")):
        with contextlib.suppress(AttributeError, OSError):  # a notebook's, or one half read
            stream.reconfigure(errors=errors)


def nobody_reads() -> bool:
    """Whether `log` has found that whoever read the output is gone."""
    return hasattr(sys.stdout, "nobody_reads")


def log(text: str, start: str = "", end: str = "\n") -> None:
    """Print, as process 0, and nothing that drives the terminal: a file's name may hold anything.
    Where nobody reads any more (a closed terminal or pipe), the training loop saves and stops."""
    if rank() == 0:
        try:
            print(start + printable(text, keep="\n"), end=end, flush=True)
        except OSError:
            sys.stdout = open(os.devnull, "w")
            sys.stdout.nobody_reads = True


class LiveLine:
    """A line that is rewritten in place on a terminal, and printed every 5 seconds elsewhere."""

    printed_at = float("-inf")

    def show(self, text: str, last: bool = False) -> None:
        if sys.stdout.isatty():
            log(text, start="\r\x1b[K", end="\n" if last else "")
        elif last or time.monotonic() - self.printed_at >= 5:
            self.printed_at = time.monotonic()
            log(text)


def fail(error: Exception | str) -> int:
    """One line on stderr; gives the exit status."""
    before = "\n" if sys.stdout.isatty() else ""
    print(f"{before}error: {printable(str(error))}", file=sys.stderr)
    return 2
