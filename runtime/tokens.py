"""From files to three flat arrays of tokens.

Large files are tokenised by all cores, once: the arrays are kept on disk and mapped into memory (see "The cache").
"""

import contextlib
import hashlib
import io
import itertools
import json
import multiprocessing
import os
import re
import shutil
import signal
import threading
import time
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np

import chat_template
import tokenizer as tokenizer_module
from chat_template import render
from runtime import records
from runtime.console import log, one_line
from runtime.files import lock
from runtime.records import read_conversation, read_raw, unused_keys
from tokenizer import Tokenizer

COLUMNS = {"ids": np.int32, "loss_mask": np.uint8, "offsets": np.int64, "sources": np.int64}
BATCH = 2**18  # bytes of a file that are rendered at a time
LARGE = (
    2**23
)  # bytes of a data set's files from which on it is rendered by all cores and kept on disk
KEPT = 6  # how many data sets stay in the cache, those that were used last


@dataclass
class Dataset:
    """Conversations as flat arrays; conversation i is `[offsets[i]:offsets[i + 1]]`."""

    ids: np.ndarray  # (total tokens,) int32
    loss_mask: (
        np.ndarray
    )  # (total tokens,) uint8, 1 where the token is supervised; never on a first token
    offsets: np.ndarray  # (conversations + 1,) int64
    sources: np.ndarray  # (conversations, 2) int64: which file, which of its records

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    @cached_property
    def n_supervised(self) -> np.ndarray:
        """Supervised tokens of each conversation."""
        counts = np.empty(len(self), np.int64)
        for start in range(
            0, len(self), 2**14
        ):  # a sum over all tokens at once would need 8 bytes for each
            offsets = self.offsets[start : start + 2**14 + 1]
            sums = np.concatenate(
                [[0], self.loss_mask[offsets[0] : offsets[-1]].cumsum(dtype=np.int64)]
            )
            counts[start : start + 2**14] = np.diff(sums[offsets - offsets[0]])
        return counts

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the contents."""
        digest = hashlib.sha256()
        for column in (self.ids, self.loss_mask, self.offsets, self.sources.reshape(-1)):
            for start in range(0, len(column), 2**20):
                digest.update(np.ascontiguousarray(column[start : start + 2**20]))
        return digest.hexdigest()


@dataclass
class Count:
    """What became of the records of a file."""

    conversations: Counter = field(
        default_factory=Counter
    )  # read, kept, drop and truncate (over-long), unsupervised
    unused: Counter = field(default_factory=Counter)  # keys of records that nobody looks at
    shortest: int | None = None  # tokens of the shortest conversation

    def add(self, other: "Count") -> None:
        self.conversations.update(other.conversations)
        self.unused.update(other.unused)
        self.shortest = min(filter(None, (self.shortest, other.shortest)), default=None)


@dataclass
class Renderer:
    """How records become tokens."""

    tokenizer: Tokenizer
    template: str
    train_on: str
    max_length: int
    overlong: str

    def __call__(
        self, path: Path, first: int, raws: list[tuple[int, object]]
    ) -> tuple[dict[str, np.ndarray], Count]:
        """Some successive records of a file, of which the first is number `first`: their columns and count. "offsets"
        are those of the conversations' ends, from 0 on; "sources" the numbers of the records that were kept."""
        ids, loss_mask, ends, records, count = (
            array("i"),
            array("B"),
            array("q"),
            array("q"),
            Count(),
        )
        of = count.conversations
        for place, (number, raw) in enumerate(raws, first):
            record, messages = read_conversation(path, number, raw)
            example_ids, example_mask = render(
                messages, self.tokenizer, self.template, self.train_on
            )
            of.update(read=1, bytes=len(raw) if isinstance(raw, bytes) else 0)
            count.unused.update(unused_keys(record))
            count.shortest = min(count.shortest or len(example_ids), len(example_ids))
            if len(example_ids) > self.max_length:
                of[self.overlong] += 1
                if self.overlong == "drop":
                    continue
            example_ids, example_mask = (
                example_ids[: self.max_length],
                example_mask[: self.max_length],
            )
            example_mask[0] = (
                0  # nothing stands before the first token from which it could be predicted
            )
            if not any(example_mask):
                of["unsupervised"] += 1
                continue
            of.update(kept=1, tokens=len(example_ids), supervised=sum(example_mask))
            ids.extend(example_ids)
            loss_mask.extend(example_mask)
            ends.append(len(ids))
            records.append(place)
        columns = zip(COLUMNS.items(), (ids, loss_mask, ends, records))
        return {name: np.frombuffer(values, dtype) for (name, dtype), values in columns}, count


