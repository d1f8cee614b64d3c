"""Byte-level byte-pair encoding: train a vocabulary from scratch, run it at tiktoken's speed.

A tokenizer cuts text into pieces with a regular expression (`SPLIT`) and, inside each, starts from
single bytes and keeps joining the neighbours that give the token of the lowest rank
(Sennrich et al., 2016, arxiv.org/abs/1508.07909; on bytes: Radford et al., 2019). Every
byte is a token (but for a few rare ones in SmolLM2's), so any text has an encoding.

Special tokens (`<|endoftext|>`, `<|im_start|>`, ...) have ids, but no text ever becomes one: to
`encode`, `<|im_start|>` is ordinary text. Whoever wants a special token asks for it with `special`.
"""

import base64
import codecs
import heapq
import itertools
import json
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import regex  # comes with tiktoken, which writes its patterns for this syntax
import tiktoken

END_OF_TEXT = "<|endoftext|>"

# GPT-2's pattern, but `++` is possessive, and runs of white space before a word are bounded: the
# matcher would overflow its stack on a megabyte of spaces.
GPT2_SPLIT = (
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s{1,100000}(?!\S)|\s"
)
# Ours differs in one alternative: each digit stands alone, so that a small model can learn to add
# column by column.
SPLIT = GPT2_SPLIT.replace(r" ?\p{N}++", r"\p{N}")
# SmolLM2's: as ours, but white space before a digit is one piece.
SMOLLM2_SPLIT = SPLIT.replace(r"(?!\S)", r"(?![^\s\p{N}])")
# Llama 3's: digits by three; a word may begin with any one character; line breaks end a piece.
# Qwen's: each digit alone, and text is first composed (Unicode's NFC).
LLAMA3_SPLIT = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s{1,100000}(?<=[\r\n])|\s++$|\s{1,100000}(?!\S)|\s"
)
QWEN_SPLIT = LLAMA3_SPLIT.replace(r"{1,3}+", "")
SPLITS = (SPLIT, GPT2_SPLIT, SMOLLM2_SPLIT, LLAMA3_SPLIT, QWEN_SPLIT)


