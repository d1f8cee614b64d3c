"""From files to batches: three flat arrays, a random order that is a function of (seed, epoch), micro-batches.

A step is a random draw of whole conversations. Inside a step they are sorted by length, so that a micro-batch holds
little padding; whole steps of one length would bias the gradient, because length goes with the kind of task.

Large files are tokenised by all cores, once: the arrays are kept on disk and mapped into memory (see "The cache").
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
import torch
from torch import Tensor

import chat_template
import tokenizer as tokenizer_module
from chat_template import one_line, read_conversation, read_raw, render, unused_keys
from checkpoint import find_file, lock
from distributed import log, rank, world_size
from tokenizer import Tokenizer

IGNORED = -100  # the target of a position that is not supervised
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


# From records to tokens


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


# The cache: a folder a data set, with a file a column, named by all that the columns depend on


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
    for path in (*paths, chat_template.__file__, tokenizer_module.__file__, __file__):
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


# From conversations to batches


def epoch_order(
    pools: Sequence[np.ndarray], weights: Sequence[float], seed: int, epoch: int
) -> np.ndarray:
    """The conversations of an epoch in random order. Each file's pool is seen `weight` times, its fraction redrawn."""
    random = np.random.default_rng([seed, epoch])
    drawn = []
    for pool, weight in zip(pools, weights):
        drawn += [pool] * int(weight)
        drawn.append(random.permutation(pool)[: round(weight % 1 * len(pool))])
    return random.permutation(np.concatenate(drawn))


def cut_steps(order: np.ndarray, lengths: np.ndarray, batch_tokens: int) -> list[np.ndarray]:
    """Cut an order into steps of up to `batch_tokens` tokens, or of one conversation that is longer than that.

    Lengths 3, 3, 3 with 6 tokens a step -> [first, second], [third].
    """
    if not len(order):
        return []
    ends = lengths[order].cumsum()  # tokens up to and with each conversation
    starts, start = [], 0
    while True:
        before = ends[start - 1] if start else 0
        start = max(start + 1, int(ends.searchsorted(before + batch_tokens, side="right")))
        if start >= len(order):
            return np.split(order, starts)
        starts.append(start)


def cut_micro_batches(
    indices: np.ndarray, lengths: np.ndarray, micro_batch_tokens: int
) -> list[np.ndarray]:
    """Sort a step's conversations by length, and cut where the padded rectangle would be over the limit."""
    if not len(indices):
        return []
    indices = indices[np.argsort(lengths[indices], kind="stable")]
    starts = [0]
    for position, longest in enumerate(lengths[indices].tolist()):
        if position > starts[-1] and (position + 1 - starts[-1]) * longest > micro_batch_tokens:
            starts.append(position)
    return np.split(indices, starts[1:])


def micro_batches_of(
    indices: np.ndarray, dataset: Dataset, micro_batch_tokens: int
) -> list[np.ndarray]:
    """This process's share of a step's conversations, in micro-batches: as many as every other process has, the last
    ones empty where need be, since processes that shard a model have to compute it together."""
    shares = (indices[process :: world_size()] for process in range(world_size()))
    cuts = [cut_micro_batches(share, dataset.lengths, micro_batch_tokens) for share in shares]
    mine = cuts[rank()]
    return mine + [indices[:0]] * (max(map(len, cuts)) - len(mine))


