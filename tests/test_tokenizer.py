"""tokenizer.py: byte-pair encoding against a slow and obvious one, hostile text, files,
streaming."""

import json
import os
import random
import socket
import time
from collections import Counter
from pathlib import Path

import pytest
import regex
import tiktoken
import tiktoken.load

from tokenizer import END_OF_TEXT, GPT2_SPLIT, SPLIT, SPLITS, Tokenizer, train_bpe

# tiktoken's own pattern for GPT-2, copied from tiktoken_ext/openai_public.py.
ORIGINAL_GPT2_SPLIT = (
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
)
BYTES = {bytes([byte]): byte for byte in range(256)}
WHITE_SPACE = " \n\t\r\x0b\x0c\x85\xa0\u2003\u2028\u3000"


def random_text(rng: random.Random, alphabet: str, length: int) -> str:
    return "".join(rng.choices(alphabet, k=length))


def random_unicode(rng: random.Random, length: int) -> str:
    """Any scalar values, the rare planes as often as ASCII."""
    ranges = [(0, 0x80), (0x80, 0x800), (0x800, 0xD800), (0xE000, 0x10000), (0x10000, 0x110000)]
    return "".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(length))


def slow_encode(piece: str, ranks: dict[bytes, int]) -> list[bytes]:
    """Join the two neighbours of the lowest rank, the leftmost first, one at a time, until no two
    can be joined."""
    parts = [bytes([byte]) for byte in piece.encode("utf-8")]
    while joins := [
        (ranks[a + b], i) for i, (a, b) in enumerate(zip(parts, parts[1:])) if a + b in ranks
    ]:
        _, i = min(joins)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


def slow_train(texts: list[str], n_learned: int) -> dict[bytes, int]:
    """Encode everything afresh each round; the most frequent bytes of two neighbours win, then byte
    order."""
    ranks = dict(BYTES)
    for _ in range(n_learned):
        encoded = [
            slow_encode(piece, ranks) for text in texts for piece in regex.findall(SPLIT, text)
        ]
        counts = Counter(a + b for parts in encoded for a, b in zip(parts, parts[1:]))
        if counts:
            ranks[min(counts, key=lambda token: (-counts[token], token))] = len(ranks)
    return ranks


@pytest.mark.parametrize(
    "alphabet", ["ab", "aab ", "aabc", "abc 1'", "aé😀 ", "a\n  \t", "ll'ves "]
)
def test_training_and_encoding_equal_brute_force(alphabet: str) -> None:
    """The ranks, and the encoding of unseen text, are those of a rank-by-rank merge, on hundreds of
    small texts.

    Tokens that two merges could give, `a`+`bc` and `ab`+`c`, are one token: its text encodes to it
    alone.
    """
    rng = random.Random(alphabet)
    for trial in range(30):
        texts = [random_text(rng, alphabet, rng.randrange(40)) for _ in range(rng.randrange(1, 8))]
        tokenizer, ranks = train_bpe(iter(texts), 256 + 30 + 1), slow_train(texts, 30)
        assert tokenizer.ranks == ranks, (trial, texts)
        assert tokenizer.n_vocab == len(ranks) + 1 and tokenizer.special(END_OF_TEXT) == len(ranks)
        for token, rank in ranks.items():
            text = token.decode("utf-8", errors="ignore")
            assert text.encode("utf-8") != token or tokenizer.encode(text) == [rank]
        for text in (
            random_text(rng, alphabet, 200),
            random_text(rng, alphabet + WHITE_SPACE + "\x1cZ9", 100),
        ):
            pieces = regex.findall(SPLIT, text)
            assert "".join(pieces) == text
            assert tokenizer.encode(text) == [
                ranks[part] for piece in pieces for part in slow_encode(piece, ranks)
            ]


def test_ties_are_broken_by_byte_order_whatever_the_order_of_the_texts() -> None:
    texts = ["zz", "ba", "é", "ab", "😀", "0", "zz", "ba", "é", "ab", "😀"]
    by_hand = [b"ab", b"ba", b"zz", b"\x98\x80", b"\x9f\x98\x80", b"\xc3\xa9", b"\xf0\x9f\x98\x80"]
    for seed in range(5):
        random.Random(seed).shuffle(texts)
        assert (
            list(train_bpe(texts, 500).ranks)[256:] == by_hand
        )  # and then the texts have run out of pairs


