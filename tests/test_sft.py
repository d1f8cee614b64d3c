"""sft.py: the objective against a loop that is slow and obvious, the run against a hand-written optimiser, resuming."""

import csv
import dataclasses
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CONFIG, conversation, make_base, make_model, write_jsonl
from test_dataset import dataset_of, random_dataset

import dataset
import lora
import sft
from chat_template import TEMPLATES
from model import GPT
from runtime import answers, files, records, tokens
from runtime.files import checkpoints_in, is_whole
from runtime.load import load_checkpoint
from runtime.options import check_ranges, parse_arguments
from runtime.records import read_raw

ENOUGH = 1e-12  # relative to the norm, in float64


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """One thread, which is the fastest for a tiny model on a busy machine, and no generated samples."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(GPT, "generate", lambda self, prompts, *_, **__: [[] for _ in prompts])
    yield
    torch.set_num_threads(threads)


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
    return torch.cat(
        [
            torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten()
            for p in model.parameters()
        ]
    )


def nll_of_one(model: GPT, examples: tokens.Dataset, index: int) -> torch.Tensor:
    """Alone, unpadded, with the logits of every position: the sum over t of -log p(token t | tokens before)."""
    span = slice(examples.offsets[index], examples.offsets[index + 1])
    ids, mask = torch.from_numpy(examples.ids[span].astype(np.int64)), examples.loss_mask[span]
    log_p = model(ids[None])[0].log_softmax(-1)
    return -sum(log_p[t - 1, ids[t]] for t in range(1, len(ids)) if mask[t])


# The objective


@pytest.mark.parametrize("micro_batch_tokens", [1, 100, 10**6])
def test_accumulated_gradients_equal_a_loop_over_conversations(
    micro_batch_tokens: int, monkeypatch
):
    """Claims 9, 13: any cut into ragged micro-batches is the same step, with logits only where there is a target."""
    model, examples = make_model(), random_dataset(0, number=9)
    n_supervised = int(examples.n_supervised.sum())
    reference = sum(nll_of_one(model, examples, i) for i in range(9))
    (reference / n_supervised).backward()
    expected = flat_gradient(model)
    model.zero_grad()
    rows, genuine = [], model.tok_emb.logits
    monkeypatch.setattr(model.tok_emb, "logits", lambda x: rows.append(len(x)) or genuine(x))
    cuts = dataset.cut_micro_batches(np.arange(9), examples.lengths, micro_batch_tokens)
    nll = sft.accumulate_gradients(
        model, [dataset.collate(examples, cut) for cut in cuts], n_supervised
    )
    assert math.isclose(nll, reference.item(), rel_tol=ENOUGH)
    assert (flat_gradient(model) - expected).norm() <= ENOUGH * expected.norm()
    assert rows == [examples.n_supervised[cut].sum() for cut in cuts] and (len(cuts) > 1) == (
        micro_batch_tokens < 10**6
    )


def test_the_gradient_of_the_objective_is_that_of_cross_entropy():
    """Also where targets are ignored, under any factor, and in half precision; and it is given out once."""
    generator = torch.Generator().manual_seed(0)
    for dtype, enough in ((torch.float64, ENOUGH), (torch.bfloat16, 1e-2)):
        logits = (
            (10 * torch.randn(50, 9, generator=generator, dtype=torch.float64))
            .to(dtype)
            .requires_grad_()
        )
        kept = logits.detach().clone()
        targets = torch.randint(0, 9, (50,), generator=generator)
        targets[::7] = -100
        expected = torch.nn.functional.cross_entropy(logits.double(), targets, reduction="sum")
        (wanted,) = torch.autograd.grad(-0.3 * expected, logits)
        nll = sft.nll_sum(logits, targets)
        (found,) = torch.autograd.grad(-0.3 * nll, logits, retain_graph=True)
        assert math.isclose(nll.item(), expected.item(), rel_tol=1e-6) and found.dtype == dtype
        assert (found - wanted).norm() <= enough * wanted.norm() and torch.equal(logits, kept)
        assert not found[::7].any() and found[1::7].any()
        with pytest.raises(RuntimeError, match="inplace"):
            nll.backward()
    assert sft.nll_sum(logits[:0], targets[:0]).item() == 0


@pytest.mark.parametrize("lora_rank", [0, 2])
@pytest.mark.parametrize("most_logits", [1, 300 * 5, 10**9])
def test_the_loss_in_parts_is_the_loss(most_logits: int, lora_rank: int, monkeypatch):
    """Claims 9, 12: however few positions have their logits in memory at a time; with adapters, too."""
    examples = random_dataset(4, number=6)
    batch, n_supervised = dataset.collate(examples, np.arange(6)), int(examples.n_supervised.sum())
    model = make_model()
    if lora_rank:
        model.requires_grad_(True)
        lora.add_lora(model, lora_rank, token_ids=(3, 5))
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    ids, real, at, targets = batch
    expected = sft.nll_sum(model(ids, at=at, real=real), targets)
    (expected / n_supervised).backward()
    wanted = flat_gradient(model)
    model.zero_grad()
    rows, genuine = [], model.tok_emb.logits
    monkeypatch.setattr(model.tok_emb, "logits", lambda x: rows.append(len(x)) or genuine(x))
    monkeypatch.setattr(sft, "MOST_LOGITS", most_logits)
    nll = sft.accumulate_gradients(model, [batch], n_supervised)
    assert math.isclose(nll, expected.item(), rel_tol=ENOUGH)
    assert (flat_gradient(model) - wanted).norm() <= ENOUGH * wanted.norm() and wanted.any()
    most = max(1, most_logits // model.config.vocab_size)
    assert (
        sum(rows) == n_supervised and max(rows) <= most and (len(rows) > 1) == (n_supervised > most)
    )
    rows.clear()
    found = sft.evaluate_loss(model, examples, np.arange(6), 10**6)
    assert math.isclose(found, expected.item() / n_supervised, rel_tol=ENOUGH) and max(rows) <= most


def test_a_micro_batch_without_targets_adds_zero():
    """Claim 11: zero to the gradient and to the loss, also when it stands alone."""
    model, examples = make_model(), random_dataset(1, number=4)
    batch = dataset.collate(examples, np.arange(4))
    masked = dataset.collate(dataset_of([([1, 2, 3], [0, 0, 0]), ([4, 5], [0, 0])]), np.arange(2))
    assert sft.accumulate_gradients(model, [masked], 10) == 0 and not flat_gradient(model).any()
    model.zero_grad()
    nll = sft.accumulate_gradients(model, [batch], 10)
    expected = flat_gradient(model)
    model.zero_grad()
    assert sft.accumulate_gradients(model, [masked, batch, masked], 10) == nll
    assert torch.equal(flat_gradient(model), expected) and expected.any()


def test_the_id_of_padding_changes_nothing():
    """Claim 5: bit-identical loss and gradient, also when padding looks like a token that is supervised."""
    model, examples = make_model(), random_dataset(2, number=6)
    ids, real, at, targets = dataset.collate(examples, np.arange(6))
    is_padding = torch.ones(ids.numel(), dtype=torch.bool).index_fill(0, real, False).view_as(ids)
    assert is_padding.any() and {0, 256} <= set(targets.tolist())
    results = []
    for pad in (0, 65, 256):
        model.zero_grad()
        nll = sft.accumulate_gradients(
            model, [(ids.masked_fill(is_padding, pad), real, at, targets)], 7
        )
        results.append((nll, flat_gradient(model)))
    assert all(
        nll == results[0][0] and torch.equal(gradient, results[0][1]) for nll, gradient in results
    )


def test_nll_is_a_sum_in_full_precision():
    """Claim 12: by hand; ignored targets count nothing; bfloat16 logits are not summed in bfloat16."""
    logits = torch.tensor([[0.0, math.log(3)], [0.0, 0.0], [5.0, 5.0]])
    assert sft.nll_sum(logits, torch.tensor([1, 0, -100])).item() == pytest.approx(
        math.log(4 / 3) + math.log(2)
    )
    many = torch.zeros(10_000, 2, dtype=torch.bfloat16)
    assert sft.nll_sum(many, torch.zeros(10_000, dtype=torch.long)).item() == pytest.approx(
        1e4 * math.log(2), rel=1e-5
    )
    assert sft.nll_sum(logits.double(), torch.tensor([1, 0, 0])).dtype == torch.float64


def test_validation_loss_counts_the_stop_token_whatever_the_batch(tmp_path: Path, tokenizer):
    """Claim 12: by hand, over `yo` and its stop token; then over ragged conversations in any micro-batches."""
    model = make_model(dropout=0.5)
    path = write_jsonl(tmp_path / "one.jsonl", [conversation("hi", "yo")])
    one, _ = tokens.build_dataset([path], tokenizer, "xml")
    ids = list(b"<user>\nhi\n</user>\n<assistant>\nyo") + [256] + list(b"\n</assistant>\n")
    log_p = model(torch.tensor([ids]))[0].log_softmax(-1)
    by_hand = -sum(log_p[t - 1, ids[t]].item() for t in (30, 31, 32)) / 3
    assert one.ids.tolist() == ids and bytes(ids[30:32]) == b"yo"
    assert math.isclose(sft.evaluate_loss(model, one, np.arange(1), 100), by_hand, rel_tol=ENOUGH)
    examples, chosen = random_dataset(3, number=15), np.array([14, 3, 4, 5, 9, 0])
    expected = (
        sum(nll_of_one(model, examples, i).item() for i in chosen)
        / examples.n_supervised[chosen].sum()
    )
    for limit in (1, 50, 90, 10**6):
        model.train()
        assert math.isclose(
            sft.evaluate_loss(model, examples, chosen, limit), expected, rel_tol=ENOUGH
        )
        assert model.training


def test_the_learning_rate_stays_between_zero_and_its_peak():
    """Claim 15: for every length of run and of warm-up, up and then down, never 0 and never above the peak."""
    for total, warmup in itertools.product(range(1, 25), range(30)):
        rates = [sft.learning_rate(step, total, warmup, 0.3) for step in range(1, total + 1)]
        assert all(0 < rate <= 0.3 for rate in rates)
        top = rates.index(max(rates))
        assert rates[:top] == sorted(rates[:top]) and rates[top:] == sorted(
            rates[top:], reverse=True
        )
        if warmup < total:
            assert max(rates) == 0.3 and rates[max(warmup, 1) - 1] == 0.3


def test_dropout_differs_from_place_to_place():
    """Claim 19: seeds are a function of (seed, step, micro-batch), and no two are alike."""
    places = list(itertools.product(range(5), range(1, 30), range(8)))
    assert len({sft.dropout_seed(*place) for place in places}) == len(places)
    assert [sft.dropout_seed(*place) for place in places] == [
        sft.dropout_seed(*place) for place in places
    ]


# The run


def run(data: Path, base: Path, folder: Path, arguments: str = "") -> int:
    fixed = f"--data {data} --init {base} --out {folder} --device cpu --batch-tokens 330 --micro-batch-tokens 150"
    return sft.main(fixed.split() + arguments.split())


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
    monkeypatch.setattr(
        sft, "accumulate_gradients", lambda *rest: steps.append([]) or accumulate(*rest)
    )

    def noted(examples, indices, device):
        if torch.is_grad_enabled():
            steps[-1] += indices.tolist()
        return collate(examples, indices, device)

    monkeypatch.setattr(sft, "collate", noted)
    return steps


def test_a_run_equals_a_hand_written_one(data: Path, small: Path, tmp_path: Path, drawn, tokenizer):
    """Claims 9, 12, 14, 15: every logged number and the final weights, from the base file and the data alone."""
    options = "--dtype float64 --epochs 2 --lr 0.01 --warmup-steps 3 --weight-decay 0.1 --grad-clip 2.5 --eval-every 3"
    assert run(data, small, tmp_path / "run", options) == 0
    tokenizer = tokenizer.with_special(["<|im_start|>", "<|im_end|>"])
    examples, _ = tokens.build_dataset([data], tokenizer, "chatml")
    epochs = [int(row["epoch"]) for row in log_rows(tmp_path / "run")]
    in_epoch = [
        sorted(i for e, step in zip(epochs, drawn) for i in step if e == epoch) for epoch in (0, 1)
    ]
    assert in_epoch[0] == in_epoch[1] and len(set(in_epoch[0])) == 38 == len(
        in_epoch[0]
    )  # 2 of 40 are held out
    assert drawn[:3] != drawn[len(drawn) // 2 :][:3]
    held_out = set(range(40)) - set(in_epoch[0])
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
                p -= (
                    rate
                    * (mean / (1 - 0.9**number))
                    / ((square / (1 - 0.95**number)).sqrt() + 1e-5)
                )
        logged = [
            float(row[name])
            for name in ("step", "loss", "learning_rate", "gradient_norm", "supervised_tokens")
        ]
        assert logged == pytest.approx([number, loss.item(), rate, norm, n_supervised], rel=1e-9)
        assert number > 1 or math.isclose(logged[1], loss.item(), rel_tol=ENOUGH)
        assert bool(row["val_loss"]) == (number % 3 == 0 or number == total)
        if row["val_loss"]:
            nll = sum(nll_of_one(model, examples, i).item() for i in held_out)
            assert float(row["val_loss"]) == pytest.approx(
                nll / examples.n_supervised[[*held_out]].sum(), rel=1e-9
            )
    saved = newest(tmp_path / "run")["model"]
    for name, p in model.state_dict().items():
        assert (saved[name] - p).norm() <= 1e-9 * p.norm(), name


def test_without_a_learning_rate_the_log_is_the_loss_of_the_base(
    data: Path, small: Path, tmp_path: Path, drawn
):
    """Claim 12: with --lr 0 no weight moves, and every step's loss is that of the file the run began with."""
    assert (
        run(data, small, tmp_path / "run", "--lr 0 --epochs 2 --dtype float64 --template xml") == 0
    )
    model, tokenizer, _ = load_checkpoint(small)
    assert same(newest(tmp_path / "run")["model"], model.double().state_dict())
    examples, _ = tokens.build_dataset([data], tokenizer, "xml", max_length=64)
    for row, step in zip(log_rows(tmp_path / "run"), drawn, strict=True):
        expected = (
            sum(nll_of_one(model, examples, i).item() for i in step)
            / examples.n_supervised[step].sum()
        )
        assert math.isclose(float(row["loss"]), expected, rel_tol=ENOUGH)


