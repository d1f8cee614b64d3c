"""Talk to a checkpoint.

    python chat.py out/tiny_instruct-1
    python chat.py out/tiny_instruct-1 --prompt "What is the capital of Peru?"      answers once, for scripts

Prompts are rendered by the same code as in training, with the template that the checkpoint names.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence

from chat_template import TEMPLATES, Message, render_prompt
from model import GPT, check_sampling
from runtime.answers import continue_text
from runtime.console import escape_what_cannot_be_printed, printable
from runtime.load import load_checkpoint
from sft import Config, choose_device
from tokenizer import Tokenizer

HELP = "/system TEXT sets the system message and starts afresh, /reset forgets the conversation, /quit ends (or Ctrl-D)"


def fit(
    messages: list[Message], tokenizer: Tokenizer, template: str, room: int
) -> tuple[list[Message], list[Message]]:
    """The conversation without its oldest turns, dropped whole, so that its prompt has at most `room` tokens; and what
    was dropped. The system message stays. Raises ValueError where the last message alone is too long."""
    system = [message for message in messages[:1] if message.role == "system"]
    turns, dropped = messages[len(system) :], []
    while (length := len(render_prompt(system + turns, tokenizer, template))) > room:
        next_turn = next(
            (i for i, message in enumerate(turns) if i > 0 and message.role == "user"), None
        )
        if next_turn is None:
            raise ValueError(
                f"this message makes a prompt of {length} tokens; the context has room for {room}"
            )
        dropped, turns = dropped + turns[:next_turn], turns[next_turn:]
    return system + turns, dropped


def stream_answer(
    model: GPT,
    tokenizer: Tokenizer,
    template: str,
    messages: list[Message],
    max_new_tokens: int,
    sampling: dict,
) -> Iterator[str]:
    """The answer as it is generated, in pieces of whole characters."""
    form = TEMPLATES[template]
    prompt = render_prompt(messages, tokenizer, template)
    steps = model.stream([prompt], max_new_tokens, stop=[tokenizer.special(form.stop)], **sampling)
    written = shown = ""
    for piece in tokenizer.stream(step[0] for step in steps if step):
        written += piece
        readable = form.read(written, partial=True)
        yield readable[len(shown) :]
        shown = readable
    yield form.read(written)[len(shown) :]


class Chat:
    """A conversation with a model, and with its base beside it if there is one."""

    def __init__(self, args: argparse.Namespace):
        device, _ = choose_device(Config(device=args.device))
        self.model, self.tokenizer, meta = load_checkpoint(args.checkpoint, device)
        if meta["template"] is None:
            raise ValueError(
                f"{args.checkpoint} is a base model, which knows no turns; tune it first, with sft.py"
            )
        self.template, self.base = meta["template"], None
        if args.base:
            if "base" not in meta:
                raise ValueError(
                    f"{args.checkpoint} does not say what base it was made from; leave --base out"
                )
            self.base, self.base_tokenizer, _ = load_checkpoint(meta["base"]["path"], device)
        self.sampling = dict(
            temperature=args.temperature, top_k=args.top_k, top_p=args.top_p, seed=args.seed
        )
        self.max_new_tokens = min(args.max_new_tokens, self.model.config.context_length // 2)
        self.system(args.system)

    def system(self, text: str | None) -> None:
        self.messages = [Message("system", text)] if text else []

    def reset(self) -> None:
        self.messages = [message for message in self.messages[:1] if message.role == "system"]

    def say(self, text: str) -> None:
        """Print the answer to `text` as it comes, and keep both turns."""
        room = self.model.config.context_length - self.max_new_tokens
        asked = [*self.messages, Message("user", text)]
        messages, dropped = fit(asked, self.tokenizer, self.template, room)
        if dropped:
            print(
                f"(the context is full: the oldest {len(dropped)} messages were dropped)",
                file=sys.stderr,
            )
        if self.base:
            continuation = continue_text(
                self.base, self.base_tokenizer, messages, self.max_new_tokens
            )
            print(f"base:  {printable(continuation, keep=chr(10))}\ntuned: ", end="", flush=True)
        answer = ""
        pieces = stream_answer(
            self.model, self.tokenizer, self.template, messages, self.max_new_tokens, self.sampling
        )
        for piece in pieces:
            answer += piece
            print(printable(piece, keep="\n\t"), end="", flush=True)
        print()
        self.messages = [*messages, Message("assistant", answer)]


def repl(chat: Chat) -> None:
    print(HELP)
    while True:
        try:
            line = input("you: " if chat.base else "> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        command, _, rest = line.partition(" ")
        if command == "/quit":
            return
        if command == "/reset":
            chat.reset()
            print("(a new conversation)")
        elif command == "/system":
            chat.system(rest.strip())
            print(
                "(a new conversation, "
                + ("with this system message)" if rest.strip() else "without system message)")
            )
        elif command.startswith("/"):
            print(HELP)
        elif line:
            try:
                chat.say(line)
            except ValueError as error:
                print(f"error: {printable(str(error))}")
            except KeyboardInterrupt:
                print("\n(stopped; this question and its answer are forgotten)")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Talk to a checkpoint.", epilog=HELP)
    parser.add_argument("checkpoint", help="a run's folder, or a checkpoint file")
    parser.add_argument("--prompt", help="answer this and exit")
    parser.add_argument("--system", help="system message")
    parser.add_argument(
        "--base", action="store_true", help="show the untuned model's continuation, too"
    )
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="0 takes the likeliest token (%(default)s)"
    )
    parser.add_argument("--top-k", type=int, help="sample from the K likeliest tokens")
    parser.add_argument(
        "--top-p",
        type=float,
        help="sample from the likeliest tokens that hold P of the probability",
    )
    parser.add_argument(
        "--max-new-tokens", type=int, default=200, help="longest answer (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the sampling (%(default)s)")
    parser.add_argument("--device", choices=("auto", "cuda", "mps", "cpu"), default="auto")
    args = parser.parse_args(argv)
    escape_what_cannot_be_printed()
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(
            errors="surrogateescape"
        )  # bytes that are no text get an error of their own, not the end
    try:
        if args.max_new_tokens < 1:
            raise ValueError(f"--max-new-tokens must be at least 1, not {args.max_new_tokens}")
        check_sampling(args.temperature, args.top_k, args.top_p)
        chat = Chat(args)
        if args.prompt is not None:
            chat.say(args.prompt)
        else:
            repl(chat)
    except (ValueError, OSError) as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
