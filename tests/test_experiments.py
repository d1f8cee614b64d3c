"""experiments/: the rows of each experiment compare what they say, without training here."""

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from conftest import make_base as make_base_file

import sft
from data import make_instruct
from experiments import peft, pretraining, table
from experiments.__main__ import EXPERIMENTS, main
from experiments.table import Row
from runtime.console import parse_arguments
from runtime.files import HERE
from runtime.records import split_weight


@pytest.fixture
def commands(monkeypatch) -> list[tuple[str, ...]]:
    """What would have been run."""
    ran: list[tuple[str, ...]] = []
    monkeypatch.setattr(pretraining, "run", lambda *command: ran.append(command))
    return ran


def rows_of(name: str, folder: Path, seed: int = 0) -> dict[str, Row]:
    return {row.label: row for row in EXPERIMENTS[name].rows(folder, seed)}


def records_of(row: Row) -> list[dict]:
    return table.read(row.train[row.train.index("--data") + 1])


OPTIONS = {"sft.py": sft.Config, "experiments/peft.py": peft.Config}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_row_is_a_command_that_sft_accepts(name: str, tmp_path: Path, commands):
    """Labels are different, so no row writes over another; all options exist; all data files are
    there."""
    rows = EXPERIMENTS[name].rows(tmp_path, 1)
    assert len({row.label for row in rows}) == len(rows) > 1
    for row in rows:
        options = OPTIONS[row.script]
        config, _ = parse_arguments(options, list(row.train or ()))
        for path in config.data:
            split_weight(path)
    for _, *arguments in commands:
        assert arguments[arguments.index("--seed") + 1] == "1"


def test_smaller_sets_are_parts_of_larger_ones(tmp_path: Path):
    """Examples and tasks are added, not replaced: 30 in 100 in 300, 2 tasks in 4 in 8."""
    ways = {"examples": json.dumps, "tasks": lambda record: record["skill"]}
    for name, counted in ways.items():
        rows = [row for row in rows_of(name, tmp_path / name).values() if row.train]
        sets = [{counted(record) for record in records_of(row)} for row in rows]
        labels = [int(row.label.replace(",", "")) for row in rows]
        assert [len(each) for each in sets] == labels and labels == sorted(labels)
        assert all(small < large for small, large in zip(sets, sets[1:]))
    counts = [Counter(record["skill"] for record in records_of(row)) for row in rows]
    assert min(min(count.values()) for count in counts) >= make_instruct.PER_SKILL


def test_wordings_differ_in_nothing_but_wordings(tmp_path: Path):
    """As many records of each skill, about things of the same pool, in at most 1, 4, 16, 64
    wordings."""
    rows = [records_of(row) for row in rows_of("wordings", tmp_path).values()]
    counts = [Counter(record["skill"] for record in records) for records in rows]
    assert all(each == counts[0] for each in counts) and sum(counts[0].values()) > 1000
    capitals = [
        {record["messages"][-2]["content"] for record in records if record["skill"] == "capital"}
        for records in rows
    ]
    beginnings = [len({" ".join(one.split()[:2]) for one in questions}) for questions in capitals]
    assert beginnings[0] == 1 < beginnings[1] <= 4 and min(beginnings[2:]) > 10


def test_unknown_examples_are_all_that_differs(tmp_path: Path):
    sets = [records_of(row) for row in rows_of("unknown", tmp_path).values()]
    unknown = [sum(record["skill"] == "unknown" for record in records) for records in sets]
    known = [[record for record in records if record["skill"] != "unknown"] for records in sets]
    assert unknown[:3] == [0, 20, 160] and unknown[3] > 1000
    assert all(each == known[0] for each in known)


