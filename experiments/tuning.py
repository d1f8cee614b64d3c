"""What tuning does to the embedded base: each function lists the rows of an experiment."""

import dataclasses
import functools
import itertools
import random
from collections import Counter
from pathlib import Path

from data import make_instruct
from experiments.table import BASE, HERE, STEPS, Row, read, write

TUNING = str(HERE / "data" / make_instruct.TUNING_FILE)
HELD_OUT = str(HERE / "data" / make_instruct.HELDOUT_FILE)
EXAMPLES_A_SKILL = 20  # where wordings are compared
REPLAY_SEED = 1_000_033  # documents that neither the base nor the text of evaluate.py has
REPLAY_DOCUMENTS = 2000
WAYS = {"full tuning": ("sft.py",), "LoRA, rank 8": ("sft.py", "--lora-rank", "8")}
for method in ("dora", "bottleneck", "bitfit", "prefix", "prompt"):
    WAYS[method] = ("experiments/peft.py", "--method", method)
RATES_TRIED = ("5e-5", "1.5e-4", "5e-4", "1.5e-3", "5e-3", "1.5e-2", "5e-2")
BEST_RATES = ("1.5e-4", *["1.5e-3"] * 4, *["1.5e-2"] * 2)


def ways_to_tune(folder: Path, seed: int) -> list[Row]:
    return [Row("base", None), Row("full tuning"), Row("LoRA, rank 8", ("--lora-rank", "8"))]


def few_parameters(folder: Path, seed: int) -> list[Row]:
    """Each at its own best rate, see `rates`."""
    rates = dict(zip(WAYS, BEST_RATES))
    return [
        Row(way, (*flags, "--lr", rates[way]), script=script)
        for way, (script, *flags) in WAYS.items()
    ]


def rates(folder: Path, seed: int) -> list[Row]:
    """Asked other questions than those of the tables: a best rate is not to be chosen by these."""
    asked = ("--data", write(folder / "drawn.jsonl", make_instruct.make(5)["heldout-5.jsonl"]))
    rows = []
    for way, (script, *flags) in WAYS.items():
        tried = RATES_TRIED[:4] if way == "full tuning" else RATES_TRIED[1:5]
        for lr in RATES_TRIED[3:] if way in ("prompt", "prefix") else tried:
            rows.append(Row(f"{way}, {lr}", (*flags, "--lr", lr), asked, script))
    return rows


def loss_mask(folder: Path, seed: int) -> list[Row]:
    return [Row("the assistant's"), Row("all", ("--train-on", "all"))]


def examples(folder: Path, seed: int) -> list[Row]:
    records = read(TUNING)
    random.Random(seed).shuffle(records)
    rows = [Row("0", None)]
    for n in (30, 100, 300, 1000, len(records)):
        data = write(folder / f"{n}.jsonl", records[:n])
        rows.append(Row(f"{n:,}", ("--data", data, *STEPS)))
    return rows


@functools.cache
def single_questions() -> tuple[dict, ...]:
    """The questions of the tuning data, those in chats too, each as a record of its own: chats mix
    all skills."""
    questions, _, chat_questions = make_instruct.make_parts(set())
    return *questions, *chat_questions


def tasks(folder: Path, seed: int) -> list[Row]:
    records = single_questions()
    skills = sorted({record["skill"] for record in records})
    random.Random(seed).shuffle(skills)
    rows = [Row("0", None)]
    for n in (2, 4, 8, 16, 32, len(skills)):
        chosen = [record for record in records if record["skill"] in skills[:n]]
        data = write(folder / f"{n}.jsonl", chosen)
        rows.append(Row(f"{n}", ("--data", data, *STEPS)))
    return rows


