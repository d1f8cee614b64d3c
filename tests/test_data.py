"""World, documents and instruction data: true, deterministic, and apart where they must be."""

import difflib
import itertools
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from data import make_instruct as instruct
from data import tables, world
from data.relations import Relation, bare, read_world
from data.skills import distance, read_book
from runtime.records import read_conversations

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data"
WORLD, BOOK = read_world(DATA), read_book(DATA)
I_DONT_KNOW = BOOK.skills["unknown"].answer
RELATIONS = WORLD.relations

# role names of chats; `Question:` may stand there, as a word whose opposite follows
CHAT_MARKERS = re.compile(
    r"<\||\|>|\[/?INST\]|<</?SYS>>|^#+ ?(Instruction|Response|Input)"
    r"|^ *(User|Assistant|System|Human) ?:",
    re.IGNORECASE | re.MULTILINE,
)
TASK_VERBS = ("Name", "Write", "Give", "Find", "Translate", "Put", "Add", "Subtract", "Read")


@cache
def sample() -> tuple[world.Writer, list[tuple[str, str]]]:
    """Two million characters of documents with their kinds, and the writer, which counted them."""
    writer, documents, size = world.Writer(7), [], 0
    while size < 2_000_000:
        documents.append(writer.document())
        size += len(documents[-1][1])
    return writer, documents


@cache
def made() -> dict[str, list[dict]]:
    return instruct.make()


@cache
def taken_apart() -> dict[str, list[dict]]:
    """Both files' records, with those that are joined to chats apart: each has its skill."""
    tuned, held_out, of_chats = instruct.make_parts(set())
    return {instruct.TUNING_FILE: tuned + of_chats, instruct.HELDOUT_FILE: held_out}


def tuning() -> list[dict]:
    return taken_apart()[instruct.TUNING_FILE]


def held(split: str) -> list[dict]:
    return [record for record in taken_apart()[instruct.HELDOUT_FILE] if record["split"] == split]


def asked(record: dict) -> str:
    """All that the user says in a record."""
    return "\n".join(
        message["content"] for message in record["messages"] if message["role"] == "user"
    )


def whole(record: dict) -> str:
    return "\n".join(message["content"] for message in record["messages"])


def normalised(record: dict) -> str:
    return instruct.normalised(record["messages"], BOOK.asking["polite words"])


def value_of(relation: Relation, subject: str) -> str:
    return {fact.subject: fact.value for fact in relation.facts}[subject]


# --------------------------------------------------------------------------------------- the tables


@pytest.mark.parametrize(
    ("relation", "subject", "value"),
    [
        (RELATIONS["capital"], "France", "Paris"),
        (RELATIONS["capital"], "Peru", "Lima"),
        (RELATIONS["capital"], "Australia", "Canberra"),
        (RELATIONS["capital"], "Turkey", "Ankara"),
        (RELATIONS["capital"], "Brazil", "Brasilia"),
        (RELATIONS["capital"], "Kazakhstan", "Astana"),
        (RELATIONS["capital"], "the Netherlands", "Amsterdam"),
        (RELATIONS["continent"], "Egypt", "Africa"),
        (RELATIONS["continent"], "Mexico", "North America"),
        (RELATIONS["language"], "Brazil", "Portuguese"),
        (RELATIONS["language"], "Iran", "Persian"),
        (RELATIONS["currency"], "Japan", "Japanese yen"),
        (RELATIONS["currency"], "Croatia", "euro"),
        (RELATIONS["symbol"], "gold", "Au"),
        (RELATIONS["symbol"], "tungsten", "W"),
        (RELATIONS["number"], "iron", "26"),
        (RELATIONS["number"], "uranium", "92"),
        (RELATIONS["number"], "oganesson", "118"),
        (RELATIONS["animal class"], "bat", "mammal"),
        (RELATIONS["young"], "cow", "calf"),
        (RELATIONS["sound"], "owl", "hoot"),
        (RELATIONS["diet"], "panda", "bamboo"),
        (RELATIONS["home"], "bee", "hive"),
        (RELATIONS["opposite"], "cold", "hot"),
        (RELATIONS["plural"], "child", "children"),
        (RELATIONS["past"], "go", "went"),
        (RELATIONS["comparative"], "good", "better"),
        (RELATIONS["french"], "house", "maison"),
        (RELATIONS["number word"], "46", "forty-six"),
        (RELATIONS["day before"], "Monday", "Sunday"),
        (RELATIONS["month after"], "December", "January"),
        (RELATIONS["colour"], "a lemon", "yellow"),
        (RELATIONS["shape"], "a coin", "circle"),
    ],
)
def test_known_facts(relation: Relation, subject: str, value: str) -> None:
    assert value_of(relation, subject) == value


def test_tables_have_the_stated_sizes() -> None:
    sizes = {relation.name: len(relation.facts) for relation in RELATIONS.values()}
    assert (
        sizes["continent"] >= 190
        and sizes["capital"] >= 180
        and sizes["symbol"] == sizes["number"] == 118
    )
    assert sizes["animal class"] >= 100 and sizes["french"] >= 300 and sizes["number word"] == 101


