"""chat.py: what the model is asked, what the screen shows, and what happens when the context is
full."""

import io
import json
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from conftest import conversation, make_base, make_model, write_jsonl

import chat
import sft
from chat_template import TEMPLATES, Message, render_prompt
from model import GPT
from runtime.console import printable
from runtime.load import load_checkpoint
from tokenizer import Tokenizer


class Script:
    """Stands in for the model: gives its lines byte by byte, and keeps what it was asked. None
    interrupts."""

    def __init__(self, *answers: str | None):
        self.answers, self.prompts, self.sampling = list(answers), [], []

    def stream(
        self, prompts: list[list[int]], max_new_tokens: int, **sampling
    ) -> Iterator[dict[int, int]]:
        [prompt] = prompts
        self.prompts.append(list(prompt))
        self.sampling.append({"max_new_tokens": max_new_tokens, **sampling})
        answer = self.answers.pop(0)
        yield from ({0: byte} for byte in (answer or "half an ans").encode())
        if answer is None:
            raise KeyboardInterrupt
        yield {}


@pytest.fixture(scope="module")
def tuned(tmp_path_factory) -> Path:
    """A short run; base.pt beside it. The context has 256 tokens, every one a byte."""
    folder = tmp_path_factory.mktemp("chat")
    base = make_base(folder / "base.pt")
    data = write_jsonl(folder / "data.jsonl", [conversation("q", "a")])
    arguments = f"--data {data} --init {base} --steps 5 --lr 0.1 --out {folder}/run"
    assert sft.main(arguments.split()) == 0
    return folder / "run"


@pytest.fixture
def talk(tuned, monkeypatch, capsys):
    """Type lines into the REPL (or give --prompt) while a script answers; gives what the screen and
    stderr show."""

    def run(script: Script, lines: Sequence[str], *flags: str) -> tuple[str, str]:
        pending = list(lines)

        def type_line(prompt: str = "") -> str:
            if not pending:
                raise EOFError
            if (line := pending.pop(0)) == "<Ctrl-C>":
                raise KeyboardInterrupt
            return line

        monkeypatch.setattr(
            GPT, "stream", lambda model, *args, **named: script.stream(*args, **named)
        )
        monkeypatch.setattr("builtins.input", type_line)
        assert chat.main([str(tuned), *flags]) == 0
        assert script.answers == [], "the model was asked less often than the script expects"
        return capsys.readouterr()

    return run


def read_back(prompts: list[list[int]], tokenizer: Tokenizer) -> list[str]:
    return [
        tokenizer.with_special(["<|im_start|>", "<|im_end|>"]).decode(prompt) for prompt in prompts
    ]


def chatml(*turns: str) -> str:
    """ "user: hi" -> what a prompt that ends in this turn says."""
    parts = [turn.split(": ", 1) for turn in turns]
    return (
        "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in parts)
        + "<|im_start|>assistant\n"
    )


# The conversation


def test_each_prompt_is_the_whole_conversation(talk, tokenizer):
    """Claim 4: the model sees the history as training would have rendered it, changed by the
    commands and by nothing else: an unknown command, an empty line and an interrupted answer leave
    it alone."""
    typed = ["hi", "  again ", "/nonsense", "", "  ", "stop me", "more"]
    typed += ["/system Be kind.", "hello", "/reset", "ho"]
    script = Script("A1", "two\nlines ", None, "", "A5", "A6", "A7")
    out, err = talk(script, [*typed, "/system", "<|im_end|>", "/quit", "never asked"])
    so_far = ["user: hi", "assistant: A1", "user: again"]
    assert read_back(script.prompts, tokenizer) == [
        chatml("user: hi"),
        chatml(*so_far),
        chatml(*so_far, "assistant: two\nlines ", "user: stop me"),
        chatml(*so_far, "assistant: two\nlines ", "user: more"),
        chatml("system: Be kind.", "user: hello"),
        chatml("system: Be kind.", "user: ho"),
        chatml("user: <|im_end|>"),
    ]
    history = [Message("user", "hi"), Message("assistant", "A1"), Message("user", "again")]
    special = tokenizer.with_special(["<|im_start|>", "<|im_end|>"])
    assert script.prompts[1] == render_prompt(history, special)
    end = special.special("<|im_end|>")
    assert script.prompts[6].count(end) == 1  # what the user types forges no turn
    assert err == "" and "A5\n" in out and "two\nlines \n" in out
    # at the start and for the unknown command
    assert out.count("/reset forgets the turns") == 2


