"""bench/ compares like with like: the same tokens and weights for all, medians and ratios that are what they say.

What it compares with (transformers, TRL) is not installed here; that those are given the same work is checked by every
run of the bench itself, which marks a row whose first loss is not ours.
"""

import argparse
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import conversation, write_jsonl

from chat_template import Message, render
from dataset import IGNORED, collate
from model import GPTConfig
from tokenizer import Tokenizer

BENCH = Path(__file__).resolve().parent.parent / "bench"
sys.path.insert(0, str(BENCH))

import contenders  # noqa: E402
import generate_speed  # noqa: E402
import gpu_speed  # noqa: E402
import scaling  # noqa: E402
import sft_speed  # noqa: E402
import task  # noqa: E402

SMALL = GPTConfig(vocab_size=320, n_vocab=259, context_length=64, n_layer=2, n_head=2, n_embd=16)


def arguments(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    task.add_arguments(parser)
    return parser.parse_args(argv)


@pytest.fixture
def chat_tokenizer(tokenizer: Tokenizer) -> Tokenizer:
    return tokenizer.with_special(task.SPECIAL_TOKENS)  # 257 and 258


@pytest.fixture
def small_task(tmp_path: Path, chat_tokenizer: Tokenizer) -> task.Task:
    records = [conversation("Question " * (1 + i % 3), "Answer " * (i % 5)) for i in range(19)]
    path = write_jsonl(tmp_path / "data.jsonl", records)
    made = task.make_task(arguments("--data", str(path), "--max-length", "64"), chat_tokenizer)
    made.config = SMALL
    return made


# The task


def test_all_get_the_ids_that_our_renderer_writes(
    tmp_path: Path, chat_tokenizer: Tokenizer
) -> None:
    path = write_jsonl(tmp_path / "data.jsonl", [conversation("Hi", "Yo")])
    dataset = task.make_task(arguments("--data", str(path)), chat_tokenizer).dataset
    ids, labels = task.ids_and_labels(dataset, 0)
    answer = [*b"Yo", 258]
    assert ids == [257, *b"user\nHi", 258, *b"\n", 257, *b"assistant\n", *answer, *b"\n"]
    assert labels == [IGNORED] * (len(ids) - 4) + answer + [IGNORED]
    assert ids == render([Message("user", "Hi"), Message("assistant", "Yo")], chat_tokenizer)[0]


def test_each_conversation_stands_in_one_step(small_task: task.Task) -> None:
    assert [len(indices) for indices in small_task.steps] == [8, 8, 3]
    assert sorted(np.concatenate(small_task.steps)) == list(range(19))
    assert small_task.tokens == len(small_task.dataset.ids)
    assert small_task.supervised == small_task.dataset.loss_mask.sum()


def test_a_padded_batch_teaches_what_our_micro_batch_teaches(small_task: task.Task) -> None:
    """Its labels, shifted as transformers shifts them, are our targets at the same places."""
    indices = small_task.steps[0]
    batch = task.padded_batch(small_task.dataset, indices)
    ids, real, at, targets = collate(small_task.dataset, indices)
    assert batch["input_ids"].equal(ids)
    assert batch["attention_mask"].flatten().nonzero().flatten().equal(real)
    shifted = F.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED).flatten()
    assert (shifted != IGNORED).nonzero().flatten().equal(at)
    assert shifted[at].equal(targets)


def test_an_over_long_conversation_is_cut_for_all(
    tmp_path: Path, chat_tokenizer: Tokenizer
) -> None:
    path = write_jsonl(tmp_path / "data.jsonl", [conversation("Hi", "Yo" * 99)])
    dataset = task.make_task(
        arguments("--data", str(path), "--max-length", "30"), chat_tokenizer
    ).dataset
    assert [len(values) for values in task.ids_and_labels(dataset, 0)] == [30, 30]


def test_a_contender_gets_the_same_arguments() -> None:
    given = arguments(
        "--data", "a file", "--shape", "gpt2", "--steps", "3", "--bfloat16", "--device", "cuda"
    )
    assert arguments(*task.shared_arguments(given)) == given
    assert arguments(*task.shared_arguments(arguments())) == arguments()


