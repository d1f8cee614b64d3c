"""The skills of the instruction data: what can be asked, in which words, and what is held out.

A *skill* is one kind of task: a line of wordings/skills.tsv and its wordings in
wordings/questions.  Its column `asks` names one of the `KINDS` below: how an item is drawn, a
question's fields with its answer.  `read_book(folder)` reads all of them.
"""

import random
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

from data import tables, world
from data.relations import FACT_SLOTS, SUBJECT_SLOTS, VALUE_SLOTS, Fact, bare, upper
from data.tables import FOLDER, LEFT_OUT, Row, Text, fill
from data.world import STORY_PARTS, STORY_SLOTS, in_a_row, json_object

HELD_SHARE = 0.3  # of the things in a table
I_DONT_KNOW = "I don't know."
REFUSAL = "I'm sorry, I can't help with that."
SKILL_COLUMNS = ("skill", "asks", "about", "columns", "split", "shares", "tone")
QUESTION_PARTS = ("phrases", "questions", "frames", "tuned", "more") + tuple(
    f"held{part}" for part in (" phrases", " questions", " frames", "")
)
NAMES_TAKEN = {"country": "turkey"}  # held out, its name would stand in questions about the bird

Draw = Callable[["Skill", random.Random, str], dict]


@dataclass(frozen=True)
class Kind:
    """How a skill asks.

    draw: gives the fields of an item, its `answer` among them, and `before` where earlier turns
    belong to it, from the pool "tuned", "held" or "all".
    about: what the names in the skill's column `about` are.
    slots, needed: the fields that its wordings may mention, and groups of which each needs one.
    whole: an item is a whole question, so there are no wordings.
    """

    draw: Draw
    about: str
    slots: Collection[str]
    needed: Sequence[Sequence[str]]
    whole: bool


KINDS: dict[str, Kind] = {}


def kind(
    name: str, about: str, slots: Collection[str], *needed: Sequence[str], whole: bool = False
) -> Callable[[Draw], Draw]:
    """Registers a function that draws the items of a kind of skill."""

    def register(draw: Draw) -> Draw:
        KINDS[name] = Kind(draw, about, slots, needed, whole)
        return draw

    return register


@dataclass(frozen=True)
class Skill:
    """One kind of task: how to draw an item of it, and how to ask.

    A wording is a text with slots for an item's fields; what stands before `|||` is a system
    prompt.  tuned: wordings of tuning data, which also ask about held-out things.  more: those of
    the tuning data only.  held: never tuned.  entities: whether the skill has things to hold out.
    tone: whether its questions may be put politely, tersely or with a typing error.
    shares: so many times the usual number of records.
    """

    name: str
    asks: str
    about: tuple[Text, ...]
    columns: tuple[int, int]
    tuned: tuple[str, ...]
    held: tuple[str, ...]
    more: tuple[str, ...]
    entities: bool
    tone: bool
    shares: int
    book: "Book" = field(repr=False, compare=False)

    def draw(self, rng: random.Random, pool: str) -> dict:
        """The fields of an item."""
        return KINDS[self.asks].draw(self, rng, pool)

    @property
    def whole(self) -> bool:
        """Whether its items are whole questions."""
        return KINDS[self.asks].whole

    @property
    def with_system_prompt(self) -> bool:
        """Whether a system prompt sets the task."""
        return "|||" in self.tuned[0]


# ------------------------------------------------------------------------------- what is held out


def has_word(text: str, phrase: str) -> bool:
    """Whether the phrase stands in the text as whole words, whatever the case."""
    return re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", text, re.IGNORECASE) is not None


def hold_out(name: str, things: Sequence[str], taken: str = "") -> frozenset[str]:
    """A share of the things, chosen by their table's name.

    A thing that another one's name contains (Guinea, Papua New Guinea), or that stands in the text
    `taken`, stays in tuning: its name in a prompt would not prove that it is what is asked about.
    """

    def contained(thing: str) -> bool:
        longer = (other for other in things if thing != other and thing.lower() in other.lower())
        return any(has_word(other, thing) for other in longer)

    free = [thing for thing in things if not contained(thing) and not has_word(taken, thing)]
    random.Random(f"held out: {name}").shuffle(free)
    return frozenset(free[: round(HELD_SHARE * len(things))])


