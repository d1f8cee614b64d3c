"""Adapters: nothing at first, trained alone, merged exactly, saved with all that they need."""

import copy
import dataclasses
import hashlib
import math
from pathlib import Path

import pytest
import torch
from conftest import assert_exact, make_base, make_model
from torch import nn

from lora import ALL_TARGETS, adapter_state, add_lora, fingerprint, merge_lora
from model import GPT, GPTConfig
from runtime.files import save_checkpoint
from runtime.load import attach_adapter, load_checkpoint, read_checkpoint

ROWS = (257, 7, 258)  # two tokens that the base (257 rows) does not have, and one that it has
IDS = torch.tensor([[7, 257, 3, 258, 7, 9, 250, 257], [258, 258, 7, 1, 0, 44, 7, 5]])


def adapted(base: GPT | None = None, **settings) -> GPT:
    """A base with adapters that do something: B and the token rows are no longer zero."""
    model = add_lora(
        base or make_model(), **{"rank": 3, "alpha": 5.0, "token_ids": ROWS} | settings
    )
    for name, parameter in model.named_parameters():
        if name.endswith(("lora_b", "lora_rows")):
            nn.init.normal_(parameter, std=0.3)
    return model


def grown(**changes) -> GPT:
    model = make_model(**changes)
    model.grow_vocab(259)
    return model


def nudged() -> GPT:
    """The base, but for the last bit of one number."""
    model = make_model()
    bias = model.blocks[1].mlp.down.bias.data
    bias[-1] = torch.nextafter(bias[-1], bias[-1] + 1)
    return model


def save(model: GPT, path: Path, **more) -> None:
    save_checkpoint(path, adapter_state(model) | more)


def attach(model: GPT, path: Path) -> GPT:
    return attach_adapter(model, read_checkpoint(path))


