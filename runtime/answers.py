"""Answers of a model, a base or a tuned one; and what is shown of answers and conversations."""

import argparse
import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from chat_template import TEMPLATES, TRAIN_ON, Message, render, render_prompt
from model import GPT
from runtime.console import accept_any_text, fail, log, one_line, printable
from runtime.distributed import is_sharded, rank
from runtime.load import load_checkpoint
from runtime.records import Data, Dataset, data_files, read_conversation, read_raw
from tokenizer import END_OF_TEXT, Tokenizer

N_SAMPLES, SAMPLE_TOKENS = 3, 40  # conversations that are shown, and tokens of each answer


def stop_ids(tokenizer: Tokenizer, template: str | None) -> list[int]:
    """What ends an answer: the template's stop token; end-of-text, as after a document."""
    stops = [END_OF_TEXT] if template is None else [TEMPLATES[template].stop, END_OF_TEXT]
    return [tokenizer.special(name) for name in dict.fromkeys(stops)]


def prompt_of(messages: Sequence[Message], tokenizer: Tokenizer, template: str | None) -> list[int]:
    """Ids that ask for an answer. A base knows no turns: it gets their text, each on its line."""
    if template:
        return render_prompt(messages, tokenizer, template)
    text = "".join(TEMPLATES["chatml"].text(message) + "\n" for message in messages)
    return [tokenizer.special(END_OF_TEXT), *tokenizer.encode(text)]


def generate_answers(
    model: GPT,
    tokenizer: Tokenizer,
    template: str | None,
    conversations: Sequence[Sequence[Message]],
    max_new_tokens: int,
    batch_size: int = 64,
    show: Callable = lambda text, last: None,
    **sampling,
) -> list[tuple[str, bool]]:
    """Answers, greedy or as `sampling` says, and whether they stopped. Of a long prompt its end."""
    context, answers, stop = model.config.context_length, {}, stop_ids(tokenizer, template)
    room = max(context - max_new_tokens, context // 2)
    asked = [prompt_of(messages, tokenizer, template) for messages in conversations]
    by_length = sorted(range(len(asked)), key=lambda i: len(asked[i]))
    for first in range(0, len(asked), batch_size):
        rows = by_length[first : first + batch_size]
        prompts = [asked[i][-room:] for i in rows]
        new_ids = model.generate(prompts, max_new_tokens, stop=stop, **sampling)
        for i, prompt, ids in zip(rows, prompts, new_ids):
            text = tokenizer.decode(ids)
            text = TEMPLATES[template].read(text) if template else text
            answers[i] = text, len(ids) < min(max_new_tokens, context - len(prompt))
        show(f"  {len(answers):,}/{len(asked):,} answers", last=len(answers) == len(asked))
    return [answers[i] for i in range(len(asked))]


def pick_samples(dataset: Dataset, paths: Sequence[Path], among: np.ndarray) -> list[list[Message]]:
    """Of the first ones `among` the indices, those with the fewest turns that end in an answer."""
    found = dict.fromkeys(map(tuple, dataset.sources[among[: 10 * N_SAMPLES]].tolist()))
    for file, path in enumerate(paths):
        n_read = max((record + 1 for of, record in found if of == file), default=0)
        for record, raw in enumerate(itertools.islice(read_raw(path), n_read)):
            if (file, record) in found:
                _, messages = read_conversation(path, *raw)
                if messages[-1].role == "assistant" and len(messages) > 1:
                    found[file, record] = messages
    return sorted(filter(None, found.values()), key=len)[:N_SAMPLES]


class Samples:
    """What is asked before and after training: held-out conversations, if any, or trained ones."""

    def __init__(self, data: Data):
        self.held_out, self.answers = len(data.val_indices) > 0, {}
        indices = data.val_indices if self.held_out else np.concatenate(data.pools)
        self.conversations = pick_samples(data.val_set, data.val_paths, indices)

    def ask(self, name: str, model: GPT, tokenizer: Tokenizer, template: str | None) -> None:
        """Print each question with all answers so far and the wanted one."""
        if not self.conversations or (rank() and not is_sharded(model.final_norm.weight)):
            return  # a model that is shared out among processes answers only where all of them ask
        questions = [messages[:-1] for messages in self.conversations]
        given = generate_answers(model, tokenizer, template, questions, SAMPLE_TOKENS)
        self.answers[name] = [text + ("" if stopped else " ...") for text, stopped in given]
        log("\nquestions " + ("held out from training" if self.held_out else "seen in training"))
        for i, messages in enumerate(self.conversations):
            for message in messages[:-1]:
                log(f"  {message.role:<10}{one_line(message.content)}")
            for answered, texts in self.answers.items():
                log(f"    {answered:<8}{one_line(texts[i])}")
            log(f"    wanted  {one_line(TEMPLATES[template or 'chatml'].text(messages[-1]))}\n")


def show_mask(ids: Sequence[int], loss_mask: Sequence[int], tokenizer, colour: bool = True) -> str:
    """The tokens, supervised ones in green (without colour: in brackets), a line for each line."""
    context, supervised = ("\x1b[2m{}\x1b[0m", "\x1b[30;42m{}\x1b[0m") if colour else ("{}", "[{}]")
    shown = ""
    for token_id, is_supervised in zip(ids, loss_mask):
        token = tokenizer.decode_bytes([token_id]).decode("utf-8", errors="backslashreplace")
        shown += (supervised if is_supervised else context).format(printable(token))
        shown += "\n" if token.endswith("\n") else "|"
    return shown


def show_conversations(argv: Sequence[str] | None = None) -> int:
    """`python chat_template.py FILE`; gives the exit status."""
    parser = argparse.ArgumentParser(description="Show conversations token by token.")
    add = parser.add_argument
    add("data", help="a file of conversations, or a folder of such files")
    add("--template", choices=TEMPLATES, default="chatml")
    add("--train-on", choices=TRAIN_ON, default="assistant")
    add("--init", default="data/base.pt", help="checkpoint with the tokenizer (%(default)s)")
    add("--reasoning", choices=("drop", "keep"), default="drop")
    add("--number", type=int, default=3, help="how many conversations to show (%(default)s)")
    args = parser.parse_args(argv)
    accept_any_text()
    try:
        _, tokenizer, _ = load_checkpoint(args.init)
        tokenizer = tokenizer.with_special(TEMPLATES[args.template].special_tokens)
        raws = ((path, *raw) for path in data_files(args.data) for raw in read_raw(path))
        for path, line, raw in (shown := list(itertools.islice(raws, args.number))):
            _, messages = read_conversation(path, line, raw, args.reasoning)
            ids, loss_mask = render(messages, tokenizer, args.template, args.train_on)
            counts = f"{len(ids)} tokens, {sum(weight > 0 for weight in loss_mask)} supervised"
            print(f"{printable(str(path))}:{line}: {counts}")
            tokens = show_mask(ids, loss_mask, tokenizer, not os.environ.get("NO_COLOR"))
            print(tokens + "\n", flush=True)
        if not shown:
            raise ValueError(f"{args.data}: no record in this file")
    except (OSError, ValueError) as error:
        return fail(error)
    return 0