@pytest.mark.parametrize("flags", ["", "--lora-rank 2"])
@pytest.mark.parametrize("template", ["chatml", "llama2", "xml"])
def test_a_new_stop_token_starts_as_the_end_of_text(
    data: Path, small: Path, tmp_path: Path, flags: str, template: str
):
    """The other new tokens start at the mean of the known ones, and no known row moves."""
    assert (
        run(
            data,
            small,
            tmp_path / "run",
            f"--lr 0 --steps 1 --dtype float64 --template {template} {flags}",
        )
        == 0
    )
    model, tokenizer, _ = load_checkpoint(tmp_path / "run")
    after, before = (
        lora.merge_lora(model).tok_emb.weight.double(),
        load_checkpoint(small)[0].tok_emb.weight.double(),
    )
    n_known, end = 257, before[tokenizer.special("<|endoftext|>")]
    for token in TEMPLATES[template].special_tokens:
        wanted = end if token == TEMPLATES[template].stop else before[:n_known].mean(0)
        assert torch.allclose(after[tokenizer.special(token)], wanted, rtol=1e-6, atol=1e-9), token
    assert torch.equal(after[:n_known], before[:n_known])


@pytest.mark.parametrize("steps", [1, 7])
@pytest.mark.parametrize(
    "budgets",
    ["--batch-tokens 1", "--batch-tokens 200 --micro-batch-tokens 1", "--batch-tokens 99999"],
)
def test_steps_are_optimiser_updates(
    data: Path, small: Path, tmp_path: Path, steps: int, budgets: str
):
    """Claim 15: exactly N updates for any accumulation, and the saved weights are those last evaluated."""
    options = f"--steps {steps} --epochs 3 --eval-every 3 --save-every 2 --lr 0.02 --dtype float32 {budgets}"
    assert run(data, small, tmp_path / "run", options) == 0
    saved, rows = newest(tmp_path / "run"), log_rows(tmp_path / "run")
    assert (
        {state["step"].item() for state in saved["optimizer"]["state"].values()}
        == {steps}
        == {saved["step"]}
    )
    assert [int(row["step"]) for row in rows] == [*range(1, steps + 1)]
    assert all(0 <= float(row["learning_rate"]) <= 0.02 for row in rows)
    model, tokenizer, _ = load_checkpoint(tmp_path / "run")
    examples, _ = tokens.build_dataset([data], tokenizer, "chatml", max_length=64)
    held_out = np.random.default_rng([0, 40]).permutation(40)[:2]
    assert sft.evaluate_loss(model, examples, held_out, 150) == pytest.approx(
        float(rows[-1]["val_loss"]), rel=1e-6
    )


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
    (
        files.hashlib,
        "file_digest",
        2,
    ),  # during a save: a file without its checksum lies beside
    (Path, "unlink", 1),  # saved, and nothing pruned yet
]


