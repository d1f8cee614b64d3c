"""checkpoint.py: a save that may be cut off anywhere, damage that is noticed, nothing that is executed."""

import os
import pickle
import random
from pathlib import Path

import pytest
import torch
from conftest import CONFIG, conversation, make_base, write_jsonl

import checkpoint
import sft
from checkpoint import is_whole, load_checkpoint, read_checkpoint, save_checkpoint


def run_folder(path: Path, steps: tuple[int, ...] = (1, 2)) -> Path:
    path.mkdir()
    for step in steps:
        save_checkpoint(path / f"checkpoint-{step:07d}.pt", {"step": step, "model": {"w": torch.arange(500.0) * step}})
    return path


def damages(data: bytes) -> list[bytes]:
    """Cut off, flipped, lengthened, emptied."""
    draw = random.Random(0)
    cuts = [0, 1, 73, 74, len(data) - 74, len(data) - 73, len(data) - 1, *(draw.randrange(len(data)) for _ in range(9))]
    flips = [0, len(data) - 75, len(data) - 70, len(data) - 1, *(draw.randrange(len(data)) for _ in range(30))]
    flipped = [data[:i] + bytes([data[i] ^ 1 << draw.randrange(8)]) + data[i + 1 :] for i in flips]
    return [data[:cut] for cut in cuts] + flipped + [data + b"\n", data + data, bytes(len(data)), data[1:]]


def test_a_damaged_file_is_refused_and_the_one_before_is_used(tmp_path: Path, capsys):
    """Claim 19: whatever happened to the newest file, its own checksum notices, and a folder falls back."""
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


def test_a_save_that_is_cut_off_leaves_the_earlier_file(tmp_path: Path, monkeypatch):
    """Claim 19: written beside, synced, then renamed; a failure at any of these steps loses nothing."""
    folder = run_folder(tmp_path / "run")
    path, earlier, calls = folder / "checkpoint-0000002.pt", read_checkpoint(folder), []
    for module, name in ((torch, "save"), (os, "fsync"), (os, "replace")):
        genuine = getattr(module, name)

        def cut_off(*arguments, name=name):
            if name == "save":
                Path(arguments[1]).write_bytes(b"half a ")
            raise OSError("cut off in " + name)

        with monkeypatch.context() as patch:
            patch.setattr(module, name, cut_off)
            with pytest.raises(OSError, match=name):
                save_checkpoint(path, {"step": 3})
        assert sorted(file.name for file in folder.glob("*.pt")) == ["checkpoint-0000001.pt", path.name]
        assert is_whole(path) and torch.equal(read_checkpoint(folder)["model"]["w"], earlier["model"]["w"])

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
        patch.setattr(torch, "save", lambda content, to: Path(to).write_bytes(pickle.dumps(content, protocol=2)))
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
    wrong += [
        {key: value for key, value in content.items() if key != gone} for gone in ("config", "model", "tokenizer")
    ]
    models = [{k: v for k, v in weights.items() if k != first}, weights | {"more": torch.ones(1)}, [1], None]
    models += [weights | {first: weights[first][:-1]}, weights | {first: "text"}]
    wrong += [content | {"model": model} for model in models] + [content | {"tokenizer": {"tokens": []}}]
    for i, other in enumerate(wrong):
        save_checkpoint(tmp_path / f"{i}.pt", other)
        with pytest.raises(ValueError, match=f"{i}.pt: not a checkpoint"):
            load_checkpoint(tmp_path / f"{i}.pt")


def train(tmp_path: Path, name: str, *arguments: object) -> Path:
    data = write_jsonl(tmp_path / "data.jsonl", [conversation(f"q{i}", f"a{i}") for i in range(8)])
    fixed = ("--data", data, "--out", tmp_path / name, "--device", "cpu", "--batch-tokens", 100, "--warmup-steps", 0)
    assert sft.main([*map(str, (*fixed, *arguments))]) == 0
    return tmp_path / name


def test_a_checkpoint_is_plain_full_and_describes_itself(base: Path, tmp_path: Path, monkeypatch):
    """Claim 20: torch alone can read it, nothing is guessed from its name, and only the newest are kept."""
    arguments = "--steps 5 --save-every 1 --keep-checkpoints 3 --template xml --seed 3".split()
    folder = train(tmp_path, "run", "--init", base, *arguments)
    assert [file.name for file in checkpoint.checkpoints_in(folder)] == [f"checkpoint-000000{n}.pt" for n in (5, 4, 3)]
    renamed = (folder / "checkpoint-0000004.pt").rename(tmp_path / "any name")
    plain = torch.load(renamed, weights_only=True)
    assert {tensor.dtype for tensor in plain["model"].values()} == {torch.float32}
    assert (plain["step"], plain["template"], plain["stop"]) == (4, "xml", [256])
    assert (plain["args"]["seed"], plain["args"]["steps"]) == (3, 5)
    assert plain["base"]["path"] == str(base) and plain["base"]["template"] is None
    monkeypatch.chdir(tmp_path)
    model, tokenizer, meta = load_checkpoint("any name")
    assert (meta["step"], meta["template"], meta["stop"]) == (4, "xml", [256])
    assert tokenizer.encode("hé") == list("hé".encode()) and not model.training
    assert model.state_dict().keys() == plain["model"].keys()
    assert all(torch.equal(tensor, plain["model"][name]) for name, tensor in model.state_dict().items())


def test_half_precision_is_loaded_in_full(base: Path, tmp_path: Path):
    """Claim 20: the embedded base is stored in half precision, exactly convertible."""
    content = torch.load(base, weights_only=True)
    content["model"] = {name: tensor.half() for name, tensor in content["model"].items()}
    save_checkpoint(tmp_path / "half.pt", content)
    model, _, _ = load_checkpoint(tmp_path / "half.pt")
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, content["model"][name].float())


def test_an_adapter_needs_its_own_base(base: Path, tmp_path: Path, capsys):
    """Claims 18, 20: a moved, damaged or exchanged base is an error that names the matter; adapters can be stacked."""
    first = train(tmp_path, "first", "--init", base, "--lora-rank", 2, "--steps", 2)
    second = train(tmp_path, "second", "--init", first, "--lora-rank", 1, "--steps", 2, "--template", "llama2")
    model, tokenizer, meta = load_checkpoint(second)
    assert meta["template"] == "llama2" and model.config.n_vocab == tokenizer.n_vocab == CONFIG.vocab_size + 4
    assert torch.load(second / "checkpoint-0000002.pt", weights_only=True).keys().isdisjoint({"model"})
    whole = base.read_bytes()
    for damage, message in ((None, "no such file"), (whole[:-9], "no whole"), (b"other", "another base")):
        base.unlink()
        if damage == b"other":
            make_base(base, seed=1)
        elif damage:
            base.write_bytes(damage)
        for arguments in (["--init", str(first), "--out", str(tmp_path / "new")], ["--resume", str(second)]):
            assert sft.main([*arguments, "--data", str(tmp_path / "data.jsonl")]) == 2
            assert message in capsys.readouterr().err
        base.write_bytes(whole)
    load_checkpoint(second)
    assert not (tmp_path / "new").exists()
