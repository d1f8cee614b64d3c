"""experiments/peft.py: five ways to train few parameters. Each starts as the base, trains nothing
else, saves nothing else, goes on exactly, and merges exactly or says that it cannot."""

import copy
from pathlib import Path
from unittest import mock

import pytest
import torch
from conftest import FAMILIES, assert_exact, conversation, make_base, make_model, write_jsonl

import chat_template
import lora
import sft
from experiments import peft
from runtime import load, session
from runtime.load import load_checkpoint

IDS = torch.randint(0, 257, (3, 20), generator=torch.Generator().manual_seed(0))
SIZES = {"bitfit": 0, "bottleneck": 3, "prompt": 5, "prefix": 5, "dora": 2}
NEW = (257, 258)  # a template's tokens
PROMPT = torch.arange(259, 264)
IN_BLOCKS = {
    "bitfit": ["attn_norm.bias", "attn.qkv.bias", "attn.proj.bias", "mlp_norm.bias"]
    + ["mlp.up.bias", "mlp.down.bias"],
    "bottleneck": [
        f"{layer}.{part}.{kind}"
        for layer in ("attn.proj", "mlp.down")
        for part in ("down", "up")
        for kind in ("weight", "bias")
    ],
    "prompt": [],
    "prefix": ["attn.qkv.prefix"],
    "dora": [
        f"{layer}.lora_{part}" for layer in lora.ALL_TARGETS for part in ("a", "b", "magnitude")
    ],
}
START = sft.start_model
OUTSIDE = {"bitfit": {"final_norm.bias"}, "prompt": {"tok_emb.prompt"}}


@pytest.fixture(autouse=True)
def known():
    """Kinds and templates are known here, and not to the tests after these."""
    with mock.patch.dict(chat_template.TEMPLATES), mock.patch.dict(load.ADAPTERS):
        with mock.patch.multiple(sft, Config=sft.Config, adapt=sft.adapt, start_model=START):
            with mock.patch.object(session, "COMMAND", session.COMMAND):
                peft.register()
                yield


def adapted(method: str, noise: float = 0.0, **changes):
    """The small GPT with a method's parameters, moved by noise."""
    has_prompt = method in ("prompt", "prefix")
    token_ids = (*NEW, *PROMPT.tolist()) if has_prompt else NEW
    model = peft.add_adapter(make_model(**changes), method, SIZES[method], token_ids)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += noise * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("method", peft.METHODS)
@pytest.mark.parametrize("family", ["gpt2", "qwen2"])
def test_each_starts_as_the_base_and_trains_its_own(method: str, family: str):
    """Claim 16: bit for bit on text without the prompt's tokens; gradients reach the method's
    parameters and the new tokens' rows, and nothing of the base."""
    switches = FAMILIES[family]
    if (method, family) == ("bitfit", "qwen2"):
        switches = switches | {"bias": "none"}
        with pytest.raises(ValueError, match="BitFit trains biases, and this base has none"):
            adapted(method, **switches)
        return
    model = adapted(method, **switches)
    assert torch.equal(model(IDS)[..., :257], make_model(**switches)(IDS))
    ids = torch.cat([PROMPT.expand(3, 5), IDS], 1) if model.adapter.size == 5 else IDS
    labels = torch.randint(0, 259, ids.shape)
    sft.nll_sum(model(ids).flatten(0, 1), labels.flatten()).backward()
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    wanted = {f"blocks.{i}.{name}" for i in (0, 1) for name in IN_BLOCKS[method]}
    assert reached == wanted | OUTSIDE.get(method, set()) | {"tok_emb.lora_rows"}
    assert lora.trained_state(model).keys() == reached


@pytest.mark.parametrize("method", ["bitfit", "dora"])
def test_what_can_be_merged_computes_the_same(method: str):
    """Claim 17."""
    model = adapted(method, noise=0.1)
    before = model(IDS)
    merged = lora.merge_lora(model)
    assert not merged.adapter and merged.state_dict().keys() == make_model().state_dict().keys()
    assert_exact(merged(IDS), before)


@pytest.mark.parametrize("method", ["bottleneck", "prompt", "prefix"])
def test_what_cannot_be_merged_says_so(method: str):
    """Claim 26: no export without it."""
    with pytest.raises(ValueError, match="cannot be merged into"):
        lora.merge_lora(adapted(method))


def test_dora_is_a_direction_of_a_trained_length():
    """Each row of W + B A, divided by its length, times the magnitude."""
    model = adapted("dora", noise=0.1)
    layer, x = model.blocks[1].mlp.up, torch.randn(7, 32, dtype=torch.float64)
    moved = layer.base.weight + 16 / 2 * layer.lora_b @ layer.lora_a
    rows = [m * row / (row @ row).sqrt() for m, row in zip(layer.lora_magnitude, moved)]
    assert_exact(layer(x), x @ torch.stack(rows).T + layer.base.bias)
    assert_exact(layer.weight().norm(dim=1), layer.lora_magnitude.abs())