@pytest.mark.parametrize("relation", RELATIONS.values(), ids=lambda relation: relation.name)
def test_relations_are_well_formed(relation: Relation) -> None:
    """One value a subject, no empty or left-out cell, wordings that name what they are about."""
    subjects = [fact.subject for fact in relation.facts]
    assert len(set(subjects)) == len(subjects)
    for fact in relation.facts:
        for text in (fact.subject, fact.value):
            assert (
                text == text.strip()
                and text not in ("", "-")
                and "|" not in text
                and "\n" not in text
            )
    assert len(set(relation.running)) == len(relation.running) >= 8
    assert len(set(relation.keys)) == len(relation.keys)
    assert len(relation.keys) + len(relation.back_keys) >= 8
    for template in relation.running:
        assert re.search(r"{[vVh]}|{av}", template) and re.search(r"{[sSnNaApP]}", template), (
            template
        )
    for template in relation.keys:
        assert (
            re.search(r"{[snNap]}", template) and "{v}" not in template and "?" not in template
        ), template
    for template in relation.back_keys:
        assert (
            re.search(r"{[vh]}|{av}", template) and "{s}" not in template and "?" not in template
        ), template


def test_tables_are_rectangular_and_without_repetition() -> None:
    paths = sorted(DATA.glob("*/*.tsv"))
    assert len(paths) >= 25
    for path in paths:
        rows = tables.read_table(path, key=0)
        assert len({len(row) for row in rows}) == 1, path
        assert len({tuple(row.values()) for row in rows}) == len(rows), path
    for name in ("people", "objects", "places", "times", "fillers", "praise", "blame"):
        items = WORLD.words[name]
        assert len(set(items)) == len(items) > 10, name


def test_words_have_one_answer_in_both_directions() -> None:
    rows = tables.read_table(DATA / "facts" / "opposites.tsv")
    opposites = [word for row in rows for word in row.values()]
    assert len(set(opposites)) == len(opposites)
    for relation in (
        RELATIONS["french"],
        RELATIONS["capital"],
        RELATIONS["symbol"],
        RELATIONS["number"],
        RELATIONS["number word"],
    ):
        assert len(relation.unique_values) == len(relation.facts), relation.name


