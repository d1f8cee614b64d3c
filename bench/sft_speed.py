"""One epoch of fine-tuning against TRL and a plain transformers loop, side by side, and against the machine.

    pip install -r bench/requirements.txt
    python bench/sft_speed.py --against trl,hf --shape small --data FILE

Each contender runs in its own process (contenders.py), interleaved, in several rounds; the table holds medians. A row
whose first-batch loss is not ours was not doing the same work, and is marked.
"""

import argparse
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
    measure,
    median,
    shared_arguments,
)

from model import GPTConfig
from runtime.files import find_file

CONTENDERS = str(Path(__file__).parent / "contenders.py")
GROUPS = {
    "ours": ("ours", "ours-lora"),
    "hf": ("hf", "hf-tuned"),
    "trl": ("trl", "trl-padding-free", "trl-tuned"),
}
LARGEST_DIFFERENCE = 1e-3  # of the first batch's loss, in nats
HEADER = ("", "s", "tokens/s", "MB", "first loss", "mean loss", "s / ours", "MB / ours", "")


def comparison(results: dict[str, Sequence[dict]]) -> str:
    """The table: a row a contender, with the medians over its rounds."""
    ours, rows = results["ours"], []
    for name, rounds in results.items():
        if error := failed(rounds):
            rows.append([name, *"-" * 7, f"failed: {error}"])
            continue
        seconds, megabytes = median(rounds, "seconds"), median(rounds, "peak_mb")
        first, mean = rounds[0]["first_loss"], rounds[0]["mean_loss"]
        ratios = [
            f"{seconds / median(ours, 'seconds'):.2f}",
            f"{megabytes / median(ours, 'peak_mb'):.2f}",
        ]
        difference = abs(first - ours[0]["first_loss"])
        same = difference <= LARGEST_DIFFERENCE  # NaN is not
        note = "" if same else f"not comparable: its first loss is {difference:.4f} away"
        cost = [f"{seconds:.2f}", f"{rounds[0]['tokens'] / seconds:,.0f}", f"{megabytes:,.0f}"]
        rows.append([name, *cost, f"{first:.4f}", f"{mean:.4f}", *ratios, note])
    return format_table(HEADER, rows)


def floor(ours: Sequence[dict], rates: Sequence[dict], config: GPTConfig) -> str:
    """How much of the time the multiplications alone would take, were they all as fast as large square ones: by
    torch.mm, and by `model.linear`."""
    operations = floating_point_operations(config, ours[0]["tokens"], ours[0]["supervised"])
    lines = [f"floor: {operations / 1e12:.3g} tera-operations, {rates[0]['threads']} threads"]
    for key, name in (("rate", "torch.mm"), ("our_rate", "model.linear")):
        if key in rates[0]:
            rate = median(rates, key)
            seconds = operations / rate
            share = seconds / median(ours, "seconds")
            at = f"at the {rate / 1e9:,.0f} giga-operations/s of {name}"
            lines.append(f"  {seconds:.2f} s {at}: ours reaches {share:.0%} of it")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--against", default="trl,hf", help="any of trl, hf, with commas; or nothing"
    )
    parser.add_argument("--rounds", type=int, default=3)
    add_arguments(parser)
    args = parser.parse_args()
    against = [group for group in args.against.split(",") if group]
    if unknown := set(against) - GROUPS.keys():
        parser.error(f"--against knows hf and trl, not {', '.join(sorted(unknown))}")
    if args.data:
        try:
            find_file(args.data)
        except FileNotFoundError as error:
            parser.error(str(error))
    names = [name for group in dict.fromkeys(["ours", *against]) for name in GROUPS[group]]
    shared = shared_arguments(args)
    results = measure(
        {name: [CONTENDERS, name, *shared] for name in [*names, "multiplication"]}, args.rounds
    )
    rates = results.pop("multiplication")
    if error := failed(results["ours"]) or failed(rates):
        print(f"error: {error}", file=sys.stderr)
        return 2
    first = results["ours"][0]
    print(machine(args.device))
    what = f"{args.data or 'random conversations'}, shape {args.shape}, {args.batch_size} conversations a step"
    sizes = f"{first['tokens']:,} tokens, {first['supervised']:,} supervised"
    print(f"{what}; {len(first['step_seconds'])} steps, {sizes}; medians of {args.rounds} rounds\n")
    print(comparison(results))
    print("\n" + floor(results["ours"], rates, SHAPES[args.shape]))
    return 1 if any(map(failed, results.values())) else 0


if __name__ == "__main__":
    sys.exit(main())
