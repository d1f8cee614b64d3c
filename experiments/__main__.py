"""The experiments, each one command:

    python -m experiments forgetting

It trains what it compares, asks every model the same held-out questions, and prints one table. Each row is a run of
sft.py and one of evaluate.py; their commands are printed too, so that any of them can be repeated or changed alone.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import random
import shlex
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from chat_template import TEMPLATES
from data import make_base, make_instruct, world
from runtime.files import HERE
from runtime.load import load_checkpoint
from runtime.tokens import build_dataset

BASE = str(HERE / "data" / "base.pt")
TUNING, HELD_OUT = (
    str(HERE / "data" / name) for name in (make_instruct.TUNING_FILE, make_instruct.HELDOUT_FILE)
)
STEPS = (
    "--steps",
    "800",
    "--eval-every",
    "800",
)  # where the data sets differ in size: the same number of updates
EXAMPLES_A_SKILL = 20  # where wordings are compared
REPLAY_SEED = 1_000_033  # documents that neither the base nor the text of evaluate.py has
# minutes instead of an hour
SMALL_BASE = "--group country --tokens 2500000 --layers 4 --channels 128 --vocab-size 2048 --batch-tokens 512".split()

# the columns of the tables: their heads, and the rows of evaluate.py that they show
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


EXPERIMENTS: dict[str, Experiment] = {}


def experiment(title: str, *columns: dict[str, str]) -> Callable:
    """Registers a function that lists the rows of an experiment, under its own name."""

    def register(rows: Callable[[Path, int], list[Row]]) -> Callable[[Path, int], list[Row]]:
        merged = functools.reduce(lambda one, other: one | other, columns)
        EXPERIMENTS[rows.__name__.replace("_", "-")] = Experiment(title, rows, merged)
        return rows

    return register


# ------------------------------------------------------------------------------------------------------------- files


def write(path: Path, records: Sequence[dict]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(make_instruct.as_text(records), encoding="utf-8")
    return str(path)


def read(path: str) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def single_questions() -> list[dict]:
    """The questions of the tuning data, those in chats too, each as a record of its own: chats mix all skills."""
    questions, _, chat_questions = make_instruct.make_parts(set())
    return questions + chat_questions


def run(script: str, *arguments: str) -> None:
    """A script of this repository, as from the command line. Raises ChildProcessError where it fails."""
    command = f"python {script} {shlex.join(arguments)}"
    print(f"\n$ {command}", flush=True)
    if subprocess.run([sys.executable, str(HERE / script), *arguments]).returncode:
        raise ChildProcessError(f"this command failed: {command}")


# ------------------------------------------------------------------------------------------- experiments with tuning


@experiment("Base, tuned, LoRA", SPLITS, FORM, UNKNOWN, FORGETTING)
def tuning(folder: Path, seed: int) -> list[Row]:
    return [Row("base", None), Row("full tuning"), Row("LoRA, rank 8", ("--lora-rank", "8"))]


@experiment("Loss on which tokens", SPLITS, FORM, FORGETTING)
def loss_mask(folder: Path, seed: int) -> list[Row]:
    return [Row("the assistant's"), Row("all", ("--train-on", "all"))]


@experiment("Number of examples, the same number of steps", SPLITS, FORM, UNKNOWN)
def examples(folder: Path, seed: int) -> list[Row]:
    records = read(TUNING)
    random.Random(seed).shuffle(records)
    rows = [Row("0", None)]
    for n in (30, 100, 300, 1000, len(records)):
        data = write(folder / f"{n}.jsonl", records[:n])
        rows.append(Row(f"{n:,}", ("--data", data, *STEPS)))
    return rows


@experiment("Number of tuning tasks, the same number of steps", SPLITS)
def tasks(folder: Path, seed: int) -> list[Row]:
    records = single_questions()
    skills = sorted({record["skill"] for record in records})
    random.Random(seed).shuffle(skills)
    rows = [Row("0", None)]
    for n in (2, 4, 8, 16, 32, len(skills)):
        data = write(
            folder / f"{n}.jsonl", [record for record in records if record["skill"] in skills[:n]]
        )
        rows.append(Row(f"{n}", ("--data", data, *STEPS)))
    return rows


@experiment("Wordings of each task, the same number of examples", SPLITS)
def wordings(folder: Path, seed: int) -> list[Row]:
    rows, counts = [], Counter[str]()
    for n in (1, 4, 16, 64):
        seen: set[str] = set()
        records: list[dict] = []
        for skill in make_instruct.TUNED_SKILLS:
            all_wordings = tuple(dict.fromkeys(skill.tuned + skill.more))
            few = dataclasses.replace(skill, tuned=all_wordings[:n], more=(), tone=n > 1)
            wanted = counts[skill.name] or EXAMPLES_A_SKILL  # as many as one wording allows
            records += make_instruct.records(few, "train", wanted, seen, may_be_fewer=True)
        counts = Counter(record["skill"] for record in records)
        random.Random(seed).shuffle(records)
        data = write(folder / f"{n}.jsonl", records)
        rows.append(Row(f"at most {n}" if n > 1 else "1", ("--data", data, *STEPS)))
    return rows


@experiment("What is forgotten", SPLITS, FORGETTING)
def forgetting(folder: Path, seed: int) -> list[Row]:
    rows = [Row("base", None)]
    rows += [Row(f"learning rate {lr}", ("--lr", lr)) for lr in ("5e-5", "1.5e-4", "1e-3")]
    for percent in (5, 10, 20):
        rows.append(
            Row(
                f"{percent} % of the tokens replayed",
                ("--data", TUNING, replay(folder, percent / 100)),
            )
        )
    return [*rows, Row("LoRA, rank 8", ("--lora-rank", "8"))]


@functools.cache
def replay(folder: Path, share: float) -> str:
    """Pretraining documents as a file for --data, with the weight that makes them this share of an epoch's tokens."""
    texts = list(itertools.islice(world.documents(REPLAY_SEED, make_base.WORDINGS), 2000))
    path = write(folder / "replay.jsonl", [{"text": text} for text in texts])
    model, tokenizer, _ = load_checkpoint(BASE)
    tokenizer = tokenizer.with_special(TEMPLATES["chatml"].special_tokens)
    both, _ = build_dataset(
        [Path(TUNING), Path(path)], tokenizer, "chatml", max_length=model.config.context_length
    )
    tuning_tokens, replay_tokens = (both.lengths[both.sources[:, 0] == i].sum() for i in (0, 1))
    return f"{path}:{share / (1 - share) * tuning_tokens / replay_tokens:.4f}"


