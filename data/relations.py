"""The small world: facts from the tables of facts/, and the wordings in which documents state them.

`read_world(folder)` gives the relations, which are kinds of fact: a line of facts/relations.tsv,
two columns of a table, and wordings from wordings/statements; and operations on two numbers.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from operator import add, sub
from pathlib import Path
from typing import NamedTuple

from data import tables
from data.tables import LEFT_OUT, Items, Row, Rules, Text

GROUPS = ("country", "element", "animal")  # a subject of these has facts of several relations
RELATION_COLUMNS = "relation,group,title,table,subject,value,ways,held out".split(",")


def bare(name: str) -> str:
    """A name without its article: `the Netherlands` -> `Netherlands`, `a banana` -> `banana`."""
    return re.sub(r"^(the|a|an) ", "", name)


def upper(text: str) -> str:
    """The text as it stands at the beginning of a sentence: only the first letter changes."""
    return text[:1].upper() + text[1:]


def with_article(noun: str) -> str:
    """`cow` -> `a cow`, `owl` -> `an owl`."""
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def story_fields(hero: Mapping[str, str]) -> dict[str, str]:
    """The slots of a wording about what somebody did."""
    when, where = upper(hero["when"]), upper(hero["where"])
    return {**hero, "When": when, "Where": where, "it": "the " + bare(hero["what"])}


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


@dataclass(frozen=True)
class Fact:
    """One true statement: `subject` has `value`.  `fields` are the slots of wordings about it.

    s: subject in running text, n: without article, p: plural, a: with `a`; v: value, av: with `a`,
    h: a home with its preposition; capital letters: the same at a sentence's start.
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
        fields |= {"h": self.grammar.homes.get(v, f"in the {v}"), "av": with_article(v)}
        return fields | {"A": upper(fields["a"]), "P": upper(fields["p"])}


@dataclass(frozen=True)
class Relation:
    """A kind of fact and its wordings.

    json_keys: the columns of subject and value, which are their names in records.
    both_ways: the second half of the facts are those of the first turned round.
    running: sentences.  keys: phrases after which the value stands on a line of its own.
    back_keys: the same for the subject, only where a value belongs to one subject.
    exam: questions and tasks for exam sheets, which are never answered.
    """

    name: str
    group: str
    title: str
    json_keys: tuple[str, str]
    facts: tuple[Fact, ...]
    both_ways: bool
    held_out: bool
    running: Items
    keys: Items
    exam: Items
    back_keys: Items

    @cached_property
    def unique_values(self) -> frozenset[str]:
        """Values that belong to one subject only."""
        counts = Counter(fact.value for fact in self.facts)
        return frozenset(value for value, n in counts.items() if n == 1)


class Operation(NamedTuple):
    """Two numbers and a result, in words: what a `Relation` is for a table."""

    name: str
    result: Callable[[int, int], int]
    running: Items
    keys: Items
    exam: Items


RESULTS = {"sum": add, "difference": sub, "greater": max, "smaller": min}


class World:
    """All that documents and questions are made of, from one folder of tables."""

    def __init__(self, folder: Path) -> None:
        facts, statements = folder / "facts", folder / "wordings" / "statements"
        read = cache(lambda name, *columns, key=1: tables.read_table(facts / name, columns, key))
        self.words = tables.read_sections(facts)
        self.actions = read("actions.tsv", "past", "plain", "participle")
        self.reviewed = read("reviewed.tsv", "thing", "good", "bad", key=3)
        self.phrases = read("phrases.tsv", "words", "occasion", key=2)
        self.number_words = [row["word"] for row in read("numbers.tsv", "number", "word")]
        of_nouns = ("singular", "plural")
        nouns = read("plurals.tsv", *of_nouns) + read("animal_plurals.tsv", *of_nouns)
        self.grammar = Grammar(
            {row["singular"]: row["plural"] for row in nouns},
            {row["home"]: row["phrase"] for row in read("home_phrases.tsv", "home", "phrase")},
        )
        rows = read("relations.tsv", *RELATION_COLUMNS)
        known = {row["relation"] for row in rows} | RESULTS.keys()
        rules, of_numbers = (tables.read_rules(folder, n) for n in ("statements", "arithmetic"))
        sections = tables.read_sections(statements)
        self.parts = tables.by_part(sections, known, "relation", rules)
        self.relations: dict[str, Relation] = {}
        for row in rows:
            table = read(f"{row['table']}.tsv")
            self.relations[row["relation"]] = self.read_relation(row, table, rules)
        self.operations = {}
        for name, result in RESULTS.items():
            wordings = self.wordings(Text(name, f"{statements}:1"), of_numbers)
            self.operations[name] = Operation(name, result, **wordings)
        self.subjects: dict[str, dict[str, list[tuple[Relation, Fact]]]] = {g: {} for g in GROUPS}
        for relation in self.relations.values():
            for fact in relation.facts if relation.group in GROUPS else ():
                of_subject = self.subjects[relation.group].setdefault(fact.subject, [])
                of_subject.append((relation, fact))

    def read_relation(self, row: Row, table: list[Row], rules: Rules) -> Relation:
        """A line of relations.tsv with its facts and wordings."""
        name, subject, value = row["relation"], row["subject"], row["value"]
        for column in (subject, value):
            tables.one_of(column, table[0] if table else (), f"column of {row['table']}.tsv")
        pairs = [(line[subject], line[value]) for line in table]
        both = tables.one_of(row["ways"], ("one", "both"), "number of ways") == "both"
        if both:
            pairs += [(one, other) for other, one in pairs]
        facts = tuple(self.fact(*pair) for pair in pairs if LEFT_OUT not in pair)
        if not facts:
            raise name.fault(f"no fact in {row['table']}.tsv: {name}")
        held_out = tables.one_of(row["held out"], tables.YES_OR_NO, "answer") == "yes"
        keys, wordings = (subject, value), self.wordings(name, rules)
        return Relation(name, row["group"], row["title"], keys, facts, both, held_out, **wordings)

    def wordings(self, name: Text, rules: Rules) -> dict[str, Items]:
        """The wordings of a relation or an operation; only back keys may be missing."""
        found = self.parts.get(name, {})
        for part, rule in rules.items():
            if part not in found and part != "back keys":
                raise name.fault(f"no section in wordings/statements: [{name}: {part}]")
            tables.check_slots(found.get(part, ()), *rule)
        return {part.replace(" ", "_"): found.get(part, ()) for part in rules}

    def fact(self, subject: str, value: str) -> Fact:
        """A fact, which need not stand in a table."""
        return Fact(subject, value, self.grammar)


read_world = cache(World)  # each folder is read once