# ------------------------------------------------------------------------ tables: faults, additions


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of all that is read, to be changed."""
    for name in ("facts", "wordings", "documents"):
        shutil.copytree(DATA / name, tmp_path / name)
    shutil.copy(DATA / "slots.tsv", tmp_path)
    return tmp_path


def change(path: Path, old: str, new: str) -> int:
    """Replace a text that stands there once; gives the number of the line where it begins."""
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1, old
    path.write_text(text.replace(old, new), encoding="utf-8")
    return text[: text.index(old)].count("\n") + 1


COUNTRIES, SKILLS = "facts/countries.tsv", "wordings/skills.tsv"
RELATION_TABLE, DOCUMENTS = "facts/relations.tsv", "documents/facts.txt"
STATEMENTS, QUESTIONS = "wordings/statements/country.txt", "wordings/questions/country.txt"
PERU = "Peru\tLima\tSouth America\tSpanish\tPeruvian sol\n"
RUNNING, ASKED = "[capital: running]\n", "[capital: tuned]\n"
CAPITAL = "capital\tcountry\tCountries and their capitals\tcountries\tcountry\tcapital\tone\tyes\n"
SEAT = CAPITAL.replace("capital\tcountry", "seat\tcountry", 1)
SKILL = "capital\tvalue\tcapital\t-\t-\t{v}\ttuned\t1\tyes\n"
NEW_SKILL = SKILL.replace("capital", "seat", 1)


VALUE = "{v} or {V} or {h} or {av}"
SUBJECT = "{s} or {S} or {n} or {N} or {a} or {A} or {p} or {P}"
NO_SECTION = "no section in wordings/questions: "
WHEN = "when\tstory\t-\t-\t-\t{when}\theld\t1\tyes\n"
MISSING = "a wording without its slot, "
FAULTS = [  # a table, what is changed in it, how many lines further on the fault is, and the reason
    (COUNTRIES, PERU, "Peru\tLima\n", 0, "2 columns instead of 5"),
    (COUNTRIES, PERU, PERU[:-1] + "\tx\n", 0, "6 columns instead of 5"),
    (COUNTRIES, PERU, PERU.replace("Lima", ""), 0, "empty cell: capital"),
    (COUNTRIES, PERU, PERU.replace("Lima", "  "), 0, "empty cell: capital"),
    (COUNTRIES, PERU, PERU.replace("Lima", "Li "), 0, "a space at the start or the end: 'Li '"),
    (COUNTRIES, PERU, PERU.replace("Peru\t", "-\t"), 0, "a cell that may not be left out: country"),
    (COUNTRIES, PERU, PERU.replace("Lima", "\\x"), 0, "unknown escape: \\x"),
    (COUNTRIES, PERU, PERU * 2, 1, "duplicate: Peru (first: FIRST)"),
    (RELATION_TABLE, "\tcapital\tone", "\tseat\tone", 0, "unknown column of countries.tsv: seat"),
    (RELATION_TABLE, "capital\tone\tyes", "capital\ttwo\tyes", 0, "unknown number of ways: two"),
    (RELATION_TABLE, "capital\tone\tyes", "capital\tone\tmaybe", 0, "unknown answer: maybe"),
    (
        RELATION_TABLE,
        CAPITAL,
        SEAT + CAPITAL,
        0,
        "no section in wordings/statements: [seat: running]",
    ),
    (
        RELATION_TABLE,
        CAPITAL,
        CAPITAL.replace("countries", "lands"),
        None,
        "cannot be read: No such file or directory",
    ),
    (STATEMENTS, RUNNING, RUNNING + "{v} rules {x}.\n", 1, "unknown slot: {x}"),
    (STATEMENTS, RUNNING, RUNNING + "{v} rules {s.value}.\n", 1, "unknown slot: {s.value}"),
    (STATEMENTS, RUNNING, RUNNING + "{v} rules {s.\n", 1, "a brace that belongs to no slot"),
    (STATEMENTS, RUNNING, RUNNING + "See {s}.\n", 1, MISSING + VALUE + ": 'See {s}.'"),
    (STATEMENTS, RUNNING, "[captial: running]\n", 0, "unknown relation: captial"),
    (STATEMENTS, RUNNING, "[capital: run]\n", 0, "unknown part of a relation: capital: run"),
    (STATEMENTS, RUNNING, "{v}: {s}\n" + RUNNING, 0, "a line before the first [section]"),
    (STATEMENTS, RUNNING, RUNNING + "{v}: {s}\n" * 2, 2, "duplicate: {v}: {s} (first: NEXT)"),
    (
        *(STATEMENTS, RUNNING, RUNNING + "{v}: {s}\n" + RUNNING, 2),
        "duplicate: [capital: running] (first: FIRST)",
    ),
    (QUESTIONS, ASKED, "[captial: tuned]\n", 0, "unknown skill: captial"),
    (QUESTIONS, ASKED, ASKED + "Where is {q}?\n", 1, "unknown slot: {q}"),
    (
        QUESTIONS,
        ASKED,
        ASKED + "And {v}?\n",
        1,
        MISSING + SUBJECT + ": 'And {v}?'",
    ),
    (SKILLS, "skill\tdraws\t", "skill\tdrawn\t", 0, "no column: draws"),
    (SKILLS, SKILL, SKILL.replace("\tcapital\t", "\tcapitol\t"), 0, "unknown relation: capitol"),
    (SKILLS, SKILL, SKILL.replace("value", "values"), 0, "unknown source: values"),
    (SKILLS, SKILL, SKILL.replace("{v}", "{w}"), 0, "unknown slot: {w}"),
    (SKILLS, SKILL, SKILL.replace("tuned\t1", "tuned\t0"), 0, "not a number, above 0: 0"),
    (SKILLS, SKILL, SKILL.replace("tuned\t1", "trained\t1"), 0, "unknown split: trained"),
    (SKILLS, SKILL, NEW_SKILL + SKILL, 0, NO_SECTION + "[seat: tuned]"),
    (SKILLS, WHEN, WHEN.replace("held", "tuned"), 0, NO_SECTION + "[when: held]"),
    (SKILLS, "\t2-3\t", "\t2-4\t", 0, "more columns than relations: 2-4"),
    (SKILLS, "\t2-3\t", "\t2\t", 0, "not numbers like 2-3, above 0: 2"),
    (SKILLS, "h: harm", "h: harms", 0, "unknown list of facts/: harms"),
    (
        "wordings/asking.txt",
        "Give {np}.",
        "Give it.",
        0,
        MISSING + "{np} or {Np}: 'Give it.'",
    ),
    ("wordings/unknown.tsv", "symbol\telement", "symbols\telement", 0, "unknown skill: symbols"),
    ("wordings/sentences.tsv", "capital\t", "capitol\t", 0, "unknown relation: capitol"),
    ("documents/kinds.tsv", "cards\t14", "carts\t14", 0, "unknown kind of document: carts"),
    ("documents/kinds.tsv", "cards\t14", "cards\tmany", 0, "not a number, above 0: many"),
    (DOCUMENTS, "rows = {5-12 card}", "rows = {5-12 cart}", 0, "unknown slot: {5-12 cart}"),
    (DOCUMENTS, "row = one of short keys", "row = one of keys", 0, "unknown section: keys"),
    (DOCUMENTS, "[home: list]", "[hoe: list]", 0, "unknown relation: hoe"),
    (DOCUMENTS, "[card]\n", "[cart]\n[card]\n", 0, "a section without a line: [cart]"),
    (
        DOCUMENTS,
        "[card]\n",
        "[cart]\na = {line}\n\n[card]\n",
        1,
        "a section of steps only, without a line",
    ),
    (
        *("documents/layouts.txt", "Page {i}, {k}\\n{v}", "Page {i}, {k}", 0),
        MISSING + "{v}: 'Page {i}, {k}'",
    ),
]


@pytest.mark.parametrize(("file", "old", "new", "offset", "reason"), FAULTS)
def test_a_fault_in_a_table_is_one_line(
    folder: Path, file: str, old: str, new: str, offset: int | None, reason: str
) -> None:
    """`file:line: reason`, whatever the table."""
    path = folder / file
    number = change(path, old, new)
    reason = reason.replace("FIRST", f"{path}:{number}").replace("NEXT", f"{path}:{number + 1}")
    with pytest.raises(ValueError) as fault:
        read_book(folder)
    if offset is None:  # it is a fault of another file, which it names
        path, number, offset = folder / "facts" / "lands.tsv", 1, 0
    assert str(fault.value) == f"{path}:{number + offset}: {reason}"


def test_a_table_that_is_not_utf8_or_missing(folder: Path) -> None:
    path = folder / COUNTRIES
    number = change(path, PERU, PERU)
    path.write_bytes(path.read_bytes().replace(b"Peruvian", b"Peruvian\xff"))
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}:{number}: not UTF-8$"):
        read_book(folder)
    path.unlink()
    reason = "1: cannot be read: No such file or directory"
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}:{reason}$"):
        read_book(folder)


def test_a_table_without_facts(folder: Path) -> None:
    (folder / "facts/shapes.tsv").write_text("thing\tshape\na ball\t-\n", encoding="utf-8")
    number = change(folder / RELATION_TABLE, "shape\tthing\t", "shape\tthing\t")
    reason = re.escape(f"{folder / RELATION_TABLE}:{number}: no fact in shapes.tsv: shape")
    with pytest.raises(ValueError, match=f"^{reason}$"):
        read_book(folder)


def test_a_slot_that_nothing_gives_is_a_fault_when_it_is_needed(folder: Path) -> None:
    """A section may rely on what the section around it gives; whether it does, shows in writing."""
    path = folder / DOCUMENTS
    number = change(path, "[card]\nabout = {one fact}\n", "[card]\nabout = {day}\n") + 1
    reason = re.escape(f"{path}:{number}: nothing gives this slot here: {{day}}")
    with pytest.raises(ValueError, match=f"^{reason}$"):
        list(itertools.islice(world.documents(1, folder=folder), 200))


def test_a_section_that_stands_in_itself(folder: Path) -> None:
    number = change(folder / "documents/kinds.tsv", "cards\t14", "loop\t90\tno\ncards\t14")
    path = folder / DOCUMENTS
    path.write_text(path.read_text(encoding="utf-8") + "\n[loop]\nA {loop}\n", encoding="utf-8")
    where = re.escape(f"{folder / 'documents' / 'kinds.tsv'}:{number}")
    with pytest.raises(
        ValueError, match=f"^{where}: a section of this kind stands in itself: loop$"
    ):
        list(itertools.islice(world.documents(1, folder=folder), 50))


def test_the_script_reports_a_fault(tmp_path: Path) -> None:
    """One line on stderr, nothing on stdout, status 2."""
    ignored = shutil.ignore_patterns("base.pt", "__pycache__")
    shutil.copytree(DATA, tmp_path / "data", ignore=ignored)
    command = [sys.executable, str(tmp_path / "data" / "make_instruct.py"), "--check"]
    number = change(tmp_path / "data" / COUNTRIES, PERU, "Peru\tLima\n")
    run = subprocess.run(command, capture_output=True, text=True)
    fault = f"{tmp_path / 'data' / COUNTRIES}:{number}: 2 columns instead of 5"
    assert (run.returncode, run.stdout, run.stderr) == (2, "", f"error: {fault}\n")


def stream(folder: Path, n: int, group: str | None = None) -> str:
    return "\n\n\n".join(itertools.islice(world.documents(5, group=group, folder=folder), n))


def asked_about(skill: str, folder: Path) -> list[dict]:
    return list(instruct.records(read_book(folder).skills[skill], "train", 60, set()))


def test_a_country_is_added_in_a_table(folder: Path) -> None:
    """It stands in documents, and is asked about or held out of all that is asked."""
    change(folder / COUNTRIES, PERU, PERU + "Freedonia\tFredville\tEurope\tFredish\tFredmark\n")
    text = stream(folder, 1500, "country")
    for word in ("Freedonia", "Fredville", "Fredish", "Fredmark"):
        assert word in text and word not in stream(DATA, 10)
    book = read_book(folder)
    pools = [book.pools["capital", pool] for pool in ("tuned", "held")]
    assert sum(fact.value == "Fredville" for pool in pools for fact in pool) == 1


def test_wordings_are_added_in_text_files(folder: Path) -> None:
    change(folder / STATEMENTS, RUNNING, RUNNING + "{v} is the seat of power of {s}.\n")
    change(folder / QUESTIONS, ASKED, ASKED + "Where does {s} have its seat of power?\n")
    assert " is the seat of power of " in stream(folder, 300, "country")
    assert any("seat of power" in asked(record) for record in asked_about("capital", folder))


def test_a_kind_of_document_is_added_in_text_files(folder: Path) -> None:
    change(folder / "documents/kinds.tsv", "cards\t14", "letter\t50\tno\ncards\t14")
    letter = "\n[letter]\nwho = {people}\nDear {who},\\n{2-3 running}\\nYours, {people}\n"
    path = folder / DOCUMENTS
    path.write_text(path.read_text(encoding="utf-8") + letter, encoding="utf-8")
    writer = world.Writer(2, folder=folder)
    letters = [text for kind, text in (writer.document() for _ in range(200)) if kind == "letter"]
    assert len(letters) > 20
    for text in letters:
        first, *statements, last = text.splitlines()
        assert (
            first.startswith("Dear ") and last.startswith("Yours, ") and 2 <= len(statements) <= 3
        )


def test_a_relation_and_a_skill_are_added_in_text_files(folder: Path) -> None:
    planets = "planet\tplace\nMercury\tfirst\nVenus\tsecond\nEarth\tthird\nMars\tfourth\n"
    planets += "Jupiter\tfifth\nSaturn\tsixth\nUranus\tseventh\nNeptune\teighth\n"
    (folder / "facts/planets.tsv").write_text(planets, encoding="utf-8")
    relation = "planet\tspace\tPlanets\tplanets\tplanet\tplace\tone\tyes\n"
    change(folder / RELATION_TABLE, CAPITAL, relation + CAPITAL)
    statements = "[planet: running]\n{s} is the {v} planet.\n[planet: keys]\nplace of {s}\n"
    statements += "[planet: exam]\nWhich place has {s}?\n"
    (folder / "wordings/statements/space.txt").write_text(statements, encoding="utf-8")
    skills = "planet\tvalue\tplanet\t-\t-\t{v}\ttuned\t1\tyes\n"
    skills += "planet_sentence\tvalue\tplanet\t-\t-\tIt is the {v} one.\ttuned\t1\tno\n"
    change(folder / SKILLS, SKILL, skills + SKILL)
    questions = "[planet: phrases]\nthe place of {s}\n[planet_sentence: tuned]\nPlace of {s}?\n"
    questions += "[planet_sentence: held]\nWhich place does {s} have?\n"
    (folder / "wordings/questions/space.txt").write_text(questions, encoding="utf-8")
    assert re.search(
        "(Neptune|Mars|Earth) is the (eighth|fourth|third) planet.", stream(folder, 500)
    )
    answers = {record["messages"][-1]["content"] for record in asked_about("planet", folder)}
    assert answers <= {row.split("\t")[1] for row in planets.splitlines()} and len(answers) == 6
    skill = read_book(folder).skills["planet_sentence"]
    (record,) = instruct.records(skill, "train", 1, set())
    assert re.fullmatch("It is the [a-z]+ one.", record["messages"][-1]["content"])


# ------------------------------------------------------------------------------------ the documents


def first_documents(seed: int, n: int = 60) -> str:
    stream = world.documents(seed)
    return "\n\n\n".join(next(stream) for _ in range(n))


def test_stream_is_deterministic() -> None:
    """The same in another process, whose hashes of strings differ; another seed gives others."""
    script = "import sys; from data import world; s = world.documents(3)"
    script += "; t = '\\n\\n\\n'.join(next(s) for _ in range(60))"
    command = [sys.executable, "-c", f"{script}; sys.stdout.buffer.write(t.encode())"]
    run = subprocess.run(
        command, cwd=ROOT, capture_output=True, check=True, env={"PYTHONHASHSEED": "5"}
    )
    assert run.stdout.decode() == first_documents(3) != first_documents(4)


def test_every_kind_of_document_is_written() -> None:
    _, documents = sample()
    assert {kind for kind, _ in documents} == set(world.read_forms(DATA).rates)
    assert all(len(text.strip()) > 2 for _, text in documents)


def test_no_chat_in_documents() -> None:
    """No role marker; questions stand on exam sheets only, where every line is one, or a task."""
    for kind, text in sample()[1]:
        assert not CHAT_MARKERS.search(text), text
        if kind != "exam":
            if kind == "copy book":  # sayings of random words, which may end like a question
                for saying in re.findall('"(.+?)"', text):
                    text = text.replace(saying, "")
            assert "?" not in text, text
            continue
        for line in text.split("\n\n", 1)[1].splitlines():
            task = re.sub(r"^\d+\. ", "", line)
            assert task.endswith("?") or task.startswith(TASK_VERBS), text


def test_no_question_of_the_instruction_data_is_answered_in_a_document() -> None:
    text = "\n" + "\n".join(text for _, text in sample()[1]) + "\n"
    for record in (record for rows in taken_apart().values() for record in rows):
        if record["skill"] in ("few_shot", "sentiment_few_shot"):
            continue  # lines of a table: hard to ask, and easy to go on with
        question, answer = (message["content"] for message in record["messages"][-2:])
        assert f"\n{question}\n{answer}\n" not in text, question


def test_sums_in_documents_are_right() -> None:
    """Every `a + b = c` and `a - b = c`, worked steps included."""
    n = 0
    for _, text in sample()[1]:
        for a, sign, b, c in re.findall(r"(?<![\d+] )(?<!\d)(\d+) ([-+]) (\d+) = (\d+)", text):
            assert int(a) + (int(b) if sign == "+" else -int(b)) == int(c), text
            n += 1
    assert n > 3000


def test_values_stand_at_line_starts() -> None:
    """At least 40 % of the statements of every kind of fact, as the writer counts them."""
    tally = sample()[0].tally
    total, at_start = Counter(), Counter()
    for (name, where), n in tally.items():
        total[name] += n
        at_start[name] += n * (where in ("line", "back"))
    assert set(total) >= {relation.name for relation in RELATIONS.values()} | {
        "sum",
        "difference",
        "sentiment",
        "story who",
    }
    for name in total:
        assert at_start[name] >= 0.4 * total[name], (name, at_start[name] / total[name])


def test_values_stand_at_line_starts_in_the_text_itself() -> None:
    """The same without the writer's word: lines that consist of a capital (a young, ...) only.

    These words also stand in records, as keys (where the fact is asked backwards) and on title
    lines: hence a quarter.
    """
    text = "\n".join(text for kind, text in sample()[1] if kind != "exam")
    for relation in (
        RELATIONS["capital"],
        RELATIONS["currency"],
        RELATIONS["young"],
        RELATIONS["comparative"],
    ):
        values = {fact.value for fact in relation.facts}
        alone = Counter(line for line in text.splitlines() if line in values)
        pattern = "|".join(re.escape(value) for value in sorted(values, key=len, reverse=True))
        found = re.findall(rf"(?<![\w-])(?:{pattern})(?![\w-])", text)
        assert alone.total() >= 0.25 * len(found), relation.name
        assert sum(value in alone for value in values) >= 0.9 * len(values), relation.name


def test_facts_are_stated_about_equally_often() -> None:
    writer = sample()[0]
    stated = Counter()
    for (name, _), n in writer.tally.items():
        stated[name] += n
    rates = {r.name: stated[r.name] / max(world.FLOOR, len(r.facts)) for r in RELATIONS.values()}
    mean = sum(rates.values()) / len(rates)
    assert all(0.8 * mean < rate < 1.25 * mean for rate in rates.values()), rates


def test_experiments_on_the_documents() -> None:
    """`wordings` limits those of a fact; `line_start=False`: no value at a line's start."""
    fact = RELATIONS["capital"].facts[0]
    few, many = world.Writer(1, wordings=2), world.Writer(1)
    assert len({few.running(RELATIONS["capital"], fact) for _ in range(200)}) == 2
    assert len({many.running(RELATIONS["capital"], fact) for _ in range(400)}) == len(
        RELATIONS["capital"].running
    )
    writer = world.Writer(1, line_start=False)
    keyed = [writer.line(RELATIONS["capital"], fact) for _ in range(200)]
    scope = world.Scope(relation=RELATIONS["capital"], fact=fact)
    row = tables.Text("{Key}\n{value}", "")
    keyed += [writer.filled(row, scope) for _ in range(5)]
    assert not any(re.search(r"^(Kabul|Afghanistan)$", text, re.MULTILINE) for text in keyed)


