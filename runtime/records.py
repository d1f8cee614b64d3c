"""Records out of files: other people's files and forms, and the place of whatever is wrong in them.

an argument --data_files--> files --read_raw--> records --read_conversation--> [Message, ...]
"""

import contextlib
import functools
import gzip
import json
import re
import shutil
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import chat_template as core
from chat_template import FORMS, TEMPLATES, Message, form_of, given, read_record, read_turn
from runtime.console import printable
from runtime.distributed import world_size
from runtime.files import decode_utf8, find_file, parse_json

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
PANDAS = "in Python, pandas.{}('FILE').to_json('data.jsonl', orient='records', lines=True)"
UTF16 = ("UTF-16 text", "iconv -f UTF-16 -t UTF-8 'FILE' > data.jsonl")
KINDS = {  # the first bytes of files that are not read: what they are, and how to convert them
    b"PAR1": ("a parquet file", PANDAS.format("read_parquet")),
    b"PK\3\4": ("a zip archive or an Excel file", "unzip 'FILE'"),
    b"\x28\xb5\x2f\xfd": ("packed by zstd", "zstd -d 'FILE'"),
    b"BZh": ("packed by bzip2", "bunzip2 'FILE'"),
    b"\xfd7zXZ": ("packed by xz", "unxz 'FILE'"),
    b"\xff\xfe": UTF16,
    b"\xfe\xff": UTF16,
}
CSV = ("a CSV file", PANDAS.format("read_csv"))
OBJECT = ("a JSON object over several lines", "python -m json.tool --compact 'FILE' data.jsonl")


def data_files(argument: str | Path) -> list[Path]:
    """The file that an argument names, or those of a folder; of a pipe (`-`: standard input) a
    copy. Raises OSError where there is none, ValueError where several processes would read a pipe.
    """
    path = Path("-") if str(argument) == "-" else find_file(argument)
    if str(path) == "-" or path.is_fifo() or path.is_char_device():
        return [Path(copy_of_pipe(str(path)).name, "stdin")]
    if not path.is_dir():
        return [path]
    named = re.compile(r"[^.].*\.jsonl?(\.gz)?", re.IGNORECASE).fullmatch
    files = [file for file in sorted(path.iterdir()) if named(file.name) and file.is_file()]
    if not files:
        raise FileNotFoundError(f"{path}: a folder without .json or .jsonl files")
    return files


@functools.cache  # what has been read is gone from the pipe; the copy goes with this process
def copy_of_pipe(name: str) -> tempfile.TemporaryDirectory:
    if world_size() > 1:
        raise ValueError(f"{name}: several processes cannot share a pipe; write it to a file")
    folder = tempfile.TemporaryDirectory(prefix="records-")
    with open("/dev/stdin" if name == "-" else name, "rb") as pipe:
        with open(Path(folder.name, "stdin"), "wb") as copy:
            shutil.copyfileobj(pipe, copy)
    return folder


@contextlib.contextmanager
def open_records(path: str | Path) -> Iterator[BinaryIO]:
    """The bytes of a file, out of gzip, too. Raises OSError; ValueError where that is damaged."""
    with open(path, "rb") as file:
        opened = gzip.open if file.read(2) == b"\x1f\x8b" else open
    try:
        with opened(path, "rb") as file:
            yield file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}:1: a damaged gzip file ({error})") from None


def check_kind(path: str | Path, number: int, line: bytes) -> None:
    """Raises ValueError where the first line that is not empty shows a file of another kind."""
    found = [kind for start, kind in KINDS.items() if line.startswith(start)]
    if re.fullmatch(rb"\{(.*(\{|\[|[^}],))?", line):  # it goes on on the next one
        found = [OBJECT]
    elif re.fullmatch(rb'"?[\w ]+"?([,;\t]"?[\w .-]+"?)+', line) or str(path).endswith(".csv"):
        found = found or [CSV] * (line[:1] not in (b"{", b"["))
    for what, how in found:
        how = f"not a record a line, or one array; to convert it: {how.replace('FILE', str(path))}"
        raise ValueError(f"{path}:{number}: this is {what}, {how}")