def test_vocabulary_size_and_cuts() -> None:
    assert train_bpe(["ab ab"], 257).n_vocab == train_bpe([], 300).n_vocab == 257
    with pytest.raises(ValueError, match="at least 257"):
        train_bpe(["ab"], 256)
    assert regex.findall(
        SPLIT, "it's 123  go!\n\n ok "
    ) == "it|'s| |1|2|3| | go|!|\n\n| ok| ".split("|")
    assert regex.findall(GPT2_SPLIT, "it's 123  go!") == "it|'s| 123| | go|!".split("|")


def test_any_text_and_any_bytes_round_trip(tokenizer: Tokenizer) -> None:
    """Claim 3: `decode(encode(text)) == text` without a special id, for any Unicode and the special
    tokens' names."""
    rng = random.Random(2)
    names = [END_OF_TEXT, "<|im_start|>", "<s>"]
    trained = train_bpe([random_unicode(rng, 300), " ".join(names) * 9], 600, names)
    assert any(b"<|" in token for token in trained.ranks)
    for _ in range(200):
        words = [
            random_unicode(rng, 5),
            rng.choice(names),
            rng.choice(names)[: rng.randrange(9)],
            WHITE_SPACE,
        ]
        text, data = "".join(rng.sample(words, 4)), rng.randbytes(30)
        for each in (tokenizer, trained):
            ids = each.encode(text)
            assert each.decode(ids) == text and max(ids) < len(each.ranks)
            assert each.decode_bytes(list(data)) == data
    every_scalar = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))
    assert trained.decode(trained.encode(every_scalar)) == every_scalar
    assert trained.encode("") == [] and trained.decode([]) == ""


def test_lone_surrogates_and_ids_outside_the_vocabulary_are_refused(tokenizer: Tokenizer) -> None:
    """Claim 3: a clear error for lone surrogates, where tiktoken alone would replace them
    silently."""
    for text in ("a\ud800b", "\udfff", "\ude00\ud83d"):
        with pytest.raises(ValueError, match="lone surrogate"):
            tokenizer.encode(text)
    for token_id in (tokenizer.n_vocab, 2**31, -1):
        with pytest.raises(KeyError):
            tokenizer.decode([token_id])


