"""The tokenizer files of Hugging Face's formats: tokenizer.json, and tokenizer_config.json with the
chat template.

A text is tokenized as a whole there. So bytes may be joined across the borders of a message, where
`render` keeps them apart, and the characters `<|im_end|>`, typed by a user, become the special
token. docs/formats.md has the counts.
"""

import json
import re
from pathlib import Path

from chat_template import TEMPLATES, Template
from runtime.files import decode_utf8, parse_json
from tokenizer import END_OF_TEXT, GPT2_SPLIT, SPLIT, Tokenizer, pair_bytes

# Every byte has a character: itself where it can be seen, else one from 256 on.
VISIBLE = [
    *range(ord("!"), ord("~") + 1),
    *range(ord("¡"), ord("¬") + 1),
    *range(ord("®"), ord("ÿ") + 1),
]
HIDDEN = [byte for byte in range(256) if byte not in VISIBLE]
CHARACTERS = {byte: chr(byte) for byte in VISIBLE} | {
    byte: chr(256 + i) for i, byte in enumerate(HIDDEN)
}
BYTES = {character: byte for byte, character in CHARACTERS.items()}

# How text is cut into pieces. `ByteLevel` cuts as GPT2_SPLIT does. SPLIT is put in the words of
# that matcher, to which `$` is the end of any line.
BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": False,
    "use_regex": True,
}
PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
BY_PATTERN = {
    "type": "Split",
    "pattern": {"Regex": PATTERN},
    "behavior": "Isolated",
    "invert": False,
}
OURS = {"type": "Sequence", "pretokenizers": [BY_PATTERN, BYTE_LEVEL | {"use_regex": False}]}


def read_json(path: Path) -> dict:
    value = parse_json(path, 1, decode_utf8(path, 1, path.read_bytes()))
    if not isinstance(value, dict):
        raise ValueError(f"{path}: not a JSON object")
    return value


def in_characters(token: bytes) -> str:
    return "".join(CHARACTERS[byte] for byte in token)


def tokenizer_json(tokenizer: Tokenizer) -> dict:
    """Raises ValueError for a split that has no counterpart there."""
    if tokenizer.split not in (GPT2_SPLIT, SPLIT):
        raise ValueError(
            f"a tokenizer with the pattern {tokenizer.split!r:.60} cannot be written in this format"
        )
    flags = {
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    special_tokens = sorted(tokenizer.special_tokens.items(), key=lambda item: item[1])
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": token_id, "content": name, **flags} for name, token_id in special_tokens
        ],
        "normalizer": None,
        "pre_tokenizer": BYTE_LEVEL if tokenizer.split == GPT2_SPLIT else OURS,
        "decoder": BYTE_LEVEL,
        "model": {
            "type": "BPE",
            "vocab": {
                in_characters(token): token_id for token, token_id in tokenizer.ranks.items()
            },
            "merges": [[*map(in_characters, pair)] for pair in merge_pairs(tokenizer.ranks)],
        },
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
        model, added, cut = saved["model"], saved["added_tokens"], saved["pre_tokenizer"]
        special_tokens = {token["content"]: token["id"] for token in added}
        text_tokens = {
            token: token_id
            for token, token_id in model["vocab"].items()
            if token not in special_tokens
        }
        ranks = {
            bytes(BYTES[character] for character in token): token_id
            for token, token_id in text_tokens.items()
        }
        tokenizer = Tokenizer(ranks, special_tokens, SPLIT if cut == OURS else GPT2_SPLIT)
        merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
        follows = (
            merges == tokenizer_json(tokenizer)["model"]["merges"]
            and saved.get("normalizer") is None
        )
        follows &= cut == OURS or {"use_regex": True} | cut | {"trim_offsets": False} == BYTE_LEVEL
        follows &= sorted(ranks.values()) == list(
            range(len(ranks))
        )  # special tokens come after the text's
        follows &= END_OF_TEXT in special_tokens and all(token["special"] for token in added)
        follows &= not any(
            model.get(key) for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{path}: not a byte-level BPE tokenizer ({type(error).__name__}: {error})"
        ) from None
    if not follows:
        raise ValueError(f"{path}: a tokenizer whose ids this one cannot give exactly")
    return tokenizer