# ----------------------------------------------------------------------------- the instruction data


def test_files_are_what_the_script_makes() -> None:
    for name, rows in made().items():
        assert (DATA / name).read_bytes() == instruct.as_text(rows).encode(), (
            f"run python data/make_instruct.py ({name})"
        )


def test_records_are_well_formed() -> None:
    for name, rows in made().items():
        for record in rows:
            assert set(record) == {"messages", "skill", "split"}
            roles = [message["role"] for message in record["messages"]]
            assert roles[roles[0] == "system" :] == ["user", "assistant"] * (len(roles) // 2)
            assert all(
                message["content"].strip() == message["content"] != ""
                for message in record["messages"]
            )
            assert not re.search(r"{\w+}", whole(record)), record
            assert (record["split"] == "train") == (name == instruct.TUNING_FILE)


def test_skills_are_balanced_by_the_stated_rule() -> None:
    records = made()[instruct.TUNING_FILE]
    counts = Counter(record["skill"] for record in records if record["skill"] != "chat")
    every_question = Counter(record["skill"] for record in tuning())
    assert 0.13 <= every_question["unknown"] / every_question.total() <= 0.17
    n = instruct.PER_SKILL
    assert {skill.name: skill.shares * n for skill in BOOK.tuned} == counts
    assert counts.pop("unknown") == 10 * n
    system = {skill.name for skill in BOOK.tuned if "|||" in skill.tuned[0]}
    assert {counts.pop(name) for name in system} == {11 * n} and len(system) == 3
    several = {"country_json", "element_json", "country_list", "one_word", "few_shot"}
    form = several | {"capital_sentence", "opposite_sentence"}
    assert {counts.pop(name) for name in form} == {2 * n}
    assert set(counts.values()) == {instruct.PER_SKILL} and len(counts) >= 35
    assert 1000 <= len(records) <= 2000


def test_chats_are_questions_one_after_the_other() -> None:
    """With the other records they hold every question once, with all of it; no system prompt."""
    chats = [
        record["messages"] for record in made()[instruct.TUNING_FILE] if record["skill"] == "chat"
    ]
    singles = [
        record["messages"] for record in made()[instruct.TUNING_FILE] if record["skill"] != "chat"
    ]
    assert all(chat[0]["role"] == "user" for chat in chats)
    assert [len(chat) // 2 < instruct.CHAT_LENGTH[0] for chat in chats].count(
        True
    ) <= 1  # what was left at the end
    whole_chats = "\n\n".join(json.dumps(chat)[1:-1] for chat in chats)
    joined = [record["messages"] for record in tuning() if record["messages"] not in singles]
    assert all(json.dumps(messages)[1:-1] in whole_chats for messages in joined)
    assert sum(map(len, joined)) == sum(map(len, chats)) and len(joined) + len(singles) == len(
        tuning()
    )


def test_wordings_vary() -> None:
    """Ten or more wordings of each fact skill are in use."""
    for skill in BOOK.fact_skills:
        prompts = [asked(record) for record in tuning() if record["skill"] == skill.name]
        used = {
            w
            for w in set(skill.tuned)
            for p in prompts
            if re.fullmatch(as_pattern(w), p, re.IGNORECASE)
        }
        assert len(used) >= 10, (skill.name, len(used))


def test_json_answers_are_json() -> None:
    n = 0
    for rows in taken_apart().values():
        for record in rows:
            answer = record["messages"][-1]["content"]
            if answer.startswith("{"):
                assert list(json.loads(answer)), answer
                n += 1
    assert n > 100


def test_no_near_duplicates() -> None:
    """No two records of both files together ask the same, up to case, punctuation, politeness."""
    seen = Counter(normalised(record) for rows in taken_apart().values() for record in rows)
    assert seen.most_common(1)[0][1] == 1


# ------------------------------------------------------------------------------------ what is apart


def as_pattern(template: str) -> str:
    """A wording as a regular expression: what it leaves open may be anything."""
    return re.sub(r"\\{\w+\\}", ".+", re.escape(template.split("|||")[-1].strip()))


def test_no_prompt_in_common() -> None:
    tuned = {normalised(record) for record in tuning()}
    for split in ("entities", "wordings", "tasks"):
        assert not tuned & {normalised(record) for record in held(split)}


def test_held_out_skills_are_never_tuned() -> None:
    tuned, tasks = ({record["skill"] for record in rows} for rows in (tuning(), held("tasks")))
    assert not tuned & tasks and len(tasks) >= 8
    assert {record["skill"] for record in held("entities") + held("wordings")} <= tuned
    prompts = "\n".join({asked(record) for record in tuning()})
    for skill in (
        BOOK.skills[name] for name in tasks - {"animal_json"}
    ):  # its form is tuned, of other things
        for wording in set(skill.tuned):
            found = re.search(f"^{as_pattern(wording)}$", prompts, re.IGNORECASE | re.MULTILINE)
            assert not found, (skill.name, wording, found)


def test_held_out_tasks_are_not_answered_in_tuning() -> None:
    """No currency, food, shape, past tense or worked difference is an answer of the tuning data."""
    answers = {
        message["content"]
        for record in tuning()
        for message in record["messages"]
        if message["role"] == "assistant"
    }
    # `closed` is the opposite of open, and `rose` is French
    tuned_words = {
        fact.value
        for relation in (RELATIONS["opposite"], RELATIONS["french"])
        for fact in relation.facts
    }
    for relation in (RELATIONS["currency"], RELATIONS["shape"], RELATIONS["past"]):
        assert not answers & (
            {fact.value for fact in relation.facts if fact.value != fact.subject} - tuned_words
        )
    assert not any(" - " in answer and " = " in answer for answer in answers)
    assert not any(
        "currenc" in whole(record).lower() or "past tense" in whole(record).lower()
        for record in tuning()
    )


def test_held_out_wordings_are_never_tuned() -> None:
    """No tuning prompt of any skill fits a held-out wording of its own or of another skill."""
    prompts = [
        message["content"]
        for record in tuning()
        for message in record["messages"]
        if message["role"] == "user"
    ]
    prompts = sorted(set(prompts))
    stems = [stem.split("{np}")[0] for stem in BOOK.asking["held stems"]]
    assert not any(prompt.lower().startswith(stem.lower()) for prompt in prompts for stem in stems)
    together = "\n".join(prompts)
    for skill in BOOK.tuned:
        for wording in set(skill.held) - {"{q}"}:
            if "|||" in wording:
                continue
            found = re.search(f"^{as_pattern(wording)}$", together, re.IGNORECASE | re.MULTILINE)
            assert not found, (skill.name, wording, found.group())


def test_more_wordings_are_not_nearly_held_out() -> None:
    """Of its words and those of a held-out one, fewer than four in five are the same, in order."""

    def words(wording: str) -> list[str]:
        return re.findall(r"{\w+}|\w+", wording.lower())

    assert sum(len(skill.more) for skill in BOOK.tuned) > 1000
    for skill in BOOK.tuned:
        name, more = skill.name, skill.more
        assert len(set(more)) == len(more) and not set(more) & set(skill.tuned)
        for wording, held_one in itertools.product(more, set(skill.held)):
            same = difflib.SequenceMatcher(None, words(wording), words(held_one)).ratio()
            assert same < 0.8, (name, wording, held_one)


def test_held_out_system_prompts_are_never_tuned() -> None:
    systems = {
        m["content"] for record in tuning() for m in record["messages"] if m["role"] == "system"
    }
    for skill in BOOK.tuned:
        for wording in skill.held:
            system, bar, _ = wording.partition(" ||| ")
            if bar and system != "You are {title} {name}, {trade}.":
                assert not any(re.fullmatch(as_pattern(system), text) for text in systems), wording


@pytest.mark.parametrize("group", ["country", "element", "animal"])
def test_held_out_things_are_never_asked_about(group: str) -> None:
    """Held-out countries and capitals stand nowhere in tuning, others in no skill of their kind."""
    relations = [relation for relation in RELATIONS.values() if relation.group == group]
    names = instruct.held_names(relations[0].name)
    assert all(instruct.held_names(relation.name) == names for relation in relations)
    assert len(names) >= 0.2 * len(WORLD.subjects[group])
    skills = {
        "country": {skill.name for skill in BOOK.tuned},
        "element": {"symbol", "atomic_number", "element_of_symbol", "element_json"},
        "animal": {"animal_class", "animal_young", "animal_sound", "animal_home"},
    }[group]
    text = "\n".join(whole(record) for record in tuning() if record["skill"] in skills)
    phrases = set(names) | {WORLD.grammar.plural(name) for name in names if group == "animal"}
    if group == "country":
        phrases |= {
            fact.value for fact in RELATIONS["capital"].facts if bare(fact.subject) in names
        }
    french = {fact.value for fact in RELATIONS["french"].facts}
    for phrase in phrases:
        if phrase.lower() in french:  # Sucre, the French word for sugar
            assert not re.search(rf"\b{phrase}\b", text), phrase
        else:
            assert not instruct.has_word(text, phrase), phrase
    asked_about = "\n".join(asked(record) for record in held("entities"))
    assert sum(instruct.has_word(asked_about, name) for name in names) >= 0.5 * len(names)


@pytest.mark.parametrize(
    ("skill", "relation"),
    [
        ("opposite", RELATIONS["opposite"]),
        ("opposite_sentence", RELATIONS["opposite"]),
        ("plural", RELATIONS["plural"]),
        ("comparative", RELATIONS["comparative"]),
        ("colour", RELATIONS["colour"]),
        ("english_to_french", RELATIONS["french"]),
        ("number_to_word", RELATIONS["number word"]),
        ("word_to_number", RELATIONS["number word"]),
        ("number_after", RELATIONS["number after"]),
    ],
)
def test_held_out_words_are_never_asked_about(skill: str, relation: Relation) -> None:
    names = instruct.held_names(relation.name)
    assert len(names) >= 0.2 * len(relation.facts)
    words = {
        fact.value if skill == "word_to_number" else bare(fact.subject)
        for fact in relation.facts
        if bare(fact.subject) in names
    }
    words -= {
        word
        for word in words
        if instruct.has_word(" ".join(BOOK.asking["openers"] + BOOK.asking["closers"]), word)
    }
    text = "\n".join(asked(record) for record in tuning() if record["skill"] == skill)
    found = {
        word
        for word in words
        if re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text, re.IGNORECASE)
    }
    assert not found, found


