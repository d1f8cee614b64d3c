"""Generation with our key-value cache against transformers' generate: one prompt, and 16 of different lengths.

    python bench/generate_speed.py --shape small --new-tokens 128

Greedy, nothing stops early, random weights (the same for all) and random prompts: only the speed means anything. Each
contender runs in its own process, interleaved. The last column says how many of the new ids are those of ours; where
the two likeliest ids are as good as equal, rounding may choose either.
"""

import argparse
import json
import sys
import time

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

import sft

CONTENDERS = ("ours", "hf", "hf-tuned")
HEADER = ("", "prompts", "s", "new tokens/s", "MB", "s / ours", "same ids")


def draw_prompts(number: int, longest: int, n_vocab: int) -> list[list[int]]:
    """One prompt of the full length, the others between an eighth of it and all of it."""
    random = np.random.default_rng(0)
    lengths = [longest, *random.integers(longest // 8, longest + 1, number - 1).tolist()]
    return [random.integers(n_vocab, size=length).tolist() for length in lengths]


def our_generate(args: argparse.Namespace):
    sft.keep_freed_memory()
    model = our_model(SHAPES[args.shape]).to(args.device).eval()
    return lambda prompts: model.generate(prompts, args.new_tokens)


def their_generate(args: argparse.Namespace, tuned: bool):
    """Ragged prompts are padded on the left, which is how transformers wants them."""
    if tuned:
        sft.keep_freed_memory()
    model = transformers_model(SHAPES[args.shape], "gelu_pytorch_tanh" if tuned else "gelu_new")
    model = model.to(args.device).eval()

    def generate(prompts: list[list[int]]) -> list[list[int]]:
        longest = max(map(len, prompts))
        ids = torch.tensor(
            [[0] * (longest - len(prompt)) + prompt for prompt in prompts], device=args.device
        )
        mask = torch.tensor(
            [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        )
        settings = dict(do_sample=False, use_cache=True, pad_token_id=0, eos_token_id=None)
        settings |= dict(max_new_tokens=args.new_tokens, min_new_tokens=args.new_tokens)
        # Like ours, it never takes the rows that only round the vocabulary up.
        shape = SHAPES[args.shape]
        settings |= dict(suppress_tokens=list(range(shape.n_vocab, shape.vocab_size)))
        with torch.no_grad():
            return model.generate(ids, attention_mask=mask.to(args.device), **settings)[
                :, longest:
            ].tolist()

    return generate


def run(args: argparse.Namespace) -> dict:
    """One contender's times, in seconds, and ids, for each number of prompts."""
    if args.threads:
        torch.set_num_threads(args.threads)
    generate = (
        our_generate(args)
        if args.contender == "ours"
        else their_generate(args, "tuned" in args.contender)
    )
    result = {}
    for number in args.prompts:
        prompts = draw_prompts(number, args.prompt_tokens, SHAPES[args.shape].n_vocab)
        generate(prompts)  # the first call of anything is slow
        started = time.perf_counter()
        ids = generate(prompts)
        result[f"seconds {number}"], result[f"ids {number}"] = time.perf_counter() - started, ids
    return {**result, "peak_mb": peak_memory(args.device)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", default="small", choices=SHAPES)
    parser.add_argument("--prompts", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--prompt-tokens", type=int, default=64, help="of the longest prompt")
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="0: torch's default")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument(
        "--contender", choices=CONTENDERS, help="run this one only, here, and print JSON"
    )
    args = parser.parse_args()
    if args.prompt_tokens + args.new_tokens > SHAPES[args.shape].context_length:
        parser.error(
            f"--prompt-tokens and --new-tokens do not fit into {SHAPES[args.shape].context_length} tokens"
        )
    if args.contender:
        print(json.dumps(run(args)))
        return 0
    results = measure({name: [*sys.argv, "--contender", name] for name in CONTENDERS}, args.rounds)
    for name, rounds in results.items():
        if error := failed(rounds):
            print(f"error: {name}: {error}", file=sys.stderr)
            return 2
    rows = []
    for number in args.prompts:
        fastest = median(results["ours"], f"seconds {number}")
        wanted = np.array(results["ours"][0][f"ids {number}"])
        for name, rounds in results.items():
            seconds = median(rounds, f"seconds {number}")
            same = float((np.array(rounds[0][f"ids {number}"]) == wanted).mean())
            rate, memory = number * args.new_tokens / seconds, median(rounds, "peak_mb")
            row = [name, str(number), f"{seconds:.2f}", f"{rate:,.0f}", f"{memory:,.0f}"]
            rows.append([*row, f"{seconds / fastest:.2f}", f"{same:.0%}"])
    print(machine(args.device))
    print(
        f"shape {args.shape}, {args.new_tokens} new tokens a prompt; medians of {args.rounds} rounds\n"
    )
    print(format_table(HEADER, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
