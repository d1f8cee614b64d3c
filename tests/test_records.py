"""runtime/records.py, runtime/sources.py: the forms and the files in which people have conversations; what is counted."""

import bz2
import gzip
import json
import lzma
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from conftest import conversation

from chat_template import TEMPLATES, Message
from runtime.records import (
    DOCUMENTS,
    DROPPED,
    EMPTY,
    MARKED,
    data_files,
    notes_of,
    read_conversation,
    read_conversations,
    read_raw,
)

HERE = Path(__file__).resolve().parent.parent


def unused_keys(record: dict, messages: list[Message] = ()) -> list[str]:
    counted = notes_of(record, messages).items()
    return sorted(Counter({key[1]: n for key, n in counted if len(key) == 2}).elements())


def told(record: dict, messages: list[Message]) -> dict:
    """What else is counted."""
    return {key: n for key, n in notes_of(record, messages).items() if len(key) == 1}


def read(record: object, reasoning: str = "drop") -> list[Message]:
    """The conversation in a record, as it stands on a line of a file."""
    line = json.dumps(record).encode()
    return read_conversation("data.jsonl", 7, line, reasoning)[1]


def turns(*texts: str, **more) -> list[dict]:
    return conversation(*texts, **more)["messages"]


# Forms

HI, YO = Message("user", "hi"), Message("assistant", "yo")
SYSTEM = {"role": "system", "content": "S"}
SHAREGPT = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]
NAN = float("nan")
SAME = [
    {"conversations": turns("hi", "yo")},
    {"messages": SHAREGPT},
    {"messages": turns("hi") + SHAREGPT[1:]},
    turns("hi", "yo"),
    SHAREGPT,
    {"messages": [{"role": "human", "content": "hi"}, {"role": "gpt", "content": "yo"}]},
    {"prompt": turns("hi"), "completion": turns("", "yo")[1:]},
    {"prompt": "hi", "completion": turns("", "yo")[1:]},
    {"prompt": turns("hi"), "completion": "yo"},
    {"prompt": SHAREGPT[:1], "completion": SHAREGPT[1:]},
    {"prompt": [{"type": "text", "text": "hi"}], "completion": [{"type": "text", "value": "yo"}]},
    {
        "messages": [
            {"role": "user", "content": [{"type": "text", "value": "hi"}]},
            turns("", "yo")[1],
        ]
    },
    {"messages": [{"role": "user", "content": [{"text": "h"}, {"text": "i"}]}, turns("", "yo")[1]]},
    {"instruction": "hi", "input": None, "output": "yo", "history": None, "system": None},
    {"instruction": "hi", "input": NAN, "output": "yo", "history": [], "system": NAN, "tools": NAN},
    {"instruction": "hi", "input": "", "output": "yo", "history": "", "system": "", "tools": ""},
    {"instruction": "hi", "input": [], "output": "yo"},
    {"messages": None, "instruction": "hi", "output": "yo"},
    {"messages": [], "conversations": NAN, "instruction": "hi", "input": None, "output": "yo"},
    {"messages": turns("hi", "yo"), "instruction": None, "output": None, "text": None},
    {"messages": None, "prompt": "hi", "completion": "yo", "instruction": NAN, "output": None},
    {"messages": turns("hi", "yo"), "instruction": "other", "output": "other"},
]


@pytest.mark.parametrize("record", SAME, ids=range(len(SAME)))
def test_the_same_dialogue_in_forms_of_real_files(record: object) -> None:
    """Claim 7: each gives the very messages of the plain form, and only what is really left out is counted."""
    assert read(record) == [HI, YO]
    made, messages = read_conversation("data.jsonl", 7, json.dumps(record).encode())
    other = isinstance(record, dict) and record.get("instruction") == "other"
    assert sorted(unused_keys(made)) == (["instruction", "output"] if other else [])
    assert not told(made, messages)


def test_plain_records_are_given_back_as_they_are() -> None:
    for record in (
        conversation("hi", "yo", skill="greet", split=""),
        {"conversations": SHAREGPT, "id": 7},
        {"instruction": "hi", "output": "yo"},
        {"text": "a"},
    ):
        made, _ = read_conversation("data.jsonl", 7, json.dumps(record).encode())
        assert made == record


