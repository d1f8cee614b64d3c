"""What an experiment is: rows of a table, each a model that is trained and asked.

Each row is a run of sft.py and one of evaluate.py, as from the command line. Their commands are
printed, so that any of them can be repeated or changed alone.
"""

import json
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent  # runtime.files has it too, but imports torch
BASE = str(HERE / "data" / "base.pt")
# Where the data sets differ in size: the same number of updates.
STEPS = ("--steps", "800", "--eval-every", "800")

# The columns of the tables: their heads, and the rows of evaluate.py that they show.
ENTITIES = {"entities": "right, split: entities"}
SPLITS = ENTITIES | {"wordings": "right, split: wordings", "tasks": "right, split: tasks"}
UNKNOWN = {
    "unknown, made up": "says it does not know: should",
    "unknown, real": "says it does not know: should not",
}
FORM = {"valid JSON": "valid JSON, where wanted", "stops": "stops by itself"}
FORGETTING = {"loss on text": "loss, pretraining text"}


@dataclass
class Row:
    """One line of a table: a model and how it is asked."""

    label: str
    train: Sequence[str] | None = ()  # arguments of sft.py; None: the base as it is
    ask: Sequence[str] = ()  # arguments of evaluate.py


@dataclass
class Experiment:
    title: str
    rows: Callable[[Path, int], list[Row]]  # given a folder for their files, and a seed
    columns: dict[str, str]


# Files


def write(path: Path, records: Sequence[dict]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    path.write_text("".join(lines), encoding="utf-8")
    return str(path)


def read(path: str) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


# Running


def run(script: str, *arguments: str) -> None:
    """A script of this repository, as from the command line. Raises ChildProcessError where it
    fails."""
    command = f"python {script} {shlex.join(arguments)}"
    print(f"\n$ {command}", flush=True)
    if subprocess.run([sys.executable, str(HERE / script), *arguments]).returncode:
        raise ChildProcessError(f"this command failed: {command}")


def measure(
    row: Row, folder: Path, seed: int, trained: dict[tuple[str, ...], str]
) -> dict[str, float]:
    """Train and ask the model of a row; what evaluate.py says of it.

    trained: sft.py's arguments -> folder of the run. Rows that only ask differently share one.
    """
    run_folder = folder / "".join(c if c.isalnum() or c in "-." else "-" for c in row.label)
    checkpoint = BASE
    if row.train is not None:
        arguments = (*row.train, "--seed", str(seed))
        if arguments not in trained:
            run("sft.py", *arguments, "--out", str(run_folder), "--overwrite")
        checkpoint = trained.setdefault(arguments, str(run_folder))
    numbers = run_folder.with_name(run_folder.name + ".json")
    run("evaluate.py", checkpoint, *row.ask, "--json", str(numbers))
    return json.loads(numbers.read_text(encoding="utf-8"))[checkpoint]


def run_experiment(
    experiment: Experiment, folder: Path, n_seeds: int
) -> dict[str, list[dict[str, float]]]:
    """What evaluate.py says of each row, for each seed. Raises ChildProcessError where a command
    fails."""
    results, trained = {}, {}
    for seed in range(n_seeds):
        seed_folder = folder / f"seed-{seed}"
        for row in experiment.rows(seed_folder, seed):
            numbers = measure(row, seed_folder, seed, trained)
            results.setdefault(row.label, []).append(numbers)
    return results


# Printing


def cell(values: Sequence[float], is_loss: bool) -> str:
    """Mean over seeds, and half the distance between the extremes."""
    digits = 3 if is_loss else 0
    spread = f" ±{(max(values) - min(values)) / 2:.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{spread}"


def print_table(
    title: str, columns: dict[str, str], results: dict[str, list[dict[str, float]]]
) -> None:
    """As Markdown; shares in per cent. A cell is empty where a run says nothing of it."""
    print(f"\n| {title} | {' | '.join(columns)} |\n|---{'|---:' * len(columns)}|")
    for label, runs in results.items():
        cells = []
        for row in columns.values():
            is_known = all(row in run for run in runs)
            cells.append(cell([run[row] for run in runs], "loss" in row) if is_known else "")
        print(f"| {label} | {' | '.join(cells)} |")
