"""The cache of large data sets: the same tokens as without, found again, never stale, never
half-written, bounded; also where the process that fills it is stopped."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import conversation, make_base, write_jsonl

import sft
from runtime import records
from runtime.records import COLUMNS, build_dataset

RECORDS = [conversation(f"question {i} é", "a" * (i % 9)) for i in range(700)]
RECORDS[5]["note"] = "not used"
RECORDS[600]["messages"][1]["weight"] = 0


@pytest.fixture
def files(tmp_path: Path, monkeypatch) -> list[Path]:
    """A file of lines and one that is an array, which count as large."""
    monkeypatch.setattr(records, "LARGE", 1)
    array = tmp_path / "array.json"
    array.write_text(json.dumps(RECORDS[:50]))
    return [write_jsonl(tmp_path / "lines.jsonl", RECORDS), array]


@pytest.fixture
def here(monkeypatch) -> list[int]:
    """Each time that large files are tokenised."""
    times, genuine = [], records.render_files

    def render_files(*arguments, show_progress: bool):
        times.extend([1] * show_progress)
        return genuine(*arguments, show_progress=show_progress)

    monkeypatch.setattr(records, "render_files", render_files)
    return times


def build(
    paths: list[Path], tokenizer, cache: Path | None, **settings
) -> tuple[records.Dataset, list[str]]:
    settings = {"template": "xml", "max_length": 70} | settings
    return build_dataset(paths, tokenizer, cache=cache, **settings)


def assert_same(
    one: tuple[records.Dataset, list[str]], other: tuple[records.Dataset, list[str]]
) -> None:
    assert one[1] == other[1] and one[0].digest == other[0].digest
    for name, dtype in zip(COLUMNS, (np.int32, np.float32, np.int64, np.int64)):
        left, right = getattr(one[0], name), getattr(other[0], name)
        assert left.dtype == right.dtype == dtype and np.array_equal(left, right)
    assert np.array_equal(one[0].n_supervised, other[0].n_supervised)


def test_the_disk_changes_nothing(files, tokenizer, tmp_path: Path, monkeypatch):
    """Claims 8, 22: the same arrays in the same order, the same report."""
    expected, told = build(files, tokenizer, None), []
    assert len(expected[0]) > 700 and "dropped" in "\n".join(expected[1])
    monkeypatch.setattr(records.LiveLine, "show", lambda _, text, last=False: told.append(text))
    assert_same(build(files, tokenizer, tmp_path / "cache"), expected)
    assert told[-1].startswith(f"{files[0]} and 1 more: 750 conversations tokenised in ")
    assert_same(build(files, tokenizer, tmp_path / "cache"), expected)
    [path] = (tmp_path / "cache").iterdir()
    assert path.suffix == ".npz"


def test_what_is_found_is_not_tokenised_again(files, tokenizer, tmp_path: Path, here):
    """But whatever the tokens depend on makes another entry: contents, their order, tokenizer,
    template, limits."""
    cache = tmp_path / "cache"
    variants = [
        dict(),
        dict(template="alpaca", max_length=170),
        dict(max_length=60),
        dict(overlong="truncate"),
        dict(train_on="all"),
    ]
    for number, settings in enumerate(variants, 1):
        for _ in range(2):
            assert_same(
                build(files, tokenizer, cache, **settings),
                build(files, tokenizer, None, **settings),
            )
        assert len(here) == number
    build(files[::-1], tokenizer, cache)
    build(files, tokenizer.with_special(["<s>"]), cache)
    assert len(here) == len(variants) + 2
    stat = files[0].stat()
    files[0].write_bytes(files[0].read_bytes().replace(b"question 3 ", b"question 4 "))
    os.utime(files[0], ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as large and as old as before
    assert_same(build(files, tokenizer, cache), build(files, tokenizer, None))
    renamed = files[0].rename(tmp_path / "other name.jsonl")
    assert_same(
        build([renamed, files[1]], tokenizer, cache), build([renamed, files[1]], tokenizer, None)
    )
    assert len(here) == len(variants) + 3


def test_the_code_that_renders_is_part_of_the_name(
    files, tokenizer, tmp_path: Path, here, monkeypatch
):
    """Whoever changes a template must not be given yesterday's tokens."""
    renderer = records.Renderer(tokenizer, "xml", "all", 9, "drop", "drop")
    before = records.cache_key(files, renderer)
    for module in (records.core, records.tokenizer, records):
        source = Path(module.__file__)
        (tmp_path / source.name).write_bytes(source.read_bytes() + b"\n")
        with monkeypatch.context() as patch:
            patch.setattr(module, "__file__", str(tmp_path / source.name))
            assert records.cache_key(files, renderer) != before


