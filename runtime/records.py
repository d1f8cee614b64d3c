"""Records out of files: JSON Lines and JSON arrays, with the place of whatever is wrong in them."""

import functools
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

from chat_template import FORMS, Message, form_of, read_record
from runtime.console import printable
from runtime.files import decode_utf8, find_file, parse_json

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_raw(path: str | Path) -> Iterator[tuple[int, object]]:
    """(line, what stands there) for each record of a file: of JSON Lines the bytes of the line, so that somebody else
    can parse them (dataset.py's processes do); of one JSON array, which is read whole, the record itself.

    Raises ValueError (`file:line: reason`) for invalid UTF-8 and invalid JSON, OSError where the file cannot be read.
    """
    with open(path, "rb") as file:
        lines = (line.removeprefix(BYTE_ORDER_MARK).strip() for line in file)
        start = next(filter(None, lines), b"")
        file.seek(0)
        if start.startswith(b"["):
            yield from read_array(path, file.read())
            return
        for number, line in enumerate(file, 1):
            line = line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line
            if line.strip():
                yield number, line


def parse_raw(path: str | Path, number: int, raw: object) -> object:
    """The record in what `read_raw` gives. Raises as `read_raw`."""
    return (
        parse_json(path, number, decode_utf8(path, number, raw).strip())
        if isinstance(raw, bytes)
        else raw
    )


def read_array(path: str | Path, data: bytes) -> Iterator[tuple[int, object]]:
    text = decode_utf8(path, 1, data.removeprefix(BYTE_ORDER_MARK))
    del data
    decoder, number, counted_to, end = json.JSONDecoder(), 1, 0, text.index("[") + 1
    separator = re.compile(r"\s*")
    while True:
        end = separator.match(text, end).end()
        number, counted_to = number + text.count("\n", counted_to, end), end
        if text.startswith("]", end):
            break
        record, end = parse_json(path, number, text, functools.partial(decoder.raw_decode, idx=end))
        yield number, record
        end = separator.match(text, end).end()
        if text.startswith(",", end):
            end = separator.match(text, end + 1).end()
            if text.startswith("]", end):
                number += text.count("\n", counted_to, end)
                raise ValueError(
                    f"{path}:{number}: not valid JSON: a comma before the end of the array"
                )
        elif not text.startswith("]", end):
            number += text.count("\n", counted_to, end)
            raise ValueError(f"{path}:{number}: not valid JSON: expected , or ] after a record")
    if text[end + 1 :].strip():
        raise ValueError(f"{path}:{number}: not valid JSON: something follows the array")


def read_conversation(path: str | Path, number: int, raw: object) -> tuple[dict, list[Message]]:
    """The record and the conversation in what `read_raw` gives. Raises ValueError, `file:line: reason`."""
    record = parse_raw(path, number, raw)
    try:
        return record, read_record(record)
    except ValueError as error:
        raise ValueError(f"{path}:{number}: {printable(str(error))}") from None


def read_conversations(path: str | Path) -> Iterator[tuple[int, dict, list[Message]]]:
    """(line, record, conversation) for each record of a file. Raises ValueError, `file:line: reason`."""
    for number, raw in read_raw(path):
        yield number, *read_conversation(path, number, raw)


def unused_keys(record: dict) -> set[str]:
    """The keys of a record that `read_record` does not look at."""
    form = form_of(record)
    return record.keys() - {*form, *FORMS[form]}


def split_weight(argument: str) -> tuple[Path, float]:
    """ "b.jsonl:0.3" -> (b.jsonl, 0.3); without a weight, 1."""
    name, colon, weight = argument.rpartition(":")
    if not colon or Path(argument).exists():
        return find_file(argument), 1.0
    try:
        value = float(weight)
    except ValueError:
        return find_file(argument), 1.0
    if not 0 < value < math.inf:
        raise ValueError(f"{argument}: the weight of a file must be above 0")
    return find_file(name), value