def test_history_comes_before_the_instruction() -> None:
    """Claim 7: and is trained on, as in the project that has this form."""
    record = {
        "instruction": "c",
        "input": "d",
        "output": "e",
        "system": "S",
        "tools": "[]",
        "id": 1,
    }
    record["history"] = [["a", "b"], ["a2", ""]]
    texts = [("system", "S"), ("user", "a"), ("assistant", "b"), ("user", "a2"), ("assistant", "")]
    texts += [("user", "c\n\nd"), ("assistant", "e")]
    assert read(record) == [Message(*text) for text in texts]
    made, _ = read_conversation("data.jsonl", 7, json.dumps(record).encode())
    assert unused_keys(made) == ["id"]


def test_answers_in_a_prompt_are_context() -> None:
    """Claim 24: where prompt and completion are turns, what is learned is the completion; a prompt's answers have
    weight 0, whatever weight they give themselves."""
    prompt = [SYSTEM, *turns("a", "b", "c")]
    completion = turns("", "d")[1:] + [{"role": "tool", "content": "4"}, *turns("", "e")[1:]]
    for before in (prompt, [turn | {"weight": 1, "train": True} for turn in prompt]):
        messages = read({"prompt": before, "completion": completion, "tools": None})
        assert [(m.role, m.content, m.weight) for m in messages] == [
            ("system", "S", 1),
            ("user", "a", 1),
            ("assistant", "b", 0),
            ("user", "c", 1),
            ("assistant", "d", 1),
            ("tool", "4", 1),
            ("assistant", "e", 1),
        ]


def test_roles_of_openai() -> None:
    call = {"function_call": {"name": "f", "arguments": "{}"}, "role": "assistant", "content": None}
    result = {"role": "function", "name": "f", "content": "4"}
    record = {"messages": [{"role": "developer", "content": "S"}, *turns("hi"), call, result]}
    assert read(record) == [
        Message("system", "S"),
        HI,
        Message("assistant", "", tool_calls=('{"name": "f", "arguments": {}}',)),
        Message("tool", "4"),
    ]


def test_reasoning_is_kept_or_dropped() -> None:
    """Claim 24: as it is asked; what is dropped is counted, by whatever name it goes."""
    record = {
        "messages": [
            *turns("a", "b"),
            {"role": "assistant", "content": "c", "reasoning_content": "R", "thinking": ""},
            {"role": "assistant", "content": "d", "thinking": "T", "reasoning": None},
        ]
    }
    line = json.dumps(record).encode()
    for reasoning, thoughts in (("keep", ["", "", "R", "T"]), ("drop", [""] * 4)):
        made, messages = read_conversation("data.jsonl", 7, line, reasoning)
        assert [message.reasoning for message in messages] == thoughts
        assert notes_of(made, messages)[DROPPED] == (2 if reasoning == "drop" else 0)
        assert not unused_keys(made)


PREFERENCES = "is this preference data[?] Then keep the better answer alone"
COLUMNS = r"a table by columns[?] in Python, pandas.read_json\('FILE'\)"
WRONG = [
    (
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        f"keys prompt, chosen, rejected.*{PREFERENCES}",
    ),
    ({"chosen": turns("a", "b"), "rejected": turns("a", "c")}, f"unknown form.*{PREFERENCES}"),
    ({"conversations": SHAREGPT[:1], "chosen": {}, "rejected": {}}, f"no.*learn.*{PREFERENCES}"),
    ({"instruction": "a", "input": "", "output": ["b", "c"]}, f"output. as a list.*{PREFERENCES}"),
    (
        {"instruction": {"0": "a"}, "output": {"0": "b"}},
        f"instruction. must be text, not dict.*{COLUMNS}",
    ),
    ({"instruction": ["a", "c"], "output": ["b", "d"]}, f"instruction. as a list.*{COLUMNS}"),
    (
        {"prompt": {"0": "a"}, "completion": {"0": "b"}},
        f"prompt. must be text, not dict.*{COLUMNS}",
    ),
    ({"messages": [turns("a", "b")], "id": [1]}, f'needs "role".*found list.*{COLUMNS}'),
    (
        {"version": "1", "data": [conversation("a", "b")]},
        r"unknown form.*jq -c '.\[\"data\"\]\[\]' FILE",
    ),
    ({"instruction": "a", "output": None}, "output. must be text, not NoneType$"),
    ({"instruction": "a", "output": NAN, "messages": None}, "messages.*must be a list"),
    ({"instruction": "a", "output": 5}, "output. must be text, not int$"),
    ({"instruction": "a", "output": "b", "input": {"x": 1}}, "input. must be text, not dict$"),
    ({"instruction": "a", "output": "b", "system": 5}, "system. must be text, not int$"),
    (
        {"instruction": "a", "output": "b", "history": "c"},
        r"history must be a list of \[question, answer\]",
    ),
    ({"instruction": "a", "output": "b", "history": 5}, "history must be a list"),
    ({"instruction": "a", "output": "b", "history": [["c"]]}, "history must be a list"),
    (
        {"instruction": "a", "output": "b", "history": [["c", None]]},
        "content. must be text, not NoneType",
    ),
    ({"prompt": turns("a"), "completion": [5]}, "completion|content.*text parts, not 'int'"),
    ({"prompt": turns("a"), "completion": turns("b")}, "without an assistant turn"),
    ({"messages": [{"role": "human", "values": "a"}]}, 'needs "role" and "content"'),
    ({"messages": [{"from": "bot", "value": "a"}]}, "unknown role 'bot'"),
    ({"messages": [{"from": ["gpt"], "value": "a"}]}, "unknown role"),
    ({"conversations": [*SHAREGPT, {"from": "gpt"}]}, 'needs "role" and "content"'),
    (
        {"messages": turns("a") + [{"role": "assistant", "content": [{"type": "video"}]}]},
        "not 'video'$",
    ),
    ([], '"messages" must be a list of messages'),
    ([1, 2], 'needs "role" and "content".*int'),
    ([turns("a", "b")], 'needs "role" and "content".*list'),
]


