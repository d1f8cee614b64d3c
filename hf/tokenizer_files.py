"""The tokenizer files of Hugging Face's formats: tokenizer.json and tokenizer_config.json.

A tokenizer.json describes a program: a normalizer, a pre-tokenizer, a list of pairs to join. Those
that do what `Tokenizer` does, with one of its patterns, are known here, and nothing else is
accepted. No pattern is taken from a file.
"""

import re
from collections.abc import Iterable, Iterator
from operator import itemgetter
from pathlib import Path
from typing import AnyStr

from runtime.files import decode_utf8, parse_json
from tokenizer import (
    END_OF_TEXT,
    GPT2_SPLIT,
    LLAMA3_SPLIT,
    QWEN_SPLIT,
    SMOLLM2_SPLIT,
    SPLIT,
    Tokenizer,
    pair_bytes,
)

# Llama 3's names of special tokens. The end of a text has one name for all of ours.
BEGIN_OF_TEXT, LLAMA3_END_OF_TEXT = "<|begin_of_text|>", "<|end_of_text|>"

# Every byte has a character: itself where it can be seen, else one from 256 on.
VISIBLE = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1)]
VISIBLE += range(ord("®"), ord("ÿ") + 1)
HIDDEN = [byte for byte in range(256) if byte not in VISIBLE]
CHARACTERS = {byte: chr(byte) for byte in VISIBLE}
CHARACTERS |= {byte: chr(256 + i) for i, byte in enumerate(HIDDEN)}
BYTES = {character: byte for byte, character in CHARACTERS.items()}
# For str.translate: to the character of the byte's number, and of what stands for no byte, to none.
TO_BYTES = dict.fromkeys(HIDDEN, 0xFFFF) | {ord(name): byte for name, byte in BYTES.items()}

# How text is cut into pieces: the patterns of tokenizer.py in the words of that matcher, to which
# `$` is the end of any line. `ByteLevel` cuts as GPT2_SPLIT does.
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
BYTE_LEVEL |= {"trim_offsets": False}
DIGITS = {"type": "Digits", "individual_digits": True}
OURS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def in_order(*parts: dict) -> dict:
    return {"type": "Sequence", "pretokenizers": [*parts]}


def by_pattern(pattern: str) -> dict:
    regex = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
    return in_order(regex | {"invert": False}, BYTE_LEVEL | {"use_regex": False})


PRE_TOKENIZERS = {
    GPT2_SPLIT: BYTE_LEVEL,
    SPLIT: by_pattern(OURS),
    SMOLLM2_SPLIT: in_order(DIGITS, BYTE_LEVEL),
    LLAMA3_SPLIT: by_pattern(LLAMA3),
    QWEN_SPLIT: by_pattern(LLAMA3.replace("{1,3}", "")),
}
NORMALIZERS = {QWEN_SPLIT: {"type": "NFC"}}  # of the others none


def read_json(path: Path) -> dict:
    value = parse_json(path, 1, decode_utf8(path, 1, path.read_bytes()))
    if not isinstance(value, dict):
        raise ValueError(f"{path}: not a JSON object")
    return value


def in_characters(token: bytes) -> str:
    return "".join(CHARACTERS[byte] for byte in token)


def plain(pre_tokenizer: dict) -> dict:
    """Without what is said of places in the text, and with the defaults."""
    if "pretokenizers" in pre_tokenizer:
        return pre_tokenizer | {"pretokenizers": [*map(plain, pre_tokenizer["pretokenizers"])]}
    if pre_tokenizer["type"] != "ByteLevel":
        return pre_tokenizer
    return {"use_regex": True} | pre_tokenizer | {"trim_offsets": False}


# Pairs that are joined


def all_splits(ids: dict[AnyStr, int]) -> Iterator[tuple[AnyStr, AnyStr]]:
    """Each token in two others, in the order of ids."""
    for token, _ in sorted(ids.items(), key=itemgetter(1)):
        for i in range(1, len(token)):
            if token[:i] in ids and token[i:] in ids:
                yield token[:i], token[i:]


