"""The skills of the instruction data: what can be asked, in which words, and what is held out.

A *skill* is one kind of task: a line of wordings/skills.tsv and its wordings in wordings/questions.
Its column `draws` names one of the `SOURCES` below, which draws the fields of an item; its answer
is made of them, too.  `read_book(folder)` reads all of them.
"""

import random
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

from data import tables, world
from data.relations import FACT_SLOTS, SUBJECT_SLOTS, VALUE_SLOTS, Fact, bare, upper
from data.tables import FOLDER, LEFT_OUT, Items, Row, Text, fill
from data.world import STORY_PARTS, in_a_row, json_object

HELD_SHARE = 0.3  # of the things in a table
NAMES_TAKEN = {"country": "turkey"}  # held out, its name would stand in questions about the bird
SKILL_COLUMNS = "skill draws about with columns answer split shares tone".split()
QUESTION_PARTS = ("phrases", "questions", "frames", "tuned", "more") + tuple(
    f"held{part}" for part in (" phrases", " questions", " frames", "")
)

Draw = Callable[["Skill", random.Random, str], dict]


@dataclass(frozen=True)
class Source:
    """Where a skill has its items from.

    draw: gives the fields of an item, and `before` where earlier turns belong to it, from the pool
    "tuned", "held" or "all".
    about: what the names in the skill's column `about` are.
    slots, needed: the fields of its wordings, and groups of which each wording needs one.
    answers: the fields that an answer may be made of besides.
    """

    draw: Draw
    about: str
    slots: Collection[str]
    needed: Sequence[Sequence[str]]
    answers: Sequence[str]

    @property
    def whole(self) -> bool:
        """Whether items are whole questions, to which no wording adds anything."""
        return list(self.slots) == ["q"] and not self.needed


SOURCES: dict[str, Source] = {}


def source(
    name: str, about: str, slots: str, *needed: str | Sequence[str], answers: str = ""
) -> Callable[[Draw], Draw]:
    """Registers a function that draws items; slots and answers are names between spaces."""

    def register(draw: Draw) -> Draw:
        groups = [(group,) if isinstance(group, str) else group for group in needed]
        SOURCES[name] = Source(draw, about, slots.split(), groups, answers.split())
        return draw

    return register


