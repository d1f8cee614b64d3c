"""What the contenders of a comparison share: conversations, their order, initial weights, and how a
run is recorded.

Every contender runs in a process of its own (`measure`), gets the same `Task`, and prints one line
of JSON. Ids and loss mask are rendered once, by this repository's code, and handed to all, so that
nobody can win by other tokens.
"""

import argparse
import json
import math
import os
import re
import subprocess
import sys
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from hf.families import family_of, settings_of  # noqa: E402
from model import GPT, GPTConfig  # noqa: E402
from runtime.files import find_file  # noqa: E402
from runtime.records import Dataset, build_dataset  # noqa: E402
from sft import IGNORED  # noqa: E402
from tokenizer import Tokenizer  # noqa: E402

# Of ChatML. In GPT-2's vocabulary they get the ids 50,257 and 50,258.
SPECIAL_TOKENS = ("<|im_start|>", "<|im_end|>")
VOCABULARY = dict(vocab_size=50304, n_vocab=50259)
LLAMA = GPTConfig(**VOCABULARY, context_length=2048)
LLAMA = replace(LLAMA, norm="rms", gated=True, bias="none", rope_theta=1e5)
SHAPES = {
    # to see that all works
    "tiny": GPTConfig(**VOCABULARY, context_length=64, n_layer=2, n_head=2, n_embd=32),
    "small": GPTConfig(**VOCABULARY, context_length=512, n_layer=6, n_head=6, n_embd=384),
    # 124 and 355 M parameters
    "gpt2": GPTConfig(**VOCABULARY, context_length=1024, n_layer=12, n_head=12, n_embd=768),
    "gpt2-medium": GPTConfig(**VOCABULARY, context_length=1024, n_layer=24, n_head=16, n_embd=1024),
    # SmolLM2-135M's, but for the vocabulary; and a tiny one of that family
    "smollm2": replace(LLAMA, n_layer=30, n_head=9, n_kv_head=3, n_embd=576, n_hidden=1536),
    "tiny-llama": replace(LLAMA, n_layer=2, n_head=2, n_kv_head=1, n_embd=32, n_hidden=64),
}

# The optimiser of all: AdamW without decay at a constant rate, gradients clipped to norm 1.
LEARNING_RATE, BETAS, EPSILON, CLIP = 3e-4, (0.9, 0.95), 1e-8, 1.0


# The task


@dataclass
class Task:
    config: GPTConfig
    dataset: Dataset
    steps: list[np.ndarray]  # the conversations of each step
    device: str
    bfloat16: bool  # autocast
    compile: bool

    @property
    def tokens(self) -> int:
        return sum(int(self.dataset.lengths[indices].sum()) for indices in self.steps)

    @property
    def supervised(self) -> int:
        return sum(int(self.dataset.n_supervised[indices].sum()) for indices in self.steps)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device, torch.bfloat16, enabled=self.bfloat16)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that make a task. `shared_arguments` hands them on to a contender's process."""
    data = "conversations in any form that sft.py reads (default: drawn at random)"
    parser.add_argument("--data", help=data)
    parser.add_argument("--shape", default="small", choices=SHAPES)
    parser.add_argument("--max-length", type=int, default=512, help="longer ones are truncated")
    parser.add_argument("--batch-size", type=int, default=8, help="conversations a step")
    parser.add_argument("--steps", type=int, default=0, help="the first of the epoch (0: all)")
    parser.add_argument("--threads", type=int, default=0, help="0: torch's default")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--bfloat16", action="store_true")
    parser.add_argument("--compile", action="store_true")


