"""From files to flat arrays of tokens (of large files on all cores, once), and to a run's data."""

import contextlib
import hashlib
import io
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

import numpy as np

import chat_template
import tokenizer as tokenizer_module
from runtime import records
from runtime.console import LiveLine, log, one_line
from runtime.files import find_file, lock
from tokenizer import Tokenizer

COLUMNS = {"ids": np.int32, "loss_mask": np.uint8, "offsets": np.int64, "sources": np.int64}
BATCH = 2**18  # bytes of a file that are rendered at a time
LARGE = 2**23  # bytes of files from which on all cores render them, and the cache keeps the tokens
KEPT = 6  # how many data sets stay in the cache, those that were used last


@dataclass
class Dataset:
    """Conversations as flat arrays; conversation i is `[offsets[i]:offsets[i + 1]]`."""

    ids: np.ndarray  # (total tokens,) int32
    loss_mask: np.ndarray  # (total tokens,) uint8: 1 where supervised, which no first token is
    offsets: np.ndarray  # (conversations + 1,) int64
    sources: np.ndarray  # (conversations, 2) int64: which file, which of its records

    def __post_init__(self) -> None:
        self.sources = self.sources.reshape(-1, 2)  # in files it is flat, like the others
        self.lengths = np.diff(self.offsets)  # tokens of each conversation, (conversations,) int64
        masks = (self.loss_mask[i:j] for i, j in itertools.pairwise(self.offsets))
        self.n_supervised = np.fromiter(map(np.count_nonzero, masks), np.int64)  # supervised ones
        digest = hashlib.sha256()  # of all the contents
        for name in COLUMNS:
            digest.update(np.ascontiguousarray(getattr(self, name)).reshape(-1))
        self.digest = digest.hexdigest()

    def __len__(self) -> int:
        return len(self.lengths)


@dataclass
class Renderer:
    """How records become tokens. A batch gives its file, columns ("offsets" are ends), and counts:
    by outcome (str), by length (int), by note and its subject (tuple). Raises ValueError."""

    tokenizer: Tokenizer
    template: str
    train_on: str
    max_length: int
    overlong: str

    def __call__(self, file: int, path: Path, size: int, batch: list) -> tuple[int, dict, Counter]:
        ids, loss_mask, ends, sources = columns = [], [], [], []
        count, limit = Counter(read=len(batch), bytes=size), self.max_length
        for place, line, raw in batch:
            record, turns = records.read_conversation(path, line, raw)
            tokens, mask = chat_template.render(turns, self.tokenizer, self.template, self.train_on)
            count.update(("keys not used", key) for key in records.unused_keys(record))
            count.update({len(tokens): 1, self.overlong: int(len(tokens) > limit)})
            if any(mask[:limit]) and (len(tokens) <= limit or self.overlong == "truncate"):
                ids += tokens[:limit]
                loss_mask += mask[:limit]
                ends.append(len(ids))
                sources += file, place
        count.update(kept=len(ends), tokens=len(ids), supervised=sum(loss_mask))
        return file, dict(zip(COLUMNS, map(np.array, columns, COLUMNS.values()))), count


def build_dataset(
    paths: Sequence[Path],
    tokenizer: Tokenizer,
    template: str,
    train_on: str = "assistant",
    max_length: int = 1024,
    overlong: str = "drop",
    cache: Path | None = None,
) -> tuple[Dataset, list[str]]:
    """Render every conversation of the files; also a report of what was kept, and what not and why.
    Large data sets are found in `cache`, if given, or put there. Raises ValueError for a bad record
    (`file:line: reason`), or if nothing is left; OSError for a file, or if a process is killed."""
    renderer = Renderer(tokenizer, template, train_on, max_length, overlong)
    if cache and sum(path.stat().st_size for path in paths) >= LARGE:
        dataset, reports = cached_dataset(cache, paths, renderer)
    else:
        files = {name: io.BytesIO() for name in COLUMNS}
        reports = render_files(paths, renderer, files, large=False)
        dataset = dataset_in(file.getbuffer() for file in files.values())
    named = ([f"{path}: {first}", *more] for path, (first, *more) in zip(paths, reports))
    return dataset, list(itertools.chain.from_iterable(named))


def dataset_in(buffers: Iterable) -> Dataset:
    """The data set whose columns are in these buffers. Raises ValueError for a wrong size."""
    return Dataset(*map(np.frombuffer, buffers, COLUMNS.values()))