def test_streaming_shows_whole_characters_as_soon_as_they_are_whole(tokenizer: Tokenizer) -> None:
    rng = random.Random(3)
    for each in (tokenizer, train_bpe(["né😀 漢字 " * 9], 275)):
        ids = each.encode(random_unicode(rng, 50) + "né😀漢 e\u0301")
        shown = list(each.stream(iter(ids)))
        for n in range(len(ids) + 1):
            assert "".join(shown[:n]) == each.decode_bytes(ids[:n]).decode("utf-8", errors="ignore")
    for _ in range(100):  # bytes that are no text, and an end in the middle of a character
        ids = rng.choices(range(257), k=20) + [0xF0, 0x9F]
        assert "".join(tokenizer.stream(ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("split", SPLITS, ids=["ours", "gpt2", "smollm2", "llama3", "qwen"])
@pytest.mark.parametrize("char", ["a", " ", "\n", "7", "\t\n", "😀"])
def test_a_megabyte_of_one_character(split: str, char: str) -> None:
    """Neither quadratic nor fatal: tiktoken's own pattern overflows the stack on a megabyte of
    spaces and a word."""
    ranks, start = train_bpe([letter * 64 for letter in "a \n"], 500).ranks, time.monotonic()
    tokenizer, run = Tokenizer(ranks, {}, split), char * (10**6 // len(char.encode()))
    for text in (run, run + "word", "word" + run + "!word"):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        is_cut = char == "\n" and split in SPLITS[3:]  # after 100,000
        if char in "a \n" and text is run and not is_cut:
            assert ids == [ranks[char.encode() * 64]] * (10**6 // 64)
    assert time.monotonic() - start < 60


def white_texts() -> list[str]:
    rng = random.Random(4)
    texts = [
        random_text(rng, WHITE_SPACE + "  \n\n a1.'s", rng.randrange(1, 60)) for _ in range(3000)
    ]
    return [
        *texts,
        " " * 60_000 + "word",
        "\n" * 60_000 + " ",
        "a" + " \n" * 30_000 + "1",
        "\x1c \x1c",
        "we'll don't 's",
    ]


def test_gpt2_split_cuts_as_tiktokens_own_pattern() -> None:
    for text in white_texts():
        assert regex.findall(GPT2_SPLIT, text) == regex.findall(ORIGINAL_GPT2_SPLIT, text), text[
            :60
        ]


@pytest.mark.skipif(
    not os.environ.get("TIKTOKEN_CACHE_DIR"),
    reason="set TIKTOKEN_CACHE_DIR to a folder in which tiktoken has cached GPT-2's vocabulary",
)
def test_gpt2_is_tiktokens() -> None:
    """Claims 3 and 22: the same ids as tiktoken's, from its cache."""
    gpt2, original = Tokenizer.gpt2(), tiktoken.get_encoding("gpt2")
    assert original._pat_str == ORIGINAL_GPT2_SPLIT
    assert gpt2.n_vocab == 50_257 and gpt2.special(END_OF_TEXT) == 50_256
    assert gpt2.encode("Hello, world!") == [15496, 11, 995, 0]
    assert gpt2.encode(END_OF_TEXT) == [27, 91, 437, 1659, 5239, 91, 29]
    for text in white_texts():
        assert gpt2.encode(text) == original.encode_ordinary(text), text[:60]


@pytest.mark.parametrize("fault", ["no network", "a log-in page instead of the file"])
def test_gpt2_without_cache_and_network_says_what_to_do(
    fault: str, tmp_path: Path, monkeypatch
) -> None:
    """Claim 22: no hang and no bare traceback; the error names the way out."""

    def no_network(*_: object, **__: object) -> None:
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})  # what this process has loaded before
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    if fault != "no network":
        monkeypatch.setattr(tiktoken.load, "read_file", lambda *_: b"<html>please log in</html>")
    with pytest.raises(OSError, match="could not be downloaded.*TIKTOKEN_CACHE_DIR=.*get_encoding"):
        Tokenizer.gpt2()


def test_save_and_load(tmp_path: Path) -> None:
    """Claim 20: plain text, from which the very same tokenizer comes back."""
    ranks = train_bpe(["ab ab 12 12 éé"], 300).ranks
    for split in (SPLIT, GPT2_SPLIT):
        saved = Tokenizer(ranks, {END_OF_TEXT: len(ranks)}, split).with_special(["<é>"])
        saved.save(tmp_path / "tokenizer.json")
        loaded = Tokenizer.load(str(tmp_path / "tokenizer.json"))
        assert (
            loaded.state() == saved.state()
            and loaded.n_vocab == len(ranks) + 2
            and loaded.split == split
        )
        assert (
            loaded.encode("abab 12 é<é>") == saved.encode("abab 12 é<é>")
            and loaded.special("<é>") == len(ranks) + 1
        )


def test_with_special_keeps_old_ids_and_appends_new_ones(tokenizer: Tokenizer) -> None:
    grown = tokenizer.with_special(["<a>", END_OF_TEXT, "<b>", "<a>"]).with_special(["<c>"])
    assert (
        grown.special_tokens == {END_OF_TEXT: 256, "<a>": 257, "<b>": 258, "<c>": 259}
        and grown.n_vocab == 260
    )
    assert grown.decode([97, 258, 98]) == "a<b>b" and grown.encode("<b>") == [60, 98, 62]
    with pytest.raises(ValueError, match=r"no special token '<a>'.*<\|endoftext\|>.*with_special"):
        tokenizer.special("<a>")


GOOD = Tokenizer(BYTES, {END_OF_TEXT: 256}).state()
DAMAGED = {
    "cut short": json.dumps(GOOD)[:-9],
    "nested deep": "[" * 100_000,
    "keys missing": "{}",
    "a byte missing": json.dumps(GOOD | {"tokens": GOOD["tokens"][:-1]}),
    "a token twice": json.dumps(GOOD | {"tokens": [*GOOD["tokens"], "YQ=="]}),
    "bad pattern": json.dumps(GOOD | {"split": "("}),
    "special id taken": json.dumps(GOOD | {"special_tokens": {END_OF_TEXT: 97}}),
    "special id below zero": json.dumps(GOOD | {"special_tokens": {END_OF_TEXT: -1}}),
    "special id far away": json.dumps(GOOD | {"special_tokens": {END_OF_TEXT: 9000}}),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_is_refused(damage: str, tmp_path: Path) -> None:
    """Claim 20: when it is loaded, not when the first odd byte is encoded, hours later."""
    path = tmp_path / "tokenizer.json"
    path.write_text(DAMAGED[damage])
    with pytest.raises(ValueError, match="not a saved tokenizer"):
        Tokenizer.load(path)
