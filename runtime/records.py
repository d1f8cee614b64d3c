"""Records out of files, other people's forms made into the core's; their tokens, as flat arrays (of
large files once); and the data of a run. Whatever is wrong in a file is told with its line.

an argument --data_files--> files --read_raw--> records --read_conversation--> [Message, ...]
--Renderer--> ids and loss mask --build_dataset--> Dataset --read_data--> Data
"""

import contextlib
import functools
import gzip
import hashlib
import itertools
import json
import os
import re
import shutil
import tempfile
import time
import zipfile
import zlib
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

import chat_template as core
import tokenizer
from chat_template import FORMS, TEMPLATES, Message, form_of, given, read_record, read_turn
from runtime.console import LiveLine, log, one_line, printable
from runtime.distributed import world_size
from runtime.files import decode_utf8, find_file, parse_json, replacing

COLUMNS = "ids", "loss_mask", "offsets", "sources"
LARGE = 2**23  # bytes of files from which on the cache keeps their tokens
LONGEST = 8192  # tokens of a conversation, where neither an option nor the context says less
KEPT = 6  # how many data sets stay in the cache, those that were used last
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
PANDAS = "in Python, pandas.{}('FILE').to_json('data.jsonl', orient='records', lines=True)"
CSV = ("a CSV file", PANDAS.format("read_csv"))
OBJECT = ("a JSON object over several lines", "python -m json.tool --compact 'FILE' data.jsonl")
KINDS = {  # first lines of files that are not read: what these are, and how to convert them
    rb"PAR1": ("a parquet file", PANDAS.format("read_parquet")),
    rb"PK\x03\x04": ("a zip archive or an Excel file", "unzip 'FILE'"),
    rb"\x28\xb5\x2f\xfd": ("packed by zstd", "zstd -d 'FILE'"),
    rb"BZh": ("packed by bzip2", "bunzip2 'FILE'"),
    rb"\xfd7zXZ": ("packed by xz", "unxz 'FILE'"),
    rb"\xff\xfe|\xfe\xff": ("UTF-16 text", "iconv -f UTF-16 -t UTF-8 'FILE' > data.jsonl"),
    rb"\{(.*(\{|\[|[^}],))?$": OBJECT,  # it goes on on the next line
    rb'"?[\w ]+"?([,;\t]"?[\w .-]+"?)+$': CSV,
}


def data_files(argument: str | Path) -> list[Path]:
    """The file that an argument names, those of a folder, or a copy of a pipe (`-`: what is typed).
    Raises OSError where there is none, ValueError where several processes would read a pipe."""
    path = find_file("/dev/stdin" if str(argument) == "-" else argument)
    if str(path) == "/dev/stdin" or path.is_fifo() or path.is_char_device():
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
    with open(name, "rb") as pipe, open(Path(folder.name, "stdin"), "wb") as copy:
        shutil.copyfileobj(pipe, copy)
    return folder


@contextlib.contextmanager
def open_records(path: str | Path) -> Iterator[BinaryIO]:
    """The bytes of a file, out of gzip, too. Raises OSError; ValueError where that is damaged."""
    try:
        with open(path, "rb") as file:
            yield gzip.open(file) if file.peek(2).startswith(b"\x1f\x8b") else file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}:1: a damaged gzip file ({error})") from None


def check_kind(path: str | Path, number: int, line: bytes) -> None:
    """Raises ValueError where the first line that is not empty shows a file of another kind."""
    found = [kind for beginning, kind in KINDS.items() if re.match(beginning, line)]
    if str(path).endswith(".csv") and not line.startswith((b"{", b"[")):
        found.append(CSV)
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
    while mark[1] in ("[", ","):
        parse = functools.partial(decoder.raw_decode, idx=mark.end())
        record, end = parse_json(path, number, text, parse)
        if is_turn(record):
            turns.append(record)
        else:
            yield number, record
        start, mark = mark.end(), after.match(text, end)
        number += text.count("\n", start, mark.end())
    if not mark[1] or mark.end() < len(text):
        what = "something follows the array" if mark[1] else "expected , or ] after a record"
        raise ValueError(f"{path}:{number}: not valid JSON: {what}")
    if turns:
        yield 1, turns