@experiment("Tuned with one template, asked with another", SPLITS, FORM)
def templates(folder: Path, seed: int) -> list[Row]:
    return [
        Row(f"tuned with {tuned}, asked with {asked}", ("--template", tuned), ("--template", asked))
        for tuned, asked in itertools.product(("chatml", "llama2", "alpaca"), repeat=2)
    ]


@experiment('With and without "I don\'t know"', SPLITS, UNKNOWN)
def unknown(folder: Path, seed: int) -> list[Row]:
    records, rows = single_questions(), []
    known = [record for record in records if record["skill"] != "unknown"]
    for n in (0, 20, 160, 1280):
        chosen = known + [record for record in records if record["skill"] == "unknown"][:n]
        data = write(folder / f"{n}.jsonl", chosen)
        rows.append(Row(f"{n} examples among {len(chosen):,}", ("--data", data, *STEPS)))
    return rows


@experiment("Chats of several questions, the same number of steps", SPLITS, UNKNOWN)
def chats(folder: Path, seed: int) -> list[Row]:
    rng = random.Random(seed)
    questions = [record for record in read(HELD_OUT) if len(record["messages"]) == 2]
    later = []
    for record in questions:
        before = [message for other in rng.sample(questions, 2) for message in other["messages"]]
        later.append(record | {"messages": before + record["messages"]})
    tuned = {"without chats": single_questions(), "with chats": read(TUNING)}  # the same questions
    asked = {"asked alone": questions, "asked after two others": later}
    data = {
        label: write(folder / f"{label}.jsonl", chosen) for label, chosen in (tuned | asked).items()
    }
    return [
        Row(
            f"tuned {with_or_without}, {when}",
            ("--data", data[with_or_without], *STEPS),
            ("--data", data[when]),
        )
        for with_or_without, when in itertools.product(tuned, asked)
    ]


