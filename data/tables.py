"""Reading the tables: TSV files, and text files whose lines stand in sections.

A TSV file begins with a header line that names its columns; `-` is a cell left out.  A section of
a text file begins with its name in brackets; each line is one item, `-` is an empty one, and
`3x ...` stands for three times the same.  In both, lines that begin with `#` are comments, `\\n` is
the end of a line, `\\s` a space, and a backslash takes the special meaning from the next sign.

Every fault is a ValueError of one line, `file:line: reason`.
"""

import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
LEFT_OUT = "-"
YES_OR_NO = ("yes", "no")
SLOT = re.compile(r"{([^{}]*)}")
ESCAPES = {"n": "\n", "s": " ", "\\": "\\", "#": "#", "[": "[", "-": "-"}


class Text(str):
    """A cell or a line, which knows where it stands."""

    where: str

    def __new__(cls, text: str, where: str) -> "Text":
        made = super().__new__(cls, text)
        made.where = where
        return made

    def fault(self, reason: str) -> ValueError:
        """What to raise where this text is wrong."""
        return ValueError(f"{self.where}: {reason}")

    def with_text(self, text: str) -> "Text":
        """Another text of the same place."""
        return Text(text, self.where)


Row = dict[str, Text]
Items = tuple[Text, ...]
Parts = dict[str, dict[str, Items]]
Rules = dict[str, list[list[str]]]


class Sections(dict[str, Items]):
    """The items of text files by the names of their sections."""

    path: Path

    def __missing__(self, name: str) -> Items:
        raise ValueError(f"{self.path}:1: no section [{name}]")


