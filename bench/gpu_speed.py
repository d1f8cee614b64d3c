"""Fine-tuning on a GPU: tokens/s, share of its matrix-multiply peak, memory; ours against transformers' model in TRL.

    python bench/gpu_speed.py --shapes gpt2,gpt2-medium --against trl,hf

bfloat16 autocast. Without --data, conversations are random ids of chat-like lengths, so that neither network nor
vocabulary is needed. The first steps, in which kernels are chosen and compiled, are not counted.
"""

import argparse
import sys

import torch
from sft_speed import CONTENDERS, GROUPS
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

HEADER = ("", "compiled", "tokens/s", "of peak", "MB", "first loss", "tokens/s / ours", "")


def commands_of(args: argparse.Namespace, names: list[str]) -> dict[str, list[str]]:
    """Each contender as it is, and under torch.compile; and the GPU's own rate."""
    shared = shared_arguments(args)
    commands = {name: [CONTENDERS, name, *shared] for name in (*names, "multiplication")}
    return commands | {
        f"{name} compiled": [CONTENDERS, name, *shared, "--compile"] for name in names
    }


def rows_of(
    results: dict[str, list[dict]], peak: float, shape: str, warm_up: int
) -> list[list[str]]:
    rows, ours = [], None
    for label, rounds in results.items():
        name, _, compiled = label.partition(" ")
        start = [name, "yes" if compiled else "no"]
        if error := failed(rounds):
            rows.append([*start, *"-" * 5, f"failed: {error}"])
            continue
        rates = [sum(r["step_tokens"][warm_up:]) / sum(r["step_seconds"][warm_up:]) for r in rounds]
        rate = sorted(rates)[len(rates) // 2]
        ours = ours or rate  # the first row is ours, not compiled
        operations = floating_point_operations(
            SHAPES[shape], rounds[0]["tokens"], rounds[0]["supervised"]
        )
        # An adapter's weights get a gradient, the base's get none: no share, because it is other work.
        share = "-" if "lora" in name else f"{operations / rounds[0]['tokens'] * rate / peak:.0%}"
        memory, loss = median(rounds, "peak_mb"), rounds[0]["first_loss"]
        rows.append(
            [
                *start,
                f"{rate:,.0f}",
                share,
                f"{memory:,.0f}",
                f"{loss:.3f}",
                f"{rate / ours:.2f}",
                "",
            ]
        )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--shapes", default="gpt2,gpt2-medium", help=f"any of {', '.join(SHAPES)}, with commas"
    )
    parser.add_argument(
        "--against", default="trl,hf", help="any of trl, hf, with commas; or nothing"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warm-up", type=int, default=10, help="steps that are not counted")
    add_arguments(parser)
    parser.set_defaults(device="cuda", bfloat16=True, batch_size=32, steps=30)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print(
            "error: torch finds no CUDA GPU on this machine; nothing was measured", file=sys.stderr
        )
        return 2
    names = [
        name for group in ("ours", *filter(None, args.against.split(","))) for name in GROUPS[group]
    ]
    print(
        f"{machine('cuda')}; bfloat16, {args.batch_size} conversations a step; medians of {args.rounds} rounds"
    )
    for shape in args.shapes.split(","):
        task = argparse.Namespace(**{**vars(args), "shape": shape})
        results = measure(commands_of(task, names), args.rounds)
        rates = results.pop("multiplication")
        if error := failed(rates) or failed(results["ours"]):
            print(f"error: {error}", file=sys.stderr)
            return 2
        peak = median(rates, "rate")
        print(f"\nshape {shape}; products of large matrices: {peak / 1e12:,.0f} tera-operations/s")
        print(format_table(HEADER, rows_of(results, peak, shape, args.warm_up)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
