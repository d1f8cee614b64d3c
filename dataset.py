"""From records to batches: three flat arrays, a random order that is a function of (seed, epoch), micro-batches.

A step is a random draw of whole conversations. Inside a step they are sorted by length, so that a micro-batch holds
little padding; whole steps of one length would bias the gradient, because length goes with the kind of task.
"""

import hashlib
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from chat_template import read_conversations, render, unused_keys
from tokenizer import Tokenizer

IGNORED = -100  # the target of a position that is not supervised


@dataclass
class Dataset:
    """Conversations as flat arrays; conversation i is `[offsets[i]:offsets[i + 1]]`."""

    ids: np.ndarray  # (total tokens,) int32
    loss_mask: np.ndarray  # (total tokens,) uint8, 1 where the token is supervised; never on a first token
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
        return np.diff(np.concatenate([[0], self.loss_mask.cumsum(dtype=np.int64)])[self.offsets])

    def digest(self) -> str:
        """SHA-256 of the contents."""
        arrays = self.ids, self.loss_mask, self.offsets
        return hashlib.sha256(b"".join(values.tobytes() for values in arrays)).hexdigest()


def build_dataset(
    paths: Sequence[Path],
    tokenizer: Tokenizer,
    template: str,
    train_on: str = "assistant",
    max_length: int = 1024,
    overlong: str = "drop",
) -> tuple[Dataset, list[str]]:
    """Render every conversation of the files; also a report of what was kept, and what was not and why.

    Raises ValueError (`file:line: reason`) for a bad record, and for a file that leaves nothing to learn from.
    """
    ids, loss_mask, offsets, sources, report = array("i"), array("B"), array("q", [0]), array("q"), []
    for file_index, path in enumerate(paths):
        count, unused, shortest = Counter(), Counter(), None
        for _, record, messages in read_conversations(path):
            example_ids, example_mask = render(messages, tokenizer, template, train_on)
            count["read"] += 1
            unused.update(unused_keys(record))
            shortest = min(shortest or len(example_ids), len(example_ids))
            if len(example_ids) > max_length:
                count[overlong] += 1
                if overlong == "drop":
                    continue
            example_ids, example_mask = example_ids[:max_length], example_mask[:max_length]
            example_mask[0] = 0  # nothing stands before the first token from which it could be predicted
            if not any(example_mask):
                count["unsupervised"] += 1
                continue
            count["kept"] += 1
            count["tokens"] += len(example_ids)
            count["supervised"] += sum(example_mask)
            ids.extend(example_ids)
            loss_mask.extend(example_mask)
            offsets.append(len(ids))
            sources.extend((file_index, count["read"] - 1))
        if not count["read"]:
            raise ValueError(f"{path}: no record in this file")
        if not count["kept"]:
            raise ValueError(
                f"{path}: nothing to learn from: of {count['read']} conversations {count['drop']} are longer than "
                f"{max_length} tokens (the shortest has {shortest}; see --max-length and --overlong) and "
                f"{count['unsupervised']} have no supervised token"
            )
        report += describe(path, count, unused, max_length)
    arrays = np.frombuffer(ids, np.int32), np.frombuffer(loss_mask, np.uint8), np.frombuffer(offsets, np.int64)
    return Dataset(*arrays, np.frombuffer(sources, np.int64).reshape(-1, 2)), report


def describe(path: Path, count: Counter, unused: Counter, max_length: int) -> list[str]:
    share = 100 * count["supervised"] / count["tokens"]
    kept = f"{count['kept']:,} conversations, {count['tokens']:,} tokens, {count['supervised']:,} supervised"
    over = f"longer than {max_length} tokens: {count['drop']:,} dropped, {count['truncate']:,} truncated"
    lines = [f"{path}: {kept} ({share:.0f} %)", f"{over}; nothing supervised: {count['unsupervised']:,} dropped"]
    if unused:
        lines += ["keys not used: " + ", ".join(f"{key!r} ({n:,})" for key, n in sorted(unused.items()))]
    return lines


def epoch_order(pools: Sequence[np.ndarray], weights: Sequence[float], seed: int, epoch: int) -> np.ndarray:
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
    starts, tokens = [], 0
    for position, length in enumerate(lengths[order].tolist()):
        tokens += length
        if tokens > batch_tokens and position > (starts[-1] if starts else 0):
            starts.append(position)
            tokens = length
    return np.split(order, starts)


def cut_micro_batches(indices: np.ndarray, lengths: np.ndarray, micro_batch_tokens: int) -> list[np.ndarray]:
    """Sort a step's conversations by length, and cut where the padded rectangle would be over the limit."""
    if not len(indices):
        return []
    indices = indices[np.argsort(lengths[indices], kind="stable")]
    starts = [0]
    for position, longest in enumerate(lengths[indices].tolist()):
        if position > starts[-1] and (position + 1 - starts[-1]) * longest > micro_batch_tokens:
            starts.append(position)
    return np.split(indices, starts[1:])


def collate(dataset: Dataset, indices: np.ndarray, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A micro-batch as tensors: `ids` (B, T), right-padded; `real` (N,) and `at` (n,), flat indices into B*T of the
    tokens that are not padding and of those that have a target; `targets` (n,)."""
    lengths = dataset.lengths[indices]
    is_real = np.arange(lengths.max()) < lengths[:, None]  # (B, T): padding is known by its place, never by its id
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