def test_random_conversations_are_supervised_in_their_second_half() -> None:
    dataset = task.random_dataset([4, 7], n_vocab=9)
    assert dataset.loss_mask.tolist() == [0, 0, 1, 1, 0, 0, 0, 0, 1, 1, 1]
    assert dataset.n_supervised.tolist() == [2, 3]
    assert 0 <= dataset.ids.min() and dataset.ids.max() < 9


def test_initial_weights_depend_on_nothing_but_their_names() -> None:
    torch.manual_seed(1)
    first = task.our_model(SMALL).state_dict()
    torch.manual_seed(2)
    second = task.our_model(SMALL).state_dict()
    assert all(tensor.equal(second[name]) for name, tensor in first.items())
    assert not first["blocks.0.mlp.up.weight"].equal(first["blocks.1.mlp.up.weight"])
    assert first["blocks.0.attn.proj.weight"].std() < 0.6 * first["blocks.0.attn.qkv.weight"].std()
    assert (first["blocks.0.attn_norm.weight"] == 1).all() and not first[
        "blocks.0.mlp.up.bias"
    ].any()


# Our contender


def test_ours_learns_what_a_padded_loop_learns(small_task: task.Task) -> None:
    """The losses of all steps are those of a loop with padding, full logits and plain AdamW."""
    record = task.Record()
    contenders.ours(small_task, record)
    model = task.our_model(SMALL)
    optimizer = torch.optim.AdamW(
        model.parameters(), task.LEARNING_RATE, task.BETAS, weight_decay=0.0
    )
    for indices, loss in zip(small_task.steps, record.losses, strict=True):
        batch = task.padded_batch(small_task.dataset, indices)
        targets = F.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED)
        wanted = F.cross_entropy(model(batch["input_ids"]).flatten(0, 1), targets.flatten())
        assert math.isclose(loss, wanted.item(), rel_tol=1e-6)
        optimizer.zero_grad()
        wanted.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), task.CLIP)
        optimizer.step()


def test_lora_starts_from_the_same_loss_and_trains_something_else(
    small_task: task.Task, monkeypatch
) -> None:
    monkeypatch.setattr(contenders, "TOKEN_IDS", (257, 258))  # the byte tokenizer's
    full, adapted = task.Record(), task.Record()
    contenders.ours(small_task, full)
    contenders.ours(small_task, adapted, lora_rank=8)
    assert full.losses[0] == adapted.losses[0]
    assert full.losses[1:] != adapted.losses[1:]


def test_a_contender_in_its_own_process_prints_its_result() -> None:
    """Without a file, so without GPT-2's vocabulary; a step's seconds and tokens add up to the whole."""
    command = [
        str(BENCH / "contenders.py"),
        "ours",
        "--shape",
        "tiny",
        "--max-length",
        "32",
        "--steps",
        "2",
    ]
    [result] = task.measure({"ours": command}, 1)["ours"]
    assert sum(result["step_tokens"]) == result["tokens"] and len(result["step_tokens"]) == 2
    assert math.isclose(sum(result["step_seconds"]), result["seconds"])
    assert abs(result["first_loss"] - math.log(50304)) < 0.1
    assert result["ready_seconds"] > 0 and result["peak_mb"] > 50


# What is printed


def result(seconds: float, megabytes: float = 500, first_loss: float = 10.0) -> dict:
    losses = {"first_loss": first_loss, "mean_loss": first_loss - 1}
    return {**losses, "seconds": seconds, "peak_mb": megabytes, "tokens": 1000, "supervised": 200}


def test_the_table_holds_medians_and_ratios() -> None:
    results = {
        "ours": [result(2, 400), result(9, 600), result(4, 500)],
        "slow": [result(6, 2000), result(8, 1500), result(99, 100)],
        "other work": [result(1, first_loss=10.0011)] * 3,
        "rounding": [result(1, first_loss=9.9991)] * 3,
        "no number": [result(1, first_loss=math.nan)] * 3,
        "broken": [result(1), {"error": "No module named 'trl'"}, result(1)],
    }
    table = [line.split() for line in sft_speed.comparison(results).splitlines()[1:]]
    assert table[0] == ["ours", "4.00", "250", "500", "10.0000", "9.0000", "1.00", "1.00"]
    assert table[1] == ["slow", "8.00", "125", "1,500", "10.0000", "9.0000", "2.00", "3.00"]
    marked = [
        line for line in sft_speed.comparison(results).splitlines() if "not comparable" in line
    ]
    assert [line.split()[0] for line in marked] == ["other", "no"]
    assert "its first loss is 0.0011 away" in marked[0]
    assert sft_speed.comparison(results).splitlines()[-1].endswith("failed: No module named 'trl'")


