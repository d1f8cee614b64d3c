"""The cache of large data sets: the same tokens as without, found again, never stale, never half-written, bounded."""

import copy
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import children, conversation, make_base, wait_until_gone, write_jsonl

import sft
from runtime import tokens
from runtime.tokens import COLUMNS, build_dataset

RECORDS = [conversation(f"question {i} é", "a" * (i % 9)) for i in range(700)]
RECORDS[5]["note"] = "not used"
RECORDS[600]["messages"][1]["weight"] = 0


@pytest.fixture
def files(tmp_path: Path, monkeypatch) -> list[Path]:
    """A file of lines and one that is an array, which count as large."""
    monkeypatch.setattr(tokens, "LARGE", 1)
    monkeypatch.setattr(tokens, "BATCH", 5000)
    array = tmp_path / "array.json"
    array.write_text(json.dumps(RECORDS[:50]))
    return [write_jsonl(tmp_path / "lines.jsonl", RECORDS), array]


@pytest.fixture
def here(monkeypatch) -> list[int]:
    """No processes, which take seconds to start; each file that is tokenised."""
    times: list[int] = []
    monkeypatch.setattr(
        tokens, "map_in_processes", lambda *rest: times.append(1) or tokens.map_here(*rest)
    )
    return times


def build(
    paths: list[Path], tokenizer, cache: Path | None, **settings
) -> tuple[tokens.Dataset, list[str]]:
    settings = {"template": "xml", "max_length": 70} | settings
    return build_dataset(paths, tokenizer, cache=cache, **settings)


def assert_same(
    one: tuple[tokens.Dataset, list[str]], other: tuple[tokens.Dataset, list[str]]
) -> None:
    assert one[1] == other[1] and one[0].digest == other[0].digest
    for name, dtype in COLUMNS.items():
        left, right = getattr(one[0], name), getattr(other[0], name)
        assert left.dtype == right.dtype == dtype and np.array_equal(left, right)
    assert np.array_equal(one[0].n_supervised, other[0].n_supervised)


def test_processes_and_disk_change_nothing(files, tokenizer, tmp_path: Path):
    """Claims 8, 22: the same arrays in the same order, the same report, from many processes, and from the disk."""
    expected, told = build(files, tokenizer, None), []
    assert len(expected[0]) > 700 and "dropped" in "\n".join(expected[1])
    assert_same(
        build(files, tokenizer, tmp_path / "cache", show=lambda text, last: told.append(text)),
        expected,
    )
    assert len(told) > 10 and f"{files[0]}: 700 conversations tokenised, in" in "\n".join(told)
    assert_same(build(files, tokenizer, tmp_path / "cache"), expected)
    [folder] = (tmp_path / "cache").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["about.json", *sorted(COLUMNS)]