def test_a_full_context_loses_its_oldest_turns_whole(talk, tokenizer):
    """Of 256 tokens 100 are kept for the answer. A system message of 1 byte takes 11 tokens, a
    question of 40 takes 48, an answer of 9 takes 22, the answer's opening 11: the third prompt
    would be 11 + 2 * (48 + 22) + 48 + 11 = 210.
    """
    questions = [letter * 40 for letter in "abcd"]
    script = Script(*("." * 9 for _ in range(4)))
    lines = [*questions[:3], "x" * 150, questions[3]]
    out, err = talk(script, lines, "--max-new-tokens", "100", "--system", "S")
    asked = [("user: " + question, "assistant: .........") for question in questions]
    assert read_back(script.prompts, tokenizer) == [
        chatml("system: S", asked[0][0]),
        chatml("system: S", *asked[0], asked[1][0]),
        chatml("system: S", *asked[1], asked[2][0]),
        chatml("system: S", *asked[2], asked[3][0]),
    ]
    assert err.splitlines() == ["(the context is full: the oldest 2 messages were dropped)"] * 2
    assert "error: this message makes a prompt of 180 tokens; the context has room for 156\n" in out


def test_several_lines_are_one_message(talk, tokenizer):
    """From /paste up to /end, or to the end of the input, just as they stand; commands among them
    are text. Ctrl-C and a block of nothing ask nothing."""
    block = ["Story: Eric was by the lake.", "", "  /reset", "Where was Eric? "]
    typed = [
        "/paste",
        *block,
        " /end",
        "/paste",
        "/end",
        "/paste",
        "lost",
        "<Ctrl-C>",
        "/paste now",
    ]
    script = Script("by the lake", "yes")
    out, err = talk(script, [*typed, "/paste", "Sure?", "Really?"])
    first = ["user: Story: Eric was by the lake.\n\n  /reset\nWhere was Eric? "]
    second = [*first, "assistant: by the lake", "user: Sure?\nReally?"]
    assert read_back(script.prompts, tokenizer) == [chatml(*first), chatml(*second)]
    assert err == "" and out.count("/paste takes all lines") == 2  # at the start, for "/paste now"


def test_an_over_full_chat_goes_on(tuned, monkeypatch, capsys):
    """With the real model, until the turns are several times what the context holds."""
    lines = [f"question {number} " + "x" * 30 for number in range(12)]
    typed = iter(lines)
    monkeypatch.setattr("builtins.input", lambda prompt="": next(typed, "/quit"))
    asked, genuine = [], GPT.stream

    def stream(model, prompts, *args, **named):
        asked.extend(prompts)
        return genuine(model, prompts, *args, **named)

    monkeypatch.setattr(GPT, "stream", stream)
    assert chat.main([str(tuned), "--max-new-tokens", "40"]) == 0
    out, err = capsys.readouterr()
    assert "error" not in out and "messages were dropped)\n" in err
    assert len(asked) == 12 and max(map(len, asked)) <= 256 - 40
    opening = render_prompt([], load_checkpoint(tuned)[1])
    for line, prompt in zip(lines, asked):
        assert prompt[: -len(opening) - 2][-len(line) :] == [*line.encode()]


@pytest.mark.parametrize("seed", range(5))
def test_fit_keeps_as_many_turns_as_there_is_room_for(tokenizer, seed):
    """Against trying every number of dropped turns; a turn is a user message and all that follows
    it."""
    draw = random.Random(seed)
    outcomes = set()
    for _ in range(60):
        system = [Message("system", "s" * draw.randrange(40))] * draw.randrange(2)
        turns = []
        for _ in range(draw.randrange(5)):
            rest = [
                Message(role, "r" * draw.randrange(30))
                for role in ("assistant", "tool", "assistant")
            ]
            turns.append([Message("user", "u" * draw.randrange(40)), *rest[: draw.choice((1, 3))]])
        turns.append([Message("user", "u" * draw.randrange(60))])
        messages, room = [*system, *sum(turns, [])], draw.randrange(60, 400)
        choices = [
            ([*system, *sum(turns[n:], [])], sum(map(len, turns[:n]))) for n in range(len(turns))
        ]
        fitting = [
            choice for choice in choices if len(render_prompt(choice[0], tokenizer, "xml")) <= room
        ]
        if fitting:
            assert chat.fit(messages, tokenizer, "xml", room) == fitting[0]
        else:
            length = len(render_prompt(choices[-1][0], tokenizer, "xml"))
            reason = f"a prompt of {length} tokens; the context has room for {room}"
            with pytest.raises(ValueError, match=reason):
                chat.fit(messages, tokenizer, "xml", room)
        outcomes.add("refused" if not fitting else "dropped" if fitting[0][1] else "whole")
    assert outcomes == {"refused", "dropped", "whole"}


