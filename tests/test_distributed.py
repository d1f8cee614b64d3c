"""runtime/distributed.py: several processes are one, with weights in one piece or in shards. (How
they stop and fail together: tests/faults/test_processes.py.)

Most runs here are forks that find one another as torchrun's processes do.
"""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import (
    FAMILIES,
    Zygote,
    conversation,
    make_base,
    write_jsonl,
)

import sft
from runtime import distributed
from runtime.files import checkpoints_in
from runtime.load import load_checkpoint, read_checkpoint

# Of these, one step holds a single long conversation, so that the other process has none; shares
# are ragged.
LENGTHS = (1, 4, 9, 80, 2, 7, 5, 30, 3, 6, 8)
RUN = "--data uneven.jsonl --val-data held-out.jsonl --init base.pt --batch-tokens 104 "
RUN += "--micro-batch-tokens 60 --epochs 2 --device cpu --save-every 1 --keep-checkpoints 99 "
RUN += "--grad-clip 0 --weight-decay 0.1"
LORA = " --lora-rank 3 --lora-alpha 5"
TORCHRUN = [sys.executable, *"-m torch.distributed.run --standalone --nproc_per_node=2".split()]


def furnish(folder: Path) -> Path:
    """Bases and data of these runs."""
    make_base(folder / "base.pt")
    make_base(folder / "qwen3.pt", **FAMILIES["qwen3"])
    # of 5 rows in two shards one process has 3 and the other 2; of a matrix with one row, one has
    # nothing
    make_base(folder / "odd.pt", vocab_size=261, context_length=107, n_layer=1, n_head=1, n_embd=5)
    write_jsonl(folder / "uneven.jsonl", [conversation("q", "a" * n) for n in LENGTHS])
    write_jsonl(
        folder / "held-out.jsonl",
        [conversation("q", "held out", *["and", "on"] * n) for n in range(3)],
    )
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return furnish(tmp_path_factory.mktemp("distributed"))


def log_rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "log.csv", newline="") as file:
        return list(csv.DictReader(file))


