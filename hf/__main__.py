"""The commands of this folder, see __init__.py."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

from hf.export import write_adapter, write_model
from hf.weights import PUBLISHED
from model import GPT
from runtime.console import printable
from runtime.load import load_checkpoint
from tokenizer import Tokenizer


def export(checkpoint: str | Path, folder: str | Path, adapter: bool = False) -> str | None:
    """Write a checkpoint's model for transformers, or its adapter for peft; give the chat
    template's name."""
    model, tokenizer, meta = load_checkpoint(checkpoint)
    if adapter and not model.adapter:
        raise ValueError(
            f"{checkpoint}: no adapter in this checkpoint; export it without --adapter"
        )
    return (write_adapter if adapter else write_model)(model, tokenizer, meta, folder)


def read_text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not valid UTF-8 (byte {error.start})") from None


@torch.no_grad()
def text_loss(model: GPT, tokenizer: Tokenizer, text: str) -> tuple[float, int]:
    """Mean negative log-likelihood, in nats, of a text's tokens after the first, and their number.
    What is beyond the context is left out."""
    ids = torch.tensor(tokenizer.encode(text)[: model.config.context_length])  # (T,)
    if len(ids) < 2:
        raise ValueError("this text has no second token, and so no loss")
    logits = model(ids[None, :-1])[0, :, : model.config.n_vocab]  # (T - 1, V)
    return F.cross_entropy(logits, ids[1:]).item(), len(ids) - 1


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m hf", description="Hugging Face's formats in and out."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("export", help="write a folder for transformers or peft")
    command.add_argument("checkpoint", help="a run's folder, or a checkpoint file")
    command.add_argument("folder", help="a new folder")
    command.add_argument(
        "--adapter", action="store_true", help="the adapter of a LoRA run alone, for peft"
    )
    command = commands.add_parser("check", aliases=["loss"], help="print the mean loss on a text")
    command.add_argument(
        "checkpoint", help=f"{', '.join(PUBLISHED)}, a folder from transformers, or a checkpoint"
    )
    command.add_argument("text", help="a text file")
    args = parser.parse_args(argv)
    try:
        if args.command == "export":
            template = export(args.checkpoint, args.folder, args.adapter)
            print(f"saved     {printable(args.folder)}")
            if template not in (None, "chatml", "smollm2", "qwen2.5", "llama3"):
                note = f"with {template}, apply_chat_template gives other ids: see docs/formats.md"
                print(f"note      {note}")
        else:
            loss, n_tokens = text_loss(*load_checkpoint(args.checkpoint)[:2], read_text(args.text))
            print(f"loss {loss:.5f} nats a token, over {n_tokens:,} tokens")
    except (ValueError, OSError) as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # a download can be long
        return 130
    return 0


if __name__ == "__main__":
    from experiments.peft import register  # its kinds of adapters

    register()
    sys.exit(main())
