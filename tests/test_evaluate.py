"""evaluate.py: what counts as right, by a literal table; and the whole command on a base and a tuned model."""

import json
from pathlib import Path

import pytest
from conftest import conversation, write_jsonl

import evaluate
import sft
from chat_template import Message
from evaluate import Question


def question(wanted: str, *rows: str) -> Question:
    return Question([Message("user", "?")], wanted, ("all", *rows))


def test_scores_by_a_table():
    """Right is exact up to white space around it, or the same JSON value; abstaining counts both ways."""
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


def test_the_command_compares_base_and_tuned(base: Path, tmp_path: Path, capsys):
    """One column a model, in the table and in the JSON file; the trained loss is lower than the base's was."""
    records = [conversation(f"q{i}", "yes", skill="agree", split="train") for i in range(30)]
    data = write_jsonl(tmp_path / "data.jsonl", records)
    text = write_jsonl(tmp_path / "text.jsonl", [{"text": "some running text"}])
    run = tmp_path / "run"
    flags = [
        "--init",
        str(base),
        "--out",
        str(run),
        "--steps",
        "60",
        "--lr",
        "0.01",
        "--template",
        "xml",
    ]
    assert sft.main(["--data", str(data), *flags]) == 0
    arguments = [
        str(base),
        str(run),
        "--data",
        str(data),
        "--text",
        str(text),
        "--max-new-tokens",
        "8",
    ]
    assert evaluate.main([*arguments, "--json", str(tmp_path / "numbers.json")]) == 0
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers[str(base)]["right, all"] == 0 and numbers[str(run)]["right, skill: agree"] == 100
    assert (
        numbers[str(run)]["stops by itself"] == 100
        and numbers[str(run)]["loss, supervised tokens"] < 0.1
    )
    assert (
        numbers[str(run)]["loss, pretraining text"] > 0
        and "loss, supervised tokens" not in numbers[str(base)]
    )
    assert "right, split: train" in capsys.readouterr().out


@pytest.mark.parametrize("records", [[], [{"text": "no answer in it"}]])
def test_nothing_to_ask_is_an_error(base: Path, tmp_path: Path, capsys, records: list):
    data = write_jsonl(tmp_path / "data.jsonl", records)
    assert evaluate.main([str(base), "--data", str(data)]) == 2
    assert capsys.readouterr().err.startswith("error: ")
