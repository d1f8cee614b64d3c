"""bench/ compares like with like: the same tokens and weights for all, medians and ratios that are
what they say.

What it compares with (transformers, TRL) is not installed here; that those are given the same work
is checked by every run of the bench itself, which marks a row whose first loss is not ours.
"""

import argparse
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import conversation, write_jsonl

import sft
from chat_template import Message, render
from model import GPTConfig
from runtime import fast
from sft import IGNORED, collate
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
    """Its labels, shifted as transformers shifts them, are our labels at the same tokens."""
    indices = small_task.steps[0]
    batch = task.padded_batch(small_task.dataset, indices)
    ids, labels, _, lengths = collate(small_task.dataset, indices)
    is_token = batch["attention_mask"].bool()
    assert is_token.sum(1).tolist() == lengths and len(set(lengths)) > 1
    assert batch["input_ids"][is_token].equal(ids)
    shifted = F.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED)
    assert shifted[is_token].equal(labels) and (shifted[~is_token] == IGNORED).all()


def test_an_over_long_conversation_is_cut_for_all(
    tmp_path: Path, chat_tokenizer: Tokenizer
) -> None:
    path = write_jsonl(tmp_path / "data.jsonl", [conversation("Hi", "Yo" * 99)])
    args = arguments("--data", str(path), "--max-length", "30")
    dataset = task.make_task(args, chat_tokenizer).dataset
    assert [len(values) for values in task.ids_and_labels(dataset, 0)] == [30, 30]


def test_a_contender_gets_the_same_arguments() -> None:
    argv = ["--data", "a file", "--shape", "gpt2", "--steps", "3", "--bfloat16", "--device", "cuda"]
    given = arguments(*argv)
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
    assert (first["blocks.0.attn_norm.weight"] == 1).all()
    assert not first["blocks.0.mlp.up.bias"].any()


# Our contender


def test_ours_learns_what_a_padded_loop_learns(small_task: task.Task) -> None:
    """The losses of all steps are those of a loop with padding, full logits and plain AdamW."""
    record = task.Record()
    contenders.ours(small_task, record)
    model = task.our_model(SMALL)
    settings = dict(lr=task.LEARNING_RATE, betas=task.BETAS, eps=task.EPSILON, weight_decay=0.0)
    optimizer = torch.optim.AdamW(model.parameters(), **settings)
    for indices, loss in zip(small_task.steps, record.losses, strict=True):
        batch = task.padded_batch(small_task.dataset, indices)
        targets = F.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED)
        wanted = F.cross_entropy(model(batch["input_ids"]).flatten(0, 1), targets.flatten())
        assert math.isclose(loss, wanted.item(), rel_tol=1e-6)
        optimizer.zero_grad()
        wanted.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), task.CLIP)
        optimizer.step()


def test_ours_takes_the_step_of_sft_train(small_task: task.Task, monkeypatch) -> None:
    """Claimed in the table's first row: sft.training_step itself, with the task's optimiser."""
    steps, their_step = [], sft.training_step

    def training_step(step, model, optimizer, *rest):
        settings = [
            (g["lr"], g["betas"], g["eps"], g["weight_decay"]) for g in optimizer.param_groups
        ]
        assert settings == [(task.LEARNING_RATE, task.BETAS, task.EPSILON, 0.0)] * 2
        assert model.training
        steps.append(step)
        return their_step(step, model, optimizer, *rest)

    monkeypatch.setattr(sft, "training_step", training_step)
    contenders.ours(small_task, task.Record())
    assert steps == [1, 2, 3]


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
    """Without a file, so without GPT-2's vocabulary; a step's seconds and tokens add up to the
    whole."""
    argv = ["ours", "--shape", "tiny", "--max-length", "32", "--steps", "2"]
    result = task.run_script([str(BENCH / "contenders.py"), *argv])
    assert sum(result["step_tokens"]) == result["tokens"] and len(result["step_tokens"]) == 2
    assert math.isclose(sum(result["step_seconds"]), result["seconds"])
    assert abs(result["first_loss"] - math.log(50304)) < 0.1
    assert result["ready_seconds"] > 0 and result["peak_mb"] > 50