def is_held_pair(a: int, b: int) -> bool:
    """Three in ten pairs of numbers, in either order, are held out of all arithmetic."""
    return random.Random(f"pair {min(a, b)} {max(a, b)}").random() < HELD_SHARE


def split_list(name: str, items: Sequence) -> dict[str, list]:
    """Tuned and held-out parts of a list of names, places or sentences."""
    order = list(items)
    random.Random(f"held out: {name}").shuffle(order)
    n = round(HELD_SHARE * len(order))
    return {"held": order[:n], "tuned": order[n:], "all": order}


# --------------------------------------------------------------------------------------- the book


class Book:
    """All skills and what they draw from, read from one folder of tables."""

    def __init__(self, folder: Path) -> None:
        self.world, self.forms = world.read_world(folder), world.read_forms(folder)
        wordings = folder / "wordings"
        self.asking = tables.read_sections(wordings / "asking.txt")
        for stems in ("stems", "held stems"):
            tables.check_all(self.asking[stems], ("np", "Np"), ("np", "Np"))
        tables.check_all(self.asking["example rows"], ("n", "v"), ("n",), ("v",))
        rows = tables.read_table(wordings / "topics.tsv", ("topic", "answer"))
        self.answers = {row["topic"]: row["answer"] for row in rows}
        small_talk = tables.read_sections(wordings / "small_talk.txt")
        self.small_talk = tables.by_part(small_talk, self.answers, "topic", ("tuned", "held"))
        self.sentences = self.read_wordings(wordings / "sentences.tsv", "question", "sentence")
        self.follow_ups = self.read_wordings(wordings / "follow_ups.tsv", "question")
        lists = dict(self.world.words) | {"reviews": self.world.reviewed}
        self.lists = {name: split_list(name, items) for name, items in lists.items()}
        self.held = {name: self.held_names(name) for name in self.world.relations}
        self.pools = {
            (name, pool): self.facts_in(name, pool)
            for name in self.world.relations
            for pool in ("tuned", "held", "all")
        }
        self.real: dict[str, bool] = {}
        self.skills = self.read_skills(wordings)
        self.unknown_about = self.read_unknown(wordings / "unknown.tsv")
        self.tuned = [skill for name, skill in self.skills.items() if self.split[name] == "tuned"]
        self.never_tuned = [s for name, s in self.skills.items() if self.split[name] == "held"]
        self.fact_skills = [skill for skill in self.tuned if skill.asks in ("value", "subject")]

    # -- reading

    def read_wordings(self, path: Path, *columns: str) -> dict[str, Row]:
        """A table of wordings by relation."""
        rows = tables.read_table(path, ("relation", *columns))
        for row in rows:
            tables.one_of(row["relation"], self.world.relations, "relation")
            tables.check_all([row[column] for column in columns], FACT_SLOTS, SUBJECT_SLOTS)
        return {row["relation"]: row for row in rows}

    def read_skills(self, wordings: Path) -> dict[str, Skill]:
        """The skills in the order of their table."""
        rows = tables.read_table(wordings / "skills.tsv", SKILL_COLUMNS)
        self.split = {
            row["skill"]: tables.one_of(row["split"], ("tuned", "held"), "split") for row in rows
        }
        sections = tables.read_folder(wordings / "questions")
        parts = tables.by_part(sections, self.split, "skill", QUESTION_PARTS)
        return {row["skill"]: self.read_skill(row, parts.get(row["skill"], {})) for row in rows}

    def read_skill(self, row: Row, parts: Mapping[str, tuple[Text, ...]]) -> Skill:
        """One line of skills.tsv with its wordings."""
        tables.one_of(row["asks"], KINDS, "way to ask")
        how = KINDS[row["asks"]]
        known = {
            "relation": self.world.relations,
            "operation": self.world.operations,
            "part of a story": STORY_PARTS,
            "relation with a sentence": self.sentences,
            "relation with a follow-up": self.follow_ups,
            "topic": self.answers,
            "list": self.world.words,
        }
        about = () if not how.about and row["about"] == LEFT_OUT else tables.names_in(row["about"])
        for name in about:
            tables.one_of(name, known.get(how.about, ()), how.about or "thing to ask about")
        tuned, held = (self.combined(parts, how, prefix) for prefix in ("", "held "))
        if not tuned:
            raise row["skill"].fault(f"no wordings in wordings/questions: {row['skill']}")
        entities = not how.whole or row["asks"] == "unknown"
        if row["asks"] in ("value", "subject"):
            entities = bool(self.held[about[0]])
        return Skill(
            row["skill"],
            row["asks"],
            tuple(about),
            (1, 1) if row["columns"] == LEFT_OUT else world.span(row["columns"]),
            tuned,
            held,
            self.checked(parts.get("more", ()), how),
            entities,
            tables.yes(row["tone"]),
            tables.whole_number(row["shares"]),
            self,
        )

    @staticmethod
    def checked(wordings: Sequence[Text], how: Kind) -> tuple[Text, ...]:
        """Wordings that name what they are about, and nothing else."""
        tables.check_all(wordings, how.slots, *how.needed)
        return tuple(wordings)

    def combined(
        self, parts: Mapping[str, tuple[Text, ...]], how: Kind, prefix: str
    ) -> tuple[Text, ...]:
        """A skill's wordings, tuned or (with the prefix `held `) held out.

        Phrases are put into every general stem, by turns, and the skill's own wordings stand as
        often; questions are put into every frame.
        """
        own = parts.get(prefix.strip() or "tuned", ())
        phrases = parts.get(f"{prefix}phrases") or parts.get("phrases", ())[: 1 if prefix else None]
        frames = parts.get(f"{prefix}frames", ())
        tables.check_all(frames, (*how.slots, "q"), ("q",))
        general = [
            question.with_text(frame.replace("{q}", question))
            for question in parts.get(f"{prefix}questions", ())
            for frame in frames
        ]
        if phrases:
            for i, stem in enumerate(self.asking[f"{prefix}stems"]):
                np = phrases[(i + len(own)) % len(phrases)]
                general.append(np.with_text(fill(stem, {"np": np, "Np": upper(np)})))
            own *= max(1, len(general) // max(1, len(own)))
        if how.whole:
            general = [Text("{q}", "")]
        return self.checked((*general, *own), how)

    def read_unknown(self, path: Path) -> list[tuple[Skill, str]]:
        """The skills that ask about things that do not exist, with the kind of thing."""
        about: list[tuple[Skill, str]] = []
        for row in tables.read_table(path, ("skill", "thing", "times"), key=2):
            tables.one_of(row["skill"], self.skills, "skill")
            for part in ("tuned", "held", "ends"):
                if f"{row['thing']}: {part}" not in self.world.words:
                    raise row["thing"].fault(f"no section of facts/: [{row['thing']}: {part}]")
            pair = (self.skills[row["skill"]], row["thing"])
            about += [pair] * tables.whole_number(row["times"])
        return about

    # -- what is held out

    def held_names(self, name: str) -> frozenset[str]:
        """Bare names of the subjects held out of a relation."""
        relation = self.world.relations[name]
        names = [bare(fact.subject) for fact in relation.facts]
        if relation.group in self.world.subjects:
            names = [bare(subject) for subject in self.world.subjects[relation.group]]
            return hold_out(relation.group, names, NAMES_TAKEN.get(relation.group, ""))
        if not relation.held_out:
            return frozenset()
        if not relation.both_ways:
            return hold_out(name, names, self.frame_words)
        pairs = [(fact.subject, fact.value) for fact in relation.facts[: len(names) // 2]]
        free = [pair for pair in pairs if not any(has_word(self.frame_words, w) for w in pair)]
        held = hold_out(name, [" ".join(pair) for pair in free])
        return frozenset(word for pair in held for word in pair.split())

    @cached_property
    def frame_words(self) -> str:
        """Words of questions: a question about one of these would not show what it is about."""
        sections = ("stems", "held stems", "frame words")
        return " ".join(text for name in sections for text in self.asking[name])

    def facts_in(self, name: str, pool: str) -> list[Fact]:
        """The facts of a relation that a pool may ask for."""
        facts, held = list(self.world.relations[name].facts), self.held[name]
        if pool == "all" or not held:
            return facts
        return [fact for fact in facts if (bare(fact.subject) in held) == (pool == "held")]

    # -- names of things that do not exist

    @cached_property
    def real_names(self) -> tuple[str, ...]:
        """Every name and word of the world, in lower case."""
        facts = (fact for relation in self.world.relations.values() for fact in relation.facts)
        names = {bare(text).lower() for fact in facts for text in (fact.subject, fact.value)}
        return tuple(sorted(names | {name.lower() for name in self.world.words["people"]}))

    def looks_real(self, name: str) -> bool:
        """Whether a made-up name is, or could be a slip of the pen for, something real."""
        name = name.lower()
        if name not in self.real:
            near = (
                real
                for real in self.real_names
                if abs(len(name) - len(real)) < 3 and len(set(name) ^ set(real)) < 5
            )
            self.real[name] = any(distance(name, real) < 3 for real in near)
        return self.real[name]

    def made_up(self, rng: random.Random, thing: str, pool: str) -> str:
        """A name of something that does not exist."""
        words = self.world.words
        while True:
            name = rng.choice(words[f"{thing}: {pool}"]) + rng.choice(words[f"{thing}: ends"])
            if not self.looks_real(name):
                prefixes = words.get(f"{thing}: prefixes")
                return f"{rng.choice(prefixes)} {name}".strip() if prefixes else name


def distance(a: str, b: str) -> int:
    """Edit distance: how many letters must be put in, left out or changed."""
    row = list(range(len(b) + 1))
    for i, letter in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, other in enumerate(b, 1):
            changed = previous + (letter != other)
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, changed)
    return row[-1]


@cache
def read_book(folder: Path = FOLDER) -> Book:
    """The skills that the tables of this folder describe."""
    return Book(folder)


# ------------------------------------------------------------------------------- facts and numbers


@kind("value", "relation", FACT_SLOTS, SUBJECT_SLOTS)
def ask_value(skill: Skill, rng: random.Random, pool: str) -> dict:
    """A subject, answered by its value."""
    fact = rng.choice(skill.book.pools[skill.about[0], pool])
    return fact.fields | {"answer": fact.value}


@kind("subject", "relation", FACT_SLOTS, VALUE_SLOTS)
def ask_subject(skill: Skill, rng: random.Random, pool: str) -> dict:
    """A value that belongs to one subject, answered by the subject."""
    unique = skill.book.world.relations[skill.about[0]].unique_values
    facts = [fact for fact in skill.book.pools[skill.about[0], pool] if fact.value in unique]
    fact = rng.choice(facts)
    return fact.fields | {"answer": fact.fields["n"]}


def two_numbers(operation: str, low: int, rng: random.Random, pool: str) -> tuple[int, int]:
    """Numbers from `low` up that give a result of at most 100, not below 0."""
    while True:
        a, b = rng.randint(low, 99), rng.randint(low, 99)
        fits = {"sum": a + b <= 100, "difference": a > b}.get(operation, a != b)
        if fits and (pool == "all" or is_held_pair(a, b) == (pool == "held")):
            return a, b


@kind("result", "operation", ("a", "b"), ("a",), ("b",))
def ask_result(skill: Skill, rng: random.Random, pool: str) -> dict:
    """Two numbers, answered by the result."""
    operation = skill.book.world.operations[skill.about[0]]
    a, b = two_numbers(operation.name, 1, rng, pool)
    return {"a": a, "b": b, "answer": str(operation.result(a, b))}


@kind("steps", "operation", ("a", "b"), ("a",), ("b",))
def ask_steps(skill: Skill, rng: random.Random, pool: str) -> dict:
    """A sum or a difference of larger numbers, answered by its working."""
    adding = skill.about[0] == "sum"
    a, b = two_numbers(skill.about[0], 11, rng, pool)
    answer = (world.sum_steps if adding else world.difference_steps)(a, b)
    return {"a": a, "b": b, "answer": answer}


@kind("counting", "", ("a", "b"), ("a",), ("b",))
def ask_counting(skill: Skill, rng: random.Random, pool: str) -> dict:
    """Two numbers, answered by all from one to the other."""
    while True:
        a = rng.randint(1, 92)
        b = a + rng.randint(3, 6)
        if pool == "all" or is_held_pair(a, b) == (pool == "held"):
            return {"a": a, "b": b, "answer": ", ".join(str(n) for n in range(a, b + 1))}


# --------------------------------------------------------------------------------- stories, reviews


def draw_story(skill: Skill, rng: random.Random, pool: str) -> dict:
    """A story of one or two people and the fields of the one who is asked about."""
    lists, forms = skill.book.lists, skill.book.forms
    people, objects = (rng.sample(lists[name][pool], 2) for name in ("people", "objects"))
    heroes = []
    for who, what in zip(people, objects):
        action = rng.choice(skill.book.world.actions)
        hero = {"who": who, "past": action["past"], "plain": action["plain"], "what": what}
        places = {
            "where": rng.choice(lists["places"][pool]),
            "when": rng.choice(lists["times"][pool]),
        }
        heroes.append(world.story_fields(hero | places))
    heroes = heroes[: 1 if rng.random() < 0.7 else 2]
    sentences = []
    for hero in heroes:
        sentences.append(fill(rng.choice(forms.stories["openings"]), hero))
        sentences += rng.sample(skill.book.world.words["fillers"], rng.randint(0, 1))
    return rng.choice(heroes) | {"story": " ".join(sentences), "heroes": heroes}


@kind("story", "part of a story", (*STORY_SLOTS, "story"), ("story",))
def ask_story(skill: Skill, rng: random.Random, pool: str) -> dict:
    """A story, answered by one of its parts as it stands there."""
    item = draw_story(skill, rng, pool)
    return item | {"answer": item[skill.about[0]]}


@kind("summary", "", ("story",), ("story",))
def ask_summary(skill: Skill, rng: random.Random, pool: str) -> dict:
    """A story, answered by what matters in it."""
    item = draw_story(skill, rng, pool)
    summary = skill.book.forms.stories["summaries"][0]
    return item | {"answer": " ".join(fill(summary, hero) for hero in item["heroes"])}


@kind("story record", "", ("story", "keys"), ("story",), ("keys",))
def ask_story_record(skill: Skill, rng: random.Random, pool: str) -> dict:
    """A story, answered by some of its parts in JSON."""
    item = draw_story(skill, rng, pool)
    while len(item["heroes"]) > 1:
        item = draw_story(skill, rng, pool)
    choices = (("who", "what", "where"), ("who", "what"), ("who", "where"), ("what", "where"))
    keys = rng.choice(choices)
    return item | {
        "keys": in_a_row(keys),
        "answer": json_object([(key, item[key]) for key in keys]),
    }


def draw_review(skill: Skill, rng: random.Random, pool: str) -> tuple[str, str]:
    """A review of one or two sentences, and its sentiment."""
    lists = skill.book.lists
    reviewed = rng.choice(lists["reviews"][pool])
    positive = rng.random() < 0.5
    own = reviewed["good" if positive else "bad"]
    general = rng.choice(lists["praise" if positive else "blame"][pool])
    opening = ""
    if not reviewed["thing"].endswith("s"):
        filled = fill(rng.choice(skill.book.forms.reviews["openings"]), reviewed)
        opening = rng.choice(("", "", f"{filled} "))
    text = opening + rng.choice((own, f"{own} {general}", f"{general} {own}"))
    return text, "positive" if positive else "negative"


@kind("sentiment", "", ("text",), ("text",))
def ask_sentiment(skill: Skill, rng: random.Random, pool: str) -> dict:
    """A review, answered by its sentiment."""
    text, label = draw_review(skill, rng, pool)
    return {"text": text, "answer": label}


EXAMPLES = {"lines": "{} = {}", "pairs": "Review: {}\nSentiment: {}", "arrows": "{} -> {}"}


@kind("sentiment by example", "", ("text", *EXAMPLES), ("text",), tuple(EXAMPLES))
def ask_sentiment_by_example(skill: Skill, rng: random.Random, pool: str) -> dict:
    """Two or three labelled reviews with both labels, then one without a label."""
    while True:
        shots = [draw_review(skill, rng, pool) for _ in range(rng.randint(2, 3))]
        text, label = draw_review(skill, rng, pool)
        if len({label for _, label in shots}) == 2 and text not in [shot for shot, _ in shots]:
            break
    rows = {
        name: "\n".join(mark.format(*shot) for shot in shots) for name, mark in EXAMPLES.items()
    }
    return rows | {"text": text, "answer": label}


# ------------------------------------------------------------------------------ forms of the answer

SEVERAL = (*FACT_SLOTS, "keys", "the_keys"), SUBJECT_SLOTS, ("keys", "the_keys")


def draw_several(skill: Skill, rng: random.Random, pool: str) -> tuple[dict, list[tuple[str, str]]]:
    """The fields of a subject, and some of its columns with their values."""
    relations = [skill.book.world.relations[name] for name in skill.about]
    values: dict[str, dict[str, str]] = {}
    for relation in relations:
        for fact in relation.facts:
            values.setdefault(fact.subject, {})[relation.json_keys[1]] = fact.value
    names, held = [relation.json_keys[1] for relation in relations], skill.book.held[skill.about[0]]
    subjects = list(values)
    while True:
        subject = rng.choice(subjects)
        keys = rng.sample(names, rng.randint(*skill.columns))
        in_pool = pool == "all" or (bare(subject) in held) == (pool == "held")
        if in_pool and all(key in values[subject] for key in keys):
            break
    fields = skill.book.world.fact(subject, LEFT_OUT).fields
    wanted = {"keys": in_a_row(keys), "the_keys": in_a_row([f"the {key}" for key in keys])}
    return fields | wanted, [(key, values[subject][key]) for key in keys]


@kind("record", "relation", *SEVERAL)
def ask_record(skill: Skill, rng: random.Random, pool: str) -> dict:
    """A subject and some of its columns, answered in JSON."""
    fields, cells = draw_several(skill, rng, pool)
    subject = skill.book.world.relations[skill.about[0]].json_keys[0]
    return fields | {"answer": json_object([(subject, fields["n"]), *cells])}


@kind("list", "relation", *SEVERAL)
def ask_list(skill: Skill, rng: random.Random, pool: str) -> dict:
    """The same, answered by one value a line."""
    fields, cells = draw_several(skill, rng, pool)
    return fields | {"answer": "\n".join(value for _, value in cells)}


def draw_question(skill: Skill, rng: random.Random, pool: str) -> tuple[Fact, dict, str]:
    """A fact of one of the skill's relations, the fields of a question, and the whole sentence."""
    row = skill.book.sentences[rng.choice(skill.about)]
    fact = rng.choice(skill.book.pools[row["relation"], pool])
    fields = fact.fields | {"q": fill(row["question"], fact.fields)}
    return fact, fields, fill(row["sentence"], fact.fields)


@kind("sentence", "relation with a sentence", FACT_SLOTS, SUBJECT_SLOTS)
def ask_sentence(skill: Skill, rng: random.Random, pool: str) -> dict:
    """A subject, answered by a whole sentence."""
    _, fields, sentence = draw_question(skill, rng, pool)
    return fields | {"answer": sentence}


@kind("one word", "relation with a sentence", ("q",), ("q",))
def ask_one_word(skill: Skill, rng: random.Random, pool: str) -> dict:
    """A question whose answer is a single word."""
    while True:
        fact, fields, _ = draw_question(skill, rng, pool)
        if " " not in fact.value:
            return fields | {"answer": fact.value}


@kind("system form", "relation with a sentence", ("q", "form"), ("q",), ("form",))
def ask_system_form(skill: Skill, rng: random.Random, pool: str) -> dict:
    """A question, and a form of answer that the system prompt sets."""
    fact, fields, sentence = draw_question(skill, rng, pool)
    forms = {
        "in a whole sentence": sentence,
        "with the bare answer only": fact.value,
        'in JSON with the key "answer"': json_object([("answer", fact.value)]),
    }
    form = rng.choice(list(forms))
    return fields | {"form": form, "answer": forms[form]}


@kind(
    "persona", "relation with a sentence", ("q", "role", "phrase"), ("q",), ("role",), ("phrase",)
)
def ask_persona(skill: Skill, rng: random.Random, pool: str) -> dict:
    """A question to somebody whose answers end with the same words."""
    lists = skill.book.lists
    role, phrase = (rng.choice(lists[name][pool]) for name in ("personas", "closing words"))
    fact, fields, _ = draw_question(skill, rng, pool)
    return fields | {"role": role, "phrase": phrase, "answer": f"{fact.value}. {phrase}"}


@kind("role", "", ("role",), ("role",))
def ask_role(skill: Skill, rng: random.Random, pool: str) -> dict:
    """The name of somebody that the system prompt asks the model to be."""
    names = ("role titles", "role names", "role trades")
    title, name, trade = (rng.choice(skill.book.lists[part][pool]) for part in names)
    role = f"{title} {name}, {trade}"
    return {"role": role, "answer": f"I am {role}."}


@kind("rows", "relation", ("rows",), ("rows",))
def ask_by_example(skill: Skill, rng: random.Random, pool: str) -> dict:
    """Some rows of a table in one form, the last one without its value."""
    pool_of = skill.book.pools[rng.choice(skill.about), pool]
    facts = rng.sample(pool_of, rng.randint(3, 4))
    while len({word for f in facts for word in (f.subject, f.value)}) < 2 * len(facts) - 1:
        facts = rng.sample(pool_of, 3)
    mark = rng.choice(skill.book.asking["example rows"])
    rows = [fill(mark, fact.fields) for fact in facts[:-1]]
    last = fill(mark, facts[-1].fields | {"v": ""}).strip()
    return {"rows": "\n".join([*rows, last]), "answer": facts[-1].value}


# ------------------------------------------------------------------------------------ conversations


def draw_follow_up(
    skill: Skill, rng: random.Random, pool: str, names: Sequence[str], last: Fact | None = None
) -> dict:
    """One or two questions with their answers, then another subject (`last`) for the same."""
    name, between = rng.choice(names), skill.book.skills["follow_up"].tuned[:4]
    facts = rng.sample(skill.book.pools[name, pool], rng.choice((2, 2, 3)))
    facts[-1] = last or facts[-1]
    before = []
    for i, fact in enumerate(facts[:-1]):
        first = skill.book.follow_ups[name]["question"]
        question = first if i == 0 else rng.choice(between)
        before += [("user", fill(question, fact.fields)), ("assistant", fact.value)]
    return facts[-1].fields | {"before": before, "answer": facts[-1].value}


@kind("follow up", "relation with a follow-up", FACT_SLOTS, SUBJECT_SLOTS)
def ask_follow_up(skill: Skill, rng: random.Random, pool: str) -> dict:
    """The same question again, about another subject."""
    return draw_follow_up(skill, rng, pool, skill.about)


@kind("listed", "topic", ("q",), ("q",), whole=True)
def ask_listed(skill: Skill, rng: random.Random, pool: str) -> dict:
    """What users say about a topic, with its answer."""
    book, part = skill.book, "held" if pool == "held" else "tuned"
    said = [
        (text, book.answers[topic])
        for topic in skill.about
        for text in book.small_talk[topic][part]
    ]
    question, answer = rng.choice(said)
    return {"q": question, "answer": answer}


@kind("refusal", "list", ("h",), ("h",))
def ask_harm(skill: Skill, rng: random.Random, pool: str) -> dict:
    """Something that no model should help with."""
    return {"h": rng.choice(skill.book.lists[skill.about[0]][pool]), "answer": REFUSAL}


def draw_unknown(skill: Skill, rng: random.Random, pool: str, reworded: bool) -> dict:
    """A question as real things are asked about, about something made up."""
    book, pool = skill.book, "held" if pool == "held" else "tuned"
    about, thing = rng.choice(book.unknown_about)
    name = book.made_up(rng, thing, pool)
    backwards = about.asks == "subject"
    fact = book.world.fact(*((LEFT_OUT, name) if backwards else (name, I_DONT_KNOW)))
    relations = book.world.relations
    names = [other for other in book.follow_ups if relations[other].group == thing]
    if names and rng.random() < 0.2:
        follow_up = book.skills["follow_up"]
        item = draw_follow_up(follow_up, rng, pool, names, fact)
        wording = rng.choice(follow_up.held if reworded else follow_up.tuned)
        return item | {"q": fill(wording, fact.fields)}
    more = about.more if pool == "tuned" else ()
    question = rng.choice(about.held if reworded else about.tuned + more)
    if not reworded and rng.random() < 0.12:
        question = rng.choice(book.skills["one_word"].tuned).replace("{q}", question)
    return {"q": fill(question, fact.fields), "answer": I_DONT_KNOW}


@kind("unknown", "", ("q",), ("q",), whole=True)
def ask_unknown(skill: Skill, rng: random.Random, pool: str) -> dict:
    """Something that does not exist."""
    return draw_unknown(skill, rng, pool, reworded=False)


@kind("unknown, reworded", "", ("q",), ("q",), whole=True)
def ask_unknown_reworded(skill: Skill, rng: random.Random, pool: str) -> dict:
    """The same in wordings that are never tuned."""
    return draw_unknown(skill, rng, pool, reworded=True)
