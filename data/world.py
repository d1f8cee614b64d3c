"""The documents that a base model is pretrained on, written from the small world's facts.

`documents(seed)` is an endless, deterministic stream of plain text.  The folder documents/ says how
documents look: kinds.tsv how often each kind is written, the sections of its text files what stands
in it.  A `Writer` fills their slots; what needs more than slots is a method of it.  README.md says
why documents are as they are, and what may stand in a section.
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import ClassVar, NamedTuple

from data import relations, tables
from data.relations import GROUPS, Fact, Operation, Relation, bare, read_world, upper, with_article
from data.tables import FOLDER, SLOT, Items, Text, fill

FLOOR = 60  # a relation of fewer facts is written as often as one of this many
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
STORY_PARTS = ("who", "what", "where", "when")
SOME = {"one to three facts": (1, 3), "two or three facts": (2, 3)}
SETTLED = ("entity", "one relation", "one fact", "one of its facts", "one layout", "one key")
SETTLED += ("no turning", *SOME)

KIND_COLUMNS = ("kind", "rate", "facts only")
STEP = re.compile(r"([a-z]+) = (.+)")
DOCUMENT_SLOT = re.compile(r"(?:(each|\d+(?:-\d+)?) )?(a )?([^{}]+)")


class Section(NamedTuple):
    """A section of documents/: steps, which are done in order, and lines, of which one is taken."""

    steps: list[tuple[str, list[Text]]]
    lines: Items


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


class Forms:
    """The forms of documents of one folder of tables."""

    def __init__(self, folder: Path) -> None:
        world, rules = read_world(folder), tables.read_rules(folder, "documents")
        raw = tables.read_sections(folder / "documents", parse=lambda line: [line])
        listed = [name.with_text(name[:-6]) for name in raw if name.endswith(": list")]
        self.listings = [tables.one_of(name, world.relations, "relation") for name in listed]
        rules |= dict.fromkeys([f"{name}: list" for name in listed], rules.pop("list"))
        self.sections = {name: section_of(raw[name]) for name in [*raw, *rules]}
        steps = {step for section in self.sections.values() for step, _ in section.steps}
        given = {slot for rule in rules.values() for slot in rule[0]}
        names = Names({*self.sections, *steps, *given, *world.words, *Writer.SLOTS})
        for name, section in self.sections.items():
            for _, texts in section.steps:
                tables.check_slots(texts, names)
                for text in (text for text in texts if text.startswith("one of ")):
                    tables.one_of(text.with_text(text[7:]), self.sections, "section")
            tables.check_slots(section.lines, names, *rules.get(name, [()])[1:])
        kinds = tables.read_table(folder / "documents" / "kinds.tsv", KIND_COLUMNS)
        for row in kinds:
            tables.one_of(row["kind"], {*self.sections, *Writer.SLOTS}, "kind of document")
            tables.one_of(row["facts only"], tables.YES_OR_NO, "answer")
        self.rates = {row["kind"]: tables.numbers_in(row["rate"])[0] for row in kinds}
        self.fact_kinds = [row["kind"] for row in kinds if row["facts only"] == "yes"]


read_forms = cache(Forms)  # each folder is read once


class Line(Text):
    """A line of a section that is taken, but not yet filled in."""


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


def dealt(cards: Sequence, rng: random.Random) -> Iterator:
    """Cards without replacement, shuffled anew when all are dealt: each gets its turn."""
    while True:
        left = list(cards)
        rng.shuffle(left)
        yield from reversed(left)


def pairs_of_numbers(adding: bool) -> list[tuple[int, int]]:
    """All with a result from 0 to 100; small ones, which others are worked out with, six times."""
    pairs = [(a, b) for a in range(1, 101) for b in range(1, 101 - a if adding else a + 1)]
    return pairs + 5 * [(a, b) for a, b in pairs if max(a, b) <= 20]


class Writer:
    """Writes documents; `tally` counts statements by relation and by where the value stands.

    "line": at a line's start, after its key; "back": there the subject, after its value;
    "sentence": in a sentence on a line after its heading; "running": anywhere else.
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
        self.decks = {relation.name: dealt(relation.facts, self.rng) for relation in every}
        pairs = {"sum": pairs_of_numbers(adding=True), "difference": pairs_of_numbers(adding=False)}
        self.pairs = {name: dealt(cards, self.rng) for name, cards in pairs.items()}
        self.entities = dealt([(g, s) for g in GROUPS for s in self.world.subjects[g]], self.rng)
        self.kinds = self.forms.fact_kinds if group else list(self.forms.rates)
        self.rates = [self.forms.rates[kind] for kind in self.kinds]

    def document(self) -> tuple[str, str]:
        """The next document and its kind."""
        kind = self.rng.choices(self.kinds, self.rates)[0]
        try:
            return kind, self.named(kind, Scope()).strip()
        except RecursionError:
            raise kind.fault(f"a section of this kind stands in itself: {kind}") from None

    # -- sections and their slots

    def write(self, name: str, scope: Scope | None = None, **fields: str) -> str:
        """A section of documents/: its steps in order, then one of its lines."""
        scope, section = scope or Scope(), self.forms.sections[name]
        inherited = {key: value for key, value in scope.fields.items() if key != "between"}
        scope = replace(scope, fields=inherited | fields)
        for step, texts in section.steps:
            scope.fields[step] = self.step(self.choose(texts), scope)
        return self.filled(self.choose(section.lines), scope)

    def step(self, text: Text, scope: Scope) -> str | list[str]:
        """What a step says; several texts stay apart until it is known what stands between them."""
        if text.startswith("one of "):
            return Line(self.choose(self.lines(text[7:])), text.where)
        found = DOCUMENT_SLOT.fullmatch(text[1:-1])
        if found and found[1] and text == f"{{{found[0]}}}":
            return self.several(found[1], text.with_text(found[3]), scope)
        return self.filled(text, scope)

    def filled(self, text: Text, scope: Scope) -> str:
        """A text with its slots replaced."""
        if "{value}" in text and not self.line_start:
            text = text.with_text(text.replace("\n", " "))

        def slot(match: re.Match) -> str:
            count, article, name = DOCUMENT_SLOT.fullmatch(match[1]).groups()
            small = name[:1].lower() + name[1:]
            if count:
                value = self.several(count, text.with_text(name), scope)
            elif name in scope.fields or small in scope.fields:
                value = scope.fields.get(name, scope.fields.get(small))
            else:
                value = self.named(text.with_text(small), scope)
            if isinstance(value, Line):
                value = self.filled(value, scope)
            if isinstance(value, list):
                value = scope.fields.get("between", "\n").join(value)
            value = value if name == small else upper(value)
            return with_article(value) if article else value

        return SLOT.sub(slot, text)

    def named(self, name: Text, scope: Scope) -> str:
        """What a slot stands for: something of the writer, a section, or an item of facts/."""
        if name in self.SLOTS:
            return self.SLOTS[name](self, scope)
        if name in self.forms.sections:
            return self.write(name, scope)
        lists, words = name.split(", "), self.world.words
        if any(part not in words for part in lists):
            raise name.fault(f"nothing gives this slot here: {{{name}}}")
        return self.pick([text for part in lists for text in words[part]])

    def several(self, count: str, name: Text, scope: Scope) -> list[str]:
        """A slot several times: for each fact that is settled, or `2-5` times."""
        if count == "each":
            scopes = [replace(scope, relation=one, fact=fact) for one, fact in scope.facts]
            return [self.named(name, one) for one in scopes]
        low, *high = map(int, count.split("-"))
        n = self.count(low, *high) if high else low
        return [self.named(name, scope) for _ in range(n)]

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
        """Whether to write from value to subject; mostly where each subject has its own value."""
        often = relation.group in GROUPS and len(relation.unique_values) == len(relation.facts)
        return bool(relation.back_keys) and self.chance(0.8 if often else 0.45)

    def line(self, relation: Relation, fact: Fact, scope: Scope | None = None) -> str:
        """A statement with the value at a line's start, after its key; sometimes turned round."""
        may_turn = relation.back_keys and fact.value in relation.unique_values
        scope = scope or Scope()
        turned = may_turn and (self.turn(relation) if scope.back is None else scope.back)
        self.note(relation, "back" if turned else "line")
        key = scope.key
        if not key or turned:
            key = self.wording(relation.back_keys if turned else relation.keys)
        key = fill(key, fact.fields)
        if self.chance(0.03):
            key = key.lower()
        value = fact.fields["n"] if turned else fact.value
        return self.lay_out(scope.layout or self.layout(), key, value)

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
        return relation, scope.fact or next(self.decks[relation.name])

    def stated(self, scope: Scope) -> Sequence[tuple[Relation, Fact]]:
        """The facts of an entity, or one of a relation."""
        return scope.facts or [self.statement(scope)]

    def settle(self, what: str, scope: Scope) -> str:
        """What all that follows is about, or has in common; leaves nothing in the text."""
        if what == "entity":
            scope.title, scope.facts = self.entity()
        elif what == "one relation":
            scope.relation = self.relation()
            scope.title = scope.relation.title
        elif what == "one fact":
            scope.relation, scope.fact = self.statement(scope)
        elif what == "one of its facts":
            scope.relation, scope.fact = self.pick(scope.facts)
        elif what == "one layout":
            scope.layout = self.layout()
        elif what == "one key" and scope.relation:
            scope.back = bool(scope.relation.unique_values) and self.turn(scope.relation)
            scope.key = self.wording(scope.relation.keys)
        elif what == "no turning":
            scope.back = False
        else:
            scope.facts = scope.facts[: self.count(*SOME[what])]
        return ""

    # -- documents about facts

    def entity(self) -> tuple[str, list[tuple[Relation, Fact]]]:
        """A country, an element or an animal with all its facts, in random order."""
        group, subject = next(self.entities)
        facts = self.world.subjects[group][subject][:]
        self.rng.shuffle(facts)
        return bare(subject), facts

    def table(self, scope: Scope) -> str:
        """A table read by lines: under its title a subject, its value below, the next subject."""
        relation, mark, rows = self.relation(), self.choose(self.lines("table rows")), []
        where = "line" if "\n" in mark and self.line_start else "running"
        turn = self.turn(relation)
        for _ in range(self.count(6, 14)):
            fact = next(self.decks[relation.name])
            turned = turn and fact.value in relation.unique_values
            self.note(relation, "back" if turned else where)
            pair = (fact.fields["n"], fact.value)
            subject, value = reversed(pair) if turned else pair
            rows.append(fill(mark, {"subject": subject, "value": value}))
        text = f"{relation.title}\n\n" + "\n".join(rows)
        return text if where == "line" else text.replace(":\n", ": ")

    def listing(self, scope: Scope) -> str:
        """What shares a value: the countries of a continent, red things, mammals."""
        name = self.pick(self.forms.listings)
        relation = self.world.relations[name]
        value = self.pick(sorted({fact.value for fact in relation.facts} - relation.unique_values))
        members = [fact.fields["n"] for fact in relation.facts if fact.value == value]
        self.rng.shuffle(members)
        members = members[: self.count(3, 10)]
        heading = self.write(f"{name}: list", v=value)
        if self.chance(0.5):
            return f"{heading}:\n" + "\n".join(members)
        return f"{heading}: {', '.join(members[:-1])} and {members[-1]}."

    def fact_comparison(self, scope: Scope) -> str:
        """Two subjects side by side."""
        relation, rows = self.relation(), []
        for _ in range(self.count(2, 5)):
            one, two = (next(self.decks[relation.name]) for _ in range(2))
            if one.value == two.value:
                both = f"{upper(one.fields['n'])} and {two.fields['n']}"
                rows.append(f"{both} are alike here: {one.value}.")
                self.note(relation, "running")
                continue
            pair = [self.running(relation, one), self.running(relation, two)]
            if all(sentence.endswith(".") for sentence in pair):
                pair = [self.write("comparisons", first=pair[0], second=pair[1])]
            rows += pair
        return f"{relation.title}, compared\n\n" + "\n".join(rows)

    def number_comparison(self, scope: Scope) -> str:
        """Which of two numbers is greater, or smaller, several times."""
        operation, rows = self.world.operations[self.pick(("greater", "smaller"))], []
        for _ in range(self.count(5, 12)):
            a, b = self.count(0, 100), self.count(0, 100)
            if a != b:
                rows.append(self.calculation(operation, a, b))
        return "\n".join(rows)

    def record(self, scope: Scope) -> str:
        """Facts as a JSON record; keys in the table's own words."""
        facts = self.stated(scope)
        title = scope.title if scope.facts else facts[0][1].fields["n"]
        cells = [(facts[0][0].json_keys[0], title)]
        for relation, fact in facts:
            self.note(relation, "running")
            cells.append((relation.json_keys[1], fact.value))
        return json_object(cells)

    def exam(self, scope: Scope) -> str:
        """An exam sheet: questions and tasks one below the other, without any answer."""
        heading, rows = self.write("exam headings"), []
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
            return next(self.pairs[operation.name])
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

    def sums(self, scope: Scope) -> str:
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

    def items_in_a_row(self, scope: Scope) -> str:
        """Days, months, letters or number words in their order."""
        named = (self.world.relations[name].facts for name in ("day after", "month after"))
        orders = [[fact.subject for fact in facts] for facts in named]
        items = self.pick((*orders, list(ALPHABET), self.world.number_words))
        start = self.count(0, len(items) - 2)
        return self.pick((", ", "\n", " ")).join(items[start : start + self.count(4, 12)])

    def plan(self, scope: Scope, relation: str, n: int) -> str:
        """A plan of `n` days or months in their order."""
        times = [fact.subject for fact in self.world.relations[relation].facts]
        start = self.count(0, len(times) - n - 1) if len(times) > n else 0
        return "\n".join(self.write("plan", scope, day=time) for time in times[start:][:n])

    def number_row(self, scope: Scope) -> str:
        """Numbers in a row, mostly from one to the next, after a heading with first and last."""
        by = self.pick((1, 1, 1, 1, 1, 2, 10))
        start = self.count(0, 100 - 2 * by)
        numbers = [start + by * i for i in range(self.count(3, 9)) if start + by * i <= 100]
        ends = {"first": str(start), "last": str(numbers[-1])}
        heading = self.write("number headings", **ends) if by == 1 else ""
        return heading + ", ".join(map(str, numbers))

    def tale(self) -> dict:
        """A story of one or two people, with notes and questions about it."""
        heroes = []
        for who in dict.fromkeys(self.write("hero") for _ in range(1 if self.chance(0.6) else 2)):
            action = self.pick(self.world.actions)
            hero = {"who": who, "past": action["past"], "plain": action["plain"]}
            hero |= {"what": self.write("thing"), "where": self.write("place")}
            heroes.append(hero | {"when": self.pick(self.world.words["times"])})
        text, notes, questions, summary = [], [], [], []
        fillers = self.world.words["fillers"] + self.world.words["spoken fillers"]
        for hero in heroes:
            fields = relations.story_fields(hero)
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

    def story(self, scope: Scope) -> str:
        """A story, often with a summary or with notes below it, now and then as a record."""
        tale = self.tale()
        parts = [tale["text"]]
        if self.chance(0.3):
            parts.append(f"{self.write('summary headings')}\n{tale['summary']}")
        if self.chance(0.75):
            plainest = self.lines("plain layouts")[:4]
            layout = self.layout() if self.chance(0.5) else self.pick(plainest)
            notes = tale["notes"][: self.count(1, 4)]
            self.tally.update(("story " + part, "line") for _, _, part in notes)
            parts.append("\n".join(self.lay_out(layout, key, value) for key, value, _ in notes))
        elif len(tale["notes"]) == 4:
            noted = {part: value for _, value, part in tale["notes"]}
            found = [(part, noted[part]) for part in STORY_PARTS]
            cells = found if self.chance(0.5) else self.rng.sample(found, self.count(1, 3))
            keys = in_a_row([part for part, _ in cells])
            parts.append(f"As a record: {keys}\n{json_object(cells)}")
        return "\n\n".join(parts)

    def review(self, scope: Scope) -> str:
        """Reviews, each with its label on the next line: one alone, or several."""
        layout, key, rows = self.layout(), self.write("review labels"), []
        for _ in range(self.count(1, 5)):
            reviewed = self.pick(self.world.reviewed)
            good, label = ("good", "positive") if self.chance(0.5) else ("bad", "negative")
            general = self.pick(self.world.words["praise" if good == "good" else "blame"])
            own = reviewed[good]
            text = self.pick((own, f"{general} {own}", f"{own} {general}", general))
            if self.chance(0.6):
                text = f"{self.write('review openings', thing=reviewed['thing'])} {text}"
            in_text = self.chance(0.1)
            self.tally["sentiment", "running" if in_text else "line"] += 1
            if in_text:
                rows.append(f"This is a {label} review. {text}")
            else:
                rows.append(f"{text}\n{self.lay_out(layout, key, label)}")
        return "\n\n".join(rows)

    def phrase_book(self, scope: Scope) -> str:
        """Occasions, and what one says on them."""
        phrases = self.rng.sample(self.world.phrases, self.count(3, 8))
        return "Phrase book\n\n" + "\n".join(self.write("phrases", **row) for row in phrases)

    SLOTS: ClassVar[dict[str, Callable[["Writer", Scope], str]]] = {
        # what the facts are about, and what is the same for all statements
        **{what: lambda self, scope, what=what: self.settle(what, scope) for what in SETTLED},
        # statements and their parts
        "line": lambda self, scope: self.line(*self.statement(scope), scope),
        "sentence": lambda self, scope: self.sentence(*self.statement(scope)),
        "running": lambda self, scope: self.running(*self.statement(scope)),
        "title": lambda self, scope: scope.fact.fields["n"] if scope.fact else scope.title,
        "key": lambda self, scope: self.statement(scope)[0].json_keys[1],
        "keys": lambda self, scope: in_a_row([one.json_keys[1] for one, _ in self.stated(scope)]),
        # words and numbers
        "noun": lambda self, _: self.pick(self.world.relations["plural"].facts).fields["n"],
        "real word": lambda self, _: self.pick(self.relation().facts).fields["n"],
        "any value": lambda self, _: self.pick(self.relation().facts).value,
        "vowel": lambda self, _: self.pick("aeiou"),
        "number": lambda self, _: str(self.count(0, 100)),
        "days of the week": lambda self, scope: self.plan(scope, "day after", 7),
        "some months": lambda self, scope: self.plan(scope, "month after", 6),
        **{
            method.__name__.replace("_", " "): method
            for method in (value, record, number_row, items_in_a_row, number_comparison, table)
            + (story, review, sums, fact_comparison, exam, phrase_book)
        },
        "list": listing,
    }


def in_a_row(words: Sequence[str]) -> str:
    """ "a, b and c"."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def json_object(cells: Sequence[tuple[str, str]]) -> str:
    """A JSON object on one line; whole numbers stand without quotation marks."""
    quoted = ((key, value if value.isdigit() else f'"{value}"') for key, value in cells)
    return "{" + ", ".join(f'"{key}": {value}' for key, value in quoted) + "}"


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

    Experiments may allow only the first so many `wordings` of each fact, put no value at a line's
    start (`line_start=False`), or write about one `group` of GROUPS only.
    """
    writer = Writer(seed, wordings, line_start, group, folder)
    while True:
        yield writer.document()[1]