def shared_arguments(args: argparse.Namespace) -> list[str]:
    """The command line that gives another process the same task."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    argv = []
    for action in parser._actions[1:]:  # the first is --help
        value = getattr(args, action.dest)
        if value is True:
            argv.append(action.option_strings[0])
        elif value not in (None, False):
            argv += [action.option_strings[0], str(value)]
    return argv


def make_task(args: argparse.Namespace, tokenizer: Tokenizer | None = None) -> Task:
    """Raises OSError where GPT-2's vocabulary is not to be had, ValueError for bad data."""
    if args.threads:
        torch.set_num_threads(args.threads)
    shape = SHAPES[args.shape]
    config = replace(shape, context_length=max(args.max_length, shape.context_length))
    if args.data:
        tokenizer = tokenizer or Tokenizer.gpt2().with_special(SPECIAL_TOKENS)
        settings = dict(max_length=args.max_length, overlong="truncate")
        dataset, _ = build_dataset([find_file(args.data)], tokenizer, "chatml", **settings)
    else:
        lengths = np.random.default_rng(0).lognormal(5.0, 0.8, 1024).astype(int)
        dataset = random_dataset(lengths.clip(16, args.max_length), config.n_vocab)
    order = np.random.default_rng(0).permutation(len(dataset))
    steps = np.split(order, range(args.batch_size, len(order), args.batch_size))
    steps = steps[: args.steps or None]
    return Task(config, dataset, steps, args.device, args.bfloat16, args.compile)


def random_dataset(lengths: Sequence[int], n_vocab: int) -> Dataset:
    """Conversations of these lengths with random ids, of which the second half is supervised."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    place = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    loss_mask = (2 * place >= np.repeat(lengths, lengths)).astype(np.uint8)
    ids = np.random.default_rng(0).integers(n_vocab, size=offsets[-1], dtype=np.int32)
    return Dataset(ids, loss_mask, offsets, np.zeros((len(lengths), 2), np.int64))


def ids_and_labels(dataset: Dataset, index: int) -> tuple[list[int], list[int]]:
    """A conversation as transformers wants it: labels are the ids, not shifted, or -100."""
    span = slice(dataset.offsets[index], dataset.offsets[index + 1])
    ids = dataset.ids[span]
    return ids.tolist(), np.where(dataset.loss_mask[span], ids, IGNORED).tolist()


def padded_batch(dataset: Dataset, indices: np.ndarray) -> dict[str, Tensor]:
    """Conversations in a rectangle (B, T), as a plain loop over transformers' models makes it."""
    rows = [ids_and_labels(dataset, index) for index in indices]
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in rows])
    labels = torch.tensor([labels + [IGNORED] * (longest - len(labels)) for _, labels in rows])
    mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in rows])
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


# The same initial weights for all, by name


def initial_weight(name: str, shape: Sequence[int], n_layer: int) -> Tensor:
    """A parameter's first value, from its name alone: nobody needs a second model to copy from."""
    if name.endswith("bias"):
        return torch.zeros(shape)
    if "norm" in name:
        return torch.ones(shape)
    is_last_of_branch = name.endswith(("proj.weight", "down.weight"))
    deviation = 0.02 / math.sqrt(2 * n_layer) if is_last_of_branch else 0.02
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randn(shape, generator=generator) * deviation


@torch.no_grad()
def our_model(config: GPTConfig) -> GPT:
    model = GPT(config)
    for name, parameter in model.named_parameters():
        parameter.copy_(initial_weight(name, parameter.shape, config.n_layer))
    return model


@torch.no_grad()
def transformers_model(config: GPTConfig, activation: str) -> nn.Module:
    """Transformers' model of the same family, shape and weights. `activation` of GPT-2's is
    "gelu_new", its default, or the same function in one kernel, "gelu_pytorch_tanh"."""
    import transformers

    transformers.logging.set_verbosity_error()
    family = family_of(config)
    settings = settings_of(config, family) | {"bos_token_id": 50256, "eos_token_id": 50258}
    settings |= {"vocab_size": config.vocab_size}  # padding rows, too
    if family.name == "gpt2":
        settings |= {"activation_function": activation}
        settings |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    theirs = transformers.AutoConfig.for_model(**settings)
    model = transformers.AutoModelForCausalLM.from_config(theirs)  # attention: sdpa, its default
    unset = dict(model.named_parameters())
    with torch.device("meta"):
        ours = GPT(config)
    for name, parameter in ours.named_parameters():
        value = initial_weight(name, parameter.shape, config.n_layer)
        names, parts = family.their_names(name), family.their_parts(config, name, value)
        for their_name, part in zip(names, parts):
            unset.pop(family.prefix + their_name).copy_(part)
    assert not unset, f"parameters that nobody set: {[*unset]}"
    return model


