"""Fine-tuning on a GPU: tokens/s, share of its peak, memory; ours against the peers.

    python bench/gpu_speed.py --shapes gpt2,gpt2-medium --against trl,hf

bfloat16 autocast. The peak is the rate of products of large matrices, measured here. Without
--data, conversations are random ids of chat-like lengths, so that neither network nor vocabulary is
needed. The first steps, in which kernels are chosen and compiled, are not counted.
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

from runtime.console import fail

HEADER = ("", "compiled", "tokens/s", "of peak", "MB", "first loss", "tokens/s / ours", "")


def commands_of(args: argparse.Namespace, names: list[str]) -> dict[str, list[str]]:
    """Each contender as it is, and under torch.compile; and the GPU's own rate."""
    shared = shared_arguments(args)
    commands = {name: [CONTENDERS, name, *shared] for name in (*names, "multiplication")}
    for name in names:
        commands[f"{name} compiled"] = [CONTENDERS, name, *shared, "--compile"]
    return commands


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
        first = rounds[0]
        sizes = first["tokens"], first["supervised"]
        a_token = floating_point_operations(SHAPES[shape], *sizes) / first["tokens"]
        # An adapter's weights get a gradient, the base's get none: no share, for it is other work.
        share = "-" if "lora" in name else f"{a_token * rate / peak:.0%}"
        memory, loss = f"{median(rounds, 'peak_mb'):,.0f}", f"{first['first_loss']:.3f}"
        ratio, note = f"{rate / ours:.2f}", first.get("note", "")
        rows.append([*start, f"{rate:,.0f}", share, memory, loss, ratio, note])
    return rows


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    shapes = f"any of {', '.join(SHAPES)}, with commas"
    parser.add_argument("--shapes", default="gpt2,gpt2-medium", help=shapes)
    parser.add_argument("--against", default="trl,hf", help="trl, hf, with commas; or nothing")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warm-up", type=int, default=10, help="steps that are not counted")
    add_arguments(parser)
    parser.set_defaults(device="cuda", bfloat16=True, batch_size=32, steps=30)
    return parser.parse_args()


def main() -> int:
    args = parse()
    if not torch.cuda.is_available():
        return fail("torch finds no CUDA GPU on this machine; nothing was measured")
    groups = ("ours", *filter(None, args.against.split(",")))
    names = [name for group in groups for name in GROUPS[group]]
    what = f"bfloat16, {args.batch_size} conversations a step; medians of {args.rounds} rounds"
    print(f"{machine('cuda')}; {what}")
    for shape in args.shapes.split(","):
        task = argparse.Namespace(**{**vars(args), "shape": shape})
        results = measure(commands_of(task, names), args.rounds)
        rates = results.pop("multiplication")
        if error := failed(rates) or failed(results["ours"]):
            return fail(error)
        peak = median(rates, "rate")
        print(f"\nshape {shape}; products of large matrices: {peak / 1e12:,.0f} tera-operations/s")
        print(format_table(HEADER, rows_of(results, peak, shape, args.warm_up)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
