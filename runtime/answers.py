"""What tuning has changed, to be read: a few held-out questions with the answers of the base and of the tuned model."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from chat_template import TEMPLATES, Message, render_prompt
from model import GPT
from runtime.console import one_line
from runtime.records import read_conversation, read_raw
from runtime.tokens import Dataset
from tokenizer import END_OF_TEXT, Tokenizer


def pick_samples(
    dataset: Dataset, paths: Sequence[Path], indices: np.ndarray, number: int = 3
) -> list[list[Message]]:
    """Of the first conversations among `indices`, those with the fewest turns that end in an answer, read again from
    their files."""
    wanted = [tuple(source) for source in dataset.sources[indices[: 10 * number]].tolist()]
    found = {}
    for file_index, path in enumerate(paths):
        records = {record for file, record in wanted if file == file_index}
        last = max(records, default=-1)
        for record, (line, raw) in enumerate(read_raw(path) if records else ()):
            if record in records:
                _, messages = read_conversation(path, line, raw)
                if messages[-1].role == "assistant" and len(messages) > 1:
                    found[file_index, record] = messages
            if record == last:
                break
    return sorted((found[source] for source in wanted if source in found), key=len)[:number]


def generate_one(model: GPT, prompt: list[int], stop: int, max_new_tokens: int) -> list[int]:
    """Greedy; of a prompt that is too long, its end."""
    room = max(model.config.context_length - max_new_tokens, model.config.context_length // 2)
    [new_ids] = model.generate([prompt[-room:]], max_new_tokens, stop=[stop])
    return new_ids


def continue_text(
    model: GPT, tokenizer: Tokenizer, messages: Sequence[Message], max_new_tokens: int = 40
) -> str:
    """What a model types after the bare text of the messages: the way to ask a base model, which knows no turns."""
    text = "\n".join(message.content for message in messages)
    stop = tokenizer.special(END_OF_TEXT)
    return tokenizer.decode(
        generate_one(model, [stop, *tokenizer.encode(text)], stop, max_new_tokens)
    )


def answer(
    model: GPT,
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    template: str,
    max_new_tokens: int = 40,
) -> str:
    """The likeliest answer to a conversation, as its template asks for it and reads it."""
    prompt, stop = (
        render_prompt(messages, tokenizer, template),
        tokenizer.special(TEMPLATES[template].stop),
    )
    return TEMPLATES[template].read(
        tokenizer.decode(generate_one(model, prompt, stop, max_new_tokens))
    )


def ask(
    model: GPT, tokenizer: Tokenizer, template: str | None, samples: Sequence[list[Message]]
) -> list[str]:
    """The model's answers to the samples. A base is asked in bare text; whatever knows a template, through that."""
    prompts = [messages[:-1] for messages in samples]
    if template is None:
        return [continue_text(model, tokenizer, prompt) for prompt in prompts]
    return [answer(model, tokenizer, prompt, template) for prompt in prompts]


def describe_samples(samples: Sequence[list[Message]], held_out: bool, **answers: list[str]) -> str:
    """Each sample's question, with one line an answer: base=[...], tuned=[...]."""
    lines = (
        ["\nquestions " + ("held out from training" if held_out else "seen in training")]
        if samples
        else []
    )
    for i, messages in enumerate(samples):
        lines += [f"  {message.role:<10}{one_line(message.content)}" for message in messages[:-1]]
        lines += [f"    {name:<8}{one_line(texts[i])}" for name, texts in answers.items()]
        lines += [f"    wanted  {one_line(messages[-1].content)}\n"]
    return "\n".join(lines)
