"""A command line made from a dataclass of options, and a check of their values from anywhere."""

import argparse
import dataclasses
import functools
import math
import typing
from collections.abc import Iterable, Sequence

from runtime.console import log, quoted


def option(default, help: str, choices: Iterable[str] | None = None, **more):
    """A field of a dataclass of options. `least`: what a number must be at least; with `group`, it
    begins a part of the help text."""
    metadata = {"help": help, "choices": choices, **more}
    if isinstance(default, list):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


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
        default = " ".join(one.default_factory()) if is_list else one.default
        shown = "" if default in (None, "") or kind is bool else f" ({default})"
        if "group" in one.metadata:
            group = parser.add_argument_group(one.metadata["group"])
        if kind is bool:
            how = {"action": argparse.BooleanOptionalAction}
        else:
            choices = one.metadata["choices"]
            metavar = None if choices else {str: "NAME", int: "N", float: "X"}[kind]
            how = {"type": kind, "choices": choices, "metavar": metavar}
        if is_list:  # `--data a --data b` means both, as `--data a b` does
            how |= {"nargs": "+", "action": "extend"}
        group.add_argument(flag(one.name), help=one.metadata["help"] + shown, **how)
    given = vars(parser.parse_args(argv))
    return options(**given), set(given)


def check_ranges(config) -> None:
    """Raises ValueError for a value that the command line would not take: out of range, or out of a
    hostile file."""
    for one in dataclasses.fields(config):
        value, (types, is_list) = getattr(config, one.name), types_of(one)
        items = value if is_list else [value]
        good = isinstance(items, list) and all(isinstance(item, types) for item in items)
        if good and value is not None and one.metadata["choices"]:
            good = value in one.metadata["choices"]
        elif good and value is not None and "least" in one.metadata:
            good = one.metadata["least"] <= value < (1 if "dropout" in one.name else math.inf)
        if not good:
            raise ValueError(f"{flag(one.name)} {quoted(value)} is out of range")


def merge_options(config, given: set[str], before, changeable: set[str]):
    """The options of a run to resume, with those changed that may be. Raises ValueError where the
    command line gives another value for one that would change the numbers."""
    new = {name: getattr(config, name) for name in given}
    changed = {name for name in given - changeable if new[name] != getattr(before, name)}
    if changed:
        flags = ", ".join(map(flag, sorted(changed)))
        how = f"this run has other values of {flags}; leave them out to resume it"
        raise ValueError(f"{config.resume}: {how}")
    if new.get("steps", before.steps) != before.steps:
        what = f"{config.steps:,} steps: this is not the run that had them from the start"
        log(f"schedule  computed anew for {what}")
    return dataclasses.replace(before, **new)