def test_a_question_in_a_chat_is_the_same_question(tmp_path: Path):
    """After two others, with their right answers; and only one of the two tuning sets has chats."""
    rows = [*rows_of("chats", tmp_path).values()]
    alone, later = ([r["messages"] for r in table.read(row.ask[1])] for row in rows[:2])
    assert alone == [messages[-2:] for messages in later] and len(alone) > 700
    before = [exchange for messages in later[:50] for exchange in (messages[:2], messages[2:4])]
    assert all(exchange in alone for exchange in before)
    tuned = [records_of(row) for row in rows]
    n_chats = [sum(record["skill"] == "chat" for record in records) for records in tuned]
    assert n_chats[0] == n_chats[1] == 0 and n_chats[2] > 500
    assert tuned[0] == tuned[1]
    sizes = [
        sorted(len(message["content"]) for record in records for message in record["messages"])
        for records in tuned
    ]
    assert sizes[0] == sizes[2]  # the same questions


def test_replay_is_the_stated_share_of_the_tokens(tmp_path: Path, capsys):
    """As sft.py itself counts it, held-out ones aside; the documents are not those that evaluate.py
    measures on. (Some have so few words, "Friday Saturday Sunday", that any two streams have them.)
    """
    rows = rows_of("forgetting", tmp_path)
    for percent in (5, 20):
        row = rows[f"{percent} % of the tokens replayed"]
        sft.prepare([*row.train, "--out", str(tmp_path / f"{percent}")])
        lines = capsys.readouterr().out.splitlines()
        mixture = next(line for line in lines if line.startswith("mixture"))
        share = float(mixture.split("replay.jsonl ")[1].split(" %")[0])
        assert share == pytest.approx(percent, abs=0.6)
    replayed = set((tmp_path / "replay.jsonl").read_text(encoding="utf-8").splitlines())
    asked = set((HERE / "data" / "heldout_text.jsonl").read_text(encoding="utf-8").splitlines())
    assert all(len(record) < 80 for record in replayed & asked) and len(replayed & asked) < 10


def test_small_bases_are_asked_about_other_countries(tmp_path: Path, commands):
    """No tuned question is about a country, or a capital, that is asked about."""
    (row, *_) = rows_of("pretraining", tmp_path).values()
    asked = table.read(row.ask[1])
    tuned = " ".join(record["messages"][-2]["content"] for record in records_of(row))
    held = make_instruct.held_names("capital")
    assert {record["split"] for record in asked} == {"entities"} and len(asked) == 240
    assert not [name for name in held if make_instruct.has_word(tuned, name)]
    assert [command[0] for command in commands] == ["data/make_base.py"] * 4
    wordings = [command[command.index("--wordings") + 1] for command in commands]
    assert wordings == ["1", "2", "4", "8"]


def test_the_table_gives_means_and_spreads(capsys):
    results = {
        "base": [{"right": 1.0, "loss": 0.5}, {"right": 4.0, "loss": 0.7}],
        "tuned": [{"loss": 1.25}] * 2,
    }
    table.print_table("Two", {"right": "right", "text": "loss"}, results)
    assert capsys.readouterr().out.splitlines() == [
        "",
        "| Two | right | text |",
        "|---|---:|---:|",
        "| base | 2 ±2 | 0.600 ±0.100 |",
        "| tuned |  | 1.250 ±0.000 |",
    ]


