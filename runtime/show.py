"""Conversations token by token, with what is trained on in colour: `python chat_template.py FILE`."""

import argparse
import itertools
import os
import sys
from collections.abc import Sequence

from chat_template import TEMPLATES, TRAIN_ON, render
from runtime.console import escape_what_cannot_be_printed, printable
from runtime.load import load_checkpoint
from runtime.records import read_conversations


def show_mask(ids: Sequence[int], loss_mask: Sequence[int], tokenizer, colour: bool = True) -> str:
    """The tokens, supervised ones in green (without colour: in brackets), a new line after each line's end."""
    context, supervised, plain = ("\x1b[2m", "\x1b[30;42m", "\x1b[0m") if colour else ("", "[", "]")
    shown = []
    for token_id, is_supervised in zip(ids, loss_mask):
        token = tokenizer.decode_bytes([token_id]).decode("utf-8", errors="backslashreplace")
        ending = plain if colour or is_supervised else ""
        line_end = "\n" if token.endswith("\n") else "|"
        shown.append(
            f"{supervised if is_supervised else context}{printable(token)}{ending}{line_end}"
        )
    return "".join(shown)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Show conversations token by token, supervised tokens in green."
    )
    parser.add_argument("data", help="JSON Lines or JSON array of conversations")
    parser.add_argument("--template", choices=TEMPLATES, default="chatml")
    parser.add_argument("--train-on", choices=TRAIN_ON, default="assistant")
    parser.add_argument(
        "--init", default="data/base.pt", help="checkpoint whose tokenizer is used (%(default)s)"
    )
    parser.add_argument(
        "--number", type=int, default=3, help="how many conversations to show (%(default)s)"
    )
    args = parser.parse_args(argv)
    escape_what_cannot_be_printed()
    try:
        _, tokenizer, _ = load_checkpoint(args.init, "cpu")
        tokenizer = tokenizer.with_special(TEMPLATES[args.template].special_tokens)
        conversations = list(itertools.islice(read_conversations(args.data), args.number))
        if not conversations:
            raise ValueError(f"{args.data}: no record in this file")
        for line, _, messages in conversations:
            ids, loss_mask = render(messages, tokenizer, args.template, args.train_on)
            print(f"{printable(args.data)}:{line}: {len(ids)} tokens, {sum(loss_mask)} supervised")
            print(
                show_mask(ids, loss_mask, tokenizer, colour=not os.environ.get("NO_COLOR")) + "\n"
            )
    except (OSError, ValueError) as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 2
    return 0