def test_held_out_facts_are_not_reached_through_other_skills() -> None:
    """Follow-ups, one-word answers, personas, sentences and rows ask about tuned things only."""
    mixed = {"follow_up", "one_word", "persona", "system_form", "few_shot"}
    text = [whole(record) for record in tuning() if record["skill"] in mixed]
    for relation in (
        RELATIONS["opposite"],
        RELATIONS["plural"],
        RELATIONS["colour"],
        RELATIONS["french"],
        RELATIONS["symbol"],
        RELATIONS["number"],
        RELATIONS["young"],
    ):
        for fact in relation.facts:
            if bare(fact.subject) in instruct.held_names(relation.name):
                subject = re.escape(fact.fields["n"])
                between = r"(?![\w-])\W*(\w+ ){0,3}\W*"
                value = re.escape(fact.value)
                both = re.compile(rf"(?<![\w-]){subject}{between}{value}(?![\w-])")
                assert not any(both.search(t) for t in text), (relation.name, fact)


def numbers_asked(record: dict) -> tuple[int, ...]:
    return tuple(sorted(int(n) for n in re.findall(r"\d+", record["messages"][-2]["content"])))


def test_held_out_sums_are_never_tuned() -> None:
    """A pair of numbers is held out of all arithmetic at once."""
    arithmetic = {"sum", "difference", "sum_steps", "greater", "counting"}
    tuned = {numbers_asked(record) for record in tuning() if record["skill"] in arithmetic}
    kept = {numbers_asked(record) for record in held("entities") if record["skill"] in arithmetic}
    assert len(kept) > 40 and not tuned & kept