def test_each_row_of_the_table_is_a_contender() -> None:
    named = [name for group in sft_speed.GROUPS.values() for name in group]
    assert sorted(named) == sorted(contenders.CONTENDERS)


def test_trl_is_told_its_loss_type(small_task: task.Task, monkeypatch) -> None:
    """And nothing of its defaults that would make it slower here, or another optimiser."""
    monkeypatch.setitem(sys.modules, "trl", SimpleNamespace(SFTConfig=dict))
    settings = contenders.trl_settings(small_task, "folder", "chunked_nll", True)
    assert settings["loss_type"] == "chunked_nll" and settings["padding_free"]
    assert not settings["gradient_checkpointing"] and not settings["bf16"]
    assert settings["adam_epsilon"] == task.EPSILON and settings["max_grad_norm"] == task.CLIP
    assert settings["per_device_train_batch_size"] == 8
    assert contenders.CONTENDERS["trl-chunked-nll"].keywords == {"loss_type": "chunked_nll"}


# The machine's floor


def test_the_floor_multiplies_what_an_epoch_multiplies(small_task: task.Task) -> None:
    """Each layer's output and two gradients: as many operations as are counted."""
    counted = []

    def multiply(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        counted.append(2 * left.shape[0] * left.shape[1] * right.shape[1])
        return left @ right  # raises where the shapes do not fit

    assert contenders.product_seconds(small_task, multiply) > 0
    sizes = small_task.tokens, small_task.supervised
    first, *counted = counted  # that one is not timed
    assert sum(counted) == task.floating_point_operations(SMALL, *sizes)
    assert first == 2 * 64**3


def test_the_heads_products_are_cut_as_in_training(small_task: task.Task, monkeypatch) -> None:
    monkeypatch.setattr(sft, "MOST_LOGITS", 10 * SMALL.vocab_size)
    rows = [rows for rows, n_out, _ in contenders.products(small_task) if n_out == SMALL.vocab_size]
    assert sum(rows) == small_task.supervised and max(rows) == 10


def test_the_floor_is_measured_with_our_products_where_they_are_others(
    small_task: task.Task, monkeypatch
) -> None:
    monkeypatch.setattr(fast, "is_slow_with_mkl", lambda: False)
    assert contenders.floor(small_task).keys() == {"seconds", "threads"}
    monkeypatch.setattr(fast, "is_slow_with_mkl", lambda: True)
    multiplied = []

    def multiply(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        multiplied.append((left, right))
        return F.linear(left, right)

    monkeypatch.setattr(fast, "multiply", multiply)
    assert contenders.floor(small_task)["onednn_seconds"] > 0
    assert len(multiplied) == 1 + 3 * len(list(contenders.products(small_task)))


# A second checkout


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """A checkout whose contender says where it was started, and how."""
    script = tmp_path / "earlier" / "bench" / "contenders.py"
    script.parent.mkdir(parents=True)
    script.write_text(
        "import json, os, sys\n"
        "cache = os.environ.get('TIKTOKEN_CACHE_DIR')\n"
        "print(json.dumps({'cwd': os.getcwd(), 'argv': sys.argv, 'cache': cache}))\n"
    )
    return tmp_path / "earlier"


def test_a_second_checkout_runs_its_own_contender(
    tmp_path: Path, earlier: Path, monkeypatch
) -> None:
    """In its own folder, with the same task: a file that is named from here is the same file there.
    It takes its turn next to ours."""
    write_jsonl(tmp_path / "data.jsonl", [conversation("Hi", "Yo")])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "cache")
    argv = ["--before", "earlier", "--against", "", "--data", "data.jsonl", "--steps", "3"]
    args = sft_speed.parse(argv)
    commands = sft_speed.commands_of(args)
    assert [*commands] == ["ours", "before", "ours-lora", "floor"]
    assert commands["before"][1:] == commands["ours"][1:]
    result = task.measure({"before": commands["before"]}, 1, {"before": earlier})["before"][0]
    assert result["cwd"] == str(earlier) and result["cache"] == str(tmp_path / "cache")
    script, name, *rest = result["argv"]
    assert script == str(earlier / "bench" / "contenders.py") and name == "ours"
    assert rest[rest.index("--data") + 1] == str(tmp_path / "data.jsonl")
    assert arguments(*rest).steps == 3


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (["--before", "nowhere"], "nowhere/bench/contenders.py"),
        (["--data", "nothing.jsonl"], "no such file"),
        (["--against", "trl,hf,jax"], "not jax"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_the_first_round(
    argv: list[str], reason: str, capsys
) -> None:
    with pytest.raises(SystemExit) as ended:
        sft_speed.parse(argv)
    assert ended.value.code == 2 and reason in capsys.readouterr().err


@pytest.mark.parametrize(
    "content, reason",
    [
        ("{]", "data.jsonl:1: not valid JSON"),
        ('{"text": "a"}', "GPT-2's vocabulary is not on this"),
    ],
)
def test_what_every_contender_would_fail_at_is_told_once(
    tmp_path: Path, monkeypatch, capsys, content: str, reason: str
) -> None:
    """Before the rounds, which take minutes."""

    def missing() -> None:
        raise OSError("GPT-2's vocabulary is not on this machine")

    if "GPT-2" in reason:
        monkeypatch.setattr(task.Tokenizer, "gpt2", missing)
    else:
        letters = Tokenizer({bytes([i]): i for i in range(256)}, {"<|endoftext|>": 256})
        monkeypatch.setattr(task.Tokenizer, "gpt2", lambda: letters)
    monkeypatch.setattr(sft_speed, "measure", lambda *_: pytest.fail("a round"))
    (tmp_path / "data.jsonl").write_text(content)
    assert sft_speed.main(["--data", str(tmp_path / "data.jsonl"), "--against", ""]) == 2
    err = capsys.readouterr().err
    assert err.count("error: ") == err.count("\n") == 1 and reason in err


def test_an_error_is_named_once(tmp_path: Path) -> None:
    (tmp_path / "fails.py").write_text("import sys; sys.exit('error: no room')")
    assert task.run_script([str(tmp_path / "fails.py")]) == {"error": "no room"}


def test_two_states_stand_side_by_side_in_one_table(earlier: Path, monkeypatch, capsys) -> None:
    """Both commits are named, and the earlier state's row is compared with ours."""
    seen = {}

    def measure(commands: dict, rounds: int, folders: dict) -> dict:
        seen.update(folders)
        run = {**result(2), "step_seconds": [1, 1]}
        floors = [{"seconds": 0.5, "threads": 2}] * rounds
        return {"ours": [run] * rounds, "before": [result(3)] * rounds, "floor": floors}

    monkeypatch.setattr(sft_speed, "measure", measure)
    monkeypatch.setattr(sft_speed, "commit_of", lambda folder: f"<{Path(folder).name}>")
    assert sft_speed.main(["--before", str(earlier), "--against", "", "--rounds", "2"]) == 0
    assert seen == {"before": earlier}
    lines = capsys.readouterr().out.splitlines()
    assert "commit <earlier>; ours: commit <bench>" in lines[1]
    assert "2 steps, 1,000 tokens, 200 supervised; medians of 2 rounds" in lines[2]
    row = next(line for line in lines if line.startswith("before "))
    assert row.split()[1] == "3.00" and row.split()[6] == "1.50"
    assert lines[-1].endswith("ours / floor = 4.00")


def test_the_commit_of_a_checkout(tmp_path: Path) -> None:
    assert sft_speed.commit_of(str(tmp_path / "nowhere")) == "unknown"
    if (BENCH.parent / ".git").exists():
        assert 7 <= len(sft_speed.commit_of(str(BENCH)).removesuffix("-dirty")) <= 40


# What is printed


def result(
    seconds: float, megabytes: float = 500, first_loss: float = 10.0, note: str = ""
) -> dict:
    losses = {"first_loss": first_loss, "mean_loss": first_loss - 1}
    cost = {"seconds": seconds, "peak_mb": megabytes, "tokens": 1000, "supervised": 200}
    return {**losses, **cost, "note": note}


def test_the_table_holds_medians_and_ratios() -> None:
    results = {
        "ours": [result(2, 400), result(9, 600), result(4, 500)],
        "slow": [result(6, 2000), result(8, 1500), result(99, 100)],
        "noted": [result(1, note="loss_type nll")] * 3,
        "other work": [result(1, first_loss=10.0011, note="loss_type dft")] * 3,
        "rounding": [result(1, first_loss=9.9991)] * 3,
        "no number": [result(1, first_loss=math.nan)] * 3,
        "broken": [result(1), {"error": "No module named 'trl'"}, result(1)],
    }
    table = [line.split() for line in sft_speed.comparison(results).splitlines()[1:]]
    assert table[0] == ["ours", "4.00", "250", "500", "10.0000", "9.0000", "1.00", "1.00"]
    assert table[1] == ["slow", "8.00", "125", "1,500", "10.0000", "9.0000", "2.00", "3.00"]
    lines = sft_speed.comparison(results).splitlines()
    marked = [line for line in lines if "not comparable" in line]
    assert [line.split()[0] for line in marked] == ["other", "no"]
    assert marked[0].endswith("loss_type dft; not comparable: its first loss is 0.0011 away")
    assert lines[3].endswith("  loss_type nll")
    assert lines[-1].endswith("failed: No module named 'trl'")


def test_the_floor_counts_the_head_at_supervised_positions_only() -> None:
    config = GPTConfig(vocab_size=10, context_length=8, n_layer=1, n_head=1, n_embd=2)
    assert task.matmul_parameters(config) == (48, 20)
    assert task.floating_point_operations(config, tokens=5, supervised=2) == 6 * (48 * 5 + 20 * 2)
    weights = dict(task.our_model(SMALL).named_parameters())
    matrices = [name for name, weight in weights.items() if weight.dim() == 2 and "emb" not in name]
    in_blocks = sum(weights[name].numel() for name in matrices)
    assert task.matmul_parameters(SMALL) == (in_blocks, weights["tok_emb.weight"].numel())


def test_ours_against_the_floor_is_a_ratio_of_medians() -> None:
    config = GPTConfig(vocab_size=10, context_length=8, n_layer=1, n_head=1, n_embd=2)
    floors = [{"seconds": s, "onednn_seconds": s / 2, "threads": 2} for s in (0.1, 3.2, 90)]
    ours = [result(1), result(4), result(50)]
    first, by_torch, by_ours = sft_speed.floor(ours, floors, config).splitlines()
    operations = 6 * (48 * 1000 + 20 * 200)
    assert f"{operations / 1e12:.3g} tera-operations, 2 threads" in first
    assert by_torch == "  3.20 s by torch.mm: ours / floor = 1.25"
    assert by_ours == "  1.60 s by oneDNN, as ours multiplies: ours / floor = 2.50"
    del floors[0]["onednn_seconds"]
    assert len(sft_speed.floor(ours, floors, config).splitlines()) == 2


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
    assert not out
    assert err == "error: torch finds no CUDA GPU on this machine; nothing was measured\n"


def test_gpu_rates_leave_the_first_steps_out() -> None:
    rounds = [{**result(1), "step_tokens": [100, 10, 10], "step_seconds": [50.0, 1.0, 1.0]}]
    slower = [{**rounds[0], "step_seconds": [1.0, 2.0, 2.0]}]
    results = {"ours": rounds, "hf compiled": slower, "trl": [{"error": "why"}]}
    rows = gpu_speed.rows_of(results, 1e15, "tiny", 1)
    assert [row[2] for row in rows] == ["10", "5", "-"]
    assert [row[6] for row in rows] == ["1.00", "0.50", "-"]
    assert [row[1] for row in rows] == ["no", "yes", "no"] and rows[2][-1] == "failed: why"
