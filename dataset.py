"""From files to batches: a random order that is a function of (seed, epoch), micro-batches.

A step is a random draw of whole conversations. Inside a step they are sorted by length, so that a micro-batch holds
little padding; whole steps of one length would bias the gradient, because length goes with the kind of task.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from runtime.console import log
from runtime.distributed import rank, world_size
from runtime.files import find_file
from runtime.records import split_weight
from runtime.tokens import Dataset

IGNORED = -100  # the target of a position that is not supervised


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
