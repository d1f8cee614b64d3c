"""The small world: facts from the tables of facts/, and the wordings in which documents state them.

A `Fact` is a subject and its value.  A `Relation` is a kind of fact: a line of facts/relations.tsv,
two columns of a table, and wordings from wordings/statements.  An `Operation` is the same for two
numbers and their result.  `read_world(folder)` gives all of them.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

from data import tables
from data.tables import FOLDER, LEFT_OUT, Items, Row, Text

GROUPS = ("country", "element", "animal")  # a subject of these has facts of several relations
SUBJECT_SLOTS = ("s", "S", "n", "N", "a", "A", "p", "P")
VALUE_SLOTS = ("v", "V", "h", "av")
FACT_SLOTS = SUBJECT_SLOTS + VALUE_SLOTS
RELATION_COLUMNS = ("relation", "group", "title", "table", "subject", "value", "ways", "held out")
PARTS = ("running", "keys", "back keys", "exam")

# ------------------------------------------------------------------------------------ small grammar


def bare(name: str) -> str:
    """A name without its article: `the Netherlands` -> `Netherlands`, `a banana` -> `banana`."""
    return re.sub(r"^(the|a|an) ", "", name)


def definite(thing: str) -> str:
    """`a key` -> `the key`."""
    return "the " + bare(thing)


def upper(text: str) -> str:
    """The text as it stands at the beginning of a sentence: only the first letter changes."""
    return text[:1].upper() + text[1:]


def with_article(noun: str) -> str:
    """`cow` -> `a cow`, `owl` -> `an owl`."""
    return ("an " if noun[0] in "aeiou" else "a ") + noun


@dataclass(frozen=True)
class Grammar:
    """What no rule gives: plurals of nouns, and places of which one does not say `in the`."""

    plurals: Mapping[str, str]
    homes: Mapping[str, str]

    def plural(self, noun: str) -> str:
        """`barn owl` -> `barn owls`."""
        head, _, last = noun.rpartition(" ")
        known = self.plurals.get(last)
        if known is None:
            if re.search(r"(s|x|ch|sh)$", last):
                known = last + "es"
            elif re.search(r"[^aeiou]y$", last):
                known = last[:-1] + "ies"
            else:
                known = last + "s"
        return f"{head} {known}".strip()

    def home(self, place: str) -> str:
        """Where one finds an animal, with its preposition: `on the savanna`."""
        return self.homes.get(place, f"in the {place}")


# -------------------------------------------------------------------------------- facts, relations


@dataclass(frozen=True)
class Fact:
    """One true statement: `subject` has `value`.  `fields` are what wordings may mention.

    s: subject in running text, S: at a sentence's start, n: bare subject, N: bare at a line's
    start, v: value, V: value at a sentence's start, av: value with article, and for animals a/A:
    with article, p/P: plural; h: a home with its preposition.
    """

    subject: str
    value: str
    grammar: Grammar = field(repr=False, compare=False)

    @cached_property
    def fields(self) -> dict[str, str]:
        """The slots of a wording about this fact."""
        s, v, n = self.subject, self.value, bare(self.subject)
        fields = {"s": s, "S": upper(s), "n": n, "N": upper(n), "v": v, "V": upper(v)}
        fields |= {"a": with_article(n), "p": self.grammar.plural(n)}
        fields |= {"h": self.grammar.home(v), "av": with_article(v)}
        return fields | {"A": upper(fields["a"]), "P": upper(fields["p"])}


@dataclass(frozen=True)
class Relation:
    """A kind of fact and its wordings.

    json_keys: the columns of subject and value, which are their names in records.
    running: sentences; the value may stand anywhere, also first.
    keys: noun phrases, or headings like `what lions eat`; the value stands on a line of its own.
    back_keys: the same from value to subject; used only where the value belongs to one subject.
    exam: questions and tasks for exam sheets, which are never answered.
    both_ways: the second half of the facts are those of the first turned round.
    """

    name: str
    group: str
    title: str
    json_keys: tuple[str, str]
    facts: tuple[Fact, ...]
    running: Items
    keys: Items
    exam: Items
    back_keys: Items
    both_ways: bool
    held_out: bool

    @cached_property
    def unique_values(self) -> frozenset[str]:
        """Values that belong to one subject only."""
        counts = Counter(fact.value for fact in self.facts)
        return frozenset(value for value, n in counts.items() if n == 1)


@dataclass(frozen=True)
class Operation:
    """Two numbers and a result, in words: what a `Relation` is for a table."""

    name: str
    result: Callable[[int, int], int]
    running: Items
    keys: Items
    exam: Items


RESULTS: dict[str, Callable[[int, int], int]] = {
    "sum": lambda a, b: a + b,
    "difference": lambda a, b: a - b,
    "greater": max,
    "smaller": min,
}

# ---------------------------------------------------------------------------------------- the world


class World:
    """All that documents and questions are made of, from one folder of tables."""

    def __init__(self, folder: Path) -> None:
        facts, self.statements = folder / "facts", folder / "wordings" / "statements"
        self.words = tables.read_sections(facts)
        self.actions = tables.read_table(facts / "actions.tsv", ("past", "plain", "participle"))
        self.reviewed = tables.read_table(facts / "reviewed.tsv", ("thing", "good", "bad"), key=3)
        self.phrases = tables.read_table(facts / "phrases.tsv", ("words", "occasion"), key=2)
        numbers = tables.read_table(facts / "numbers.tsv", ("number", "word", "next", "double"))
        self.number_words = [row["word"] for row in numbers]
        nouns = tables.read_table(facts / "plurals.tsv", ("singular", "plural"))
        animals = tables.read_table(facts / "animal_plurals.tsv", ("singular", "plural"))
        homes = tables.read_table(facts / "home_phrases.tsv", ("home", "phrase"))
        self.grammar = Grammar(
            {row["singular"]: row["plural"] for row in nouns + animals},
            {row["home"]: row["phrase"] for row in homes},
        )
        rows = tables.read_table(facts / "relations.tsv", RELATION_COLUMNS)
        sections = tables.read_sections(self.statements)
        known = {row["relation"] for row in rows} | RESULTS.keys()
        self.parts = tables.by_part(sections, known, "relation", PARTS)
        files = cache(lambda name: tables.read_table(facts / f"{name}.tsv"))
        self.relations = {row["relation"]: self.read_relation(row, files) for row in rows}
        self.operations = {name: self.operation(name) for name in RESULTS}
        self.subjects: dict[str, dict[str, list[tuple[Relation, Fact]]]] = {g: {} for g in GROUPS}
        for relation in self.relations.values():
            for fact in relation.facts if relation.group in GROUPS else ():
                of_subject = self.subjects[relation.group].setdefault(fact.subject, [])
                of_subject.append((relation, fact))

    def read_relation(self, row: Row, files: Callable[[str], list[Row]]) -> Relation:
        """A line of relations.tsv with its facts and wordings."""
        subject, value, table = row["subject"], row["value"], files(row["table"])
        for column in (subject, value):
            tables.one_of(column, table[0] if table else (), f"column of {row['table']}.tsv")
        pairs = [(line[subject], line[value]) for line in table]
        tables.one_of(row["ways"], ("one", "both"), "answer, one or both")
        if row["ways"] == "both":
            pairs += [(one, other) for other, one in pairs]
        facts = tuple(self.fact(*pair) for pair in pairs if LEFT_OUT not in pair)
        return Relation(
            row["relation"],
            row["group"],
            row["title"],
            (subject, value),
            facts,
            self.wordings(row["relation"], "running", FACT_SLOTS, VALUE_SLOTS, SUBJECT_SLOTS),
            self.wordings(row["relation"], "keys", SUBJECT_SLOTS, SUBJECT_SLOTS),
            self.wordings(row["relation"], "exam", FACT_SLOTS, FACT_SLOTS),
            self.wordings(row["relation"], "back keys", VALUE_SLOTS, VALUE_SLOTS),
            row["ways"] == "both",
            tables.yes(row["held out"]),
        )

    def operation(self, name: str) -> Operation:
        """An operation with its wordings."""
        numbers, words = ("a", "b"), ("A", "b_words", "c_words", "c", "d")
        place = Text(name, f"{self.statements}:1")
        return Operation(
            name,
            RESULTS[name],
            self.wordings(place, "running", numbers + words, ("c", "c_words")),
            self.wordings(place, "keys", numbers, ("a",), ("b",)),
            self.wordings(place, "exam", numbers, ("a",), ("b",)),
        )

    def wordings(
        self, name: Text, part: str, known: Sequence[str], *needed: Sequence[str]
    ) -> Items:
        """One part of a relation's wordings; only back keys may be missing."""
        found = self.parts.get(name, {}).get(part, ())
        if not found and part != "back keys":
            raise name.fault(f"no section in wordings/statements: [{name}: {part}]")
        tables.check_slots(found, known, *needed)
        return found

    def fact(self, subject: str, value: str) -> Fact:
        """A fact, which need not stand in a table."""
        return Fact(subject, value, self.grammar)


@cache
def read_world(folder: Path = FOLDER) -> World:
    """The world that the tables of this folder describe."""
    return World(folder)