def read_conversation(
    path: str | Path, number: int, raw: object, reasoning: str = "drop"
) -> tuple[dict, list[Message]]:
    """Record, of a plain form, and conversation. Raises ValueError (`file:line: reason`)."""
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
    return f"; a table by columns? {PANDAS.format('read_json')} writes its rows" if is_table else ""


# What is told before training

DOCUMENTS = ("documents without turns, of which all text is learned",)
EMPTY = ("empty answers, from which the model learns to stop at once",)
DROPPED = ("turns whose reasoning is dropped; --reasoning keep trains on it",)
MARKED = ("records with a template's markers as text, which stay text; give chats as messages",)
MARKERS = {form.before["assistant"].strip() for form in TEMPLATES.values()}
MARKERS |= {name for form in TEMPLATES.values() for name in form.special_tokens if len(name) > 4}
MARKERS |= {"[INST]", "### Instruction:"}


def notes_of(record: dict, messages: list[Message]) -> Counter:
    """How often to tell each of the above, and ("keys not used", key); of a turn, "turn.key"."""
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


# Tokens


@dataclass
class Dataset:
    """Conversations as flat arrays; conversation i is `[offsets[i]:offsets[i + 1]]`."""

    ids: np.ndarray  # (total tokens,) int32
    loss_mask: np.ndarray  # (total tokens,) float32: a token's weight in the loss; a first one's: 0
    offsets: np.ndarray  # (conversations + 1,) int64
    sources: np.ndarray  # (conversations, 2) int64: which file, which of its records

    def __post_init__(self) -> None:
        self.sources = self.sources.reshape(-1, 2)  # in files it is flat, like the others
        self.lengths = np.diff(self.offsets)  # tokens of each conversation, (conversations,) int64
        # The supervised ones, each counted with its weight, (conversations,) float64.
        self.n_supervised = np.add.reduceat(self.loss_mask, self.offsets[:-1], dtype=np.float64)
        supervised = self.loss_mask > 0  # a byte each, and only weights below 1 in full
        below_1 = np.flatnonzero(supervised & (self.loss_mask < 1))
        weights, digest = self.loss_mask[below_1], hashlib.sha256()  # of all the contents
        for part in (self.ids, supervised, below_1, weights, self.offsets, self.sources):
            digest.update(np.ascontiguousarray(part).reshape(-1))
        self.digest = digest.hexdigest()

    def groups(self) -> np.ndarray:
        """(conversations,) int64: equal rows of ids have equal numbers, in this process."""
        rows = (self.ids[i:j].tobytes() for i, j in itertools.pairwise(self.offsets))
        return np.fromiter(map(hash, rows), np.int64)

    def __len__(self) -> int:
        return len(self.lengths)


@dataclass
class Renderer:
    """How records become tokens: what the columns depend on, beside the files."""

    tokenizer: tokenizer.Tokenizer
    template: str
    train_on: str = "assistant"
    max_length: int = 1024
    overlong: str = "drop"
    reasoning: str = "drop"

    def __call__(self, path: Path, line: int, raw: object, of: Counter) -> tuple[list, list]:
        """Ids and loss mask of what `read_raw` gives; none where it is dropped. Counts by outcome
        (str), by length (int), by note (tuple). Raises ValueError."""
        record, turns = read_conversation(path, line, raw, self.reasoning)
        ids, mask = core.render(turns, self.tokenizer, self.template, self.train_on)
        of.update(notes_of(record, turns))
        is_long = len(ids) > self.max_length
        of.update({"read": 1, len(ids): 1, self.overlong: int(is_long)})
        ids, mask = ids[: self.max_length], mask[: self.max_length]
        if (is_long and self.overlong == "drop") or not any(mask):
            return [], []
        of.update(kept=1, tokens=len(ids), supervised=sum(mask))
        return ids, mask


def build_dataset(
    paths: Sequence[Path], *how, cache: Path | None = None, **more
) -> tuple[Dataset, list[str]]:
    """What `Renderer(*how, **more)` makes of the files, and a report of it. Large sets are found in
    `cache`, or put there. Raises ValueError (`file:line: reason`, or nothing is left), OSError."""
    render, path, found = Renderer(*how, **more), None, None
    if cache and sum(path.stat().st_size for path in paths) >= LARGE:
        path = cache / f"{cache_key(paths, render)}.npz"
        found = read_cache(path) if path.exists() else None
    columns, reports = found or render_files(paths, render, show_progress=path is not None)
    if path and not found:
        write_cache(path, columns, reports)
    named = ([f"{path}: {first}", *rest] for path, (first, *rest) in zip(paths, reports))
    return Dataset(*columns), list(itertools.chain.from_iterable(named))