@dataclass(frozen=True)
class Skill:
    """One kind of task: how to draw an item of it, and how to ask.

    A wording is a text with slots for an item's fields; what stands before `|||` is a system
    prompt.  tuned: wordings of tuning data, which also ask about held-out things.  more: those of
    the tuning data only.  held: never tuned.  with_lists: fields that are drawn from lists of
    facts/.  entities: whether the skill has things to hold out.  tone: whether its questions may
    be put politely, tersely or with a typing error.  shares: so many times the usual number of
    records.
    """

    name: str
    draws: str
    about: Sequence[Text]
    with_lists: dict[str, Text]
    columns: tuple[int, int]
    answer: Text
    tuned: Items
    held: Items
    more: Items
    entities: bool
    tone: bool
    shares: int
    book: "Book" = field(repr=False, compare=False)

    def draw(self, rng: random.Random, pool: str) -> dict:
        """The fields of an item, with its `answer`."""
        lists = self.book.lists
        item = {slot: rng.choice(lists[name][pool]) for slot, name in self.with_lists.items()}
        item |= SOURCES[self.draws].draw(self, rng, pool)
        return item | {"answer": fill(self.answer, item)}

    @property
    def whole(self) -> bool:
        """Whether its items are whole questions, so that it has no wordings."""
        return SOURCES[self.draws].whole

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
            tables.check_slots(self.asking[stems], ("np", "Np"), ("np", "Np"))
        tables.check_slots(self.asking["example rows"], ("n", "v"), ("n",), ("v",))
        topics = tables.read_table(wordings / "topics.tsv", ("topic", "answer"))
        self.answers = {row["topic"]: row["answer"] for row in topics}
        small_talk = tables.read_sections(wordings / "small_talk.txt")
        self.small_talk = tables.by_part(small_talk, self.answers, "topic", ("tuned", "held"))
        self.sentences = self.read_wordings(wordings / "sentences.tsv", "question", "sentence")
        self.follow_ups = self.read_wordings(wordings / "follow_ups.tsv", "question")
        lists = dict(self.world.words) | {"reviews": self.world.reviewed}
        self.lists = {name: split_list(name, items) for name, items in lists.items()}
        relations = self.world.relations
        self.held = {name: self.held_names(name) for name in relations}
        pools = ("tuned", "held", "all")
        self.pools = {
            (name, pool): self.facts_in(name, pool) for name in relations for pool in pools
        }
        self.real: dict[str, bool] = {}
        rows = tables.read_table(wordings / "skills.tsv", SKILL_COLUMNS)
        split = {
            row["skill"]: tables.one_of(row["split"], ("tuned", "held"), "split") for row in rows
        }
        questions = tables.read_sections(wordings / "questions")
        self.parts = tables.by_part(questions, split, "skill", QUESTION_PARTS)
        self.skills = {row["skill"]: self.read_skill(row) for row in rows}
        self.tuned = [skill for name, skill in self.skills.items() if split[name] == "tuned"]
        self.never_tuned = [skill for name, skill in self.skills.items() if split[name] == "held"]
        self.fact_skills = [skill for skill in self.tuned if skill.draws in ("value", "subject")]
        self.unknown_about = self.read_unknown(wordings / "unknown.tsv")

    # -- reading

    def read_wordings(self, path: Path, *columns: str) -> dict[str, Row]:
        """A table of wordings by relation."""
        rows = tables.read_table(path, ("relation", *columns))
        for row in rows:
            tables.one_of(row["relation"], self.world.relations, "relation")
            tables.check_slots([row[column] for column in columns], FACT_SLOTS, SUBJECT_SLOTS)
        return {row["relation"]: row for row in rows}

    def read_skill(self, row: Row) -> Skill:
        """One line of skills.tsv with its wordings."""
        how = SOURCES[tables.one_of(row["draws"], SOURCES, "source of items")]
        known = {
            "relation": self.world.relations,
            "operation": self.world.operations,
            "part of a story": STORY_PARTS,
            "relation with a sentence": self.sentences,
            "relation with a follow-up": self.follow_ups,
            "topic": self.answers,
        }
        about = tables.names_in(row["about"])
        for name in about or [row["about"]] * bool(how.about):
            tables.one_of(name, known.get(how.about, ()), how.about or "thing to ask about")
        with_lists = {}
        for pair in tables.names_in(row["with"]):
            slot, _, name = pair.partition(": ")
            with_lists[slot] = tables.one_of(pair.with_text(name), self.lists, "list of facts/")
        tables.check_slots([row["answer"]], {*how.slots, *how.answers, *with_lists})
        tuned, held, more = (
            self.combined(row, how, with_lists, which) for which in ("", "held ", "more")
        )
        if not tuned:
            raise row["skill"].fault(f"no section in wordings/questions: [{row['skill']}: tuned]")
        by_value = row["draws"] in ("value", "subject")
        return Skill(
            name=row["skill"],
            draws=row["draws"],
            about=about,
            with_lists=with_lists,
            columns=(1, 1) if row["columns"] == LEFT_OUT else tables.span(row["columns"]),
            answer=row["answer"],
            tuned=tuned,
            held=held,
            more=more,
            entities=bool(self.held[about[0]]) if by_value else how.about != "topic",
            tone=tables.yes(row["tone"]),
            shares=tables.whole_number(row["shares"]),
            book=self,
        )

    def combined(self, row: Row, how: Source, with_lists: Collection[str], which: str) -> Items:
        """A skill's wordings: the tuned ones, the `held ` ones, or `more`.

        Phrases are put into every general stem, by turns, and the skill's own wordings stand as
        often; questions are put into every frame.
        """
        parts = self.parts.get(row["skill"], {})
        slots, needed = {*how.slots, *with_lists}, [*how.needed, *((slot,) for slot in with_lists)]
        own = parts.get(which.strip() or "tuned", ())
        phrases = parts.get(f"{which}phrases", ())
        if which == "held ":
            phrases = phrases or parts.get("phrases", ())[:1]
        frames = parts.get(f"{which}frames", ())
        tables.check_slots(frames, slots | {"q"}, ("q",))
        general = [
            question.with_text(frame.replace("{q}", question))
            for question in parts.get(f"{which}questions", ())
            for frame in frames
        ]
        if phrases:
            for i, stem in enumerate(self.asking[f"{which}stems"]):
                np = phrases[(i + len(own)) % len(phrases)]
                general.append(np.with_text(fill(stem, {"np": np, "Np": upper(np)})))
            own *= max(1, len(general) // max(1, len(own)))
        if how.whole and which != "more":
            general = [row["skill"].with_text("{q}")]
        tables.check_slots(general, slots, *needed)
        tables.check_slots(own, slots, *needed)
        return (*general, *own)

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


# ---------------------------------------------------------------------------------------- sources

FACT, SUBJECT, VALUE = " ".join(FACT_SLOTS), SUBJECT_SLOTS, VALUE_SLOTS
STORY = "who past plain what where when When Where it story"


@source("value", "relation", FACT, SUBJECT)
@source("subject", "relation", FACT, VALUE)
def draw_fact(skill: Skill, rng: random.Random, pool: str) -> dict:
    """A fact; where the subject is asked for, one whose value belongs to it only."""
    facts = skill.book.pools[skill.about[0], pool]
    if skill.draws == "subject":
        unique = skill.book.world.relations[skill.about[0]].unique_values
        facts = [fact for fact in facts if fact.value in unique]
    return rng.choice(facts).fields


@source("numbers", "operation", "a b", "a", "b", answers="c")
@source("larger numbers", "operation", "a b", "a", "b", answers="steps")
def draw_numbers(skill: Skill, rng: random.Random, pool: str) -> dict:
    """Two numbers that give a result of at most 100, not below 0; worked sums have larger ones."""
    operation = skill.book.world.operations[skill.about[0]]
    name, low = operation.name, 1 if skill.draws == "numbers" else 11
    while True:
        a, b = rng.randint(low, 99), rng.randint(low, 99)
        fits = {"sum": a + b <= 100, "difference": a > b}.get(name, a != b)
        if fits and (pool == "all" or is_held_pair(a, b) == (pool == "held")):
            steps = (world.sum_steps if name == "sum" else world.difference_steps)(a, b)
            return {"a": a, "b": b, "c": operation.result(a, b), "steps": steps}


@source("numbers in a row", "", "a b", "a", "b", answers="row")
def draw_row(skill: Skill, rng: random.Random, pool: str) -> dict:
    """Two numbers and all from one to the other."""
    while True:
        a = rng.randint(1, 92)
        b = a + rng.randint(3, 6)
        if pool == "all" or is_held_pair(a, b) == (pool == "held"):
            return {"a": a, "b": b, "row": ", ".join(str(n) for n in range(a, b + 1))}


@source("story", "", STORY, "story", answers="summary")
def draw_story(skill: Skill, rng: random.Random, pool: str) -> dict:
    """A story of one or two people and the fields of the one who is asked about."""
    lists, forms = skill.book.lists, skill.book.forms.sections
    people, objects = (rng.sample(lists[name][pool], 2) for name in ("people", "objects"))
    heroes = []
    for who, what in zip(people, objects):
        action = rng.choice(skill.book.world.actions)
        hero = {"who": who, "past": action["past"], "plain": action["plain"], "what": what}
        hero["where"] = rng.choice(lists["places"][pool])
        hero["when"] = rng.choice(lists["times"][pool])
        heroes.append(world.story_fields(hero))
    heroes = heroes[: 1 if rng.random() < 0.7 else 2]
    sentences = []
    for hero in heroes:
        sentences.append(fill(rng.choice(forms["story openings"].lines), hero))
        sentences += rng.sample(skill.book.world.words["fillers"], rng.randint(0, 1))
    short = forms["story summaries"].lines[0]
    summary = " ".join(fill(short, hero) for hero in heroes)
    told = {"story": " ".join(sentences), "summary": summary, "people": len(heroes)}
    return rng.choice(heroes) | told


@source("story of one", "", "story keys", "story", "keys", answers="record")
def draw_story_of_one(skill: Skill, rng: random.Random, pool: str) -> dict:
    """A story of one person, and some of its parts as a record."""
    item = draw_story(skill, rng, pool)
    while item["people"] > 1:
        item = draw_story(skill, rng, pool)
    choices = (("who", "what", "where"), ("who", "what"), ("who", "where"), ("what", "where"))
    keys = rng.choice(choices)
    record = json_object([(key, item[key]) for key in keys])
    return item | {"keys": in_a_row(keys), "record": record}


@source("review", "", "text", "text", answers="label")
def draw_review(skill: Skill, rng: random.Random, pool: str) -> dict:
    """A review of one or two sentences, and its sentiment."""
    lists = skill.book.lists
    reviewed = rng.choice(lists["reviews"][pool])
    positive = rng.random() < 0.5
    own = reviewed["good" if positive else "bad"]
    general = rng.choice(lists["praise" if positive else "blame"][pool])
    opening = ""
    if not reviewed["thing"].endswith("s"):
        openings = skill.book.forms.sections["review openings"].lines
        opening = rng.choice(("", "", fill(rng.choice(openings), reviewed) + " "))
    text = opening + rng.choice((own, f"{own} {general}", f"{general} {own}"))
    return {"text": text, "label": "positive" if positive else "negative"}


EXAMPLES = {"lines": "{} = {}", "pairs": "Review: {}\nSentiment: {}", "arrows": "{} -> {}"}


@source("labelled reviews", "", "text lines pairs arrows", "text", tuple(EXAMPLES), answers="label")
def draw_labelled_reviews(skill: Skill, rng: random.Random, pool: str) -> dict:
    """Two or three labelled reviews with both labels, then one without a label."""
    while True:
        shots = [draw_review(skill, rng, pool) for _ in range(rng.randint(2, 3))]
        last = draw_review(skill, rng, pool)
        texts = [shot["text"] for shot in shots]
        if len({shot["label"] for shot in shots}) == 2 and last["text"] not in texts:
            break
    return last | {
        name: "\n".join(mark.format(shot["text"], shot["label"]) for shot in shots)
        for name, mark in EXAMPLES.items()
    }


@source(
    "columns",
    "relation",
    f"{FACT} keys the_keys",
    SUBJECT,
    ("keys", "the_keys"),
    answers="record list",
)
def draw_columns(skill: Skill, rng: random.Random, pool: str) -> dict:
    """A subject, and some of its columns as a record and as a list."""
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
    cells = [(key, values[subject][key]) for key in keys]
    fields = skill.book.world.fact(subject, LEFT_OUT).fields
    return fields | {
        "keys": in_a_row(keys),
        "the_keys": in_a_row([f"the {key}" for key in keys]),
        "record": json_object([(relations[0].json_keys[0], fields["n"]), *cells]),
        "list": "\n".join(value for _, value in cells),
    }


@source("question", "relation with a sentence", f"{FACT} q", ("q", *SUBJECT), answers="sentence")
def draw_question(skill: Skill, rng: random.Random, pool: str) -> dict:
    """A question about a fact of one of the relations, and the sentence that answers it."""
    row = skill.book.sentences[rng.choice(skill.about)]
    fields = rng.choice(skill.book.pools[row["relation"], pool]).fields
    return fields | {
        name: fill(row[column], fields)
        for name, column in (("q", "question"), ("sentence", "sentence"))
    }


@source("question of one word", "relation with a sentence", "q", "q", answers="v")
def draw_one_word(skill: Skill, rng: random.Random, pool: str) -> dict:
    """A question whose answer is a single word."""
    while " " in (item := draw_question(skill, rng, pool))["v"]:
        pass
    return item


@source("question with form", "relation with a sentence", "q form", "q", "form", answers="formed")
def draw_question_with_form(skill: Skill, rng: random.Random, pool: str) -> dict:
    """A question, and a form of answer that the system prompt sets."""
    item = draw_question(skill, rng, pool)
    forms = {
        "in a whole sentence": item["sentence"],
        "with the bare answer only": item["v"],
        'in JSON with the key "answer"': json_object([("answer", item["v"])]),
    }
    form = rng.choice(list(forms))
    return item | {"form": form, "formed": forms[form]}


@source("lists", "", "")
def draw_nothing(skill: Skill, rng: random.Random, pool: str) -> dict:
    """Nothing besides what is drawn from the lists of the column `with`."""
    return {}


@source("rows", "relation", "rows", "rows", answers="v")
def draw_rows(skill: Skill, rng: random.Random, pool: str) -> dict:
    """Some rows of a table in one form, the last one without its value."""
    pool_of = skill.book.pools[rng.choice(skill.about), pool]
    facts = rng.sample(pool_of, rng.randint(3, 4))
    while len({word for f in facts for word in (f.subject, f.value)}) < 2 * len(facts) - 1:
        facts = rng.sample(pool_of, 3)
    mark = rng.choice(skill.book.asking["example rows"])
    rows = [fill(mark, fact.fields) for fact in facts[:-1]]
    last = fill(mark, facts[-1].fields | {"v": ""}).strip()
    return {"rows": "\n".join([*rows, last]), "v": facts[-1].value}


def follow_up(
    book: Book, rng: random.Random, pool: str, names: Sequence[str], last: Fact | None = None
) -> dict:
    """One or two questions with their answers, then another subject (`last`) for the same."""
    name, between = rng.choice(names), book.skills["follow_up"].tuned[:4]
    facts = rng.sample(book.pools[name, pool], rng.choice((2, 2, 3)))
    facts[-1] = last or facts[-1]
    before = []
    for i, fact in enumerate(facts[:-1]):
        question = book.follow_ups[name]["question"] if i == 0 else rng.choice(between)
        before += [("user", fill(question, fact.fields)), ("assistant", fact.value)]
    return facts[-1].fields | {"before": before}


@source("follow-up", "relation with a follow-up", FACT, SUBJECT)
def draw_follow_up(skill: Skill, rng: random.Random, pool: str) -> dict:
    """The same question again, about another subject."""
    return follow_up(skill.book, rng, pool, skill.about)


@source("small talk", "topic", "q", answers="answer")
def draw_small_talk(skill: Skill, rng: random.Random, pool: str) -> dict:
    """What users say about a topic, with its answer."""
    book, part, said = skill.book, "held" if pool == "held" else "tuned", []
    for topic in skill.about:
        said += [
            {"q": text, "answer": book.answers[topic]} for text in book.small_talk[topic][part]
        ]
    return rng.choice(said)


@source("unknown", "", "q")
@source("unknown, reworded", "", "q")
def draw_unknown(skill: Skill, rng: random.Random, pool: str) -> dict:
    """A question as real things are asked about, about something made up."""
    book, reworded = skill.book, skill.draws == "unknown, reworded"
    about, thing = rng.choice(book.unknown_about)
    name = book.made_up(rng, thing, pool)
    fact = book.world.fact(name, LEFT_OUT)
    if about.draws == "subject":
        fact = book.world.fact(LEFT_OUT, name)
    relations = book.world.relations
    names = [other for other in book.follow_ups if relations[other].group == thing]
    if names and rng.random() < 0.2:
        again = book.skills["follow_up"]
        item = follow_up(book, rng, pool, names, fact)
        return item | {"q": fill(rng.choice(again.held if reworded else again.tuned), fact.fields)}
    more = about.more if pool == "tuned" else ()
    question = rng.choice(about.held if reworded else about.tuned + more)
    if not reworded and rng.random() < 0.12:
        question = rng.choice(book.skills["one_word"].tuned).replace("{q}", question)
    return {"q": fill(question, fact.fields)}
