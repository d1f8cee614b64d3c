"""From files to flat arrays of tokens (of large files once), and to a run's data."""

import contextlib
import hashlib
import itertools
import json
import os
import time
import zipfile
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import chat_template
import tokenizer as tokenizer_module
from runtime import records
from runtime.console import LiveLine, log, one_line
from runtime.files import replacing
from tokenizer import Tokenizer

COLUMNS = "ids", "loss_mask", "offsets", "sources"
LARGE = 2**23  # bytes of files from which on the cache keeps their tokens
LONGEST = 8192  # tokens of a conversation, where neither an option nor the context says less
KEPT = 6  # how many data sets stay in the cache, those that were used last


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

    tokenizer: Tokenizer
    template: str
    train_on: str = "assistant"
    max_length: int = 1024
    overlong: str = "drop"
    reasoning: str = "drop"

    def __call__(self, path: Path, line: int, raw: object, of: Counter) -> tuple[list, list]:
        """Ids and loss mask of what `read_raw` gives; none where it is dropped. Counts by outcome
        (str), by length (int), by note (tuple). Raises ValueError."""
        record, turns = records.read_conversation(path, line, raw, self.reasoning)
        ids, mask = chat_template.render(turns, self.tokenizer, self.template, self.train_on)
        of.update(records.notes_of(record, turns))
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
    """What `Renderer(*how, **more)` makes of the files, and a report of what was kept, and what not
    and why. Large data sets are found in `cache`, if given, or put there. Raises ValueError for a
    bad record (`file:line: reason`), or if nothing is left; OSError for a file."""
    render, path, found = Renderer(*how, **more), None, None
    if cache and sum(path.stat().st_size for path in paths) >= LARGE:
        path = cache / f"{cache_key(paths, render)}.npz"
        found = read_cache(path)
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
        for place, (line, raw) in enumerate(records.read_raw(path)):
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
    over, unsupervised = f"longer than {max_length} tokens", of["read"] - of["kept"] - of["drop"]
    if of["kept"]:
        supervised, percent = of["supervised"], 100 * of["supervised"] / of["tokens"]
        counts = f"{of['kept']:,} conversations, {of['tokens']:,} tokens"
        lines = [f"{counts}, {supervised:,.0f} supervised ({percent:.0f} %)"]
        lost = f"{of['drop']:,} dropped, {of['truncate']:,} truncated"
        lines += [f"{over}: {lost}; nothing supervised: {unsupervised:,} dropped"]
    elif of["read"]:
        shortest = min(key for key in of if isinstance(key, int))
        how = f"(the shortest has {shortest}; see --max-length and --overlong)"
        lost = f"{of['drop']} are {over} {how} and {unsupervised} have no supervised token"
        lines = [f"nothing to learn from: of {of['read']} conversations {lost}"]
    else:
        lines = ["no record in this file"]
    notes = {key: of[key] for key in sorted(of, key=str) if isinstance(key, tuple)}
    if notes.get(records.DOCUMENTS) == of["read"]:
        lines.append("documents only, without turns: all text is learned")
        del notes[records.DOCUMENTS]
    lines += [f"{n:,} {note[0]}" for note, n in notes.items() if len(note) == 1]
    unused = ", ".join(f"{note[1]!r} ({n:,})" for note, n in notes.items() if len(note) == 2)
    return lines + ([one_line(f"keys not used: {unused}")] if unused else [])


def read_cache(path: Path) -> tuple | None:
    """What `render_files` gave, out of the cache; None where it is not there, or damaged."""
    try:
        with np.load(path) as saved:  # a zip archive, with a checksum of each part
            *columns, reports = (saved[name] for name in (*COLUMNS, "reports"))
        os.utime(path)
        return columns, json.loads(reports.tobytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile):
        log(f"cache     {path} is damaged; the files are tokenised again")
        return None


def write_cache(path: Path, columns: Sequence[np.ndarray], reports: list[list[str]]) -> None:
    """Raises OSError where there is no room."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        told = np.frombuffer(json.dumps(reports).encode(), np.uint8)
        np.savez(file, **dict(zip(COLUMNS, columns)), reports=told)
    for old in sorted(path.parent.glob("[0-9a-f]" * 32 + ".npz"), key=os.path.getmtime)[:-KEPT]:
        old.unlink(missing_ok=True)
    log(f"cache     {path}: {path.stat().st_size / 1e6:,.0f} MB, for the next time")


def cache_key(paths: Sequence[Path], render: Renderer) -> str:
    """SHA-256 over all that the columns depend on: files, settings, and the code that renders."""
    digest = hashlib.sha256(json.dumps(vars(render), default=Tokenizer.state).encode())
    sources = (module.__file__ for module in (chat_template, records, tokenizer_module))
    for path in (*paths, *sources, __file__):
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
    return [(file, weight) for file in records.data_files(path)]


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


def read_data(options, tokenizer: Tokenizer, context: int) -> Data:
    """The data of a run, by its options (`sft.Config`), described. Raises as `build_dataset`."""
    limit, seed = options.max_length or min(context, LONGEST), options.seed
    cache = Path(options.cache)
    if limit > context:
        raise ValueError(f"--max-length {limit} is more than the model's context of {context}")
    how = tokenizer, options.template, options.train_on, limit, options.overlong, options.reasoning
    paths, weights = zip(*itertools.chain.from_iterable(map(split_weight, options.data)))
    train_set, report = build_dataset(paths, *how, cache=cache)
    log("data      " + "\n          ".join(report))
    trained_on = np.arange(len(train_set))
    if options.val_data:
        val_paths = [file for path in options.val_data for file in records.data_files(path)]
        val_set, report = build_dataset(val_paths, *how, cache=cache)
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