# The chat template in Jinja; {% generation %} marks what is supervised.
JINJA = """\
{%- set opening = OPENING -%}
{%- set closing = CLOSING -%}
{%- set previous = namespace(role="") -%}
{{- BEGIN -}}
{%- for message in messages -%}
{%- if message.role not in closing or message.content is not string -%}
{{- raise_exception("a message needs text as its content, and one of the roles "
    ~ (closing | join(", "))) -}}
{%- endif -%}
{{- opening.get(previous.role ~ " " ~ message.role, opening[message.role]) -}}
{%- set content = CONTENT -%}
{%- if message.role == "assistant" -%}
{%- generation -%}{{- content ~ STOP -}}{%- endgeneration -%}
{%- else -%}
{{- content -}}
{%- endif -%}
{{- closing[message.role] -}}
{%- set previous.role = message.role -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- opening.get(previous.role ~ " assistant", opening["assistant"]) -}}
{%- endif -%}
"""


def jinja(template: Template) -> str:
    """A template's data in the places of the capitals; a string of JSON means the same in Jinja."""
    keys = {
        key: key if isinstance(key, str) else f"{key[0] or ''} {key[1]}" for key in template.before
    }
    opening = {keys[key]: text for key, text in template.before.items()}
    content = "(message.content | tojson)[1:-1]" if template.json_strings else "message.content"
    values = {
        "OPENING": opening,
        "CLOSING": template.after,
        "BEGIN": template.begin,
        "STOP": template.stop,
    }
    values = {name: json.dumps(value, ensure_ascii=False) for name, value in values.items()} | {
        "CONTENT": content
    }
    return re.sub("|".join(values), lambda name: values[name[0]], JINJA)


def find_template(folder: Path) -> str | None:
    """The name of the template that is the folder's chat template; None where it has another one,
    or none."""
    path, moved = (
        folder / "tokenizer_config.json",
        folder / "chat_template.jinja",
    )  # to where transformers moves it
    text = read_json(path).get("chat_template") if path.is_file() else None
    text = decode_utf8(moved, 1, moved.read_bytes()) if moved.is_file() else text
    return next((name for name, template in TEMPLATES.items() if jinja(template) == text), None)


def tokenizer_files(tokenizer: Tokenizer, template: str | None, stop: int) -> dict[str, dict]:
    """The content of each file, by its name without .json."""
    names = {
        "bos_token": END_OF_TEXT,
        "eos_token": tokenizer.decode([stop]),
        "pad_token": END_OF_TEXT,
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **names,
    }
    if template:
        settings["chat_template"] = jinja(TEMPLATES[template])
    return {"tokenizer": tokenizer_json(tokenizer), "tokenizer_config": settings}


def merge_pairs(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The two tokens that join into each longer one, in the order of ranks; other programs store
    BPE as this list.

    {..., b"ab": 256, b"abc": 257} -> [(b"a", b"b"), (b"ab", b"c")]. There is one pair a token:
    until its bytes are one, they are joined among themselves in the same order in any text. Raises
    ValueError for a token that no join gives.
    """
    pairs = []
    for token in sorted(ranks, key=ranks.__getitem__):
        parts = [bytes([byte]) for byte in token]
        while len(parts) > 2:
            rank, i = min(
                (ranks.get(pair, len(ranks)), i) for i, pair in enumerate(pair_bytes(parts))
            )
            if rank == len(ranks):
                raise ValueError(f"no join of two tokens gives the token {token!r:.60}")
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        if len(parts) == 2:
            pairs.append((parts[0], parts[1]))
    return pairs
