"""adamw.py: bit for bit torch.optim.AdamW, also from a saved state; a state of other parameters is refused."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from runtime.adamw import AdamW

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = dict(betas=(0.9, 0.95), eps=1e-4)


def parameters_and_groups(dtype: torch.dtype) -> tuple[list[nn.Parameter], list[dict]]:
    torch.manual_seed(0)
    parameters = [
        nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in ((7, 5), (300, 4), (9,), (1,))
    ]
    matrices, vectors = (
        {"params": parameters[:2], "weight_decay": 0.1},
        {"params": parameters[2:], "weight_decay": 0.0},
    )
    return parameters, [matrices | {"lr": 0.0}, vectors | {"lr": 0.0}]


def train(optimizer, parameters: list[nn.Parameter], steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for group in optimizer.param_groups:
            group["lr"] = 0.1 / (1 + step)
        for parameter in parameters:
            parameter.grad = torch.randn(
                parameter.shape, generator=generator, dtype=parameter.dtype
            )
        optimizer.step()
        optimizer.zero_grad()
        assert all(parameter.grad is None for parameter in parameters)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_torchs_own(dtype: torch.dtype):
    """Two groups, a learning rate that changes, and from the sixth step on with a state that came out of a copy."""
    expected, their_groups = parameters_and_groups(dtype)
    theirs = torch.optim.AdamW(their_groups, **SETTINGS, fused=True)
    train(theirs, expected, range(12))

    parameters, groups = parameters_and_groups(dtype)
    ours = AdamW(groups, **SETTINGS)
    train(ours, parameters, range(6))
    resumed = AdamW(groups, **SETTINGS, state=copy.deepcopy(ours.state_dict()))
    train(resumed, parameters, range(6, 12))
    for parameter, reference in zip(parameters, expected):
        assert torch.equal(parameter, reference)
        for name, value in theirs.state[reference].items():
            assert torch.equal(resumed.state[parameter][name], value), name


def test_a_state_of_torchs_is_gone_on_with():
    """The checkpoints of earlier versions hold one, with more beside it."""
    expected, their_groups = parameters_and_groups(torch.float32)
    theirs = torch.optim.AdamW(their_groups, **SETTINGS, fused=True)
    train(theirs, expected, range(3))
    parameters, groups = parameters_and_groups(torch.float32)
    for parameter, reference in zip(parameters, expected):
        parameter.data.copy_(reference)
    ours = AdamW(groups, **SETTINGS, state=copy.deepcopy(theirs.state_dict()))
    train(theirs, expected, range(3, 5))
    train(ours, parameters, range(3, 5))
    assert all(
        torch.equal(parameter, reference) for parameter, reference in zip(parameters, expected)
    )


def refused(groups: list[dict], state: object) -> None:
    with pytest.raises(ValueError, match="the optimiser's state does not fit this model"):
        AdamW(groups, **SETTINGS, state=state)


def test_a_state_of_other_shapes_is_refused():
    """Claim 20: torch's kernel would take it and read and write beyond the end of a tensor."""
    linear = nn.Linear(300, 200)
    groups = [{"params": list(linear.parameters()), "lr": 0.1, "weight_decay": 0.0}]
    good = AdamW(groups, **SETTINGS).state_dict()
    AdamW(groups, **SETTINGS, state=copy.deepcopy(good))
    for name, value in (
        ("exp_avg", torch.tensor(0.0)),
        ("exp_avg_sq", torch.zeros(300)),
        ("exp_avg_sq", torch.zeros(300, 200)),
        ("exp_avg", torch.zeros(1).expand(200, 300)),
        ("step", torch.zeros(200, 300)),
        ("step", torch.zeros(1)),
        ("step", None),
        ("more", torch.tensor(0.0)),
    ):
        bad = copy.deepcopy(good)
        bad["state"][0][name] = value
        refused(groups, bad)
    for i, name in ((0, "exp_avg"), (1, "step")):
        bad = copy.deepcopy(good)
        del bad["state"][i][name]
        refused(groups, bad)
    for bad in (
        {},
        {"state": []},
        {"state": {0: good["state"][0]}},
        [],
        torch.zeros(2),
        {"state": {0: 1, 1: 2}},
    ):
        refused(groups, bad)


def test_training_does_not_import_the_compiler(tmp_path: Path):
    """Which is what this file is for: torch.optim.AdamW does, and so does `backward` with a gradient."""
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "One?", "completion": "Two."}\n')
    arguments = [
        "--data",
        str(data),
        "--steps",
        "2",
        "--out",
        str(tmp_path / "run"),
        "--device",
        "cpu",
    ]
    program = f"import sys, sft; assert sft.main({arguments}) == 0"
    program += "; assert not {'torch._dynamo', 'sympy'} & {*sys.modules}"
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
