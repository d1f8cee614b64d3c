"""From files to flat arrays of tokens, and to the data of a run.

Large data sets are tokenised by all cores, once: their arrays stay on disk, mapped into memory.
"""

import contextlib
import hashlib
import io
import itertools
import json
import math
import multiprocessing
import os
import re
import shutil
import signal
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import BinaryIO

import numpy as np

import chat_template
import tokenizer as tokenizer_module
from chat_template import render
from runtime import records
from runtime.console import LiveLine, log, one_line
from runtime.files import find_file, lock

COLUMNS = {"ids": np.int32, "loss_mask": np.uint8, "offsets": np.int64, "sources": np.int64}
BATCH = 2**18  # bytes of a file that are rendered at a time
LARGE = 2**23  # bytes of files from which on all cores render them, and the cache keeps the tokens
KEPT = 6  # how many data sets stay in the cache, those that were used last
Batch = tuple[int, Path, int, list[tuple[int, object]]]  # the arguments of a Renderer's call
Part = tuple[int, dict[str, np.ndarray], Counter]  # which file, its columns, what became of records


@dataclass
class Dataset:
    """Conversations as flat arrays; conversation i is `[offsets[i]:offsets[i + 1]]`."""

    ids: np.ndarray  # (total tokens,) int32
    loss_mask: np.ndarray  # (total tokens,) uint8: 1 where supervised, which no first token is
    offsets: np.ndarray  # (conversations + 1,) int64
    sources: np.ndarray  # (conversations, 2) int64: which file, which of its records

    def __post_init__(self) -> None:
        self.sources = self.sources.reshape(-1, 2)  # in files it is flat, like the others

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each conversation, (conversations,) int64."""
        return np.diff(self.offsets)

    @cached_property
    def n_supervised(self) -> np.ndarray:
        """Supervised tokens of each conversation, (conversations,) int64."""
        return np.add.reduceat(self.loss_mask, self.offsets[:-1], dtype=np.int64)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the contents."""
        digest = hashlib.sha256()
        for column in (self.ids, self.loss_mask, self.offsets, self.sources):
            digest.update(np.ascontiguousarray(column))
        return digest.hexdigest()


# From records to tokens


@dataclass
class Renderer:
    """How records become tokens."""

    tokenizer: tokenizer_module.Tokenizer
    template: str
    train_on: str
    max_length: int
    overlong: str

    def __call__(self, file: int, path: Path, first: int, raws: list[tuple[int, object]]) -> Part:
        """Successive records of a file, of which the first is number `first`, as `read_raw` gives
        them. "offsets" are those of the conversations' ends, from 0 on. Raises ValueError."""
        ids, loss_mask, ends, sources = array("i"), array("B"), array("q"), array("q")
        count = Counter()
        for place, (line, raw) in enumerate(raws, first):
            record, messages = records.read_conversation(path, line, raw)
            tokens, mask = render(messages, self.tokenizer, self.template, self.train_on)
            count.update(read=1, bytes=len(raw) if isinstance(raw, bytes) else 0)
            count.update(("unused", key) for key in records.unused_keys(record))
            count["length", len(tokens)] += 1
            if len(tokens) > self.max_length:
                count[self.overlong] += 1
                if self.overlong == "drop":
                    continue
                del tokens[self.max_length :], mask[self.max_length :]
            if not any(mask):
                count["unsupervised"] += 1
                continue
            count.update(kept=1, tokens=len(tokens), supervised=sum(mask))
            ids.extend(tokens)
            loss_mask.extend(mask)
            ends.append(len(ids))
            sources.extend((file, place))
        columns = zip(COLUMNS.items(), (ids, loss_mask, ends, sources))
        return file, {name: np.frombuffer(part, dtype) for (name, dtype), part in columns}, count

    def describe(self, count: Counter) -> list[str]:
        """Lines for the report; where nothing is left to learn from, the first one says why."""
        of, over = Counter(count), f"longer than {self.max_length} tokens"
        lines = ["no record in this file"]
        if of["kept"]:
            share = (
                f"{of['supervised']:,} supervised ({100 * of['supervised'] / of['tokens']:.0f} %)"
            )
            lines = [f"{of['kept']:,} conversations, {of['tokens']:,} tokens, {share}"]
            lost = f"{of['drop']:,} dropped, {of['truncate']:,} truncated; nothing supervised: "
            lines += [f"{over}: {lost}{of['unsupervised']:,} dropped"]
        elif of["read"]:
            shortest = min(key[1] for key in of if key[0] == "length")
            lost = f"{of['drop']} are {over} (the shortest has {shortest}; see --max-length and "
            lost += f"--overlong) and {of['unsupervised']} have no supervised token"
            lines = [f"nothing to learn from: of {of['read']} conversations {lost}"]
        unused = [f"{key[1]!r} ({of[key]:,})" for key in sorted(of, key=str) if key[0] == "unused"]
        return lines + (["keys not used: " + one_line(", ".join(unused))] if unused else [])


