"""Make the embedded base from scratch: documents, tokenizer, pretraining; gives data/base.pt.

    python data/make_base.py

The documents (world.py) are running text: no chat, no instructions, no questions with answers. The
same command gives the same file on the same machine and number of threads.
"""

import argparse
import itertools
import json
import math
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from data.world import GROUPS, documents  # noqa: E402
from model import GPT, GPTConfig  # noqa: E402
from runtime.fast import keep_freed_memory, speed_up  # noqa: E402
from runtime.files import save_checkpoint  # noqa: E402
from sft import lr_at, nll_sum  # noqa: E402
from tokenizer import END_OF_TEXT, Tokenizer, train_bpe  # noqa: E402

WORDINGS = 8  # of each fact and layout: enough to ask for it, few enough to learn in an hour
VAL_TOKENS = 100_000  # the end of the stream is never trained on
HELD_OUT_SEED, HELD_OUT_DOCUMENTS = 1_000_003, 300  # to measure what tuning makes a model forget


def encode_stream(tokenizer: Tokenizer, texts: Iterable[str], n_tokens: int) -> np.ndarray:
    """The first `n_tokens` ids of an endless stream of documents, each followed by end-of-text."""
    stream, size = [], 0
    for document in texts:
        ids = [*tokenizer.encode(document), tokenizer.special(END_OF_TEXT)]
        stream.append(np.array(ids, np.int32))
        size += len(ids)
        if size >= n_tokens:
            return np.concatenate(stream)[:n_tokens]
    raise AssertionError("the stream of documents never ends")


def windows(stream: np.ndarray, length: int) -> torch.Tensor:
    """Cut a stream into windows of inputs and next token, (n, length + 1), overlapping by one."""
    n = (len(stream) - 1) // length
    cut = [stream[i * length : (i + 1) * length + 1] for i in range(n)]
    return torch.from_numpy(np.stack(cut)).long()


@torch.no_grad()
def mean_loss(model: GPT, data: torch.Tensor, device: str) -> float:
    total = sum(
        nll_sum(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).item()
        for ids in data.to(device).split(8)
    )
    return total / (data.shape[0] * (data.shape[1] - 1))


def make_optimizers(model: GPT, lr: float) -> list[torch.optim.Optimizer]:
    """Muon (Jordan, 2024) for the matrices inside the blocks, AdamW for all other parameters.

    After the first million tokens (of two, in 2,048 a step) the loss was 2.32 so, and 2.94 with
    AdamW for everything.
    """
    matrices = [parameter for parameter in model.blocks.parameters() if parameter.dim() == 2]
    inside = set(map(id, matrices))
    others = [parameter for parameter in model.parameters() if id(parameter) not in inside]
    muon = torch.optim.Muon(matrices, lr=lr, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    return [muon, adamw]


def pretrain(model: GPT, stream: np.ndarray, args: argparse.Namespace, device: str) -> int:
    """One pass over the stream, with a line of progress now and then; gives the number of steps.

    Four fifths go in short windows, which cost less attention and hold most documents whole; one
    fifth, mixed in, in windows of the whole context, so that all positions are learned.
    """
    optimizers = make_optimizers(model, args.lr)
    turn = len(stream) * 4 // 5
    batches = []
    for part, length in ((stream[:turn], args.context // 4), (stream[turn:], args.context)):
        shuffled = windows(part, length)[torch.randperm((len(part) - 1) // length)]
        batches += shuffled.split(args.batch_tokens // length)
    batches = [batches[i] for i in torch.randperm(len(batches))]
    started = shown = time.monotonic()
    for step, ids in enumerate(batches, 1):
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = lr_at(step, len(batches), 100, args.lr)
        ids = ids.to(device)
        logits = model(ids[:, :-1])
        loss = nll_sum(logits.flatten(0, 1), ids[:, 1:].flatten()) / ids[:, 1:].numel()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if time.monotonic() - shown > 10 or step == len(batches):
            shown = time.monotonic()
            speed = f"{step * args.batch_tokens / (shown - started):,.0f} tokens/s"
            minutes = (len(batches) - step) * (shown - started) / step / 60
            progress = f"step {step:,}/{len(batches):,}  loss {loss.item():.3f}"
            print(f"{progress}  {speed}  {minutes:.1f} minutes left", flush=True)
    return len(batches)


def write_held_out_text(path: Path) -> None:
    """Documents that no training sees, one record a line."""
    texts = itertools.islice(documents(HELD_OUT_SEED, WORDINGS), HELD_OUT_DOCUMENTS)
    lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    path.write_text("".join(lines), encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Make tokenizer and base model from scratch.")
    add, on_or_off = parser.add_argument, argparse.BooleanOptionalAction
    add("--out", default=str(HERE / "base.pt"))
    add("--tokens", type=int, default=24_000_000, help="length of the training text (%(default)s)")
    add("--wordings", type=int, default=WORDINGS, help="of each fact (%(default)s)")
    add("--group", choices=GROUPS, help="write only about these")
    add("--line-start", action=on_or_off, default=True, help="values at a line's start, too")
    add("--vocab-size", type=int, default=4096)
    add("--layers", type=int, default=6)
    add("--channels", type=int, default=192)
    add("--context", type=int, default=512)
    add("--batch-tokens", type=int, default=2048, help="tokens in a step (%(default)s)")
    add("--lr", type=float, default=6e-3)
    add("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    keep_freed_memory()
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def texts() -> Iterable[str]:
        return documents(args.seed, args.wordings, args.line_start, args.group)

    if args.group is None:
        write_held_out_text(HERE / "heldout_text.jsonl")
    characters = itertools.accumulate(texts(), lambda size, text: size + len(text), initial=0)
    n_documents = next(n for n, size in enumerate(characters) if size > 4_000_000)
    tokenizer = train_bpe(itertools.islice(texts(), n_documents), args.vocab_size)
    learned = f"{tokenizer.n_vocab:,} tokens, learned from {n_documents:,} documents"
    print(f"tokenizer: {learned}", flush=True)
    stream = encode_stream(tokenizer, texts(), args.tokens + VAL_TOKENS)

    torch.manual_seed(args.seed)
    shape = (args.layers, math.ceil(args.channels / 32), args.channels)
    config = GPTConfig(tokenizer.n_vocab, args.context, *shape)
    model = speed_up(GPT(config), device).to(device)
    size = sum(p.numel() for p in model.parameters())
    print(f"model: {size:,} parameters; {args.tokens:,} tokens", flush=True)
    steps = pretrain(model, stream[: args.tokens], args, device)
    held_out = windows(stream[args.tokens :], args.context)
    print(f"loss on held-out documents: {mean_loss(model, held_out, device):.4f}")
    # half precision: small in the repository
    weights = {name: tensor.half().cpu() for name, tensor in model.state_dict().items()}
    content = {"config": vars(config), "model": weights, "tokenizer": tokenizer.state()}
    content |= {
        "template": None,
        "stop": [tokenizer.special(END_OF_TEXT)],
        "step": steps,
        "args": {name: value for name, value in vars(args).items() if name != "out"},
    }
    save_checkpoint(Path(args.out), content)
    print(f"wrote {args.out}: {Path(args.out).stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