def test_a_prompt_is_read_and_never_said():
    """As the base with these rows in its embedding; their logits are -inf."""
    model, base = adapted("prompt", noise=0.1), make_model()
    base.grow_vocab(264)
    base.tok_emb.weight.data[PROMPT] = model.tok_emb.prompt.data
    base.tok_emb.weight.data[list(NEW)] += model.tok_emb.lora_rows.data
    ids = torch.cat([PROMPT.expand(3, 5), IDS], 1)
    logits = model(ids)
    assert logits[..., PROMPT].isneginf().all()
    others = [*range(259), *range(264, 320)]
    assert_exact(logits[..., others], base(ids)[..., others])


def test_a_prefix_is_seen_by_every_token():
    """Keys and values of each layer: attention over (prefix, tokens before), computed slowly."""
    model, seen = adapted("prefix", noise=0.1), []
    attention = model.blocks[1].attn
    attention.qkv.base.register_forward_hook(lambda module, x, y: seen.append(y.clone()))
    attention.proj.register_forward_hook(lambda module, x, y: seen.append(x[0]))
    model(torch.cat([PROMPT, IDS[0]])[None])
    qkv, attended = seen
    query, key, value = qkv.view(-1, 3, 4, 8).unbind(1)  # (25, H, D)
    prefix = attention.qkv.prefix.view(5, 2, 4, 8)  # (L, 2, H, D)
    key, value = (torch.cat([prefix[:, i], x[5:]]) for i, x in enumerate((key, value)))
    for at in range(5, 25):
        scores = torch.einsum("hd,shd->hs", query[at], key[: at + 1]) / 8**0.5
        wanted = torch.einsum("hs,shd->hd", scores.softmax(-1), value[: at + 1])
        assert_exact(attended[at], wanted.flatten())


def run(folder: Path, *flags: str) -> int:
    data = write_jsonl(
        folder / "data.jsonl", [conversation(f"q{i}", f"a{i % 7}") for i in range(40)]
    )
    base = make_base(folder / "base.pt")
    always = f"--data {data} --init {base} --lr 0.01 --steps 6 --save-every 3 --batch-tokens 150"
    return peft.main([*always.split(), *flags])


@pytest.mark.parametrize("method", peft.METHODS)
def test_a_run_is_saved_resumed_and_loaded(method: str, tmp_path: Path, capsys):
    """Claims 18 and 19: the file holds the trained tensors and none of the base's; a run that was
    stopped ends in the same bits; whoever loads it computes what it computed."""
    size = ["--size", str(SIZES[method])] if SIZES[method] else []
    out = tmp_path / "run"
    assert run(tmp_path, "--method", method, *size, "--out", str(out)) == 0
    first, last = (out / f"checkpoint-000000{n}.pt" for n in (3, 6))
    whole = torch.load(last, weights_only=True)
    wanted = {f"blocks.{i}.{name}" for i in (0, 1) for name in IN_BLOCKS[method]}
    wanted |= OUTSIDE.get(method, set()) | {"tok_emb.lora_rows"}
    assert whole["adapter"].keys() == wanted and "model" not in whole
    before = torch.load(first, weights_only=True)["adapter"]
    assert all(not torch.equal(before[name], whole["adapter"][name]) for name in wanted)
    model, tokenizer, meta = load_checkpoint(out)
    answers = model.generate([[1, 2, 3]], 8)
    last.unlink()
    assert peft.main(["--resume", str(out)]) == 0
    again = torch.load(last, weights_only=True)
    assert all(torch.equal(again["adapter"][name], whole["adapter"][name]) for name in wanted)
    for i, state in whole["optimizer"]["state"].items():
        for name, value in state.items():
            assert torch.equal(again["optimizer"]["state"][i][name], value)
    assert load_checkpoint(out)[0].generate([[1, 2, 3]], 8) == answers
    assert "next      python chat.py" in capsys.readouterr().out
    load.ADAPTERS.clear()
    with pytest.raises(ValueError, match=f"an adapter of the kind '{method}'; known are"):
        load_checkpoint(out)


@pytest.mark.parametrize(
    "flags, reason",
    [
        ("--lora-rank 2", "--lora-rank is for sft.py; here --method and --size say what is"),
        ("--method bitfit --size 3", "bitfit has no --size: it trains the biases that are"),
        ("--method prompt --size 7", "a prompt has --size (5, 20, 50), and no --train-on all"),
        ("--method prefix --train-on all", "a prefix has --size (5, 20, 50), and no --train-on"),
    ],
)
def test_errors(flags: str, reason: str, tmp_path: Path, capsys):
    assert run(tmp_path, *flags.split(), "--out", str(tmp_path / "run")) == 2
    assert f"error: {reason}" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_size_that_no_tensor_has_is_refused(tmp_path: Path):
    """Before it takes memory."""
    out = tmp_path / "run"
    assert run(tmp_path, "--method", "bottleneck", "--size", "3", "--out", str(out)) == 0
    saved = load.read_checkpoint(out)
    for size in (4, 10**12):
        spoiled = copy.deepcopy(saved)
        spoiled["bottleneck"]["size"] = size
        with pytest.raises(ValueError, match="does not fit its own configuration"):
            load.restore(spoiled)