# -------------------------------------------------------------------------------------- experiments with pretraining


@experiment("Where documents put the value", ENTITIES)
def boundary(folder: Path, seed: int) -> list[Row]:
    ways = {
        "often at a line's start": ["--wordings", "8"],
        "only inside a line": ["--wordings", "8", "--no-line-start"],
    }
    return [about_countries(folder, label, arguments, seed) for label, arguments in ways.items()]


@experiment("Wordings of each fact in pretraining", ENTITIES)
def pretraining(folder: Path, seed: int) -> list[Row]:
    return [about_countries(folder, n, ["--wordings", n], seed) for n in ("1", "2", "4", "8")]


def about_countries(folder: Path, label: str, base_arguments: list[str], seed: int) -> Row:
    """A small base that has read about countries only, tuned on questions about some, asked about the others."""
    base = folder / f"{label.replace(' ', '-')}.pt"
    run("data/make_base.py", *SMALL_BASE, *base_arguments, "--seed", str(seed), "--out", str(base))
    skills = [
        make_instruct.SKILLS[name] for name in ("capital", "continent", "language", "currency")
    ]
    files = {}
    for split, n in (("train", 150), ("entities", 60)):
        seen: set[str] = set()
        records = [
            record for skill in skills for record in make_instruct.records(skill, split, n, seen)
        ]
        files[split] = write(folder / f"countries-{split}.jsonl", records)
    return Row(
        label,
        ("--init", str(base), "--data", files["train"], *STEPS),
        ("--data", files["entities"]),
    )


# --------------------------------------------------------------------------------------------------------- the tables


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


def cell(values: Sequence[float], is_loss: bool) -> str:
    """Mean over seeds, and half the distance between the extremes."""
    digits = 3 if is_loss else 0
    spread = f" ±{(max(values) - min(values)) / 2:.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{spread}"


def print_table(
    title: str, columns: dict[str, str], results: dict[str, list[dict[str, float]]]
) -> None:
    """As Markdown; shares in per cent."""
    print(f"\n| {title} | {' | '.join(columns)} |\n|---{'|---:' * len(columns)}|")
    for label, runs in results.items():
        cells = [
            cell([run[row] for run in runs], "loss" in row)
            if all(row in run for run in runs)
            else ""
            for row in columns.values()
        ]
        print(f"| {label} | {' | '.join(cells)} |")


def main(argv: Sequence[str] | None = None) -> int:
    names = "\n".join(
        f"  {name:<12} {experiment.title}" for name, experiment in EXPERIMENTS.items()
    )
    parser = argparse.ArgumentParser(
        description=f"Train, ask, and print a table.\n\n{names}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=EXPERIMENTS)
    parser.add_argument(
        "--seeds", type=int, default=1, help="runs of each row, with seeds 0, 1, ... (%(default)s)"
    )
    parser.add_argument(
        "--out", default="out/experiments", help="folder for all files (%(default)s)"
    )
    args = parser.parse_args(argv)
    chosen, results, trained = EXPERIMENTS[args.name], {}, {}
    try:
        for seed in range(args.seeds):
            folder = Path(args.out) / args.name / f"seed-{seed}"
            for row in chosen.rows(folder, seed):
                results.setdefault(row.label, []).append(measure(row, folder, seed, trained))
    except (ChildProcessError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print_table(chosen.title, chosen.columns, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