def read_lines(path: Path) -> Iterator[Text]:
    """The lines that are neither empty nor comments."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}:1: cannot be read: {error.strerror}") from error
    for number, raw in enumerate(content.split(b"\n"), 1):
        try:
            line = Text(raw.decode("utf-8").removesuffix("\r"), f"{path}:{number}")
        except UnicodeDecodeError:
            raise ValueError(f"{path}:{number}: not UTF-8") from None
        if line.strip() and not line.startswith("#"):
            yield line


def unescape(text: Text) -> Text:
    """A cell or an item as it is meant."""
    if text != text.strip():
        raise text.fault(f"a space at the start or the end: {str(text)!r}")

    def meant(match: re.Match) -> str:
        if match[1] not in ESCAPES:
            raise text.fault(f"unknown escape: {match[0]}")
        return ESCAPES[match[1]]

    return text.with_text(re.sub(r"\\(.?)", meant, text))


def repeated(line: Text) -> list[Text]:
    """An item as often as it counts: `3x ...` is three, `-` an empty one."""
    counted = re.fullmatch(r"(\d+)x (.+)", line)
    times, item = (int(counted[1]), counted[2]) if counted else (1, line)
    return [unescape(line.with_text("" if item == LEFT_OUT else item))] * times


def numbers_in(cell: Text, n: int = 1) -> list[int]:
    """The numbers above 0 of a cell, which are separated by `-`: `5`, or `2-3` for two of them."""
    if not re.fullmatch(r"[1-9]\d*" + r"-[1-9]\d*" * (n - 1), cell):
        raise cell.fault(f"not {'a number' if n == 1 else 'numbers like 2-3'}, above 0: {cell}")
    return [int(number) for number in cell.split("-")]


def one_of(cell: Text, known: Container[str], what: str) -> Text:
    """The cell; a fault where it names nothing known."""
    if cell not in known:
        raise cell.fault(f"unknown {what}: {cell}")
    return cell


def names_in(cell: Text) -> list[Text]:
    """The names in a cell, which are separated by commas; none in a cell left out."""
    return [cell.with_text(name.strip()) for name in cell.split(",") if cell != LEFT_OUT]


def read_table(path: Path, columns: Sequence[str] = (), key: int = 1) -> list[Row]:
    """The rows of a TSV file.

    columns: those that its header must name; there may be others.
    key: no two rows have the same in so many first columns, of which none may be left out.
    """
    lines = read_lines(path)
    header = next(lines, None)
    if header is None:
        raise ValueError(f"{path}:1: no header line")
    names = header.split("\t")
    if missing := [column for column in columns if column not in names]:
        raise header.fault(f"no column: {missing[0]}")
    rows: list[Row] = []
    first: dict[tuple[str, ...], Text] = {}
    for line in lines:
        cells = line.split("\t")
        if len(cells) != len(names):
            raise line.fault(f"{len(cells)} columns instead of {len(names)}")
        for name, cell in zip(names, cells):
            if not cell.strip():
                raise line.fault(f"empty cell: {name}")
            if cell == LEFT_OUT and name in names[:key]:
                raise line.fault(f"a cell that may not be left out: {name}")
        subject = tuple(cells[:key])
        if key and first.setdefault(subject, line) is not line:
            raise line.fault(f"duplicate: {', '.join(subject)} (first: {first[subject].where})")
        rows.append({name: unescape(line.with_text(cell)) for name, cell in zip(names, cells)})
    return rows


def read_sections(path: Path, parse: Callable[[Text], Sequence[Text]] = repeated) -> Sections:
    """The sections of a text file, or of all in a folder; `parse` makes items of a line.

    A line stands twice in a section only if it is counted: `1x ...`.
    """
    sections, headings = Sections(), {}
    sections.path = path
    for file in sorted(path.glob("*.txt")) if path.is_dir() else [path]:
        name, seen = None, {}
        for line in read_lines(file):
            if line.startswith("[") and line.endswith("]"):
                name, seen = line.with_text(line[1:-1]), {}
                if headings.setdefault(name, name) is not name:
                    raise name.fault(f"duplicate: [{name}] (first: {headings[name].where})")
                sections[name] = ()
            elif name is None:
                raise line.fault("a line before the first [section]")
            elif seen.setdefault(line, line) is not line:
                raise line.fault(f"duplicate: {line} (first: {seen[line].where})")
            else:
                sections[name] += tuple(parse(line))
    for name, items in sections.items():
        if not items:
            raise headings[name].fault(f"a section without a line: [{name}]")
    return sections


def by_part(sections: Sections, known: Container[str], what: str, parts: Container[str]) -> Parts:
    """Sections `[name: part]`, or `[name, name: part]` for names that share it, by name and part.

    known: the names that there are, which are called `what` in messages.
    """
    found: Parts = {}
    for heading, items in sections.items():
        names, colon, part = heading.rpartition(": ")
        if not colon or part not in parts:
            raise heading.fault(f"unknown part of a {what}: {heading}")
        for name in names_in(heading.with_text(names)):
            if part in found.setdefault(one_of(name, known, what), {}):
                raise name.fault(f"duplicate: [{name}: {part}]")
            found[name][part] = items
    return found


def check_slots(texts: Sequence[Text], known: Container[str], *needed: Sequence[str]) -> None:
    """A fault where a text has an unknown slot, or none out of each group of needed ones."""
    for text in texts:
        found = SLOT.findall(text)
        for slot in found:
            if slot not in known:
                raise text.fault(f"unknown slot: {{{slot}}}")
        if re.search("[{}]", SLOT.sub("", text)):
            raise text.fault("a brace that belongs to no slot")
        for group in needed:
            if not set(group) & set(found):
                names = " or ".join(f"{{{slot}}}" for slot in group)
                raise text.fault(f"a wording without its slot, {names}: {str(text)!r}")


def rule_of(row: Row) -> list[list[str]]:
    """What `check_slots` asks: the slots of a row, and the groups of its needed ones."""
    groups = [cell.replace(LEFT_OUT, "").split() for cell in row["needed"].split(";")]
    return [row["slots"].replace(LEFT_OUT, "").split(), *filter(None, groups)]


def read_rules(folder: Path, where: str) -> Rules:
    """The rules of slots.tsv for the texts of a file or folder, by their parts."""
    rows = read_table(folder / "slots.tsv", ("where", "part", "slots", "needed"), key=2)
    return {row["part"]: rule_of(row) for row in rows if row["where"] == where}


def fill(text: str, fields: Mapping[str, Any]) -> str:
    """The text with its slots replaced."""
    return SLOT.sub(lambda slot: str(fields[slot[1]]), text)