def wordings(folder: Path, seed: int) -> list[Row]:
    rows, counts = [], Counter[str]()
    for n in (1, 4, 16, 64):
        seen: set[str] = set()
        records: list[dict] = []
        for skill in make_instruct.TUNED_SKILLS:
            all_wordings = tuple(dict.fromkeys(skill.tuned + skill.more))
            few = dataclasses.replace(skill, tuned=all_wordings[:n], more=(), tone=n > 1)
            wanted = counts[skill.name] or EXAMPLES_A_SKILL  # as many as one wording allows
            records += make_instruct.records(few, "train", wanted, seen, may_be_fewer=True)
        counts = Counter(record["skill"] for record in records)
        random.Random(seed).shuffle(records)
        data = write(folder / f"{n}.jsonl", records)
        rows.append(Row(f"at most {n}" if n > 1 else "1", ("--data", data, *STEPS)))
    return rows


def forgetting(folder: Path, seed: int) -> list[Row]:
    rows = [Row("base", None)]
    rows += [Row(f"learning rate {lr}", ("--lr", lr)) for lr in ("5e-5", "1.5e-4", "1e-3")]
    for percent in (5, 10, 20):
        data = ("--data", TUNING, replay(folder, percent / 100))
        rows.append(Row(f"{percent} % of the tokens replayed", data))
    return [*rows, Row("LoRA, rank 8", ("--lora-rank", "8"))]


def replay(folder: Path, share: float) -> str:
    """Pretraining documents for --data, with the weight that makes them this share of an epoch's
    tokens."""
    path, ratio = replay_documents(folder)
    return f"{path}:{share / (1 - share) * ratio:.4f}"


@functools.cache
def replay_documents(folder: Path) -> tuple[str, float]:
    """A file of pretraining documents, and how many tokens of tuning data there are for each of
    theirs."""
    # Imported here, because they import torch, which listing the experiments does not need.
    from chat_template import TEMPLATES
    from data import make_base, world
    from runtime.load import load_checkpoint
    from runtime.records import build_dataset

    documents = world.documents(REPLAY_SEED, make_base.WORDINGS)
    texts = itertools.islice(documents, REPLAY_DOCUMENTS)
    path = write(folder / "replay.jsonl", [{"text": text} for text in texts])
    model, tokenizer, _ = load_checkpoint(BASE)
    tokenizer = tokenizer.with_special(TEMPLATES["chatml"].special_tokens)
    files, longest = [Path(TUNING), Path(path)], model.config.context_length
    both, _ = build_dataset(files, tokenizer, "chatml", max_length=longest)
    n_tuning, n_replay = (both.lengths[both.sources[:, 0] == i].sum() for i in (0, 1))
    return path, float(n_tuning / n_replay)


def templates(folder: Path, seed: int) -> list[Row]:
    names = "chatml", "llama2", "alpaca"
    return [
        Row(f"tuned with {tuned}, asked with {asked}", ("--template", tuned), ("--template", asked))
        for tuned, asked in itertools.product(names, repeat=2)
    ]


def unknown(folder: Path, seed: int) -> list[Row]:
    records, rows = single_questions(), []
    known = [record for record in records if record["skill"] != "unknown"]
    for n in (0, 20, 160, 1280):
        chosen = known + [record for record in records if record["skill"] == "unknown"][:n]
        data = write(folder / f"{n}.jsonl", chosen)
        rows.append(Row(f"{n} examples among {len(chosen):,}", ("--data", data, *STEPS)))
    return rows


def chats(folder: Path, seed: int) -> list[Row]:
    rng = random.Random(seed)
    questions = [record for record in read(HELD_OUT) if len(record["messages"]) == 2]
    later = []
    for record in questions:
        before = [message for other in rng.sample(questions, 2) for message in other["messages"]]
        later.append(record | {"messages": before + record["messages"]})
    tuned = {"without chats": single_questions(), "with chats": read(TUNING)}  # the same questions
    asked = {"asked alone": questions, "asked after two others": later}
    data = {
        label: ("--data", write(folder / f"{label}.jsonl", records))
        for label, records in (tuned | asked).items()
    }
    return [
        Row(f"tuned {with_or_without}, {when}", (*data[with_or_without], *STEPS), data[when])
        for with_or_without, when in itertools.product(tuned, asked)
    ]
