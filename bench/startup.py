"""From the start of the process to the first step, ours and the peers'; tokens tokenised a second.

    python bench/startup.py --data FILE --against trl,hf

Ours is the real command, `python sft.py --data FILE`, with this repository's base: when it says
"training", all is prepared; when it says "step 1", the base has also answered three questions, and
the first update is done. Peers (contenders.py) are timed up to the beginning of their first step,
with a model of the small shape and ids that our code has rendered: their time is mostly their
imports. Tokenising is measured on one core.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from task import SPECIAL_TOKENS, failed, format_table, machine, measure, median

from runtime.console import fail
from runtime.files import HERE, find_file
from runtime.load import load_checkpoint
from runtime.records import build_dataset
from tokenizer import Tokenizer

CONTENDERS = str(Path(__file__).parent / "contenders.py")


def start_ours(data: str) -> dict[str, float]:
    """Seconds until the real command has printed these lines. Raises ValueError where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(HERE / "sft.py"), "--data", data, "--device", "cpu"]
        command += ["--steps", "2", "--eval-every", "2", "--save-every", "2"]
        command += ["--out", f"{folder}/run", "--cache", f"{folder}/cache"]
        started, seen = time.perf_counter(), {}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout:
                for mark in ("training", "step 1/2"):
                    if line.startswith(mark):
                        seen.setdefault(mark, time.perf_counter() - started)
        if process.returncode:
            raise ValueError(f"sft.py ended with status {process.returncode}")
    return seen


def tokenising_rate(data: Path, tokenizer: Tokenizer, seconds: float) -> float:
    """Tokens a second through reading, parsing, rendering and masking, in one process, as a run
    does it."""
    tokens, started = 0, time.perf_counter()
    settings = dict(max_length=1024, overlong="truncate")
    while time.perf_counter() - started < seconds:
        dataset, _ = build_dataset([data], tokenizer, "chatml", **settings)
        tokens += len(dataset.ids)
    return tokens / (time.perf_counter() - started)


def known_tokenizers() -> dict[str, Tokenizer]:
    """The base's vocabulary, and GPT-2's where it is at hand."""
    _, of_base, _ = load_checkpoint("base.pt")
    tokenizers = {"the base's vocabulary": of_base.with_special(SPECIAL_TOKENS)}
    try:
        tokenizers["GPT-2's vocabulary"] = Tokenizer.gpt2().with_special(SPECIAL_TOKENS)
    except OSError as error:
        print(f"GPT-2's vocabulary is left out: {error}", file=sys.stderr)
    return tokenizers


def rows_of_peers(data: Path, names: list[str], rounds: int) -> list[list[str]]:
    arguments = ["--data", str(data), "--steps", "1"]
    commands = {name: [CONTENDERS, name, *arguments] for name in names}
    rows = []
    for name, results in measure(commands, rounds).items():
        if error := failed(results):
            rows.append([name, error, ""])
        else:
            rows.append([name, f"{median(results, 'ready_seconds'):.2f}", "-"])
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default="tiny_instruct.jsonl")
    parser.add_argument("--against", default="", help="trl, hf, with commas")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5, help="how long to tokenise")
    args = parser.parse_args()
    try:
        path = find_file(args.data).resolve()
        ours = [start_ours(str(path)) for _ in range(args.rounds)]
    except (OSError, ValueError) as error:
        return fail(error)
    names = [name for name in args.against.split(",") if name]
    rows = [["ours", f"{median(ours, 'training'):.2f}", f"{median(ours, 'step 1/2'):.2f}"]]
    rows += rows_of_peers(path, names, args.rounds)
    print(f"{machine('cpu')}; medians of {args.rounds} rounds\n")
    print(format_table(["", "s to the first step", "s to its end"], rows) + "\n")
    for name, tokenizer in known_tokenizers().items():
        seconds = args.seconds / args.rounds
        rates = [tokenising_rate(path, tokenizer, seconds) for _ in range(args.rounds)]
        print(f"tokenising {path.name}, one core, {name}: {np.median(rates):,.0f} tokens/s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