def last_joins(
    ids: dict[AnyStr, int], splits: Iterable[tuple[AnyStr, AnyStr]]
) -> dict[AnyStr, tuple[AnyStr, AnyStr]]:
    """For each longer token the one of its `splits` whose two tokens are really joined; other
    programs store BPE as a list of such pairs. Left out are tokens that no join gives.

    {"a": 0, "b": 1, "c": 2, "ab": 3, "abc": 4} -> {"ab": ("a", "b"), "abc": ("ab", "c")}. There is
    one pair a token: until its bytes are one, they are joined among themselves in the same order in
    any text.
    """
    pairs: dict[AnyStr, tuple[AnyStr, AnyStr]] = {}
    for left, right in splits:
        token = left + right
        if token not in pairs and meet(left, right, ids, pairs):
            pairs[token] = left, right
    # Others are joined from a token with a larger id than theirs, or from such ones, or never.
    for token in [token for token in ids if len(token) > 1 and token not in pairs]:
        parts = joined(token, ids)
        if len(parts) == 2:
            pairs[token] = parts[0], parts[1]
    return dict(sorted(pairs.items(), key=lambda item: ids[item[0]]))


def joined(token: AnyStr, ids: dict[AnyStr, int]) -> list[AnyStr]:
    """The parts that are left of a token's bytes where nothing more is joined, or only all."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pairs = enumerate(pair_bytes(parts))
        i, pair = min(pairs, key=lambda pair: ids.get(pair[1], len(ids)))
        if ids.get(pair, token) == token:
            break
        parts[i : i + 2] = [pair]
    return parts


def meet(left: AnyStr, right: AnyStr, ids: dict[AnyStr, int], pairs: dict) -> bool:
    """Whether these tokens ever stand side by side where their bytes do: whether, from the last
    join inside them back to the first, none across their border would have come before it."""
    limit = ids[left + right]
    while True:
        # When each was joined; bytes never were.
        left_id, right_id = ids[left], ids[right]
        if ids.get(left + right, limit) < limit:
            return False
        if len(left) > 1 and (left_id > right_id or len(right) == 1):
            if left not in pairs or left_id > limit:
                return False
            left, limit = pairs[left][1], left_id
        elif len(right) > 1:
            if right not in pairs or right_id > limit:
                return False
            # Of equal joins the leftmost comes first, which is the one across the border.
            right, limit = pairs[right][0], right_id + 1
        else:
            return True


# Out and in


def their_name(tokenizer: Tokenizer, name: str) -> str:
    """A special token's name there."""
    is_llama3 = tokenizer.split == LLAMA3_SPLIT
    return LLAMA3_END_OF_TEXT if is_llama3 and name == END_OF_TEXT else name


def tokenizer_json(tokenizer: Tokenizer) -> dict:
    """Raises ValueError for a pattern that has no counterpart there."""
    if tokenizer.split not in PRE_TOKENIZERS:
        what = f"a tokenizer with the pattern {tokenizer.split!r:.60}"
        raise ValueError(f"{what} cannot be written in this format")
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    named = {their_name(tokenizer, name): i for name, i in tokenizer.special_tokens.items()}
    special_tokens = sorted(named.items(), key=itemgetter(1))
    added = [{"id": i, "content": name, **flags, "special": True} for name, i in special_tokens]
    text_tokens = {in_characters(token): i for token, i in tokenizer.ranks.items()}
    pairs = last_joins(text_tokens, all_splits(text_tokens))
    # Only what stands in the vocabulary can have an id before the last of the text's.
    last = max(text_tokens.values())
    before = {name: i for name, i in special_tokens if i < last}
    model = {"type": "BPE", "vocab": before | text_tokens, "merges": [*map(list, pairs.values())]}
    if any(len(token) > 1 and token not in pairs for token in text_tokens):
        model["ignore_merges"] = True  # a piece that is a token needs no joins
    return {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": NORMALIZERS.get(tokenizer.split),
        "pre_tokenizer": PRE_TOKENIZERS[tokenizer.split],
        "decoder": BYTE_LEVEL,
        "model": model,
    }


