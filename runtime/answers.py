"""Answers of a model, a base or a tuned one; and a few of them shown before and after training."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from chat_template import TEMPLATES, Message, render_prompt
from model import GPT
from runtime.console import log, one_line
from runtime.distributed import is_sharded, rank
from runtime.records import read_conversation, read_raw
from runtime.tokens import Data, Dataset
from tokenizer import END_OF_TEXT, Tokenizer

SAMPLE_TOKENS = 40  # of an answer that is shown


def prompt_of(
    messages: Sequence[Message], tokenizer: Tokenizer, template: str | None
) -> tuple[list[int], int]:
    """The ids that ask for an answer to the messages, and the id that ends it. A base knows no
    turns: it is given their bare text, each on its line, as documents stand in its pretraining."""
    if template is None:
        stop = tokenizer.special(END_OF_TEXT)
        text = "".join(message.content + "\n" for message in messages)
        return [stop, *tokenizer.encode(text)], stop
    stop = tokenizer.special(TEMPLATES[template].stop)
    return render_prompt(messages, tokenizer, template), stop


def generate_answers(
    model: GPT,
    tokenizer: Tokenizer,
    template: str | None,
    conversations: Sequence[Sequence[Message]],
    max_new_tokens: int,
    batch_size: int = 64,
    show: Callable = lambda text, last: None,
) -> list[tuple[str, bool]]:
    """For each conversation the greedy answer, and whether the model stopped by itself. Of a prompt
    that is too long for the context, its end is asked."""
    context, answers = model.config.context_length, {}
    room = max(context - max_new_tokens, context // 2)
    asked = [prompt_of(messages, tokenizer, template) for messages in conversations]
    by_length = sorted(range(len(asked)), key=lambda i: len(asked[i][0]))
    for first in range(0, len(asked), batch_size):
        rows = by_length[first : first + batch_size]
        prompts, stop = [asked[i][0][-room:] for i in rows], [asked[0][1]]
        new_ids = model.generate(prompts, max_new_tokens, stop=stop)
        for i, prompt, ids in zip(rows, prompts, new_ids):
            text = tokenizer.decode(ids)
            text = TEMPLATES[template].read(text) if template else text
            answers[i] = text, len(ids) < min(max_new_tokens, context - len(prompt))
        show(f"  {len(answers):,}/{len(asked):,} answers", last=len(answers) == len(asked))
    return [answers[i] for i in range(len(asked))]


# A few answers, before and after


def pick_samples(
    dataset: Dataset, paths: Sequence[Path], indices: np.ndarray, number: int = 3
) -> list[list[Message]]:
    """Of the first conversations among `indices`, those with the fewest turns that end in an
    answer, read again from their files."""
    wanted = [tuple(source) for source in dataset.sources[indices[: 10 * number]].tolist()]
    found = {}
    for file_index, path in enumerate(paths):
        records = {record for file, record in wanted if file == file_index}
        raws = itertools.islice(read_raw(path), max(records, default=-1) + 1)
        for record, (line, raw) in enumerate(raws):
            if record in records:
                _, messages = read_conversation(path, line, raw)
                if messages[-1].role == "assistant" and len(messages) > 1:
                    found[file_index, record] = messages
    return sorted((found[source] for source in wanted if source in found), key=len)[:number]


def samples_of(data: Data) -> "Samples":
    """Some held-out conversations, or, where none are held out, some that are trained on."""
    held_out = len(data.val_indices) > 0
    indices = data.val_indices if held_out else np.concatenate(data.pools)
    return Samples(pick_samples(data.val_set, data.val_paths, indices), held_out)


class Samples:
    """Conversations that a model is asked before and after training."""

    def __init__(self, conversations: list[list[Message]], held_out: bool):
        self.conversations, self.held_out, self.answers = conversations, held_out, {}

    def ask(self, name: str, model: GPT, tokenizer: Tokenizer, template: str | None) -> None:
        """Print each question with the answers given before, this model's, and the wanted one. A
        model that is shared out among processes answers only where all of them ask."""
        if not self.conversations or (rank() and not is_sharded(model.pos_emb.weight)):
            return
        questions = [messages[:-1] for messages in self.conversations]
        given = generate_answers(model, tokenizer, template, questions, SAMPLE_TOKENS)
        self.answers[name] = [text + ("" if stopped else " ...") for text, stopped in given]
        log("\nquestions " + ("held out from training" if self.held_out else "seen in training"))
        for i, messages in enumerate(self.conversations):
            for message in messages[:-1]:
                log(f"  {message.role:<10}{one_line(message.content)}")
            for answered, texts in self.answers.items():
                log(f"    {answered:<8}{one_line(texts[i])}")
            log(f"    wanted  {one_line(messages[-1].content)}\n")
