"""Numbers for checkpoints, side by side: what each answers right, and what it has forgotten.

    python evaluate.py data/base.pt out/tiny_instruct-1

An answer is all that a model types until it stops, and must be exactly right (JSON: the same
value). A base, which knows no turns, is asked in bare text; its first line is judged, too.
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
import torch

from chat_template import TEMPLATES, Message
from lora import merge_lora
from model import GPT
from runtime import fast
from runtime.answers import generate_answers
from runtime.console import LiveLine, accept_any_text, fail, printable
from runtime.distributed import choose_device
from runtime.files import find_file
from runtime.load import load_checkpoint
from runtime.records import build_dataset, read_conversations
from sft import evaluate_loss
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
            known = [key for key in ("split", "skill") if isinstance(record.get(key), str)]
            rows = "all", *(f"{key}: {record[key]}" for key in known)
            questions.append(Question(messages[:-1], messages[-1].content, rows))
    if not questions:
        raise ValueError(f"{path}: no conversation that ends in an answer")
    return questions


def parse(text: str) -> object:
    """The JSON object or list that a text is, or None."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, (dict, list)) else None


def score(questions: Sequence[Question], answers: Sequence[tuple[str, bool]]) -> dict[str, float]:
    """Percentages by row of the table, from each answer and whether the model stopped by itself."""
    outcomes: defaultdict[str, list[bool]] = defaultdict(list)
    for question, (answer, stopped) in zip(questions, answers):
        wanted = parse(question.wanted)
        right = answer.strip() == question.wanted.strip()
        right |= wanted is not None and parse(answer) == wanted
        for row in question.rows:
            outcomes[f"right, {row}"].append(right)
        abstains, should = (t.strip().startswith(ABSTENTION) for t in (answer, question.wanted))
        outcomes[f"says it does not know: should{'' if should else ' not'}"].append(abstains)
        if wanted is not None:
            outcomes["valid JSON, where wanted"].append(parse(answer) is not None)
        outcomes["stops by itself"].append(stopped)
    return {row: 100 * sum(values) / len(values) for row, values in sorted(outcomes.items())}


def loss_on(model: GPT, tokenizer: Tokenizer, path: str, *rendering) -> float:
    """Mean nll of a file's supervised tokens; `rendering` as for `build_dataset`."""
    dataset, _ = build_dataset([find_file(path)], tokenizer, *rendering)
    device = model.final_norm.weight.device
    return evaluate_loss(model, dataset, np.arange(len(dataset)), 8192, device)


def hide_new_tokens(model: GPT, tokenizer: Tokenizer, template: str | None) -> None:
    """Let none of the probability go to them: what they took from text is not forgotten."""
    names = {*TEMPLATES[template].special_tokens} - {END_OF_TEXT} if template else ()
    ids = [*map(tokenizer.special, names), *range(tokenizer.n_vocab, model.config.vocab_size)]
    rows, logits = torch.tensor(ids, dtype=torch.long), model.tok_emb.logits
    model.tok_emb.logits = lambda x: logits(x).index_fill(1, rows.to(x.device), -torch.inf)


def evaluate(
    path: str, args: argparse.Namespace, questions: list[Question], device: str
) -> dict[str, float]:
    """All rows for one checkpoint."""
    print(printable(path), flush=True)
    model, tokenizer, meta = load_checkpoint(path, device)
    fast.speed_up(model, device)
    template = args.template or meta["template"]
    if args.template:  # special tokens that the model has never seen get the mean embedding
        tokenizer = tokenizer.with_special(TEMPLATES[template].special_tokens)
        merge_lora(model).grow_vocab(tokenizer.n_vocab)
    asked = [question.messages for question in questions]
    budget = args.max_new_tokens, args.batch_size
    answers = generate_answers(model, tokenizer, template, asked, *budget, LiveLine().show)
    numbers, context = score(questions, answers), model.config.context_length
    if template is None:
        first_lines = [(answer.strip().partition("\n")[0], stopped) for answer, stopped in answers]
        numbers["first line right, all"] = score(questions, first_lines)["right, all"]
    else:
        how = template, "last", context
        numbers["loss, supervised tokens"] = loss_on(model, tokenizer, args.data, *how)
    how = "chatml", "all", context, "truncate"  # a document has no template
    for row in ("loss, pretraining text", "loss, pretraining text, new tokens apart"):
        numbers[row] = loss_on(model, tokenizer, args.text, *how)
        hide_new_tokens(model, tokenizer, template)
    return numbers


def print_table(names: Sequence[str], columns: Sequence[dict[str, float]]) -> None:
    """A row for each number, a column for each checkpoint; the losses stand last."""
    rows = dict.fromkeys(itertools.chain(*columns))
    rows = sorted(rows, key=lambda row: (row.startswith("loss"), "skill" in row))
    width = max(map(len, rows))
    print(" " * width + "".join(f"  {printable(name)[-16:]:>16}" for name in names))
    for row in rows:
        form, unit = ("16.3f", "") if row.startswith("loss") else ("14.1f", " %")
        numbers = (f"{column[row]:{form}}{unit}" if row in column else "-" for column in columns)
        print(f"{row:<{width}}" + "".join(f"  {number:>16}" for number in numbers))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Compare checkpoints on known answers.")
    add = parser.add_argument
    add("checkpoints", nargs="+", metavar="CHECKPOINT")
    add("--data", default="tiny_instruct_heldout.jsonl", help="conversations")
    add("--text", default="heldout_text.jsonl", help="pretraining text")
    add("--template", choices=TEMPLATES, help="ask with this one (default: the checkpoint's own)")
    add("--json", help="write the numbers to this file, too")
    add("--max-new-tokens", type=int, default=64, help="budget of an answer (%(default)s)")
    add("--batch-size", type=int, default=64, help="questions at a time (%(default)s)")
    add("--device", choices=("auto", "cuda", "mps", "cpu"), default="auto")
    args = parser.parse_args(argv)
    accept_any_text()
    fast.keep_freed_memory()
    try:
        if min(args.max_new_tokens, args.batch_size) < 1:
            raise ValueError("--max-new-tokens and --batch-size must be at least 1")
        device, _ = choose_device(args.device, "float32")
        questions = read_questions(find_file(args.data))
        columns = [evaluate(path, args, questions, device) for path in args.checkpoints]
        print_table(args.checkpoints, columns)
        if args.json:
            Path(args.json).write_text(json.dumps(dict(zip(args.checkpoints, columns)), indent=2))
    except (ValueError, OSError) as error:
        return fail(error)
    return 0


if __name__ == "__main__":
    from experiments.peft import register  # its kinds of adapters

    register()
    sys.exit(main())
