"""runtime/files.py and runtime/load.py: a save that may be cut off anywhere, damage that is
noticed, nothing that is executed."""

import errno
import os
import pickle
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from runtime import files
from runtime.files import is_whole, lock, open_folder, save_checkpoint
from runtime.load import load_checkpoint, read_checkpoint, read_run
from sft import Config


def run_folder(path: Path, steps: tuple[int, ...] = (1, 2)) -> Path:
    path.mkdir()
    for step in steps:
        content = {"step": step, "model": {"w": torch.arange(500.0) * step}}
        save_checkpoint(path / f"checkpoint-{step:07d}.pt", content)
    return path


def damages(data: bytes) -> list[bytes]:
    """Cut off, flipped, lengthened, emptied."""
    draw = random.Random(0)
    n = len(data)
    cuts = [0, 1, 73, 74, n - 74, n - 73, n - 1, *(draw.randrange(n) for _ in range(9))]
    flips = [0, n - 75, n - 70, n - 1, *(draw.randrange(n) for _ in range(30))]
    damaged = [data[:cut] for cut in cuts]
    damaged += [data[:i] + bytes([data[i] ^ 1 << draw.randrange(8)]) + data[i + 1 :] for i in flips]
    return damaged + [data + b"\n", data + data, bytes(n), data[1:]]


def test_a_damaged_file_is_refused_and_the_one_before_is_used(tmp_path: Path, capsys):
    """Claim 19: whatever happened to the newest file, its own checksum notices, and a folder falls
    back."""
    folder = run_folder(tmp_path / "run")
    newest, before = folder / "checkpoint-0000002.pt", folder / "checkpoint-0000001.pt"
    assert read_checkpoint(folder)["step"] == 2
    for data in damages(newest.read_bytes()):
        newest.write_bytes(data)
        with pytest.raises(ValueError, match="no whole checkpoint"):
            read_checkpoint(newest)
        content = read_checkpoint(folder)
        assert (content["step"], content["file"]) == (1, str(before))
        assert f"{newest}: damaged" in capsys.readouterr().err
    before.write_bytes(before.read_bytes()[:-1])
    for path in (folder, tmp_path):
        with pytest.raises(ValueError, match="no whole checkpoint"):
            read_checkpoint(path)
    with pytest.raises(FileNotFoundError):
        read_checkpoint(tmp_path / "not-there")


def test_a_bad_sector_is_damage(tmp_path: Path, monkeypatch, capsys):
    """Claim 19: a disk that gives an error instead of the bytes; any other error is told as it
    is."""
    folder = run_folder(tmp_path / "run")
    code = errno.EIO

    class BadFile:
        def __init__(self, path: Path, mode: str):
            self.file = open(path, mode)
            self.is_bad = path.name.startswith("checkpoint-0000002")

        def __enter__(self) -> "BadFile":
            return self

        def __exit__(self, *_) -> None:
            self.file.close()

        def read(self, *size: int) -> bytes:
            if self.is_bad:
                raise OSError(code, os.strerror(code))
            return self.file.read(*size)

    monkeypatch.setattr(files, "open", BadFile, raising=False)
    assert read_checkpoint(folder)["step"] == 1
    assert "checkpoint-0000002.pt: damaged" in capsys.readouterr().err
    code = errno.EACCES
    with pytest.raises(PermissionError):
        read_checkpoint(folder)


def test_a_folder_belongs_to_one_process_at_a_time(tmp_path: Path):
    """Claim 19: whoever resumes a run that is still going, or overwrites it, is sent away, and
    nothing is removed."""
    folder = run_folder(tmp_path / "run")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    (tmp_path / "base.pt").touch()
    overwriting = dict(out=str(folder), name="run", overwrite=True, protect=tmp_path / "base.pt")
    with lock(folder):
        for attempt in (lambda: lock(folder).__enter__(), lambda: open_folder(**overwriting)):
            with pytest.raises(OSError, match="run: another process is at work in this folder"):
                attempt()
        assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert open_folder(**overwriting) == folder and not list(folder.iterdir())


def test_runs_that_start_together_get_a_folder_each(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("out").mkdir()
    Path("out/run-2").touch()
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(open_folder, None, "run", False, tmp_path) for _ in range(40)]
        folders = [each.result() for each in asked]
    expected = {Path(f"out/run-{n}") for n in (1, *range(3, 42))}
    assert set(folders) == expected and len(folders) == 40


