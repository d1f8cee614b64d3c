"""hf/ as far as it needs no package of Hugging Face's: what is refused, and how; the two ways to
write a vocabulary. The rest, against transformers and peft, is in tests/peers."""

import http.client
import json
import os
import random
import sys
import urllib.error
from pathlib import Path

import pytest
import torch
from conftest import make_base, write_jsonl

import chat
import hf
import hf.__main__ as hf_main
import sft
from chat_template import ROLES, TEMPLATES, Template
from hf import weights
from hf.families import read_settings
from hf.templates import find_template, jinja
from hf.tokenizer_files import (
    BYTE_LEVEL,
    BYTES,
    all_splits,
    find_tokenizer,
    last_joins,
    read_tokenizer,
    tokenizer_files,
    tokenizer_json,
)
from runtime import load
from tokenizer import END_OF_TEXT, GPT2_SPLIT, Tokenizer, train_bpe

GOOD = {
    "model_type": "gpt2",
    "vocab_size": 257,
    "n_positions": 64,
    "n_layer": 2,
    "n_head": 4,
    "n_embd": 32,
}
CORPUS = [
    "the cat sat on the mat, the rat ate 12 of 345 oats",
    "aaaa aaab abab baaa  \n\n  aaa bbb",
    "é👋 日本語 é👋 日本",
]


@pytest.fixture
def learned() -> Tokenizer:
    return train_bpe(CORPUS, 330).with_special(["<|im_start|>", "<|im_end|>"])