@pytest.mark.parametrize(
    "options, deaths",
    [(DROPOUT, DEATHS), (LORA, DEATHS[:4]), (LORA + " --dtype float64", DEATHS[:1])],
    ids=["dropout", "LoRA", "LoRA-float64"],
)
def test_a_killed_run_ends_as_if_it_had_not_been(
    data: Path, small: Path, tmp_path: Path, monkeypatch, options: str, deaths: list
):
    """Claims 19, 22: bit-identical weights, optimiser state and log, wherever it was killed, with dropout."""
    assert run(data, small, tmp_path / "whole", options) == 0
    expected, expected_log = (
        newest(tmp_path / "whole"),
        (tmp_path / "whole" / "log.csv").read_bytes(),
    )
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
        assert same(result[trained], expected[trained]) and same(
            result["optimizer"], expected["optimizer"]
        ), death
        assert len(checkpoints_in(folder)) == 2 and not list(folder.glob("*.tmp"))


def test_a_damaged_newest_checkpoint_costs_nothing_but_time(
    data: Path, small: Path, tmp_path: Path, capsys
):
    """Claim 19: the run goes on from the one before, to the same end; seeing and saving more often changes nothing."""
    assert run(data, small, tmp_path / "run", DROPOUT) == 0
    expected, log = newest(tmp_path / "run"), tmp_path / "run/log.csv"
    path, expected_log = checkpoints_in(tmp_path / "run")[0], log.read_bytes()
    path.write_bytes(path.read_bytes()[:-1000])
    assert sft.main(["--resume", str(tmp_path / "run"), "--save-every", "1"]) == 0
    assert f"{path}: damaged" in capsys.readouterr().err and log.read_bytes() == expected_log
    assert same(newest(tmp_path / "run")["model"], expected["model"])
    assert run(data, small, tmp_path / "other", DROPOUT + " --eval-every 1 --save-every 1") == 0
    assert same(newest(tmp_path / "other")["optimizer"], expected["optimizer"])


