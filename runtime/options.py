"""A command line made from a dataclass of options, and a check of their values wherever they come from."""

import argparse
import dataclasses
import functools
import math
import typing
from collections.abc import Iterable, Sequence
from dataclasses import field

from runtime.console import quoted


def option(
    default, group: str, help: str, choices: Iterable[str] | None = None, least: float | None = None
):
    metadata = {"group": group, "help": help, "choices": choices, "least": least}
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def parse_arguments(options: type, argv: Sequence[str] | None) -> tuple:
    """The configuration, and the names of those fields that the command line gives."""
    wide = functools.partial(argparse.HelpFormatter, max_help_position=38, width=118)
    parser = argparse.ArgumentParser(
        description=options.__doc__,
        argument_default=argparse.SUPPRESS,
        formatter_class=wide,
    )
    groups = {}
    for option_field in dataclasses.fields(options):
        metadata, default = option_field.metadata, getattr(options(), option_field.name)
        group = groups.setdefault(metadata["group"], parser.add_argument_group(metadata["group"]))
        value_type = (typing.get_args(option_field.type) or (option_field.type,))[
            0
        ]  # list[str] -> str
        arguments = {"help": metadata["help"]}
        if value_type is bool:
            arguments["action"] = argparse.BooleanOptionalAction
        else:
            arguments |= {"type": value_type, "choices": metadata["choices"]}
            if isinstance(default, list):  # `--data a --data b` means both, as `--data a b` does
                arguments |= {"nargs": "+", "action": "extend"}
            arguments["metavar"] = (
                None if metadata["choices"] else {str: "NAME", int: "N", float: "X"}[value_type]
            )
            if default not in (None, []):
                arguments["help"] += (
                    f" ({' '.join(default) if isinstance(default, list) else default})"
                )
        group.add_argument("--" + option_field.name.replace("_", "-"), **arguments)
    given = vars(parser.parse_args(argv))
    return options(**given), set(given)


def check_ranges(config) -> None:
    """Raises ValueError for a value that the command line would not take: out of range, or out of a hostile file."""
    for option_field in dataclasses.fields(config):
        value, metadata = getattr(config, option_field.name), option_field.metadata
        types = typing.get_args(option_field.type) or (
            option_field.type,
        )  # list[str] -> str; int | None -> both
        types += (int,) if float in types else ()
        values = value if isinstance(getattr(type(config)(), option_field.name), list) else [value]
        good = isinstance(values, list) and all(isinstance(item, types) for item in values)
        if good and value is not None and metadata["choices"]:
            good = value in metadata["choices"]
        if good and value is not None and metadata["least"] is not None:
            good = metadata["least"] <= value < (1 if "dropout" in option_field.name else math.inf)
        if not good:
            raise ValueError(
                f"--{option_field.name.replace('_', '-')} {quoted(value)} is out of range"
            )