def render_files(paths: Sequence[Path], render: Renderer, show_progress: bool) -> tuple:
    """The columns of a data set, and the report on each path. Raises as `build_dataset`."""
    name = str(paths[0]) + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")
    show = LiveLine().show if show_progress else lambda text, last=False: None
    started, n_read, n_tokens, counts = time.monotonic(), 0, 0, [Counter() for _ in paths]
    columns = array("i"), array("f"), array("q", [0]), array("q")
    for file, path in enumerate(paths):
        for place, (line, raw) in enumerate(read_raw(path)):
            ids, loss_mask = render(path, line, raw, counts[file])
            n_read, n_tokens = n_read + 1, n_tokens + len(ids)
            rows = ids, loss_mask, [n_tokens], [file, place]
            for column, row in zip(columns, rows if ids else ()):
                column.extend(row)
            if n_read % 1000 == 0:
                show(f"{name}: {n_read:,} conversations tokenised")
    seconds = time.monotonic() - started
    show(f"{name}: {n_read:,} conversations tokenised in {seconds:.0f} s", last=True)
    total = sum(counts, Counter())
    if not total["kept"]:
        raise ValueError(f"{name}: {describe(total, render.max_length)[0]}")
    reports = [describe(count, render.max_length) for count in counts]
    return [np.frombuffer(column, column.typecode) for column in columns], reports


def describe(of: Counter, max_length: int) -> list[str]:
    """Lines for the report; where nothing is left to learn from, the first one says why."""
    lost = f"longer than {max_length} tokens: {of['drop']:,} dropped, {of['truncate']:,} truncated"
    lost += f"; nothing supervised: {of['read'] - of['kept'] - of['drop']:,} dropped"
    lines = ["no record in this file"]
    if of["kept"]:
        counts = f"{of['kept']:,} conversations, {of['tokens']:,} tokens, {of['supervised']:,.0f}"
        lines = [f"{counts} supervised ({100 * of['supervised'] / of['tokens']:.0f} %)", lost]
    elif of["read"]:
        shortest = min(key for key in of if isinstance(key, int))
        how = f"the shortest has {shortest}; see --max-length and --overlong"
        lines = [f"nothing to learn from: of {of['read']:,} conversations, {lost} ({how})"]
    notes = {key: of[key] for key in sorted(of, key=str) if isinstance(key, tuple)}
    lines += ["documents only"] * (notes.get(DOCUMENTS) == of["read"])
    lines += [f"{n:,} {note[0]}" for note, n in notes.items() if len(note) == 1]
    unused = ", ".join(f"{note[1]!r} ({n:,})" for note, n in notes.items() if len(note) == 2)
    return lines + ([one_line(f"keys not used: {unused}")] if unused else [])


def read_cache(path: Path) -> tuple | None:
    """What `render_files` gave, out of the cache; None where that is damaged."""
    try:
        with np.load(path) as saved:  # a zip archive, with a checksum of each part
            *columns, reports = (saved[name] for name in (*COLUMNS, "reports"))
        os.utime(path)
        return columns, json.loads(str(reports))
    except (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile):
        log(f"cache     {path} is damaged; the files are tokenised again")
        return None