@pytest.mark.parametrize("record, reason", WRONG, ids=range(len(WRONG)))
def test_errors_name_the_field_and_what_the_record_looks_like(record: object, reason: str) -> None:
    """Claim 7: in one line that can be printed."""
    with pytest.raises(ValueError, match=rf"^data.jsonl:7: .*({reason})") as raised:
        read(record)
    assert str(raised.value).isprintable() and len(str(raised.value)) < 500


# What is counted


def notes(*texts: str, **keys) -> dict:
    made, messages = read_conversation("x", 1, json.dumps(conversation(*texts, **keys)).encode())
    return told(made, messages)


def test_every_other_key_is_counted() -> None:
    """Claim 24: of records and of turns; what says nothing is no key, and of two names of a thing the second."""
    call = {"name": "f", "arguments": {}}
    record = {
        "messages": [
            {"role": "user", "content": "a", "name": "Ann", "id": 0, "weight": 1, "note": ""},
            {"role": "assistant", "content": "b", "name": None, "tool_calls": [], "refusal": []},
            {"role": "assistant", "content": "c", "tool_calls": [call], "function_call": call},
            {"role": "tool", "content": "d", "tool_call_id": "x", "name": "f", "train": False},
            {
                "role": "assistant",
                "content": "e",
                "thinking": "R",
                "reasoning": "R",
                "masked": True,
            },
        ],
        "system": "",
        "tools": [call],
        "id": 7,
        "source": None,
        "text": "f",
    }
    made, _ = read_conversation("x", 1, json.dumps(record).encode())
    expected = {"turn.name": 2, "turn.id": 1, "turn.function_call": 1, "turn.tool_call_id": 1}
    assert Counter(unused_keys(made)) == {**expected, "turn.thinking": 1, "id": 1, "text": 1}
    sharegpt = {
        "conversations": [SHAREGPT[0], SHAREGPT[1] | {"content": "a", "loss": 0.5}],
        "input": "b",
    }
    made, messages = read_conversation("x", 1, json.dumps(sharegpt).encode())
    assert Counter(unused_keys(made)) == {"turn.value": 1, "input": 1} and messages[1].weight == 0.5
    assert sorted(unused_keys({"text": "a", "system": "b", "tools": [1]})) == ["system", "tools"]


def test_empty_answers_are_counted() -> None:
    """Claims 8, 24: white space too; not where a call or a kept thought is learned, nor where nothing is."""
    assert notes("a", "", "b", " \n\t\u2003", "c", "d") == {EMPTY: 2}
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "f", "arguments": {}}]}
    ignored = {"role": "assistant", "content": "", "train": False}
    thought = {"role": "assistant", "content": "", "reasoning": "R"}
    for turn, reasoning, expected in (
        (call, "drop", {}),
        (ignored, "drop", {}),
        (thought, "keep", {}),
        (thought, "drop", {EMPTY: 1, DROPPED: 1}),
    ):
        line = json.dumps([*turns("a"), turn]).encode()
        assert told(*read_conversation("x", 1, line, reasoning)) == expected
    made, messages = read_conversation("x", 1, b'{"instruction": "", "output": " "}')
    assert told(made, messages) == {EMPTY: 1}


