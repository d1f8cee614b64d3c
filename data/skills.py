"""The skills of the instruction data: what can be asked, in which words, and what is held out.

A *skill* is one kind of task: a line of wordings/skills.tsv and its wordings in wordings/questions.
Its column `draws` names a source: a line of wordings/sources.tsv, and a method `draw_...` of a
`Book`, which gives the fields of an item.  Question and answer are made of these.
"""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

from data import relations, tables, world
from data.relations import Fact, bare, upper
from data.tables import LEFT_OUT, Items, Row, Text, fill
from data.world import in_a_row, json_object

HELD_SHARE = 0.3  # of the things in a table
NAMES_TAKEN = {"country": "turkey"}  # held out, its name would stand in questions about the bird
SOURCE_COLUMNS = "source about slots needed answers".split()
SKILL_COLUMNS = "skill draws about with columns answer split shares tone".split()
PHRASED = ("phrases", "questions", "frames")
QUESTION_PARTS = (*PHRASED, *(f"held {part}" for part in PHRASED), "tuned", "held", "more")
EXAMPLES = {"lines": "{} = {}", "pairs": "Review: {}\nSentiment: {}", "arrows": "{} -> {}"}


@dataclass(frozen=True)
class Skill:
    """One kind of task: how to draw an item of it, and how to ask.

    A wording is a text with slots for an item's fields; what stands before `|||` is a system
    prompt.  tuned: wordings of tuning data, which also ask about held-out things.  more: those of
    the tuning data only.  held: never tuned.  lists: fields that are drawn from lists of facts/.
    columns: how many values are asked for at once.  entities: whether it has things to hold out.
    tone: whether it may be asked politely, tersely or with a typing error.
    """

    name: Text
    draws: str
    about: Sequence[Text]
    columns: Sequence[int]
    lists: dict[str, Text]
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
        draw = getattr(self.book, f"draw_{self.draws.replace(' ', '_')}")
        item = {slot: rng.choice(lists[name][pool]) for slot, name in self.lists.items()}
        item |= draw(self, rng, pool)
        return item | {"answer": fill(self.answer, item)}


def has_word(text: str, phrase: str) -> bool:
    """Whether the phrase stands in the text as whole words, whatever the case."""
    return re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", text, re.IGNORECASE) is not None


def hold_out(name: str, things: Sequence[str], taken: str = "") -> frozenset[str]:
    """A share of the things, chosen by their table's name.

    A thing that another one's name contains (Guinea, Papua New Guinea), or that stands in the text
    `taken`, stays in tuning: its name in a prompt would not prove that it is what is asked about.
    """
    free = []
    for thing in things:
        longer = [other for other in things if thing != other and thing.lower() in other.lower()]
        if not any(has_word(text, thing) for text in (*longer, taken)):
            free.append(thing)
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


