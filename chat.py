"""Talk to a checkpoint, by the same rendering as in training, with the template that it names.

    python chat.py out/tiny_instruct-1 [--prompt "What is the capital of Peru?"]

Standard output holds the answers; what else there is to say goes to standard error.
"""

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence

from chat_template import TEMPLATES, Message, render_prompt
from model import GPT, check_sampling
from runtime import fast
from runtime.answers import generate_answers, stop_ids
from runtime.console import accept_any_text, fail, printable
from runtime.distributed import choose_device
from runtime.load import load_checkpoint
from tokenizer import Tokenizer

HELP = """\
/system TEXT sets the system message, /reset forgets the turns, /quit ends (or Ctrl-D)
/paste takes all lines up to one that says /end as a single message"""


def fit(
    messages: list[Message], tokenizer: Tokenizer, template: str, room: int
) -> tuple[list[Message], int]:
    """The conversation without its oldest turns, dropped whole, so that its prompt has at most
    `room` tokens; and how many messages were dropped. The system message stays. Raises ValueError
    where the last message alone is too long."""
    system = [message for message in messages[:1] if message.role == "system"]
    turns = messages[len(system) :]
    while (length := len(render_prompt(system + turns, tokenizer, template))) > room:
        later = [i for i, message in enumerate(turns) if i > 0 and message.role == "user"]
        if not later:
            what = f"this message makes a prompt of {length} tokens"
            raise ValueError(f"{what}; the context has room for {room}")
        turns = turns[later[0] :]
    return system + turns, len(messages) - len(system) - len(turns)


def stream_answer(
    model: GPT, tokenizer: Tokenizer, template: str, messages: list, limit: int, sampling: dict
) -> Iterator[str]:
    """The answer as it is generated, at most `limit` tokens: for each token a piece of whole
    characters, which may be empty, and two more at the end."""
    form, prompt = TEMPLATES[template], render_prompt(messages, tokenizer, template)
    steps = model.stream([prompt], limit, stop=stop_ids(tokenizer, template), **sampling)
    written = ""
    for piece in tokenizer.stream(step[0] for step in steps if step):
        written += piece
        yield "" if form.json_strings else piece  # half an escape cannot be read
    yield form.read(written) if form.json_strings else ""


class Chat:
    """A conversation with a model, and with its base beside it if there is one."""

    def __init__(self, args: argparse.Namespace):
        path, (device, _) = args.checkpoint, choose_device(args.device, "float32")
        self.model, self.tokenizer, meta = load_checkpoint(path, device)
        fast.speed_up(self.model, device)
        self.template = meta["template"]
        if self.template is None:
            raise ValueError(f"{path} is a base model, which knows no turns; tune it with sft.py")
        if args.base and "base" not in meta:
            raise ValueError(f"{path} does not say what base it was made from; leave --base out")
        self.base = load_checkpoint(meta["base"]["path"], device) if args.base else None
        self.sampling = {key: vars(args)[key] for key in ("temperature", "top_k", "top_p", "seed")}
        self.max_new_tokens, context = args.max_new_tokens, self.model.config.context_length
        # The turns before may take what an answer does not need; of a long one, half the context.
        self.room = max(context - self.max_new_tokens, context // 2)
        self.start(args.system)

    def start(self, system: str | None) -> None:
        """Forget all turns; begin with this system message, if it is one."""
        self.system = system
        self.messages = [Message("system", system)] if system else []

    def say(self, text: str) -> None:
        """Print the answer to `text` as it comes, and keep both turns. Raises what `fit` does."""
        asked, context = [*self.messages, Message("user", text)], self.model.config.context_length
        messages, n_dropped = fit(asked, self.tokenizer, self.template, self.room)
        if n_dropped:
            what = f"(the context is full: the oldest {n_dropped} messages were dropped)"
            print(what, file=sys.stderr)
        left = context - len(render_prompt(messages, self.tokenizer, self.template))
        limit = min(self.max_new_tokens, left)
        if self.base:
            model, tokenizer, meta = self.base
            [(said, _)] = generate_answers(model, tokenizer, meta["template"], [messages], limit)
            print(f"base:  {printable(said, keep=chr(10))}\ntuned: ", end="", flush=True)
        pieces, asking = [], (self.model, self.tokenizer, self.template, messages, limit)
        for piece in stream_answer(*asking, self.sampling):
            pieces.append(piece)
            print(printable(piece, keep="\n\t"), end="", flush=True)
        print(flush=True)
        if len(pieces) - 2 == limit:  # by itself, it stops before
            full = f"it fills the context of {context}"
            why = full if limit == left else "--max-new-tokens"
            print(f"... cut after {limit} tokens ({why})", file=sys.stderr)
        self.messages = [*messages, Message("assistant", "".join(pieces))]


def read_block() -> str:
    """The lines up to one that says /end, or to the end of the input."""
    lines = []
    with contextlib.suppress(EOFError):
        while (line := input()).strip() != "/end":
            lines.append(line)
    return "\n".join(lines)


def repl(chat: Chat) -> None:
    """Read lines and answer them until the end of the input."""
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
            chat.start(chat.system)
            print("(a new conversation)")
        elif command == "/system":
            chat.start(rest.strip())
            print(f"(a new conversation, with{' this' if chat.system else 'out'} system message)")
        elif command.startswith("/") and line != "/paste":
            print(HELP)
        elif line:
            try:
                text = read_block() if line == "/paste" else line
                if text:
                    chat.say(text)
            except ValueError as error:
                print(f"error: {printable(str(error))}")
            except KeyboardInterrupt:
                print("\n(stopped; this question and its answer are forgotten)")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Talk to a checkpoint.", epilog=HELP)
    add = parser.add_argument
    add("checkpoint", help="a run's folder, or a checkpoint file")
    add("--prompt", help="answer this and exit; - reads it from standard input")
    add("--system", help="system message")
    add("--base", action="store_true", help="show the untuned model's continuation, too")
    add("--temperature", type=float, default=0.0, help="0 takes the likeliest token (%(default)s)")
    add("--top-k", type=int, help="sample from the K likeliest tokens")
    add("--top-p", type=float, help="sample from the likeliest that hold P of the probability")
    add("--max-new-tokens", type=int, default=200, help="longest answer (%(default)s)")
    add("--seed", type=int, default=0, help="of the sampling (%(default)s)")
    add("--device", choices=("auto", "cuda", "mps", "cpu"), default="auto")
    args = parser.parse_args(argv)
    accept_any_text()
    try:
        if args.max_new_tokens < 1:
            raise ValueError(f"--max-new-tokens must be at least 1, not {args.max_new_tokens}")
        check_sampling(args.temperature, args.top_k, args.top_p)
        chat = Chat(args)
        prompt = sys.stdin.read().rstrip("\n") if args.prompt == "-" else args.prompt
        repl(chat) if prompt is None else chat.say(prompt)
    except (ValueError, OSError) as error:
        return fail(error)
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    from experiments.peft import register  # its kinds of adapters

    register()
    sys.exit(main())