def test_held_out_people_and_places_are_never_tuned() -> None:
    stories = {"who", "what", "where", "summary", "story_json"}
    text = "\n".join(asked(record) for record in tuning() if record["skill"] in stories)
    for part in ("people", "places", "objects"):
        for phrase in BOOK.lists[part]["held"]:
            assert not instruct.has_word(text, bare(phrase)), phrase
    reviews = "\n".join(
        asked(record) for record in tuning() if record["skill"].startswith("sentiment")
    )
    sentences = [*BOOK.lists["praise"]["held"], *BOOK.lists["blame"]["held"]]
    sentences += [row[key] for row in BOOK.lists["reviews"]["held"] for key in ("good", "bad")]
    assert not any(sentence in reviews for sentence in sentences)


# ------------------------------------------------------------------------- things that do not exist


def beginnings(kind: str, pool: str) -> list[str]:
    return [text.lower() for text in WORLD.words[f"{kind}: {pool}"]]


KINDS = ("country", "animal", "element", "city")


def made_up_names(rows: list[dict]) -> set[str]:
    """The made-up names of the last questions that are answered with "I don't know"."""
    starts = {b for kind in KINDS for pool in ("tuned", "held") for b in beginnings(kind, pool)}
    found = set()
    for record in rows:
        if record["messages"][-1]["content"] == I_DONT_KNOW:
            words = re.findall(r"\w+", record["messages"][-2]["content"].lower())
            names = [
                word
                for word in words
                if any(word.startswith(b) and len(word) > len(b) for b in starts)
            ]
            names = [name for name in names if distance(name, "explain") > 2]
            assert names, record
            found |= {max(names, key=len)}
    return found


