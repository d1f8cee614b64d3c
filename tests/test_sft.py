"""sft.py: order, steps and labels against tables; the objective against a loop that is slow and
obvious; the run against a hand-written optimiser; resuming."""

import csv
import dataclasses
import functools
import itertools
import math
import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import (
    CONFIG,
    conversation,
    dataset_of,
    make_base,
    make_model,
    random_dataset,
    write_jsonl,
)

import lora
import sft
from chat_template import TEMPLATES
from model import GPT, GPTConfig
from runtime import fast, files
from runtime.console import check_ranges, parse_arguments
from runtime.files import checkpoints_in, is_whole, save_checkpoint
from runtime.load import load_checkpoint, read_checkpoint
from runtime.records import Dataset, build_dataset, split_weight
from tokenizer import Tokenizer

ENOUGH = 1e-12  # relative to the norm, in float64


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No generated samples."""
    monkeypatch.setattr(GPT, "generate", lambda self, prompts, *_, **__: [[] for _ in prompts])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_jsonl(
        tmp_path / "data.jsonl",
        [conversation(f"{i}" * (i % 5 + 1), "a" * (i % 7)) for i in range(40)],
    )


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return make_base(tmp_path / "small.pt", n_layer=1, n_embd=16, context_length=64)


def flat_gradient(model: GPT) -> torch.Tensor:
    gradients = (torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters())
    return torch.cat([gradient.flatten() for gradient in gradients])


def nll_of_one(model: GPT, examples: Dataset, index: int) -> torch.Tensor:
    """Alone, with the logits of every position: the sum over t of -log p(token t | before)."""
    span = slice(*examples.offsets[index : index + 2])
    ids, mask = torch.from_numpy(examples.ids[span].astype(np.int64)), examples.loss_mask[span]
    log_p = model(ids[None])[0].log_softmax(-1)
    return -sum(mask[t].item() * log_p[t - 1, ids[t]] for t in range(1, len(ids)) if mask[t])


def mean_nll(model: GPT, examples: Dataset, indices: np.ndarray) -> float:
    """Of a supervised token, each with its weight."""
    nll = sum(nll_of_one(model, examples, i).item() for i in indices)
    return nll / examples.n_supervised[indices].sum()


def near(found: float, expected: float) -> bool:
    return math.isclose(found, expected, rel_tol=ENOUGH)


def near_tensor(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((found - expected).norm() <= ENOUGH * expected.norm()) and bool(expected.any())


# Which conversations a step draws


def drawing(*pools_and_weights: tuple[np.ndarray, float]) -> SimpleNamespace:
    pools, weights = zip(*pools_and_weights)
    return SimpleNamespace(pools=pools, weights=weights)


def test_an_epoch_draws_every_file_by_its_weight():
    """Claim 14: weight 1 is exactly once an epoch; 0.3 a fraction, drawn anew each epoch; 2.75 two
    or three times."""
    files = drawing((np.arange(10), 1.0), (np.arange(10, 20), 0.3), (np.arange(20, 24), 2.75))
    drawn_from_second = set()
    for epoch in range(40):
        times = Counter(sft.epoch_order(files, 7, epoch).tolist())
        assert [times[i] for i in range(10)] == [1] * 10
        assert sorted(times[i] for i in range(10, 20)) == [0] * 7 + [1] * 3
        assert sorted(times[i] for i in range(20, 24)) == [2, 3, 3, 3]
        drawn_from_second |= {i for i in times if 10 <= i < 20}
    assert drawn_from_second == set(range(10, 20))


def test_the_order_is_a_function_of_seed_and_epoch():
    """Claims 14, 19: no hidden state; another seed or epoch is another order, which mixes the
    files."""
    files, orders = drawing((np.arange(20), 1.0), (np.arange(20, 40), 1.0)), {}
    for seed, epoch in [(0, 0), (0, 1), (1, 0), (1, 1), (0, 0), (1, 0)]:
        np.random.seed(len(orders))
        order = tuple(sft.epoch_order(files, seed, epoch).tolist())
        assert orders.setdefault((seed, epoch), order) == order
        assert 0 < sum(i < 20 for i in order[:20]) < 20 and list(order) != sorted(order)
    assert len(set(orders.values())) == 4


def check_cuts(groups: list[np.ndarray], lengths: np.ndarray, limit: int) -> None:
    """A limit is exceeded only by a single conversation, and no group is smaller than need be."""
    sizes = [lengths[group].sum() for group in groups]
    assert all(size <= limit or len(group) == 1 for group, size in zip(groups, sizes))
    for size, following in zip(sizes, groups[1:]):
        assert size + lengths[following[0]] > limit


def test_steps_lose_nothing_and_obey_their_limit():
    """Claims 8, 14, 15: cut from random lengths."""
    threes = sft.cut_steps(np.arange(3), np.array([3, 3, 3]), 6)
    assert [step.tolist() for step in threes] == [[0, 1], [2]]
    random = np.random.default_rng(0)
    for _ in range(300):
        lengths = random.integers(1, 30, random.integers(1, 25))
        order, limit = random.permutation(len(lengths)), int(random.integers(1, 120))
        steps = sft.cut_steps(order, lengths, limit)
        assert np.concatenate(steps).tolist() == order.tolist()
        check_cuts(steps, lengths, limit)
    assert sft.cut_steps(np.arange(0), lengths, 6) == []  # not one empty step


def test_steps_go_on_from_epoch_to_epoch():
    """Claims 14, 15: each epoch is cut by itself, and has every conversation once."""
    examples = random_dataset(0, number=30)
    data = SimpleNamespace(pools=[np.arange(30)], weights=[1.0], train_set=examples)
    config = sft.Config(batch_tokens=100, seed=3)
    drawn = list(itertools.islice(sft.draw_steps(data, config), 40))
    assert [epoch for epoch, _ in drawn] == sorted(epoch for epoch, _ in drawn)
    for epoch in (0, 1):
        steps = [indices for of, indices in drawn if of == epoch]
        assert sorted(np.concatenate(steps)) == list(range(30))
        check_cuts(steps, examples.lengths, 100)


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_micro_batches_share_a_step_out(processes: int, monkeypatch):
    """Claims 9, 10, 14: every conversation is one process's; sorted by length and cut by tokens; as
    many micro-batches for each process, empty ones last."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    random = np.random.default_rng(0)
    for number in range(100):
        examples, limit = random_dataset(number, random.integers(1, 25)), random.integers(1, 120)
        indices = random.permutation(len(examples))[: random.integers(0, len(examples) + 1)]
        shares = []
        for rank in range(processes):
            monkeypatch.setenv("RANK", str(rank))
            shares.append(sft.micro_batches_of(indices, examples, int(limit)))
            full = [micro_batch for micro_batch in shares[-1] if len(micro_batch)]
            assert all(len(micro_batch) == 0 for micro_batch in shares[-1][len(full) :])
            check_cuts(full, examples.lengths, limit)
            mine = np.concatenate([indices[:0], *full])
            assert examples.lengths[mine].tolist() == sorted(examples.lengths[mine])
            assert set(mine) == set(indices[rank::processes])
        assert len(set(map(len, shares))) == 1
        assert sorted(i for share in shares for cut in share for i in cut) == sorted(indices)


# A micro-batch and its labels


def written(values: torch.Tensor) -> str:
    """ids or labels as text: no label is ".", <|im_start|> "<", <|im_end|> ">", end of text "$"."""
    signs = {sft.IGNORED: ".", 256: "$", 257: "<", 258: ">"}
    return "".join(signs.get(value) or chr(value) for value in values.tolist())