def build_dataset(
    paths: Sequence[Path],
    tokenizer: Tokenizer,
    template: str,
    train_on: str = "assistant",
    max_length: int = 1024,
    overlong: str = "drop",
    cache: Path | None = None,
    show: Callable = lambda progress, last: None,
) -> tuple[Dataset, list[str]]:
    """Render every conversation of the files; also a report of what was kept, and what was not and why. Large data sets
    are looked up in `cache`, if that is given, and else put there, while `show` is told how far it is.

    Raises ValueError (`file:line: reason`) for a bad record, and for a file that leaves nothing to learn from.
    """
    renderer = Renderer(tokenizer, template, train_on, max_length, overlong)
    if cache and sum(path.stat().st_size for path in paths) >= LARGE:
        dataset, counts = cached_dataset(cache, paths, renderer, show)
    else:
        buffers = {name: io.BytesIO() for name in COLUMNS}
        counts = render_files(paths, renderer, buffers, map_here)
        dataset = dataset_of(
            np.frombuffer(buffers[name].getbuffer(), dtype) for name, dtype in COLUMNS.items()
        )
    return dataset, [
        line for path, count in zip(paths, counts) for line in describe(path, count, max_length)
    ]


def dataset_of(columns: Iterable[np.ndarray]) -> Dataset:
    ids, loss_mask, offsets, sources = columns
    return Dataset(ids, loss_mask, offsets, sources.reshape(-1, 2))


def render_files(
    paths: Sequence[Path],
    renderer: Renderer,
    columns: dict[str, BinaryIO],
    map_batches: Callable,
    show: Callable = lambda progress, last: None,
) -> list[Count]:
    """Write the conversations of the files to the columns, in order. Raises as `build_dataset`."""
    counts, n_tokens = [], 0
    columns["offsets"].write(np.zeros(1, np.int64))
    for file_index, path in enumerate(paths):
        count, size, started = Count(), path.stat().st_size, time.monotonic()
        for part, part_count in map_batches(renderer, batches_of(path)):
            part["offsets"] = part["offsets"] + n_tokens
            part["sources"] = np.stack(
                [np.full_like(part["sources"], file_index), part["sources"]], axis=1
            )
            for name, values in part.items():
                columns[name].write(values.tobytes())
            n_tokens += len(part["ids"])
            count.add(part_count)
            show(progress(path, count, size, time.monotonic() - started), last=False)
        show(progress(path, count, size, time.monotonic() - started), last=True)
        check_count(path, count, renderer.max_length)
        counts.append(count)
    return counts


def progress(path: Path, count: Count, size: int, seconds: float) -> str:
    share = count.conversations["bytes"] / size if size else 0.0  # of an array, nobody knows
    left = (
        f", {share:.0%}, {seconds / share - seconds:.0f} s left"
        if 0 < share < 1
        else f", in {seconds:.0f} s"
    )
    return f"{path}: {count.conversations['read']:,} conversations tokenised{left}"


def batches_of(path: Path) -> Iterator[tuple[Path, int, list[tuple[int, object]]]]:
    """The arguments of a renderer's calls, one after the other, for all of a file."""
    first, batch, size = 0, [], 0
    for number, raw in read_raw(path):
        batch.append((number, raw))
        size += len(raw) if isinstance(raw, bytes) else BATCH // 256
        if size >= BATCH:
            yield path, first, batch
            first, batch, size = first + len(batch), [], 0
    if batch:
        yield path, first, batch


def map_here(
    renderer: Renderer, batches: Iterable[tuple]
) -> Iterator[tuple[dict[str, np.ndarray], Count]]:
    return itertools.starmap(renderer, batches)


def check_count(path: Path, count: Count, max_length: int) -> None:
    of = count.conversations
    if not of["read"]:
        raise ValueError(f"{path}: no record in this file")
    if not of["kept"]:
        raise ValueError(
            f"{path}: nothing to learn from: of {of['read']} conversations {of['drop']} are longer than {max_length} "
            f"tokens (the shortest has {count.shortest}; see --max-length and --overlong) and {of['unsupervised']} "
            "have no supervised token"
        )


def describe(path: Path, count: Count, max_length: int) -> list[str]:
    of = count.conversations
    share = 100 * of["supervised"] / of["tokens"]
    kept = f"{of['kept']:,} conversations, {of['tokens']:,} tokens, {of['supervised']:,} supervised"
    over = f"longer than {max_length} tokens: {of['drop']:,} dropped, {of['truncate']:,} truncated"
    lines = [
        f"{path}: {kept} ({share:.0f} %)",
        f"{over}; nothing supervised: {of['unsupervised']:,} dropped",
    ]
    if count.unused:
        unused = ", ".join(f"{key!r} ({n:,})" for key, n in sorted(count.unused.items()))
        lines += ["keys not used: " + one_line(unused)]
    return lines