# The answer


def written_forms(text: str, template: str) -> list[list[str]]:
    """How a model may write a text, character by character."""
    if template != "json":
        return [list(text)]
    return [
        [json.dumps(char, ensure_ascii=ascii_only)[1:-1] for char in text]
        for ascii_only in (False, True)
    ]


@pytest.mark.parametrize("template", ["chatml", "json"])
def test_every_character_is_shown_as_soon_as_it_is_whole(template, monkeypatch):
    """Claim 4, read back: the pieces join to the text; no half character is shown, and nothing that
    is complete is held back, while the model writes one byte at a time. Of JSON's strings, nothing
    is shown before the end."""
    tokenizer = Tokenizer(
        {bytes([i]): i for i in range(256)}, {"<|endoftext|>": 256, "<|im_end|>": 257}
    )
    tokenizer = tokenizer.with_special(TEMPLATES[template].special_tokens)
    draw = random.Random(3)

    def check(text: str, form: list[str]) -> None:
        shown = []

        def stream(model, prompts, max_new_tokens, stop, **sampling):
            sent = b""
            for byte in "".join(form).encode():
                yield {0: byte}
                sent += bytes([byte])
                whole = next(
                    n
                    for n in range(len(text), -1, -1)
                    if sent.startswith("".join(form[:n]).encode())
                )
                assert "".join(shown) == ("" if template == "json" else text[:whole])

        monkeypatch.setattr(GPT, "stream", stream)
        for piece in chat.stream_answer(model, tokenizer, template, [Message("user", "q")], 99, {}):
            shown.append(piece)
        assert "".join(shown) == text

    model = make_model()
    for _ in range(40):
        text = "".join(draw.choices('ab "\\/\n\t\x1b\x7fé😀\u2028\u200d[un0', k=draw.randrange(10)))
        for form in written_forms(text, template):
            check(text, form)


@pytest.mark.parametrize(
    "written", ['a"b', "\\q", "x\\", "\\ud83d!", '\\n"b', "a\\nb\\", "a\\tb\\ud83d"]
)
def test_what_is_no_json_string_is_shown_like_a_finished_answer(written, talk, monkeypatch):
    """A model can write what the json template cannot read. Chat and scoring then see the same
    text."""
    script = Script(written)
    monkeypatch.setattr(GPT, "stream", lambda model, *args, **named: script.stream(*args, **named))
    tokenizer = Tokenizer({bytes([i]): i for i in range(256)}, {"<|endoftext|>": 256})
    pieces = chat.stream_answer(make_model(), tokenizer, "json", [Message("user", "q")], 99, {})
    assert "".join(pieces) == TEMPLATES["json"].read(written)


def test_an_answer_drives_no_terminal(talk, tokenizer):
    """Escapes are shown, not sent, in the base's text as well; the conversation keeps the text as
    it was."""
    wild = "\x1b[2Jred\x07\r\u202eback\u009b1m\nend"
    script = Script(wild, wild, wild, wild)
    out, _ = talk(script, ["hi", "on"], "--base")
    harmless = "\\x1b[2Jred\\x07\\r\\u202eback\\x9b1m\nend"
    assert out.split("\n", 2)[2] == f"base:  {harmless}\ntuned: {harmless}\n" * 2 + "\n"
    assert read_back(script.prompts[3:], tokenizer) == [
        chatml("user: hi", f"assistant: {wild}", "user: on")
    ]


def test_prompt_prints_the_answer_alone(talk):
    """For scripts; and the sampling flags arrive where the model is asked."""
    script = Script("the\nanswer")
    flags = "--temperature 0.5 --top-k 7 --top-p 0.25 --seed 11 --max-new-tokens 20".split()
    assert talk(script, [], "--prompt", "hi", *flags) == ("the\nanswer\n", "")
    expected = {"temperature": 0.5, "top_k": 7, "top_p": 0.25, "seed": 11}
    expected |= {"max_new_tokens": 20, "stop": [258, 256]}
    assert script.sampling == [expected]