# As `written`, with "|" for a line's end, and a space between conversations.
ONE_CONVERSATION = """
    <user|hi>|<assistant|yo>|
    0000000000000000000001110
    ....................yo>..
"""
THREE_CONVERSATIONS = """
    <user|q>|<assistant|no>| doc$ <user|r>|<assistant|s>|<user|t>|<assistant|u>|
    000000000000000000001110 0111 0000000000000000000011000000000000000000000000
    ...................no>.. oc$. ...................s>.........................
"""  # the last answer has weight 0


@pytest.mark.parametrize("table", [ONE_CONVERSATION, THREE_CONVERSATIONS])
def test_labels_are_the_next_tokens_that_are_supervised(tmp_path: Path, tokenizer, table: str):
    """Claims 2, 5, 9, 14: the shift, against tables aligned by hand: ids, mask, labels. Of some
    conversations end to end, none has a label that is a token of another one."""
    records = [conversation("q", "no"), {"text": "doc"}, conversation("r", "s", "t", "u")]
    records[2]["messages"][3]["weight"] = 0
    records = [conversation("hi", "yo")] if table == ONE_CONVERSATION else records
    path = write_jsonl(tmp_path / "some.jsonl", records)
    tokenizer = tokenizer.with_special(["<|im_start|>", "<|im_end|>"])
    examples, _ = build_dataset([path], tokenizer, "chatml")
    ids, labels, _, lengths = sft.collate(examples, np.arange(len(records)))
    wanted_ids, wanted_mask, wanted_labels = table.split("\n")[1:4]
    assert written(ids) == wanted_ids.replace(" ", "").replace("|", "\n")
    assert "".join(f"{weight:.0f}" for weight in examples.loss_mask) == wanted_mask.replace(" ", "")
    assert written(labels) == wanted_labels.replace(" ", "")
    assert lengths == [len(one) for one in wanted_ids.split()]
    assert ids.dtype == labels.dtype == torch.int64


def test_a_micro_batch_is_its_conversations_end_to_end():
    """Claim 14: in any order and company, each has the ids and labels that it has alone."""
    examples, random = random_dataset(0, number=12), np.random.default_rng(0)
    alone = [sft.collate(examples, np.array([i])) for i in range(12)]
    for _ in range(20):
        chosen = random.permutation(12)[: random.integers(1, 12)]
        ids, labels, _, lengths = sft.collate(examples, chosen)
        for together, part in ((ids, 0), (labels, 1)):
            assert torch.equal(together, torch.cat([alone[i][part] for i in chosen]))
        assert lengths == [len(alone[i][0]) for i in chosen] and len(ids) == sum(lengths)
        assert int((labels != sft.IGNORED).sum()) == examples.n_supervised[chosen].sum()


def test_an_empty_share_is_a_token_that_nobody_learns_from():
    """Claims 10, 11: on the run's device, as any other micro-batch is."""
    for device in ("cpu", "meta"):
        ids, labels, _, lengths = sft.collate(random_dataset(0, 3), np.arange(0), device)
        assert ids.shape == labels.shape == (1,) and lengths == [1]
        assert ids.device.type == labels.device.type == device
    assert sft.collate(random_dataset(0, 3), np.arange(0))[1].tolist() == [sft.IGNORED]


# The objective


def count_rows(model: GPT, monkeypatch) -> list[int]:
    """How many rows the head multiplies, each time that it does."""
    rows, genuine = [], model.tok_emb.logits
    monkeypatch.setattr(model.tok_emb, "logits", lambda x: rows.append(len(x)) or genuine(x))
    return rows


@pytest.mark.parametrize("weights", [(0, 1), (0, 1, 0.25, 0.3)], ids=["", "weighted"])
@pytest.mark.parametrize("micro_batch_tokens", [1, 100, 10**6])
def test_accumulated_gradients_equal_a_loop_over_conversations(
    micro_batch_tokens: int, weights: tuple, monkeypatch
):
    """Claims 9, 13: any cut into ragged micro-batches is the same step, with logits only where
    there is a label, and as often as a label has a weight."""
    model, examples = make_model(), random_dataset(0, number=9, weights=weights)
    n_supervised = examples.n_supervised.sum()
    assert n_supervised == pytest.approx(examples.loss_mask.astype(float).sum())
    reference = sum(nll_of_one(model, examples, i) for i in range(9))
    (reference / n_supervised).backward()
    expected = flat_gradient(model)
    model.zero_grad()
    rows = count_rows(model, monkeypatch)
    cuts = sft.micro_batches_of(np.arange(9), examples, micro_batch_tokens)
    batches = [sft.collate(examples, cut) for cut in cuts]
    nll = sft.accumulate_gradients(model, batches, n_supervised)
    assert near(nll, reference.item()) and near_tensor(flat_gradient(model), expected)
    masks = np.split(examples.loss_mask, examples.offsets[1:-1])
    n_rows = [sum(np.count_nonzero(masks[i]) for i in cut) for cut in cuts]
    if len(weights) == 2:
        assert rows == n_rows  # those of a micro-batch at once
    assert sum(rows) == sum(n_rows)
    assert (len(cuts) > 1) == (micro_batch_tokens < 10**6)


def test_the_gradient_of_the_objective_is_that_of_cross_entropy():
    """Also where labels are ignored, under any factor, and in half precision."""
    generator = torch.Generator().manual_seed(0)
    for dtype, enough in ((torch.float64, ENOUGH), (torch.bfloat16, 1e-2)):
        logits = 10 * torch.randn(50, 9, generator=generator, dtype=torch.float64)
        logits = logits.to(dtype).requires_grad_()
        kept = logits.detach().clone()
        labels = torch.randint(0, 9, (50,), generator=generator)
        labels[::7] = sft.IGNORED
        by_hand = logits.double().log_softmax(-1)[labels != sft.IGNORED]
        expected = -by_hand.gather(1, labels[labels != sft.IGNORED][:, None]).sum()
        (wanted,) = torch.autograd.grad(-0.3 * expected, logits)
        nll = sft.objective(logits, labels)
        (found,) = torch.autograd.grad(-0.3 * nll, logits)
        assert math.isclose(nll.item(), expected.item(), rel_tol=1e-6) and found.dtype == dtype
        assert (found - wanted).norm() <= enough * wanted.norm() and torch.equal(logits, kept)
        assert not found[::7].any() and found[1::7].any()
    assert sft.objective(logits[:0], labels[:0]).item() == 0


