"""The optimiser: AdamW as torch has it, and its state out of a checkpoint."""

import copy
import warnings

import pytest
import torch
from conftest import make_model
from torch import nn

import sft
from runtime.load import load_optimizer


def stepped(kind=torch.optim.AdamW, steps: int = 3, **options) -> tuple[nn.Linear, object]:
    """A layer and its optimiser after some steps."""
    torch.manual_seed(0)
    linear = nn.Linear(300, 200)
    optimizer = kind([{"params": list(linear.parameters())}], lr=0.1, **options)
    for _ in range(steps):
        linear(torch.randn(7, 300)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return linear, optimizer


def refused(saved: object) -> None:
    _, optimizer = stepped(steps=0)
    before = copy.deepcopy(optimizer.state_dict())
    with warnings.catch_warnings(action="error"):
        with pytest.raises(ValueError, match="the optimiser's state does not fit: "):
            load_optimizer(optimizer, saved)
    assert optimizer.state_dict() == before


def test_only_matrices_decay() -> None:
    """With a rate of 1, a decay of 0.5 and no gradient, matrices halve and vectors stay."""
    model = make_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = sft.make_optimizer(model, weight_decay=0.5)
    for group in optimizer.param_groups:
        group["lr"] = 1.0
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name] / (2 if tensor.dim() == 2 else 1)), name


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (torch.optim.AdamW, {"fused": True}),
        (torch.optim.AdamW, {}),
        (torch.optim.SGD, {}),
        (torch.optim.SGD, {"momentum": 0.9}),
    ],
)
def test_a_state_is_gone_on_with(kind, options: dict, tmp_path) -> None:
    """Claims 19, 20: three steps, a file, three more: the bits of six in one go."""
    whole, _ = stepped(kind, 6, **options)
    linear, first = stepped(kind, 3, **options)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    second = kind([{"params": list(linear.parameters())}], lr=0.1, **options)
    load_optimizer(second, {"state": saved["state"]})  # what earlier versions saved
    torch.manual_seed(0)
    nn.Linear(300, 200), [torch.randn(7, 300) for _ in range(3)]  # as many numbers as were drawn
    for _ in range(3):
        linear(torch.randn(7, 300)).square().mean().backward()
        second.step()
        second.zero_grad()
    for one, other in zip(linear.parameters(), whole.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_state_of_other_shapes_is_refused() -> None:
    """Claim 20: torch's kernel would take it and read and write beyond the end of a tensor."""
    good = stepped()[1].state_dict()
    load_optimizer(stepped(steps=0)[1], copy.deepcopy(good))
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
        refused(bad)
    for i, name in ((0, "exp_avg"), (1, "step")):
        bad = copy.deepcopy(good)
        del bad["state"][i][name]
        refused(bad)
    one = {0: good["state"][0]}
    tensor = torch.zeros(2)
    wrong = [{"state": state} for state in ([], {}, one, tensor)]
    for bad in (*wrong, {}, [], tensor, None):
        refused(bad)
    refused({"state": {0: 1, 1: 2}})


def test_options_out_of_a_file_are_not_taken() -> None:
    """A rate or a sign that a file holds is not what the command line says."""
    saved = stepped()[1].state_dict()
    saved["param_groups"][0] |= {"maximize": True, "lr": "fast"}
    _, optimizer = stepped(steps=0)
    load_optimizer(optimizer, saved)
    assert optimizer.param_groups[0]["maximize"] is False
    assert optimizer.param_groups[0]["lr"] == 0.1