def hashes(model: nn.Module) -> dict[str, str]:
    """Of each tensor that is not an adapter's, under the name that it has without adapters."""
    tensors = {
        name.replace(".base.", "."): t
        for name, t in model.state_dict().items()
        if ".lora_" not in name
    }
    return {name: hashlib.sha256(t.numpy().tobytes()).hexdigest() for name, t in tensors.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fresh_adapters_change_not_one_bit(dtype: torch.dtype) -> None:
    """Claim 16: at initialisation, token rows included, in training with dropout too."""
    for token_ids, base, ids in (
        (ROWS, grown(dtype=dtype), IDS),
        ((), make_model(dtype=dtype), IDS % 257),
    ):
        model = add_lora(make_model(dtype=dtype), dropout=0.5, token_ids=token_ids)
        assert torch.equal(model(ids), base(ids)) and torch.equal(model.train()(ids), base(ids))
        assert hashes(model) == hashes(base) and model.generate([[1, 2]], 9) == base.generate(
            [[1, 2]], 9
        )


@pytest.mark.parametrize("token_ids", [(), ROWS])
@pytest.mark.parametrize(
    "targets", [ALL_TARGETS, ("attn.qkv",), ("blocks.1.mlp.down", "attn.proj")]
)
def test_only_adapters_and_token_rows_learn(
    targets: tuple[str, ...], token_ids: tuple[int, ...]
) -> None:
    """Claim 16: the base is hash-identical after optimiser steps that are offered every parameter,
    weight decay on."""
    model = add_lora(make_model(), rank=2, targets=targets, token_ids=token_ids).train()
    before = hashes(model)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    for _ in range(3):
        model(IDS % model.config.n_vocab).log_softmax(-1)[..., 5].mean().backward()
        optimizer.step()
    layers = [
        name for name in before if name.endswith(tuple(f"{target}.weight" for target in targets))
    ]
    expected = {name.replace("weight", f"lora_{letter}") for name in layers for letter in "ab"}
    expected |= {"tok_emb.lora_rows"} if token_ids else set()
    parameters = dict(model.named_parameters())
    assert {name for name, p in parameters.items() if p.requires_grad} == expected
    assert {name for name, p in parameters.items() if p.grad is not None} == expected
    assert {name for name, p in parameters.items() if not torch.equal(p, start[name])} == expected
    assert hashes(model) == before


@pytest.mark.parametrize(("rslora", "scale"), [(False, 5 / 3), (True, 5 / math.sqrt(3))])
def test_gradients_are_those_worked_out_from_the_dense_weights(rslora: bool, scale: float) -> None:
    """Claims 13, 16: with W' = W + s BA and G the gradient of W', A's is s B'G and B's is s GA';
    that of a token's row is the gradient of the embedding's row, from both its uses. The batch is
    two conversations, with logits only where there is a label."""
    model = adapted(rslora=rslora)
    dense = merge_lora(copy.deepcopy(model))
    at, labels = torch.tensor([2, 3, 7, 9, 12]), torch.tensor([258, 9, 257, 7, 7])
    for network in (model, dense):
        hidden = network(IDS.flatten()[:13], [8, 5], head=False)
        logits = network.tok_emb.logits(hidden[at])
        nn.functional.cross_entropy(logits, labels, reduction="sum").backward()
    wanted = {name: p.grad for name, p in dense.named_parameters()}
    adapters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(adapters) == 2 * 4 * 2 + 1
    for layer in (name.removesuffix(".lora_a") for name in adapters if name.endswith("lora_a")):
        a, b = adapters[f"{layer}.lora_a"], adapters[f"{layer}.lora_b"]
        g = wanted[f"{layer}.weight"]
        assert_exact(a.grad, scale * b.T @ g)
        assert_exact(b.grad, scale * g @ a.T)
    assert_exact(adapters["tok_emb.lora_rows"].grad, wanted["tok_emb.weight"][list(ROWS)])


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("proj", "0.attn.proj 10.attn.proj"),
        ("xproj", "0.attn.xproj 10.attn.xproj"),
        ("mlp.up", "0.mlp.up 10.mlp.up"),
        ("up", "0.mlp.up 0.xmlp.up 10.mlp.up 10.xmlp.up"),
        ("0.attn.proj", "0.attn.proj"),
        ("blocks.10.mlp.up", "10.mlp.up"),
        ("mlp.up blocks.0.mlp.up mlp.up", "0.mlp.up 10.mlp.up"),
    ],
)
def test_targets_name_layers_whole_or_from_a_dot_on(targets: str, expected: str) -> None:
    """Claim 16 and issue 2: by explicit name; each layer gets one adapter, however often it is
    named."""
    tree = nn.Module()
    for name in (
        f"blocks.{i}.{end}"
        for i in (0, 10)
        for end in ("attn.proj", "attn.xproj", "mlp.up", "xmlp.up")
    ):
        module = tree
        for part in name.split(".")[:-1]:
            module = module._modules.setdefault(part, nn.Module())
        module.add_module(name.split(".")[-1], nn.Linear(4, 4))
    add_lora(tree, rank=2, targets=targets.split())
    found = [
        name.removesuffix(".lora_a")
        for name, _ in tree.named_parameters()
        if name.endswith("lora_a")
    ]
    assert found == [f"blocks.{name}" for name in expected.split()]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"targets": ["roj"]}, "'roj'.*attn.proj, attn.qkv, mlp.down, mlp.up"),
        (
            {"targets": ["attn.qkv", "mlp.gate"]},
            "'mlp.gate'.*attn.proj, attn.qkv, mlp.down, mlp.up",
        ),
        ({"targets": ["pos_emb"]}, "'pos_emb'"),  # there, but not a linear layer
        ({"targets": []}, "target"),
        ({"rank": 0}, "rank"),
        ({"alpha": math.nan}, "alpha"),
        ({"dropout": 1.0}, "dropout"),
        ({"token_ids": [3, -1]}, "token_ids"),
    ],
)
def test_what_cannot_be_added_raises_and_changes_nothing(settings: dict, reason: str) -> None:
    """Claim 16: no matching layer raises, and names those that exist; so do bad settings."""
    model = make_model()
    with pytest.raises(ValueError, match=reason):
        add_lora(model, **settings)
    assert hashes(model) == hashes(make_model()) and all(
        p.requires_grad for p in model.parameters()
    )


def test_adding_twice_raises_until_the_first_is_merged() -> None:
    """Claim 16: no adapters upon adapters."""
    model = adapted(targets=["attn.qkv"])
    names = list(model.state_dict())
    with pytest.raises(ValueError, match="adapters already"):
        add_lora(model, targets=["mlp.up"])
    assert list(model.state_dict()) == names
    assert torch.equal(merge_lora(model)(IDS), add_lora(model)(IDS))


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize(
    "targets", [*((target,) for target in ALL_TARGETS), ("blocks.1.attn.qkv",), ALL_TARGETS]
)
@pytest.mark.parametrize("token_ids", [(), ROWS])
def test_merging_equals_the_adapter(
    targets: tuple[str, ...], rslora: bool, token_ids: tuple[int, ...]
) -> None:
    """Claim 17: for every target, the fused qkv included, and token rows; what comes out is a plain
    GPT whose weights are W + s BA, and whose embedding is changed in those rows alone."""
    model = adapted(targets=targets, rslora=rslora, token_ids=token_ids)
    ids, prompts, tensors = IDS % model.config.n_vocab, [[1, 7, 2], [7]], model.state_dict()
    before, greedy = model(ids), model.generate(prompts, 8)
    expected = {
        name.replace(".base.", "."): t.clone()
        for name, t in tensors.items()
        if ".lora_" not in name
    }
    for layer in (name.removesuffix(".lora_a") for name in tensors if name.endswith("lora_a")):
        scale = 5 / math.sqrt(3) if rslora else 5 / 3
        expected[f"{layer}.weight"] += (
            scale * tensors[f"{layer}.lora_b"] @ tensors[f"{layer}.lora_a"]
        )
    for row, token_id in enumerate(token_ids):
        expected["tok_emb.weight"][token_id] += tensors["tok_emb.lora_rows"][row]
    merged = merge_lora(model)
    assert (
        merged is model
        and model.state_dict().keys() == make_model().state_dict().keys() == expected.keys()
    )
    for name, tensor in model.state_dict().items():
        assert_exact(tensor, expected[name])
    assert_exact(model(ids), before)
    assert model.generate(prompts, 8) == greedy and all(p.requires_grad for p in model.parameters())


