"""The terminal, and the command line: options out of a dataclass, their values checked."""

import argparse
import contextlib
import dataclasses
import functools
import os
import reprlib
import sys
import time
import typing
from collections.abc import Iterable, Sequence

from runtime.distributed import rank
from runtime.files import from_anywhere


def printable(text: str, keep: str = "") -> str:
    """Text for the screen, what cannot be printed escaped, but for `keep`."""
    return "".join(c if c.isprintable() or c in keep else repr(c)[1:-1] for c in text)


def one_line(text: str, width: int = 160) -> str:
    """As `printable`, and no longer than a few lines of the screen."""
    return printable(text) if len(text) <= width else printable(text[:width]) + " ..."


def accept_any_text() -> None:
    """Print in a terminal that knows no é, too; read bytes that are no text, to refuse them."""
    for stream, errors in ((sys.stdout, "backslashreplace"), (sys.stdin, "surrogateescape")):
        with contextlib.suppress(AttributeError, OSError):  # a notebook's, or one half read
            stream.reconfigure(errors=errors)


def log(text: str, start: str = "", end: str = "\n") -> None:
    """Print, as process 0. Where nobody reads any more (a closed pipe), `StopSignals` will know."""
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
    """One line on stderr, and the exit status. Of a closed pipe (`| head`): none, and SIGPIPE's."""
    if isinstance(error, BrokenPipeError):
        sys.stdout = open(os.devnull, "w")
        return 141
    before = "\n" if sys.stdout.isatty() else ""
    print(f"{before}error: {printable(str(error))}", file=sys.stderr)
    return 2


def option(default, help: str, choices: Iterable[str] | None = None, **more):
    """A field of a dataclass of options. `least`: of a number; `group`: of help, begins here."""
    make = default.copy if isinstance(default, list) else lambda: default
    metadata = {"help": help, "choices": choices, **more}
    return dataclasses.field(default_factory=make, metadata=metadata)


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def types_of(one: dataclasses.Field) -> tuple[tuple[type, ...], bool]:
    """What its value may be, or the items of a list; and whether it is a list."""
    types = typing.get_args(one.type) or (one.type,)
    return types + (int,) * (float in types), typing.get_origin(one.type) is list


def parse_arguments(options: type, argv: Sequence[str] | None) -> tuple:
    """The options, and the names of those that the command line gives."""
    form = functools.partial(argparse.HelpFormatter, max_help_position=38, width=118)
    about = {"description": options.__doc__, "formatter_class": form}
    group = parser = argparse.ArgumentParser(argument_default=argparse.SUPPRESS, **about)
    for one in dataclasses.fields(options):
        (kind, *_), is_list = types_of(one)
        default = " ".join(one.default_factory()) if is_list else one.default_factory()
        shown = "" if default in (None, "") or kind is bool else f" ({default})"
        if "group" in one.metadata:
            group = parser.add_argument_group(one.metadata["group"])
        choices, metavars = one.metadata["choices"], {str: "NAME", int: "N", float: "X"}
        how = {"type": kind, "choices": choices, "metavar": None if choices else metavars.get(kind)}
        if kind is bool:
            how = {"action": argparse.BooleanOptionalAction}
        if is_list:  # `--data a --data b` means both, as `--data a b` does
            how |= {"nargs": "+", "action": "extend"}
        group.add_argument(flag(one.name), help=one.metadata["help"] + shown, **how)
    given = vars(parser.parse_args(argv))
    return options(**given), set(given)


def check_ranges(config) -> None:
    """Raises ValueError for a value that the command line would not take."""
    for one in dataclasses.fields(config):
        value, (types, is_list) = getattr(config, one.name), types_of(one)
        items = value if is_list else [value]
        good = isinstance(items, list) and all(isinstance(item, types) for item in items)
        if good and value is not None and one.metadata["choices"]:
            good = value in one.metadata["choices"]
        elif good and value is not None and "least" in one.metadata:
            good = one.metadata["least"] <= value < (1 if "dropout" in one.name else float("inf"))
        if not good:
            short = printable(reprlib.repr(value))  # a file's may be large, or deeply nested
            raise ValueError(f"{flag(one.name)} {short} is out of range")


def lasting(config) -> dict:
    """The options as a checkpoint holds them, with names of files that are right in any folder."""
    files = {name: [*map(from_anywhere, getattr(config, name))] for name in ("data", "val_data")}
    return dataclasses.asdict(dataclasses.replace(config, resume=None, overwrite=False, **files))


def merge_options(config, given: set[str], before, changeable: set[str]):
    """The options `before`, changed as `given`. Raises ValueError where that changes numbers."""
    new = {name: getattr(config, name) for name in given}
    changed = {name for name in given - changeable if new[name] != getattr(before, name)}
    if changed:
        flags = ", ".join(map(flag, sorted(changed)))
        how = f"leave them out (more epochs: --steps), or start anew with --init {config.resume}"
        raise ValueError(f"{config.resume}: this run has other values of {flags}; {how}")
    if new.get("steps", before.steps) != before.steps:
        log(f"schedule  computed anew: not the run that had {config.steps:,} steps from the start")
    return dataclasses.replace(before, **new)