@pytest.mark.parametrize("template", TEMPLATES)
def test_documents_and_markers_as_text_are_counted(template: str) -> None:
    """Claim 24: a document that is a rendered conversation of any template; also where it is cut in two."""
    form = TEMPLATES[template]
    rendered = "".join(
        form.opening(*roles) + "a" + form.after[roles[1]]
        for roles in ((None, "user"), ("user", "assistant"))
    )
    line = json.dumps({"text": form.begin + rendered}).encode()
    assert told(*read_conversation("x", 1, line)) == {DOCUMENTS: 1, MARKED: 1}
    line = json.dumps({"prompt": rendered, "completion": "b"}).encode()
    assert told(*read_conversation("x", 1, line)) == {MARKED: 1}
    assert told(*read_conversation("x", 1, b'{"text": "<s>a</s> [1] ### x"}')) == {DOCUMENTS: 1}
    for marked in ("[INST] a", "### Instruction:\na", "a<|im_end|>"):
        assert notes("a", marked) == notes(marked, "a") == {MARKED: 1}
    assert notes("a", "b") == {}


# Files

LINES = [
    json.dumps(conversation("a", "é\u2028"), ensure_ascii=False),
    json.dumps(conversation("b", "c")),
]
A, B = json.dumps(turns("a", "b")), json.dumps(turns("c", "d"))
FILES = {
    "byte order mark, Windows line ends": ("\ufeff" + "\r\n".join(LINES) + "\r\n", [1, 2]),
    "lists of turns": (f"{A}\n\n{B}\n", [1, 3]),
    "lists of turns and objects": (f"\ufeff{A}\r\n{LINES[0]}\r\n{B}", [1, 2, 3]),
    "one list of turns": (A + "\n", [1]),
    "one list of turns over several lines": (json.dumps(turns("a", "b"), indent=2), [1]),
    "an array of lists of turns": (f"[{A},\n{B}]", [1, 2]),
    "an array of lists of turns over several lines": (
        json.dumps([turns("a", "b")] * 2, indent=1),
        [2, 12],
    ),
    "an array of objects over several lines": (
        json.dumps([conversation("a", "b")] * 2, indent=1),
        [2, 14],
    ),
}


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("kind", FILES)
def test_files_of_json(kind: str, packed: bool, tmp_path: Path) -> None:
    """Claim 7: every record once, with the line on which it begins; what gzip has packed just so."""
    text, lines = FILES[kind]
    path = tmp_path / ("data.jsonl.gz" if packed else "data file.jsonl")
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    read = list(read_conversations(path))
    assert [line for line, _, _ in read] == lines
    assert all([m.role for m in messages] == ["user", "assistant"] for _, _, messages in read)
    assert [number for number, _ in read_raw(path)] == lines  # and once more