# What a run costs


class Record:
    """When each step ended, and its loss."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.note = ""  # for the contender's row of the table

    def start(self) -> None:
        """All is prepared; the first step begins."""
        self.started_at, self.ends = time.time(), [time.perf_counter()]

    def step(self, loss: float) -> None:
        self.losses.append(loss)
        self.ends.append(time.perf_counter())

    def result(self, task: Task) -> dict:
        """What a contender prints."""
        tokens = [int(task.dataset.lengths[indices].sum()) for indices in task.steps]
        assert len(self.losses) == len(tokens), f"{len(self.losses)} steps instead of {len(tokens)}"
        step_seconds = [after - before for before, after in zip(self.ends, self.ends[1:])]
        return {
            "note": self.note,
            "tokens": task.tokens,
            "supervised": task.supervised,
            "first_loss": self.losses[0],
            "mean_loss": sum(self.losses) / len(self.losses),
            "started_at": self.started_at,
            "seconds": sum(step_seconds),
            "step_seconds": step_seconds,
            "step_tokens": tokens,
            "peak_mb": peak_memory(task.device),
        }


def peak_memory(device: str) -> float:
    """MB: of a GPU, what torch has allocated at most; else the most that this process has held.
    (Not getrusage: on Linux a process inherits that number from the one that started it.)"""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    try:
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) * 1024 / 1e6
    except FileNotFoundError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # macOS counts bytes


def measure(
    commands: dict[str, Sequence[str]], rounds: int, folders: dict[str, Path] | None = None
) -> dict[str, list[dict]]:
    """Run each command `rounds` times, interleaved, so that a slow minute of the machine hits all
    of them; one that is in `folders` starts in that folder."""
    results: dict[str, list[dict]] = {name: [] for name in commands}
    for number in range(rounds):
        for name, command in commands.items():
            print(f"round {number + 1}/{rounds}: {name}", file=sys.stderr, flush=True)
            results[name].append(run_script(command, (folders or {}).get(name)))
    return results


def run_script(command: Sequence[str], folder: Path | None = None) -> dict:
    """Run a Python script with arguments in a process of its own: the JSON of its last line of
    output. One that fails has {"error": its last line}."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if cache := environment.get("TIKTOKEN_CACHE_DIR"):
        environment["TIKTOKEN_CACHE_DIR"] = os.path.abspath(cache)  # it may start in a folder
    launched_at = time.time()
    process = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=environment, cwd=folder
    )
    if process.returncode:
        lines = process.stderr.strip().splitlines() or [f"exit status {process.returncode}"]
        return {"error": lines[-1].removeprefix("error: ")}
    result = json.loads(process.stdout.splitlines()[-1])
    if "started_at" in result:
        result["ready_seconds"] = result["started_at"] - launched_at
    return result


def median(results: Sequence[dict], key: str) -> float:
    return float(np.median([result[key] for result in results]))


def failed(results: Sequence[dict]) -> str | None:
    """What went wrong in one of the rounds, if anything."""
    return next((result["error"] for result in results if "error" in result), None)


def matmul_parameters(config: GPTConfig) -> tuple[int, int]:
    """Weights that a token is multiplied with: those of the blocks, and those of the head."""
    return 12 * config.n_layer * config.n_embd**2, config.vocab_size * config.n_embd


def floating_point_operations(config: GPTConfig, tokens: int, supervised: int) -> int:
    """Of an epoch's matrix products: 2 a weight and token forward, 4 backward; the head only where
    there is a label. Attention and all that is no product with a weight count nothing."""
    blocks, head = matmul_parameters(config)
    return 6 * (blocks * tokens + head * supervised)


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Numbers stand to the right; columns without a heading hold words, to the left."""
    widths = [max(map(len, column)) for column in zip(header, *rows)]
    lines = []
    for line in (header, *rows):
        cells = [
            cell.rjust(width) if title else cell.ljust(width)
            for cell, width, title in zip(line, widths, header)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def machine(device: str) -> str:
    """What figures depend on, for the first line of a table."""
    name = torch.cuda.get_device_name() if device == "cuda" else f"{os.cpu_count()} CPU cores"
    return f"{name}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}"