def test_half_a_row_is_no_step(data: Path, small: Path, tmp_path: Path):
    """Claim 19: where the disk was full, the log may end in the first digit of step 12."""
    assert run(data, small, tmp_path / "run", "--steps 2") == 0
    with open(tmp_path / "run/log.csv", "a") as file:
        file.write("1")
    assert sft.main(["--resume", str(tmp_path / "run"), "--steps", "3"]) == 0
    assert [row["step"] for row in log_rows(tmp_path / "run")] == ["1", "2", "3"]


def test_a_finished_run_is_tidied(data: Path, small: Path, tmp_path: Path):
    """Claim 19: a run that was killed after its last save, before old checkpoints went, ends like any other."""
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
        sft.main(
            ["--resume", str(tmp_path / "run"), "--keep-checkpoints", "1", "--save-every", "1"]
        )
    assert [file.name for file in checkpoints_in(tmp_path / "run") if is_whole(file)] == [
        "checkpoint-0000005.pt"
    ]


def test_a_checkpoint_is_plain_full_and_describes_itself(
    data: Path, small: Path, tmp_path: Path, monkeypatch
):
    """Claim 20: torch alone can read it, nothing is guessed from its name, and only the newest are kept."""
    options = (
        "--steps 5 --save-every 1 --keep-checkpoints 3 --template xml --seed 3 --dtype float32"
    )
    assert run(data, small, tmp_path / "run", options) == 0
    assert [file.name[-4] for file in checkpoints_in(tmp_path / "run")] == ["5", "4", "3"]
    (tmp_path / "run/checkpoint-0000004.pt").rename(tmp_path / "any name")
    monkeypatch.chdir(tmp_path)
    plain, (model, tokenizer, meta) = (
        torch.load("any name", weights_only=True),
        load_checkpoint("any name"),
    )
    assert {tensor.dtype for tensor in plain["model"].values()} == {torch.float32}
    assert (plain["args"]["seed"], plain["args"]["steps"], plain["base"]["path"]) == (
        3,
        5,
        str(small),
    )
    for content in (plain, meta):
        assert (content["step"], content["template"], content["stop"]) == (4, "xml", [256])
    assert tokenizer.encode("hé") == list("hé".encode()) and not model.training
    assert same(dict(model.state_dict()), plain["model"])