def read_raw(path: str | Path) -> Iterator[tuple[int, object]]:
    """(line, what stands there) for each record of a file: of JSON Lines the line's bytes, of one
    JSON array the record itself. Raises ValueError (`file:line: reason`), OSError."""
    with open_records(path) as file:
        start = len(BYTE_ORDER_MARK) if file.read(3) == BYTE_ORDER_MARK else 0
        file.seek(start)
        lines = ((number, line.strip()) for number, line in enumerate(file, 1) if line.strip())
        (number, first), (_, second) = next(lines, (1, b"")), next(lines, (1, b""))
        check_kind(path, number, first)
        file.seek(start)
        is_lines = first.endswith(b"]") and second.startswith((b"[", b"{"))  # each a list of turns
        if first.startswith(b"[") and not is_lines:
            yield from read_array(path, file.read())
        else:
            yield from ((number, line) for number, line in enumerate(file, 1) if line.strip())


def read_array(path: str | Path, data: bytes) -> Iterator[tuple[int, object]]:
    """Of one array, a record at a time, so that each has its line; of turns, one record."""
    text, decoder, turns = decode_utf8(path, 1, data), json.JSONDecoder(), []
    mark, after = re.match(r"\s*(\[\s*\]|\[)\s*", text), re.compile(r"\s*([,\]]?)\s*")
    number = 1 + text.count("\n", 0, mark.end())
    while not mark[1].endswith("]"):
        parse = functools.partial(decoder.raw_decode, idx=mark.end())
        record, end = parse_json(path, number, text, parse)
        if is_turn(record):
            turns.append(record)
        else:
            yield number, record
        start, mark = mark.end(), after.match(text, end)
        number += text.count("\n", start, mark.end())
        if not mark[1]:
            raise ValueError(f"{path}:{number}: not valid JSON: expected , or ] after a record")
    if mark.end() < len(text):
        raise ValueError(f"{path}:{number}: not valid JSON: something follows the array")
    if turns:
        yield 1, turns


def read_conversation(
    path: str | Path, number: int, raw: object, reasoning: str = "drop"
) -> tuple[dict, list[Message]]:
    """Record, of a plain form, and conversation in what `read_raw` gives. Raises ValueError
    (`file:line: reason`)."""
    record = raw
    if isinstance(raw, bytes):
        record = parse_json(path, number, decode_utf8(path, number, raw).strip())
    try:
        record = plain(record)
        messages = read_record(record)
    except ValueError as error:
        raise ValueError(f"{path}:{number}: {printable(str(error))}{guess(record)}") from None
    if reasoning == "drop":
        messages = [replace(m, reasoning="") if m.reasoning else m for m in messages]
    return record, messages


def read_conversations(path: str | Path) -> Iterator[tuple[int, dict, list[Message]]]:
    """(line, record, conversation) for each record of a file. Raises as `read_raw`."""
    for number, raw in read_raw(path):
        yield number, *read_conversation(path, number, raw)


def has_form(record: object) -> bool:
    return isinstance(record, dict) and any(record.keys() >= {*form} for form in FORMS)


def is_turn(value: object) -> bool:
    has_role = isinstance(value, dict) and any(key in value for key in core.ROLE)
    return has_role and not has_form(value)


def are_turns(value: object) -> bool:
    return isinstance(value, list) and value != [] and all(map(is_turn, value))


