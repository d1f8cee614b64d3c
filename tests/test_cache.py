"""The cache of large data sets: the same tokens as without, found again, never stale, never
half-written, bounded; and the processes that fill it, which are killed and interrupted."""

import copy
import functools
import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
from conftest import children, conversation, make_base, wait_until_gone, write_jsonl

import sft
from runtime import tokens
from runtime.tokens import COLUMNS, build_dataset, map_in_processes

# So that not every worker has to import them, which takes seconds.
multiprocessing.set_forkserver_preload(["runtime.tokens", "pytest"])

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
    """No processes, which take seconds to start; each time that files are tokenised."""
    times: list[int] = []
    monkeypatch.setattr(
        tokens, "map_in_processes", lambda *rest: times.append(1) or itertools.starmap(*rest)
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


def test_processes_and_disk_change_nothing(files, tokenizer, tmp_path: Path, monkeypatch):
    """Claims 8, 22: the same arrays in the same order, the same report, from many processes, and
    from the disk."""
    expected, told = build(files, tokenizer, None), []
    assert len(expected[0]) > 700 and "dropped" in "\n".join(expected[1])
    monkeypatch.setattr(tokens.LiveLine, "show", lambda _, text, last=False: told.append(text))
    assert_same(build(files, tokenizer, tmp_path / "cache"), expected)
    assert len(told) > 10 and " s left" in told[0]
    assert told[-1].startswith(f"{files[0]} and 1 more: 750 conversations tokenised, in ")
    assert_same(build(files, tokenizer, tmp_path / "cache"), expected)
    [folder] = (tmp_path / "cache").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["about.json", *sorted(COLUMNS)]


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
    """A flipped bit, a cut, a file that is gone or another: it is said, and the files are tokenised
    again."""
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
    assert len(here) == 7


def test_what_fails_leaves_nothing(files, tokenizer, tmp_path: Path):
    """Claim 7: a bad record after many good ones is named by file and line, also where another
    process met it; and what a kill has left behind is cleared away."""
    cache = tmp_path / "cache"
    bad = write_jsonl(tmp_path / "bad.jsonl", [*RECORDS, {"text": 5}, *RECORDS])
    (cache / "0123456789abcdef0123456789abcdef.tmp").mkdir(parents=True)
    with pytest.raises(ValueError, match="bad.jsonl:701: content must be text"):
        build([files[0], bad], tokenizer, cache)
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("large", [1, 2**23], ids=["large", "small"])
def test_only_a_set_that_leaves_nothing_at_all_is_an_error(
    files, tokenizer, tmp_path: Path, here, monkeypatch, large: int
):
    """Claim 8: a file of a set may be empty, or leave nothing to learn from: the report says so."""
    monkeypatch.setattr(tokens, "LARGE", large)
    cache, empty = tmp_path / "cache", tmp_path / "empty.jsonl"
    empty.write_text("\n")
    nothing = write_jsonl(tmp_path / "nothing.jsonl", [conversation("q", "a" * 100, n=1)] * 9)
    reason = "nothing to learn from: of 9 conversations 9 are longer than 70 tokens (the shortest "
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
    assert report[:4] == [f"{empty}: no record in this file", *lines]
    assert report[4].startswith(f"{nothing}: {reason}") and report[5:] == ["keys not used: 'n' (9)"]
    assert_same(build([empty, files[0], nothing], tokenizer, cache), (dataset, report))


def test_the_cache_is_bounded(files, tokenizer, tmp_path: Path, here):
    """The data sets that were used last stay; whatever else is in the folder is not ours."""
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
        os.utime(folder / "about.json", (time.time() - 100 + age,) * 2)
    newest = use(200)
    assert [folder.exists() for folder in folders] == [True, False] + [True] * (
        tokens.KEPT - 2
    ) and newest.exists()
    assert all(stranger.exists() for stranger in strangers)


def test_who_comes_second_waits(files, tokenizer, tmp_path: Path, here, monkeypatch):
    """Runs that are started together tokenise once."""
    expected, genuine, made = build(files, tokenizer, None), tokens.render_files, []

    def slow(*arguments, **settings):
        time.sleep(0.1)
        return genuine(*arguments, **settings)

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
    assert len(here) == 1 and len(made) == 3
    for each in made:
        assert_same(each, expected)


def test_small_files_need_no_cache(tmp_path: Path, tokenizer, monkeypatch):
    """Nothing is written, no process is started."""
    monkeypatch.setattr(tokens, "cached_dataset", None)
    path = write_jsonl(tmp_path / "small.jsonl", RECORDS)
    build([path], tokenizer, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


# Workers that are killed, in this process


SEND, RECEIVE = Connection._send, Connection._recv


def send_half_and_die(pipe: Connection, data: memoryview, *rest) -> None:
    """Half a message, but the whole of the 4 bytes that hold its length. The others then have time
    to start writing theirs."""
    SEND(pipe, data[: (len(data) + 4) // 2], *rest)
    if len(data) > 4:
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGKILL)


def receive_half_and_die(pipe: Connection, size: int, *rest):
    received = RECEIVE(pipe, (size + 4) // 2, *rest)
    if size > 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return received


def die_in_writing() -> None:
    Connection._send = send_half_and_die


def die_in_receiving() -> None:
    Connection._recv = receive_half_and_die


def wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.01)


def meet_a_bad_record() -> None:
    raise ValueError("file:5: bad")


class StandIn:
    """In place of a renderer: gives a batch back, after the incident that its number has."""

    def __init__(self, incidents: dict[int, Callable[[], None]]):
        self.incidents = incidents

    def __call__(self, number: int, data: bytes) -> tuple[int, bytes]:
        self.incidents.get(number, lambda: None)()
        return number, data


def batches(number: int = 30) -> Iterator[tuple[int, bytes]]:
    """Of 2 MB, as their parts are: more than a pipe holds."""
    return ((i, bytes(2**21)) for i in range(number))


@pytest.fixture
def workers(monkeypatch) -> Iterator[Callable[[int], None]]:
    """Sets how many there are: four, else. At the end none may be left; nothing takes a minute."""

    def set_number(number: int) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(number), raising=False)

    def give_up(*_) -> None:
        raise TimeoutError("it hangs")

    set_number(4)
    earlier = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(60)
    yield set_number
    signal.alarm(0)
    signal.signal(signal.SIGALRM, earlier)
    assert multiprocessing.active_children() == []


KILLED = "one of the processes that tokenise was killed; was there too little memory?"


@pytest.mark.parametrize("fault", [die_in_writing, die_in_receiving])
def test_a_worker_that_dies_half_way_through_a_message(workers, fault: Callable):
    """It kept the parent waiting for the other half, and the others for a lock."""
    with pytest.raises(OSError) as raised:
        list(map_in_processes(StandIn({5: fault}), batches()))
    assert str(raised.value) == KILLED


@pytest.mark.parametrize("after", [0, 1])
def test_a_worker_that_dies_idle(workers, after: int):
    """Before its first batch, while it starts; or between two."""

    def batches_and_a_kill() -> Iterator[tuple[int, bytes]]:
        yield from batches(after)
        [worker] = multiprocessing.active_children()
        worker.kill()
        worker.join()
        yield from batches(2)

    workers(1)
    with pytest.raises(OSError) as raised:
        list(map_in_processes(StandIn({}), batches_and_a_kill()))
    assert str(raised.value) == KILLED


@pytest.mark.parametrize("name", ["_send", "_recv"])
def test_ctrl_c_half_way_through_a_message(workers, monkeypatch, name: str):
    """While a batch is handed over (this once hung), or a part is fetched."""
    genuine, calls = getattr(Connection, name), itertools.count(1)

    def interrupted(pipe: Connection, what, *rest):
        if next(calls) != 20:
            return genuine(pipe, what, *rest)
        genuine(pipe, what[: len(what) // 2] if name == "_send" else what // 2, *rest)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Connection, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(map_in_processes(StandIn({}), batches()))
    assert next(calls) == 21


def test_an_error_comes_in_its_turn(workers, tmp_path: Path):
    """A bad record in batch 5, which is done long before batch 3 is."""

    def touch(batch: tuple[int, bytes]) -> tuple[int, bytes]:
        if batch[0] == 9:
            (tmp_path / "go on").touch()
        return batch

    incidents = {3: functools.partial(wait_for, tmp_path / "go on"), 5: meet_a_bad_record}
    parts = map_in_processes(StandIn(incidents), map(touch, batches()))
    assert [next(parts) for _ in range(5)] == list(batches(5))
    with pytest.raises(ValueError, match="^file:5: bad$"):
        next(parts)


def test_only_a_few_batches_are_under_way(workers, tmp_path: Path):
    """However large the files are, memory holds only a few batches, also where one takes long: the
    others go on, but only so far."""
    path, taken, ahead = tmp_path / "go on", itertools.count(), []

    def small_batches() -> Iterator[tuple[int, bytes]]:
        for number in itertools.takewhile(lambda number: number < 200, taken):
            yield number, b""
            if number == 8:
                threading.Timer(0.1, path.touch).start()

    parts = map_in_processes(StandIn({0: functools.partial(wait_for, path)}), small_batches())
    for fetched, part in enumerate(parts, 1):
        assert part == (fetched - 1, b"")
        ahead.append(next(copy.copy(taken)) - fetched)
    assert len(ahead) == 200 and ahead[0] >= 8 and max(ahead) <= 4 * 4


# The real command


def start_tokenising(folder: Path) -> tuple[subprocess.Popen, set[int]]:
    """A run that is at work on a large file, and its helpers, in a group as of a terminal."""
    make_base(folder / "base.pt")
    record = json.dumps(conversation("q" * 100, "a" * 100)) + "\n"
    (folder / "large.jsonl").write_text(record * (tokens.LARGE // len(record) + 1))
    arguments = "--data large.jsonl --init base.pt --steps 1".split()
    run = subprocess.Popen(
        [sys.executable, str(Path(sft.__file__)), *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    while b"conversations tokenised" not in run.stdout.readline():
        assert run.poll() is None, run.stderr.read()
    helpers = children(run.pid)
    assert helpers
    return run, helpers


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_whoever_stops_the_run_stops_its_helpers(tmp_path: Path, number: int):
    """While a large file is tokenised: the other processes end, too, and nothing is left that the
    next run trips over. A terminal sends Ctrl-C to all of them."""
    run, helpers = start_tokenising(tmp_path)
    os.killpg(run.pid, number) if number == signal.SIGINT else run.send_signal(number)
    out, err = run.communicate(timeout=100)
    assert run.returncode == (-number if number == signal.SIGKILL else 128 + number), err
    assert err == b""
    wait_until_gone(helpers)
    left = list((tmp_path / "out/cache").iterdir())
    assert all(path.suffix == ".tmp" for path in left) and (number == signal.SIGKILL or not left)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for processes in /proc")
def test_a_helper_that_is_killed_ends_the_run(tmp_path: Path):
    """As where memory runs out: one line, no traceback, no half of a cache."""
    run, helpers = start_tokenising(tmp_path)
    workers = set().union(*map(children, helpers))  # which one of the helpers has forked
    os.kill(workers.pop(), signal.SIGKILL)
    out, err = run.communicate(timeout=100)
    assert run.returncode == 2 and err.decode() == f"error: {KILLED}\n"
    wait_until_gone(helpers)
    assert list((tmp_path / "out/cache").iterdir()) == []