def cached_dataset(
    cache: Path, paths: Sequence[Path], renderer: Renderer, show: Callable
) -> tuple[Dataset, list[Count]]:
    """The data set out of the cache; where it is not there, or damaged, it is made and put there."""
    cache.mkdir(parents=True, exist_ok=True)
    with lock(cache, wait=True):  # whoever comes second finds what the first has made
        folder = cache / cache_key(paths, renderer)
        if folder.exists():
            try:
                return open_cached(folder)
            except (OSError, ValueError, LookupError, TypeError, AttributeError):
                log(f"cache     {folder} is damaged; the files are tokenised again")
                shutil.rmtree(folder)
        for leftover in cache.glob(
            "*.tmp"
        ):  # of a process that was killed, as nobody else is at work now
            shutil.rmtree(leftover)
        temporary = folder.with_suffix(".tmp")
        temporary.mkdir()
        try:
            with contextlib.ExitStack() as stack:
                columns = {
                    name: stack.enter_context(open(temporary / name, "wb")) for name in COLUMNS
                }
                counts = render_files(paths, renderer, columns, map_in_processes, show)
            dataset = map_columns(temporary)
            about = {"digest": dataset.digest, "counts": [vars(count) for count in counts]}
            (temporary / "about.json").write_text(json.dumps(about), encoding="utf-8")
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        used = [
            path.parent
            for path in cache.glob("*/about.json")
            if re.fullmatch("[0-9a-f]{32}", path.parent.name)
        ]
        for other in sorted(used, key=lambda path: path.stat().st_mtime, reverse=True)[KEPT:]:
            shutil.rmtree(other)  # who has mapped it into memory still has it
    log(
        f"cache     {folder}: {sum(path.stat().st_size for path in folder.iterdir()) / 1e6:,.0f} MB, for the next time"
    )
    return dataset, counts


def open_cached(folder: Path) -> tuple[Dataset, list[Count]]:
    """Raises one of many errors where something in the folder is not as it was written."""
    about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    counts = [
        Count(Counter(c["conversations"]), Counter(c["unused"]), c["shortest"])
        for c in about["counts"]
    ]
    dataset = map_columns(folder)
    if dataset.digest != about["digest"]:
        raise ValueError("damaged")
    os.utime(folder)
    return dataset, counts


def map_columns(folder: Path) -> Dataset:
    return dataset_of(
        np.asarray(np.memmap(folder / name, dtype, mode="r")) for name, dtype in COLUMNS.items()
    )


def cache_key(paths: Sequence[Path], renderer: Renderer) -> str:
    """SHA-256 over all that the columns depend on: the files' contents, the tokenizer, the template, the limits, and
    the code itself, so that whoever changes how a record is read or rendered is not given yesterday's tokens."""
    digest = hashlib.sha256()
    sources = (module.__file__ for module in (chat_template, records, tokenizer_module))
    for path in (*paths, *sources, __file__):
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    settings = [renderer.template, renderer.train_on, renderer.max_length, renderer.overlong]
    digest.update(json.dumps([len(paths), *settings, renderer.tokenizer.state()]).encode())
    return digest.hexdigest()[:32]


def map_in_processes(
    renderer: Renderer, batches: Iterable[tuple]
) -> Iterator[tuple[dict[str, np.ndarray], Count]]:
    """`map_here` on all cores. Only a few batches are under way, so that memory does not grow with the file. Raises
    OSError where one of the processes is killed."""
    n_processes = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    context = multiprocessing.get_context("spawn" if os.name == "nt" else "forkserver")
    pool = ProcessPoolExecutor(n_processes, context, start_worker, (renderer,))
    under_way: deque = deque()
    try:
        for batch in batches:
            under_way.append(pool.submit(render_batch, batch))
            if len(under_way) > 3 * n_processes:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    except BrokenProcessPool:
        raise OSError(
            "one of the processes that tokenise was killed; was there too little memory?"
        ) from None
    finally:  # cancelled, since a batch that Ctrl-C left half submitted would be waited for without end
        pool.shutdown(cancel_futures=True)


def start_worker(renderer: Renderer) -> None:
    """Ctrl-C is the parent's business; and where that is killed, nobody else tells its workers."""
    global worker_renderer
    worker_renderer = renderer
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def render_batch(batch: tuple) -> tuple[dict[str, np.ndarray], Count]:
    return worker_renderer(*batch)
