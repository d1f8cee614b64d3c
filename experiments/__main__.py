"""The experiments, each one command:

    python -m experiments forgetting

It trains what it compares, asks every model the same held-out questions, and prints one table.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments import pretraining, tuning
from experiments.table import (
    ALL,
    COST,
    ENTITIES,
    FORGETTING,
    FORM,
    SPLITS,
    UNKNOWN,
    Experiment,
    print_table,
    run_experiment,
)

EXPERIMENTS = {
    "tuning": Experiment(
        "Base, tuned, LoRA", tuning.ways_to_tune, SPLITS | FORM | UNKNOWN | FORGETTING
    ),
    "peft": Experiment("Few parameters", tuning.few_parameters, COST | SPLITS | FORGETTING),
    "peft-rates": Experiment(
        "Their learning rates, other questions", tuning.rates, ALL | SPLITS | FORGETTING
    ),
    "loss-mask": Experiment("Loss on which tokens", tuning.loss_mask, SPLITS | FORM | FORGETTING),
    "examples": Experiment(
        "Number of examples, the same number of steps", tuning.examples, SPLITS | FORM | UNKNOWN
    ),
    "tasks": Experiment("Number of tuning tasks, the same number of steps", tuning.tasks, SPLITS),
    "wordings": Experiment(
        "Wordings of each task, the same number of examples", tuning.wordings, SPLITS
    ),
    "forgetting": Experiment("What is forgotten", tuning.forgetting, SPLITS | FORGETTING),
    "templates": Experiment(
        "Tuned with one template, asked with another", tuning.templates, SPLITS | FORM
    ),
    "unknown": Experiment('With and without "I don\'t know"', tuning.unknown, SPLITS | UNKNOWN),
    "chats": Experiment(
        "Chats of several questions, the same number of steps", tuning.chats, SPLITS | UNKNOWN
    ),
    "boundary": Experiment("Where documents put the value", pretraining.boundary, ENTITIES),
    "pretraining": Experiment(
        "Wordings of each fact in pretraining", pretraining.wordings, ENTITIES
    ),
}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    names = [f"  {name:<12} {experiment.title}" for name, experiment in EXPERIMENTS.items()]
    parser = argparse.ArgumentParser(
        prog="python -m experiments",
        description="Train, ask, and print a table.\n\n" + "\n".join(names),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=EXPERIMENTS)
    seeds = "runs of each row, with seeds 0, 1, ... (%(default)s)"
    parser.add_argument("--seeds", type=int, default=1, help=seeds)
    folder = "folder for all files (%(default)s)"
    parser.add_argument("--out", default="out/experiments", help=folder)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    # Imported here, because it imports torch, which --help does not need.
    from runtime.console import accept_any_text, fail

    accept_any_text()
    experiment = EXPERIMENTS[args.name]
    try:
        results = run_experiment(experiment, Path(args.out) / args.name, args.seeds)
    except (OSError, ValueError) as error:  # ChildProcessError is an OSError
        return fail(error)
    print_table(experiment.title, experiment.columns, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