def find_tokenizer(folder: Path) -> Tokenizer:
    """That of the folder's tokenizer.json. Without that file it can only be GPT-2's, and a
    vocab.json must say so. Raises ValueError, and OSError where GPT-2's is not to be had."""
    path, vocab = folder / "tokenizer.json", folder / "vocab.json"
    if path.is_file():
        return read_tokenizer(path)
    try:
        tokenizer = Tokenizer.gpt2()
    except OSError as error:
        raise OSError(f"{folder} has no tokenizer.json, and {error}") from error
    text_tokens = {in_characters(token): token_id for token, token_id in tokenizer.ranks.items()}
    if (
        vocab.is_file()
        and read_json(vocab) | tokenizer.special_tokens != text_tokens | tokenizer.special_tokens
    ):
        raise ValueError(
            f"{vocab}: not GPT-2's vocabulary; another one must be given as a tokenizer.json"
        )
    return tokenizer


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a tokenizer.json. Raises ValueError where this one would not give the same
    ids."""
    saved = read_json(path)
    try:
        model, added, cut = saved["model"], saved["added_tokens"], plain(saved["pre_tokenizer"])
        special_tokens = {token["content"]: token["id"] for token in added}
        ids = {token: i for token, i in model["vocab"].items() if token not in special_tokens}
        ranks = {token.translate(TO_BYTES).encode("latin-1"): i for token, i in ids.items()}
        known = [split for split in PRE_TOKENIZERS if PRE_TOKENIZERS[split] == cut]
        follows = bool(known) and saved.get("normalizer") == NORMALIZERS.get(known[0])
        split = known[0] if known else SPLIT
        if split == LLAMA3_SPLIT and LLAMA3_END_OF_TEXT in special_tokens:
            special_tokens[END_OF_TEXT] = special_tokens.pop(LLAMA3_END_OF_TEXT)
        tokenizer = Tokenizer(ranks, special_tokens, split)
        tokenizer.special(END_OF_TEXT)
        follows &= joins_are_those(ids, model["merges"], bool(model.get("ignore_merges")))
        # What is not marked as special is nevertheless no word, but a marker.
        follows &= all(t["special"] or re.fullmatch("<.+>", t["content"]) for t in added)
        unknown = "dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"
        follows &= not any(model.get(key) for key in unknown)
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path}: not a byte-level BPE tokenizer ({reason})") from None
    if not follows:
        raise ValueError(f"{path}: a tokenizer whose ids this one cannot give exactly")
    return tokenizer


def joins_are_those(ids: dict[str, int], merges: list, ignore_merges: bool) -> bool:
    """Whether joining the pairs in `merges`, in their order, gives the ids that joining to the
    lowest id gives. Pairs that never meet may be in the list, too."""
    listed = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in merges]
    order = [ids[left + right] for left, right in listed]
    pairs = last_joins(ids, listed)
    is_whole = ignore_merges or all(len(token) == 1 or token in pairs for token in ids)
    return is_whole and order == sorted(order) and not {*pairs.values()}.difference(listed)


def tokenizer_files(tokenizer: Tokenizer, chat_template: str | None, stop: int) -> dict[str, dict]:
    """The content of each file, by its name without .json."""
    end_of_text = their_name(tokenizer, END_OF_TEXT)
    stop_name = their_name(tokenizer, tokenizer.decode([stop]))
    names = {"eos_token": stop_name, "pad_token": end_of_text}
    start = BEGIN_OF_TEXT if BEGIN_OF_TEXT in tokenizer.special_tokens else end_of_text
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": start, **names}
    settings["clean_up_tokenization_spaces"] = False
    if chat_template:
        settings["chat_template"] = chat_template
    return {"tokenizer": tokenizer_json(tokenizer), "tokenizer_config": settings}