def test_what_is_found_is_not_tokenised_again(files, tokenizer, tmp_path: Path, here):
    """But whatever the tokens depend on makes another entry: contents, their order, tokenizer, template, limits."""
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
        assert len(here) == 2 * number
    build(files[::-1], tokenizer, cache)
    build(files, tokenizer.with_special(["<s>"]), cache)
    assert len(here) == 2 * (len(variants) + 2)
    stat = files[0].stat()
    files[0].write_bytes(files[0].read_bytes().replace(b"question 3 ", b"question 4 "))
    os.utime(files[0], ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as large and as old as before
    assert_same(build(files, tokenizer, cache), build(files, tokenizer, None))
    renamed = files[0].rename(tmp_path / "other name.jsonl")
    assert_same(
        build([renamed, files[1]], tokenizer, cache), build([renamed, files[1]], tokenizer, None)
    )
    assert len(here) == 2 * (len(variants) + 3)


def test_the_code_that_renders_is_part_of_the_name(
    files, tokenizer, tmp_path: Path, here, monkeypatch
):
    """Whoever changes a template must not be given yesterday's tokens."""
    for module in ("chat_template", "records", "tokenizer_module"):
        source = Path(getattr(tokens, module).__file__)
        (tmp_path / source.name).write_bytes(source.read_bytes() + b"\n")
    before = tokens.cache_key(files, tokens.Renderer(tokenizer, "xml", "all", 9, "drop"))
    for module in ("chat_template", "records", "tokenizer_module"):
        with monkeypatch.context() as patch:
            patch.setattr(
                getattr(tokens, module),
                "__file__",
                str(tmp_path / f"{module.removesuffix('_module')}.py"),
            )
            assert (
                tokens.cache_key(files, tokens.Renderer(tokenizer, "xml", "all", 9, "drop"))
                != before
            )


@pytest.mark.parametrize("name", [*COLUMNS, "about.json"])
def test_damage_is_noticed_and_mended(files, tokenizer, tmp_path: Path, here, capsys, name: str):
    """A flipped bit, a cut, a file that is gone or another: it is said, and the files are tokenised again."""
    cache, expected = tmp_path / "cache", build(files, tokenizer, None)
    build(files, tokenizer, cache)
    [path] = cache.glob(f"*/{name}")
    whole = path.read_bytes()
    for damaged in (
        whole[:-1],
        whole[: len(whole) // 2],
        b"",
        bytes([whole[0] ^ 1]) + whole[1:],
        whole + b"1",
        None,
    ):
        path.write_bytes(damaged) if damaged is not None else path.unlink()
        capsys.readouterr()
        assert_same(build(files, tokenizer, cache), expected)
        assert f"{path.parent} is damaged; the files are tokenised again" in capsys.readouterr().out
        assert path.read_bytes() == whole
    assert len(here) == 2 * 7


def test_what_fails_leaves_nothing(files, tokenizer, tmp_path: Path, capsys):
    """Claim 7: a bad record after many good ones is named by file and line, also where another process met it; and what
    a kill has left behind is cleared away."""
    cache = tmp_path / "cache"
    bad = write_jsonl(tmp_path / "bad.jsonl", [*RECORDS, {"text": 5}, *RECORDS])
    (cache / "0123456789abcdef0123456789abcdef.tmp").mkdir(parents=True)
    with pytest.raises(ValueError, match="bad.jsonl:701: content must be text"):
        build([files[0], bad], tokenizer, cache)
    assert list(cache.iterdir()) == []
    nothing = write_jsonl(tmp_path / "nothing.jsonl", [conversation("q", "a" * 100)] * 9)
    with pytest.raises(ValueError, match="nothing.jsonl: nothing to learn from: of 9 conv"):
        build([files[0], nothing], tokenizer, cache)
    assert list(cache.iterdir()) == []


def test_the_cache_is_bounded(files, tokenizer, tmp_path: Path, here):
    """The data sets that were used last stay; whatever else is in the folder is none of our business."""
    cache = tmp_path / "cache"
    strangers = [
        cache / "my notes" / "about.json",
        cache / "file",
        cache / ("f" * 32) / "something",
    ]
    for stranger in strangers:
        stranger.parent.mkdir(parents=True, exist_ok=True)
        stranger.write_text("mine")

    def use(max_length: int) -> Path:
        build(files, tokenizer, cache, max_length=max_length, overlong="truncate")
        renderer = tokens.Renderer(tokenizer, "xml", "assistant", max_length, "truncate")
        return cache / tokens.cache_key(files, renderer)

    folders = [use(100 + n) for n in range(tokens.KEPT)]
    for age, folder in enumerate(folders[1:] + folders[:1]):  # the first one was used again
        os.utime(folder, (time.time() - 100 + age,) * 2)
    newest = use(200)
    assert [folder.exists() for folder in folders] == [True, False] + [True] * (
        tokens.KEPT - 2
    ) and newest.exists()
    assert all(stranger.exists() for stranger in strangers)


def test_who_comes_second_waits(files, tokenizer, tmp_path: Path, here, monkeypatch):
    """Runs that are started together tokenise once."""
    expected, genuine, made = build(files, tokenizer, None), tokens.render_files, []

    def slow(*arguments):
        time.sleep(0.3)
        return genuine(*arguments)

    monkeypatch.setattr(tokens, "render_files", slow)
    cache = tmp_path / "cache"
    threads = [
        threading.Thread(target=lambda: made.append(build(files, tokenizer, cache)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(here) == 2 and len(made) == 3
    for each in made:
        assert_same(each, expected)


def test_small_files_need_no_cache(tmp_path: Path, tokenizer, monkeypatch):
    """Nothing is written, no process is started."""
    monkeypatch.setattr(tokens, "cached_dataset", None)
    path = write_jsonl(tmp_path / "small.jsonl", RECORDS)
    build([path], tokenizer, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


# The real command


def start_tokenising(folder: Path) -> tuple[subprocess.Popen, set[int]]:
    """A run that is at work on a large file, and its helpers."""
    make_base(folder / "base.pt")
    record = json.dumps(conversation("q" * 100, "a" * 100)) + "\n"
    (folder / "large.jsonl").write_text(record * (tokens.LARGE // len(record) + 1))
    command = [
        sys.executable,
        str(Path(sft.__file__)),
        "--data",
        "large.jsonl",
        "--init",
        "base.pt",
        "--steps",
        "1",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    while b"conversations tokenised" not in run.stdout.readline():
        assert run.poll() is None, run.stderr.read()
    helpers = children(run.pid)
    assert helpers
    return run, helpers


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_whoever_stops_the_run_stops_its_helpers(tmp_path: Path, number: int):
    """While a large file is tokenised: the other processes end, too, nothing is left that the next run trips over, and
    the next run does the work."""
    run, helpers = start_tokenising(tmp_path)
    run.send_signal(number)
    out, err = run.communicate(timeout=100)
    assert (
        run.returncode == (-number if number == signal.SIGKILL else 128 + number)
        and b"Traceback" not in err
    ), err
    wait_until_gone(helpers)
    left = list((tmp_path / "out/cache").iterdir())
    assert all(path.suffix == ".tmp" for path in left) and (number == signal.SIGKILL or not left)


# Ctrl-C while the ninth batch is handed over: the pool counts it already, but nobody will ever do it.
INTERRUPTED = """
import queue, tokenizer
from runtime import tokens
put, puts = queue.Queue.put, []

def interrupted_put(self, item, *more):
    puts.append(item)
    if len(puts) == 9:
        raise KeyboardInterrupt
    put(self, item, *more)

queue.Queue.put = interrupted_put
bytes_only = tokenizer.Tokenizer({bytes([byte]): byte for byte in range(256)}, {})
batches = (("file", number, []) for number in range(200))
try:
    list(tokens.map_in_processes(tokens.Renderer(bytes_only, "xml", "all", 99, "drop"), batches))
except KeyboardInterrupt:
    print("interrupted")
"""


def test_ctrl_c_between_two_batches_does_not_hang():
    """It did: the pool waited for a batch that was in its books and in no queue."""
    place = Path(sft.__file__).parent
    ended = subprocess.run(
        [sys.executable, "-c", INTERRUPTED], cwd=place, capture_output=True, timeout=60
    )
    assert ended.stdout == b"interrupted\n", ended.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for processes in /proc")
def test_a_helper_that_is_killed_ends_the_run(tmp_path: Path):
    """As where memory runs out: one line, no traceback, no half of a cache."""
    run, helpers = start_tokenising(tmp_path)
    os.kill(
        max(helpers), signal.SIGKILL
    )  # the youngest: a worker, and not the process that forks them
    out, err = run.communicate(timeout=100)
    assert run.returncode == 2 and err.decode().count("\n") == 1, err
    assert (
        b"error: one of the processes that tokenise was killed; was there too little memory?" in err
    )
    wait_until_gone(helpers)
    assert list((tmp_path / "out/cache").iterdir()) == []


def test_only_a_few_batches_are_under_way(tokenizer, tmp_path: Path):
    """However large the file is, memory holds only a few batches of it: with each result that is fetched, one more."""
    taken, ahead = itertools.count(), []
    batches = ((tmp_path, next(taken), [(1, conversation("q", "a"))]) for _ in range(200))
    results = tokens.map_in_processes(tokens.Renderer(tokenizer, "xml", "all", 99, "drop"), batches)
    for fetched, (columns, _) in enumerate(results, 1):
        assert columns["sources"].tolist() == [fetched - 1]
        ahead.append(next(copy.copy(taken)) - fetched)
    assert len(ahead) == 200 and max(ahead) <= 3 * os.cpu_count()