def build_dataset(
    paths: Sequence[Path],
    tokenizer: tokenizer_module.Tokenizer,
    template: str,
    train_on: str = "assistant",
    max_length: int = 1024,
    overlong: str = "drop",
    cache: Path | None = None,
    show: Callable = lambda text, last: None,
) -> tuple[Dataset, list[str]]:
    """Render every conversation of the files; also a report of what was kept, and what was not and
    why. Large data sets are looked up in `cache`, or put there, while `show` is told how far it is.
    Raises ValueError (`file:line: reason`) for a bad record, and where all files together leave
    nothing to learn from; OSError where a file cannot be read or a process is killed."""
    renderer = Renderer(tokenizer, template, train_on, max_length, overlong)
    if cache and sum(path.stat().st_size for path in paths) >= LARGE:
        dataset, reports = cached_dataset(cache, paths, renderer, show)
    else:
        files = {name: io.BytesIO() for name in COLUMNS}
        reports = render_files(paths, renderer, files, itertools.starmap, lambda text, last: None)
        buffers = (file.getbuffer() for file in files.values())
        dataset = Dataset(*map(np.frombuffer, buffers, COLUMNS.values()))
    named = ([f"{path}: {first}", *more] for path, (first, *more) in zip(paths, reports))
    return dataset, list(itertools.chain.from_iterable(named))


def render_files(
    paths: Sequence[Path],
    renderer: Renderer,
    columns: dict[str, BinaryIO],
    map_batches: Callable[[Renderer, Iterable[Batch]], Iterator[Part]],
    show: Callable,
) -> list[list[str]]:
    """Write the conversations of the files to the columns, in order; a report of each file. Raises
    as `build_dataset`."""
    counts, sizes = [Counter() for _ in paths], [path.stat().st_size for path in paths]
    n_tokens, started, name = 0, time.monotonic(), str(paths[0])
    name += f" and {len(paths) - 1} more" if len(paths) > 1 else ""

    def show_progress(share: float, last: bool = False) -> None:
        seconds, n_read = time.monotonic() - started, sum(count["read"] for count in counts)
        left = f"{share:.0%}, {seconds / share - seconds:.0f} s left" if 0 < share < 1 else ""
        how_far = left or f"in {seconds:.0f} s"
        show(f"{name}: {n_read:,} conversations tokenised, {how_far}", last=last)

    columns["offsets"].write(np.zeros(1, np.int64))
    batches = itertools.chain.from_iterable(map(batches_of, itertools.count(), paths))
    for file, part, count in map_batches(renderer, batches):
        part["offsets"] += n_tokens
        n_tokens += len(part["ids"])
        for column, values in part.items():
            columns[column].write(values)
        counts[file].update(count)
        done = sum(sizes[:file]) + counts[file]["bytes"]  # an array's, when it is done
        show_progress(done / max(sum(sizes), 1))
    show_progress(1.0, last=True)
    total = sum(counts, Counter())
    if not total["kept"]:
        raise ValueError(f"{name}: {renderer.describe(total)[0]}")
    return [renderer.describe(count) for count in counts]


def batches_of(file: int, path: Path) -> Iterator[Batch]:
    """All of a file, which is number `file`. Raises as `read_raw`."""
    first, batch, size = 0, [], 0
    for line, raw in records.read_raw(path):
        batch.append((line, raw))
        size += len(raw) if isinstance(raw, bytes) else BATCH // 256
        if size >= BATCH:
            yield file, path, first, batch
            first, batch, size = first + len(batch), [], 0
    if batch:
        yield file, path, first, batch


# The cache: a folder for each data set, with a file for each column