def test_made_up_names_do_not_exist_and_differ() -> None:
    tuned, kept = made_up_names(tuning()), made_up_names(held("entities") + held("wordings"))
    assert len(tuned) >= 90 and len(kept) >= 40
    assert not tuned & kept
    singular = {name[:-1] if name.endswith("s") else name for name in tuned | kept}
    assert not any(BOOK.looks_real(name) for name in (tuned | kept) & singular)
    assert not (tuned | kept) & {
        word.lower() for _, text in sample()[1] for word in re.findall(r"\w+", text)
    }


def test_made_up_beginnings_are_not_shared() -> None:
    for kind in KINDS:
        assert not set(beginnings(kind, "tuned")) & set(beginnings(kind, "held"))


def test_only_unknown_things_are_not_known() -> None:
    for rows in taken_apart().values():
        for record in rows:
            answers = [m["content"] for m in record["messages"] if m["role"] == "assistant"]
            assert (answers[-1] == I_DONT_KNOW) == (record["skill"] == "unknown"), record
            assert I_DONT_KNOW not in answers[:-1]


# Somebody's own examples


def test_the_orders_say_what_their_json_holds():
    """Every value stands in the order, but for numbers in words; none is asked about that was
    tuned on."""
    fields, asked = {"item", "number", "to", "city", "day"}, []
    for name, number in (("orders", 50), ("orders_heldout", 20)):
        conversations = [messages for _, _, messages in read_conversations(DATA / f"{name}.jsonl")]
        assert len(conversations) == number
        for order, answer in conversations:
            wanted = json.loads(answer.content)
            assert wanted.keys() == fields and type(wanted["number"]) is int
            for field in fields - {"number"}:
                assert wanted[field].lower() in order.content.lower()
            asked.append(order.content)
    assert len(set(asked)) == 70