def test_a_token_given_twice_is_one_row() -> None:
    """Claim 17: merging equals the adapter."""
    model = adapted(token_ids=(257, 257))
    assert_exact(merge_lora(copy.deepcopy(model))(IDS % 258), model(IDS % 258))


def test_evaluation_and_forward_write_no_weight() -> None:
    """Claim 17: `eval()` merges nothing, in either direction."""
    model = adapted(dropout=0.5)
    before = {name: (t.clone(), t.data_ptr(), t._version) for name, t in model.state_dict().items()}
    for training in (False, True, False):
        model.train(training)(IDS)
        model.generate([[1, 257]], 3)
        for name, tensor in model.state_dict().items():
            assert (
                torch.equal(tensor, before[name][0])
                and (tensor.data_ptr(), tensor._version) == before[name][1:]
            )


def test_dropout_in_training_only(tmp_path: Path) -> None:
    """Claims 16, 17: adapters put on a model in evaluation mode, from code or from a file, are in
    that mode as well."""
    model = adapted(dropout=0.5)
    expected = merge_lora(copy.deepcopy(model))(IDS)
    save(model, tmp_path / "adapter.pt")
    fresh, loaded = model(IDS), attach(make_model(), tmp_path / "adapter.pt")(IDS)
    assert not torch.equal(model.train()(IDS), model(IDS))
    for logits in (model.eval()(IDS), fresh, loaded):
        assert_exact(logits, expected)


# Files


def test_the_file_holds_all_that_the_adapter_needs_and_nothing_of_the_base(tmp_path: Path) -> None:
    """Claim 18: rank, alpha, targets, token rows and the fingerprint of the base as it was before
    its vocabulary grew, as plain values; put on the base, bit-identical, also from the checkpoint
    of a run, which holds more."""
    settings = dict(
        rank=3, alpha=5.0, dropout=0.25, targets=("attn.qkv", "mlp.up"), token_ids=ROWS, rslora=True
    )
    model, path = adapted(**settings).eval(), tmp_path / "adapter.pt"
    save(model, path)
    saved = torch.load(path, weights_only=True)
    assert saved.keys() == {"kind", "lora", "adapter"}
    assert saved["lora"] == settings | {"fingerprint": fingerprint(make_model())}
    ends = [f"{target}.lora_{letter}" for target in settings["targets"] for letter in "ab"]
    names = {f"blocks.{i}.{end}" for i in (0, 1) for end in ends}
    assert saved["adapter"].keys() == names | {"tok_emb.lora_rows"}
    assert saved["adapter"]["tok_emb.lora_rows"].shape == (3, 32)
    checkpoint = tmp_path / "checkpoint.pt"
    save(model, checkpoint, step=3, template="chatml")
    for loaded in (attach(make_model(), file).eval() for file in (path, checkpoint)):
        assert loaded.adapter == model.adapter and loaded.config == model.config
        assert torch.equal(loaded(IDS), model(IDS))
        trained = {name for name, p in loaded.named_parameters() if p.requires_grad}
        assert trained == saved["adapter"].keys()


@pytest.mark.parametrize(
    "wrong", [nudged, grown, adapted, lambda: make_model(1), lambda: make_model().float()]
)
def test_a_wrong_base_is_refused_and_stays_as_it_was(wrong, tmp_path: Path) -> None:
    """Claim 18: be it wrong by one bit, by its precision, by rows of its vocabulary, or by adapters
    that it has."""
    save(adapted(), tmp_path / "adapter.pt")
    model = wrong()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(
        ValueError, match="the adapter was trained on another base|adapters already"
    ):
        attach(model, tmp_path / "adapter.pt")
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def run_of(base: Path) -> tuple[GPT, dict]:
    """A model with adapters on a base's file, and what a run's checkpoint of it holds."""
    model, tokenizer, meta = load_checkpoint(base)
    adapted(merge_lora(model), token_ids=(7,), dropout=0.25)
    run = {"base": {"path": str(base)}, "tokenizer": tokenizer.state(), "template": None}
    run |= {"config": dataclasses.asdict(model.config), "stop": meta["stop"], "step": 3}
    return model, run | adapter_state(model)


