"""Write the instruction data: `python data/make_instruct.py` makes both files anew, byte for byte.

    tiny_instruct.jsonl           conversations to tune on           split: train
    tiny_instruct_heldout.jsonl   conversations to ask, never tuned  split: entities, wordings,
                                                                     tasks

README.md says what is held out and how the skills are balanced; skills.py reads them.  Every skill
draws from its own generator, seeded with its name, so a change to one leaves the others alone.

`--check` writes nothing and exits with 1 if the files on disk are not what this script makes; a
fault in a table is one line on stderr, with exit status 2.
"""

import argparse
import json
import random
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
if str(FOLDER.parent) not in sys.path:
    sys.path.insert(0, str(FOLDER.parent))

from data.skills import Book, Skill, has_word, read_book  # noqa: E402, F401
from data.tables import fill  # noqa: E402

TUNING_FILE = "tiny_instruct.jsonl"
HELDOUT_FILE = "tiny_instruct_heldout.jsonl"

PER_SKILL = 8
CHAT_QUESTIONS = 144  # of each skill that has no system prompt
CHAT_LENGTH = (5, 9)
HELD_RECORDS = {"entities": 10, "wordings": 7, "tasks": 24}
HELD_UNKNOWN = 40
NO_SYSTEM_PROMPT = ("identity", "greeting")  # whose answers do not depend on one
CASE_MATTERS = ("element_of_symbol", "letter_after")


def __getattr__(name: str) -> Any:
    """Some of the book's, read when first used, so that `main` can report a fault in a table."""
    book = read_book(FOLDER) if name in ("TUNED_SKILLS", "SKILLS", "held_names") else None
    if book is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    known = {"TUNED_SKILLS": tuple(book.tuned), "SKILLS": book.skills}
    return known.get(name, book.held.__getitem__)


def misspell(rng: random.Random, template: str) -> str:
    """One typing error in one word of the wording, never in what is asked about."""
    words = template.split(" ")
    long_ones = [i for i, word in enumerate(words) if len(word) > 3 and word.isalpha()]
    if not long_ones:
        return template
    i = rng.choice(long_ones)
    at = rng.randrange(1, len(words[i]) - 1)
    head, tail = words[i][:at], words[i][at:]
    slips = (head + tail[1] + tail[0] + tail[2:], head + tail[1:], head + tail[0] + tail)
    words[i] = rng.choice(slips)
    return " ".join(words)


def in_tone(rng: random.Random, skill: Skill, template: str) -> str:
    """The wording as it stands, or politely, tersely, in lower case, or with a typing error."""
    asking = skill.book.asking
    style = rng.random() if skill.tone else 1.0
    in_lower_case = template[0].lower() + template[1:]
    if style < 0.07:
        return misspell(rng, template)
    if style < 0.14 and template.split()[0].lower() in asking["asking words"]:
        return template.rstrip("?.")
    if style < 0.21:
        return in_lower_case
    if style < 0.29:
        opener = rng.choice(asking["openers"])
        goes_on = opener.endswith(",") and template[:1].isalpha() and not template.startswith("I ")
        return f"{opener} {in_lower_case if goes_on else template}"
    if style < 0.36:
        return f"{template} {rng.choice(asking['closers'])}"
    return template


def conversation(
    rng: random.Random, skill: Skill, template: str, item: dict, toned: bool
) -> list[dict[str, str]]:
    """Messages of a record: a system prompt now and then, earlier turns, question, answer."""
    system, _, template = template.rpartition("|||")
    template = in_tone(rng, skill, template.strip()) if toned else template.strip()
    turns = []
    if system:
        turns.append(("system", fill(system.strip(), item)))
    elif toned and rng.random() < 0.08 and skill.name not in NO_SYSTEM_PROMPT:
        turns.append(("system", rng.choice(skill.book.asking["system prompts"])))
    turns += item.get("before", [])
    question = fill(template, item)
    may_be_lower = toned and skill in skill.book.fact_skills and skill.name not in CASE_MATTERS
    if may_be_lower and rng.random() < 0.06:
        question = question.lower()
    turns += [("user", question), ("assistant", item["answer"])]
    return [{"role": role, "content": content} for role, content in turns]


def normalised(messages: Sequence[dict[str, str]], polite_words: Sequence[str]) -> str:
    """All but the answer, without case, punctuation and politeness: alike in near-duplicates."""
    text = " / ".join(message["content"] for message in messages[:-1])
    words = re.findall(r"[^\W_]+|[-+=<>/]", text.lower())
    kept = " ".join(word for word in words if word not in polite_words)
    return kept or " ".join(words)


