"""Generation with our key-value cache against transformers' generate: one prompt, and sixteen.

    python bench/generate_speed.py --shape small --new-tokens 128

Prompts are of different lengths. Greedy, nothing stops early, random weights (the same for all) and
random prompts: only the speed means anything. Each contender runs in its own process, interleaved.
The last column says how many of the new ids are those of ours; where the two likeliest ids are as
good as equal, rounding may choose either.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from task import (
    SHAPES,
    failed,
    format_table,
    machine,
    measure,
    median,
    our_model,
    peak_memory,
    transformers_model,
)

from runtime import fast
from runtime.console import fail

CONTENDERS = ("ours", "hf", "hf-tuned")
HEADER = ("", "prompts", "s", "new tokens/s", "MB", "s / ours", "same ids")
Generate = Callable[[list[list[int]]], list[list[int]]]


def draw_prompts(number: int, longest: int, n_vocab: int) -> list[list[int]]:
    """One prompt of the full length, the others between an eighth of it and all of it."""
    random = np.random.default_rng(0)
    lengths = [longest, *random.integers(longest // 8, longest + 1, number - 1).tolist()]
    return [random.integers(n_vocab, size=length).tolist() for length in lengths]


# The contenders


def our_generate(args: argparse.Namespace) -> Generate:
    fast.keep_freed_memory()
    model = our_model(SHAPES[args.shape]).to(args.device).eval()
    fast.speed_up(model, args.device)
    return lambda prompts: model.generate(prompts, args.new_tokens)


def their_generate(args: argparse.Namespace, tuned: bool) -> Generate:
    """Ragged prompts are padded on the left, which is how transformers wants them."""
    if tuned:
        fast.keep_freed_memory()
    shape = SHAPES[args.shape]
    model = transformers_model(shape, "gelu_pytorch_tanh" if tuned else "gelu_new")
    model = model.to(args.device).eval()
    settings = dict(do_sample=False, use_cache=True, pad_token_id=0, eos_token_id=None)
    settings |= dict(max_new_tokens=args.new_tokens, min_new_tokens=args.new_tokens)
    # Like ours, it never takes the rows that only round the vocabulary up.
    settings |= dict(suppress_tokens=list(range(shape.n_vocab, shape.vocab_size)))

    @torch.no_grad()
    def generate(prompts: list[list[int]]) -> list[list[int]]:
        longest = max(map(len, prompts))
        n_padding = [longest - len(prompt) for prompt in prompts]
        padded = [[0] * n + prompt for n, prompt in zip(n_padding, prompts)]
        mask = [[0] * n + [1] * (longest - n) for n in n_padding]
        ids, mask = (torch.tensor(rows, device=args.device) for rows in (padded, mask))
        return model.generate(ids, attention_mask=mask, **settings)[:, longest:].tolist()

    return generate


def run(args: argparse.Namespace) -> dict:
    """One contender's times, in seconds, and ids, for each number of prompts."""
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.contender == "ours":
        generate = our_generate(args)
    else:
        generate = their_generate(args, "tuned" in args.contender)
    result = {}
    for number in args.prompts:
        prompts = draw_prompts(number, args.prompt_tokens, SHAPES[args.shape].n_vocab)
        generate(prompts)  # the first call of anything is slow
        started = time.perf_counter()
        ids = generate(prompts)
        result[f"seconds {number}"], result[f"ids {number}"] = time.perf_counter() - started, ids
    return {**result, "peak_mb": peak_memory(args.device)}


# The comparison


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", default="small", choices=SHAPES)
    parser.add_argument("--prompts", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--prompt-tokens", type=int, default=64, help="of the longest prompt")
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="0: torch's default")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--contender", choices=CONTENDERS, help="run this one only, print JSON")
    args = parser.parse_args()
    context_length = SHAPES[args.shape].context_length
    if args.prompt_tokens + args.new_tokens > context_length:
        parser.error(f"--prompt-tokens and --new-tokens do not fit into {context_length} tokens")
    return args


def rows_of(args: argparse.Namespace, results: dict[str, list[dict]]) -> list[list[str]]:
    rows = []
    for number in args.prompts:
        our_seconds = median(results["ours"], f"seconds {number}")
        our_ids = np.array(results["ours"][0][f"ids {number}"])
        for name, rounds in results.items():
            seconds = median(rounds, f"seconds {number}")
            same = float((np.array(rounds[0][f"ids {number}"]) == our_ids).mean())
            rate, memory = number * args.new_tokens / seconds, median(rounds, "peak_mb")
            row = [name, str(number), f"{seconds:.2f}", f"{rate:,.0f}", f"{memory:,.0f}"]
            rows.append([*row, f"{seconds / our_seconds:.2f}", f"{same:.0%}"])
    return rows


def main() -> int:
    args = parse()
    if args.contender:
        print(json.dumps(run(args)))
        return 0
    results = measure({name: [*sys.argv, "--contender", name] for name in CONTENDERS}, args.rounds)
    for name, rounds in results.items():
        if error := failed(rounds):
            return fail(f"{name}: {error}")
    what = f"shape {args.shape}, {args.new_tokens} new tokens a prompt"
    print(f"{machine(args.device)}\n{what}; medians of {args.rounds} rounds\n")
    print(format_table(HEADER, rows_of(args, results)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
