"""runtime/records.py: what is kept, cut and left out, and what is said of it."""

import os
import random
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import conversation, dataset_of, write_jsonl

import sft
from chat_template import TEMPLATES, TRAIN_ON
from runtime.records import build_dataset, hold_out, read_data

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
    with pytest.raises(ValueError, match=f"longer than {n - 1} tokens: 1 dropped"):
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
    reason = "empty.jsonl: no(thing to learn from: of 1 conversations, | record in this file)"
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
    weighed = [([1, 2, 3], [0, weight, 1]) for weight in (0.25, 0.5, 1)]
    assert len({dataset_of([variant]).digest for variant in weighed}) == 3


# What is held out


def leaks(data) -> int:
    """How many held-out conversations have the very ids of one that is trained on."""
    train, val = data.train_set, data.val_set
    trained_on = {
        bytes(train.ids[slice(*train.offsets[i : i + 2])]) for i in np.concatenate(data.pools)
    }
    rows = (bytes(val.ids[slice(*val.offsets[i : i + 2])]) for i in data.val_indices)
    return sum(row in trained_on for row in rows)


def test_equal_conversations_share_a_side(tmp_path: Path, tokenizer, monkeypatch, capsys):
    """Claim 23: of a file given twice, of one that holds some conversations many times; and where
    nothing is equal, exactly the twentieth part that the permutation says."""
    monkeypatch.chdir(tmp_path)
    draw = random.Random(0)
    few = [conversation(f"q{i}", "a") for i in range(60)]
    often = [conversation(f"q{draw.randrange(40) ** 2}", "a") for _ in range(400)]
    files = {"few": few, "often": often, "same": [few[0]] * 100, "all": few + often}
    tokenizer = tokenizer.with_special(["<|im_start|>", "<|im_end|>"])
    for name, records in files.items():
        write_jsonl(tmp_path / f"{name}.jsonl", records)
    for names, held_out in (
        (["few"], 3),
        (["few", "few"], 6),
        (["often"], None),
        (["same"], 0),
        (["all", "often"], None),
    ):
        for seed in range(3):
            options = sft.Config(
                data=[f"{name}.jsonl" for name in names], seed=seed, template="chatml"
            )
            data = read_data(options, tokenizer, 256)
            number = len(data.val_indices)
            assert leaks(data) == 0 and (number == held_out or held_out is None and number > 9)
            assert f"held out  {number} of these conversations" in capsys.readouterr().out
            everything = np.concatenate([*data.pools, data.val_indices])
            assert sorted(everything) == [*range(len(data.train_set))]
            if names == ["few"]:
                shuffled = np.random.default_rng([seed, 60]).permutation(60)
                assert data.val_indices.tolist() == shuffled[:3].tolist()


def test_files_for_validation_are_compared_with_those_for_training(
    tmp_path: Path, tokenizer, monkeypatch, capsys
):
    """Claim 23: what stands in both is counted; other weights and answers are other conversations
    only where their ids are."""
    monkeypatch.chdir(tmp_path)
    train = [conversation(f"q{i}", "a") for i in range(20)]
    write_jsonl(tmp_path / "train.jsonl", train)
    write_jsonl(tmp_path / "val.jsonl", [*train[:3], train[0], conversation("q1", "b")])
    write_jsonl(tmp_path / "apart.jsonl", [conversation("q1", "b")])
    tokenizer = tokenizer.with_special(["<|im_start|>", "<|im_end|>"])
    for name, told in (("val", "4 of these are also trained on"), ("apart", "")):
        options = {"data": ["train.jsonl"], "val_data": [f"{name}.jsonl"], "template": "chatml"}
        data = read_data(sft.Config(**options), tokenizer, 256)
        said = capsys.readouterr().out
        assert leaks(data) == int(told[:1] or 0) and len(np.concatenate(data.pools)) == 20
        assert told in said and ("also trained on" in said) == bool(told)


@pytest.mark.skipif(not os.environ.get("INSTRUCT_DATA"), reason="set INSTRUCT_DATA")
def test_a_real_file_given_twice(tokenizer, monkeypatch):
    """Claim 23: 106 of 110 had been trained on."""
    path = str(Path(os.environ["INSTRUCT_DATA"]) / "alpaca_1100.json")
    tokenizer = tokenizer.with_special(["<|im_start|>", "<|im_end|>"])
    options = sft.Config(data=[path, path], template="chatml", max_length=4096)
    data = read_data(options, tokenizer, 4096)
    assert leaks(data) == 0 and 100 <= len(data.val_indices) <= 110


def test_a_few_are_held_out_of_a_million_in_no_time():
    """Where next to nothing is equal, only what is held out is looked at."""
    one = dataset_of([([1, 2], [0, 1])] * 1000 + [([i, 2], [0, 1]) for i in range(3, 200)])
    assert set(hold_out(one, 50, 0)) <= set(range(1000, 1197))


def test_folders_and_sets_of_small_files(tmp_path: Path, tokenizer, monkeypatch, capsys):
    """Claim 8: twenty files of one conversation are one set; a folder means its files, each with
    the weight of the folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "many").mkdir()
    for i in range(20):
        write_jsonl(tmp_path / "many" / f"{i:02}.jsonl", [conversation(f"q{i}", "a")])
    (tmp_path / "many" / "README.md").write_text("not a record")
    tokenizer = tokenizer.with_special(["<|im_start|>", "<|im_end|>"])
    for name, weight in (("many", 1), ("many:2", 2)):
        data = read_data(sft.Config(data=[name], template="chatml"), tokenizer, 256)
        assert len(data.train_set) == 20 and len(data.val_indices) == 1
        assert [path.name for path in data.paths] == [f"{i:02}.jsonl" for i in range(20)]
        assert set(data.weights) == {weight}


def test_what_is_told_before_training(tmp_path: Path, tokenizer):
    """Claim 24: keys, empty answers, reasoning, documents, typed markers, with their numbers."""
    answer = {"role": "assistant", "content": " \n", "id": 7}
    thought = {"role": "assistant", "content": "b", "reasoning_content": "because"}
    user = {"role": "user", "content": "a"}
    records = [{"messages": [user, answer], "source": "x"}, {"messages": [user, thought]}]
    records += [{"text": "<|im_start|>user\nhi<|im_end|>"}]
    path = write_jsonl(tmp_path / "some.jsonl", records)
    tokenizer = tokenizer.with_special(["<|im_start|>", "<|im_end|>"])
    dropped, report = build_dataset([path], tokenizer, "chatml")
    kept, other = build_dataset([path], tokenizer, "chatml", reasoning="keep")
    lines = {
        "1 empty answers, from which the model learns to stop at once",
        "1 documents without turns, of which all text is learned",
        "1 records with a template's markers as text, which stay text; give chats as messages",
        "keys not used: 'source' (1), 'turn.id' (1)",
    }
    about_reasoning = "1 turns whose reasoning is dropped; --reasoning keep trains on it"
    assert {*report[2:]} == {*lines, about_reasoning} and {*other[2:]} == lines
    assert len(kept.ids) - len(dropped.ids) == len("<think>\nbecause\n</think>\n\n")
    alone = write_jsonl(tmp_path / "documents.jsonl", [{"text": "ab"}] * 3)
    _, report = build_dataset([alone], tokenizer, "chatml")
    told = "3 documents without turns, of which all text is learned"
    assert report[2:] == ["documents only", told]