def collate(
    dataset: Dataset, indices: np.ndarray, device: str = "cpu"
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A micro-batch as tensors: `ids` (B, T), right-padded; `real` (N,) and `at` (n,), flat indices into B*T of the
    tokens that are not padding and of those that have a target; `targets` (n,). Of no conversation: one token that
    nobody learns from."""
    if not len(indices):
        return tuple(
            torch.zeros(shape, dtype=torch.long, device=device) for shape in ((1, 1), 1, 0, 0)
        )
    lengths = dataset.lengths[indices]
    is_real = (
        np.arange(lengths.max()) < lengths[:, None]
    )  # (B, T): padding is known by its place, never by its id
    spans = [slice(dataset.offsets[i], dataset.offsets[i + 1]) for i in indices]
    ids, supervised = np.zeros(is_real.shape, np.int64), np.zeros(is_real.shape, bool)
    ids[is_real] = np.concatenate([dataset.ids[span] for span in spans])
    supervised[is_real] = np.concatenate([dataset.loss_mask[span] for span in spans])
    # The shift, here and nowhere else: the target at a position is the next token, if that one is supervised.
    #   ids       <|im_start|> assistant \n     Hello    <|im_end|>  \n
    #   mask            0          0     0        1           1       0
    #   target          -          -   Hello  <|im_end|>      -       -
    targets = np.full(ids.shape, IGNORED, np.int64)
    targets[:, :-1][supervised[:, 1:]] = ids[:, 1:][supervised[:, 1:]]
    at = np.flatnonzero(targets != IGNORED)
    arrays = ids, np.flatnonzero(is_real), at, targets.flatten()[at]
    return tuple(torch.from_numpy(values).to(device) for values in arrays)


# The data of a run


@dataclass
class Data:
    """The training set, with each file's share of it, and the validation set."""

    train_set: Dataset
    pools: list[np.ndarray]  # each file's conversations, as indices into train_set
    weights: Sequence[float]  # of the files
    val_set: Dataset
    val_paths: Sequence[Path]
    val_indices: np.ndarray

    def epoch_steps(self, seed: int, batch_tokens: int, epoch: int) -> list[np.ndarray]:
        """The conversations of each step of an epoch."""
        return cut_steps(
            epoch_order(self.pools, self.weights, seed, epoch), self.train_set.lengths, batch_tokens
        )

    def steps(self, seed: int, batch_tokens: int) -> Iterator[tuple[int, np.ndarray]]:
        """(epoch, conversations) of step 1, 2, ..., without end."""
        for epoch in itertools.count():
            yield from ((epoch, indices) for indices in self.epoch_steps(seed, batch_tokens, epoch))

    @property
    def digest(self) -> str:
        return f"{self.train_set.digest} {self.val_set.digest}"


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


def prepare_data(
    files: Sequence[str], val_files: Sequence[str], build: Callable, seed: int
) -> Data:
    """Read and render the files, hold some conversations out, and say what there is. `build` is `build_dataset` with
    all but its first argument."""
    paths, weights = zip(*map(split_weight, files))
    train_set, report = build(paths)
    log("data      " + "\n          ".join(report))
    is_held_out = np.zeros(len(train_set), bool)
    if val_files:
        val_paths = [find_file(path) for path in val_files]
        val_set, report = build(val_paths)
        log("held out  " + "\n          ".join(report))
        val_indices = np.arange(len(val_set))
    else:
        val_paths, val_set = paths, train_set
        shuffled = np.random.default_rng([seed, len(train_set)]).permutation(len(train_set))
        val_indices = shuffled[: min(len(train_set) // 20, 200)].copy()
        is_held_out[val_indices] = True
        log(f"held out  {len(val_indices)} of these conversations (5 %, at most 200; seed {seed})")
    pools = [
        np.flatnonzero((train_set.sources[:, 0] == i) & ~is_held_out) for i in range(len(paths))
    ]
    if len(paths) > 1:
        tokens = [weight * train_set.lengths[pool].sum() for weight, pool in zip(weights, pools)]
        shares = [
            f"{path.name} {100 * part / sum(tokens):.1f} %" for path, part in zip(paths, tokens)
        ]
        log("mixture   " + ", ".join(shares) + " of an epoch's tokens")
    for path, pool, weight in zip(paths, pools, weights):
        if not len(epoch_order([pool], [weight], seed, 0)):
            raise ValueError(
                f"{path}: nothing is left of its {len(pool)} conversations at a weight of {weight:g}"
            )
    return Data(train_set, pools, weights, val_set, val_paths, val_indices)
