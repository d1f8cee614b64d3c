"""dataset.py: counting what is kept, drawing an order, cutting it into steps and micro-batches, the shift."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import conversation, write_jsonl

from chat_template import TEMPLATES
from dataset import collate, cut_micro_batches, cut_steps, epoch_order
from runtime.tokens import Dataset, build_dataset


def dataset_of(conversations: list[tuple[list[int], list[int]]]) -> Dataset:
    """A data set of conversations given as (ids, mask)."""
    offsets = np.cumsum([0, *(len(ids) for ids, _ in conversations)])
    ids, mask = (np.concatenate([pair[part] for pair in conversations]) for part in (0, 1))
    sources = np.stack([np.zeros(len(conversations), int), np.arange(len(conversations))], axis=1)
    return Dataset(ids.astype(np.int32), mask.astype(np.uint8), offsets, sources)


def random_dataset(seed: int, number: int, longest: int = 40) -> Dataset:
    """Ragged conversations; ids 0 and 256, which padding might be made of, stand everywhere among the real ones."""
    random = np.random.default_rng(seed)
    conversations = []
    for length in random.integers(2, longest + 1, number):
        ids, mask = random.choice([0, 256, *range(257)], length), random.integers(0, 2, length)
        mask[0], mask[random.integers(1, length)] = 0, 1
        conversations.append((ids, mask))
    return dataset_of(conversations)


def test_targets_are_the_next_tokens_that_are_supervised():
    """Claims 5, 9: the shift, against a table aligned by hand. "." in a mask or target is none; "$" is the stop."""
    table = [
        #  ids        mask       the target stands one place before the token that is supervised
        ("Qhi?Ayo$.", "000001110", "....yo$.."),
        ("QAno$Ayes$", "0011100000", ".no$......"),  # the second answer has weight 0
        ("doc$", "1111", "oc$......."),  # nothing stands before a first token: it is never a target
    ]
    dataset = dataset_of(
        [([ord(c) for c in ids], [int(c) for c in mask]) for ids, mask, _ in table]
    )
    ids, real, at, targets = collate(dataset, np.arange(3))
    written = [["."] * 10 for _ in table]
    for position, target in zip(at.tolist(), targets.tolist()):
        written[position // 10][position % 10] = chr(target)
    assert ["".join(row) for row in written] == [row.ljust(10, ".") for _, _, row in table]
    assert real.tolist() == [*range(9), *range(10, 20), *range(20, 24)]
    assert "".join(map(chr, ids.flatten()[real].tolist())) == "".join(row for row, _, _ in table)


def test_an_epoch_draws_every_file_by_its_weight():
    """Claim 14: weight 1 is exactly once an epoch; 0.3 a fraction, drawn anew each epoch; 2.75 two or three times."""
    pools, weights = [np.arange(10), np.arange(10, 20), np.arange(20, 24)], [1.0, 0.3, 2.75]
    drawn_from_second = set()
    for epoch in range(40):
        order = epoch_order(pools, weights, seed=7, epoch=epoch)
        times = Counter(order.tolist())
        assert [times[i] for i in range(10)] == [1] * 10
        assert sorted(times[i] for i in range(10, 20)) == [0] * 7 + [1] * 3
        assert sorted(times[i] for i in range(20, 24)) == [2, 3, 3, 3]
        drawn_from_second |= {i for i in times if 10 <= i < 20}
    assert drawn_from_second == set(range(10, 20))


def test_the_order_is_a_function_of_seed_and_epoch():
    """Claims 14, 19: no hidden state; another seed or epoch is another order, which mixes the files."""
    pools, weights = [np.arange(20), np.arange(20, 40)], [1.0, 1.0]
    orders = {}
    for seed, epoch in [(0, 0), (0, 1), (1, 0), (1, 1), (0, 0), (1, 0)]:
        np.random.seed(len(orders))
        order = tuple(epoch_order(pools, weights, seed, epoch).tolist())
        assert orders.setdefault((seed, epoch), order) == order
        assert 0 < sum(i < 20 for i in order[:20]) < 20 and list(order) != sorted(order)
    assert len(set(orders.values())) == 4


def test_steps_and_micro_batches_lose_nothing_and_obey_their_limits():
    """Claims 8, 14, 15: cut from random lengths; a limit is exceeded only by a single conversation."""
    assert [step.tolist() for step in cut_steps(np.arange(3), np.array([3, 3, 3]), 6)] == [
        [0, 1],
        [2],
    ]
    random = np.random.default_rng(0)
    for _ in range(300):
        lengths, limit = (
            random.integers(1, 30, random.integers(1, 25)),
            int(random.integers(1, 120)),
        )
        order = random.permutation(len(lengths))
        steps, micro_batches = (
            cut_steps(order, lengths, limit),
            cut_micro_batches(order, lengths, limit),
        )
        assert np.concatenate(steps).tolist() == order.tolist()
        assert sorted(np.concatenate(micro_batches)) == list(range(len(lengths)))
        for groups, padded in ((steps, False), (micro_batches, True)):
            sizes = [
                lengths[group].max() * len(group) if padded else lengths[group].sum()
                for group in groups
            ]
            assert all(size <= limit or len(group) == 1 for group, size in zip(groups, sizes))
            for group, size, following in zip(
                groups, sizes, groups[1:]
            ):  # no group is smaller than need be
                more = lengths[following[0]]
                assert (more * (len(group) + 1) if padded else size + more) > limit
    nothing = np.arange(0)
    assert (
        cut_micro_batches(nothing, nothing, 6) == [] and cut_steps(nothing, nothing, 6) == []
    )  # not one empty step


RECORDS = [
    conversation("hi", "yo"),
    conversation(
        "a question", "a long answer " * 6
    ),  # over the limit, and so is the start of its answer: no
    conversation("a long question " * 6, "yes"),  # over the limit, before its answer begins
    {
        "messages": [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "no", "weight": 0},
        ]
    },
    {"text": "plain", "note": 1},
]


def test_what_is_dropped_and_truncated_is_counted(tmp_path: Path, tokenizer):
    """Claim 8: everything read is kept, dropped as over-long, or dropped as unsupervised, and the report says so."""
    path = write_jsonl(tmp_path / "some.jsonl", RECORDS)
    tokenizer = tokenizer.with_special(["<|im_start|>", "<|im_end|>"])
    shorter = len("|user\nhi|\n|assistant\nyo|\n") + len("plain$")
    dropping, report = build_dataset([path], tokenizer, "chatml", max_length=60)
    assert [tuple(source) for source in dropping.sources] == [(0, 0), (0, 4)] and len(
        dropping.ids
    ) == shorter
    assert dropping.n_supervised.tolist() == [len("yo$"), len("plain$") - 1]
    text = "\n".join(report)
    assert f"2 conversations, {shorter} tokens, 8 supervised" in text and "'note' (1)" in text
    assert (
        "longer than 60 tokens: 2 dropped, 0 truncated" in text
        and "nothing supervised: 1 dropped" in text
    )

    truncating, report = build_dataset(
        [path], tokenizer, "chatml", max_length=60, overlong="truncate"
    )
    assert truncating.lengths.tolist() == [25, 60, 6] and len(truncating) == 3
    assert truncating.n_supervised.tolist() == [3, 60 - len("|user\na question|\n|assistant\n"), 5]
    assert "0 dropped, 2 truncated" in "\n".join(
        report
    ) and "nothing supervised: 2 dropped" in "\n".join(report)


@pytest.mark.parametrize("template", TEMPLATES)
def test_truncation_is_a_prefix_and_a_loose_limit_does_nothing(
    tmp_path: Path, tokenizer, template: str
):
    """Claim 6: ids and mask up to the limit, no stop token added; a limit that does not bind is bit-identical."""
    path = write_jsonl(tmp_path / "one.jsonl", [conversation("q", "an answer", "and?", "more")])
    tokenizer = tokenizer.with_special(TEMPLATES[template].special_tokens)
    whole, _ = build_dataset([path], tokenizer, template, max_length=10**6)
    n, first = len(whole.ids), int(whole.loss_mask.argmax())
    for overlong in ("drop", "truncate"):
        for limit in (n, n + 1):
            same, report = build_dataset(
                [path], tokenizer, template, max_length=limit, overlong=overlong
            )
            assert same.digest == whole.digest and "0 dropped, 0 truncated" in "\n".join(report)
    for limit in range(1, n):
        if limit <= first:  # not one supervised token is left
            with pytest.raises(ValueError, match="nothing to learn"):
                build_dataset([path], tokenizer, template, max_length=limit, overlong="truncate")
            continue
        cut, _ = build_dataset([path], tokenizer, template, max_length=limit, overlong="truncate")
        assert cut.ids.tolist() == whole.ids[:limit].tolist()
        assert cut.loss_mask.tolist() == whole.loss_mask[:limit].tolist()
    with pytest.raises(ValueError, match=f"1 are longer than {n - 1} tokens"):
        build_dataset([path], tokenizer, template, max_length=n - 1)


@pytest.mark.parametrize(
    "content",
    ["", "\n\n", "[]", '{"messages": [{"role": "assistant", "content": "x", "weight": 0}]}'],
)
def test_a_file_with_nothing_to_learn_from_is_an_error(tmp_path: Path, tokenizer, content: str):
    """Claim 8: also where the other file of the mixture is fine."""
    good, empty = (
        write_jsonl(tmp_path / "good.jsonl", [conversation("q", "a")]),
        tmp_path / "empty.jsonl",
    )
    empty.write_text(content)
    with pytest.raises(ValueError, match="empty.jsonl: no(thing to learn| record)"):
        build_dataset([good, empty], tokenizer, "xml")


def test_the_digest_sees_ids_mask_and_borders():
    """Claim 19: a resumed run notices that its data changed."""
    variants = (
        [([1, 2], [0, 1]), ([3], [0])],
        [([1, 2], [0, 1]), ([4], [0])],
        [([1, 2], [0, 1]), ([3], [1])],
    )
    borders_moved = [([1], [0]), ([2, 3], [1, 0])]
    assert len({dataset_of(list(variant)).digest for variant in (*variants, borders_moved)}) == 4