def write_cache(path: Path, columns: Sequence[np.ndarray], reports: list[list[str]]) -> None:
    """Raises OSError where there is no room."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        np.savez(file, **dict(zip(COLUMNS, columns)), reports=json.dumps(reports))
    for old in sorted(path.parent.glob("[0-9a-f]" * 32 + ".npz"), key=os.path.getmtime)[:-KEPT]:
        old.unlink(missing_ok=True)
    log(f"cache     {path}: {path.stat().st_size / 1e6:,.0f} MB, for the next time")


def cache_key(paths: Sequence[Path], render: Renderer) -> str:
    """SHA-256 over all that the columns depend on: files, settings, and the code that renders."""
    digest = hashlib.sha256(json.dumps(vars(render), default=tokenizer.Tokenizer.state).encode())
    for path in (*paths, core.__file__, tokenizer.__file__, __file__):
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:32]


@dataclass
class Data:
    """What a run learns from, and what it is validated on."""

    train_set: Dataset
    pools: list[np.ndarray]  # each file's conversations, as indices into train_set
    weights: Sequence[float]  # of the files
    paths: Sequence[Path]
    val_set: Dataset
    val_paths: Sequence[Path]
    val_indices: np.ndarray

    @property
    def digest(self) -> str:
        """Of all that order and validation are made from, beside the seed, wherever it lies."""
        digests = [self.train_set.digest, self.val_set.digest]
        weights = [] if set(self.weights) == {1} else self.weights
        is_apart = self.val_set is not self.train_set and digests[0] == digests[1]
        return " ".join(map(str, (*digests, *weights, *["--val-data"] * is_apart)))


def split_weight(argument: str) -> list[tuple[Path, float]]:
    """ "b.jsonl:0.3" -> [(b.jsonl, 0.3)]; without a weight, 1. Raises ValueError, OSError."""
    path, weight = argument, 1.0
    name, _, number = argument.rpartition(":")
    if name and not Path(argument).exists():
        with contextlib.suppress(ValueError):
            weight, path = float(number), name
    if not 0 < weight < float("inf"):
        raise ValueError(f"{argument}: the weight of a file must be above 0")
    return [(file, weight) for file in data_files(path)]


def hold_out(dataset: Dataset, number: int, seed: int) -> np.ndarray:
    """The indices of up to `number` conversations, drawn at random; of equal ones all or none."""
    groups, held_out = dataset.groups(), []
    sizes = Counter(groups.tolist())
    for index in np.random.default_rng([seed, len(dataset)]).permutation(len(dataset)):
        if len(held_out) == number:
            break
        if len(held_out) + sizes[groups[index]] <= number and index not in held_out:
            held_out += np.flatnonzero(groups == groups[index]).tolist()
    return np.array(held_out, int)


def read_data(options, tokenizer: tokenizer.Tokenizer, context: int) -> Data:
    """The data of a run, by its options (`sft.Config`), described. Raises as `build_dataset`."""
    limit, seed = options.max_length or min(context, LONGEST), options.seed
    if limit > context:
        raise ValueError(f"--max-length {limit} is more than the model's context of {context}")
    how = tokenizer, options.template, options.train_on, limit, options.overlong, options.reasoning
    paths, weights = zip(*itertools.chain.from_iterable(map(split_weight, options.data)))
    train_set, report = build_dataset(paths, *how, cache=Path(options.cache))
    log("data      " + "\n          ".join(report))
    trained_on = np.arange(len(train_set))
    if options.val_data:
        val_paths = [file for path in options.val_data for file in data_files(path)]
        val_set, report = build_dataset(val_paths, *how, cache=Path(options.cache))
        n_seen = int(np.isin(val_set.groups(), train_set.groups()).sum())
        report += [f"{n_seen:,} of these are also trained on"] * bool(n_seen)
        log("held out  " + "\n          ".join(report))
        val_indices = np.arange(len(val_set))
    else:
        val_paths, val_set = paths, train_set
        val_indices = hold_out(train_set, min(len(train_set) // 20, 200), seed)
        trained_on = np.setdiff1d(trained_on, val_indices)
        log(f"held out  {len(val_indices)} of these conversations (5 %, at most 200; seed {seed})")
    pools = [trained_on[train_set.sources[trained_on, 0] == i] for i in range(len(paths))]
    if len(paths) > 1:
        drawn = [int(w) + round(w % 1 * len(p)) / max(len(p), 1) for w, p in zip(weights, pools)]
        tokens = [n * train_set.lengths[pool].sum() for n, pool in zip(drawn, pools)]
        shares = (100 * n / max(sum(tokens), 1) for n in tokens)
        told = ", ".join(f"{path.name} {share:.1f} %" for path, share in zip(paths, shares))
        log(f"mixture   {told} of an epoch's tokens")
    return Data(train_set, pools, weights, paths, val_set, val_paths, val_indices)