def render_files(paths: Sequence[Path], renderer: Renderer, files: dict, large: bool) -> list:
    """Write the columns into their files, and report on each path. Raises as `build_dataset`."""
    name = str(paths[0]) + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")
    show = LiveLine().show if large else lambda text, last=False: None
    started, n_bytes = time.monotonic(), sum(path.stat().st_size for path in paths)
    total, counts = Counter(), [Counter() for _ in paths]
    files["offsets"].write(np.zeros(1, np.int64))
    parts = (map_in_processes if large else itertools.starmap)(renderer, batches_of(paths))
    for file, columns, count in parts:
        columns["offsets"] += total["tokens"]
        for column, values in columns.items():
            files[column].write(values)
        counts[file].update(count)
        total.update(count)
        seconds, share = time.monotonic() - started, min(total["bytes"] / max(n_bytes, 1), 0.99)
        how_far = f"{share:.0%}, {seconds / share - seconds:.0f} s left"
        show(f"{name}: {total['read']:,} conversations tokenised, {how_far}")
    how_far = f"in {time.monotonic() - started:.0f} s"
    show(f"{name}: {total['read']:,} conversations tokenised, {how_far}", last=True)
    if not total["kept"]:
        raise ValueError(f"{name}: {describe(total, renderer.max_length)[0]}")
    return [describe(count, renderer.max_length) for count in counts]


def batches_of(paths: Sequence[Path]) -> Iterator[tuple[int, Path, int, list]]:
    """(file, path, bytes, [(place, line, raw), ...]) of all records. Raises as `read_raw`."""
    for file, path in enumerate(paths):
        batch, size = [], 0
        for place, (line, raw) in enumerate(records.read_raw(path)):
            batch.append((place, line, raw))
            size += len(raw) if isinstance(raw, bytes) else BATCH // 256
            if size >= BATCH:
                yield file, path, size, batch
                batch, size = [], 0
        if batch:
            yield file, path, size, batch


def describe(of: Counter, max_length: int) -> list[str]:
    """Lines for the report; where nothing is left to learn from, the first one says why."""
    over, lines = f"longer than {max_length} tokens", ["no record in this file"]
    unsupervised = of["read"] - of["kept"] - of["drop"]
    if of["kept"]:
        share = f"{of['supervised']:,} supervised ({100 * of['supervised'] / of['tokens']:.0f} %)"
        lines = [f"{of['kept']:,} conversations, {of['tokens']:,} tokens, {share}"]
        lost = f"{of['drop']:,} dropped, {of['truncate']:,} truncated; nothing supervised"
        lines += [f"{over}: {lost}: {unsupervised:,} dropped"]
    elif of["read"]:
        shortest = min(key for key in of if isinstance(key, int))
        how = f"(the shortest has {shortest}; see --max-length and --overlong)"
        lost = f"{of['drop']} are {over} {how} and {unsupervised} have no supervised token"
        lines = [f"nothing to learn from: of {of['read']} conversations {lost}"]
    notes = sorted(key for key in of if isinstance(key, tuple))
    for note, keys in itertools.groupby(notes, lambda key: key[0]):
        lines += [f"{note}: " + one_line(", ".join(f"{key[1]!r} ({of[key]:,})" for key in keys))]
    return lines


def cached_dataset(cache: Path, paths: Sequence[Path], renderer: Renderer) -> tuple[Dataset, list]:
    """The data set out of the cache, and each file's report; where it is not there, or damaged, it
    is made, under a temporary name until all of it is there. Raises as `build_dataset`."""
    cache.mkdir(parents=True, exist_ok=True)
    with lock(cache, wait=True):  # whoever comes second finds what the first has made
        folder = cache / cache_key(paths, renderer)
        if folder.exists():
            with contextlib.suppress(OSError, ValueError, TypeError):
                digest, reports = json.loads((folder / "about.json").read_bytes())
                dataset = dataset_in(np.memmap(folder / name, mode="r") for name in COLUMNS)
                if dataset.digest == digest:
                    os.utime(folder / "about.json")
                    return dataset, reports
            log(f"cache     {folder} is damaged; the files are tokenised again")
            shutil.rmtree(folder)
        draft = folder.with_suffix(".tmp")
        draft.mkdir(exist_ok=True)  # a killed process may have left it
        try:
            with contextlib.ExitStack() as stack:
                files = {name: stack.enter_context(open(draft / name, "wb")) for name in COLUMNS}
                reports = render_files(paths, renderer, files, large=True)
            dataset = dataset_in(np.memmap(draft / name, mode="r") for name in COLUMNS)
            (draft / "about.json").write_text(json.dumps([dataset.digest, reports]))
            draft.rename(folder)
        finally:
            used = sorted(cache.glob("[0-9a-f]" * 32 + "/about.json"), key=os.path.getmtime)
            for old in (*cache.glob("*.tmp"), *(about.parent for about in used[:-KEPT])):
                shutil.rmtree(old, ignore_errors=True)  # who has it mapped into memory still has it
    size = sum(path.stat().st_size for path in folder.iterdir())
    log(f"cache     {folder}: {size / 1e6:,.0f} MB, for the next time")
    return dataset, reports