@pytest.mark.parametrize("lora_rank", [0, 2])
@pytest.mark.parametrize("most_logits", [1, 300 * 5, 10**9])
def test_the_loss_in_parts_is_the_loss(most_logits: int, lora_rank: int, monkeypatch):
    """Claims 9, 12: however few positions have their logits in memory at a time; with adapters,
    too."""
    examples = random_dataset(4, number=6)
    batch, n_supervised = sft.collate(examples, np.arange(6)), int(examples.n_supervised.sum())
    model = make_model()
    if lora_rank:
        model.requires_grad_(True)
        lora.add_lora(model, lora_rank, token_ids=(3, 5))
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    ids, labels, _, lengths = batch
    expected = sft.nll_sum(model(ids, lengths), labels)
    (expected / n_supervised).backward()
    wanted = flat_gradient(model)
    model.zero_grad()
    rows = count_rows(model, monkeypatch)
    monkeypatch.setattr(sft, "MOST_LOGITS", most_logits)
    nll = sft.accumulate_gradients(model, [batch], n_supervised)
    assert near(nll, expected.item()) and near_tensor(flat_gradient(model), wanted)
    most = max(1, most_logits // model.config.vocab_size)
    assert sum(rows) == n_supervised and max(rows) <= most
    assert (len(rows) > 1) == (n_supervised > most)
    rows.clear()
    found = sft.evaluate_loss(model, examples, np.arange(6), 10**6)
    assert near(found, expected.item() / n_supervised) and max(rows) <= most


def test_a_micro_batch_without_labels_adds_zero():
    """Claim 11: zero to the gradient and to the loss, also when it stands alone, and where there is
    no conversation in it at all."""
    model, examples = make_model(), random_dataset(1, number=4)
    batch = sft.collate(examples, np.arange(4))
    unsupervised = dataset_of([([1, 2, 3], [0, 0, 0]), ([4, 5], [0, 0])])
    for masked in (sft.collate(unsupervised, np.arange(2)), sft.collate(examples, np.arange(0))):
        model.zero_grad()
        assert sft.accumulate_gradients(model, [masked], 10) == 0
        assert not flat_gradient(model).any()
        assert all(p.grad is not None for p in model.parameters())  # FSDP waits for them
        model.zero_grad()
        nll = sft.accumulate_gradients(model, [batch], 10)
        expected = flat_gradient(model)
        model.zero_grad()
        assert sft.accumulate_gradients(model, [masked, batch, masked], 10) == nll
        assert torch.equal(flat_gradient(model), expected) and expected.any()


def test_what_stands_in_padding_changes_nothing(monkeypatch):
    """Claim 5: there is none but in the attention of GPUs and of --compile: bit-identical loss and
    gradient whatever stands in it, and those of the attention without padding."""
    examples = random_dataset(2, number=6)
    batch = sft.collate(examples, np.arange(6))
    plain, padded = make_model(), make_model()
    padded.spans = functools.partial(fast.Spans, device="cpu")
    for block in padded.blocks:
        block.attn.attend = functools.partial(fast.attend_padded, block.attn)
    assert sum(map(math.prod, padded.spans(batch[-1]).shapes)) > len(batch[0])
    expected, results = sft.accumulate_gradients(plain, [batch], 7), []
    for padding in (0.0, 1.0, -300.0):
        with monkeypatch.context() as patch:
            fill = lambda like, *shape, padding=padding: like.new_full(shape, padding)  # noqa: E731
            patch.setattr(torch.Tensor, "new_zeros", fill)
            padded.zero_grad()
            nll = sft.accumulate_gradients(padded, [batch], 7)
            results.append((nll, flat_gradient(padded)))
    for nll, gradient in results:
        assert nll == results[0][0] and torch.equal(gradient, results[0][1])
        assert near(nll, expected) and near_tensor(gradient, flat_gradient(plain))


def test_nll_is_a_sum_in_full_precision():
    """Claim 12: by hand; ignored labels count nothing; bfloat16 logits are not summed in
    bfloat16."""
    logits = torch.tensor([[0.0, math.log(3)], [0.0, 0.0], [5.0, 5.0]])
    by_hand = math.log(4 / 3) + math.log(2)
    assert sft.nll_sum(logits, torch.tensor([1, 0, -100])).item() == pytest.approx(by_hand)
    many, labels = torch.zeros(10_000, 2, dtype=torch.bfloat16), torch.zeros(10_000).long()
    assert sft.nll_sum(many, labels).item() == pytest.approx(1e4 * math.log(2), rel=1e-5)
    assert sft.nll_sum(logits.double(), torch.tensor([1, 0, 0])).dtype == torch.float64


def test_validation_loss_counts_the_stop_token_whatever_the_batch(tmp_path: Path, tokenizer):
    """Claim 12: by hand, over `yo` and its stop token; then over ragged conversations in any
    micro-batches."""
    model = make_model(dropout=0.5)
    path = write_jsonl(tmp_path / "one.jsonl", [conversation("hi", "yo")])
    one, _ = build_dataset([path], tokenizer, "xml")
    ids = list(b"<user>\nhi\n</user>\n<assistant>\nyo") + [256] + list(b"\n</assistant>\n")
    log_p = model(torch.tensor([ids]))[0].log_softmax(-1)
    by_hand = -sum(log_p[t - 1, ids[t]].item() for t in (30, 31, 32)) / 3
    assert one.ids.tolist() == ids and bytes(ids[30:32]) == b"yo"
    assert near(sft.evaluate_loss(model, one, np.arange(1), 100), by_hand)
    examples = random_dataset(3, number=15, weights=(0, 1, 0.3))
    chosen = np.array([14, 3, 4, 5, 9, 0])
    expected = mean_nll(model, examples, chosen)
    for limit in (1, 50, 90, 10**6):
        model.train()
        assert near(sft.evaluate_loss(model, examples, chosen, limit), expected)
        assert model.training


def smoothed(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """An objective that is not the yardstick."""
    return F.cross_entropy(logits, labels, reduction="sum", label_smoothing=0.3)


def test_the_yardstick_is_not_the_objective(data: Path, small: Path, tmp_path: Path, monkeypatch):
    """Claim 25: training minimises what `sft.objective` says; what is called validation loss is nll
    whatever that is."""
    options = "--steps 2 --eval-every 1 --lr 0 --dtype float64"
    assert run(data, small, tmp_path / "plain", options) == 0
    monkeypatch.setattr(sft, "objective", smoothed)
    assert run(data, small, tmp_path / "smoothed", options) == 0
    plain, other = (log_rows(tmp_path / name) for name in ("plain", "smoothed"))
    assert [row["val_loss"] for row in plain] == [row["val_loss"] for row in other] and plain
    for row, other_row in zip(plain, other):
        for column in ("loss", "gradient_norm"):
            assert abs(float(row[column]) - float(other_row[column])) > 1e-3
    model, examples = make_model(), random_dataset(5, number=6)
    ids, labels, _, lengths = batch = sft.collate(examples, np.arange(6))
    at = labels != sft.IGNORED
    expected = smoothed(model(ids, lengths)[at], labels[at])
    (expected / 7).backward()
    wanted = flat_gradient(model)
    model.zero_grad()
    assert near(sft.accumulate_gradients(model, [batch], 7), expected.item())
    assert near_tensor(flat_gradient(model), wanted)


def test_the_learning_rate_stays_between_zero_and_its_peak():
    """Claim 15: for every length of run and of warm-up, up and then down, never 0 and never above
    the peak."""
    for total, warmup in itertools.product(range(1, 25), range(30)):
        rates = [sft.lr_at(step, total, warmup, 0.3) for step in range(1, total + 1)]
        assert all(0 < rate <= 0.3 for rate in rates)
        top = rates.index(max(rates))
        assert rates[:top] == sorted(rates[:top])
        assert rates[top:] == sorted(rates[top:], reverse=True)
        if warmup < total:
            assert max(rates) == 0.3 and rates[max(warmup, 1) - 1] == 0.3


def make_run(config: sft.Config, examples: Dataset) -> sft.Run:
    """As far as `Run.batches` looks at it."""
    values = dict.fromkeys(field.name for field in dataclasses.fields(sft.Run))
    data = SimpleNamespace(train_set=examples)
    return sft.Run(**values | {"config": config, "data": data, "device": "cpu"})


def test_dropout_differs_from_place_to_place(monkeypatch):
    """Claim 19: what it draws is a function of seed, step, micro-batch and process, and no two are
    alike, in whatever state torch's generator was."""
    examples, indices = random_dataset(0, number=24), np.arange(24)
    monkeypatch.setenv("WORLD_SIZE", "3")

    def drawn() -> list[float]:
        numbers = []
        for seed, step, rank in itertools.product(range(3), range(1, 9), range(3)):
            monkeypatch.setenv("RANK", str(rank))
            run = make_run(sft.Config(seed=seed, micro_batch_tokens=1), examples)
            numbers += [
                torch.rand((), dtype=torch.float64).item() for _ in run.batches(step, indices)
            ]
        return numbers

    numbers = drawn()
    assert len(set(numbers)) == len(numbers) == 3 * 8 * 24
    torch.manual_seed(7)
    assert drawn() == numbers


# The run


def run(data: Path, base: Path, folder: Path, arguments: str = "") -> int:
    fixed = f"--data {data} --init {base} --out {folder} --device cpu "
    fixed += "--batch-tokens 330 --micro-batch-tokens 150 "
    return sft.main((fixed + arguments).split())


def log_rows(folder: Path) -> list[dict]:
    with open(folder / "log.csv", newline="") as file:
        return list(csv.DictReader(file))


def newest(folder: Path) -> dict:
    return torch.load(checkpoints_in(folder)[0], weights_only=True)


def same(a, b) -> bool:
    """Bit for bit, down to the tensors of an optimiser's state."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a.dtype == b.dtype and torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.fixture
def drawn(monkeypatch) -> list[list[int]]:
    """The conversations of each step of a run, as they went through the model."""
    steps: list[list[int]] = []
    accumulate, collate = sft.accumulate_gradients, sft.collate
    counted = lambda *rest: steps.append([]) or accumulate(*rest)  # noqa: E731
    monkeypatch.setattr(sft, "accumulate_gradients", counted)

    def noted(examples, indices, device):
        if torch.is_grad_enabled():
            steps[-1] += indices.tolist()
        return collate(examples, indices, device)

    monkeypatch.setattr(sft, "collate", noted)
    return steps


def test_a_run_equals_a_hand_written_one(data: Path, small: Path, tmp_path: Path, drawn, tokenizer):
    """Claims 9, 12, 14, 15: every logged number and the final weights, from the base file and the
    data alone."""
    options = "--dtype float64 --epochs 2 --lr 0.01 --warmup-steps 3 --weight-decay 0.1 "
    assert run(data, small, tmp_path / "run", options + "--grad-clip 2.5 --eval-every 3") == 0
    tokenizer = tokenizer.with_special(["<|im_start|>", "<|im_end|>"])
    examples, _ = build_dataset([data], tokenizer, "chatml")
    epochs = [int(row["epoch"]) for row in log_rows(tmp_path / "run")]
    first, second = (
        sorted(i for of, step in zip(epochs, drawn) for i in step if of == epoch)
        for epoch in (0, 1)
    )
    assert first == second and len(set(first)) == len(first) == 38  # 2 of 40 are held out
    assert drawn[:3] != drawn[len(drawn) // 2 :][:3]
    held_out = set(range(40)) - set(first)
    sizes = [examples.lengths[step].sum() for step in drawn]
    assert max(sizes) <= 330 and min(sizes) < 250  # the trailing partial steps are among them

    model = load_checkpoint(small)[0]
    model.grow_vocab(tokenizer.n_vocab)
    model.double()
    rows = model.tok_emb.weight.data
    rows[tokenizer.special("<|im_end|>")] = rows[tokenizer.special("<|endoftext|>")]
    parameters, total = list(model.parameters()), len(drawn)
    means, squares = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    for number, (row, step) in enumerate(zip(log_rows(tmp_path / "run"), drawn, strict=True), 1):
        n_supervised = examples.n_supervised[step].sum()
        loss = sum(nll_of_one(model, examples, i) for i in step) / n_supervised
        model.zero_grad()
        loss.backward()
        norm = flat_gradient(model).norm().item()
        rate = 0.01 * number / 3 if number <= 3 else 0.01 * (total - number + 1) / (total - 3)
        with torch.no_grad():
            for p, mean, square in zip(parameters, means, squares):
                gradient = p.grad * min(1, 2.5 / (norm + 1e-6))
                p *= 1 - rate * (0.1 if p.dim() >= 2 else 0)
                mean.lerp_(gradient, 0.1)
                square.lerp_(gradient**2, 0.05)
                square_root = (square / (1 - 0.95**number)).sqrt()
                p -= rate * (mean / (1 - 0.9**number)) / (square_root + 1e-5)
        names = ("step", "loss", "learning_rate", "gradient_norm", "supervised_tokens")
        logged = [float(row[name]) for name in names]
        assert logged == pytest.approx([number, loss.item(), rate, norm, n_supervised], rel=1e-9)
        assert number > 1 or near(logged[1], loss.item())
        assert bool(row["val_loss"]) == (number % 3 == 0 or number == total)
        if row["val_loss"]:
            wanted = mean_nll(model, examples, np.array([*held_out]))
            assert float(row["val_loss"]) == pytest.approx(wanted, rel=1e-9)
    saved = newest(tmp_path / "run")["model"]
    for name, p in model.state_dict().items():
        assert (saved[name] - p).norm() <= 1e-9 * p.norm(), name


def test_without_a_learning_rate_the_log_is_the_loss_of_the_base(
    data: Path, small: Path, tmp_path: Path, drawn
):
    """Claim 12: with --lr 0 no weight moves, and every step's loss is that of the file the run
    began with."""
    options = "--lr 0 --epochs 2 --dtype float64 --template xml"
    assert run(data, small, tmp_path / "run", options) == 0
    model, tokenizer, _ = load_checkpoint(small)
    assert same(newest(tmp_path / "run")["model"], model.double().state_dict())
    examples, _ = build_dataset([data], tokenizer, "xml", max_length=64)
    for row, step in zip(log_rows(tmp_path / "run"), drawn, strict=True):
        assert near(float(row["loss"]), mean_nll(model, examples, step))


@pytest.mark.parametrize("flags", ["", "--lora-rank 2"])
@pytest.mark.parametrize("template", ["chatml", "llama2", "xml"])
def test_a_new_stop_token_starts_as_the_end_of_text(
    data: Path, small: Path, tmp_path: Path, flags: str, template: str
):
    """The other new tokens start at the mean of the known ones, and no known row moves."""
    options = f"--lr 0 --steps 1 --dtype float64 --template {template} {flags}"
    assert run(data, small, tmp_path / "run", options) == 0
    model, tokenizer, _ = load_checkpoint(tmp_path / "run")
    after = lora.merge_lora(model).tok_emb.weight.double()
    before = load_checkpoint(small)[0].tok_emb.weight.double()
    n_known, end = 257, before[tokenizer.special("<|endoftext|>")]
    for token in TEMPLATES[template].special_tokens:
        wanted = end if token == TEMPLATES[template].stop else before[:n_known].mean(0)
        assert torch.allclose(after[tokenizer.special(token)], wanted, rtol=1e-6, atol=1e-9), token
    assert torch.equal(after[:n_known], before[:n_known])


@pytest.mark.parametrize(
    ("knows", "template", "trained"),
    [
        (None, "chatml", [257, 258]),
        (None, "alpaca", []),  # which needs the end of a text alone, and that has been seen
        (None, "llama2", [259, 260]),  # new ones
        ("chatml", "chatml", []),
        ("chatml", "llama2", [259, 260]),
    ],
)
def test_rows_of_tokens_that_the_base_has_but_never_saw_are_trained(
    small: Path, tmp_path: Path, knows: str | None, template: str, trained: list[int]
):
    """Claim 18: with adapters, where the base knew no template; the stop token starts as the end
    of a text."""
    content = {name: value for name, value in read_checkpoint(small).items() if name != "file"}
    tokenizer = Tokenizer.from_state(content["tokenizer"])
    tokenizer = tokenizer.with_special(["<|im_start|>", "<|im_end|>"])
    model = GPT(GPTConfig(**content["config"] | {"vocab_size": 259, "n_vocab": 259}))
    content |= {"config": dataclasses.asdict(model.config), "model": model.state_dict()}
    path = tmp_path / "base.pt"
    save_checkpoint(path, content | {"tokenizer": tokenizer.state(), "template": knows})
    before = model.tok_emb.weight
    config = sft.Config(init=str(path), template=template, lora_rank=2)
    adapted, tokenizer, _ = sft.start_model(config)
    assert list(adapted.adapter.token_ids) == trained
    after = lora.merge_lora(adapted).tok_emb.weight
    stop = tokenizer.special(TEMPLATES[template].stop)
    wanted = before[256] if stop in trained else after[stop]
    assert torch.allclose(after[stop], wanted, rtol=1e-6)
    others = [i for i in range(259) if i != stop or stop not in trained]
    assert torch.equal(after[others], before[others])


def test_the_longest_conversation_of_a_long_context(small: Path, tmp_path: Path, capsys):
    """Claim 8: not a context of 131,072 tokens, unless it is asked for; and it is said."""
    content = {name: value for name, value in read_checkpoint(small).items() if name != "file"}
    rope = {"rope_theta": 1e4, "context_length": 131072}
    model = GPT(GPTConfig(**content["config"] | rope))
    content |= {"config": dataclasses.asdict(model.config), "model": model.state_dict()}
    save_checkpoint(tmp_path / "base.pt", content)
    data = write_jsonl(tmp_path / "data.jsonl", [conversation("q", "a" * n) for n in (9, 9000)] * 9)
    for options, limit, n_dropped in (("", 8192, 9), ("--max-length 9999", 9999, 0)):
        folder = tmp_path / f"run{limit}"
        assert run(data, tmp_path / "base.pt", folder, f"--steps 1 --template xml {options}") == 0
        said = capsys.readouterr().out
        assert f"longer than {limit} tokens: {n_dropped} dropped" in said


@pytest.mark.parametrize("steps", [1, 7])
@pytest.mark.parametrize(
    "budgets",
    ["--batch-tokens 1", "--batch-tokens 200 --micro-batch-tokens 1", "--batch-tokens 99999"],
)
def test_steps_are_optimiser_updates(
    data: Path, small: Path, tmp_path: Path, steps: int, budgets: str
):
    """Claim 15: exactly N updates for any accumulation, and the saved weights are those last
    evaluated."""
    options = f"--steps {steps} --epochs 3 --eval-every 3 --save-every 2 --lr 0.02 {budgets}"
    assert run(data, small, tmp_path / "run", options + " --dtype float32") == 0
    saved, rows = newest(tmp_path / "run"), log_rows(tmp_path / "run")
    updates = {state["step"].item() for state in saved["optimizer"]["state"].values()}
    assert updates == {steps} == {saved["step"]}
    assert [int(row["step"]) for row in rows] == [*range(1, steps + 1)]
    assert all(0 <= float(row["learning_rate"]) <= 0.02 for row in rows)
    model, tokenizer, _ = load_checkpoint(tmp_path / "run")
    examples, _ = build_dataset([data], tokenizer, "chatml", max_length=64)
    held_out = np.random.default_rng([0, 40]).permutation(40)[:2]
    evaluated = sft.evaluate_loss(model, examples, held_out, 150)
    assert evaluated == pytest.approx(float(rows[-1]["val_loss"]), rel=1e-6)


class Killed(BaseException):
    """Nothing in the code catches it."""


def kill(monkeypatch, owner: object, name: str, at_call: int) -> None:
    genuine, calls = getattr(owner, name), itertools.count(1)

    def deadly(*arguments, **more):
        if next(calls) == at_call:
            raise Killed
        return genuine(*arguments, **more)

    monkeypatch.setattr(owner, name, deadly)


DROPOUT = "--epochs 2 --save-every 2 --lr 0.01 --dropout 0.2 --warmup-steps 2 --seed 5"
LORA = DROPOUT + " --lora-rank 2 --lora-dropout 0.2"
DEATHS = [
    (sft, "collate", 14),  # inside a step, between two micro-batches
    (sft, "collate", 23),  # in the second epoch
    (sft, "evaluate_loss", 1),
    (sft, "save_checkpoint", 2),  # the row is in the log, the checkpoint is not there
    (files.hashlib, "file_digest", 2),  # during a save: a file without its checksum lies beside
    (Path, "unlink", 2),  # saved, and nothing pruned yet
]


@pytest.mark.parametrize(
    "options, deaths",
    [(DROPOUT, DEATHS), (LORA, DEATHS[:4]), (LORA + " --dtype float64", DEATHS[:1])],
    ids=["dropout", "LoRA", "LoRA-float64"],
)
def test_a_killed_run_ends_as_if_it_had_not_been(
    data: Path, small: Path, tmp_path: Path, monkeypatch, options: str, deaths: list
):
    """Claims 19, 22: bit-identical weights, optimiser state and log, wherever it was killed, with
    dropout."""
    assert run(data, small, tmp_path / "whole", options) == 0
    expected, expected_log = newest(tmp_path / "whole"), (tmp_path / "whole/log.csv").read_bytes()
    trained = "adapter" if "lora" in options else "model"
    for number, death in enumerate(deaths):
        folder = tmp_path / str(number)
        torch.manual_seed(number)
        with monkeypatch.context() as patch, pytest.raises(Killed):
            kill(patch, *death)
            run(data, small, folder, options)
        assert checkpoints_in(folder), death
        torch.manual_seed(100 + number)
        assert sft.main(["--resume", str(folder)]) == 0
        result = newest(folder)
        assert (folder / "log.csv").read_bytes() == expected_log, death
        for part in (trained, "optimizer"):
            assert same(result[part], expected[part]), (death, part)
        assert len(checkpoints_in(folder)) == 2 and not list(folder.glob("*.tmp"))


def test_a_damaged_newest_checkpoint_costs_nothing_but_time(
    data: Path, small: Path, tmp_path: Path, capsys
):
    """Claim 19: the run goes on from the one before, to the same end; seeing and saving more often
    changes nothing."""
    assert run(data, small, tmp_path / "run", DROPOUT) == 0
    expected, log = newest(tmp_path / "run"), tmp_path / "run/log.csv"
    path, expected_log = checkpoints_in(tmp_path / "run")[0], log.read_bytes()
    path.write_bytes(path.read_bytes()[:-1000])
    assert sft.main(["--resume", str(tmp_path / "run"), "--save-every", "1"]) == 0
    assert f"{path}: damaged" in capsys.readouterr().err and log.read_bytes() == expected_log
    assert same(newest(tmp_path / "run")["model"], expected["model"])
    assert run(data, small, tmp_path / "other", DROPOUT + " --eval-every 1 --save-every 1") == 0
    assert same(newest(tmp_path / "other")["optimizer"], expected["optimizer"])


def test_a_run_goes_on_from_anywhere(data: Path, small: Path, tmp_path: Path, monkeypatch, capsys):
    """Claim 19: from another folder, and when its data lie elsewhere, if they are the same, drawn
    as they were. Bit-identical to a run that was never stopped."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    data.rename("a:2.jsonl")
    write_jsonl(Path("b.jsonl"), [conversation("x", "y" * n) for n in range(9)])
    write_jsonl(Path("v.jsonl"), [conversation("v", "w")])
    given = f"--data a:2.jsonl b.jsonl:0.5 --val-data v.jsonl --init {small} --batch-tokens 330"
    given += " --lr 0.01 --dropout 0.2 --save-every 3"
    for name in ("whole", "run"):
        assert sft.main([*given.split(), "--steps", "6", "--out", name]) == 0
    expected, run_folder = newest(tmp_path / "work/whole"), tmp_path / "work/run"
    saved = expected["args"]
    work = tmp_path / "work"
    assert saved["data"] == [f"{work}/a:2.jsonl", f"{work}/b.jsonl:0.5"]
    assert saved["val_data"] == [f"{work}/v.jsonl"]

    def goes_on(*flags: str) -> None:
        (run_folder / "checkpoint-0000006.pt").unlink()
        capsys.readouterr()
        assert sft.main(["--resume", str(run_folder), *flags]) == 0
        assert "may differ" not in capsys.readouterr().out
        for part in ("model", "optimizer"):
            assert same(newest(run_folder)[part], expected[part])

    def refused(reason: str, *flags: str) -> None:
        assert sft.main(["--resume", str(run_folder), "--steps", "7", *flags]) == 2
        assert reason in capsys.readouterr().err

    monkeypatch.chdir(tmp_path)
    goes_on()
    (tmp_path / "moved").mkdir()
    for name in ("a:2.jsonl", "b.jsonl", "v.jsonl"):
        (work / name).rename(tmp_path / "moved" / name.replace("a:2", "a"))
    refused(f"{work}/a:2.jsonl: no such file")
    moved = "--data", "moved/a.jsonl", "moved/b.jsonl:0.5", "--val-data", "moved/v.jsonl"
    goes_on(*moved)
    assert newest(run_folder)["args"]["data"][1] == f"{tmp_path}/moved/b.jsonl:0.5"
    goes_on(*moved, "--eval-every", "1")
    other = "run: the data are not those that this run started with; to train on others, use"
    other = f"{other} --init {run_folder}"
    refused(other, *moved[:2], "moved/b.jsonl:0.7")
    refused(other, *moved[:2], "moved/b.jsonl")
    refused(other, "--data", moved[2], moved[1])
    refused(other, "--val-data", "moved/b.jsonl")


def test_held_out_data_stay_held_out(data: Path, small: Path, tmp_path: Path, capsys):
    """Claim 19: --val-data with the same conversations would leave more of them to train on."""
    assert run(data, small, tmp_path / "run", "--steps 1") == 0
    capsys.readouterr()
    more = f"--resume {tmp_path}/run --steps 2 --val-data {data}"
    assert sft.main(more.split()) == 2 and "not those that this run" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags, said, difference",
    [
        ("--micro-batch-tokens 70", "70 tokens at a time: the last bits may differ", 1e-5),
        ("--dtype float64", "False, 150 tokens at a time: the last bits may differ", 1e-5),
        ("--eval-every 1", None, 0),
    ],
)
def test_what_may_change(data, small, tmp_path, capsys, flags, said, difference):
    """Claim 19: what changes the last bits at most is free, and said, as after a lack of memory."""
    assert run(data, small, tmp_path / "run", "--steps 6 --save-every 3 --lr 0.01") == 0
    expected, folder = newest(tmp_path / "run")["model"], tmp_path / "run"
    (folder / "checkpoint-0000006.pt").unlink()
    capsys.readouterr()
    assert sft.main(["--resume", str(folder), *flags.split()]) == 0
    out = capsys.readouterr().out
    assert f"{said}\n" in out if said else "may differ" not in out
    for name, weight in newest(folder)["model"].items():
        assert (weight - expected[name]).norm() <= difference * weight.norm(), name
    option = flags.split()[0][2:].replace("-", "_")
    assert str(newest(folder)["args"][option]) == flags.split()[1]


def test_other_micro_batches_draw_other_dropout(data, small, tmp_path, capsys):
    """Claim 19: then it is not the last bits alone, and that is what is said."""
    assert run(data, small, tmp_path / "run", DROPOUT + " --steps 1") == 0
    capsys.readouterr()
    resume = f"--resume {tmp_path}/run --steps 2 --micro-batch-tokens 70"
    assert sft.main(resume.split()) == 0
    assert "70 tokens at a time: dropout may draw other numbers\n" in capsys.readouterr().out


def test_a_run_of_a_gpu_goes_on_without(data, small, tmp_path, monkeypatch, capsys):
    """Claim 19: as the error proposes."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run(data, small, tmp_path / "run", "--steps 1") == 0
    path = checkpoints_in(tmp_path / "run")[0]
    content = newest(tmp_path / "run")
    content["args"]["device"] = "cuda"
    content["circumstances"] = content["circumstances"].replace("cpu", "cuda")
    save_checkpoint(path, content)
    resume = ["--resume", str(tmp_path / "run"), "--steps", "2"]
    capsys.readouterr()
    assert sft.main(resume) == 2
    assert (
        "--device cuda: torch finds none on this machine; try --device auto"
        in capsys.readouterr().err
    )
    assert sft.main([*resume, "--device", "auto"]) == 0
    assert "cuda, 1 threads" in (out := capsys.readouterr().out) and "last bits may differ" in out


def test_half_a_row_is_no_step(data: Path, small: Path, tmp_path: Path):
    """Claim 19: where the disk was full, the log may end in the first digit of step 12."""
    assert run(data, small, tmp_path / "run", "--steps 2") == 0
    with open(tmp_path / "run/log.csv", "a") as file:
        file.write("1")
    assert sft.main(["--resume", str(tmp_path / "run"), "--steps", "3"]) == 0
    assert [row["step"] for row in log_rows(tmp_path / "run")] == ["1", "2", "3"]


def test_a_finished_run_is_tidied(data: Path, small: Path, tmp_path: Path):
    """Claim 19: a run that was killed after its last save, before old checkpoints went, ends like
    any other."""
    assert run(data, small, tmp_path / "run", "--steps 3 --save-every 1 --keep-checkpoints 3") == 0
    assert len(checkpoints_in(tmp_path / "run")) == 3
    (tmp_path / "run/checkpoint-0000003.tmp").write_bytes(b"half a file")
    assert sft.main(["--resume", str(tmp_path / "run"), "--keep-checkpoints", "2"]) == 0
    names = sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*"))
    assert names == ["checkpoint-0000002.pt", "checkpoint-0000003.pt"]


def test_what_was_just_saved_is_never_pruned(data: Path, small: Path, tmp_path: Path, monkeypatch):
    """Claim 19: a damaged file of a later step does not count among --keep-checkpoints."""
    assert run(data, small, tmp_path / "run", DROPOUT + " --steps 6") == 0
    path = checkpoints_in(tmp_path / "run")[0]
    path.write_bytes(b"half a checkpoint")
    kill(monkeypatch, sft, "save_checkpoint", 2)
    with pytest.raises(Killed):
        keep_one = "--keep-checkpoints 1 --save-every 1".split()
        sft.main(["--resume", str(tmp_path / "run"), *keep_one])
    whole = [file.name for file in checkpoints_in(tmp_path / "run") if is_whole(file)]
    assert whole == ["checkpoint-0000005.pt"]


def test_a_finished_run_keeps_what_is_whole(data: Path, small: Path, tmp_path: Path):
    """Claim 19: neither does it where there is no step left to do."""
    assert run(data, small, tmp_path / "run", "--steps 3 --save-every 1 --keep-checkpoints 3") == 0
    (tmp_path / "run/checkpoint-0000003.pt").write_bytes(b"half a checkpoint")
    keep_one = "--steps 2 --keep-checkpoints 1".split()
    assert sft.main(["--resume", str(tmp_path / "run"), *keep_one]) == 0
    assert [file.name for file in checkpoints_in(tmp_path / "run")] == ["checkpoint-0000002.pt"]
    assert is_whole(tmp_path / "run/checkpoint-0000002.pt")


def test_a_checkpoint_is_plain_full_and_describes_itself(
    data: Path, small: Path, tmp_path: Path, monkeypatch
):
    """Claim 20: torch alone can read it, nothing is guessed from its name, and only the newest are
    kept."""
    options = "--steps 5 --save-every 1 --keep-checkpoints 3 --template xml --seed 3"
    assert run(data, small, tmp_path / "run", options + " --dtype float32") == 0
    assert [file.name[-4] for file in checkpoints_in(tmp_path / "run")] == ["5", "4", "3"]
    (tmp_path / "run/checkpoint-0000004.pt").rename(tmp_path / "any name")
    monkeypatch.chdir(tmp_path)
    plain = torch.load("any name", weights_only=True)
    model, tokenizer, meta = load_checkpoint("any name")
    assert {tensor.dtype for tensor in plain["model"].values()} == {torch.float32}
    assert plain["base"] == {"path": str(small), "template": None}
    assert (plain["args"]["seed"], plain["args"]["steps"]) == (3, 5)
    for content in (plain, meta):
        assert (content["step"], content["template"], content["stop"]) == (4, "xml", [256])
    assert tokenizer.encode("hé") == list("hé".encode()) and not model.training
    assert same(dict(model.state_dict()), plain["model"])


def test_an_adapter_needs_its_own_base(data: Path, small: Path, tmp_path: Path, capsys):
    """Claims 18, 20: a moved, damaged or exchanged base is an error that names the matter; adapters
    can be stacked."""
    first, second = tmp_path / "first", tmp_path / "second"
    assert run(data, small, first, "--lora-rank 2 --steps 2") == 0
    assert run(data, first, second, "--lora-rank 1 --steps 2 --template llama2") == 0
    model, tokenizer, meta = load_checkpoint(second)
    assert model.config.n_vocab == tokenizer.n_vocab == CONFIG.vocab_size + 4
    assert meta["template"] == "llama2"
    assert "model" not in newest(second)
    whole = small.read_bytes()
    for exchange, message in (
        (small.unlink, "no such file"),
        (lambda: small.write_bytes(whole[:-9]), "no whole"),
        (lambda: make_base(small, seed=1, n_layer=1, n_embd=16, context_length=64), "another base"),
    ):
        exchange()
        assert run(data, first, tmp_path / "new") == 2 and message in capsys.readouterr().err
        assert sft.main(["--resume", str(second)]) == 2 and message in capsys.readouterr().err
        small.write_bytes(whole)
    load_checkpoint(second)
    assert not (tmp_path / "new").exists()


def test_a_base_that_an_adapter_stands_on_is_kept(
    data: Path, small: Path, tmp_path: Path, monkeypatch, capsys
):
    """Claim 18: a run that goes on removes its old checkpoints, but none that an adapter's run has
    started from; neither does --overwrite. All weights of another run need no base any more."""
    base = tmp_path / "base"
    keep_one = "--save-every 1 --keep-checkpoints 1 --steps"
    assert run(data, small, base, f"{keep_one} 2") == 0
    assert run(data, base, tmp_path / "adapter", "--lora-rank 2 --steps 2") == 0
    assert sft.main(["--resume", str(base), "--steps", "4"]) == 0
    assert run(data, base, tmp_path / "whole", "--steps 2") == 0
    assert sft.main(["--resume", str(base), "--steps", "6"]) == 0
    assert [path.name[-4] for path in checkpoints_in(base)] == ["6", "2"]
    load_checkpoint(tmp_path / "adapter")
    mark = base / "base-checkpoint-0000002.pt.txt"
    said = f"the adapter in {tmp_path}/adapter stands on this checkpoint\n"
    assert mark.read_text() == said
    capsys.readouterr()
    assert run(data, small, base, "--steps 1 --overwrite") == 2
    assert f"{mark} names an adapter on this run;" in capsys.readouterr().err
    mark.unlink()
    assert sft.main(["--resume", str(base), "--steps", "7"]) == 0
    assert [path.name[-4] for path in checkpoints_in(base)] == ["7"]
    with pytest.raises(ValueError, match=f"no such file.*this adapter stands on {base}/checkpoint"):
        load_checkpoint(tmp_path / "adapter")


def test_a_base_is_found_beside_its_adapter(data: Path, small: Path, tmp_path: Path, capsys):
    """Claim 18: by its weights, wherever both were copied to; not a file of its name that is
    another model. The error says what stands on what, and where to put it."""
    here, lora = tmp_path / "here", "--lora-rank 2 --steps 2"
    assert run(data, small, here / "base", "--steps 2") == 0
    assert run(data, here / "base", here / "first", lora) == 0
    expected = load_checkpoint(here / "first")[0].state_dict()
    there = tmp_path / "there"
    here.rename(there)
    found, _, meta = load_checkpoint(there / "first")
    assert same(dict(found.state_dict()), dict(expected))
    name = "checkpoint-0000002.pt"
    assert meta["base"]["path"] == str(there / "base" / name)
    assert sft.main(["--resume", str(there / "first"), "--steps", "3"]) == 0
    assert newest(there / "first")["base"]["path"] == str(there / "base" / name)
    (there / "base" / name).rename(tmp_path / "kept.pt")
    make_base(there / "base" / name, seed=1)
    capsys.readouterr()
    told = f"another base model than this one; this adapter stands on {there}/base/{name}: "
    told += f"put that there, or at {there}/first/base.pt\n"
    for flag in ("--resume", "--init"):
        assert sft.main([flag, str(there / "first")]) == 2
        assert capsys.readouterr().err.endswith(told)
    (tmp_path / "kept.pt").rename(there / "first/base.pt")
    assert same(dict(load_checkpoint(there / "first" / name)[0].state_dict()), dict(expected))


def test_overwriting_leaves_nothing_of_the_earlier_run(
    data: Path, small: Path, tmp_path: Path, monkeypatch
):
    """Claim 8: asked for or refused, and only once the new run can begin; without --out there is a
    new folder."""
    monkeypatch.chdir(tmp_path)
    assert run(data, small, tmp_path / "run", "--steps 9 --save-every 3") == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    assert run(data, small, tmp_path / "run", "--steps 1") == 2
    assert run(tmp_path / "gone", small, tmp_path / "run", "--steps 1 --overwrite") == 2
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill(patch, sft, "accumulate_gradients", 1)
        run(data, small, tmp_path / "run", "--steps 1 --overwrite")
    assert not checkpoints_in(tmp_path / "run")  # or --resume would go on with the earlier run
    assert run(data, small, tmp_path / "run", "--steps 1 --overwrite") == 0
    assert [path.name for path in checkpoints_in(tmp_path / "run")] == ["checkpoint-0000001.pt"]
    assert len(log_rows(tmp_path / "run")) == 1
    for n, weight in ((1, ""), (2, ":0.5")):
        assert sft.main(["--data", f"{data}{weight}", "--init", str(small), "--steps", "1"]) == 0
        assert Path(f"out/data-{n}/log.csv").exists()
    assert sorted(path.name for path in Path("out").iterdir()) == ["data-1", "data-2"]


def test_overwriting_never_removes_the_base(data: Path, small: Path, tmp_path: Path, monkeypatch):
    """Claim 8: also where it lies in the repository and is called by its path from there on, while
    the command is given somewhere else."""
    for module in (files, sft):
        monkeypatch.setattr(module, "HERE", tmp_path)
    assert run(data, small, tmp_path / "run", "--steps 1") == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    whole = (tmp_path / "run/checkpoint-0000001.pt").read_bytes()
    assert run(data, tmp_path / "run", tmp_path / "run", "--steps 1 --overwrite") == 2
    assert (tmp_path / "run/checkpoint-0000001.pt").read_bytes() == whole
    assert run(data, tmp_path / "run", tmp_path / "other", "--steps 1 --lora-rank 1") == 0
    assert newest(tmp_path / "other")["base"]["path"] == "run/checkpoint-0000001.pt"


@pytest.mark.parametrize("kind", ["", "--lora-rank 2"])
def test_a_checkpoint_of_an_earlier_version_goes_on(
    data: Path, small: Path, tmp_path: Path, kind: str
):
    """Claims 19, 20: there stood a fingerprint of the base beside its path, too; and of the
    optimiser nothing but its state."""
    options = f"--steps 4 --save-every 2 --lr 0.01 {kind}"
    assert run(data, small, tmp_path / "run", options) == 0
    expected = newest(tmp_path / "run")
    (tmp_path / "run/checkpoint-0000004.pt").unlink()
    saved = newest(tmp_path / "run")
    saved["base"]["fingerprint"] = "0" * 64
    saved["optimizer"] = {"state": saved["optimizer"]["state"]}
    save_checkpoint(tmp_path / "run/checkpoint-0000002.pt", saved)
    load_checkpoint(tmp_path / "run")
    assert sft.main(["--resume", str(tmp_path / "run")]) == 0
    result = newest(tmp_path / "run")
    for part in ("adapter" if kind else "model", "optimizer", "step"):
        assert same(result[part], expected[part])


def test_other_optimisers_take_the_place_of_adamw(
    data: Path, small: Path, tmp_path: Path, monkeypatch
):
    """A fork changes one word; claim 19 holds for whatever torch.optim has."""

    def make_optimizer(model: GPT, weight_decay: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), momentum=0.9)

    monkeypatch.setattr(sft, "make_optimizer", make_optimizer)
    assert run(data, small, tmp_path / "run", "--steps 4 --save-every 2 --lr 0.01") == 0
    expected = newest(tmp_path / "run")
    (tmp_path / "run/checkpoint-0000004.pt").unlink()
    assert sft.main(["--resume", str(tmp_path / "run")]) == 0
    result = newest(tmp_path / "run")
    for part in ("model", "optimizer"):
        assert same(result[part], expected[part])
    before = load_checkpoint(small)[0].state_dict()
    assert not torch.equal(result["model"]["pos_emb.weight"], before["pos_emb.weight"])


def test_runs_in_one_process_and_in_other_threads(data: Path, small: Path, tmp_path: Path):
    """Claim 22: one after the other, in a notebook, or in a thread, where no signal handler may be
    set: the same bits each time, after runs of another kind or one that has failed, too."""
    statuses = []

    def start(name: str) -> None:
        statuses.append(run(data, small, tmp_path / name, "--steps 2 --lr 0.01 --dropout 0.1"))

    start("first")
    assert run(data, small, tmp_path / "other", LORA + " --steps 1 --dtype float64 --seed 5") == 0
    assert run(data, small, tmp_path / "failed", "--steps 1 --lr 3e38 --warmup-steps 0") == 2
    start("second")
    thread = threading.Thread(target=start, args=("third",))
    thread.start()
    thread.join()
    assert statuses == [0, 0, 0]
    first, *others = (newest(tmp_path / name) for name in ("first", "second", "third"))
    for other in others:
        assert all(same(first[part], other[part]) for part in ("model", "optimizer"))


def test_only_process_0_has_a_folder(data: Path, small: Path, tmp_path: Path, monkeypatch):
    """Claim 10: the others invent none, look into none, and are refused none in which the first has
    begun to write before they look. Who resumes a run knows it."""
    monkeypatch.chdir(tmp_path)
    arguments = ["--data", str(data), "--init", str(small), "--steps", "1"]
    (tmp_path / "run").mkdir()
    (tmp_path / "run/log.csv").write_text("step\n")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setenv("RANK", "1")
    for out in ([], ["--out", "run"]):
        assert sft.prepare([*arguments, *out]).folder is None
    assert sorted(tmp_path.rglob("*")) == before
    monkeypatch.delenv("RANK")
    with pytest.raises(ValueError, match="run holds a run"):
        sft.prepare([*arguments, "--out", "run"])
    assert sft.prepare(arguments).folder == Path("out/data-1")
    assert sft.main([*arguments, "--out", "run", "--overwrite"]) == 0
    monkeypatch.setenv("RANK", "1")
    assert sft.prepare(["--resume", "run"]).folder == Path("run")


# The command line


def test_every_field_of_the_configuration_is_a_flag():
    """One mechanism: values of every field come back from the command line as they were."""
    values = {str: "x", int: 3, float: 0.25, bool: True, list: ["a", "b"]}
    wanted, argv = {}, []
    for field in dataclasses.fields(sft.Config):
        name = str(field.type).replace("[str]", "")
        kind = next(k for k in (bool, float, int, list, str) if k.__name__ in name)
        value = list(field.metadata["choices"])[-1] if field.metadata["choices"] else values[kind]
        wanted[field.name] = value
        argv.append("--" + field.name.replace("_", "-"))
        if value is not True:
            argv += value if isinstance(value, list) else [str(value)]
    assert parse_arguments(sft.Config, argv) == (sft.Config(**wanted), set(wanted))
    assert parse_arguments(sft.Config, []) == (sft.Config(), set())


def test_help_has_one_honest_line_for_each_flag(capsys):
    """The defaults that are shown are those of the configuration."""
    with pytest.raises(SystemExit) as stop:
        sft.main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert stop.value.code == 0 and max(map(len, lines)) <= 120
    for field in dataclasses.fields(sft.Config):
        default = getattr(sft.Config(), field.name)
        shown = " ".join(default) if isinstance(default, list) else str(default)
        shown = "" if default is None or default is False else shown
        text = field.metadata["help"].replace("%%", "%") + (f" ({shown})" if shown else "")
        assert len([line for line in lines if line.endswith("  " + text)]) == 1, field.name


def test_values_out_of_range_are_refused():
    """No number may be negative or not a number; counts start at 1, dropout ends before 1."""
    check_ranges(sft.Config())
    fields = dataclasses.fields(sft.Config)
    numbers = [f for f in fields if "int" in str(f.type) or "float" in str(f.type)]
    from_zero = {"dropout", "lora_rank", "lora_dropout", "lr", "warmup_steps", "weight_decay"}
    from_zero |= {"grad_clip", "seed"}
    for field in numbers:
        below = -1e-9 if "float" in str(field.type) else -1 if field.name in from_zero else 0
        bad = [below, math.nan, math.inf] + [1.0] * ("dropout" in field.name)
        for value in bad if "float" in str(field.type) else [below]:
            with pytest.raises(ValueError, match="--" + field.name.replace("_", "-")):
                check_ranges(dataclasses.replace(sft.Config(), **{field.name: value}))
        if field.name in from_zero:
            check_ranges(dataclasses.replace(sft.Config(), **{field.name: 0}))
    assert len(numbers) > 15
    hostile = dataclasses.replace(sft.Config(), steps=[["\x1b" * 10**6] * 10**3])
    with pytest.raises(ValueError, match="^--steps .{1,200} is out of range$") as error:
        check_ranges(hostile)
    assert str(error.value).isprintable()


def test_a_weight_is_what_follows_the_last_colon(tmp_path: Path, monkeypatch):
    """FILE:WEIGHT, where FILE may hold colons itself."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.jsonl", "b:0.5", "c:d.jsonl"):
        Path(name).touch()
    expected = {"a.jsonl": ("a.jsonl", 1), "a.jsonl:0.3": ("a.jsonl", 0.3)}
    expected |= {"a.jsonl:2": ("a.jsonl", 2), "c:d.jsonl": ("c:d.jsonl", 1)}
    expected |= {"b:0.5": ("b:0.5", 1), "b:0.5:3": ("b:0.5", 3)}
    for argument, (path, weight) in expected.items():
        assert split_weight(argument) == [(Path(path), weight)]
    for weight in ("0", "-1", "nan", "inf", "x"):
        with pytest.raises((ValueError, FileNotFoundError), match="a.jsonl"):
            split_weight(f"a.jsonl:{weight}")
    for gone in ("gone", "gone:0.3"):
        with pytest.raises(FileNotFoundError, match="gone"):
            split_weight(gone)


def test_a_set_of_which_nothing_is_drawn_is_an_error(small: Path, tmp_path: Path, capsys):
    """Claim 8: its files are named. Beside another file, a small share is fine, and is printed."""
    for name in ("fine", "rare"):
        write_jsonl(tmp_path / f"{name}.jsonl", [conversation("q", "a")] * 40)
    fine, rare = (f"{tmp_path}/{name}.jsonl" for name in ("fine", "rare"))
    arguments = ["--init", str(small), "--steps", "1", "--out", f"{tmp_path}/run", "--data"]
    assert sft.main([*arguments, f"{rare}:0.01"]) == 2
    assert f"error: {rare}: nothing is left to train on" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert sft.main([*arguments, f"{rare}:0.01", fine]) == 0
    assert "rare.jsonl 0.0 %, fine.jsonl 100.0 % of an epoch's tokens" in capsys.readouterr().out