def records(
    skill: Skill, split: str, n: int, seen: set[str], draw: int = 0, may_be_fewer: bool = False
) -> Iterator[dict]:
    """`n` records of a skill; none that is nearly the same as one already made.

    Raises ValueError where there are no `n` different ones, unless `may_be_fewer`.
    """
    rng = random.Random(f"{skill.name}, {split}" + (f", {draw}" if draw else ""))
    order: list[str] = []
    tries = made = 0
    while made < n:
        tries += 1
        if tries > 200 * n:
            if may_be_fewer:
                return
            found = f"only {made} of {n} different records for split {split}"
            raise skill.name.fault(f"{skill.name}: {found}")
        if not order:
            order = list(skill.held if split == "wordings" else skill.tuned)
            order += skill.more if split == "train" else ()
            rng.shuffle(order)
        either = "held" if "{q}" in skill.tuned else None  # its items are whole questions
        pools = {"train": "tuned", "entities": "held", "tasks": "all", "wordings": either}
        drawn = rng.choice(("tuned", "held"))  # in all splits: later draws depend on it
        pool = pools[split] or drawn
        item, toned = skill.draw(rng, pool), split in ("train", "entities")
        messages = conversation(rng, skill, order[-1], item, toned)
        key = normalised(messages, skill.book.asking["polite words"])
        if key in seen:
            continue
        order.pop()
        seen.add(key)
        made += 1
        yield {"messages": messages, "skill": skill.name, "split": split}


def make_chat_questions(seen: set[str], book: Book) -> list[dict]:
    """More such records, to be joined; a system prompt would hold for all that comes after."""
    questions = []
    for skill in book.tuned:
        if "|||" not in skill.tuned[0]:
            n = CHAT_QUESTIONS * skill.shares
            questions += records(skill, "train", n, seen, draw=1, may_be_fewer=True)
    return [record for record in questions if record["messages"][0]["role"] == "user"]


def join_to_chats(questions: Sequence[dict]) -> Iterator[dict]:
    """Chats of these questions, in random order; the last has what is left of them."""
    rng = random.Random("chats")
    left = rng.sample(questions, len(questions))
    while left:
        n = rng.randint(*CHAT_LENGTH)
        together, left = left[:n], left[n:]
        messages = [message for record in together for message in record["messages"]]
        yield {"messages": messages, "skill": "chat", "split": "train"}


def make_held_out(seen: set[str], book: Book, draw: int = 0) -> list[dict]:
    """The records to ask. A `draw` above 0 gives other questions, here and there fewer, than 0."""

    def asked(skill: Skill, split: str) -> list[dict]:
        n = HELD_UNKNOWN if skill.name == "unknown" else HELD_RECORDS[split]
        return list(records(skill, split, n, seen, draw, may_be_fewer=draw > 0))

    held = [record for skill in book.tuned if skill.entities for record in asked(skill, "entities")]
    for skill in book.tuned:
        reworded = replace(skill, draws="unknown reworded") if skill.name == "unknown" else skill
        held += asked(reworded, "wordings")
    return held + [record for skill in book.never_tuned for record in asked(skill, "tasks")]


def make_parts(seen: set[str], book: Book | None = None) -> tuple[list, list, list]:
    """Single questions to tune on, those held out, and those that will be joined to chats."""
    book = book or read_book(FOLDER)
    singles = (records(skill, "train", PER_SKILL * skill.shares, seen) for skill in book.tuned)
    questions = list(chain.from_iterable(singles))
    return questions, make_held_out(seen, book), make_chat_questions(seen, book)


def make(draw: int | None = None, book: Book | None = None) -> dict[str, list[dict]]:
    """Both files' records; or those of a draw, with no question that stands in either."""
    book, seen = book or read_book(FOLDER), set[str]()
    questions, held_out, chat_questions = make_parts(seen, book)
    if draw is not None:
        return {f"heldout-{draw}.jsonl": make_held_out(seen, book, draw)}
    tuning = questions + list(join_to_chats(chat_questions))
    random.Random("order").shuffle(tuning)
    return {TUNING_FILE: tuning, HELDOUT_FILE: held_out}


def as_text(rows: Sequence[dict]) -> str:
    """Records as the lines of a file."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; gives the exit status."""
    parser = argparse.ArgumentParser(description="Write the instruction data.")
    check = "write nothing; exit 1 if the files are not up to date"
    parser.add_argument("--check", action="store_true", help=check)
    draw = f"write only heldout-N.jsonl, to choose settings on: questions not in {HELDOUT_FILE}"
    parser.add_argument("--draw", type=int, metavar="N", help=draw)
    args = parser.parse_args(argv)
    try:
        made = make(args.draw)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    stale = False
    for name, rows in made.items():
        path, text = FOLDER / name, as_text(rows)
        if args.check:
            same = path.exists() and path.read_text(encoding="utf-8") == text
            print(f"{name}: {'up to date' if same else 'differs from what this script makes'}")
            stale |= not same
        else:
            path.write_text(text, encoding="utf-8", newline="\n")
            size = f"{len({row['skill'] for row in rows})} skills, {len(text):,} characters"
            print(f"{name}: {len(rows)} conversations, {size}")
    return int(stale)


if __name__ == "__main__":
    sys.exit(main())