@pytest.mark.parametrize(
    "flags, n_written, told",
    [
        ("--max-new-tokens 20", 20, "... cut after 20 tokens (--max-new-tokens)\n"),
        ("--max-new-tokens 20", 19, ""),
        ("--max-new-tokens 200", 200, "... cut after 200 tokens (--max-new-tokens)\n"),
        # the prompt takes 21 of 256
        ("--max-new-tokens 999", 235, "... cut after 235 tokens (it fills the context of 256)\n"),
        ("--max-new-tokens 999", 234, ""),
    ],
)
def test_an_answer_that_was_cut_off_is_told_from_a_whole_one(talk, flags, n_written, told):
    """More than half the context may be written where the turns leave room for it; whichever limit
    cuts an answer off is named on standard error, which no script takes for the answer."""
    script = Script("é" * (n_written // 2) + "x" * (n_written % 2))
    answer = "é" * (n_written // 2) + "x" * (n_written % 2)
    assert talk(script, [], "--prompt", "hi", *flags.split()) == (answer + "\n", told)
    assert script.sampling[0]["max_new_tokens"] == min(int(flags.split()[1]), 235)


@pytest.mark.parametrize("given", ["two\nlines", "  é\n\n\n", "x" * 100])
def test_a_prompt_from_standard_input(talk, tokenizer, monkeypatch, given):
    """For what is too long or too wild for a command line; without its last line's end."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(given.encode()), "utf-8"))
    script = Script("A")
    assert talk(script, [], "--prompt", "-") == ("A\n", "")
    assert read_back(script.prompts, tokenizer) == [chatml("user: " + given.rstrip("\n"))]


@pytest.mark.parametrize("flags", ["", "--prompt -"])
def test_what_is_no_text_is_refused(tuned, monkeypatch, capsys, flags):
    """Bytes on standard input that are no UTF-8: one line; the conversation goes on after it."""
    given = b"caf\xe9\n/quit\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(given), "utf-8"))
    assert chat.main([str(tuned), *flags.split()]) == (2 if flags else 0)
    out, err = capsys.readouterr()
    assert (err if flags else out).count("error: ") == 1 and "lone surrogate" in (out + err)
    assert "Traceback" not in out + err


def test_the_base_continues_the_bare_text(tuned, tokenizer, capsys):
    """--base asks the model that the run started from, without any template, and then the tuned
    one. Its text ends in a line's end, as where a document goes on."""
    assert chat.main([str(tuned), "--base", "--prompt", "hi", "--max-new-tokens", "12"]) == 0
    model, _, _ = sft.load_checkpoint(tuned.parent / "base.pt")
    ids = [256, *b"hi\n"]
    for _ in range(12):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    new_ids = ids[4:] if 256 not in ids[4:] else ids[4 : ids.index(256, 4)]
    continuation = printable(tokenizer.decode(new_ids), keep="\n")
    assert capsys.readouterr().out.startswith(f"base:  {continuation}\ntuned: ")


TOO_LONG = "this message makes a prompt of 319 tokens; the context has room for 128"
NO_GPU = "--device cuda: torch finds none on this machine; try --device auto"


@pytest.mark.parametrize(
    "checkpoint, flags, reason",
    [
        (
            "base.pt",
            "",
            "base.pt is a base model, which knows no turns; tune it with sft.py",
        ),
        ("nowhere", "", "nowhere: no such file"),
        ("damaged.pt", "", "damaged.pt: .*(damaged|no whole checkpoint)"),
        ("empty", "", "empty: no whole checkpoint"),
        ("run", "--temperature -1", "temperature must be 0 .greedy. or more, not -1.0"),
        ("run", "--top-k 0", "top_k must be at least 1, not 0"),
        ("run", "--top-p 1.5", "top_p must be in .0, 1., not 1.5"),
        ("run", "--max-new-tokens -5", "max-new-tokens"),
        ("run", "--prompt " + "x" * 300, TOO_LONG),
        ("run", "--prompt \udcff", "lone surrogate"),
        ("run", "--device cuda", NO_GPU),
    ],
)
def test_bad_input_gets_one_clear_line(tuned, monkeypatch, capsys, checkpoint, flags, reason):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path, arguments = tuned.parent / checkpoint, flags.split()
    if checkpoint == "damaged.pt":
        path.write_bytes((tuned.parent / "base.pt").read_bytes()[:-70])
    if checkpoint == "empty":
        path.mkdir(exist_ok=True)
    if "--prompt" not in arguments:
        arguments += ["--prompt", "x"]
    assert chat.main([str(path), *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and re.fullmatch(f"error: .*{reason}.*\n", err)
