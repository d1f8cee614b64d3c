"""The documents that a base model is pretrained on, written from the small world's facts.

`documents(seed)` is an endless, deterministic stream of plain text.  The facts and their wordings
come from relations.py, the forms of documents from documents/: kinds.tsv says how often each kind
is written, forms.tsv how those about facts are built, the text files hold the lines of the others.

Four rules shape the documents, because a model of three million parameters depends on them:

* **Every fact in many wordings, orders and both directions.**  A fact seen in one wording is
  memorised, but it cannot be asked for afterwards (Allen-Zhu and Li, "Physics of Language Models:
  Part 3.1", 2023).
* **Half of the statements put the value at the start of a line, after its key.**  In a GPT-2-like
  tokenizer ` Paris` and `Paris` are different tokens, and a chat answer begins with the second one.
  A small model can only say there what it has met there, so glossaries, registers and fact sheets
  are as frequent as running text.
* **Something to copy.**  Lines, names and sayings come twice, made of words that mean nothing: a
  small model learns to repeat what it has never met only where that is often asked of it.
* **No chat.**  No role, no instruction with its answer, no question with its answer: on an exam
  sheet a question is followed by the next question.  What tuning adds can then be told from what
  the base already had.
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar

from data.relations import (
    GROUPS,
    Fact,
    Operation,
    Relation,
    bare,
    definite,
    read_world,
    upper,
    with_article,
)
from data.tables import (
    FOLDER,
    LEFT_OUT,
    Row,
    Sections,
    Text,
    alternatives,
    check_all,
    fill,
    fill_each,
    names_in,
    one_of,
    read_sections,
    read_table,
    whole_number,
    yes,
)

FLOOR = 60  # a relation of fewer facts is written as often as one of this many
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

# ------------------------------------------------------------------------------- the forms of documents

FORM_COLUMNS = ("kind", "times", "about", "rows", "same", "heading", "row", "between")
STATEMENTS = ("line", "forward", "sentence", "running", "value")
STORY_PARTS = ("who", "what", "where", "when")
STORY_SLOTS = ("who", "past", "plain", "what", "where", "when", "When", "Where", "it")
STORY_SECTIONS = ("openings", "summaries", "summary headings") + tuple(
    f"{part}: {kind}" for part in STORY_PARTS for kind in ("notes", "short notes", "questions")
)
# the slots of each section of documents/lines.txt, and groups of which one has to stand in a line
LINE_SLOTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "plain layouts": (("K", "k", "v", "i"), ("K", "k"), ("v",)),
    "layouts": (("K", "k", "v", "i"), ("K", "k"), ("v",)),
    "tables": (("subject", "value"), ("subject",), ("value",)),
    "comparisons": (("first", "second"), ("first",), ("second",)),
    "records": (("n", "k"), ("n",), ("k",)),
    "exams": ((),),
    "worked sums": (("x",), ("x",)),
    "plans": (("day", "who", "place", "Place"), ("day",), ("place", "Place")),
    "number rows": (("first", "last"),),
    "drafts": ((),),
    "visitors": (("who",), ("who",)),
    "closing words": (("who", "words"), ("words",)),
    "phrases": (("Occasion", "occasion", "words"), ("Occasion", "occasion"), ("words",)),
}


@dataclass(frozen=True)
class Form:
    """One design of a document about facts: a line of forms.tsv, which says what its cells mean."""

    about: str
    rows: tuple[int, int] | None
    same: frozenset[str]
    heading: Sequence[Text]
    row: Sequence[Text]
    between: Sequence[Text]


@dataclass(frozen=True)
class Forms:
    """The forms of documents of one folder of tables."""

    rates: Mapping[str, int]
    fact_kinds: Sequence[str]
    designs: Mapping[str, Sequence[Form]]
    lines: Sections
    listings: Sections
    stories: Sections
    reviews: Sections


def span(cell: Text) -> tuple[int, int]:
    """`5-12` -> (5, 12)."""
    found = re.fullmatch(r"(\d+)-(\d+)", cell)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise cell.fault(f"not two numbers, the lower one first, like 5-12: {cell}")
    return int(found[1]), int(found[2])


def form_of(row: Row) -> Form:
    """A line of forms.tsv."""
    same = [] if row["same"] == LEFT_OUT else names_in(row["same"])
    for name in same:
        one_of(name, ("row", "layout", "key"), "thing that can be the same in all rows")
    one_of(row["about"], ("entity", "relation", "any"), "answer, entity, relation or any")
    form = Form(
        row["about"],
        None if row["rows"] == "all" else span(row["rows"]),
        frozenset(same),
        alternatives(row["heading"]),
        alternatives(row["row"]),
        alternatives(row["between"]),
    )
    if form.rows is None and form.about != "entity":
        raise row["rows"].fault("only of an entity all facts are told: write how many, like 5-12")
    if "key" in form.same and form.about != "relation":
        raise row["same"].fault("only facts of one relation have the same key")
    check_all(form.heading, ("title", "Title", "keys"))
    check_all(form.row, (*STATEMENTS, "key", "Key"), STATEMENTS)
    check_all(form.between, ())
    return form


@cache
def read_forms(folder: Path = FOLDER) -> Forms:
    """The forms of documents; Writer.KINDS are those that are not built from forms.tsv alone."""
    documents, relations = folder / "documents", read_world(folder).relations
    designs: dict[str, list[Form]] = {}
    rows = read_table(documents / "forms.tsv", FORM_COLUMNS, key=0)
    for row in rows:
        designs.setdefault(row["kind"], []).extend([form_of(row)] * whole_number(row["times"]))
        if len({form.about == "entity" for form in designs[row["kind"]]}) > 1:
            raise row["about"].fault("a kind is about entities in all of its forms, or in none")
    kinds = read_table(documents / "kinds.tsv", ("kind", "rate", "facts only"))
    for row in kinds:
        one_of(row["kind"], {*designs, *Writer.KINDS}, "kind of document")
    for row in rows:
        one_of(row["kind"], [kind["kind"] for kind in kinds], "kind of document")
    lines = read_sections(documents / "lines.txt")
    for name, slots in LINE_SLOTS.items():
        check_all(lines[name], *slots)
    listings = read_sections(documents / "listings.txt")
    for name, headings in listings.items():
        one_of(name, relations, "relation")
        check_all(headings, ("v", "V"), ("v", "V"))
    stories = read_sections(documents / "stories.txt")
    for name in STORY_SECTIONS:
        check_all(stories[name], STORY_SLOTS)
    reviews = read_sections(documents / "reviews.txt")
    check_all(reviews["openings"], ("thing",), ("thing",))
    return Forms(
        {row["kind"]: whole_number(row["rate"]) for row in kinds},
        [row["kind"] for row in kinds if yes(row["facts only"])],
        designs,
        lines,
        listings,
        stories,
        reviews,
    )


# ---------------------------------------------------------------------------------------- the writer


class Deck:
    """Cards dealt without replacement, shuffled anew when they are all dealt: each gets its turn."""

    def __init__(self, cards: Sequence, rng: random.Random) -> None:
        self.cards, self.rng, self.left = list(cards), rng, []

    def deal(self):
        """The next card."""
        if not self.left:
            self.left = self.cards[:]
            self.rng.shuffle(self.left)
        return self.left.pop()


def sum_pairs() -> list[tuple[int, int]]:
    """All with a sum up to 100; the small ones, which the others are worked out with, six times."""
    pairs = [(a, b) for a in range(1, 100) for b in range(1, 101 - a)]
    return pairs + 5 * [(a, b) for a, b in pairs if max(a, b) <= 20]


def difference_pairs() -> list[tuple[int, int]]:
    """All with a difference of 0 or more; the small ones six times."""
    pairs = [(a, b) for a in range(1, 101) for b in range(1, a + 1)]
    return pairs + 5 * [(a, b) for a, b in pairs if a <= 20]


class Writer:
    """Writes documents; `tally` counts statements by relation and by where the value stands.

    tally[name, "line"]: value at a line's start, after its key (`back`: subject after its value).
    tally[name, "sentence"]: a whole sentence on a line after its heading.
    tally[name, "running"]: all others.
    """

    def __init__(
        self,
        seed: int,
        wordings: int | None = None,
        line_start: bool = True,
        group: str | None = None,
        folder: Path = FOLDER,
    ) -> None:
        self.rng = random.Random(seed)
        self.wordings, self.line_start = wordings, line_start
        self.world, self.forms = read_world(folder), read_forms(folder)
        every = self.world.relations.values()
        self.relations = [relation for relation in every if group in (None, relation.group)]
        self.weights = [max(FLOOR, len(relation.facts)) for relation in self.relations]
        self.tally: Counter = Counter()
        self.served = {relation.name: 0.0 for relation in every}
        self.decks = {relation.name: Deck(relation.facts, self.rng) for relation in every}
        pairs = {"sum": sum_pairs(), "difference": difference_pairs()}
        self.pairs = {name: Deck(cards, self.rng) for name, cards in pairs.items()}
        self.entities = Deck([(g, s) for g in GROUPS for s in self.world.subjects[g]], self.rng)
        self.kinds = self.forms.fact_kinds if group else list(self.forms.rates)
        self.rates = [self.forms.rates[kind] for kind in self.kinds]

    def document(self) -> tuple[str, str]:
        """The next document and its kind."""
        kind = self.rng.choices(self.kinds, self.rates)[0]
        text = self.design(kind) if kind in self.forms.designs else self.KINDS[kind](self)
        return kind, text.strip()

    # -- small choices

    def pick(self, items: Sequence):
        """One of the items."""
        return items[int(self.rng.random() * len(items))]

    def choose(self, items: Sequence):
        """One of the items; no draw where there is one only."""
        return items[0] if len(items) == 1 else self.pick(items)

    def wording(self, items: Sequence[str]) -> str:
        """One of a fact's wordings; only the first few where the experiment asks for few."""
        return self.pick(items if self.wordings is None else items[: self.wordings])

    def words(self, name: str) -> str:
        """An item of a section of facts/."""
        return self.pick(self.world.words[name])

    def words_of_line(self, name: str, fields: Mapping[str, str]) -> str:
        """A line of a section of documents/lines.txt, filled in."""
        return fill(self.pick(self.forms.lines[name]), fields)

    def chance(self, p: float) -> bool:
        """True in so many cases."""
        return self.rng.random() < p

    def count(self, low: int, high: int) -> int:
        """A number from low to high."""
        return low + int(self.rng.random() * (high - low + 1))

    def relation(self) -> Relation:
        """The least served of four relations drawn by size: keeps facts of all equally frequent."""
        drawn = self.rng.choices(self.relations, self.weights, k=4)
        return min(drawn, key=lambda relation: self.served[relation.name])

    def deal(self, relation: Relation) -> Fact:
        """The next fact of a relation."""
        return self.decks[relation.name].deal()

    def note(self, relation: Relation, where: str) -> None:
        """Count a statement."""
        self.tally[relation.name, where] += 1
        self.served[relation.name] += 1 / max(FLOOR, len(relation.facts))

    # -- statements

    def layout(self) -> str:
        """Mostly a plain one: words that say nothing cost tokens."""
        plain = self.forms.lines["plain layouts"]
        return self.wording(plain if self.chance(0.65) else plain + self.forms.lines["layouts"])

    def lay_out(self, layout: str, key: str, value: str) -> str:
        """Key and value in a layout; with `line_start` off the value stands on its key's line."""
        layout = "{K}\n{v}" if key.endswith(" =") else layout
        text = fill(layout, {"K": upper(key), "k": key, "v": value, "i": self.count(1, 99)})
        if self.line_start:
            return text
        head, _, value = text.rpartition("\n")
        return f"{head.rstrip()} {value}"

    def turn(self, relation: Relation) -> bool:
        """Whether to write from value to subject; mostly so where each entity has its own value.

        Documents about an entity never turn a fact, and a fact read in one direction is not known
        in the other.
        """
        own_values = len(relation.unique_values) == len(relation.facts)
        often = relation.group in GROUPS and own_values
        return bool(relation.back_keys) and self.chance(0.8 if often else 0.45)

    def line(
        self,
        relation: Relation,
        fact: Fact,
        layout: str = "",
        key: str = "",
        back: bool | None = None,
    ) -> str:
        """A statement with the value at a line's start, after its key; sometimes turned round."""
        may_turn = relation.back_keys and fact.value in relation.unique_values
        turned = may_turn and (self.turn(relation) if back is None else back)
        self.note(relation, "back" if turned else "line")
        if not key or turned:
            key = self.wording(relation.back_keys if turned else relation.keys)
        key = fill(key, fact.fields)
        if self.chance(0.03):
            key = key.lower()
        value = fact.fields["n"] if turned else fact.value
        return self.lay_out(layout or self.layout(), key, value)

    def sentence(self, relation: Relation, fact: Fact) -> str:
        """A heading, then the fact as a whole sentence on the next line."""
        self.note(relation, "sentence")
        key = fill(self.wording(relation.keys), fact.fields)
        return f"{upper(key)}\n{fill(self.wording(relation.running), fact.fields)}"

    def running(self, relation: Relation, fact: Fact) -> str:
        """A statement in running text."""
        self.note(relation, "running")
        return fill(self.wording(relation.running), fact.fields)

    def short_value(self, relation: Relation, fact: Fact) -> str:
        """A value by itself, whose short key or column stands elsewhere in the form."""
        self.note(relation, "line")
        return fact.value

    # -- documents about facts

    def entity(self) -> tuple[str, list[tuple[Relation, Fact]]]:
        """A country, an element or an animal with all its facts, in random order."""
        group, subject = self.entities.deal()
        facts = self.world.subjects[group][subject][:]
        self.rng.shuffle(facts)
        return bare(subject), facts

    def design(self, kind: str) -> str:
        """A document in one of the forms of its kind that stand in forms.tsv."""
        designs, title = self.forms.designs[kind], ""
        entity = designs[0].about == "entity"
        if entity:
            title, facts = self.entity()
        form = self.choose(designs)
        relation = self.relation() if form.about == "relation" else None
        row = self.choose(form.row) if "row" in form.same else ""
        layout = self.layout() if "layout" in form.same else ""
        key, back = "", None
        if "key" in form.same and relation:
            back = bool(relation.unique_values) and self.turn(relation)
            key = self.wording(relation.keys)
        n = self.count(*form.rows) if form.rows else len(facts)
        rows, names = [], []
        for i in range(min(n, len(facts)) if entity else n):
            one = facts[i][0] if entity else relation or self.relation()
            fact = facts[i][1] if entity else self.deal(one)
            text = row or self.choose(form.row)
            rows.append(self.row(text, one, fact, layout, key, back))
            names.append(one.json_keys[1])
        title = relation.title if relation else title
        fields = {
            "title": title,
            "Title": upper(title),
            "keys": in_a_row(list(dict.fromkeys(names))),
        }
        heading = fill(self.choose(form.heading), fields)
        return heading + self.choose(form.between).join(rows)

    def row(
        self,
        text: str,
        relation: Relation,
        fact: Fact,
        layout: str = "",
        key: str = "",
        back: bool | None = None,
    ) -> str:
        """A row of a form, with the statements that it asks for."""
        if "{value}" in text and not self.line_start:
            text = text.replace("\n", " ")
        statements: dict[str, Callable[[], str]] = {
            "key": lambda: relation.json_keys[1],
            "Key": lambda: upper(relation.json_keys[1]),
            "value": lambda: self.short_value(relation, fact),
            "line": lambda: self.line(relation, fact, layout, key, back),
            "forward": lambda: self.line(relation, fact, layout, key, back=False),
            "sentence": lambda: self.sentence(relation, fact),
            "running": lambda: self.running(relation, fact),
        }
        return fill_each(text, statements)

    def encyclopaedia(self) -> str:
        """A title and a paragraph or two of running sentences, some facts twice in other words."""
        title, facts = self.entity()
        sentences = [self.running(relation, fact) for relation, fact in facts]
        if self.chance(0.5):
            sentences += [self.running(*self.pick(facts)) for _ in range(2)]
        last = "\n" + self.sentence(*self.pick(facts)) if self.chance(0.3) else ""
        return f"{upper(title)}\n\n{' '.join(sentences)}{last}"

    def table(self) -> str:
        """A table read by lines: under its title a subject, its value below, the next subject."""
        relation = self.relation()
        mark = self.pick(self.forms.lines["tables"])
        where = "line" if "\n" in mark and self.line_start else "running"
        turn = self.turn(relation)
        rows = []
        for _ in range(self.count(6, 14)):
            fact = self.deal(relation)
            turned = turn and fact.value in relation.unique_values
            self.note(relation, "back" if turned else where)
            subject, value = fact.fields["n"], fact.value
            if turned:
                subject, value = value, subject
            rows.append(fill(mark, {"subject": subject, "value": value}))
        text = f"{relation.title}\n\n" + "\n".join(rows)
        return text if where == "line" else text.replace(":\n", ": ")

    def listing(self) -> str:
        """What shares a value: the countries of a continent, red things, mammals."""
        name = self.pick(list(self.forms.listings))
        relation = self.world.relations[name]
        value = self.pick(sorted({fact.value for fact in relation.facts} - relation.unique_values))
        members = [fact.fields["n"] for fact in relation.facts if fact.value == value]
        self.rng.shuffle(members)
        members = members[: self.count(3, 10)]
        fields = {"v": value, "V": upper(value)}
        heading = fill(self.pick(self.forms.listings[name]), fields)
        if self.chance(0.5):
            return f"{heading}:\n" + "\n".join(members)
        return f"{heading}: {', '.join(members[:-1])} and {members[-1]}."

    def comparison(self) -> str:
        """Two subjects side by side, and numbers by size."""
        if self.chance(0.35):
            return self.number_comparison()
        relation = self.relation()
        rows = []
        for _ in range(self.count(2, 5)):
            one, two = self.deal(relation), self.deal(relation)
            if one.value == two.value:
                both = f"{upper(one.fields['n'])} and {two.fields['n']}"
                rows.append(f"{both} are alike here: {one.value}.")
                self.note(relation, "running")
                continue
            first, second = self.running(relation, one), self.running(relation, two)
            if first.endswith(".") and second.endswith("."):
                fields = {"first": first, "second": second}
                rows.append(self.words_of_line("comparisons", fields))
            else:
                rows += [first, second]
        return f"{relation.title}, compared\n\n" + "\n".join(rows)

    def number_comparison(self) -> str:
        """Which of two numbers is greater, or smaller, several times."""
        operation = self.world.operations[self.pick(("greater", "smaller"))]
        rows = []
        for _ in range(self.count(5, 12)):
            a, b = self.count(0, 100), self.count(0, 100)
            if a != b:
                rows.append(self.calculation(operation, a, b))
        return "\n".join(rows)

    def records(self) -> str:
        """Facts as JSON records, after a heading or in a row; keys in the table's own words."""
        headings = self.forms.lines["records"]
        rows = []
        if self.chance(0.7):
            for _ in range(self.count(2, 4)):
                title, facts = self.entity()
                facts = facts[: self.count(1, 3)]
                cells = [(facts[0][0].json_keys[0], title)]
                for relation, fact in facts:
                    self.note(relation, "running")
                    cells.append((relation.json_keys[1], fact.value))
                keys = in_a_row([key for key, _ in cells[1:]])
                heading = fill(self.pick(headings), {"n": title, "k": keys})
                rows.append(heading + json_object(cells))
        else:
            relation, bare_rows = self.relation(), self.chance(0.4)
            mark = self.pick(headings)
            for _ in range(self.count(3, 6)):
                fact = self.deal(relation)
                self.note(relation, "running")
                subject, value = relation.json_keys
                heading = "" if bare_rows else fill(mark, {"n": fact.fields["n"], "k": value})
                cells = [(subject, fact.fields["n"]), (value, fact.value)]
                rows.append(heading + json_object(cells))
        return "\n".join(rows)

    def exam(self) -> str:
        """An exam sheet: questions and tasks one below the other, without any answer."""
        heading = self.words_of_line("exams", {})
        rows = []
        if self.chance(0.25):
            tale = self.tale()
            rows = [f"Read the story. {tale['text']}"] + tale["questions"]
        else:
            fixed = self.relation() if self.chance(0.4) else None
            for _ in range(self.count(5, 10)):
                if self.chance(0.2):
                    operation = self.pick(list(self.world.operations.values()))
                    question = self.pick(operation.exam)
                    rows.append(fill(question, self.numbers(operation, *self.pair(operation))))
                else:
                    relation = fixed or self.relation()
                    fact = self.pick(relation.facts)
                    rows.append(fill(self.pick(relation.exam), fact.fields))
        if self.chance(0.5):
            rows = [f"{i}. {row}" for i, row in enumerate(rows, 1)]
        return f"{heading} {self.count(1, 40)}\n\n" + "\n".join(rows)

    # -- arithmetic

    def pair(self, operation: Operation) -> tuple[int, int]:
        """Two numbers for an operation."""
        if operation.name in self.pairs:
            return self.pairs[operation.name].deal()
        a = self.count(0, 100)
        return a, (a + self.count(1, 99)) % 101

    def numbers(self, operation: Operation, a: int, b: int) -> dict[str, str]:
        """The slots of a wording about two numbers."""
        c, in_words = operation.result(a, b), self.world.number_words
        fields = {"a": str(a), "b": str(b), "c": str(c), "d": str(a + b - c)}
        return fields | {"A": upper(in_words[a]), "b_words": in_words[b], "c_words": in_words[c]}

    def calculation(self, operation: Operation, a: int, b: int, layout: str = "") -> str:
        """One sum or comparison: on two lines (always, if a layout is given), or in a sentence."""
        fields = self.numbers(operation, a, b)
        if layout or self.chance(0.6):
            self.tally[operation.name, "line"] += 1
            layout = layout or self.layout()
            return self.lay_out(layout, fill(self.wording(operation.keys), fields), fields["c"])
        self.tally[operation.name, "running"] += 1
        return fill(self.wording(operation.running), fields)

    def worked(self, a: int, b: int, adding: bool) -> str:
        """A sum or difference with its steps, on the line after its key."""
        task = f"{a} + {b}" if adding else f"{a} - {b}"
        self.tally["sum" if adding else "difference", "steps"] += 1
        if adding and b >= 10 and self.chance(0.2):
            return f"{task}, in columns\n{sum_carrying(a, b)}"
        way = sum_steps(a, b) if adding else difference_steps(a, b)
        if self.chance(0.3):
            return upper(way) + "."
        layout = self.layout()
        return self.lay_out(
            layout, fill(self.wording(self.forms.lines["worked sums"]), {"x": task}), way
        )

    def sums(self) -> str:
        """A page of sums, differences or both: plain, in words, or worked step by step."""
        names = self.pick((("sum",), ("difference",), ("sum", "difference")))
        style = self.pick(("plain", "mixed", "mixed", "mixed", "steps", "lines", "lines", "lines"))
        layout, rows = self.layout(), []
        for _ in range(self.count(6, 14)):
            operation = self.world.operations[self.pick(names)]
            a, b = self.pair(operation)
            if style == "plain":
                self.tally[operation.name, "running"] += 1
                rows.append(fill(operation.running[0], self.numbers(operation, a, b)))
            elif a >= 10 and (style == "steps" or style == "mixed" and self.chance(0.3)):
                rows.append(self.worked(a, b, operation.name == "sum"))
            else:
                rows.append(self.calculation(operation, a, b, layout if style == "lines" else ""))
        return "\n".join(rows)

    # -- documents of other kinds

    def timetable(self) -> str:
        """Days, months, letters and numbers in their order, and a plan of the week."""
        days, months = (
            [fact.subject for fact in self.world.relations[name].facts]
            for name in ("day after", "month after")
        )
        kind = self.pick((0, 1, 1, 1, 1, 2, 3))
        if kind == 0:
            items = self.pick((days, months, list(ALPHABET), self.world.number_words))
            start = self.count(0, len(items) - 2)
            return self.pick((", ", "\n", " ")).join(items[start : start + self.count(4, 12)])
        if kind == 1:
            return "\n".join(self.number_row() for _ in range(self.count(2, 5)))
        who = self.words("people")
        rows = []
        for day in days if kind == 2 else months[self.count(0, 5) :][:6]:
            place = self.words("places")
            fields = {"day": day, "who": who, "place": place, "Place": upper(place)}
            rows.append(self.words_of_line("plans", fields))
        return f"Plan of {who}\n\n" + "\n".join(rows)

    def number_row(self) -> str:
        """Numbers in a row, mostly from one to the next, after a heading with first and last."""
        by = self.pick((1, 1, 1, 1, 1, 2, 10))
        start = self.count(0, 100 - 2 * by)
        numbers = [start + by * i for i in range(self.count(3, 9)) if start + by * i <= 100]
        fields = {"first": str(start), "last": str(numbers[-1])}
        heading = self.words_of_line("number rows", fields) if by == 1 else ""
        return heading + ", ".join(map(str, numbers))

    def hero(self) -> str:
        """Who a story is about: often a name that no list holds, which only the story tells."""
        return upper(self.made_up_word()) if self.chance(0.25) else self.words("people")

    def thing(self) -> str:
        """What a story is about."""
        if self.chance(0.3):
            return with_article(f"{self.words('qualities')} {self.noun()}")
        return self.words("objects")

    def place(self) -> str:
        """Where a story happens."""
        if self.chance(0.3):
            return f"{self.words('prepositions')} the {self.noun()}"
        return self.words("places")

    def noun(self) -> str:
        """A noun of the table of plurals."""
        return self.pick(self.world.relations["plural"].facts).fields["n"]

    def tale(self) -> dict:
        """A story of one or two people, with notes and questions about who did what, where, when."""
        heroes, forms = [], self.forms.stories
        for who in dict.fromkeys(self.hero() for _ in range(1 if self.chance(0.6) else 2)):
            action = self.pick(self.world.actions)
            parts = {"who": who, "past": action["past"], "plain": action["plain"]}
            parts["what"] = self.thing()
            heroes.append(parts | {"where": self.place(), "when": self.words("times")})
        text, notes, questions, summary = [], [], [], []
        fillers = self.world.words["fillers"] + self.world.words["spoken fillers"]
        for hero in heroes:
            fields = story_fields(hero)
            text.append(fill(self.pick(forms["openings"]), fields))
            text += self.rng.sample(fillers, self.count(0, 2))
            for part in STORY_PARTS:
                short = forms[f"{part}: short notes"] if len(heroes) == 1 else ()
                key = self.pick(forms[f"{part}: notes"] + short)
                notes.append((fill(key, fields), hero[part], part))
            for part in STORY_PARTS:
                questions.append(fill(self.pick(forms[f"{part}: questions"]), fields))
            summary.append(fill(self.pick(forms["summaries"]), fields))
        self.rng.shuffle(notes)
        self.rng.shuffle(questions)
        told, short = " ".join(text), " ".join(summary)
        return {"text": told, "notes": notes, "questions": questions, "summary": short}

    def story(self) -> str:
        """A story, often with a summary or with notes below it, now and then as a record."""
        tale = self.tale()
        parts = [tale["text"]]
        if self.chance(0.3):
            heading = self.pick(self.forms.stories["summary headings"])
            parts.append(f"{heading}\n{tale['summary']}")
        if self.chance(0.75):
            plainest = self.forms.lines["plain layouts"][:4]
            layout = self.layout() if self.chance(0.5) else self.pick(plainest)
            notes = tale["notes"][: self.count(1, 4)]
            for _, _, part in notes:
                self.tally["story " + part, "line"] += 1
            parts.append("\n".join(self.lay_out(layout, key, value) for key, value, _ in notes))
        elif len(tale["notes"]) == 4:
            value_of = {part: value for _, value, part in tale["notes"]}
            found = [(part, value_of[part]) for part in STORY_PARTS]
            cells = found if self.chance(0.5) else self.rng.sample(found, self.count(1, 3))
            keys = in_a_row([part for part, _ in cells])
            parts.append(f"As a record: {keys}\n{json_object(cells)}")
        return "\n\n".join(parts)

    def opinion(self) -> tuple[str, str]:
        """A short review, and whether it is positive or negative."""
        reviewed = self.pick(self.world.reviewed)
        positive = self.chance(0.5)
        particular = reviewed["good" if positive else "bad"]
        general = self.words("praise" if positive else "blame")
        ways = ((particular,), (general, particular), (particular, general), (general,))
        sentences = " ".join(self.pick(ways))
        if self.chance(0.6):
            opening = fill(self.pick(self.forms.reviews["openings"]), reviewed)
            sentences = f"{opening} {sentences}"
        return sentences, "positive" if positive else "negative"

    def review(self) -> str:
        """Reviews, each with its label on the next line: one alone, or several."""
        layout, key = self.layout(), self.pick(self.forms.reviews["labels"])
        rows = []
        for _ in range(self.pick((1, 2, 3, 4, 5))):
            text, label = self.opinion()
            if self.chance(0.1):
                self.tally["sentiment", "running"] += 1
                rows.append(f"This is a {label} review. {text}")
            else:
                self.tally["sentiment", "line"] += 1
                rows.append(f"{text}\n{self.lay_out(layout, key, label)}")
        return "\n\n".join(rows)

    def made_up_word(self) -> str:
        """One that means nothing: it can only be copied."""
        syllables = (
            self.words("onsets") + self.pick("aeiou") + self.words("codas")
            for _ in range(self.count(1, 3))
        )
        return "".join(syllables)

    def copied_line(self) -> str:
        """Words, real and made up, and numbers."""
        words = []
        for _ in range(self.count(1, 5)):
            real = self.pick(self.relation().facts).fields["n"]
            made_up, name = self.made_up_word(), upper(self.made_up_word())
            words.append(self.pick((real, made_up, name, str(self.count(0, 100)))))
        return " ".join(words)

    def character(self) -> str:
        """A name and a trade of somebody who does not exist."""
        if self.chance(0.4):
            trade = f"{self.noun()} {self.words('makers')}"
        else:
            trade = self.words("trades")
        trade = (self.words("adjectives") + " " if self.chance(0.5) else "") + trade
        names = self.world.words["people"] + self.world.words["qualities"]
        made_up = self.made_up_word(), self.made_up_word()
        name = self.pick((*made_up, self.noun(), self.pick(names)))
        return f"{self.words('titles')} {upper(name)}, {with_article(trade)}"

    def saying(self) -> str:
        """A few words that nobody can foresee."""
        phrase = []
        for _ in range(self.count(1, 4)):
            made_up, noun, quality = self.made_up_word(), self.noun(), self.words("qualities")
            phrase.append(self.pick((made_up, noun, quality, self.words("phrase words"))))
        return upper(self.pick((" ", " ", " ", ", ", "-")).join(phrase)) + self.pick("!!!.?")

    def copy_book(self) -> str:
        """What stands there already, word for word: lines, lists, names, sayings."""
        kind = self.count(0, 3)
        if kind == 0:
            rows = []
            for _ in range(self.count(2, 5)):
                rows += [self.copied_line()] * self.count(2, 3)
            return "Copy book\n\n" + "\n".join(rows)
        if kind == 1:
            copied = "\n".join(self.copied_line() for _ in range(self.count(3, 7)))
            return f"{self.words_of_line('drafts', {})}\n{copied}\n\nThe same again\n{copied}"
        if kind == 2:
            rows = []
            for _ in range(self.count(2, 5)):
                mark = self.pick(self.forms.lines["visitors"])
                rows.append(fill(mark, {"who": self.character()}))
            return "Visitors\n\n" + "\n".join(rows)
        return "\n\n".join(self.closing_words() for _ in range(self.count(1, 3)))

    def closing_words(self) -> str:
        """Lines that all end with the same saying."""
        saying = self.saying()
        values = [self.pick(self.relation().facts).value for _ in range(self.count(1, 3))]
        heading = self.pick(self.forms.lines["closing words"])
        heading = fill(heading, {"who": self.words("trades"), "words": saying})
        return "\n".join([heading, *(f"{value}. {saying}" for value in values)])

    def phrase_book(self) -> str:
        """Occasions, and what one says on them."""
        rows = []
        for phrase in self.rng.sample(self.world.phrases, self.count(3, 8)):
            fields = phrase | {"Occasion": upper(phrase["occasion"])}
            rows.append(self.words_of_line("phrases", fields))
        return "Phrase book\n\n" + "\n".join(rows)

    KINDS: ClassVar[dict[str, Callable[["Writer"], str]]] = {
        "encyclopaedia": encyclopaedia,
        "table": table,
        "list": listing,
        "story": story,
        "review": review,
        "sums": sums,
        "comparison": comparison,
        "timetable": timetable,
        "records": records,
        "copy book": copy_book,
        "exam": exam,
        "phrase book": phrase_book,
    }


