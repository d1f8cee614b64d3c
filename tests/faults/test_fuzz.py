"""Hostile and broken input of every kind: it is read, or refused in one harmless line; nothing else
may happen.

Each case is drawn from a seed, so that it can be repeated. `--full` takes many more of them than CI
does. A case that takes longer than `PATIENCE` counts as one that hangs.
"""

import copy
import io
import itertools
import json
import pickle
import random
import re
import signal
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import conversation, make_base, write_jsonl

import chat
import sft
from chat_template import ROLES, TEMPLATES, TRAIN_ON, Message, render, render_prompt
from runtime.answers import show_conversations, show_mask
from runtime.console import one_line
from runtime.files import save_checkpoint
from runtime.load import load_checkpoint, read_checkpoint
from runtime.records import read_conversation, read_conversations
from tokenizer import Tokenizer

PATIENCE = 60  # seconds
SPECIAL = sorted({name for template in TEMPLATES.values() for name in template.special_tokens})
PIECES = [
    *SPECIAL,
    *(name[: len(name) // 2] for name in SPECIAL),
    *(name[len(name) // 2 :] for name in SPECIAL),
    *("[INST]", "[/INST]", "<<SYS>>", "### Response:\n", "</assistant>\n<user>"),
    *('"}\n{"role": "assistant", "content": "', "\x1b[2J", "\x1b]0;title\x07", "\x9b31m"),
    *("\0", "\r", "\n", "\t", "\x7f", "\u202e", "\u200b", "\ufeff", "\u2028", "\ud800", "\udfff"),
    *("\U0001f600", "é", "漢", "\\", "\\u0000", '"', "'", "{", "]", "../../etc/passwd", "C:\\x"),
    *("%s%n{0}", "$(reboot)", " ", "a", "word", "0123456789" * 3),
]
ROLE_NAMES = [*ROLES, "text", "human", "gpt", "function_call", "observation"]
KEYS = "messages conversations instruction input output prompt completion text system role content"
KEYS += " from value weight"


@pytest.fixture(autouse=True)
def patience() -> Iterator[None]:
    def lost(*_) -> None:
        raise AssertionError(f"a case takes longer than {PATIENCE} seconds")

    earlier = signal.signal(signal.SIGALRM, lost)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, earlier)


def cases(request, counts: Counter, name: str, in_ci: int, in_full: int) -> Iterator[random.Random]:
    """A source of random numbers for each case, and its alarm."""
    for number in range(in_full if request.config.getoption("--full") else in_ci):
        signal.alarm(PATIENCE)
        counts[name] += 1
        yield random.Random(f"{name} {number}")


def text(draw: random.Random) -> str:
    return "".join(draw.choices(PIECES, k=draw.choice((0, 1, 1, 2, 3, 8))))


def value(draw: random.Random, depth: int = 0) -> object:
    """Any JSON value, and some that are none."""
    kind = draw.randrange(12 if depth < 4 else 9)
    if kind < 4:
        return text(draw)
    if kind < 9:
        numbers = (0, 1, -1, 2, 10**30, 0.5, 1.0, float("nan"), float("inf"), -1e308)
        return draw.choice((None, True, False, {}, [], *numbers))
    if kind == 9:
        return [value(draw, depth + 1) for _ in range(draw.randrange(4))]
    if kind == 10:
        depths = (10, 100, 500, 900, 950, 1000, 3000)
        return f"@{draw.choice(depths)}@"  # see `line`: nested as deeply
    keys = [*KEYS.split(), text(draw)]
    return {draw.choice(keys): value(draw, depth + 1) for _ in range(draw.randrange(4))}


def turn(draw: random.Random, role: str, content: str) -> object:
    if draw.random() < 0.03:
        return value(draw)
    made = {role: draw.choice(ROLE_NAMES) if draw.random() < 0.95 else value(draw)}
    made[content] = text(draw)
    if draw.random() < 0.1:
        parts = [{"type": "text", "text": text(draw)}, {"text": text(draw)}]
        made[content] = draw.choice([value(draw), parts])
    if draw.random() < 0.2:
        made[draw.choice(("weight", "loss_weight"))] = draw.choice((0, 1, 1, value(draw)))
    return made


def record(draw: random.Random) -> object:
    """Mostly of one of the accepted forms, each field of which may hold anything."""
    form = draw.randrange(7)
    if form == 0:
        made = {"conversations": [turn(draw, "from", "value") for _ in range(draw.randrange(5))]}
    elif form == 1:
        made = {"instruction": text(draw), "input": text(draw), "output": text(draw)}
    elif form == 2:
        made = {"prompt": text(draw), "completion": text(draw)}
    elif form == 3:
        made = {"text": text(draw)}
    elif form == 4:
        return value(draw)
    else:
        roles = itertools.islice(itertools.cycle(("user", "assistant")), draw.randrange(1, 6))
        if draw.random() < 0.4:
            turns = [turn(draw, "role", "content") for _ in roles]
        else:
            roles = ("user", "assistant", "tool")
            turns = [{"role": role, "content": text(draw)} for role in roles]
        made = {"messages": turns}
    for key in (*made, "system", text(draw)):
        if draw.random() < 0.07:
            made[key] = value(draw)
    return made


def line(draw: random.Random, made: object) -> bytes:
    """As JSON, with escapes or without; now and then with a few bytes flipped, lost or put in."""
    whole = json.dumps(made, ensure_ascii=draw.random() < 0.5).encode("utf-8", "surrogatepass")
    nest = lambda match: b"[" * int(match[1]) + b"]" * int(match[1])  # noqa: E731
    data = bytearray(re.sub(rb'"@(\d+)@"', nest, whole))
    for _ in range(draw.choice((0, 0, 0, 1, 3))):
        at, size = draw.randrange(len(data) + 1), draw.randrange(3)
        new = draw.choices(b'[]{},:"\\u\n\x00\xff\xed\xa0\x80 09', k=draw.randrange(3))
        data[at : at + size] = bytes(new)
    return bytes(data)


def check_error(error: Exception, start: str) -> None:
    """One line, of what can be printed, not too long, that begins with the place."""
    said = str(error)
    assert re.match(start, said) and said.isprintable() and len(said) < 1000, said[:2000]


class Letters:
    """Every byte is a token; all templates' special tokens are known."""

    def __init__(self) -> None:
        letters = Tokenizer({bytes([byte]): byte for byte in range(256)}, {})
        self.tokenizer = letters.with_special(SPECIAL)

    def special_ids(self, ids: list[int]) -> list[int]:
        return [token_id for token_id in ids if token_id >= 256]


def check_rendering(draw: random.Random, messages: list[Message], letters: Letters) -> None:
    """Claims 1, 2, 3, 4: no special id but the template's, whatever stands in the text; the prompt
    is a prefix of what is trained on; and what is shown of it drives no terminal."""
    tokenizer = letters.tokenizer
    template, train_on = draw.choice(list(TEMPLATES)), draw.choice(TRAIN_ON)
    ids, mask = render(messages, tokenizer, template, train_on)
    harmless = [Message(message.role, "x", message.weight) for message in messages]
    assert len(ids) == len(mask) and set(mask) <= {0, 1}
    other_ids, _ = render(harmless, tokenizer, template, train_on)
    assert letters.special_ids(ids) == letters.special_ids(other_ids)
    for message in messages:
        assert tokenizer.decode(tokenizer.encode(message.content)) == message.content
        assert one_line(message.content).isprintable()
    if messages[0].role != "text":
        for k, message in enumerate(messages):
            if message.role == "assistant":
                prompt = render_prompt(messages[:k], tokenizer, template)
                assert ids[: len(prompt)] == prompt
    shown = show_mask(ids, mask, tokenizer, colour=False)
    assert all(line.isprintable() for line in shown.split("\n"))


def test_records(request, counts: Counter) -> None:
    """Claims 3, 7: a line is a conversation, which is rendered, or an error of one line."""
    letters, read = Letters(), 0
    for draw in cases(request, counts, "records", 4000, 110_000):
        data = line(draw, record(draw)).replace(b"\n", b" ")
        try:
            _, messages = read_conversation("data.jsonl", 7, data)
        except ValueError as error:
            check_error(error, r"data\.jsonl:7: ")
        else:
            read += 1
            check_rendering(draw, messages, letters)
    assert 0.2 < read / counts["records"] < 0.8  # both are tried


def test_files(request, counts: Counter, tmp_path: Path) -> None:
    """Claim 7: JSON Lines and arrays as a whole, with rubbish between, before and after the
    records."""
    path = tmp_path / "data"
    start = re.escape(str(path)) + r":[1-9]\d*: "
    for draw in cases(request, counts, "files", 400, 10_000):
        lines = [line(draw, record(draw)) for _ in range(draw.randrange(4))]
        if draw.random() < 0.5:
            data = b"\n".join(lines)
        else:
            data = b"[" + b",\n".join(lines) + draw.choice((b"]", b"]", b"", b",]"))
        path.write_bytes(draw.choice((b"", b"", b"\xef\xbb\xbf", b"\n\n", b"\xff\xfe")) + data)
        try:
            for _ in read_conversations(path):
                pass
        except ValueError as error:
            check_error(error, start)


# Checkpoints


def checkpoints(folder: Path) -> dict[str, dict]:
    """The content of a base, of a fully tuned model, and of an adapter."""
    base = str(make_base(folder / "base.pt", n_layer=1, n_embd=8, context_length=32))
    write_jsonl(folder / "data.jsonl", [conversation("q", "a")] * 30)
    arguments = f"--data {folder}/data.jsonl --init {base} --device cpu --steps 1".split()
    assert sft.main([*arguments, "--out", str(folder / "full")]) == 0
    assert sft.main([*arguments, "--out", str(folder / "lora"), "--lora-rank", "2"]) == 0
    contents = {"base": read_checkpoint(base)}
    contents |= {name: read_checkpoint(folder / name) for name in ("full", "lora")}
    return {
        name: {key: item for key, item in content.items() if key != "file"}
        for name, content in contents.items()
    }


def tensor(draw: random.Random, like: object) -> torch.Tensor:
    """Some tensor, mostly of a fitting shape."""
    shape = like.shape if isinstance(like, torch.Tensor) else (2, 3)
    made = [
        torch.full(shape, float("nan")),
        torch.full(shape, 1e38),
        torch.zeros(shape, dtype=torch.int64),
        torch.zeros(shape, dtype=torch.complex64),
        torch.zeros(shape, dtype=torch.bfloat16),
        torch.zeros(shape, dtype=torch.bool),
        torch.zeros(0),
        torch.tensor(3.0),
        torch.zeros(1).expand(10**6, 10**6),  # large in memory, small in the file
        torch.zeros(()).expand(shape),
        torch.empty(10**6, 10**6, device="meta"),
        torch.eye(3).to_sparse(),
        torch.nn.Parameter(torch.zeros(shape)),
    ]
    return draw.choice(made)


def places(content: object, path: tuple = ()) -> Iterator[tuple]:
    """The way to every value in nested dicts and lists; of long lists, to a few."""
    items = {dict: lambda: content.items(), list: lambda: enumerate(content[:5])}
    for key, item in items.get(type(content), tuple)():
        yield (*path, key)
        yield from places(item, (*path, key))


def spoil(draw: random.Random, content: dict) -> None:
    """Replace, remove, exchange or add a value somewhere."""
    *way, last = draw.choice(list(places(content)))
    holder = content
    for key in way:
        holder = holder[key]
    action = draw.randrange(10)
    if action == 0:
        del holder[last]
    elif action == 1 and isinstance(holder, dict):
        holder[draw.choice([text(draw), 3, None, "more"])] = value(draw)
    elif action < 5:
        holder[last] = tensor(draw, holder[last])
    elif action < 7:
        sizes = (0, -1, 1, 2, 3, 10**6, 10**12, 2**63, 0.5, "2", [8], True)
        holder[last] = draw.choice(sizes)
    else:
        holder[last] = value(draw)


def reseal(data: bytes, path: Path) -> None:
    """A file with its right checksum behind it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "save", lambda content, file: file.write(content))
        save_checkpoint(path, data)


def try_checkpoint(path: Path, capsys) -> bool:
    """Whether the file can be talked to. Everything that reads a checkpoint is tried."""
    status = chat.main([str(path), "--prompt", "q", "--max-new-tokens", "2", "--device", "cpu"])
    out, err = capsys.readouterr()
    told = err.removeprefix("... cut after 2 tokens (--max-new-tokens)\n")
    assert (status == 0 and not told) or (status == 2 and not out), (out, err)
    if status == 2:
        assert err.count("\n") == 1 and err[:-1].isprintable() and len(err) < 1000, err[:2000]
    assert all(shown.isprintable() for shown in out.split("\n")), out
    return status == 0


def test_checkpoints(request, counts: Counter, tmp_path: Path, capsys) -> None:
    """Claim 20: a file with a right checksum whose content is not what sft.py writes."""
    contents = checkpoints(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    path, read = tmp_path / "spoiled" / "checkpoint-0000001.pt", 0
    path.parent.mkdir()
    capsys.readouterr()
    for draw in cases(request, counts, "checkpoints", 250, 1500):
        content = copy.deepcopy(contents[draw.choice(("base", "full", "full", "lora", "lora"))])
        for _ in range(draw.choice((1, 1, 2))):
            spoil(draw, content)
        save_checkpoint(path, content)
        read += try_checkpoint(path, capsys)
    assert read > 0
    after = (p for p in tmp_path.rglob("*") if path.parent not in (p, p.parent))
    assert {p: p.stat().st_mtime_ns for p in after} == before


def test_resuming_spoiled_checkpoints(request, counts: Counter, tmp_path: Path, capsys) -> None:
    """Claim 20: the same, with the optimiser's state, the step and the arguments, which only
    --resume looks at."""
    contents = checkpoints(tmp_path)
    folder, read = tmp_path / "spoiled", 0
    for draw in cases(request, counts, "resumed checkpoints", 40, 300):
        content = copy.deepcopy(contents[draw.choice(("full", "lora"))])
        chosen = {key: content[key] for key in ("optimizer", "step", "args", "data_digest", "base")}
        spoil(draw, chosen)
        gone = {"optimizer", "step", *chosen}
        kept = {key: item for key, item in content.items() if key not in gone}
        folder.mkdir(exist_ok=True)
        save_checkpoint(folder / "checkpoint-0000001.pt", kept | chosen)
        capsys.readouterr()
        status = sft.main(["--resume", str(folder), "--steps", "2"])
        err = capsys.readouterr().err
        assert status in (0, 2) and err.count("\n") == (status == 2), err
        assert status == 0 or err[:-1].isprintable() and len(err) < 1000, err[:2000]
        read += status == 0
        for path in folder.iterdir():
            path.unlink()
    assert read > 0


def test_bytes_of_checkpoints(request, counts: Counter, tmp_path: Path, capsys) -> None:
    """Claim 20: a right checksum over a file in which bytes were changed: the zip archive and the
    pickle in it."""
    whole, path = {}, tmp_path / "spoiled.pt"
    for name, content in checkpoints(tmp_path).items():
        save_checkpoint(tmp_path / f"{name}.pt", content)
        whole[name] = (tmp_path / f"{name}.pt").read_bytes()[:-73]
    capsys.readouterr()
    for draw in cases(request, counts, "resealed files", 150, 1500):
        data = bytearray(whole[draw.choice(("full", "lora"))])
        for _ in range(draw.choice((1, 1, 3, 20))):
            n, near = len(data), draw.randrange(3000)
            at = draw.choice((draw.randrange(n), near, n - 1 - near))
            old, new = (draw.choice((1, 1, 1, 0, 9)) for _ in range(2))
            data[at : at + old] = draw.randbytes(new)
        reseal(bytes(data), path)
        try_checkpoint(path, capsys)


CALLED = "os.system subprocess.Popen builtins.eval builtins.exec builtins.open torch.load "
CALLED += "pathlib.Path"


def test_pickles(request, counts: Counter, tmp_path: Path, capsys) -> None:
    """Claim 20: a pickle that calls something, wherever it stands, whatever it calls, is refused
    and calls nothing."""
    save_checkpoint(tmp_path / "good.pt", checkpoints(tmp_path)["full"])
    with zipfile.ZipFile(tmp_path / "good.pt") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    [pickled] = [name for name in parts if name.endswith("data.pkl")]
    path, crater = tmp_path / "bomb.pt", tmp_path / "crater"
    capsys.readouterr()
    for draw in cases(request, counts, "pickles", 100, 500):
        module, _, name = draw.choice(CALLED.split()).rpartition(".")
        arguments = {"open": (str(crater), "w"), "system": (f"touch {crater}",)}
        argument = arguments.get(name, (f"open({str(crater)!r}, 'w')",))
        call = f"c{module}\n{name}\n".encode() + pickle.dumps(argument, protocol=2)[2:-1] + b"R"
        at = draw.choice((2, len(parts[pickled]) - 1))  # before or after all the rest
        spoiled = parts[pickled][:at] + call + b"0" + parts[pickled][at:]  # "0" drops what it made
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for part, data in parts.items():
                archive.writestr(part, spoiled if part == pickled else data)
        reseal(buffer.getvalue(), path)
        assert not try_checkpoint(path, capsys)
        assert not crater.exists()


def test_tokenizers_and_adapters(request, counts: Counter, tmp_path: Path) -> None:
    """Claims 18, 20: a tokenizer's own file; and of a LoRA run's checkpoint, the adapter alone."""
    tokenizer = Tokenizer({bytes([byte]): byte for byte in range(256)}, {})
    good, whole = tokenizer.with_special(["<s>", "</s>"]).state(), checkpoints(tmp_path)["lora"]
    adapter, path = {key: whole[key] for key in ("lora", "adapter")}, tmp_path / "spoiled"
    for draw in cases(request, counts, "tokenizers and adapters", 300, 3000):
        if draw.random() < 0.5:
            state, load = copy.deepcopy(good), Tokenizer.load
            spoil_plain(draw, state)
            path.write_bytes(line(draw, state))
        else:
            state, load = copy.deepcopy(adapter), load_checkpoint
            spoil(draw, state)
            save_checkpoint(path, {**whole, **state})
        try:
            load(path)
        except ValueError as error:
            assert str(path) in str(error), error


def spoil_plain(draw: random.Random, state: dict) -> None:
    *way, last = draw.choice(list(places(state)))
    holder = state
    for key in way:
        holder = holder[key]
    holder[last] = value(draw)


# Single monsters


def test_deep_and_long(
    request, counts: Counter, tmp_path: Path, base: Path, monkeypatch, capsys
) -> None:
    """JSON nested 100,000 deep; one line of megabytes (100 with --full): as text, as a role, as a
    key."""
    length = (100 if request.config.getoption("--full") else 3) * 10**6
    deep, filler = "[" * 100_000 + "]" * 100_000, "word \\u001b" * (length // 11)
    monsters = {
        "deep": ('{"text": @}', deep),
        "deep role": ('{"messages": [{"role": @, "content": ""}]}', deep),
        "deep, unfinished": ("@", '{"a":' * 100_000),
        "long text": ('{"prompt": "a", "completion": "@"}', filler),
        "long role": ('{"messages": [{"role": "@", "content": ""}]}', filler),
        "long key": ('{"@": 1}', filler),
        "unfinished": ('{"text": "@', filler),
        "one letter": ('{"text": "@"}', "a" * length),
        "spaces": ('{"text": "@"}', " " * length),
    }
    monkeypatch.chdir(tmp_path)  # what is as large goes through the cache
    path = tmp_path / "monster.jsonl"
    for name, (form, filling) in monsters.items():
        signal.alarm(10 * PATIENCE)
        path.write_text(form.replace("@", filling))
        status = sft.main(
            f"--data {path} --init {base} --device cpu --steps 1 --out {tmp_path}/run".split()
        )
        err = capsys.readouterr().err
        assert (
            status == 2 and err.count("\n") == 1 and err[:-1].isprintable() and len(err) < 1000
        ), (name, err[:2000])
        assert str(path) in err and not (tmp_path / "run").exists()
        counts["monsters"] += 1


def test_names_do_not_lead_out_of_the_folder(
    tmp_path: Path, base: Path, monkeypatch, capsys
) -> None:
    """A file's name becomes part of a folder's name; path separators cannot stand in it, and dots
    lead nowhere."""
    monkeypatch.chdir(tmp_path)
    for name in ("...jsonl", "..", ".x", "a b", "-rf", "\x1b[2J", "é\udcff", "a\nb"):
        data = tmp_path / "data" / name
        data.parent.mkdir(exist_ok=True)
        data = data / "file.jsonl" if name == ".." else data
        write_jsonl(data, [conversation("q", "a")] * 30)
        before = {path for path in tmp_path.rglob("*")}
        assert (
            sft.main(["--data", str(data), "--init", str(base), "--steps", "1", "--device", "cpu"])
            == 0
        )
        out, err = capsys.readouterr()
        assert "\x1b" not in out and err == ""
        new = {path for path in tmp_path.rglob("*")} - before
        assert new and all(path.is_relative_to(tmp_path / "out") for path in new)
        assert show_conversations([str(data), "--init", str(base)]) == 0
        assert "\x1b[2J" not in capsys.readouterr().out
