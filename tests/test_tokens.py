"""runtime/tokens.py: what is kept, cut and left out, and what is said of it."""

import re
from pathlib import Path

import pytest
from conftest import conversation, dataset_of, write_jsonl

from chat_template import TEMPLATES, TRAIN_ON
from runtime.tokens import build_dataset

RECORDS = [
    conversation("hi", "yo"),
    conversation("a question", "a long answer " * 6),  # over the limit, behind its answer's start
    conversation("a long question " * 6, "yes"),  # over the limit, before its answer begins
    conversation("hi", "no"),  # weight 0
    {"text": "plain", "note": 1},
]
RECORDS[3]["messages"][1]["weight"] = 0


def test_what_is_dropped_and_truncated_is_counted(tmp_path: Path, tokenizer):
    """Claim 8: everything read is kept, dropped as over-long, or dropped as unsupervised, and the
    report says so."""
    path = write_jsonl(tmp_path / "some.jsonl", RECORDS)
    tokenizer = tokenizer.with_special(["<|im_start|>", "<|im_end|>"])
    shorter = len("|user\nhi|\n|assistant\nyo|\n") + len("plain$")
    dropping, report = build_dataset([path], tokenizer, "chatml", max_length=60)
    assert dropping.sources.tolist() == [[0, 0], [0, 4]] and len(dropping.ids) == shorter
    assert dropping.n_supervised.tolist() == [len("yo$"), len("plain$") - 1]
    text = "\n".join(report)
    assert f"2 conversations, {shorter} tokens, 8 supervised" in text and "'note' (1)" in text
    assert "longer than 60 tokens: 2 dropped, 0 truncated" in text
    assert "nothing supervised: 1 dropped" in text

    limits = {"max_length": 60, "overlong": "truncate"}
    truncating, report = build_dataset([path], tokenizer, "chatml", **limits)
    assert truncating.lengths.tolist() == [25, 60, 6] and len(truncating) == 3
    assert truncating.n_supervised.tolist() == [3, 60 - len("|user\na question|\n|assistant\n"), 5]
    text = "\n".join(report)
    assert "0 dropped, 2 truncated" in text and "nothing supervised: 2 dropped" in text


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_first_token_is_never_supervised(tmp_path: Path, tokenizer, template: str):
    """Claim 14: nothing stands before it from which it could be predicted, but for another
    conversation. A document is supervised from its second token on."""
    records = [{"text": "doc"}, conversation("q", "a"), conversation("q", "a", "q", "b")]
    records += [{"messages": [{"role": "assistant", "content": "first"}]}]
    path = write_jsonl(tmp_path / "some.jsonl", records)
    tokenizer = tokenizer.with_special(TEMPLATES[template].special_tokens)
    for train_on in TRAIN_ON:
        dataset, _ = build_dataset([path], tokenizer, template, train_on)
        assert len(dataset) == 4 and not dataset.loss_mask[dataset.offsets[:-1]].any()
        document = slice(*dataset.offsets[:2])
        assert dataset.ids[document].tolist() == [*b"doc", 256]
        assert dataset.loss_mask[document].tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize("template", TEMPLATES)
def test_truncation_is_a_prefix_and_a_loose_limit_does_nothing(
    tmp_path: Path, tokenizer, template: str
):
    """Claim 6: ids and mask up to the limit, no stop token added; a limit that does not bind is
    bit-identical."""
    path = write_jsonl(tmp_path / "one.jsonl", [conversation("q", "an answer", "and?", "more")])
    tokenizer = tokenizer.with_special(TEMPLATES[template].special_tokens)
    whole, _ = build_dataset([path], tokenizer, template, max_length=10**6)
    n, first = len(whole.ids), int(whole.loss_mask.argmax())
    for overlong in ("drop", "truncate"):
        for limit in (n, n + 1):
            limits = {"max_length": limit, "overlong": overlong}
            same, report = build_dataset([path], tokenizer, template, **limits)
            assert same.digest == whole.digest and "0 dropped, 0 truncated" in "\n".join(report)
    for limit in range(1, n):
        if limit <= first:  # not one supervised token is left
            with pytest.raises(ValueError, match="nothing to learn"):
                build_dataset([path], tokenizer, template, max_length=limit, overlong="truncate")
            continue
        cut, _ = build_dataset([path], tokenizer, template, max_length=limit, overlong="truncate")
        assert cut.ids.tolist() == whole.ids[:limit].tolist()
        assert cut.loss_mask.tolist() == whole.loss_mask[:limit].tolist()
    with pytest.raises(ValueError, match=f"1 are longer than {n - 1} tokens"):
        build_dataset([path], tokenizer, template, max_length=n - 1)


@pytest.mark.parametrize(
    "content",
    ["", "\n\n", "[]", '{"messages": [{"role": "assistant", "content": "x", "weight": 0}]}'],
)
def test_files_with_nothing_to_learn_from_are_an_error(tmp_path: Path, tokenizer, content: str):
    """Claim 8: all together. Where another file of the mixture is fine, it is said of this one."""
    good = write_jsonl(tmp_path / "good.jsonl", [conversation("q", "a")])
    empty = tmp_path / "empty.jsonl"
    empty.write_text(content)
    reason = "empty.jsonl: no(thing to learn from: of 1 conversations | record in this file)"
    with pytest.raises(ValueError, match=reason):
        build_dataset([empty], tokenizer, "xml")
    dataset, report = build_dataset([good, empty], tokenizer, "xml")
    assert len(dataset) == 1 and re.search(reason, report[2])


def test_the_digest_sees_ids_mask_and_borders():
    """Claim 19: a resumed run notices that its data changed."""
    variants = (
        [([1, 2], [0, 1]), ([3], [0])],
        [([1, 2], [0, 1]), ([4], [0])],
        [([1, 2], [0, 1]), ([3], [1])],
    )
    borders_moved = [([1], [0]), ([2, 3], [1, 0])]
    assert len({dataset_of(list(variant)).digest for variant in (*variants, borders_moved)}) == 4
