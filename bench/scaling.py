"""How cost grows: with the model's size, a conversation's length, the number of conversations.

    python bench/scaling.py

One table each, with the exponent b of cost ~ size^b (a line through the logarithms): 1 is linear, 0
is flat. Conversations are random, so nothing has to be at hand.
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from contenders import ours
from task import (
    SHAPES,
    Record,
    Task,
    failed,
    floating_point_operations,
    format_table,
    machine,
    measure,
    median,
    peak_memory,
    random_dataset,
)

import sft
from runtime.console import fail

MODELS = {
    "4 layers, 256 wide": (4, 256),
    "6 layers, 384 wide": (6, 384),
    "12 layers, 768 wide": (12, 768),
}
MIDDLE = "6 layers, 384 wide"
LENGTHS = (64, 128, 256, 512, 1024)
WORDS = "to be or not that is the question whether nobler in mind suffer".split()


# One point, in a process of its own


def train(n_layer: int, n_embd: int, length: int, tokens: int, steps: int) -> dict[str, float]:
    """Steps of `tokens` tokens in conversations of one length. The first two are not counted."""
    sizes = dict(n_layer=n_layer, n_embd=n_embd, n_head=n_embd // 64, context_length=1024)
    config = replace(SHAPES["small"], **sizes)
    a_step = max(tokens // length, 1)
    dataset = random_dataset(np.full(a_step * steps, length), config.n_vocab)
    task = Task(config, dataset, np.split(np.arange(len(dataset)), steps), "cpu", False, False)
    record = Record()
    ours(task, record)
    result = record.result(task)
    seconds = float(np.median(result["step_seconds"][2:])) / (a_step * length)
    operations = floating_point_operations(config, result["tokens"], result["supervised"])
    return {
        "seconds": seconds,
        "peak_mb": result["peak_mb"],
        "operations": operations / result["tokens"],
    }


def start(data: str, cache: str) -> dict[str, float]:
    """The real command on a file, up to the end of its first step."""
    with tempfile.TemporaryDirectory() as out, open(os.devnull, "w") as nowhere:
        arguments = ["--data", data, "--cache", cache, "--out", f"{out}/run"]
        started = time.perf_counter()
        with contextlib.redirect_stdout(nowhere):
            status = sft.main([*arguments, "--steps", "1", "--device", "cpu"])
        if status:
            raise SystemExit(status)
        return {"seconds": time.perf_counter() - started, "peak_mb": peak_memory("cpu")}


# The tables


def write_conversations(path: Path, number: int) -> None:
    """Some 300 bytes each, no two alike."""
    random = np.random.default_rng(0)
    with open(path, "w", encoding="utf-8") as file:
        for i in range(number):
            sizes = random.integers(5, 40, 2)
            question, answer = (" ".join(random.choice(WORDS, size)) for size in sizes)
            file.write(json.dumps({"prompt": f"{i}: {question}", "completion": answer}) + "\n")


def exponent(sizes: list[float], costs: list[float]) -> float:
    """b of the power law cost = a size^b that fits best, in the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def show(title: str, unit: int, sizes: dict[str, float], results: dict[str, list[dict]]) -> None:
    """One table: what is varied, its cost, and how that grows. Raises ValueError where a point
    could not be measured."""
    for name, rounds in results.items():
        if error := failed(rounds):
            raise ValueError(f"{name}: {error}")
    seconds = [median(rounds, "seconds") * unit for rounds in results.values()]
    memory = [median(rounds, "peak_mb") for rounds in results.values()]
    rows = [
        [name, f"{cost:.3f}", f"{megabytes:,.0f}"]
        for name, cost, megabytes in zip(results, seconds, memory)
    ]
    values = [sizes[name] for name in results]
    rows.append(["exponent", f"{exponent(values, seconds):.2f}", f"{exponent(values, memory):.2f}"])
    header = [title, "s" if unit == 1 else f"s / {unit:,.0f} tokens", "MB"]
    print(format_table(header, rows) + "\n", flush=True)


def point(*values: object) -> list[str]:
    """The command that measures one."""
    return [__file__, "--run", *map(str, values)]


def training_tables(args: argparse.Namespace) -> None:
    work = args.tokens, args.steps
    points = {name: point("train", *sizes, 256, *work) for name, sizes in MODELS.items()}
    results = measure(points, args.rounds)
    operations = {name: rounds[0].get("operations") for name, rounds in results.items()}
    show("model (against operations a token)", 1000, operations, results)
    points = {str(length): point("train", *MODELS[MIDDLE], length, *work) for length in LENGTHS}
    lengths = {name: float(name) for name in points}
    show("tokens a conversation", 1000, lengths, measure(points, args.rounds))


def start_tables(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        sizes, points = {}, {}
        for number in args.conversations:
            data = Path(folder) / f"{number}.jsonl"
            write_conversations(data, number)
            sizes[f"{number:,}"] = number
            points[f"{number:,}"] = point("start", data, f"{folder}/cache")
        # The first start leaves large ones in the cache.
        show("conversations, first start", 1, sizes, measure(points, 1))
        show("conversations, later starts", 1, sizes, measure(points, args.rounds))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=2048, help="of a step")
    parser.add_argument("--steps", type=int, default=12)
    numbers = [1000, 10_000, 100_000, 1_000_000]
    parser.add_argument("--conversations", type=int, nargs="+", default=numbers)
    how = "measure one point, here, and print JSON: train NUMBERS or start FILES"
    parser.add_argument("--run", nargs="+", help=how)
    args = parser.parse_args()
    if args.run:
        kind, *values = args.run
        print(json.dumps(train(*map(int, values)) if kind == "train" else start(*values)))
        return 0
    print(f"{machine('cpu')}; medians of {args.rounds} rounds\n")
    try:
        training_tables(args)
        start_tables(args)
    except ValueError as error:
        return fail(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