def cached_dataset(
    cache: Path, paths: Sequence[Path], renderer: Renderer, show: Callable
) -> tuple[Dataset, list[list[str]]]:
    """The data set out of the cache, and each file's report; where it is not there, or damaged, it
    is made, under a temporary name until all of it is there. Raises as `build_dataset`."""
    cache.mkdir(parents=True, exist_ok=True)
    with lock(cache, wait=True):  # whoever comes second finds what the first has made
        folder = cache / cache_key(paths, renderer)
        draft = folder.with_suffix(".tmp")
        try:
            return open_cached(folder)
        except (OSError, ValueError, LookupError, TypeError):
            if folder.exists():
                log(f"cache     {folder} is damaged; the files are tokenised again")
        for leftover in (folder, *cache.glob("*.tmp")):  # of a killed process: nobody is at work
            shutil.rmtree(leftover, ignore_errors=True)
        draft.mkdir()
        try:
            with contextlib.ExitStack() as stack:
                files = {name: stack.enter_context(open(draft / name, "wb")) for name in COLUMNS}
                reports = render_files(paths, renderer, files, map_in_processes, show)
            dataset = map_columns(draft)
            about = {"digest": dataset.digest, "reports": reports}
            (draft / "about.json").write_text(json.dumps(about))
            draft.rename(folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        used = (path.parent for path in cache.glob("*/about.json"))
        used = [path for path in used if re.fullmatch("[0-9a-f]{32}", path.name)]
        for other in sorted(used, key=lambda path: path.stat().st_mtime, reverse=True)[KEPT:]:
            shutil.rmtree(other)  # who has mapped it into memory still has it
    size = sum(path.stat().st_size for path in folder.iterdir())
    log(f"cache     {folder}: {size / 1e6:,.0f} MB, for the next time")
    return dataset, reports


def open_cached(folder: Path) -> tuple[Dataset, list[list[str]]]:
    """Raises one of many errors where something in the folder is not as it was written."""
    dataset, about = map_columns(folder), json.loads((folder / "about.json").read_text())
    if dataset.digest != about["digest"]:
        raise ValueError("damaged")
    os.utime(folder)
    return dataset, about["reports"]


def map_columns(folder: Path) -> Dataset:
    """The data set in a folder, mapped into memory. Raises OSError, ValueError (a wrong size)."""
    columns = (np.memmap(folder / name, dtype, mode="r") for name, dtype in COLUMNS.items())
    return Dataset(*map(np.asarray, columns))


def cache_key(paths: Sequence[Path], renderer: Renderer) -> str:
    """SHA-256 over all that the columns depend on: files, tokenizer, template, limits, and the code
    itself, so that whoever changes how records are rendered is not given yesterday's tokens."""
    digest = hashlib.sha256()
    sources = (module.__file__ for module in (chat_template, records, tokenizer_module))
    for path in (*paths, *sources, __file__):
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    settings = {**vars(renderer), "tokenizer": renderer.tokenizer.state(), "n": len(paths)}
    digest.update(json.dumps(settings, sort_keys=True).encode())
    return digest.hexdigest()[:32]


# On all cores


def map_in_processes(renderer: Renderer, batches: Iterable[Batch]) -> Iterator[Part]:
    """What the renderer makes of the batches, in order, on all cores. Only a few batches are under
    way, so that memory does not grow with the files. Raises a batch's ValueError in its place;
    OSError where a process is killed.

    Each worker has a pipe of its own, and nobody else holds an end of it. So its death, even half
    way through a message, ends that pipe, and no other worker waits for it. A batch is sent only
    to a worker that waits for one: if both ends were writing, each could wait for the other.
    """
    n = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    numbered, made = enumerate(batches), {}  # number of a batch -> what was made of it
    at_work: dict[Connection, int] = {}  # the number of the batch that is made there
    with contextlib.ExitStack() as stack:
        pipes = [stack.enter_context(worker()) for _ in range(n)]
        for pipe, (number, batch) in zip(pipes, numbered):
            talk(pipe.send, renderer)
            talk(pipe.send, batch)
            at_work[pipe] = number
        for due in itertools.count():
            while due not in made and at_work:
                awaited = min(at_work, key=at_work.get)  # the part that is due is made there
                for pipe in wait(pipes if len(made) < 2 * n else [awaited]):
                    made[at_work.pop(pipe)] = talk(pipe.recv)
                    for number, batch in itertools.islice(numbered, 1):
                        talk(pipe.send, batch)
                        at_work[pipe] = number
            if due not in made:
                return
            if isinstance(part := made.pop(due), ValueError):
                raise part
            yield part


@contextlib.contextmanager
def worker() -> Iterator[Connection]:
    """The pipe to a new process, which ends with the block. Raises OSError."""
    context = multiprocessing.get_context("spawn" if os.name == "nt" else "forkserver")
    pipe, theirs = context.Pipe()
    process = context.Process(target=work, args=(theirs,), daemon=True)
    with pipe:
        talk(process.start)
        theirs.close()  # while it is open here, the worker's death does not end the pipe
        try:
            yield pipe
        finally:
            process.kill()
            process.join()


def work(pipe: Connection) -> None:
    """Be a worker: render batches until the parent closes the pipe, or ends, however it does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    with contextlib.suppress(EOFError, OSError):
        renderer = pipe.recv()
        while True:
            batch = pipe.recv()
            try:
                part = renderer(*batch)
            except ValueError as error:
                part = error
            pipe.send(part)


def talk(action: Callable, *message: object) -> object:
    """Do what needs a process at the other end. Raises OSError where that was killed."""
    try:
        return action(*message)
    except (EOFError, OSError):
        reason = "one of the processes that tokenise was killed; was there too little memory?"
        raise OSError(reason) from None


# The data of a run


@dataclass
class Data:
    """The training set, with each file's share of it, and the validation set."""

    train_set: Dataset
    pools: list[np.ndarray]  # each file's conversations, as indices into train_set
    weights: Sequence[float]  # of the files
    paths: Sequence[Path]
    val_set: Dataset
    val_paths: Sequence[Path]
    val_indices: np.ndarray

    @property
    def digest(self) -> str:
        return f"{self.train_set.digest} {self.val_set.digest}"


def split_weight(argument: str) -> tuple[Path, float]:
    """ "b.jsonl:0.3" -> (b.jsonl, 0.3); without a weight, 1. Raises ValueError and OSError."""
    name, _, weight = argument.rpartition(":")
    try:
        value = 1.0 if Path(argument).exists() else float(weight)
    except ValueError:
        value = 1.0
    else:
        argument = argument if Path(argument).exists() else name
    if not 0 < value < math.inf:
        raise ValueError(f"{argument}:{weight}: the weight of a file must be above 0")
    return find_file(argument), value


def read_data(options, tokenizer: tokenizer_module.Tokenizer, context_length: int) -> Data:
    """The conversations of a run, by its options (`sft.Config`): the files rendered, some held out,
    and what there is said. Raises ValueError where there is nothing to learn from."""
    max_length = options.max_length or context_length
    if max_length > context_length:
        context = f"the model's context of {context_length}"
        raise ValueError(f"--max-length {max_length} is more than {context}")
    how = options.template, options.train_on, max_length, options.overlong, Path(options.cache)
    paths, weights = zip(*map(split_weight, options.data))
    train_set, report = build_dataset(paths, tokenizer, *how, LiveLine().show)
    log("data      " + "\n          ".join(report))
    is_held_out = np.zeros(len(train_set), bool)
    if options.val_data:
        val_paths = [find_file(path) for path in options.val_data]
        val_set, report = build_dataset(val_paths, tokenizer, *how, LiveLine().show)
        log("held out  " + "\n          ".join(report))
        val_indices = np.arange(len(val_set))
    else:
        val_paths, val_set, n = paths, train_set, len(train_set)
        shuffled = np.random.default_rng([options.seed, n]).permutation(n)
        val_indices = shuffled[: min(n // 20, 200)].copy()
        is_held_out[val_indices] = True
        share = f"5 %, at most 200; seed {options.seed}"
        log(f"held out  {len(val_indices)} of these conversations ({share})")
    in_file = (train_set.sources[:, 0] == i for i in range(len(paths)))
    pools = [np.flatnonzero(of_file & ~is_held_out) for of_file in in_file]
    if len(paths) > 1:
        drawn = [int(w) + round(w % 1 * len(p)) / max(len(p), 1) for w, p in zip(weights, pools)]
        tokens = [n * train_set.lengths[pool].sum() for n, pool in zip(drawn, pools)]
        shares = (100 * n / max(sum(tokens), 1) for n in tokens)
        told = ", ".join(f"{path.name} {share:.1f} %" for path, share in zip(paths, shares))
        log(f"mixture   {told} of an epoch's tokens")
    return Data(train_set, pools, weights, paths, val_set, val_paths, val_indices)