@pytest.fixture
def cache(tmp_path: Path, monkeypatch) -> Path:
    """An empty cache for torch's downloads, and a safetensors package that is there and does
    nothing."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(weights, "import_safetensors", lambda: None)
    return tmp_path / "hub"


def fails(capsys, command, *arguments: object) -> str:
    """The one line that a command says before it ends with status 2."""
    assert command([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.endswith("\n") and error[:-1].isprintable()
    return error


def everything(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "gemma2"}, "model_type is 'gemma2'; this model knows gpt2, llama, qwen2"),
        (
            {"activation_function": "relu"},
            "activation_function is 'relu'; this model knows 'gelu_new' only",
        ),
        ({"activation_function": "gelu"}, "activation_function is 'gelu'"),
        ({"layer_norm_epsilon": 0}, "layer_norm_epsilon must be a number above 0, not 0"),
        ({"scale_attn_weights": False}, "scale_attn_weights is False"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        ({"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn is True"),
        ({"add_cross_attention": True}, "add_cross_attention is True"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is False"),
        ({"n_inner": 0}, "n_inner must be a whole number from 1 to a million, not 0"),
        ({"quantization_config": {"bits": 4}}, "its weights are quantised"),
        ({"n_head": 5}, "n_embd must be a multiple of n_head"),
        ({"n_layer": 0}, "n_layer must be a whole number from 1 to a million, not 0"),
        ({"n_layer": -1}, "n_layer must be"),
        ({"n_layer": True}, "n_layer must be a whole number from 1 to a million, not True"),
        ({"n_embd": 32.0}, "n_embd must be"),
        ({"n_embd": "32"}, "n_embd must be"),
        ({"n_embd": [32]}, "n_embd must be"),
        ({"vocab_size": 10**18}, "vocab_size must be"),
        ({"n_positions": None}, "n_positions must be a whole number from 1 to a million, not None"),
        ({"activation_function": "\x1b[2J" * 1000}, r"activation_function is '\\x1b\[2J"),
    ],
)
def test_a_configuration_that_this_model_cannot_compute_is_refused(
    tmp_path, capsys, changes, reason
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(GOOD | changes))
    error = fails(capsys, hf_main.main, "loss", tmp_path, Path(__file__))
    assert str(tmp_path / "config.json") in error and len(error) < 400
    with pytest.raises(ValueError, match=reason):
        weights.load_model(tmp_path)


@pytest.mark.parametrize("n_inner", [None, 128])
def test_a_configuration_gives_the_sizes(tmp_path, n_inner) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps(GOOD | {"n_inner": n_inner, "attn_pdrop": 0.1, "n_ctx": 64})
    )
    path = tmp_path / "config.json"
    _, config = read_settings(path, json.loads(path.read_text()))
    sizes = (config.vocab_size, config.context_length, config.n_layer, config.n_head)
    assert (*sizes, config.n_embd, config.n_vocab) == (257, 64, 2, 4, 32, 257)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not valid JSON"),
        (b"\xff\xfe\x00", "not valid UTF-8"),
        (b"<!DOCTYPE html>", "not valid JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[]", "not a JSON object"),
        (b'{"n_embd": 1' + b"0" * 10_000 + b"}", "not valid JSON"),
    ],
)
def test_a_configuration_that_is_no_json_is_refused(tmp_path, capsys, content, reason) -> None:
    (tmp_path / "config.json").write_bytes(content)
    for command, arguments in (
        (hf_main.main, ["loss", tmp_path, __file__]),
        (sft.main, ["--init", tmp_path]),
    ):
        error = fails(capsys, command, *arguments)
        assert reason in error and "config.json" in error


def test_weights_that_are_missing(tmp_path, capsys) -> None:
    (tmp_path / "config.json").write_text(json.dumps(GOOD))
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    error = fails(capsys, sft.main, "--init", tmp_path, "--out", tmp_path / "out")
    assert "model.safetensors: no such file" in error and not (tmp_path / "out").exists()
    (tmp_path / "config.json").rename(tmp_path / "model.safetensors")
    assert "config.json" in fails(capsys, sft.main, "--init", tmp_path, "--out", tmp_path / "out")


def test_what_is_neither_a_folder_nor_a_name(tmp_path) -> None:
    with pytest.raises(
        FileNotFoundError, match="gpt3: no folder with a config.json, and none of gpt2, gpt2-medium"
    ):
        hf.load("gpt3")
    with pytest.raises(FileNotFoundError):
        weights.load_model(tmp_path)


def test_without_the_extra_nothing_is_written(tmp_path, monkeypatch, capsys) -> None:
    for name in ("safetensors", "safetensors.torch"):
        monkeypatch.setitem(sys.modules, name, None)
    base = make_base(tmp_path / "base.pt")
    assert "pip install safetensors" in fails(
        capsys, hf_main.main, "export", base, tmp_path / "new"
    )
    assert everything(tmp_path) == [base]
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert "pip install safetensors" in fails(
        capsys, sft.main, "--init", "gpt2", "--out", tmp_path / "out"
    )
    (tmp_path / "config.json").write_text(json.dumps(GOOD))
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert "pip install safetensors" in fails(
        capsys, sft.main, "--init", tmp_path, "--out", tmp_path / "out"
    )
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_is_not_written_over(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(weights, "import_safetensors", lambda: None)
    base, note = make_base(tmp_path / "base.pt"), tmp_path / "mine" / "note"
    note.parent.mkdir()
    note.write_text("mine")
    for taken in (note, note.parent):
        assert "is there already; choose another folder" in fails(
            capsys, hf_main.main, "export", base, taken
        )
    assert everything(tmp_path) == [base, note.parent, note] and note.read_text() == "mine"


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(weights, "import_safetensors", lambda: None)
    base, write = make_base(tmp_path / "base.pt"), Path.write_text

    def write_until_full(path: Path, *arguments, **named) -> None:
        if path.name == "tokenizer_config.json":
            raise OSError(28, "No space left on device", str(path))
        write(path, *arguments, **named)

    monkeypatch.setattr(Path, "write_text", write_until_full)
    (tmp_path / "new").mkdir()
    assert "No space left on device" in fails(
        capsys, hf_main.main, "export", base, tmp_path / "new"
    )
    assert everything(tmp_path) == [base, tmp_path / "new"]


@pytest.mark.parametrize(
    "reason", [urllib.error.URLError("no network"), http.client.IncompleteRead(b"")]
)
@pytest.mark.parametrize("fails_at", [1, 2])
def test_without_a_network(cache, tmp_path, monkeypatch, capsys, reason, fails_at) -> None:
    """The line says what to fetch, and where to put it. Nothing half done stays."""
    asked = []

    def download(url: str, path: str) -> None:
        asked.append(url)
        Path(path).write_bytes(b'{"half":')
        if len(asked) == fails_at:
            raise reason
        Path(path).write_text(json.dumps(GOOD))

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    error = fails(capsys, sft.main, "--init", "distilgpt2", "--out", tmp_path / "out")
    for part in (
        str(reason),
        "distilgpt2 could not be downloaded",
        "and tokenizer.json from",
        "--init",
    ):
        assert part in error
    folder = "https://huggingface.co/distilbert/distilgpt2/resolve/main/"
    assert (
        folder in error
        and asked == [folder + "config.json", folder + "model.safetensors"][:fails_at]
    )
    assert everything(cache) == [] and not (tmp_path / "out").exists()


def test_a_log_in_page_in_place_of_the_files(cache, monkeypatch, capsys) -> None:
    monkeypatch.setattr(
        torch.hub, "download_url_to_file", lambda url, path: Path(path).write_text("<html>")
    )
    assert "not valid JSON" in fails(capsys, hf_main.main, "loss", "gpt2", __file__)
    assert everything(cache) == []


def test_a_run_named_like_a_published_model_is_that_run(cache, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_base(Path("gpt2"))
    model, tokenizer, meta = load.load_checkpoint("gpt2")
    assert tokenizer.n_vocab == 257 and meta["file"] == "gpt2" and not cache.exists()


def test_a_published_model_is_known_by_its_name(cache, tmp_path, monkeypatch) -> None:
    """A LoRA run's checkpoint holds the name, not this machine's cache, and finds its base by
    it."""
    monkeypatch.chdir(tmp_path)
    make_base(Path("small.pt"))
    small, tokenizer, _ = load.load_checkpoint("small.pt")
    monkeypatch.setattr(
        hf, "find_model", lambda path: cache / "gpt2" if str(path) == "gpt2" else None
    )
    monkeypatch.setattr(
        hf, "load_model", lambda path, dropout: (type(small)(small.config), tokenizer)
    )
    monkeypatch.setattr("model.GPT.init_weights", lambda model: model.load_state_dict(WEIGHTS))
    WEIGHTS = small.state_dict()
    data = write_jsonl(tmp_path / "data.jsonl", [{"prompt": "a", "completion": "b"}] * 40)
    flags = f"--data {data} --init gpt2 --device cpu --steps 1 --out run".split()
    assert sft.main([*flags, "--lora-rank", "1"]) == 0
    assert load.load_checkpoint("run")[2]["base"]["path"] == "gpt2"
    assert chat.main(["run", "--prompt", "a", "--base", "--max-new-tokens", "1"]) == 0
    assert sft.main(["--resume", "run", "--steps", "2"]) == 0
    assert sft.main([*flags, "--overwrite"]) == 0


@pytest.mark.parametrize(
    "name", ["a b", "a\nb", "é👋", "\x1b[31mred", os.fsdecode(b"\xff"), "$(ls)'"]
)
def test_any_name_is_shown_in_one_line(tmp_path, monkeypatch, capsys, name) -> None:
    monkeypatch.setattr(weights, "import_safetensors", lambda: None)
    (tmp_path / name).mkdir()
    (tmp_path / name / "config.json").write_text("{}")
    fails(capsys, hf_main.main, "loss", tmp_path / name, __file__)
    fails(capsys, hf_main.main, "export", make_base(tmp_path / "base.pt"), tmp_path / name)
    monkeypatch.setattr(hf_main, "export", lambda *arguments: None)
    assert hf_main.main(["export", "base.pt", name]) == 0
    assert capsys.readouterr().out[:-1].isprintable()


def test_a_base_is_found_from_another_folder(tmp_path, monkeypatch) -> None:
    """A LoRA run's checkpoint holds its base's whole path, wherever --init was relative to."""
    monkeypatch.chdir(tmp_path)
    make_base(Path("small.pt"))
    write_jsonl(Path("data.jsonl"), [{"prompt": "a", "completion": "b"}] * 40)
    flags = (
        "--data data.jsonl --init small.pt --device cpu --steps 1 --out run --lora-rank 1".split()
    )
    assert sft.main(flags) == 0
    monkeypatch.chdir("/")
    assert load.load_checkpoint(tmp_path / "run")[2]["base"]["path"] == str(tmp_path / "small.pt")


# The tokenizer


def ranks_of(*tokens: bytes) -> dict[bytes, int]:
    return {bytes([byte]): byte for byte in range(256)} | {
        token: 256 + i for i, token in enumerate(tokens)
    }


def joins(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    return [*last_joins(ranks, all_splits(ranks)).values()]


def test_joins_worked_out_by_hand() -> None:
    assert joins(ranks_of(b"bc", b"ab", b"abc", b"aa", b"aaa", b"aaaa")) == [
        (b"b", b"c"),
        (b"a", b"b"),
        (b"a", b"bc"),  # b and c are joined before a and b
        (b"a", b"a"),
        (b"aa", b"a"),  # the leftmost first
        (b"aa", b"aa"),  # both aa are joined before any aaa
    ]
    odd = ranks_of(b"aaa", b"aa", b"aaaa", b"xyz")  # aaa before aa, of which it is made
    assert joins(odd) == [(b"aa", b"a"), (b"a", b"a"), (b"aaa", b"a")]  # and nothing gives xyz


def encode_by_pairs(text: str, pairs: list[tuple[bytes, bytes]]) -> list[bytes]:
    """BPE as it is defined over pairs: the pair that comes first in the list, leftmost first, until
    none is left."""
    rank = {pair: i for i, pair in enumerate(pairs)}
    parts = [bytes([byte]) for byte in text.encode()]
    while joins := [
        (rank[pair], i) for i, pair in enumerate(zip(parts, parts[1:])) if pair in rank
    ]:
        _, i = min(joins)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


@pytest.mark.parametrize("alphabet", ["ab", "aaab", "abc", "aé"])
def test_joins_encode_as_the_ranks_do(alphabet: str) -> None:
    """Learned vocabularies, and random ones that nobody could learn, with a token before those that
    make it."""
    rng, n_random = random.Random(alphabet), 0
    for round_ in range(60):
        texts = ["".join(rng.choices(alphabet, k=rng.randrange(1, 40))) for _ in range(10)]
        if round_ % 2:
            tokenizer = train_bpe(texts, 257 + rng.randrange(1, 30))
        else:
            tokens = [bytes([byte]) for byte in sorted(set(alphabet.encode()))]
            for _ in range(rng.randrange(9)):
                tokens.append(rng.choice(tokens) + rng.choice(tokens))
            longer = sorted({token for token in tokens if len(token) > 1})
            tokenizer = Tokenizer(ranks_of(*rng.sample(longer, len(longer))), {})
        pairs = joins(tokenizer.ranks)
        is_whole = len(pairs) == len(tokenizer.ranks) - 256
        assert is_whole or round_ % 2 == 0
        n_random += round_ % 2 == 0 and len(pairs) > 2
        for text in [*texts, *("".join(rng.choices(alphabet, k=30)) for _ in range(20))]:
            if text.encode() in tokenizer.ranks and not is_whole:
                continue  # a piece that is a token needs no joins
            ids = tokenizer.encode(text)
            assert [tokenizer.decode_bytes([i]) for i in ids] == encode_by_pairs(text, pairs), (
                text,
                pairs,
            )
    assert n_random > 5


def test_characters_for_bytes() -> None:
    """As in the files of GPT-2: a space is Ġ, a line's end Ċ, é is two; every byte has a visible
    one of its own."""
    assert [BYTES[character] for character in "aĠĊÃ©"] == [
        ord("a"),
        ord(" "),
        ord("\n"),
        *"é".encode(),
    ]
    assert sorted(BYTES.values()) == list(range(256)) and "".join(BYTES).isprintable()


def test_a_tokenizer_survives_its_file(tmp_path, tokenizer, learned) -> None:
    for number, one in enumerate(
        (tokenizer, learned, Tokenizer(learned.ranks, learned.special_tokens, GPT2_SPLIT))
    ):
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps(tokenizer_json(one)))
        assert read_tokenizer(path).state() == one.state()


def test_a_pattern_of_ones_own_is_not_written(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(weights, "import_safetensors", lambda: None)
    with pytest.raises(ValueError, match="pattern"):
        tokenizer_json(Tokenizer({bytes([byte]): byte for byte in range(256)}, {}, r"."))


def change(path: str, value: object):
    def apply(saved: dict) -> None:
        *parents, last = path.split("/")
        for key in parents:
            saved = saved[int(key) if isinstance(saved, list) else key]
        saved[int(last) if isinstance(saved, list) else last] = value

    return apply


def without_end_of_text(saved: dict) -> None:
    saved["added_tokens"][0]["content"] = "</s>"


@pytest.mark.parametrize(
    "spoil",
    [
        change("model", None),
        change("model", []),
        without_end_of_text,
        change("model/vocab", {"a": 0}),
        change("model/vocab", {"a": "0"}),
        change("model/vocab", {"": 0}),
        change("model/vocab/é日", 999),
        change("model/vocab/Ġ", 2**70),
        change("model/vocab/Ġ", -1),
        change("model/vocab/Ġ", None),
        change("model/merges", []),
        change("model/merges", "ab"),
        change("model/merges", [1, 2]),
        change("model/merges/0", ["a", "b"]),
        change("model/dropout", 0.1),
        change("model/end_of_word_suffix", "</w>"),
        change("added_tokens", None),
        change("added_tokens/0/id", 7),
        change("added_tokens/0/id", [7]),
        change("added_tokens/0/content", ["x"]),
        change("model/byte_fallback", True),
        change("model/vocab/a b", 333),  # a space is Ġ there
        change("normalizer", {"type": "NFC"}),
        change("pre_tokenizer", None),
        change("pre_tokenizer", {"type": "Whitespace"}),
        change(
            "pre_tokenizer", {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False}
        ),
        change("pre_tokenizer", BYTE_LEVEL | {"use_regex": False}),
        change("pre_tokenizer/pretokenizers/0/pattern/Regex", r"\p{N}{1,3}"),
    ],
)
def test_a_tokenizer_that_would_give_other_ids_is_refused(tmp_path, learned, spoil) -> None:
    saved = json.loads(json.dumps(tokenizer_json(learned)))
    spoil(saved)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(saved))
    with pytest.raises(
        ValueError, match=r"tokenizer.json: (not a byte-level BPE tokenizer|a tokenizer whose ids)"
    ):
        read_tokenizer(path)


def test_special_tokens_that_are_words_are_refused(tmp_path, learned) -> None:
    """What is not marked as special must look like a marker: of a word, text would be full."""
    saved, path = tokenizer_json(learned), tmp_path / "tokenizer.json"
    saved["added_tokens"][1] |= {"content": "<tool_call>", "special": False}
    path.write_text(json.dumps(saved))
    assert read_tokenizer(path).special("<tool_call>") == saved["added_tokens"][1]["id"]
    saved["added_tokens"][1]["content"] = "    "
    path.write_text(json.dumps(saved))
    with pytest.raises(ValueError, match="a tokenizer whose ids"):
        read_tokenizer(path)


@pytest.mark.skipif(
    not os.environ.get("TIKTOKEN_CACHE_DIR"),
    reason="set TIKTOKEN_CACHE_DIR to a folder in which tiktoken has cached GPT-2's vocabulary",
)
def test_gpt2s_vocabulary_in_the_form_of_its_own_files(tmp_path) -> None:
    """Merges as in GPT-2's published merges.txt, whose first five and last two these are; and a
    tokenizer.json of the older kind, with `<|endoftext|>` in the vocabulary and pairs as
    strings."""
    gpt2 = Tokenizer.gpt2()
    saved = tokenizer_json(gpt2)
    merges = [" ".join(pair) for pair in saved["model"]["merges"]]
    assert merges[:5] == ["Ġ t", "Ġ a", "h e", "i n", "r e"] and merges[-2:] == [
        "Ġinform ants",
        "Ġg azed",
    ]
    assert len(merges) == 50_000
    saved["model"] |= {"merges": merges, "vocab": saved["model"]["vocab"] | {END_OF_TEXT: 50256}}
    saved["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    (tmp_path / "tokenizer.json").write_text(json.dumps(saved))
    assert read_tokenizer(tmp_path / "tokenizer.json").state() == gpt2.state()


def test_without_its_file_a_tokenizer_is_gpt2s_or_unknown(tmp_path, monkeypatch, tokenizer) -> None:
    """A vocab.json may stand there, with the special token or without; if it is another one, ids
    would be wrong."""
    monkeypatch.setattr(Tokenizer, "gpt2", lambda: tokenizer)
    assert find_tokenizer(tmp_path) is tokenizer

    def no_network() -> Tokenizer:
        raise OSError("GPT-2's vocabulary is not on this machine")

    vocab = tokenizer_json(tokenizer)["model"]["vocab"]
    for same in (vocab, vocab | {END_OF_TEXT: 256}):
        (tmp_path / "vocab.json").write_text(json.dumps(same))
        assert find_tokenizer(tmp_path) is tokenizer
    for other in (
        vocab | {"a": vocab["b"], "b": vocab["a"]},
        vocab | {"ab": 257},
        vocab | {"a": []},
        {},
    ):
        (tmp_path / "vocab.json").write_text(json.dumps(other))
        with pytest.raises(ValueError, match="vocab.json: not GPT-2's vocabulary"):
            find_tokenizer(tmp_path)
    monkeypatch.setattr(Tokenizer, "gpt2", no_network)
    with pytest.raises(
        OSError, match=f"{tmp_path} has no tokenizer.json, and GPT-2's vocabulary is not on this"
    ):
        find_tokenizer(tmp_path)


# The chat template


def test_a_chat_template_of_ours_is_known_again(tmp_path, tokenizer, monkeypatch, capsys) -> None:
    """In either file of transformers'. Others are not guessed at."""
    assert find_template(tmp_path) is None
    for name in (None, *TEMPLATES):
        ours = tokenizer.with_special(TEMPLATES[name].special_tokens if name else ())
        text = jinja(TEMPLATES[name]) if name else None
        settings = tokenizer_files(ours, text, 256)["tokenizer_config"]
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        assert find_template(tmp_path) == name
        moved = settings.pop("chat_template", "")
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        (tmp_path / "chat_template.jinja").write_text(moved)
        assert find_template(tmp_path) == name
        assert capsys.readouterr() == ("", "")
        (tmp_path / "chat_template.jinja").write_text(moved + " ")
        assert find_template(tmp_path) is None
        said, noted = capsys.readouterr()
        assert said == "" and noted.startswith(f"note: {tmp_path}: its chat template is none of")
        (tmp_path / "chat_template.jinja").unlink()