# ----------------------------------------------------------------------------------- small texts


def in_a_row(words: Sequence[str]) -> str:
    """ "a, b and c"."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def json_object(cells: Sequence[tuple[str, str]]) -> str:
    """A JSON object on one line; whole numbers stand without quotation marks."""
    parts = (
        f'"{key}": {value}' if value.isdigit() else f'"{key}": "{value}"' for key, value in cells
    )
    return "{" + ", ".join(parts) + "}"


def story_fields(hero: Mapping[str, str]) -> dict[str, str]:
    """The slots of a wording about what somebody did."""
    when, where = upper(hero["when"]), upper(hero["where"])
    return {**hero, "When": when, "Where": where, "it": definite(hero["what"])}


def sum_steps(a: int, b: int) -> str:
    """`23 + 45` -> `3 + 5 = 8, 20 + 40 = 60, so 23 + 45 = 68`: ones, then tens, then both."""
    ones, tens = a % 10 + b % 10, a - a % 10 + b - b % 10
    if b < 10:
        rest = f"{a - a % 10} + {ones} = {a + b}"
    else:
        carry = f", {tens} + {ones} = {a + b}" if ones > 9 else ""
        rest = f"{a - a % 10} + {b - b % 10} = {tens}{carry}"
    return f"{a % 10} + {b % 10} = {ones}, {rest}, so {a} + {b} = {a + b}"


def difference_steps(a: int, b: int) -> str:
    """`62 - 45` -> `12 - 5 = 7, 50 - 40 = 10, so 62 - 45 = 17`: a ten is borrowed if needed."""
    ones, tens = a % 10, a - a % 10
    if ones < b % 10:
        ones, tens = ones + 10, tens - 10
    left, rest = ones - b % 10, tens - (b - b % 10)
    return f"{ones} - {b % 10} = {left}, {tens} - {b - b % 10} = {rest}, so {a} - {b} = {a - b}"


def sum_carrying(a: int, b: int) -> str:
    """The same by columns, with the carry in words."""
    ones, tens = a % 10 + b % 10, a // 10 + b // 10
    added = f"Ones: {a % 10} + {b % 10} = {ones}"
    if ones < 10:
        return f"{added}. Tens: {a // 10} + {b // 10} = {tens}. Together {a + b}."
    carried = f"write {ones - 10}, carry 1. Tens: {a // 10} + {b // 10} + 1 = {tens + 1}"
    return f"{added}, {carried}. Together {a + b}."


def documents(
    seed: int,
    wordings: int | None = None,
    line_start: bool = True,
    group: str | None = None,
    folder: Path = FOLDER,
) -> Iterator[str]:
    """An endless stream of pretraining documents: the same for a seed on every machine.

    The other arguments are for experiments on what a base must have read before it can be tuned:
    `wordings` allows only the first so many wordings of each fact, `line_start=False` never puts a
    value at a line's start, and `group` ("country", "element", "animal") leaves only statements
    about these.  `folder` holds the tables.
    """
    writer = Writer(seed, wordings, line_start, group, folder)
    while True:
        yield writer.document()[1]
