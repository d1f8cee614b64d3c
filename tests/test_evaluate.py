"""evaluate.py: what counts as right, by a literal table; and the whole command on a base and a
tuned model."""

import json
from pathlib import Path

import pytest
import torch
from conftest import assert_exact, conversation, make_model, write_jsonl

import evaluate
import sft
from chat_template import TEMPLATES, Message, render
from evaluate import Question
from runtime.load import load_checkpoint


def question(wanted: str, *rows: str) -> Question:
    return Question([Message("user", "?")], wanted, ("all", *rows))


def test_scores_by_a_table():
    """Right is exact up to white space around it, or the same JSON value; abstaining counts both
    ways."""
    asked = [
        (question("Lima", "skill: capital"), ("Lima ", True)),
        (question("Oslo", "skill: capital"), ("Oslo.", True)),
        (question("I don't know.", "skill: unknown"), ("I don't know.", True)),
        (question("Bern", "skill: capital"), ("I don't know.", True)),
        (question('{"a": 1, "b": 2}', "skill: json"), ('{"b": 2, "a": 1}', False)),
        (question("[1, 2]", "skill: json"), ("[1, 2", True)),
    ]
    assert evaluate.score(*zip(*asked)) == pytest.approx(
        {
            "right, all": 50,  # Lima, the abstention, the first JSON
            "right, skill: capital": 100 / 3,
            "right, skill: unknown": 100,
            "right, skill: json": 50,
            "says it does not know: should": 100,
            "says it does not know: should not": 20,  # Bern, of the five that have an answer
            "valid JSON, where wanted": 50,
            "stops by itself": 500 / 6,
        }
    )


@pytest.fixture
def place(base: Path, tmp_path: Path) -> Path:
    """Questions and a text in the same folder as the base."""
    records = [conversation(f"q{i}", "yes", skill="agree", split="train") for i in range(30)]
    write_jsonl(tmp_path / "data.jsonl", records)
    write_jsonl(tmp_path / "text.jsonl", [{"text": "some running text"}])
    return tmp_path


def numbers_of(place: Path, *checkpoints: Path) -> dict[str, dict[str, float]]:
    asking = f"--data {place}/data.jsonl --text {place}/text.jsonl --max-new-tokens 8"
    to_file = f"--json {place}/numbers.json"
    arguments = [*map(str, checkpoints), *asking.split(), *to_file.split()]
    assert evaluate.main(arguments) == 0
    return json.loads((place / "numbers.json").read_text())


def test_the_command_compares_base_and_tuned(base: Path, place: Path, capsys):
    """One column a model, in the table and in the JSON file; the trained loss is lower than the
    base's was."""
    run = place / "run"
    flags = f"--init {base} --out {run} --steps 60 --lr 0.01 --template xml"
    assert sft.main(["--data", str(place / "data.jsonl"), *flags.split()]) == 0
    numbers = numbers_of(place, base, run)
    assert numbers.keys() == {str(base), str(run)}
    before, after = numbers.values()
    assert before["right, all"] == 0 and after["right, skill: agree"] == 100
    assert after["stops by itself"] == 100 and after["loss, supervised tokens"] < 0.1
    apart = "loss, pretraining text, new tokens apart"
    assert before[apart] == before["loss, pretraining text"]
    assert (
        0 < after[apart] <= after["loss, pretraining text"]
        and "loss, supervised tokens" not in before
    )
    assert "right, split: train" in capsys.readouterr().out


def test_losses_are_the_yardsticks(base: Path, place: Path, monkeypatch):
    """Claim 25: by hand, and whatever training minimises."""
    tuned = place / "run"
    flags = f"--data {place}/data.jsonl --init {base} --out {tuned} --steps 1 --template xml"
    assert sft.main(flags.split()) == 0
    model, tokenizer, _ = load_checkpoint(tuned)
    numbers = numbers_of(place, base, tuned)

    def mean_nll(messages: list[Message], train_on: str, template: str) -> float:
        ids, mask = render(messages, tokenizer, template, train_on)
        log_p = model(torch.tensor([ids]))[0].log_softmax(-1)
        counted = [t for t in range(1, len(ids)) if mask[t]]
        return -sum(log_p[t - 1, ids[t]].item() for t in counted) / len(counted)

    chats = [[Message("user", f"q{i}"), Message("assistant", "yes")] for i in range(30)]
    by_hand = sum(mean_nll(chat, "last", "xml") for chat in chats) / 30  # 4 tokens in each
    found = numbers[str(tuned)]
    assert found["loss, supervised tokens"] == pytest.approx(by_hand, rel=1e-5)
    by_hand = mean_nll([Message("text", "some running text")], "all", "chatml")
    assert found["loss, pretraining text"] == pytest.approx(by_hand, rel=1e-5)
    monkeypatch.setattr(sft, "objective", lambda logits, labels: 1000 + 0 * logits.sum())
    assert numbers_of(place, base, tuned) == numbers


def test_what_new_tokens_took_is_told_apart(tokenizer):
    """Claim 25: a model that gives half of its probability to a template's tokens and to rows
    without a token has forgotten nothing; end-of-text is no new token."""
    base, model, ids = make_model(), make_model(), torch.randint(0, 257, (2, 30))
    model.grow_vocab(259)
    assert model.config.vocab_size == 320
    with torch.no_grad():
        model.tok_emb.weight[257:] = model.tok_emb.weight[:63] * 1.5
    labels = torch.randint(0, 257, (60,))
    before = sft.nll_sum(base(ids).flatten(0, 1), labels)
    assert sft.nll_sum(model(ids).flatten(0, 1), labels) > before + 5
    tokenizer = tokenizer.with_special(TEMPLATES["chatml"].special_tokens)
    evaluate.hide_new_tokens(model, tokenizer, "chatml")
    assert_exact(sft.nll_sum(model(ids).flatten(0, 1), labels), before)
    evaluate.hide_new_tokens(base, tokenizer, None)
    assert_exact(sft.nll_sum(base(ids).flatten(0, 1), labels), before)


@pytest.mark.parametrize("records", [[], [{"text": "no answer in it"}]])
def test_nothing_to_ask_is_an_error(base: Path, tmp_path: Path, capsys, records: list):
    data = write_jsonl(tmp_path / "data.jsonl", records)
    assert evaluate.main([str(base), "--data", str(data)]) == 2
    assert capsys.readouterr().err.startswith("error: ")
