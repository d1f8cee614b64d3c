"""Records out of files: JSON Lines and JSON arrays, with the place of whatever is wrong in them."""

import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path

from chat_template import FORMS, Message, form_of, read_record
from runtime.console import printable
from runtime.files import decode_utf8, parse_json

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_raw(path: str | Path) -> Iterator[tuple[int, object]]:
    """(line, what stands there) for each record of a file: of JSON Lines the bytes of the line, for
    another process to parse; of one JSON array, which is read whole, the record itself. Raises
    ValueError (`file:line: reason`) for what is no UTF-8 or JSON, OSError for what is no file."""
    with open(path, "rb") as file:
        lines = (line.removeprefix(BYTE_ORDER_MARK).strip() for line in file)
        start = next(filter(None, lines), b"")
        file.seek(0)
        if start.startswith(b"["):
            yield from read_array(path, file.read().removeprefix(BYTE_ORDER_MARK))
            return
        for number, line in enumerate(file, 1):
            line = line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line
            if line.strip():
                yield number, line


def parse_raw(path: str | Path, number: int, raw: object) -> object:
    """The record in what `read_raw` gives. Raises as `read_raw`."""
    if not isinstance(raw, bytes):
        return raw
    return parse_json(path, number, decode_utf8(path, number, raw).strip())


def read_array(path: str | Path, data: bytes) -> Iterator[tuple[int, object]]:
    """Of one array, a record at a time, so that each has its line."""
    text, decoder, space = decode_utf8(path, 1, data), json.JSONDecoder(), re.compile(r"\s*")
    end, number, counted_to, wrong = text.index("[") + 1, 1, 0, None
    while not wrong:
        end = space.match(text, end).end()
        number, counted_to = number + text.count("\n", counted_to, end), end
        if text.startswith("]", end):
            break
        record, end = parse_json(path, number, text, functools.partial(decoder.raw_decode, idx=end))
        yield number, record
        end = space.match(text, end).end()
        if text.startswith(",", end):
            end = space.match(text, end + 1).end()
            if text.startswith("]", end):
                wrong = "a comma before the end of the array"
        elif not text.startswith("]", end):
            wrong = "expected , or ] after a record"
    number += text.count("\n", counted_to, end)
    if wrong or text[end + 1 :].strip():
        wrong = wrong or "something follows the array"
        raise ValueError(f"{path}:{number}: not valid JSON: {wrong}")


def read_conversation(path: str | Path, number: int, raw: object) -> tuple[dict, list[Message]]:
    """Record and conversation in what `read_raw` gives. Raises ValueError (`file:line: reason`)."""
    record = parse_raw(path, number, raw)
    try:
        return record, read_record(record)
    except ValueError as error:
        raise ValueError(f"{path}:{number}: {printable(str(error))}") from None


def read_conversations(path: str | Path) -> Iterator[tuple[int, dict, list[Message]]]:
    """(line, record, conversation) for each record of a file. Raises as `read_raw`."""
    for number, raw in read_raw(path):
        yield number, *read_conversation(path, number, raw)


def unused_keys(record: dict) -> set[str]:
    """The keys of a record that `read_record` does not look at."""
    form = form_of(record)
    return record.keys() - {*form, *FORMS[form]}