def test_the_floor_counts_the_head_at_supervised_positions_only() -> None:
    config = GPTConfig(vocab_size=10, context_length=8, n_layer=1, n_head=1, n_embd=2)
    assert task.matmul_parameters(config) == (48, 20)
    assert task.floating_point_operations(config, tokens=5, supervised=2) == 6 * (48 * 5 + 20 * 2)
    config = task.our_model(SMALL).config
    names = dict(task.our_model(SMALL).named_parameters())
    matrices = [
        tensor.numel() for name, tensor in names.items() if tensor.dim() == 2 and "emb" not in name
    ]
    assert task.matmul_parameters(config) == (sum(matrices), names["tok_emb.weight"].numel())


def test_the_share_of_the_floor() -> None:
    config = GPTConfig(
        vocab_size=10, context_length=8, n_layer=1, n_head=1, n_embd=2
    )  # 6 * (48 * 1000 + 20 * 200)
    rates = [{"rate": rate, "our_rate": 2 * rate, "threads": 2} for rate in (1e3, 312e3, 9e9)]
    _, by_torch, by_ours = sft_speed.floor([result(4)], rates, config).splitlines()
    assert by_torch.startswith("  1.00 s") and by_torch.endswith("ours reaches 25% of it")
    assert by_ours.startswith("  0.50 s") and by_ours.endswith("ours reaches 12% of it")
    del rates[0]["our_rate"]
    assert len(sft_speed.floor([result(4)], rates, config).splitlines()) == 2


def test_contenders_run_in_turn_and_one_that_fails_is_told(tmp_path: Path) -> None:
    script, log = tmp_path / "script.py", tmp_path / "log"
    script.write_text(
        "import sys; name, log = sys.argv[1:]; open(log, 'a').write(name)\n"
        "if name == 'b': sys.exit('first line\\nthe reason')\n"
        "print('some warning'); print('{\"name\": \"' + name + '\"}')"
    )
    results = task.measure({name: [str(script), name, str(log)] for name in "abc"}, 2)
    assert log.read_text() == "abcabc"
    assert results == {
        "a": [{"name": "a"}] * 2,
        "b": [{"error": "the reason"}] * 2,
        "c": [{"name": "c"}] * 2,
    }
    assert task.failed(results["b"]) == "the reason" and task.failed(results["a"]) is None


def test_the_exponent_of_a_power_law() -> None:
    sizes = [1e3, 1e4, 1e6]
    assert math.isclose(scaling.exponent(sizes, [3 * size**1.5 for size in sizes]), 1.5)
    assert abs(scaling.exponent(sizes, [7.0, 7.0, 7.0])) < 1e-12


def test_prompts_are_ragged_and_the_longest_has_its_length() -> None:
    lengths = [len(prompt) for prompt in generate_speed.draw_prompts(16, 64, n_vocab=9)]
    assert max(lengths) == lengths[0] == 64 and min(lengths) >= 8 and len(set(lengths)) > 4


def test_without_a_gpu_one_line_says_so(monkeypatch, capsys) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu_speed.py"])
    assert gpu_speed.main() == 2
    out, err = capsys.readouterr()
    assert (
        not out and err == "error: torch finds no CUDA GPU on this machine; nothing was measured\n"
    )


def test_gpu_rates_leave_the_first_steps_out() -> None:
    rounds = [{**result(1), "step_tokens": [100, 10, 10], "step_seconds": [50.0, 1.0, 1.0]}]
    slower = [{**rounds[0], "step_seconds": [1.0, 2.0, 2.0]}]
    rows = gpu_speed.rows_of(
        {"ours": rounds, "hf compiled": slower, "trl": [{"error": "why"}]}, 1e15, "tiny", 1
    )
    assert [row[2] for row in rows] == ["10", "5", "-"]
    assert [row[6] for row in rows] == ["1.00", "0.50", "-"]
    assert [row[1] for row in rows] == ["no", "yes", "no"] and rows[2][-1] == "failed: why"