def test_a_save_that_is_cut_off_leaves_the_earlier_file(tmp_path: Path, monkeypatch):
    """Claim 19: written beside, synced, then renamed; a failure at any of these steps loses
    nothing."""
    folder = run_folder(tmp_path / "run")
    path, earlier, calls = folder / "checkpoint-0000002.pt", read_checkpoint(folder), []
    for module, name in ((torch, "save"), (os, "fsync"), (os, "replace")):
        genuine = getattr(module, name)

        def cut_off(*arguments, name=name):
            if name == "save":
                arguments[1].write(b"half a ")
            raise OSError("cut off in " + name)

        with monkeypatch.context() as patch:
            patch.setattr(module, name, cut_off)
            with pytest.raises(OSError, match=name):
                save_checkpoint(path, {"step": 3})
        names = sorted(file.name for file in folder.iterdir())
        assert names == ["checkpoint-0000001.pt", path.name] and is_whole(path)
        assert torch.equal(read_checkpoint(folder)["model"]["w"], earlier["model"]["w"])

        def noted(*arguments, name=name, genuine=genuine):
            calls.append(name)
            if name == "replace":
                assert is_whole(Path(arguments[0])) and Path(arguments[1]) == path
            return genuine(*arguments)

        monkeypatch.setattr(module, name, noted)
    calls.clear()
    save_checkpoint(path, {"step": 3})
    assert calls[:3] == ["save", "fsync", "replace"]
    assert read_checkpoint(folder)["step"] == 3 and not list(folder.glob("*.tmp"))


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_pickled_object_is_refused_and_not_executed(tmp_path: Path):
    """Claim 20: also with a right checksum, and in torch's old format."""
    path, crater = tmp_path / "evil.pt", tmp_path / "crater"
    save_checkpoint(path, {"model": {}, "tokenizer": Bomb(crater)})
    old_format = tmp_path / "old.pt"
    with pytest.MonkeyPatch.context() as patch:
        old_save = lambda content, to: to.write(pickle.dumps(content, protocol=2))  # noqa: E731
        patch.setattr(torch, "save", old_save)
        save_checkpoint(old_format, {"tokenizer": Bomb(crater)})
    for file in (path, old_format):
        assert is_whole(file)
        with pytest.raises(ValueError, match=f"{file}: not a checkpoint"):
            load_checkpoint(file)
        assert not crater.exists()
    torch.load(path, weights_only=False)
    assert crater.exists()  # the bomb was a live one


def test_a_file_of_another_kind_is_an_error(base: Path, tmp_path: Path):
    """Claim 20: strict; every tensor must be there, none may be unknown, all must fit."""
    content = {name: value for name, value in read_checkpoint(base).items() if name != "file"}
    weights = content["model"]
    first = next(iter(weights))
    wrong = [{}, [1], "text", torch.ones(2), {"model": weights}]
    for gone in ("config", "model", "tokenizer", "template"):
        wrong.append({key: value for key, value in content.items() if key != gone})
    models = [{k: v for k, v in weights.items() if k != first}, [1], None]
    models += [weights | {"more": torch.ones(1)}, weights | {first: weights[first][:-1]}]
    models += [weights | {first: "text"}, weights | {first: weights[first].long()}]
    wrong += [content | {"model": model} for model in models]
    wrong += [content | {"tokenizer": {"tokens": []}}, content | {"template": "unknown"}]
    config = content["config"]
    for size in (
        {"n_layer": 3},
        {"n_layer": 10**6},
        {"n_embd": 64},
        {"n_head": 2.0},
        {"n": 1},
        {"gated": 1},
        {"rope_scaling": ("a",) * 4},
    ):
        wrong.append(content | {"config": config | size})
    for i, other in enumerate(wrong):
        save_checkpoint(tmp_path / f"{i}.pt", other)
        with pytest.raises(ValueError, match=f"{i}.pt: not a checkpoint"):
            load_checkpoint(tmp_path / f"{i}.pt")


def test_half_precision_is_loaded_in_full(base: Path, tmp_path: Path):
    """Claim 20: the embedded base is stored in half precision, exactly convertible."""
    content = torch.load(base, weights_only=True)
    content["model"] = {name: tensor.half() for name, tensor in content["model"].items()}
    save_checkpoint(tmp_path / "half.pt", content)
    model, _, _ = load_checkpoint(tmp_path / "half.pt")
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, content["model"][name].float())


WAYS = ["tokenizer tokens", "stop", "args lr", "lora token_ids", "template", "base path"]


@pytest.mark.parametrize("way", WAYS)
def test_tensors_stand_only_where_weights_are(tmp_path: Path, way: str):
    """Claim 20: a loop over this one, of 4 bytes in its file, would make a million tensors."""
    content = {"model": {}, "tokenizer": {}, "base": {}, "args": {}, "lora": {}}
    *outer, last = way.split()
    holder = content[outer[0]] if outer else content
    holder[last] = torch.zeros(1).expand(10**6, 10**6)
    save_checkpoint(tmp_path / "hostile.pt", content)
    with pytest.raises(ValueError, match="hostile.pt: not a checkpoint of sft.py"):
        read_checkpoint(tmp_path / "hostile.pt")


def test_a_run_to_go_on_with_needs_all_its_parts(tmp_path: Path):
    """Claim 20: told in one line before anything else is done. A folder is asked for, since a run's
    log and other checkpoints lie beside the newest one."""
    content = {"step": 2, "args": {}, "data_digest": "", "optimizer": {}}
    content["base"] = {"path": "base.pt", "template": None}
    path = tmp_path / "run/checkpoint-0000002.pt"
    path.parent.mkdir()
    save_checkpoint(path, content)
    expected = content | {"file": str(path), "args": Config()}
    assert read_run(str(path.parent), Config) == expected
    with pytest.raises(ValueError, match="--resume takes a run's folder"):
        read_run(str(path), Config)
    wrong = [{key: content[key] for key in content if key != gone} for gone in content]
    wrong += [content | {"step": step} for step in ("2", 2.5, 0, -1, None, True, [2])]
    wrong += [content | {"args": args} for args in (None, {"more": 1}, {"lr": "1"}, {"seed": -1})]
    wrong += [content | {"base": base} for base in ({}, {"path": "base.pt"}, None, "base.pt")]
    for other in wrong:
        save_checkpoint(path, other)
        with pytest.raises(ValueError, match=f"{path}: no checkpoint of a run"):
            read_run(str(path.parent), Config)
