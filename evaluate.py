"""Numbers for checkpoints, side by side: what each answers right, and what it has forgotten.

    python evaluate.py data/base.pt out/tiny_instruct-1

An answer is all that a model types until it stops, and must be exactly right (JSON: the same value). A tuned model is
asked through its template; a base, which knows no turns, in bare text. Because a base hardly ever stops, its table also
has the kindest reading of what it types: whether the first line is right.
"""

import argparse
import itertools
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from chat_template import TEMPLATES, Message, render_prompt
from lora import merge_lora
from model import GPT
from runtime.console import LiveLine
from runtime.files import HERE, find_file
from runtime.load import load_checkpoint
from runtime.records import read_conversations
from runtime.tokens import Dataset, build_dataset
from sft import Config, choose_device, evaluate_loss, keep_freed_memory
from tokenizer import END_OF_TEXT, Tokenizer

ABSTENTION = "I don't know"


@dataclass
class Question:
    messages: list[Message]  # up to where the assistant must answer
    wanted: str
    rows: tuple[str, ...]  # the rows of the table that it counts in


def read_questions(path: Path) -> list[Question]:
    """Each conversation that ends in an answer. Raises ValueError where there is none."""
    questions = []
    for _, record, messages in read_conversations(path):
        if messages[-1].role == "assistant" and len(messages) > 1:
            kinds = [
                f"{key}: {record[key]}"
                for key in ("split", "skill")
                if isinstance(record.get(key), str)
            ]
            questions.append(Question(messages[:-1], messages[-1].content, ("all", *kinds)))
    if not questions:
        raise ValueError(f"{path}: no conversation that ends in an answer")
    return questions


def generate_answers(
    model: GPT,
    tokenizer: Tokenizer,
    template: str | None,
    questions: Sequence[Question],
    max_new_tokens: int,
    batch: int,
) -> list[tuple[str, bool]]:
    """For each question the greedy answer, and whether the model stopped by itself."""
    if template is None:
        start, stop = [tokenizer.special(END_OF_TEXT)], tokenizer.special(END_OF_TEXT)
        texts = (
            "\n".join(message.content for message in question.messages) for question in questions
        )
        prompts = [start + tokenizer.encode(text + "\n") for text in texts]
    else:
        stop = tokenizer.special(TEMPLATES[template].stop)
        prompts = [render_prompt(question.messages, tokenizer, template) for question in questions]
    room = max(model.config.context_length - max_new_tokens, model.config.context_length // 2)
    answers: list[tuple[str, bool]] = [("", False)] * len(prompts)
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    live = LiveLine()
    for start_at in range(0, len(by_length), batch):
        rows = by_length[start_at : start_at + batch]
        new_ids = model.generate([prompts[i][-room:] for i in rows], max_new_tokens, stop=[stop])
        for i, ids in zip(rows, new_ids):
            text = tokenizer.decode(ids)
            answers[i] = (
                text if template is None else TEMPLATES[template].read(text),
                len(ids) < max_new_tokens,
            )
        done = min(start_at + batch, len(by_length))
        live.show(f"  {done:,}/{len(by_length):,} answers", last=done == len(by_length))
    return answers


def parse(text: str) -> object:
    """The JSON object or list that a text is, or None."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, (dict, list)) else None


def score(questions: Sequence[Question], answers: Sequence[tuple[str, bool]]) -> dict[str, float]:
    """Percentages by row of the table."""
    outcomes: defaultdict[str, list[bool]] = defaultdict(list)
    for question, (answer, stopped) in zip(questions, answers):
        wanted = parse(question.wanted)
        right = answer.strip() == question.wanted.strip() or (
            wanted is not None and parse(answer) == wanted
        )
        for row in question.rows:
            outcomes[f"right, {row}"].append(right)
        abstains, should = (
            text.strip().startswith(ABSTENTION) for text in (answer, question.wanted)
        )
        outcomes[
            "says it does not know: should" if should else "says it does not know: should not"
        ].append(abstains)
        if wanted is not None:
            outcomes["valid JSON, where wanted"].append(parse(answer) is not None)
        outcomes["stops by itself"].append(stopped)
    return {row: 100 * sum(values) / len(values) for row, values in sorted(outcomes.items())}


def loss_on(model: GPT, dataset: Dataset, device: str) -> float:
    return evaluate_loss(model, dataset, np.arange(len(dataset)), 8192, device)


def evaluate(
    path: str, args: argparse.Namespace, questions: list[Question], device: str
) -> dict[str, float]:
    """All rows for one checkpoint."""
    print(path, flush=True)
    model, tokenizer, meta = load_checkpoint(path, device)
    template = args.template or meta["template"]
    if args.template:  # special tokens that it has never seen get the mean embedding
        tokenizer = tokenizer.with_special(TEMPLATES[template].special_tokens)
        merge_lora(model).grow_vocab(tokenizer.n_vocab)
    answers = generate_answers(
        model, tokenizer, template, questions, args.max_new_tokens, args.batch_size
    )
    numbers, context = score(questions, answers), model.config.context_length
    if template is None:
        first_lines = [(answer.strip().partition("\n")[0], stopped) for answer, stopped in answers]
        numbers["first line right, all"] = score(questions, first_lines)["right, all"]
    else:
        conversations, _ = build_dataset(
            [find_file(args.data)], tokenizer, template, "last", context
        )
        numbers["loss, supervised tokens"] = loss_on(model, conversations, device)
    text, _ = build_dataset([find_file(args.text)], tokenizer, "chatml", "all", context, "truncate")
    numbers["loss, pretraining text"] = loss_on(model, text, device)
    return numbers


def print_table(names: Sequence[str], columns: Sequence[dict[str, float]]) -> None:
    rows = sorted(
        dict.fromkeys(itertools.chain(*columns)),
        key=lambda row: (row.startswith("loss"), "skill" in row),
    )
    width = max(map(len, rows))
    print(" " * width + "".join(f"  {name[-16:]:>16}" for name in names))
    for row in rows:
        form = "16.3f" if row.startswith("loss") else "14.1f"
        unit = "" if row.startswith("loss") else " %"
        cells = (
            f"  {column[row]:{form}}{unit}" if row in column else f"  {'-':>16}"
            for column in columns
        )
        print(f"{row:<{width}}" + "".join(cells))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Compare checkpoints on questions with known answers."
    )
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT")
    parser.add_argument(
        "--data", default=str(HERE / "data" / "tiny_instruct_heldout.jsonl"), help="conversations"
    )
    parser.add_argument(
        "--text", default=str(HERE / "data" / "heldout_text.jsonl"), help="pretraining text"
    )
    parser.add_argument(
        "--template", choices=TEMPLATES, help="ask with this one (default: the checkpoint's own)"
    )
    parser.add_argument("--json", help="write the numbers to this file, too")
    parser.add_argument(
        "--max-new-tokens", type=int, default=64, help="budget of an answer (%(default)s)"
    )
    parser.add_argument(
        "--batch-size", type=int, default=64, help="questions at a time (%(default)s)"
    )
    parser.add_argument("--device", choices=("auto", "cuda", "mps", "cpu"), default="auto")
    args = parser.parse_args(argv)
    keep_freed_memory()
    try:
        device, _ = choose_device(Config(device=args.device))
        questions = read_questions(find_file(args.data))
        columns = [evaluate(path, args, questions, device) for path in args.checkpoints]
        print_table(args.checkpoints, columns)
        if args.json:
            Path(args.json).write_text(
                json.dumps(dict(zip(args.checkpoints, columns)), indent=2), encoding="utf-8"
            )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