def cache_key(paths: Sequence[Path], renderer: Renderer) -> str:
    """SHA-256 over all that the columns depend on: files, settings, and the code that renders."""
    digest = hashlib.sha256(json.dumps(vars(renderer), default=Tokenizer.state).encode())
    sources = (module.__file__ for module in (chat_template, records, tokenizer_module))
    for path in (*paths, *sources, __file__):
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:32]


def map_in_processes(renderer: Callable, batches: Iterable[tuple]) -> Iterator:
    """What the renderer makes of the batches, in order, on all cores; few are under way at a time,
    so memory does not grow with the files. Raises a batch's ValueError in its place; OSError where
    a process is killed. Each has a pipe of its own, of which nobody else holds an end: its death,
    even half way through a message, ends that pipe, and no other waits for it. A batch is sent only
    to one that waits for it: if both ends were writing, each could wait for the other."""
    n = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    context = multiprocessing.get_context("spawn" if os.name == "nt" else "forkserver")
    numbered, pipes, at_work, made = enumerate(batches), [], {}, {}  # pipe: number; number: part

    def talk(action: Callable, *message: object) -> object:
        try:
            return action(*message)
        except (EOFError, OSError):
            reason = "one of the processes that tokenise was killed; was there too little memory?"
            raise OSError(reason) from None

    with contextlib.ExitStack() as stack:
        for _ in range(n):
            pipe, theirs = context.Pipe()
            process = context.Process(target=work, args=(theirs,), daemon=True)
            talk(process.start)
            theirs.close()  # while it is open here, the worker's death does not end the pipe
            pipes.append(stack.enter_context(pipe))
            stack.callback(process.join)
            stack.callback(process.kill)
        for pipe in pipes:
            talk(pipe.send, renderer)
        for due in itertools.count():
            while due not in made:
                idle = [pipe for pipe in pipes if pipe not in at_work and len(made) < 2 * n]
                for pipe, (number, batch) in zip(idle, numbered):
                    talk(pipe.send, batch)
                    at_work[pipe] = number
                if not at_work:
                    return
                for pipe in wait(at_work):
                    made[at_work.pop(pipe)] = talk(pipe.recv)
            if isinstance(part := made.pop(due), ValueError):
                raise part
            yield part


def work(pipe: Connection) -> None:
    """Be a worker: render batches until the parent closes the pipe, or ends, however it does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    with contextlib.suppress(EOFError, OSError):
        renderer = pipe.recv()
        for batch in iter(pipe.recv, None):
            try:
                pipe.send(renderer(*batch))
            except ValueError as error:
                pipe.send(error)


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
    """ "b.jsonl:0.3" -> (b.jsonl, 0.3); without a weight, 1. Raises ValueError, OSError."""
    path, weight = argument, 1.0
    name, _, number = argument.rpartition(":")
    if name and not Path(argument).exists():
        with contextlib.suppress(ValueError):
            weight, path = float(number), name
    if not 0 < weight < float("inf"):
        raise ValueError(f"{argument}: the weight of a file must be above 0")
    return find_file(path), weight


def read_data(options, tokenizer: Tokenizer, context: int) -> Data:
    """The data of a run, by its options (`sft.Config`), described. Raises as `build_dataset`."""
    limit, seed = options.max_length or context, options.seed
    if limit > context:
        raise ValueError(f"--max-length {limit} is more than the model's context of {context}")
    how = options.template, options.train_on, limit, options.overlong, Path(options.cache)
    paths, weights = zip(*map(split_weight, options.data))
    train_set, report = build_dataset(paths, tokenizer, *how)
    log("data      " + "\n          ".join(report))
    trained_on = np.arange(len(train_set))
    if options.val_data:
        val_paths = [find_file(path) for path in options.val_data]
        val_set, report = build_dataset(val_paths, tokenizer, *how)
        log("held out  " + "\n          ".join(report))
        val_indices = np.arange(len(val_set))
    else:
        val_paths, val_set = paths, train_set
        shuffled = np.random.default_rng([seed, len(train_set)]).permutation(trained_on)
        val_indices, trained_on = np.split(shuffled, [min(len(train_set) // 20, 200)])
        log(f"held out  {len(val_indices)} of these conversations (5 %, at most 200; seed {seed})")
    pools = [np.sort(trained_on[train_set.sources[trained_on, 0] == i]) for i in range(len(paths))]
    if len(paths) > 1:
        drawn = [int(w) + round(w % 1 * len(p)) / max(len(p), 1) for w, p in zip(weights, pools)]
        tokens = [n * train_set.lengths[pool].sum() for n, pool in zip(drawn, pools)]
        shares = (100 * n / max(sum(tokens), 1) for n in tokens)
        told = ", ".join(f"{path.name} {share:.1f} %" for path, share in zip(paths, shares))
        log(f"mixture   {told} of an epoch's tokens")
    return Data(train_set, pools, weights, paths, val_set, val_paths, val_indices)