def run(zygote: Zygote, place: Path, arguments: str, processes: int) -> Path:
    """A run that must succeed, in which process 0 alone speaks; gives its folder."""
    ended = zygote.run(place, arguments, processes=processes)
    assert [each["status"] for each in ended] == [0] * processes, ended
    assert not any(each["err"] for each in ended) and not any(each["out"] for each in ended[1:]), (
        ended
    )
    folder = arguments.split()[-1]
    assert ended[0]["out"].count(f"\nnext      python chat.py {folder}\n") == 1
    return place / folder


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative to the norm."""
    assert (
        found.shape == expected.shape
        and found.dtype == expected.dtype
        and type(found) is type(expected)
    )
    return ((found - expected).norm() / expected.norm().clamp(min=1e-30)).item()


def assert_equal(one: Path, other: Path, tolerance: float) -> None:
    """Logs and checkpoints, step by step. The optimiser's mean after the first step is a tenth of
    the gradient, and is not forgiving of a wrong factor, as Adam's steps are; nor is the norm in
    the log."""
    for row, other_row in zip(log_rows(one), log_rows(other), strict=True):
        for column in row:
            found, expected = float(other_row[column] or -1), float(row[column] or -1)
            assert abs(found - expected) <= tolerance * abs(expected), (
                row["step"],
                column,
                found,
                expected,
            )
    for path in checkpoints_in(one):
        left, right = read_checkpoint(path), read_checkpoint(other / path.name)
        assert left.keys() == right.keys() and left["step"] == right["step"]
        for i, state in left["optimizer"]["state"].items():
            for name, expected in state.items():
                assert distance(right["optimizer"]["state"][i][name], expected) <= tolerance, (
                    path.name,
                    i,
                    name,
                )
        for kind in ("model", "adapter"):
            for name, expected in left.get(kind, {}).items():
                assert distance(right[kind][name], expected) <= tolerance, (path.name, name)


@pytest.mark.parametrize("sharded", ["", " --fsdp"], ids=["whole", "fsdp"])
@pytest.mark.parametrize("kind", ["base", "base" + LORA, "odd", "qwen3"])
def test_processes_are_one(zygote, place: Path, kind: str, sharded: str):
    """Claim 10: losses, gradients, weights and the optimiser's state of two processes are those of
    a single one, in float64 up to 1e-12 of the norm; with ragged shares, with a process that has
    nothing to do, with shards of unequal size; and what is saved is the same kind of file."""
    init, _, more = kind.partition(" ")
    options, name = (
        f"{RUN} --init {init}.pt {more} --dtype float64",
        (kind + sharded).replace(" ", ""),
    )
    one = run(zygote, place, f"{options} --out one-{name}", 1)
    two = run(zygote, place, f"{options} {sharded} --out two-{name}", 2)
    assert "81" in {
        row["supervised_tokens"] for row in log_rows(one)
    }  # the long conversation is alone in its step
    assert_equal(one, two, 1e-12)
    load_checkpoint(two)


@pytest.mark.parametrize("sharded", ["", " --fsdp"], ids=["whole", "fsdp"])
def test_in_single_precision(zygote, place: Path, sharded: str):
    """Claim 10: in float32, 1e-5 of the norm for the first step's gradient, which would be thrice
    itself if a mean came out as a sum; and 1e-3 for losses, weights and the optimiser's state over
    all steps, with three processes."""
    one = run(zygote, place, RUN + f" --dtype float32 --out single-one{sharded.strip()}", 1)
    three = run(
        zygote, place, RUN + f" --dtype float32 {sharded} --out single-three{sharded.strip()}", 3
    )
    left, right = (
        read_checkpoint(checkpoints_in(folder)[-1])["optimizer"]["state"] for folder in (one, three)
    )
    for i, state in left.items():
        assert distance(right[i]["exp_avg"], state["exp_avg"]) <= 1e-5
    assert_equal(one, three, 1e-3)


@pytest.mark.parametrize("kind", ["", LORA], ids=["weights", "LoRA"])
def test_resuming_with_another_number_of_processes(zygote, place: Path, kind: str):
    """Claims 10, 19: 2, 1, 2 sharded, 3 processes, a step or two each, end where one process ends,
    up to rounding."""
    name = "resumed" + kind.replace(" ", "")
    whole = run(zygote, place, RUN + f" --dtype float64 {kind} --out whole-{name}", 1)
    total = len(log_rows(whole))
    assert total > 6
    changed = place / name
    command = RUN + f" --dtype float64 {kind} --out {name}"
    run(zygote, place, command, 2)
    for step, processes, options in (
        (1, 1, "--no-fsdp"),
        (3, 2, "--fsdp"),
        (4, 3, "--no-fsdp"),
        (total - 1, 2, "--fsdp"),
    ):
        for path in checkpoints_in(changed):
            if int(path.stem.partition("-")[2]) > step:
                path.unlink()
        ended = zygote.run(place, f"--resume {name} {options}", processes=processes)
        assert all(each["status"] == 0 and each["err"] == "" for each in ended), ended
        assert "processes" in ended[0]["out"] and "the last bits may differ" in ended[0]["out"]
    assert_equal(whole, changed, 1e-9)


SHARES = """
import os, torch
from runtime import distributed
from conftest import make_model

