"""The small world: facts from the tables of facts/, and the wordings in which documents state them.

A `Fact` is a subject and its value.  A `Relation` is a kind of fact: a line of facts/relations.tsv,
two columns of a table, and wordings from wordings/statements.  An `Operation` is the same for two
numbers and their result.  `read_world(folder)` gives all of them.
"""

import re
from collections import Counter
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

from data.tables import (
    FOLDER,
    LEFT_OUT,
    Row,
    Sections,
    Text,
    by_part,
    check_all,
    one_of,
    read_folder,
    read_table,
    yes,
)

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
    keys: noun phrases, or headings like `what lions eat`, after which the value stands on a line
    of its own.
    back_keys: the same from the value to the subject; used only where the value belongs to one
    subject.
    exam: questions and tasks for exam sheets, which are never answered.
    both_ways: the second half of the facts are those of the first turned round.
    """

    name: str
    group: str
    title: str
    json_keys: tuple[str, str]
    facts: tuple[Fact, ...]
    keys: tuple[Text, ...]
    running: tuple[Text, ...]
    exam: tuple[Text, ...]
    back_keys: tuple[Text, ...] = ()
    both_ways: bool = False
    held_out: bool = True

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
    keys: tuple[Text, ...]
    running: tuple[Text, ...]
    exam: tuple[Text, ...]


RESULTS: dict[str, Callable[[int, int], int]] = {
    "sum": lambda a, b: a + b,
    "difference": lambda a, b: a - b,
    "greater": max,
    "smaller": min,
}

# ---------------------------------------------------------------------------------------- the world


@dataclass(frozen=True)
class World:
    """All that documents and questions are made of, from one folder of tables."""

    relations: Mapping[str, Relation]
    operations: Mapping[str, Operation]
    words: Sections
    grammar: Grammar
    actions: list[Row]
    reviewed: list[Row]
    phrases: list[Row]
    number_words: list[Text]

    @cached_property
    def subjects(self) -> dict[str, dict[str, list[tuple[Relation, Fact]]]]:
        """All facts of each country, element and animal."""
        found: dict[str, dict[str, list[tuple[Relation, Fact]]]] = {group: {} for group in GROUPS}
        for relation in self.relations.values():
            if relation.group in found:
                for fact in relation.facts:
                    found[relation.group].setdefault(fact.subject, []).append((relation, fact))
        return found

    def fact(self, subject: str, value: str) -> Fact:
        """A fact that stands in no table."""
        return Fact(subject, value, self.grammar)


def facts_of(row: Row, table: list[Row], grammar: Grammar) -> tuple[Fact, ...]:
    """The facts of two columns of a table; cells that are left out have none."""
    subject, value = row["subject"], row["value"]
    for column in (subject, value):
        one_of(column, table[0] if table else (), f"column of {row['table']}.tsv")
    pairs = [(line[subject], line[value]) for line in table]
    if one_of(row["ways"], ("one", "both"), "answer, one or both") == "both":
        pairs += [(one, other) for other, one in pairs]
    return tuple(Fact(one, other, grammar) for one, other in pairs if LEFT_OUT not in (one, other))


def check_statements(parts: Mapping[str, tuple[Text, ...]]) -> None:
    """Every wording of a relation names the subject or the value, and sentences name both."""
    check_all(parts.get("running", ()), FACT_SLOTS, VALUE_SLOTS, SUBJECT_SLOTS)
    check_all(parts.get("keys", ()), SUBJECT_SLOTS, SUBJECT_SLOTS)
    check_all(parts.get("back keys", ()), VALUE_SLOTS, VALUE_SLOTS)
    check_all(parts.get("exam", ()), FACT_SLOTS, FACT_SLOTS)


def check_calculations(parts: Mapping[str, tuple[Text, ...]]) -> None:
    """Every wording of an operation names what it is about, and sentences name the result."""
    numbers, words = ("a", "b"), ("A", "b_words", "c_words", "c", "d")
    check_all(parts.get("running", ()), numbers + words, ("c", "c_words"))
    check_all(parts.get("keys", ()), numbers, ("a",), ("b",))
    check_all(parts.get("exam", ()), numbers, ("a",), ("b",))


def parts_of(
    name: Text, what: str, statements: Mapping[str, Mapping[str, tuple[Text, ...]]]
) -> dict[str, tuple[Text, ...]]:
    """The wordings of a relation or an operation as arguments of its class."""
    parts = statements.get(name, {})
    for part in ("running", "keys", "exam"):
        if part not in parts:
            raise name.fault(f"no wordings in wordings/statements for the {what}: [{name}: {part}]")
    (check_calculations if what == "operation" else check_statements)(parts)
    return {part.replace(" ", "_"): items for part, items in parts.items()}


def read_relations(
    folder: Path, grammar: Grammar
) -> tuple[dict[str, Relation], dict[str, Operation]]:
    """The relations in the order of their table, and the operations."""
    table_of = cache(lambda name: read_table(folder / "facts" / f"{name}.tsv"))
    rows = read_table(folder / "facts" / "relations.tsv", RELATION_COLUMNS)
    known: Container[str] = {row["relation"] for row in rows} | RESULTS.keys()
    sections = read_folder(folder / "wordings" / "statements")
    statements = by_part(sections, known, "relation", PARTS)
    relations = {
        row["relation"]: Relation(
            row["relation"],
            row["group"],
            row["title"],
            (row["subject"], row["value"]),
            facts_of(row, table_of(row["table"]), grammar),
            **parts_of(row["relation"], "relation", statements),
            both_ways=row["ways"] == "both",
            held_out=yes(row["held out"]),
        )
        for row in rows
    }
    where = f"{folder / 'wordings' / 'statements'}:1"
    operations = {
        name: Operation(name, result, **parts_of(Text(name, where), "operation", statements))
        for name, result in RESULTS.items()
    }
    return relations, operations


@cache
def read_world(folder: Path = FOLDER) -> World:
    """The world that the tables of this folder describe."""
    facts = folder / "facts"
    plurals = {
        row[noun]: row["plural"]
        for name, noun in (("plurals", "singular"), ("animal_plurals", "animal"))
        for row in read_table(facts / f"{name}.tsv", (noun, "plural"))
    }
    homes = read_table(facts / "home_phrases.tsv", ("home", "phrase"))
    grammar = Grammar(plurals, {row["home"]: row["phrase"] for row in homes})
    relations, operations = read_relations(folder, grammar)
    numbers = read_table(facts / "numbers.tsv", ("number", "word", "next", "double"))
    return World(
        relations,
        operations,
        read_folder(facts),
        grammar,
        read_table(facts / "actions.tsv", ("past", "plain", "participle")),
        read_table(facts / "reviewed.tsv", ("thing", "good", "bad"), key=3),
        read_table(facts / "phrases.tsv", ("words", "occasion"), key=2),
        [row["word"] for row in numbers],
    )
