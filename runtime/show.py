"""`python chat_template.py FILE`: conversations token by token, what is trained on in colour."""

import argparse
import itertools
import os
from collections.abc import Sequence

from chat_template import TEMPLATES, TRAIN_ON, render
from runtime.console import accept_any_text, fail, printable
from runtime.load import load_checkpoint
from runtime.records import read_conversations


def show_mask(ids: Sequence[int], loss_mask: Sequence[int], tokenizer, colour: bool = True) -> str:
    """The tokens, supervised ones in green (without colour: in brackets), a line for each line."""
    context, supervised = ("\x1b[2m{}\x1b[0m", "\x1b[30;42m{}\x1b[0m") if colour else ("{}", "[{}]")
    shown = ""
    for token_id, is_supervised in zip(ids, loss_mask):
        token = tokenizer.decode_bytes([token_id]).decode("utf-8", errors="backslashreplace")
        shown += (supervised if is_supervised else context).format(printable(token))
        shown += "\n" if token.endswith("\n") else "|"
    return shown


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Show conversations token by token.")
    add = parser.add_argument
    add("data", help="JSON Lines or JSON array of conversations")
    add("--template", choices=TEMPLATES, default="chatml")
    add("--train-on", choices=TRAIN_ON, default="assistant")
    add("--init", default="data/base.pt", help="checkpoint with the tokenizer (%(default)s)")
    add("--number", type=int, default=3, help="how many conversations to show (%(default)s)")
    args = parser.parse_args(argv)
    accept_any_text()
    try:
        special = TEMPLATES[args.template].special_tokens
        tokenizer = load_checkpoint(args.init)[1].with_special(special)
        conversations = list(itertools.islice(read_conversations(args.data), args.number))
        if not conversations:
            raise ValueError(f"{args.data}: no record in this file")
        for line, _, messages in conversations:
            ids, loss_mask = render(messages, tokenizer, args.template, args.train_on)
            print(f"{printable(args.data)}:{line}: {len(ids)} tokens, {sum(loss_mask)} supervised")
            print(show_mask(ids, loss_mask, tokenizer, not os.environ.get("NO_COLOR")) + "\n")
    except (OSError, ValueError) as error:
        return fail(error)
    return 0