class Tokenizer:
    """Text to token ids and back."""

    def __init__(self, ranks: dict[bytes, int], special_tokens: dict[str, int], split: str = SPLIT):
        """`ranks`: a token's bytes -> its id. `special_tokens`: a special token's name -> its id.
        Raises ValueError where ids are not 0, 1, 2, ..."""
        self.ranks, self.special_tokens, self.split = ranks, special_tokens, split
        ids = [*ranks.values(), *special_tokens.values()]
        if sorted(ids) != list(range(len(ids))):
            raise ValueError("the ids of a tokenizer run from 0, each once")
        self.missing = {byte for byte in range(256) if bytes([byte]) not in ranks}
        self._encoding = tiktoken.Encoding(
            "from-ranks", pat_str=split, mergeable_ranks=ranks, special_tokens=special_tokens
        )

    @property
    def n_vocab(self) -> int:
        """Number of ids, special tokens included."""
        return len(self.ranks) + len(self.special_tokens)

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, never a special one. Raises ValueError for a lone surrogate, and for a
        byte that is no token."""
        check_unicode(text)
        if self.missing and (found := self.missing.intersection(text.encode())):
            raise ValueError(f"the tokenizer has no token for the byte {bytes([min(found)])}")
        text = unicodedata.normalize("NFC", text) if self.split == QWEN_SPLIT else text
        return self._encoding.encode_ordinary(text)

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The bytes behind `ids`; a special token gives its name. KeyError for an unknown id."""
        try:
            return self._encoding.decode_bytes(ids)
        except OverflowError as error:
            raise KeyError(f"an id outside the vocabulary: {error}") from error

    def decode(self, ids: Sequence[int]) -> str:
        """The text behind `ids`, with U+FFFD for bytes that are not UTF-8 (half a character)."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def stream(self, ids: Iterable[int]) -> Iterator[str]:
        """Text as the ids arrive, in whole characters: the bytes of an unfinished one wait."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for token_id in ids:
            yield decoder.decode(self.decode_bytes([token_id]))
        yield decoder.decode(b"", final=True)

    def special(self, name: str) -> int:
        """The id of a special token. Raises ValueError where this tokenizer has no such token."""
        if name not in self.special_tokens:
            known = f"it has {', '.join(self.special_tokens)}"[:200]
            raise ValueError(f"no special token {name!r} ({known}); add it with with_special")
        return self.special_tokens[name]

    def with_special(self, names: Iterable[str]) -> "Tokenizer":
        """A tokenizer that has these special tokens, too; new ones get the next ids, in order."""
        special_tokens = dict(self.special_tokens)
        for name in names:
            special_tokens.setdefault(name, len(self.ranks) + len(special_tokens))
        return Tokenizer(self.ranks, special_tokens, self.split)

    def state(self) -> dict:
        """Plain strings and numbers, for checkpoints; `from_state` makes the same tokenizer. Ids of
        text follow one another, from the first that no special token has."""
        in_order = sorted(self.ranks, key=self.ranks.__getitem__)
        tokens = [base64.b64encode(token).decode("ascii") for token in in_order]
        return {"split": self.split, "tokens": tokens, "special_tokens": dict(self.special_tokens)}

    @classmethod
    def from_state(cls, state: dict) -> "Tokenizer":
        """Raises ValueError for a pattern that is not ours: a file's could run for ever."""
        if state["split"] not in SPLITS:
            raise ValueError("the tokenizer splits by a pattern that tokenizer.py does not know")
        special_tokens, ids = dict(state["special_tokens"]), itertools.count()
        first = next(i for i in ids if i not in special_tokens.values())
        ranks = {base64.b64decode(token): first + i for i, token in enumerate(state["tokens"])}
        return cls(ranks, special_tokens, state["split"])

    def save(self, path: str | Path) -> None:
        Path(path).write_text(json.dumps(self.state(), ensure_ascii=True), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Raises ValueError where the file is not one that `save` wrote."""
        try:
            return cls.from_state(json.loads(Path(path).read_text(encoding="utf-8")))
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(f"{path} is not a saved tokenizer ({reason})") from error

    @classmethod
    def gpt2(cls) -> "Tokenizer":
        """GPT-2's 50,257 tokens, from tiktoken's cache or its download; OSError without either."""
        try:
            encoding = tiktoken.get_encoding("gpt2")
        except (OSError, ValueError) as error:  # no network, or a log-in page in the file's place
            how = "python -c 'import tiktoken; tiktoken.get_encoding(\"gpt2\")'"
            raise OSError(
                "GPT-2's vocabulary is not on this machine and could not be downloaded. Elsewhere, "
                f"run TIKTOKEN_CACHE_DIR=FOLDER {how}, bring FOLDER, and set that to it here "
                f"({type(error).__name__})"
            ) from error
        return cls(encoding._mergeable_ranks, {END_OF_TEXT: encoding.eot_token}, GPT2_SPLIT)


def check_unicode(text: str) -> None:
    """Raises ValueError for a lone surrogate: UTF-8 has none, and tiktoken would replace it."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        what = f"a lone surrogate (character {error.start}), which is not Unicode"
        raise ValueError(f"the text holds {what}") from None


def train_bpe(
    texts: Iterable[str], vocab_size: int, special_tokens: Sequence[str] = (END_OF_TEXT,)
) -> Tokenizer:
    """A vocabulary of `vocab_size` ids: 256 bytes, tokens learned from `texts`, specials.

    Each round adds the byte string that neighbouring tokens give most often in the texts as encoded
    so far; of equally frequent ones, the first in byte order. Pairs that give the same bytes are
    one token, as tiktoken will read them: (`a`, `bc`) and (`ab`, `c`) are both `abc`. Where texts
    run out of pairs, the vocabulary is smaller. Raises ValueError where it cannot hold the bytes.
    """
    n_text_tokens = vocab_size - len(special_tokens)
    if n_text_tokens < 256:
        least = 256 + len(special_tokens)
        raise ValueError(f"vocab_size must be at least {least}: the bytes and the special tokens")
    ranks = {bytes([byte]): byte for byte in range(256)}
    piece_counts = Counter(piece for text in texts for piece in regex.findall(SPLIT, text))
    pieces = [[bytes([byte]) for byte in piece.encode("utf-8")] for piece in piece_counts]
    weights = list(piece_counts.values())

    counts: Counter[bytes] = Counter()  # bytes that a pair of neighbours gives -> how often
    found_in: defaultdict[bytes, set[int]] = defaultdict(set)  # -> pieces that have it, or had
    for index, (parts, weight) in enumerate(zip(pieces, weights)):
        for candidate in pair_bytes(parts):
            counts[candidate] += weight
            found_in[candidate].add(index)
    heap = [(-count, candidate) for candidate, count in counts.items()]
    heapq.heapify(heap)

    while heap and len(ranks) < n_text_tokens:
        negative_count, token = heapq.heappop(heap)
        if counts[token] != -negative_count or token in ranks:
            continue  # a later entry holds the present count
        ranks[token] = len(ranks)
        changes: Counter[bytes] = Counter()
        for index in found_in.pop(token):
            before, after = pieces[index], merge(pieces[index], token)
            for candidate in pair_bytes(before):
                changes[candidate] -= weights[index]
            for candidate in pair_bytes(after):
                changes[candidate] += weights[index]
                found_in[candidate].add(index)
            pieces[index] = after
        for candidate, change in changes.items():
            counts[candidate] += change
            if change and counts[candidate]:
                heapq.heappush(heap, (-counts[candidate], candidate))
    return Tokenizer(ranks, {name: len(ranks) + i for i, name in enumerate(special_tokens)})


def pair_bytes(parts: list[bytes]) -> list[bytes]:
    """What each pair of neighbours gives: [b"a", b"b", b"c"] -> [b"ab", b"bc"]."""
    return [left + right for left, right in zip(parts, parts[1:])]


def merge(parts: list[bytes], token: bytes) -> list[bytes]:
    """Join neighbours that give `token`: [b"a", b"a", b"a"], b"aa" -> [b"aa", b"a"].

    One pass is exact. No older token can appear where the new one meets its neighbour: having the
    lower rank, it would have been joined before.
    """
    merged, i = [], 0
    while i < len(parts):
        joins = i + 1 < len(parts) and len(parts[i]) + len(parts[i + 1]) == len(token)
        if joins and parts[i] + parts[i + 1] == token:
            merged.append(token)
            i += 2
        else:
            merged.append(parts[i])
            i += 1
    return merged