def plain(record: object) -> object:
    """The record in a form that `read_record` knows, made of a list of turns; null, NaN or [] for
    what is not there; prompt and completion as turns; Alpaca with a history. Raises ValueError."""
    record = {"messages": record} if isinstance(record, list) else record
    items = record.items() if isinstance(record, dict) else ()
    there = {key: v for key, v in items if v is not None and v != [] and v == v}
    record = there if has_form(there) else record
    form = form_of(record)
    first, last, used = record[form[0]], record[form[-1]], form
    if "prompt" in form and (are_turns(first) or are_turns(last)):
        asked = first if are_turns(first) else [{"role": "user", "content": first}]
        asked = [turn | {"train": read_turn(turn).role != "assistant"} for turn in asked]
        turns = asked + (last if are_turns(last) else [{"role": "assistant", "content": last}])
    elif "instruction" in form and given(record, "history"):
        used = (*form, "input", "history")
        asked, answer = read_record({key: record[key] for key in used[:3] if key in record})
        history, turns = record["history"], []
        pairs = history if isinstance(history, list) else [history]
        for pair in (*pairs, [asked.content, answer.content]):
            if not isinstance(pair, list) or len(pair) != 2:
                raise ValueError("history must be a list of [question, answer]")
            turns += [{"role": r, "content": t} for r, t in zip(("user", "assistant"), pair)]
    else:
        return record
    return {key: value for key, value in record.items() if key not in used} | {"messages": turns}


def guess(record: object) -> str:
    """What a record that cannot be read looks like, and the way out."""
    fields = record if isinstance(record, dict) else {}
    is_table = len(fields) > 1 and all(isinstance(v, (list, dict)) for v in fields.values())
    several = [isinstance(fields.get(key), list) for key in ("output", "completion")]
    if fields.keys() & {"chosen", "rejected"} or any(several) and not is_table:
        return "; is this preference data? Then keep the better answer alone, as output"
    for key, value in fields.items():
        if isinstance(value, list) and value and has_form(value[0]):
            return f"; jq -c '.[{json.dumps(key)[:80]}][]' FILE > data.jsonl takes the records out"
    how = PANDAS.format("read_json").removeprefix("in Python, ")
    return f"; is this a table by columns? {how} writes its rows" if is_table else ""


# What is told before training

DOCUMENTS = ("plain documents, of which all text is learned",)
EMPTY = ("empty answers, from which the model learns to stop at once",)
DROPPED = ("turns whose reasoning is dropped; --reasoning keep trains on it",)
MARKED = ("records with a template's markers as text, which stay text; give chats as messages",)
MARKERS = {form.before["assistant"].strip() for form in TEMPLATES.values()}
MARKERS |= {name for form in TEMPLATES.values() for name in form.special_tokens if len(name) > 4}
MARKERS |= {"[INST]", "### Instruction:"}


def notes_of(record: dict, messages: list[Message]) -> Counter:
    """How often to say each of the above of what `read_conversation` gives; and of each ("keys not
    used", key), "turn.key" those of turns."""
    form = form_of(record)
    turns = record[form[0]] if are_turns(record[form[0]]) else []
    unused = given(record, *(record.keys() - {*form, *FORMS[form]}))
    for turn in turns:
        used = {*core.WEIGHT, *core.INVERSE_WEIGHT}
        for names in (core.ROLE, core.CONTENT, core.TOOL_CALLS, core.REASONING):
            used |= {*[*given(turn, *names), *(name for name in names if name in turn)][:1]}
        unused += [f"turn.{key}" for key in given(turn, *(turn.keys() - used))]
    notes = Counter(("keys not used", key) for key in unused)
    notes[DOCUMENTS] = int(form == ("text",))
    notes[MARKED] = int(any(marker in m.content for m in messages for marker in MARKERS))
    notes[DROPPED] = sum(bool(given(turn, *core.REASONING)) for turn in turns)
    notes[DROPPED] -= sum(bool(m.reasoning) for m in messages)
    answers = [m for m in messages if m.role == "assistant" and m.weight > 0]
    notes[EMPTY] = sum(not (m.content.strip() or m.tool_calls or m.reasoning) for m in answers)
    return +notes