class Book:
    """All skills and what they draw from, read from one folder of tables."""

    def __init__(self, folder: Path) -> None:
        self.world, self.forms = world.read_world(folder), world.read_forms(folder)
        wordings = folder / "wordings"
        self.asking = tables.read_sections(wordings / "asking.txt")
        for part, rule in tables.read_rules(folder, "asking").items():
            tables.check_slots(self.asking[part], *rule)
        topics = tables.read_table(wordings / "topics.tsv", ("topic", "answer"))
        self.answers = {row["topic"]: row["answer"] for row in topics}
        small_talk = tables.read_sections(wordings / "small_talk.txt")
        self.small_talk = tables.by_part(small_talk, self.answers, "topic", ("tuned", "held"))
        self.sentences = self.read_wordings(folder, "sentences")
        self.follow_ups = self.read_wordings(folder, "follow_ups")
        # a question about one of these words would not show what it is about
        sections = ("stems", "held stems", "frame words")
        self.frame_words = " ".join(text for name in sections for text in self.asking[name])
        lists = dict(self.world.words) | {"reviews": self.world.reviewed}
        self.lists = {name: split_list(name, items) for name, items in lists.items()}
        names = self.world.relations
        self.held = {name: self.held_names(name) for name in names}
        pools = ("tuned", "held", "all")
        self.pools = {(name, pool): self.facts_in(name, pool) for name in names for pool in pools}
        self.real: dict[str, bool] = {}
        sources = tables.read_table(wordings / "sources.tsv", SOURCE_COLUMNS)
        drawn = {name[5:].replace("_", " ") for name in dir(self) if name.startswith("draw_")}
        self.sources = {tables.one_of(row["source"], drawn, "source"): row for row in sources}
        rows = tables.read_table(wordings / "skills.tsv", SKILL_COLUMNS)
        split = {row["skill"]: row["split"] for row in rows}
        for cell in split.values():
            tables.one_of(cell, ("tuned", "held"), "split")
        questions = tables.read_sections(wordings / "questions")
        self.parts = tables.by_part(questions, split, "skill", QUESTION_PARTS)
        self.skills = {row["skill"]: self.read_skill(row) for row in rows}
        self.tuned = [skill for name, skill in self.skills.items() if split[name] == "tuned"]
        self.never_tuned = [skill for name, skill in self.skills.items() if split[name] == "held"]
        self.fact_skills = [skill for skill in self.tuned if skill.draws in ("value", "subject")]
        self.unknown_about = list(self.read_unknown(wordings / "unknown.tsv"))

    # -- reading

    def read_wordings(self, folder: Path, name: str) -> dict[str, Row]:
        """A table of wordings by relation."""
        rules = tables.read_rules(folder, name)
        rows = tables.read_table(folder / "wordings" / f"{name}.tsv", ("relation", *rules))
        for row in rows:
            tables.one_of(row["relation"], self.world.relations, "relation")
            for part, rule in rules.items():
                tables.check_slots([row[part]], *rule)
        return {row["relation"]: row for row in rows}

    def read_skill(self, row: Row) -> Skill:
        """One line of skills.tsv with its wordings."""
        source = self.sources[tables.one_of(row["draws"], self.sources, "source")]
        known = {
            "relation": self.world.relations,
            "operation": self.world.operations,
            "relation with a sentence": self.sentences,
            "relation with a follow-up": self.follow_ups,
            "topic": self.answers,
        }
        about = tables.names_in(row["about"])
        for name in about or [row["about"]] * (source["about"] in known):
            tables.one_of(name, known.get(source["about"], ()), source["about"])
        lists = {}
        for pair in tables.names_in(row["with"]):
            slot, _, name = pair.partition(": ")
            lists[slot] = tables.one_of(pair.with_text(name), self.lists, "list of facts/")
        slots, *needed = tables.rule_of(source)
        tables.check_slots([row["answer"]], {*slots, *source["answers"].split(), *lists})
        rule = [[*slots, *lists], *needed, *([slot] for slot in lists)]
        wordings = [self.combined(row["skill"], rule, kind) for kind in ("", "held ", "more")]
        for part, found in zip(("tuned", "held"), wordings):
            if not found and (part == "tuned" or row["split"] == "tuned"):
                heading = f"[{row['skill']}: {part}]"
                raise row["skill"].fault(f"no section in wordings/questions: {heading}")
        entities = source["about"] != "topic"
        if row["draws"] in ("value", "subject"):
            entities = bool(self.held[about[0]])
        columns = (1, 1) if row["columns"] == LEFT_OUT else tables.numbers_in(row["columns"], 2)
        if columns[1] > max(1, len(about)):
            raise row["columns"].fault(f"more columns than relations: {row['columns']}")
        tone = tables.one_of(row["tone"], tables.YES_OR_NO, "answer") == "yes"
        (shares,) = tables.numbers_in(row["shares"])
        asked = (*wordings, entities, tone, shares, self)
        return Skill(row["skill"], row["draws"], about, columns, lists, row["answer"], *asked)

    def combined(self, name: Text, rule: list[list[str]], kind: str) -> Items:
        """A skill's wordings: the tuned ones, the `held ` ones, or `more`.

        Phrases are put into every general stem, by turns, and the skill's own wordings stand as
        often; questions are put into every frame.
        """
        parts = self.parts.get(name, {})
        own = parts.get(kind.strip() or "tuned", ())
        phrases, frames = parts.get(f"{kind}phrases", ()), parts.get(f"{kind}frames", ())
        if kind == "held ":
            phrases = phrases or parts.get("phrases", ())[:1]
        tables.check_slots(frames, [*rule[0], "q"], ["q"])
        general = [
            question.with_text(frame.replace("{q}", question))
            for question in parts.get(f"{kind}questions", ())
            for frame in frames
        ]
        if phrases:
            for i, stem in enumerate(self.asking[f"{kind}stems"]):
                np = phrases[(i + len(own)) % len(phrases)]
                general.append(np.with_text(fill(stem, {"np": np, "Np": upper(np)})))
            own *= max(1, len(general) // max(1, len(own)))
        if rule == [["q"]] and kind != "more":
            general = [name.with_text("{q}")]
        tables.check_slots([*general, *own], *rule)
        return (*general, *own)

    def read_unknown(self, path: Path) -> Iterator[tuple[Skill, str]]:
        """The skills that ask about things that do not exist, with the kind of thing."""
        for row in tables.read_table(path, ("skill", "thing", "times"), key=2):
            skill = self.skills[tables.one_of(row["skill"], self.skills, "skill")]
            for part in ("tuned", "held", "ends"):
                heading = row["thing"].with_text(f"{row['thing']}: {part}")
                tables.one_of(heading, self.lists, "section of facts/")
            yield from [(skill, row["thing"])] * tables.numbers_in(row["times"])[0]

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
        free = [pair for pair in pairs if not any(has_word(self.frame_words, one) for one in pair)]
        held = hold_out(name, [" ".join(pair) for pair in free])
        return frozenset(word for pair in held for word in pair.split())

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
        name, known = name.lower(), self.real
        if name not in known:
            near = (real for real in self.real_names if abs(len(name) - len(real)) < 3)
            near = (real for real in near if len(set(name) ^ set(real)) < 5)
            known[name] = any(distance(name, real) < 3 for real in near)
        return known[name]

    def made_up(self, rng: random.Random, thing: str, pool: str) -> str:
        """A name of something that does not exist."""
        words = self.world.words
        while True:
            name = rng.choice(words[f"{thing}: {pool}"]) + rng.choice(words[f"{thing}: ends"])
            if not self.looks_real(name):
                prefixes = words.get(f"{thing}: prefixes")
                return f"{rng.choice(prefixes)} {name}".strip() if prefixes else name

    # -- sources: each draws the fields of an item from a pool, "tuned", "held" or "all"

    def draw_value(self, skill: Skill, rng: random.Random, pool: str) -> dict:
        """A fact, of which the value is asked for."""
        return rng.choice(self.pools[skill.about[0], pool]).fields

    def draw_subject(self, skill: Skill, rng: random.Random, pool: str) -> dict:
        """A fact whose value belongs to one subject, which is asked for."""
        unique = self.world.relations[skill.about[0]].unique_values
        facts = [fact for fact in self.pools[skill.about[0], pool] if fact.value in unique]
        return rng.choice(facts).fields

    def draw_numbers(self, skill: Skill, rng: random.Random, pool: str, low: int = 1) -> dict:
        """Two numbers from `low` up that give a result of at most 100, not below 0."""
        operation = self.world.operations[skill.about[0]]
        while True:
            a, b = rng.randint(low, 99), rng.randint(low, 99)
            fits = {"sum": a + b <= 100, "difference": a > b}.get(operation.name, a != b)
            if fits and (pool == "all" or is_held_pair(a, b) == (pool == "held")):
                return {"a": a, "b": b, "c": operation.result(a, b)}

    def draw_larger_numbers(self, skill: Skill, rng: random.Random, pool: str) -> dict:
        """Two numbers of two digits, and how their sum or difference is worked out."""
        item = self.draw_numbers(skill, rng, pool, low=11)
        steps = world.sum_steps if skill.about[0] == "sum" else world.difference_steps
        return item | {"steps": steps(item["a"], item["b"])}

    def draw_numbers_in_a_row(self, skill: Skill, rng: random.Random, pool: str) -> dict:
        """Two numbers and all from one to the other."""
        while True:
            a = rng.randint(1, 92)
            b = a + rng.randint(3, 6)
            if pool == "all" or is_held_pair(a, b) == (pool == "held"):
                return {"a": a, "b": b, "row": ", ".join(str(n) for n in range(a, b + 1))}

    def draw_story(self, skill: Skill, rng: random.Random, pool: str) -> dict:
        """A story of one or two people and the fields of the one who is asked about."""
        lists, forms = self.lists, self.forms.sections
        people, objects = (rng.sample(lists[name][pool], 2) for name in ("people", "objects"))
        heroes = []
        for who, what in zip(people, objects):
            action = rng.choice(self.world.actions)
            hero = {"who": who, "past": action["past"], "plain": action["plain"], "what": what}
            hero["where"] = rng.choice(lists["places"][pool])
            hero["when"] = rng.choice(lists["times"][pool])
            heroes.append(relations.story_fields(hero))
        heroes = heroes[: 1 if rng.random() < 0.7 else 2]
        sentences = []
        for hero in heroes:
            sentences.append(fill(rng.choice(forms["story openings"].lines), hero))
            sentences += rng.sample(self.world.words["fillers"], rng.randint(0, 1))
        short = forms["story summaries"].lines[0]
        summary = " ".join(fill(short, hero) for hero in heroes)
        told = {"story": " ".join(sentences), "summary": summary, "people": len(heroes)}
        return rng.choice(heroes) | told

    def draw_story_of_one(self, skill: Skill, rng: random.Random, pool: str) -> dict:
        """A story of one person, and some of its parts as a record."""
        item = self.draw_story(skill, rng, pool)
        while item["people"] > 1:
            item = self.draw_story(skill, rng, pool)
        choices = (("who", "what", "where"), ("who", "what"), ("who", "where"), ("what", "where"))
        keys = rng.choice(choices)
        record = json_object([(key, item[key]) for key in keys])
        return item | {"keys": in_a_row(keys), "record": record}

    def draw_review(self, skill: Skill, rng: random.Random, pool: str) -> dict:
        """A review of one or two sentences, and its sentiment."""
        lists = self.lists
        reviewed = rng.choice(lists["reviews"][pool])
        positive = rng.random() < 0.5
        own = reviewed["good" if positive else "bad"]
        general = rng.choice(lists["praise" if positive else "blame"][pool])
        opening = ""
        if not reviewed["thing"].endswith("s"):
            openings = self.forms.sections["review openings"].lines
            opening = rng.choice(("", "", fill(rng.choice(openings), reviewed) + " "))
        text = opening + rng.choice((own, f"{own} {general}", f"{general} {own}"))
        return {"text": text, "label": "positive" if positive else "negative"}

    def draw_labelled_reviews(self, skill: Skill, rng: random.Random, pool: str) -> dict:
        """Two or three labelled reviews with both labels, then one without a label."""
        while True:
            shots = [self.draw_review(skill, rng, pool) for _ in range(rng.randint(2, 3))]
            last = self.draw_review(skill, rng, pool)
            texts = [shot["text"] for shot in shots]
            if len({shot["label"] for shot in shots}) == 2 and last["text"] not in texts:
                break
        return last | {
            name: "\n".join(mark.format(shot["text"], shot["label"]) for shot in shots)
            for name, mark in EXAMPLES.items()
        }

    def draw_columns(self, skill: Skill, rng: random.Random, pool: str) -> dict:
        """A subject, and some of its columns as a record and as a list."""
        relations = [self.world.relations[name] for name in skill.about]
        values: dict[str, dict[str, str]] = {}
        for relation in relations:
            for fact in relation.facts:
                values.setdefault(fact.subject, {})[relation.json_keys[1]] = fact.value
        names, held = [relation.json_keys[1] for relation in relations], self.held[skill.about[0]]
        subjects = list(values)
        while True:
            subject = rng.choice(subjects)
            keys = rng.sample(names, rng.randint(*skill.columns))
            in_pool = pool == "all" or (bare(subject) in held) == (pool == "held")
            if in_pool and all(key in values[subject] for key in keys):
                break
        cells = [(key, values[subject][key]) for key in keys]
        fields = self.world.fact(subject, LEFT_OUT).fields
        return fields | {
            "keys": in_a_row(keys),
            "the_keys": in_a_row([f"the {key}" for key in keys]),
            "record": json_object([(relations[0].json_keys[0], fields["n"]), *cells]),
            "list": "\n".join(value for _, value in cells),
        }

    def draw_question(self, skill: Skill, rng: random.Random, pool: str) -> dict:
        """A question about a fact of one of the relations, and the sentence that answers it."""
        row = self.sentences[rng.choice(skill.about)]
        fields = rng.choice(self.pools[row["relation"], pool]).fields
        asked = {"q": fill(row["question"], fields), "sentence": fill(row["sentence"], fields)}
        return fields | asked

    def draw_question_of_one_word(self, skill: Skill, rng: random.Random, pool: str) -> dict:
        """A question whose answer is a single word."""
        while " " in (item := self.draw_question(skill, rng, pool))["v"]:
            pass
        return item

    def draw_question_with_form(self, skill: Skill, rng: random.Random, pool: str) -> dict:
        """A question, and a form of answer that the system prompt sets."""
        item = self.draw_question(skill, rng, pool)
        forms = {
            "in a whole sentence": item["sentence"],
            "with the bare answer only": item["v"],
            'in JSON with the key "answer"': json_object([("answer", item["v"])]),
        }
        form = rng.choice(list(forms))
        return item | {"form": form, "formed": forms[form]}

    def draw_rows(self, skill: Skill, rng: random.Random, pool: str) -> dict:
        """Some rows of a table in one form, the last one without its value."""
        pool_of = self.pools[rng.choice(skill.about), pool]
        facts = rng.sample(pool_of, rng.randint(3, 4))
        while len({word for f in facts for word in (f.subject, f.value)}) < 2 * len(facts) - 1:
            facts = rng.sample(pool_of, 3)
        mark = rng.choice(self.asking["example rows"])
        rows = [fill(mark, fact.fields) for fact in facts[:-1]]
        last = fill(mark, facts[-1].fields | {"v": ""}).strip()
        return {"rows": "\n".join([*rows, last]), "v": facts[-1].value}

    def draw_follow_up(
        self,
        skill: Skill,
        rng: random.Random,
        pool: str,
        names: Sequence[str] = (),
        last: Fact | None = None,
    ) -> dict:
        """One or two questions with their answers, then another subject for the same question."""
        name, between = rng.choice(names or skill.about), self.skills["follow_up"].tuned[:4]
        facts = rng.sample(self.pools[name, pool], rng.choice((2, 2, 3)))
        facts[-1] = last or facts[-1]
        before = []
        for i, fact in enumerate(facts[:-1]):
            question = self.follow_ups[name]["question"] if i == 0 else rng.choice(between)
            before += [("user", fill(question, fact.fields)), ("assistant", fact.value)]
        return facts[-1].fields | {"before": before}

    def draw_small_talk(self, skill: Skill, rng: random.Random, pool: str) -> dict:
        """What users say about a topic, with its answer."""
        part, said = "held" if pool == "held" else "tuned", []
        for topic in skill.about:
            answer = self.answers[topic]
            said += [{"q": text, "answer": answer} for text in self.small_talk[topic][part]]
        return rng.choice(said)

    def draw_unknown(
        self, skill: Skill, rng: random.Random, pool: str, reworded: bool = False
    ) -> dict:
        """A question as real things are asked about, about something made up."""
        about, thing = rng.choice(self.unknown_about)
        name = self.made_up(rng, thing, pool)
        pair = (LEFT_OUT, name) if about.draws == "subject" else (name, LEFT_OUT)
        fact, again = self.world.fact(*pair), self.skills["follow_up"]
        names = [name for name in again.about if self.world.relations[name].group == thing]
        if names and rng.random() < 0.2:
            item = self.draw_follow_up(again, rng, pool, names, fact)
            question = rng.choice(again.held if reworded else again.tuned)
            return item | {"q": fill(question, fact.fields)}
        more = about.more if pool == "tuned" else ()
        question = rng.choice(about.held if reworded else about.tuned + more)
        if not reworded and rng.random() < 0.12:
            question = rng.choice(self.skills["one_word"].tuned).replace("{q}", question)
        return {"q": fill(question, fact.fields)}

    def draw_unknown_reworded(self, skill: Skill, rng: random.Random, pool: str) -> dict:
        """The same in wordings that are never tuned."""
        return self.draw_unknown(skill, rng, pool, reworded=True)

    def draw_lists(self, skill: Skill, rng: random.Random, pool: str) -> dict:
        """Nothing besides what is drawn from the lists of the column `with`."""
        return {}


def distance(a: str, b: str) -> int:
    """Edit distance: how many letters must be put in, left out or changed."""
    row = list(range(len(b) + 1))
    for i, letter in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, other in enumerate(b, 1):
            changed = previous + (letter != other)
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, changed)
    return row[-1]


read_book = cache(Book)  # each folder is read once
