"""What an experiment is: rows of a table, each a model that is trained and asked.

Each row is a run of sft.py and one of evaluate.py, as from the command line. Their commands are
printed, so that any of them can be repeated or changed alone.
"""

import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent  # runtime.files has it too, but imports torch
BASE = str(HERE / "data" / "base.pt")
# Where the data sets differ in size: the same number of updates.
STEPS = ("--steps", "800", "--eval-every", "800")

# The columns of the tables: their heads, and the rows of evaluate.py that they show.
ALL = {"all": "right, all"}
ENTITIES = {"entities": "right, split: entities"}
SPLITS = ENTITIES | {"wordings": "right, split: wordings", "tasks": "right, split: tasks"}
UNKNOWN = {
    "unknown, made up": "says it does not know: should",
    "unknown, real": "says it does not know: should not",
}
FORM = {"valid JSON": "valid JSON, where wanted", "stops": "stops by itself"}
FORGETTING = {"loss on text": "loss, pretraining text"}
FORGETTING |= {"new tokens apart": "loss, pretraining text, new tokens apart"}
COST = {name: name for name in ("trained, thousands", "file, MB", "ms a step", "memory, MB")}


@dataclass
class Row:
    """One line of a table: a model and how it is asked."""

    label: str
    train: Sequence[str] | None = ()  # arguments of the script; None: the base as it is
    ask: Sequence[str] = ()  # arguments of evaluate.py
    script: str = "sft.py"  # or a fork of it


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


def run(script: str, *arguments: str) -> tuple[float, float]:
    """A script of this repository, as from the command line; gives its seconds and the most memory
    that it had, in MB. Raises ChildProcessError where it fails."""
    command = f"python {script} {shlex.join(arguments)}"
    print(f"\n$ {command}", flush=True)
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, str(HERE / script), *arguments])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)  # it need not be waited for again
    if process.returncode:
        raise ChildProcessError(f"this command failed: {command}")
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB on Linux
    return time.monotonic() - started, usage.ru_maxrss * unit / 1e6


def cost(run_folder: Path, seconds: float, megabytes: float) -> dict[str, float]:
    """What a run has cost: the whole of it, evaluations and samples too, by its steps."""
    import torch  # here, because listing the experiments does not need it

    path = max(run_folder.glob("checkpoint-*.pt"))
    saved = torch.load(path, map_location="cpu", weights_only=True)
    trained = sum(tensor.numel() for tensor in saved.get("adapter", saved.get("model")).values())
    values = trained / 1e3, path.stat().st_size / 1e6, 1e3 * seconds / saved["step"], megabytes
    return dict(zip(COST, values))


def measure(
    row: Row, folder: Path, seed: int, trained: dict[tuple[str, ...], tuple[str, dict]]
) -> dict[str, float]:
    """Train and ask the model of a row; what evaluate.py says of it, and what it has cost.

    trained: script and arguments -> folder and cost of the run. Rows that only ask differently
    share one.
    """
    run_folder = folder / "".join(c if c.isalnum() or c in "-." else "-" for c in row.label)
    checkpoint, costs = BASE, {}
    if row.train is not None:
        command = (row.script, *row.train, "--seed", str(seed))
        if command not in trained:
            spent = run(*command, "--out", str(run_folder), "--overwrite")
            trained[command] = str(run_folder), cost(run_folder, *spent)
        checkpoint, costs = trained[command]
    numbers = run_folder.with_name(run_folder.name + ".json")
    run("evaluate.py", checkpoint, *row.ask, "--json", str(numbers))
    return json.loads(numbers.read_text(encoding="utf-8"))[checkpoint] | costs


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