def test_an_adapter_needs_its_own_base(data: Path, small: Path, tmp_path: Path, capsys):
    """Claims 18, 20: a moved, damaged or exchanged base is an error that names the matter; adapters can be stacked."""
    first, second = tmp_path / "first", tmp_path / "second"
    assert run(data, small, first, "--lora-rank 2 --steps 2") == 0
    assert run(data, first, second, "--lora-rank 1 --steps 2 --template llama2") == 0
    model, tokenizer, meta = load_checkpoint(second)
    assert (
        meta["template"] == "llama2"
        and model.config.n_vocab == tokenizer.n_vocab == CONFIG.vocab_size + 4
    )
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


def test_overwriting_leaves_nothing_of_the_earlier_run(
    data: Path, small: Path, tmp_path: Path, monkeypatch
):
    """Claim 8: asked for or refused, and only once the new run can begin; without --out there is a new folder."""
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
    for n in (1, 2):
        assert sft.main(["--data", str(data), "--init", str(small), "--steps", "1"]) == 0
        assert Path(f"out/data-{n}/log.csv").exists()


# The command line


def test_every_field_of_the_configuration_is_a_flag():
    """One mechanism: values of every field come back from the command line as they were."""
    values = {str: "x", int: 3, float: 0.25, bool: True, list: ["a", "b"]}
    wanted, argv = {}, []
    for field in dataclasses.fields(sft.Config):
        kind = next(
            kind
            for kind in (bool, float, int, list, str)
            if kind.__name__ in str(field.type).replace("[str]", "")
        )
        value = list(field.metadata["choices"])[-1] if field.metadata["choices"] else values[kind]
        wanted[field.name] = value
        flag = "--" + field.name.replace("_", "-")
        argv += (
            [flag]
            if value is True
            else [flag, *(value if isinstance(value, list) else [str(value)])]
        )
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
        shown = (
            " ".join(default)
            if isinstance(default, list)
            else ""
            if default is None or default is False
            else str(default)
        )
        text = field.metadata["help"].replace("%%", "%") + (f" ({shown})" if shown else "")
        assert len([line for line in lines if line.endswith("  " + text)]) == 1, field.name


