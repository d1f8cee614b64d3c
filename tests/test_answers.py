"""runtime/answers.py: what a model is asked, base or tuned, and what is shown of its answers."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import conversation, make_base, make_model, write_jsonl

import evaluate
import sft
from chat_template import TEMPLATES, Message, render_prompt
from model import GPT
from runtime import answers
from runtime.answers import Samples, generate_answers, prompt_of, stop_ids
from runtime.records import build_dataset, read_raw


def asked(*texts: str) -> list[list[Message]]:
    return [[Message("user", text)] for text in texts]


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_prompt_is_the_templates(tokenizer, template: str):
    """Claim 4."""
    tokenizer = tokenizer.with_special(TEMPLATES[template].special_tokens)
    messages = [Message("system", "s"), Message("user", "q")]
    prompt = prompt_of(messages, tokenizer, template)
    assert prompt == render_prompt(messages, tokenizer, template)


def test_a_base_is_asked_in_lines(tokenizer):
    """It knows no turns: end of text, where a document begins, then each message on its line. The
    last line has an end, too, or the base would go on with the question."""
    messages = [Message("system", "s"), Message("user", "<|endoftext|>")]
    assert prompt_of(messages, tokenizer, None) == [256, *b"s\n<|endoftext|>\n"]


@pytest.mark.parametrize(
    "template, stops",
    [(None, [256]), ("chatml", [258, 256]), ("llama2", [258, 256]), ("alpaca", [256])],
)
def test_an_answer_ends_at_the_stop_token_and_at_end_of_text(tokenizer, template, stops):
    """A model that was tuned on documents alone says end-of-text, whatever its template: that ends
    an answer, and is no part of it."""
    special = TEMPLATES[template].special_tokens if template else ()
    tokenizer = tokenizer.with_special(special)
    assert stop_ids(tokenizer, template) == stops
    for stop in stops:
        model = make_model(vocab_size=tokenizer.n_vocab, n_vocab=tokenizer.n_vocab)
        model.final_norm.weight.data.zero_()  # whatever it is asked, it says this token
        model.final_norm.bias.data.copy_(model.tok_emb.weight.data[stop] * 100)
        assert generate_answers(model, tokenizer, template, asked("q"), 9) == [("", True)]
        model.final_norm.bias.data.copy_(model.tok_emb.weight.data[ord("a")] * 100)
        said = generate_answers(model, tokenizer, template, asked("q"), 9)
        assert said == [("a" * 9, False)]


def test_samples_and_scores_ask_alike(tmp_path: Path, monkeypatch):
    """Before and after training, and in evaluate.py, of base and tuned model: the same prompts."""
    given: list[list[int]] = []

    def generate(model: GPT, prompts: list[list[int]], *_, **__) -> list[list[int]]:
        given.extend(sorted(prompts))
        return [[] for _ in prompts]

    monkeypatch.setattr(GPT, "generate", generate)
    base = make_base(tmp_path / "base.pt")
    write_jsonl(tmp_path / "train.jsonl", [conversation("x", "y")])
    data = write_jsonl(tmp_path / "data.jsonl", [conversation(f"q{i}", "a") for i in range(3)])
    run = f"--data {tmp_path}/train.jsonl --val-data {data} --init {base} --steps 1"
    assert sft.main([*run.split(), "--out", str(tmp_path / "run")]) == 0
    samples, given[:] = given[:], []
    text = write_jsonl(tmp_path / "text.jsonl", [{"text": "a document"}])
    scores = f"{base} {tmp_path}/run --data {data} --text {text}"
    assert evaluate.main(scores.split()) == 0
    assert samples == given and len(samples) == 6
    assert samples[:3] == [[256, *f"q{i}\n".encode()] for i in range(3)]


class Letters:
    """Stands in for a model: it answers with as many letters as the prompt's last letters say, and
    stops by itself where it has room for them. So it can be seen what it was asked."""

    def __init__(self) -> None:
        self.config, self.batches = SimpleNamespace(context_length=64), []

    def generate(
        self, prompts: list[list[int]], max_new_tokens: int, stop: list[int]
    ) -> list[list[int]]:
        self.batches.append(len(prompts))
        assert stop == [256] and all(prompt[-1] == 10 for prompt in prompts)
        free = [
            [ord("a") + prompt[-2] - ord("0")] * (prompt[-2] - ord("0")) * 6 for prompt in prompts
        ]
        rooms = [min(max_new_tokens, 64 - len(prompt)) for prompt in prompts]
        assert all(room > 0 for room in rooms)
        return [ids[:room] for ids, room in zip(free, rooms)]


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_answers_come_in_the_order_of_the_questions(tokenizer, batch_size: int):
    """Whatever their lengths. Of a prompt that is too long, the end is asked, so that half the
    context stays for the answer. What fills its room was cut off, the rest stopped by itself."""
    model, texts = Letters(), ["9", "x" * 30 + "8", "x" * 200 + "7", "0", "x" * 50 + "3", "4", "1"]
    found = generate_answers(model, tokenizer, None, asked(*texts), 20, batch_size)
    wanted = [(letter * 20, False) for letter in "jih"]
    wanted += [("", True), ("d" * 18, True), ("e" * 20, False), ("b" * 6, True)]
    assert found == wanted and sum(model.batches) == 7 and max(model.batches) <= batch_size
    found = generate_answers(model, tokenizer, None, asked(*texts), 1000, batch_size)
    assert [answer for answer, _ in found][:3] == ["j" * 54, "i" * 32, "h" * 32]
    assert [stopped for _, stopped in found][:3] == [True, False, False]


def samples_of(conversations: list[list[Message]], held_out: bool) -> Samples:
    one = np.arange(1)
    data = SimpleNamespace(val_indices=one[:held_out], pools=[one], val_set=None, val_paths=[])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answers, "pick_samples", lambda *_: conversations)
        return Samples(data)


def test_an_answer_that_was_cut_off_is_marked(tokenizer, monkeypatch, capsys):
    """What stopped by itself is whole. Base and tuned answers stand below the question."""
    conversations = [[Message("user", f"q{i}"), Message("assistant", f"a{i}")] for i in range(2)]
    samples, new_ids = samples_of(conversations, held_out=True), [b"x" * 40, b"yes"]
    monkeypatch.setattr(GPT, "generate", lambda model, *_, **__: [list(ids) for ids in new_ids])
    samples.ask("base", make_model(), tokenizer, None)
    new_ids = [b"a0", b"a1 \x1b[2J"]
    samples.ask("tuned", make_model(), tokenizer, "xml")
    first, second = capsys.readouterr().out.split("\nquestions held out from training\n")[1:]
    assert f"    base    {'x' * 40} ...\n    wanted  a0\n" in first
    assert "    base    yes\n    wanted  a1\n" in first
    assert second == (
        f"  user      q0\n    base    {'x' * 40} ...\n    tuned   a0\n    wanted  a0\n\n"
        "  user      q1\n    base    yes\n    tuned   a1 \\x1b[2J\n    wanted  a1\n\n"
    )


def test_one_process_asks(tokenizer, monkeypatch, capsys):
    """Claim 10: the others do not generate what nobody would see; without samples, nobody does."""
    monkeypatch.setattr(GPT, "generate", lambda *_, **__: pytest.fail("asked"))
    samples_of([], held_out=False).ask("base", make_model(), tokenizer, None)
    monkeypatch.setenv("RANK", "1")
    conversations = [[Message("user", "q"), Message("assistant", "a")]]
    samples_of(conversations, held_out=False).ask("base", make_model(), tokenizer, None)
    assert capsys.readouterr().out == ""


def test_samples_are_the_chosen_conversations(tmp_path: Path, tokenizer, monkeypatch):
    """From JSON Lines and from an array on one line; those of one question come first; a file is
    not read again for every conversation without answer."""
    records = [conversation(f"q{i}", f"a{i}") if i % 3 else {"text": f"t{i}"} for i in range(300)]
    records[31] = {"messages": records[1]["messages"] + records[31]["messages"]}
    lines = write_jsonl(tmp_path / "lines.jsonl", records)
    array = write_jsonl(tmp_path / "array.json", [records])
    reads: list[Path] = []
    monkeypatch.setattr(answers, "read_raw", lambda path: reads.append(path) or read_raw(path))
    for path in (lines, array):
        examples, _ = build_dataset([path], tokenizer, "xml")
        chosen = np.array([9, 31, 30, 299, 3, 100, 1])
        shown = answers.pick_samples(examples, [path], chosen)
        assert [messages[-1].content for messages in shown] == ["a299", "a100", "a1"]
        [shown] = answers.pick_samples(examples, [path], chosen[:2])
        assert [messages.content for messages in shown] == ["q1", "a1", "q31", "a31"]
        assert answers.pick_samples(examples, [path], np.arange(0, 300, 3)) == []
    assert len(reads) <= 20
