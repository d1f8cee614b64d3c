"""How cost grows: with the size of the model, the length of a conversation, the number of conversations.

    python bench/scaling.py

One table each, with the exponent b of cost ~ size^b (a line through the logarithms): 1 is linear, 0 is flat.
Conversations are random, so nothing has to be at hand.
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

MODELS = {
    "4 layers, 256 wide": (4, 256),
    "6 layers, 384 wide": (6, 384),
    "12 layers, 768 wide": (12, 768),
}
MIDDLE = "6 layers, 384 wide"
LENGTHS = (64, 128, 256, 512, 1024)


def train(n_layer: int, n_embd: int, length: int, tokens: int, steps: int) -> dict:
    """Steps of `tokens` tokens in conversations of one length. The first two steps are not counted."""
    config = replace(
        SHAPES["small"], n_layer=n_layer, n_embd=n_embd, n_head=n_embd // 64, context_length=1024
    )
    a_step = max(tokens // length, 1)
    dataset = random_dataset(np.full(a_step * steps, length), config.n_vocab)
    task = Task(config, dataset, np.split(np.arange(len(dataset)), steps), "cpu", False, False)
    record = Record()
    ours(task, record)
    result = record.result(task)
    seconds = np.median(result["step_seconds"][2:]) / (a_step * length)
    operations = (
        floating_point_operations(config, result["tokens"], result["supervised"]) / result["tokens"]
    )
    return {"seconds": seconds, "peak_mb": result["peak_mb"], "operations": operations}


def start(data: str, cache: str) -> dict:
    """The real command on a file, up to the end of its first step."""
    with tempfile.TemporaryDirectory() as out, open(os.devnull, "w") as nowhere:
        started = time.perf_counter()
        with contextlib.redirect_stdout(nowhere):
            status = sft.main(
                f"--data {data} --cache {cache} --out {out}/run --steps 1 --device cpu".split()
            )
        if status:
            raise SystemExit(status)
        return {"seconds": time.perf_counter() - started, "peak_mb": peak_memory("cpu")}


def write_conversations(path: Path, number: int) -> None:
    """Some 300 bytes each, no two alike."""
    random, words = (
        np.random.default_rng(0),
        "to be or not that is the question whether nobler in mind suffer".split(),
    )
    with open(path, "w", encoding="utf-8") as file:
        for i in range(number):
            question, answer = (
                " ".join(random.choice(words, size)) for size in random.integers(5, 40, 2)
            )
            file.write(json.dumps({"prompt": f"{i}: {question}", "completion": answer}) + "\n")


def exponent(sizes: list[float], costs: list[float]) -> float:
    """b of the power law cost = a size^b that fits best, in the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def show(title: str, unit: float, sizes: dict[str, float], results: dict[str, list[dict]]) -> None:
    """One table: what is varied, its cost, and how that grows."""
    for name, rounds in results.items():
        if error := failed(rounds):
            raise SystemExit(f"error: {name}: {error}")
    seconds = [median(rounds, "seconds") * unit for rounds in results.values()]
    memory = [median(rounds, "peak_mb") for rounds in results.values()]
    rows = [
        [name, f"{cost:.3f}", f"{megabytes:,.0f}"]
        for name, cost, megabytes in zip(results, seconds, memory)
    ]
    values = [sizes[name] for name in results]
    rows.append(["exponent", f"{exponent(values, seconds):.2f}", f"{exponent(values, memory):.2f}"])
    print(
        format_table([title, "s" if unit == 1 else f"s / {unit:,.0f} tokens", "MB"], rows) + "\n",
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=2048, help="of a step")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument(
        "--conversations", type=int, nargs="+", default=[1000, 10_000, 100_000, 1_000_000]
    )
    parser.add_argument(
        "--run",
        nargs="+",
        help="measure one point, here, and print JSON: train NUMBERS or start FILES",
    )
    args = parser.parse_args()
    if args.run:
        kind, *values = args.run
        print(json.dumps(train(*map(int, values)) if kind == "train" else start(*values)))
        return 0

    def point(*values: object) -> list[str]:
        return [__file__, "--run", *map(str, values)]

    print(f"{machine('cpu')}; medians of {args.rounds} rounds\n")
    work = args.tokens, args.steps
    points = {name: point("train", *sizes, 256, *work) for name, sizes in MODELS.items()}
    results = measure(points, args.rounds)
    operations = {name: rounds[0].get("operations") for name, rounds in results.items()}
    show("model (against operations a token)", 1000, operations, results)

    points = {str(length): point("train", *MODELS[MIDDLE], length, *work) for length in LENGTHS}
    show(
        "tokens a conversation",
        1000,
        {name: float(name) for name in points},
        measure(points, args.rounds),
    )

    with tempfile.TemporaryDirectory() as folder:
        sizes, points = {}, {}
        for number in args.conversations:
            data = Path(folder) / f"{number}.jsonl"
            write_conversations(data, number)
            sizes[f"{number:,}"] = number
            points[f"{number:,}"] = point("start", data, f"{folder}/cache")
        show(
            "conversations, first start", 1, sizes, measure(points, 1)
        )  # which leaves large ones in the cache
        show("conversations, later starts", 1, sizes, measure(points, args.rounds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