def test_values_out_of_range_are_refused():
    """No number may be negative or not a number; counts start at 1, dropout ends before 1."""
    check_ranges(sft.Config())
    numbers = [
        f for f in dataclasses.fields(sft.Config) if "int" in str(f.type) or "float" in str(f.type)
    ]
    from_zero = {
        "dropout",
        "lora_rank",
        "lora_dropout",
        "lr",
        "warmup_steps",
        "weight_decay",
        "grad_clip",
        "seed",
    }
    for field in numbers:
        below = -1e-9 if "float" in str(field.type) else -1 if field.name in from_zero else 0
        bad = [below, math.nan, math.inf] + [1.0] * ("dropout" in field.name)
        for value in bad if "float" in str(field.type) else [below]:
            with pytest.raises(ValueError, match="--" + field.name.replace("_", "-")):
                check_ranges(dataclasses.replace(sft.Config(), **{field.name: value}))
        if field.name in from_zero:
            check_ranges(dataclasses.replace(sft.Config(), **{field.name: 0}))
    assert len(numbers) > 15


def test_a_weight_is_what_follows_the_last_colon(tmp_path: Path, monkeypatch):
    """FILE:WEIGHT, where FILE may hold colons itself."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.jsonl", "b:0.5", "c:d.jsonl"):
        Path(name).touch()
    expected = {
        "a.jsonl": ("a.jsonl", 1),
        "a.jsonl:0.3": ("a.jsonl", 0.3),
        "a.jsonl:2": ("a.jsonl", 2),
    }
    expected |= {"b:0.5": ("b:0.5", 1), "b:0.5:3": ("b:0.5", 3), "c:d.jsonl": ("c:d.jsonl", 1)}
    assert {argument: records.split_weight(argument) for argument in expected} == {
        argument: (Path(path), weight) for argument, (path, weight) in expected.items()
    }
    for bad in (
        "a.jsonl:0",
        "a.jsonl:-1",
        "a.jsonl:nan",
        "a.jsonl:inf",
        "gone",
        "gone:0.3",
        "a.jsonl:x",
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=bad.split(":")[0]):
            records.split_weight(bad)


def test_samples_are_the_chosen_conversations(tmp_path: Path, tokenizer, monkeypatch):
    """From JSON Lines and from an array on one line; those of one question come first; a file is not read again for
    every conversation without answer."""
    records = [conversation(f"q{i}", f"a{i}") if i % 3 else {"text": f"t{i}"} for i in range(300)]
    records[31] = {"messages": records[1]["messages"] + records[31]["messages"]}
    lines, array = (
        write_jsonl(tmp_path / "lines.jsonl", records),
        write_jsonl(tmp_path / "array.json", [records]),
    )
    reads: list[Path] = []
    monkeypatch.setattr(answers, "read_raw", lambda path: reads.append(path) or read_raw(path))
    for path in (lines, array):
        examples, _ = tokens.build_dataset([path], tokenizer, "xml")
        chosen = np.array([9, 31, 30, 299, 3, 100, 1])
        shown = answers.pick_samples(examples, [path], chosen)
        assert [messages[-1].content for messages in shown] == ["a299", "a100", "a1"]
        [shown] = answers.pick_samples(examples, [path], chosen[:2])
        assert [messages.content for messages in shown] == ["q1", "a1", "q31", "a31"]
        assert answers.pick_samples(examples, [path], np.arange(0, 300, 3)) == []
    assert len(reads) <= 20