def check() -> None:
    model = make_model(dtype=torch.float32)
    whole = {name: parameter.shape[0] for name, parameter in model.named_parameters()}
    distributed.shard(model, "cpu")
    groups = [{"params": list(model.parameters()), "lr": 0.1, "weight_decay": 0.1}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8, fused=True)
    model(torch.arange(20).view(2, 10)).sum().backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        states = [value for value in optimizer.state[parameter].values() if value.dim()]
        assert len(states) == 2
        for tensor in (parameter, parameter.grad, *states):
            assert len(tensor.to_local()) in (whole[name] // 2, -(-whole[name] // 2)), name


with distributed.together():
    check()
os._exit(0)  # as sft.py does, and why stands there
"""


def test_a_shard_is_a_part(tmp_path: Path):
    """With --fsdp each of two processes holds half of every weight, gradient and optimiser state,
    or a row more."""
    (tmp_path / "shares.py").write_text(SHARES)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(
        [*TORCHRUN, str(tmp_path / "shares.py")], env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr


def test_gradients_travel_in_few_messages(monkeypatch):
    """One message a parameter would be mostly waiting; one for all would need the memory of all
    gradients again."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(distributed, "BUCKET", 4)
    messages: list[int] = []

    def double(flat: torch.Tensor) -> None:
        messages.append(len(flat))
        flat.mul_(2)  # as if the other process had the same

    monkeypatch.setattr(distributed.dist, "all_reduce", double)
    sizes = [(3, 5), (2,), (40, 2), (7,), (101,), (1,), (99,), (500,), (4,)]
    parameters = [torch.nn.Parameter(torch.zeros(size)) for size in sizes]
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape)
    expected = [2 * parameter.grad for parameter in parameters]
    distributed.all_reduce_gradients(parameters)
    assert messages == [15 + 2 + 80 + 7, 101 + 1 + 99 + 500, 4]
    assert all(torch.equal(parameter.grad, twice) for parameter, twice in zip(parameters, expected))


# Errors and devices


def test_an_error_in_the_data_is_told_once(zygote, place: Path):
    """All processes would find the same; the first one does, before the others look."""
    write_jsonl(place / "bad.jsonl", [conversation("q", "a"), {"text": 5}])
    ended = zygote.run(place, "--data bad.jsonl --init base.pt --device cpu --out bad", processes=3)
    assert [each["status"] for each in ended] == [2, 2, 2] and not (place / "bad").exists()
    assert [each["err"].count('bad.jsonl:2: "text" must be text') for each in ended] == [1, 0, 0]


def test_fsdp_is_for_several_processes(place: Path, monkeypatch, capsys):
    monkeypatch.chdir(place)
    assert sft.main((RUN + " --fsdp --out alone").split()) == 2
    assert "torchrun" in capsys.readouterr().err and not (place / "alone").exists()


@pytest.mark.parametrize(
    "given, missing",
    [({}, "MASTER_ADDR, MASTER_PORT, RANK"), ({"RANK": "0", "MASTER_ADDR": "::1"}, "MASTER_PORT")],
)
def test_a_clusters_number_of_tasks(place: Path, monkeypatch, capsys, given, missing):
    """One line, where nobody says how the processes meet; a model can be asked there all the
    same."""
    monkeypatch.chdir(place)
    for name, value in {"WORLD_SIZE": "2", **given}.items():
        monkeypatch.setenv(name, value)
    assert sft.main((RUN + " --out many").split()) == 2
    told = f"error: WORLD_SIZE is set, but not {missing}: start with torchrun, or unset it\n"
    assert capsys.readouterr().err == told and not (place / "many").exists()
    if "RANK" not in given:
        assert distributed.world_size() == 1 and distributed.sum_over_processes([2.5]) == [2.5]


def test_every_process_needs_a_device_of_its_own(monkeypatch):
    """Two processes on a machine with one GPU are refused; on one of Apple's they use the CPU,
    where they can talk."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    numbers = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    for name, value in numbers.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="fewer GPUs than processes"):
        distributed.choose_device("auto", "auto")
    assert distributed.choose_device("cpu", "auto")[0] == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert distributed.choose_device("auto", "auto")[0] == "cpu"
    monkeypatch.delenv("WORLD_SIZE")
    assert distributed.choose_device("auto", "auto")[0] == "mps"