def test_a_runs_model_is_put_together_from_its_base_and_its_adapter(
    base: Path, tmp_path: Path
) -> None:
    """Claims 18, 20: its adapters stay apart, and those of its base, if that is such a run itself,
    are merged first; a base that was written over is refused."""
    for name in ("first.pt", "second.pt"):
        model, run = run_of(base)
        base = tmp_path / name
        save_checkpoint(base, run)
        loaded, tokenizer, meta = load_checkpoint(base)
        assert torch.equal(loaded(IDS % 257), model(IDS % 257)) and loaded.adapter == model.adapter
        assert tokenizer.n_vocab == 257 and meta["step"] == 3 and "adapter" not in meta
    make_base(tmp_path / "base.pt", seed=1)
    with pytest.raises(ValueError, match="second.pt.*first.pt.*trained on another base"):
        load_checkpoint(base)


@pytest.mark.parametrize(
    "kind",
    "whole, full tuning, list, tensor, empty, text, cut, flipped, unchecked, lacking, too much, "
    "no settings, no base, rank, ids".split(", "),
)
def test_a_file_that_is_no_whole_adapter_is_refused(kind: str, base: Path, tmp_path: Path) -> None:
    """Claim 18 and issue 2: whatever it is, the error is a ValueError that names the file."""
    path, (_, run) = tmp_path / "other.pt", run_of(base)
    content = {"full tuning": {"model": {}}, "list": [1], "tensor": torch.zeros(3)}.get(kind, run)
    if kind == "lacking":
        run["adapter"].popitem()
    elif kind == "too much":
        run["adapter"]["blocks.7.mlp.up.lora_a"] = torch.zeros(3, 32)
    elif kind == "no settings":
        del run["lora"]
    elif kind == "no base":
        del run["base"]
    elif kind == "rank":
        run["lora"]["rank"] = 10**9
    elif kind == "ids":
        run["lora"]["token_ids"] = [10**9]
    save_checkpoint(path, content)
    if kind == "unchecked":
        torch.save(content, path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= kind == "flipped"
    damaged = {"empty": b"", "text": b"plain text, no checkpoint\n", "cut": data[:-500]}
    path.write_bytes(damaged.get(kind, data))
    if kind == "whole":
        load_checkpoint(path)
        return
    with pytest.raises(ValueError, match="other.pt"):
        load_checkpoint(path)


def fit(model: GPT, ids: list[int], answer: list[int], n_steps: int) -> None:
    ids, labels = torch.tensor(ids[:-1]), torch.tensor(answer)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=0.01)
    for _ in range(n_steps):
        optimizer.zero_grad()
        logits = model(ids, [len(ids)])[-len(answer) :]
        nn.functional.cross_entropy(logits, labels).backward()
        optimizer.step()


def test_a_stop_token_that_the_base_never_saw_is_learned(tmp_path: Path) -> None:
    """Claim 18: from near nothing to above 0.9, the base untouched, so through adapters and rows
    alone. (Padded rows start at the same mean: adapters alone could give a new token no more than
    its share among them, 1/63.)"""
    torch.manual_seed(0)
    text = list(b"3 apples and 2 plums, 5 plums and 2 apples, 4 kiwis.")
    base = GPT(GPTConfig(257, context_length=64, n_layer=2, n_head=2, n_embd=32))
    fit(base, text, text[1:], 60)
    turn, stop = 257, 258
    prompt, answer = [turn, *b"2 plums", turn], [*b"2 plums", stop]
    model = add_lora(copy.deepcopy(base), rank=4, token_ids=[turn, stop])
    before, ids = hashes(model), torch.tensor([prompt + answer[:-1]])
    assert model(ids)[0, -1].softmax(-1)[stop] < 0.001
    fit(model, prompt + answer, answer, 40)
    assert hashes(model) == before
    save(model, tmp_path / "adapter.pt")
    loaded = attach(copy.deepcopy(base), tmp_path / "adapter.pt")
    for network in (model, loaded, merge_lora(copy.deepcopy(model))):
        assert network(ids)[0, -1].softmax(-1)[stop] > 0.9
        assert network.generate([prompt], 20, stop=[stop]) == [answer[:-1]]