def test_a_long_packed_file_is_streamed(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl.gz"
    with gzip.open(path, "wb") as file:
        file.writelines(f"{LINES[1]}\n".encode() for _ in range(10_000))
    raws = read_raw(path)
    assert next(raws) == (1, LINES[1].encode() + b"\n") and sum(1 for _ in raws) == 9_999


def pandas(reader: str) -> str:
    command = r"in Python, pandas.{}\(.*\).to_json\(.data.jsonl., .*lines=True\)$"
    return command.format(reader)


OTHERS = {
    "table.parquet": (b"PAR1\x15\x04", f"a parquet file, .*{pandas('read_parquet')}"),
    "le.jsonl": (
        LINES[1].encode("utf-16"),
        "UTF-16 text, .*iconv -f UTF-16 -t UTF-8 '.*' > data.jsonl$",
    ),
    "be.jsonl": (b"\xfe\xff" + LINES[1].encode("utf-16-be"), "UTF-16 text"),
    "data.jsonl.bz2": (bz2.compress(b"a"), "packed by bzip2, .*bunzip2"),
    "data.jsonl.xz": (lzma.compress(b"a"), "packed by xz, .*unxz"),
    "data.jsonl.zst": (b"\x28\xb5\x2f\xfd\x24", "packed by zstd, .*zstd -d"),
    "data.csv": (b"question;answer\na;b\n", f"a CSV file, .*{pandas('read_csv')}"),
    "one column.csv": (b"text\na\n", "a CSV file"),
    "csv.txt": (b'\xef\xbb\xbf"instruction","input","output"\r\na,,b\r\n', "a CSV file"),
    "data.tsv": (b"instruction\toutput\n", "a CSV file"),
    "pretty.json": (json.dumps(conversation("a", "b"), indent=2).encode(), "json.tool --compact"),
    "pretty 2.json": (b'\n\n{"version": 1,\n"data": []}', "a JSON object over several lines"),
    "cut.jsonl.gz": (gzip.compress(LINES[0].encode() * 9)[:-12], "a damaged gzip file"),
    "bad.jsonl.gz": (b"\x1f\x8b\x08" + b"\0" * 30, "a damaged gzip file"),
    "csv.gz": (gzip.compress(b"instruction,output\na,b\n"), "a CSV file"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_files_of_another_kind_are_named(name: str, tmp_path: Path) -> None:
    """Claim 7: by their first bytes; with a command that converts them."""
    content, reason = OTHERS[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}:\d: .*{reason}") as raised:
        list(read_conversations(path))
    assert "\n" not in str(raised.value)


def test_a_zip_archive_and_a_folder_are_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("data.jsonl", LINES[0])
    with pytest.raises(ValueError, match="this is a zip archive or .*unzip '.*a.zip'"):
        list(read_raw(tmp_path / "a.zip"))
    with pytest.raises(IsADirectoryError):
        list(read_raw(tmp_path))


def test_the_commands_convert(tmp_path: Path) -> None:
    """Those that need nothing but Python and what every system has."""
    kinds = [("a b.json", OTHERS["pretty.json"][0])]
    kinds += [("c.jsonl", OTHERS["le.jsonl"][0])] if shutil.which("iconv") else []
    for name, content in kinds:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError) as raised:
            list(read_raw(tmp_path / name))
        command = str(raised.value).rpartition("to convert it: ")[2]
        command = re.sub("^python", sys.executable, command)
        subprocess.run(command, shell=True, check=True, cwd=tmp_path)
        (_, _, messages), *more = read_conversations(tmp_path / "data.jsonl")
        assert [message.role for message in messages] == ["user", "assistant"] and not more


def test_a_folder_means_its_files_of_json(tmp_path: Path) -> None:
    """Claim 7: by name, whatever else lies there; and none is an error."""
    names = ["b.jsonl", "a.json", "c.JSONL", "d.jsonl.gz", "e.json.gz"]
    for name in (*names, "f.txt", "g.csv", ".h.jsonl", "._a.json", "i.jsonl.bz2", "README.md"):
        (tmp_path / name).write_text("")
    (tmp_path / "j.json").mkdir()
    assert data_files(tmp_path) == [tmp_path / name for name in sorted(names)]
    assert data_files(str(tmp_path / "b.jsonl")) == [tmp_path / "b.jsonl"]
    assert data_files("tiny_instruct.jsonl")[0].samefile(HERE / "data" / "tiny_instruct.jsonl")
    with pytest.raises(OSError, match=r"j.json: a folder without .json or .jsonl files$"):
        data_files(tmp_path / "j.json")
    with pytest.raises(FileNotFoundError, match="none.jsonl: no such file"):
        data_files(tmp_path / "none.jsonl")


# Pipes

READ_TWICE = """
import sys
from runtime.records import read_conversations
from runtime.records import data_files
[path] = data_files(sys.argv[1])
print(*(sum(1 for _ in read_conversations(path)) for _ in "12"), path.stat().st_size, path)
print(data_files(sys.argv[1]) == [path])
"""


@pytest.mark.parametrize("name, packed", [("-", True), ("/dev/stdin", False)])
def test_standard_input_is_read_twice(name: str, packed: bool) -> None:
    """Claim 7: from a pipe, as `-`; its copy is gone afterwards."""
    data = "\n".join(LINES).encode()
    data = gzip.compress(data) if packed else data
    command = [sys.executable, "-c", READ_TWICE, name]
    done = subprocess.run(command, input=data, capture_output=True, cwd=HERE, check=True)
    counts, again = done.stdout.decode().splitlines()
    *numbers, path = counts.split()
    assert numbers == ["2", "2", str(len(data))] and again == "True"
    assert Path(path).name == "stdin" and not Path(path).parent.exists()


def test_errors_in_a_pipe_name_the_line(monkeypatch) -> None:
    command = [sys.executable, "-c", READ_TWICE, "-"]
    done = subprocess.run(command, input=b"{}\n", capture_output=True, cwd=HERE)
    assert re.search(rb"ValueError: /.*/stdin:1: unknown form of record", done.stderr)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ValueError, match="^/dev/stdin: several processes cannot share a pipe"):
        data_files("-")


def test_a_named_pipe_is_copied(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_text("\n".join(LINES)))
    writer.start()
    [path] = data_files(tmp_path / "pipe")
    writer.join()
    assert path.is_file() and path != tmp_path / "pipe" and [path] == data_files(tmp_path / "pipe")
    assert len(list(read_conversations(path))) == 2