def test_the_chat_template_in_jinja_for_any_text(monkeypatch) -> None:
    """Names of its places in a template's own text, quotes, and characters beyond 16 bits are taken
    as they are."""
    text = "CLOSING BEGIN STOP CONTENT 'é\"\n\\n👋"
    form = Template(dict.fromkeys(ROLES, text), dict.fromkeys(ROLES, text), text, (), begin=text)
    written = jinja(form)
    assert written.count(json.dumps(text, ensure_ascii=False)) == 10 and "OPENING" not in written


def test_the_loss_of_a_text(tmp_path, capsys) -> None:
    """By hand: the mean of -log p of bytes 2 to the last, of what fits into the context."""
    base = make_base(tmp_path / "base.pt", context_length=16)
    text = tmp_path / "text"
    text.write_text("Once upon a time in the west")
    model, _, _ = load.load_checkpoint(base)
    ids = list(b"Once upon a time")
    probabilities = model(torch.tensor([ids]))[0].softmax(-1)
    wanted = -sum(probabilities[i, ids[i + 1]].log().item() for i in range(15)) / 15
    assert hf_main.main(["loss", str(base), str(text)]) == 0
    assert capsys.readouterr().out == f"loss {wanted:.5f} nats a token, over 15 tokens\n"
    for content in ("a", ""):
        text.write_text(content)
        assert "no second token" in fails(capsys, hf_main.main, "loss", base, text)
    text.write_bytes(b"ab\xff")
    assert f"{text}: not valid UTF-8 (byte 2)" in fails(capsys, hf_main.main, "loss", base, text)
