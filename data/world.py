"""The documents that a base model is pretrained on, written from the small world's facts.

`documents(seed)` is an endless, deterministic stream of plain text.  The facts and their wordings
come from relations.py.  The folder documents/ says how documents look: kinds.tsv how often each
kind is written, and the sections of its text files what stands in it, as README.md explains.  A
`Writer` fills their slots; it has the documents that need more than that as methods.

Why documents are as they are, in four rules, stands in README.md, too.
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import ClassVar

from data import tables
from data.relations import GROUPS, Fact, Operation, Relation, World, bare, definite, read_world
from data.relations import upper, with_article
from data.tables import FOLDER, SLOT, Items, Text, fill

FLOOR = 60  # a relation of fewer facts is written as often as one of this many
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
STORY_PARTS = ("who", "what", "where", "when")

# ------------------------------------------------------------------------------ the forms of documents

STEP = re.compile(r"([a-z]+) = (.+)")
DOCUMENT_SLOT = re.compile(r"(?:(each|(?:first )?\d+(?:-\d+)?) )?(a )?([^{}]+)")
# what the writer itself gives to some sections
GIVEN = set("k v i x n a b subject value first second last occasion words thing between".split())
GIVEN |= {"day", "it", "past", "plain", *STORY_PARTS}
# the sections that the writer itself uses, and groups of slots of which each line needs one
NEEDED: dict[str, tuple[tuple[str, ...], ...]] = {
    "plain layouts": (("k", "K"), ("v",)),
    "layouts": (("k", "K"), ("v",)),
    "table rows": (("subject",), ("value",)),
    "comparisons": (("first",), ("second",)),
    "record headings": (("n",), ("k",)),
    "exam headings": (),
    "worked sums": (("x",),),
    "plan": (("day",), ("place", "Place")),
    "number headings": (),
    "phrases": (("occasion", "Occasion"), ("words",)),
    "story openings": (("who",), ("past",), ("what",)),
    "story summaries": (("who",), ("past",)),
    "summary headings": (),
    "review openings": (("thing",),),
    "review labels": (),
} | {
    f"{part}: {kind}": () for part in STORY_PARTS for kind in ("notes", "short notes", "questions")
}


@dataclass(frozen=True)
class Section:
    """A section of documents/: steps, which are done in order, and lines, of which one is taken."""

    steps: list[tuple[str, list[Text]]]
    lines: Items


@dataclass(frozen=True)
class Forms:
    """The forms of documents of one folder of tables."""

    rates: Mapping[str, int]
    fact_kinds: Sequence[str]
    sections: Mapping[str, Section]
    listings: Mapping[str, Items]


class Names(set):
    """The names that a slot of documents/ may have; also those with a capital, a count or `a`."""

    def __contains__(self, slot: object) -> bool:
        found = DOCUMENT_SLOT.fullmatch(str(slot))
        names = found[3].split(", ") if found else [""]
        return all(super(Names, self).__contains__(n[:1].lower() + n[1:]) for n in names)


def section_of(lines: Sequence[Text]) -> Section:
    """A section as it is meant: `name = one||other` is a step with its alternatives."""
    steps, texts = [], []
    for line in lines:
        step = STEP.fullmatch(line)
        if step:
            parts = [line.with_text(part.strip()) for part in step[2].split("||")]
            steps.append((step[1], [item for part in parts for item in tables.repeated(part)]))
        else:
            texts += tables.repeated(line)
    if not texts:
        raise lines[0].fault("a section of steps only, without a line")
    return Section(steps, tuple(texts))


@cache
def read_forms(folder: Path = FOLDER) -> Forms:
    """The forms of documents."""
    world = read_world(folder)
    raw = tables.read_sections(folder / "documents", parse=lambda line: [line])
    listings = tables.by_part(
        tables.Sections({name: items for name, items in raw.items() if name.endswith(": list")}),
        world.relations,
        "relation",
        ("list",),
    )
    sections = {name: section_of(raw[name]) for name in [*raw, *NEEDED] if ": list" not in name}
    steps = {step for section in sections.values() for step, _ in section.steps}
    names = Names({*sections, *steps, *world.words, *Writer.SLOTS} | GIVEN)
    for name, section in sections.items():
        for _, texts in section.steps:
            tables.check_slots(texts, names)
        tables.check_slots(section.lines, names, *NEEDED.get(name, ()))
    for parts in listings.values():
        tables.check_slots(parts["list"], ("v", "V"), ("v", "V"))
    kinds = tables.read_table(folder / "documents" / "kinds.tsv", ("kind", "rate", "facts only"))
    for row in kinds:
        tables.one_of(row["kind"], {*sections, *Writer.SLOTS}, "kind of document")
    return Forms(
        {row["kind"]: tables.whole_number(row["rate"]) for row in kinds},
        [row["kind"] for row in kinds if tables.yes(row["facts only"])],
        sections,
        {name: parts["list"] for name, parts in listings.items()},
    )


@dataclass
class Scope:
    """What is settled while a section is written: its steps, and what its statements are about."""

    fields: dict[str, str | list[str]] = field(default_factory=dict)
    title: str = ""
    facts: Sequence[tuple[Relation, Fact]] = ()
    relation: Relation | None = None
    fact: Fact | None = None
    layout: str = ""
    key: str = ""
    back: bool | None = None


# --------------------------------------------------------------------------------------- the writer


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
        return kind, self.named(kind, Scope()).strip()

    # -- sections and their slots

    def write(self, name: str, scope: Scope | None = None, **fields: str) -> str:
        """A section of documents/: its steps in order, then one of its lines."""
        scope, section = scope or Scope(), self.forms.sections[name]
        inherited = {key: value for key, value in scope.fields.items() if key != "between"}
        scope = replace(scope, fields=inherited | fields)
        for step, texts in section.steps:
            scope.fields[step] = self.step(self.choose(texts), scope)
        line = self.choose(section.lines)
        if "{value}" in line and not self.line_start:
            line = line.with_text(line.replace("\n", " "))
        return self.filled(line, scope)

    def step(self, text: Text, scope: Scope) -> str | list[str]:
        """What a step says; several texts stay apart until it is known what stands between them."""
        found = DOCUMENT_SLOT.fullmatch(text[1:-1])
        alone = found and text == f"{{{found[0]}}}" and found[1]
        return self.several(found[1], found[3], scope) if alone else self.filled(text, scope)

    def filled(self, text: Text, scope: Scope) -> str:
        """A text with its slots replaced."""

        def slot(match: re.Match) -> str:
            count, article, name = DOCUMENT_SLOT.fullmatch(match[1]).groups()
            small = name[:1].lower() + name[1:]
            if count:
                value = self.several(count, name, scope)
            elif name in scope.fields or small in scope.fields:
                value = scope.fields.get(name, scope.fields.get(small))
            elif small in GIVEN and small not in self.SLOTS:
                raise text.fault(f"nothing gives this slot here: {match[0]}")
            else:
                value = self.named(small, scope)
            if isinstance(value, list):
                value = scope.fields.get("between", "\n").join(value)
            value = value if name == small else upper(value)
            return with_article(value) if article else value

        return SLOT.sub(slot, text)

    def named(self, name: str, scope: Scope) -> str:
        """What a slot stands for: something of the writer, a section, or an item of facts/."""
        if name in self.SLOTS:
            return self.SLOTS[name](self, scope)
        if name in self.forms.sections:
            return self.write(name, scope)
        return self.pick([item for part in name.split(", ") for item in self.world.words[part]])

    def several(self, count: str, name: str, scope: Scope) -> list[str]:
        """A slot several times: for each fact of an entity, for its first ones, or `2-5` times."""
        *kind, numbers = count.split(" ")
        if numbers == "each":
            n = len(scope.facts)
        else:
            low, *high = map(int, numbers.split("-"))
            n = self.count(low, *high) if high else low
            if not kind:
                return [self.named(name, scope) for _ in range(n)]
        facts = scope.facts[:n]
        return [self.named(name, replace(scope, relation=r, fact=fact)) for r, fact in facts]

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

    def lines(self, name: str) -> Items:
        """The lines of a section of documents/."""
        return self.forms.sections[name].lines

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
        plain = self.lines("plain layouts")
        return self.wording(plain if self.chance(0.65) else plain + self.lines("layouts"))

    def lay_out(self, layout: str, key: str, value: str) -> str:
        """Key and value in a layout; with `line_start` off the value stands on its key's line."""
        layout = "{K}\n{v}" if key.endswith(" =") else layout
        fields = {"K": upper(key), "k": key, "v": value, "i": self.count(1, 99)}
        text = fill(layout, fields)
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

    def value(self, scope: Scope) -> str:
        """A value by itself, whose short key or column stands elsewhere in the section."""
        relation, fact = self.statement(scope)
        self.note(relation, "line")
        return fact.value

    def statement(self, scope: Scope) -> tuple[Relation, Fact]:
        """What a statement is about: what is settled, or the next fact."""
        relation = scope.relation or self.relation()
        return relation, scope.fact or self.deal(relation)

    # -- what the facts of a document are about; these slots leave nothing in the text

    def about_entity(self, scope: Scope) -> str:
        """All that follows is about one entity."""
        scope.title, scope.facts = self.entity()
        return ""

    def about_relation(self, scope: Scope) -> str:
        """All that follows is about one relation."""
        scope.relation = self.relation()
        scope.title = scope.relation.title
        return ""

    def about_fact(self, scope: Scope) -> str:
        """All that follows is about one fact."""
        scope.relation, scope.fact = self.statement(scope)
        return ""

    def about_one_of_them(self, scope: Scope) -> str:
        """All that follows is about one fact of the entity."""
        scope.relation, scope.fact = self.pick(scope.facts)
        return ""

    def in_one_layout(self, scope: Scope) -> str:
        """All lines that follow have the same layout."""
        scope.layout = self.layout()
        return ""

    def in_one_key(self, scope: Scope) -> str:
        """All lines that follow have the same direction and key."""
        relation = scope.relation or self.relation()
        scope.back = bool(relation.unique_values) and self.turn(relation)
        scope.key = self.wording(relation.keys)
        return ""

    # -- documents about facts

    def entity(self) -> tuple[str, list[tuple[Relation, Fact]]]:
        """A country, an element or an animal with all its facts, in random order."""
        group, subject = self.entities.deal()
        facts = self.world.subjects[group][subject][:]
        self.rng.shuffle(facts)
        return bare(subject), facts

    def table(self) -> str:
        """A table read by lines: under its title a subject, its value below, the next subject."""
        relation = self.relation()
        mark = self.choose(self.lines("table rows"))
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
                rows.append(self.write("comparisons", first=first, second=second))
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
        headings = self.lines("record headings")
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
        heading = self.write("exam headings")
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
        return self.lay_out(layout, fill(self.wording(self.lines("worked sums")), {"x": task}), way)

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

    def items_in_a_row(self) -> str:
        """Days, months, letters or number words in their order."""
        items = self.pick((*self.calendar(), list(ALPHABET), self.world.number_words))
        start = self.count(0, len(items) - 2)
        return self.pick((", ", "\n", " ")).join(items[start : start + self.count(4, 12)])

    def calendar(self) -> tuple[list[str], list[str]]:
        """The days and the months."""
        relations = self.world.relations
        days, months = (relations[name].facts for name in ("day after", "month after"))
        return [fact.subject for fact in days], [fact.subject for fact in months]

    def plan(self, scope: Scope, of_week: bool) -> str:
        """A plan of all days, or of up to six months."""
        days, months = self.calendar()
        times = days if of_week else months[self.count(0, 5) :][:6]
        return "\n".join(self.write("plan", scope, day=time) for time in times)

    def number_row(self) -> str:
        """Numbers in a row, mostly from one to the next, after a heading with first and last."""
        by = self.pick((1, 1, 1, 1, 1, 2, 10))
        start = self.count(0, 100 - 2 * by)
        numbers = [start + by * i for i in range(self.count(3, 9)) if start + by * i <= 100]
        ends = {"first": str(start), "last": str(numbers[-1])}
        heading = self.write("number headings", **ends) if by == 1 else ""
        return heading + ", ".join(map(str, numbers))

    def noun(self) -> str:
        """A noun of the table of plurals."""
        return self.pick(self.world.relations["plural"].facts).fields["n"]

    def tale(self) -> dict:
        """A story of one or two people, with notes and questions about who did what, where, when."""
        heroes = []
        for who in dict.fromkeys(self.write("hero") for _ in range(1 if self.chance(0.6) else 2)):
            action = self.pick(self.world.actions)
            parts = {"who": who, "past": action["past"], "plain": action["plain"]}
            parts["what"] = self.write("thing")
            heroes.append(parts | {"where": self.write("place"), "when": self.words("times")})
        text, notes, questions, summary = [], [], [], []
        fillers = self.world.words["fillers"] + self.world.words["spoken fillers"]
        for hero in heroes:
            fields = story_fields(hero)
            text.append(self.write("story openings", **fields))
            text += self.rng.sample(fillers, self.count(0, 2))
            for part in STORY_PARTS:
                short = self.lines(f"{part}: short notes") if len(heroes) == 1 else ()
                key = self.pick(self.lines(f"{part}: notes") + short)
                notes.append((fill(key, fields), hero[part], part))
            for part in STORY_PARTS:
                questions.append(self.write(f"{part}: questions", **fields))
            summary.append(self.write("story summaries", **fields))
        self.rng.shuffle(notes)
        self.rng.shuffle(questions)
        told, short = " ".join(text), " ".join(summary)
        return {"text": told, "notes": notes, "questions": questions, "summary": short}

    def story(self) -> str:
        """A story, often with a summary or with notes below it, now and then as a record."""
        tale = self.tale()
        parts = [tale["text"]]
        if self.chance(0.3):
            heading = self.write("summary headings")
            parts.append(f"{heading}\n{tale['summary']}")
        if self.chance(0.75):
            plainest = self.lines("plain layouts")[:4]
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
            opening = self.write("review openings", thing=reviewed["thing"])
            sentences = f"{opening} {sentences}"
        return sentences, "positive" if positive else "negative"

    def review(self) -> str:
        """Reviews, each with its label on the next line: one alone, or several."""
        layout, key = self.layout(), self.write("review labels")
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

    def phrase_book(self) -> str:
        """Occasions, and what one says on them."""
        phrases = self.rng.sample(self.world.phrases, self.count(3, 8))
        return "Phrase book\n\n" + "\n".join(self.write("phrases", **row) for row in phrases)

    SLOTS: ClassVar[dict[str, Callable[["Writer", Scope], str]]] = {
        # what the facts are about, and what is the same for all statements
        "entity": about_entity,
        "one relation": about_relation,
        "one fact": about_fact,
        "one of its facts": about_one_of_them,
        "one layout": in_one_layout,
        "one key": in_one_key,
        # statements and their parts
        "line": lambda self, s: self.line(*self.statement(s), s.layout, s.key, s.back),
        "forward line": lambda self, s: self.line(*self.statement(s), s.layout, s.key, False),
        "sentence": lambda self, s: self.sentence(*self.statement(s)),
        "running": lambda self, s: self.running(*self.statement(s)),
        "value": value,
        "title": lambda self, s: s.title,
        "key": lambda self, s: self.statement(s)[0].json_keys[1],
        "keys": lambda self, s: in_a_row(
            [r.json_keys[1] for r, _ in s.facts][: len(s.fields["rows"])]
        ),
        # words and numbers
        "noun": lambda self, s: self.noun(),
        "real word": lambda self, s: self.pick(self.relation().facts).fields["n"],
        "any value": lambda self, s: self.pick(self.relation().facts).value,
        "vowel": lambda self, s: self.pick("aeiou"),
        "number": lambda self, s: str(self.count(0, 100)),
        "number row": lambda self, s: self.number_row(),
        "items in a row": lambda self, s: self.items_in_a_row(),
        "days of the week": lambda self, s: self.plan(s, of_week=True),
        "some months": lambda self, s: self.plan(s, of_week=False),
        # whole documents
        "table": lambda self, s: self.table(),
        "list": lambda self, s: self.listing(),
        "story": lambda self, s: self.story(),
        "review": lambda self, s: self.review(),
        "sums": lambda self, s: self.sums(),
        "comparison": lambda self, s: self.comparison(),
        "records": lambda self, s: self.records(),
        "exam": lambda self, s: self.exam(),
        "phrase book": lambda self, s: self.phrase_book(),
    }


# ------------------------------------------------------------------------------------- small texts


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