def test_damage_is_noticed_and_mended(files, tokenizer, tmp_path: Path, here, capsys):
    """A cut, another file: it is said, and the files are tokenised again. A flipped bit, too, unless
    it changes nothing that is read."""
    cache, expected, draw = tmp_path / "cache", build(files, tokenizer, None), random.Random(0)
    build(files, tokenizer, cache)
    [path] = cache.iterdir()
    whole = path.read_bytes()
    cuts = [whole[: len(whole) * part // 5] for part in range(5)]
    for damaged in (*cuts, whole[:-1], b"PK" * 1000):
        path.write_bytes(damaged)
        capsys.readouterr()
        assert_same(build(files, tokenizer, cache), expected)
        assert f"{path} is damaged; the files are tokenised again" in capsys.readouterr().out
        assert path.stat().st_size == len(whole)
    assert len(here) == 8
    for _ in range(60):
        flipped = bytearray(whole)
        flipped[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        path.write_bytes(flipped)
        assert_same(build(files, tokenizer, cache), expected)
    assert len(here) > 60


def test_what_fails_leaves_nothing(files, tokenizer, tmp_path: Path):
    """Claim 7: a bad record after many good ones is named by file and line."""
    cache = tmp_path / "cache"
    bad = write_jsonl(tmp_path / "bad.jsonl", [*RECORDS, {"text": 5}, *RECORDS])
    with pytest.raises(ValueError, match='bad.jsonl:701: "text" must be text'):
        build([files[0], bad], tokenizer, cache)
    assert not cache.exists()


@pytest.mark.parametrize("large", [1, 2**23], ids=["large", "small"])
def test_only_a_set_that_leaves_nothing_at_all_is_an_error(
    files, tokenizer, tmp_path: Path, here, monkeypatch, large: int
):
    """Claim 8: a file of a set may be empty, or leave nothing to learn from: the report says so."""
    monkeypatch.setattr(records, "LARGE", large)
    cache, empty = tmp_path / "cache", tmp_path / "empty.jsonl"
    empty.write_text("\n")
    nothing = write_jsonl(tmp_path / "nothing.jsonl", [conversation("q", "a" * 100, n=1)] * 9)
    reason = "nothing to learn from: of 9 conversations, longer than 70 tokens: 9 dropped, "
    for paths, message in (
        ([empty], f"{empty}: no record in this file"),
        ([nothing], f"{nothing}: {reason}"),
        ([empty, nothing, empty], f"{empty} and 2 more: {reason}"),
    ):
        with pytest.raises(ValueError) as raised:
            build(paths, tokenizer, cache)
        assert str(raised.value).startswith(message)
        assert not cache.exists() or list(cache.iterdir()) == []
    dataset, report = build([empty, files[0], nothing], tokenizer, cache)
    alone, lines = build(files[:1], tokenizer, None)
    assert np.array_equal(dataset.ids, alone.ids) and set(dataset.sources[:, 0]) == {1}
    told = [f"{empty}: no record in this file", *lines]
    lost, unused = report[len(told) :]
    assert report[: len(told)] == told and lost.startswith(f"{nothing}: {reason}")
    assert unused == "keys not used: 'n' (9)"
    assert_same(build([empty, files[0], nothing], tokenizer, cache), (dataset, report))


def test_the_cache_is_bounded(files, tokenizer, tmp_path: Path, here):
    """The data sets that were used last stay; whatever else is in the folder is not ours."""
    cache = tmp_path / "cache"
    strangers = [cache / "my notes" / "about.json", cache / "file.npz", cache / ("f" * 32)]
    for stranger in strangers:
        stranger.parent.mkdir(parents=True, exist_ok=True)
        stranger.write_text("mine")

    def use(max_length: int) -> Path:
        build(files, tokenizer, cache, max_length=max_length, overlong="truncate")
        renderer = records.Renderer(tokenizer, "xml", "assistant", max_length, "truncate", "drop")
        return cache / f"{records.cache_key(files, renderer)}.npz"

    paths = [use(100 + n) for n in range(records.KEPT)]
    for age, path in enumerate(paths[1:] + paths[:1]):  # the first one was used again
        os.utime(path, (time.time() - 100 + age,) * 2)
    newest = use(200)
    assert [path.exists() for path in paths] == [True, False] + [True] * (
        records.KEPT - 2
    ) and newest.exists()
    assert all(stranger.exists() for stranger in strangers)


def test_small_files_need_no_cache(tmp_path: Path, tokenizer, monkeypatch):
    """Nothing is written."""
    monkeypatch.setattr(records, "write_cache", None)
    path = write_jsonl(tmp_path / "small.jsonl", RECORDS)
    build([path], tokenizer, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


# The real command


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_run_is_stopped_while_it_tokenises(tmp_path: Path, number: int):
    """Nothing is left that the next run trips over."""
    make_base(tmp_path / "base.pt")
    record = json.dumps(conversation("q" * 100, "a" * 100)) + "\n"
    (tmp_path / "large.jsonl").write_text(record * (records.LARGE // len(record) + 1))
    arguments = "--data large.jsonl --init base.pt --steps 1".split()
    run = subprocess.Popen(
        [sys.executable, str(Path(sft.__file__)), *arguments],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    while b"conversations tokenised" not in run.stdout.readline():
        assert run.poll() is None, run.stderr.read()
    run.send_signal(number)
    out, err = run.communicate(timeout=100)
    assert run.returncode == (-number if number == signal.SIGKILL else 128 + number), err
    assert err == b""
    assert not (tmp_path / "out").exists()
