"""Fine-tuning against TRL, a plain transformers loop, an earlier state, and the machine.

    pip install -r bench/requirements.txt
    python bench/sft_speed.py --against trl,hf --shape small --data FILE
    python bench/sft_speed.py --against "" --before ../earlier --shape small --data FILE

Each contender trains on one epoch in its own process (contenders.py), interleaved, in several
rounds; the table holds medians. With --before, a second checkout of this repository is one of them:
its own `ours`, on the same task in the same rounds. A row whose first loss is not that of ours was
not doing the same work, and is marked.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from task import (
    SHAPES,
    add_arguments,
    failed,
    floating_point_operations,
    format_table,
    machine,
    make_task,
    measure,
    median,
    shared_arguments,
)

from model import GPTConfig
from runtime.console import fail
from runtime.files import find_file

CONTENDERS = str(Path(__file__).parent / "contenders.py")
GROUPS = {
    "ours": ("ours", "ours-lora"),
    "hf": ("hf", "hf-tuned"),
    "peft": ("hf-lora",),
    "trl": ("trl", "trl-chunked-nll", "trl-padding-free", "trl-tuned"),
}
LARGEST_DIFFERENCE = 1e-3  # of the first batch's loss, in nats
HEADER = ("", "s", "tokens/s", "MB", "first loss", "mean loss", "s / ours", "MB / ours", "")


def comparison(results: dict[str, Sequence[dict]]) -> str:
    """The table: a row a contender, with the medians over its rounds."""
    ours, rows = results["ours"], []
    our_seconds, our_megabytes = median(ours, "seconds"), median(ours, "peak_mb")
    for name, rounds in results.items():
        if error := failed(rounds):
            rows.append([name, *"-" * 7, f"failed: {error}"])
            continue
        seconds, megabytes = median(rounds, "seconds"), median(rounds, "peak_mb")
        first, mean = rounds[0]["first_loss"], rounds[0]["mean_loss"]
        ratios = [f"{seconds / our_seconds:.2f}", f"{megabytes / our_megabytes:.2f}"]
        notes = [rounds[0].get("note", "")]
        difference = abs(first - ours[0]["first_loss"])
        if not difference <= LARGEST_DIFFERENCE:  # NaN is not
            notes.append(f"not comparable: its first loss is {difference:.4f} away")
        cost = [f"{seconds:.2f}", f"{rounds[0]['tokens'] / seconds:,.0f}", f"{megabytes:,.0f}"]
        note = "; ".join(filter(None, notes))
        rows.append([name, *cost, f"{first:.4f}", f"{mean:.4f}", *ratios, note])
    return format_table(HEADER, rows)


def floor(ours: Sequence[dict], floors: Sequence[dict], config: GPTConfig) -> str:
    """How much longer ours takes than the same matrix products alone."""
    operations = floating_point_operations(config, ours[0]["tokens"], ours[0]["supervised"])
    amount = f"{operations / 1e12:.3g} tera-operations, {floors[0]['threads']} threads"
    lines = [f"floor: the same matrix products alone; {amount}"]
    for key, name in (("seconds", "torch.mm"), ("onednn_seconds", "oneDNN, as ours multiplies")):
        if key in floors[0]:
            seconds = median(floors, key)
            ratio = median(ours, "seconds") / seconds
            lines.append(f"  {seconds:.2f} s by {name}: ours / floor = {ratio:.2f}")
    return "\n".join(lines)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--against", default="trl,hf", help="trl, hf, peft, with commas; or nothing"
    )
    parser.add_argument("--before", metavar="DIR", help="a second checkout of this repository")
    parser.add_argument("--rounds", type=int, default=3)
    add_arguments(parser)
    args = parser.parse_args(argv)
    args.against = [group for group in args.against.split(",") if group]
    if unknown := set(args.against) - GROUPS.keys():
        parser.error(f"--against knows {', '.join(GROUPS)}, not {', '.join(sorted(unknown))}")
    if args.before and not contenders_of(args.before).is_file():
        parser.error(f"--before {args.before}: there is no {contenders_of(args.before)}")
    if args.data:
        try:  # absolute: the same file for a checkout that starts in its own folder
            args.data = str(find_file(args.data).resolve())
        except FileNotFoundError as error:
            parser.error(str(error))
    return args


def contenders_of(folder: str) -> Path:
    return Path(folder).resolve() / "bench" / "contenders.py"


def commands_of(args: argparse.Namespace) -> dict[str, list[str]]:
    """A command a contender, in the order of their turns."""
    names = [name for group in dict.fromkeys(["ours", *args.against]) for name in GROUPS[group]]
    shared = shared_arguments(args)
    commands = {"ours": [CONTENDERS, "ours", *shared]}
    if args.before:
        commands["before"] = [str(contenders_of(args.before)), "ours", *shared]
    return commands | {name: [CONTENDERS, name, *shared] for name in [*names, "floor"]}


def commit_of(folder: str) -> str:
    """The commit that is checked out in a folder, if git knows one."""
    command = ["git", "-C", folder, "describe", "--always", "--dirty"]
    try:
        found = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return "unknown"
    return found.stdout.strip() or "unknown"


def describe(args: argparse.Namespace, first: dict) -> str:
    """What was measured, on what."""
    data = Path(args.data).name if args.data else "random conversations"
    lines = [machine(args.device)]
    if args.before:
        here = str(Path(__file__).parent)
        before = f"before: {args.before}, commit {commit_of(args.before)}"
        lines.append(f"{before}; ours: commit {commit_of(here)}")
    what = f"{data}, shape {args.shape}, {args.batch_size} conversations a step"
    steps = f"{len(first['step_seconds'])} steps"
    sizes = f"{first['tokens']:,} tokens, {first['supervised']:,} supervised"
    lines.append(f"{what}; {steps}, {sizes}; medians of {args.rounds} rounds")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    try:
        make_task(args)  # rather here than in each contender of each round
    except (OSError, ValueError) as error:
        return fail(error)
    folders = {"before": Path(args.before).resolve()} if args.before else {}
    results = measure(commands_of(args), args.rounds, folders)
    floors = results.pop("floor")
    if error := failed(results["ours"]) or failed(floors):
        return fail(error)
    print(describe(args, results["ours"][0]) + "\n")
    print(comparison(results))
    print("\n" + floor(results["ours"], floors, SHAPES[args.shape]))
    return 1 if any(map(failed, results.values())) else 0


if __name__ == "__main__":
    sys.exit(main())