def test_a_row_is_trained_asked_and_read(tmp_path: Path, monkeypatch):
    """The numbers are those of this row's own checkpoint."""
    ran = []

    def run(script: str, *arguments: str) -> tuple[float, float]:
        ran.append((script, *arguments))
        if script == "evaluate.py":
            numbers = Path(arguments[arguments.index("--json") + 1])
            numbers.write_text(json.dumps({arguments[0]: {"right": 7}}))
        return 2.5, 100.0

    monkeypatch.setattr(table, "run", run)
    monkeypatch.setattr(table, "cost", lambda folder, *spent: {folder.name: spent})
    row = Row("lr 1e-3, twice", ("--lr", "1e-3"), ("--template", "xml"))
    trained, spent = {}, {"lr-1e-3--twice": (2.5, 100.0)}
    assert table.measure(row, tmp_path, 3, trained) == {"right": 7} | spent
    folder = str(tmp_path / "lr-1e-3--twice")
    assert ran[0] == ("sft.py", "--lr", "1e-3", "--seed", "3", "--out", folder, "--overwrite")
    assert ran[1][:4] == ("evaluate.py", folder, "--template", "xml")
    assert table.measure(Row("as it is", None), tmp_path, 3, trained) == {"right": 7}
    assert len(ran) == 3 and ran[2][1] == table.BASE
    again = Row("asked again", ("--lr", "1e-3"))
    assert table.measure(again, tmp_path, 3, trained) == {"right": 7} | spent
    assert len(ran) == 4 and ran[3][:2] == ("evaluate.py", folder)
    table.measure(Row("another seed", ("--lr", "1e-3")), tmp_path, 4, trained)
    assert len(ran) == 6 and ran[4][4:6] == ("4", "--out")
    table.measure(Row("a fork", ("--lr", "1e-3"), script="fork.py"), tmp_path, 3, trained)
    assert len(ran) == 8 and ran[6][0] == "fork.py"


def test_what_a_run_has_cost(tmp_path: Path):
    """Of its newest checkpoint: the adapter's tensors, or all; what is on the disk; its steps."""
    path = make_base_file(tmp_path / "checkpoint-0000000.pt")
    content = torch.load(path, weights_only=True) | {"step": 40}
    n_weights = sum(tensor.numel() for tensor in content["model"].values())
    for step, more, trained in ((20, {}, n_weights), (40, {"adapter": {"a": torch.ones(7)}}, 7)):
        path = tmp_path / f"checkpoint-{step:07d}.pt"
        torch.save(content | more, path)
        wanted = trained / 1e3, path.stat().st_size / 1e6, 50.0, 300.0
        assert tuple(table.cost(tmp_path, 2.0, 300.0).values()) == wanted


def test_seconds_and_memory_are_those_of_the_command():
    seconds, megabytes = table.run("chat.py", "--help")
    assert 0 < seconds < 60 and 10 < megabytes < 5000


def test_a_failing_command_ends_the_experiment(tmp_path: Path, monkeypatch, capsys):
    """One line, exit status 2, and no table that looks complete. A folder's name may hold anything,
    and does not drive the terminal."""
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    assert main(["loss-mask", "--out", str(tmp_path / "red\x1b[31m")]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: this command failed: python sft.py")
    assert said.err.count("\n") == 1 and "\x1b" not in said.err and "|---" not in said.out


def test_each_seed_is_a_run_of_its_own_and_all_are_in_the_table(
    tmp_path: Path, monkeypatch, capsys
):
    asked = []

    def measure(row: Row, folder: Path, seed: int, trained: dict) -> dict[str, float]:
        asked.append((row.label, folder, seed))
        return {"right, split: entities": 80.0 + 2 * seed}

    monkeypatch.setattr(table, "measure", measure)
    assert main(["loss-mask", "--out", str(tmp_path), "--seeds", "2"]) == 0
    labels = [row.label for row in EXPERIMENTS["loss-mask"].rows(tmp_path, 0)]
    folders = [tmp_path / "loss-mask" / f"seed-{seed}" for seed in (0, 1)]
    assert asked == [(label, folders[seed], seed) for seed in (0, 1) for label in labels]
    *_, first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("| the assistant's | 81 ±1 |") and second.startswith("| all | 81 ±1 |")


def test_the_list_of_experiments_does_not_wait_for_torch():
    """`python -m experiments --help` names every experiment."""
    code = (
        "import sys; sys.argv[1:] = ['--help']\n"
        "import experiments.__main__ as command\n"
        "try: command.main()\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True)
    first, *_, last = run.stdout.splitlines()
    assert first.startswith("usage: python -m experiments ") and last == "False"
    assert all(f"  {name} " in run.stdout for name in EXPERIMENTS)
