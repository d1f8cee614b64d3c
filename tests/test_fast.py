"""The fast forms against the plain ones: attention in padded rectangles, products by oneDNN, and
compiled blocks compute the same, in a model whose weights stay what they are."""

import copy
import functools
import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import CONFIG, FAMILIES, assert_exact, make_model
from torch import Tensor, nn

from lora import add_lora, merge_lora
from model import GPT, CausalSelfAttention, TokenEmbedding
from runtime import fast
from runtime.fast import Spans, attend_padded, speed_up

FORMS = ("padded", "onednn", "compiled")
needs_onednn = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this torch has no oneDNN"
)


@pytest.fixture
def compiler(monkeypatch) -> Iterator[None]:
    """torch.compile up to its graphs: to translate them to C++ would take half a minute."""
    import torch._dynamo

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture
def put_in(monkeypatch, request):
    """Puts a fast form in by its name, whatever the processor."""

    def put_in(form: str, model: GPT) -> GPT:
        monkeypatch.setattr(fast, "is_slow_with_mkl", lambda: form == "onednn")
        if form == "compiled":
            request.getfixturevalue("compiler")
        # A device that is not called "cpu" gets what a GPU gets.
        return speed_up(model, "cpu:0" if form == "padded" else "cpu", form == "compiled")

    return put_in


def lists_of_lengths(seed: int, number: int, most: int, longest: int) -> list[list[int]]:
    """In any order, and sorted as in training; often of one conversation, or of single tokens."""
    draw, lists = random.Random(seed), [[1], [longest], [1, 1], [1, longest]]
    while len(lists) < number:
        # Long ones are rare, as in real data: else few batches need more than one rectangle.
        lengths = [draw.randint(1, draw.randint(1, longest)) for _ in range(draw.randint(1, most))]
        lists.append(sorted(lengths) if len(lists) % 2 else lengths)
    return lists


def batch_of(lengths: list[int], seed: int = 0) -> Tensor:
    return torch.randint(257, (sum(lengths),), generator=torch.Generator().manual_seed(seed))


def learn(model: GPT, ids: Tensor, lengths: list[int]) -> dict[str, Tensor]:
    """Logits, and the gradients of all that is trained."""
    logits = model(ids, lengths)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    nll = F.cross_entropy(logits, ids.roll(-1) % 250, reduction="sum")
    return {"logits": logits.detach()} | dict(
        zip(trained, torch.autograd.grad(nll, [*trained.values()]))
    )


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """To the last digit of what was computed in."""
    assert list(found) == list(expected)
    for name, value in expected.items():
        if value.dtype == torch.float64:
            assert_exact(found[name], value)
        else:
            assert (found[name] - value).norm() <= 1e-5 * value.norm(), name


# Attention in padded rectangles


def test_rectangles_hold_all_tokens_and_not_too_much_padding() -> None:
    """Claim 14: each token once, in its order, at the place of its conversation; never more places
    than twice the tokens; and of sorted conversations few rectangles."""
    for lengths in [*lists_of_lengths(0, 60, 40, 60), [60, 1, 60, 1], [1] * 30 + [60]]:
        spans, left = Spans(lengths, "cpu"), list(lengths)
        for n_tokens, (B, T), at in zip(spans.sizes, spans.shapes, spans.places, strict=True):
            rows, left = left[:B], left[B:]
            assert n_tokens == sum(rows) and T == max(rows) and B * T <= 2 * n_tokens
            assert at.tolist() == [b * T + t for b, row in enumerate(rows) for t in range(row)]
        assert left == []
        assert lengths != sorted(lengths) or len(spans.sizes) <= 6
    assert len(Spans([1] * 30 + [60], "cpu").sizes) == 2
    assert len(Spans([60] * 30, "cpu").sizes) == 1


def attend_both(lengths: list[int], dtype: torch.dtype) -> list[list[Tensor]]:
    """What the loop and the padded form give: values, and the gradients of q, k and v."""
    attention = CausalSelfAttention(CONFIG)
    generator = torch.Generator().manual_seed(sum(lengths))
    shape, results = (4, sum(lengths), 4, 8), []
    *qkv, toward = torch.randn(shape, generator=generator, dtype=dtype)
    for attend, spans in (
        (attention.attend, lengths),
        (functools.partial(attend_padded, attention), Spans(lengths, "cpu")),
    ):
        leaves = [part.clone().requires_grad_() for part in qkv]
        y = attend(*leaves, spans)
        results.append([y.detach(), *torch.autograd.grad(y, leaves, toward)])
    return results


def test_padded_attention_is_the_loop() -> None:
    """Claims 5, 14: values and gradients, in one rectangle or several."""
    n_rectangles = set()
    for lengths in lists_of_lengths(1, 80, 12, 50):
        for plain, padded in zip(*attend_both(lengths, torch.float64)):
            assert_exact(padded, plain)
        n_rectangles.add(len(Spans(lengths, "cpu").sizes))
    assert {1, 2, 3} <= n_rectangles


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_stands_in_padded_rectangles_changes_nothing(dtype, monkeypatch) -> None:
    """Claim 5: not one bit of value or gradient."""
    n_filled = 0

    def fill(tensor: Tensor, *shape: int, value: float) -> Tensor:
        nonlocal n_filled
        n_filled += 1
        return tensor.new_empty(shape).normal_(value, 10.0)

    for lengths in lists_of_lengths(2, 12, 12, 50):
        expected = attend_both(lengths, dtype)[1]
        for value in (-7.0, 1e3):
            with monkeypatch.context() as patch:
                patch.setattr(Tensor, "new_zeros", functools.partialmethod(fill, value=value))
                found = attend_both(lengths, dtype)[1]
            assert all(torch.equal(one, other) for one, other in zip(found, expected))
    assert n_filled >= 3 * 2 * 12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_conversations_in_one_rectangle_do_not_see_each_other(dtype, put_in) -> None:
    """Claim 14: perturbing one leaves the others' logits bit-identical, and its own before it."""
    model, lengths = put_in("padded", make_model(dtype=dtype)), [1, 7, 22, 40, 63, 64]
    assert model.spans(lengths).shapes[-1] == (4, 64)
    ids = batch_of(lengths)
    before = model(ids, lengths)
    for b, length in enumerate(lengths):
        start, changed = sum(lengths[:b]), torch.zeros(len(ids), dtype=torch.bool)
        changed[start + length // 2 : start + length] = True
        after = model(torch.where(changed, (ids + 101) % 257, ids), lengths)
        assert torch.equal(after[~changed], before[~changed])
        assert not torch.isclose(after[changed], before[changed]).all(-1).any()


def test_padded_attention_drops_in_training_only(put_in) -> None:
    """Errors, too, are those of the plain form."""
    ids, plain, model = batch_of([9, 20]), make_model(), put_in("padded", make_model())
    model.blocks[0].attn.dropout = 0.5
    assert_exact(model(ids, [9, 20]), plain(ids, [9, 20]))
    assert not torch.isclose(model.train()(ids, [9, 20]), plain(ids, [9, 20])).all(-1)[1:].any()
    with pytest.raises(ValueError, match="257 tokens.*context of 256"):
        model(batch_of([257, 3]), [257, 3])
    for lengths in ([9, 19], [9, 21], [29, 1], [1], []):
        with pytest.raises((RuntimeError, ValueError)):
            model(ids, lengths)


# Products by oneDNN


def by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return fast.linear(SimpleNamespace(weight=weight, bias=bias), x)


@needs_onednn
@pytest.mark.parametrize("n", [0, 1, 31, 32, 33, 64, 75])
@pytest.mark.parametrize("has_bias", [False, True])
def test_products_by_onednn_are_products(n: int, has_bias: bool, monkeypatch) -> None:
    """For any number of rows: value and gradients against those of F.linear in float64, which goes
    another way; with few kernels; and also where rows or gradients do not lie side by side."""
    sizes, genuine = set(), fast.multiply
    monkeypatch.setattr(fast, "multiply", lambda x, *rest: sizes.add(len(x)) or genuine(x, *rest))
    generator = torch.Generator().manual_seed(n)
    shapes = ((n, 24), (40, 24), (40,))[: 2 + has_bias]
    tensors = [torch.randn(shape, generator=generator) for shape in shapes]
    tensors.append(torch.randn(24, n, generator=generator).T)
    toward = torch.randn(n, 40, generator=generator)
    for frozen in (None, 0, 1, 2):
        for x in (tensors[0], tensors[-1]):
            for direction in (toward, toward[:, :1].expand(n, 40)):
                results = []
                for linear, dtype in ((F.linear, torch.float64), (by_onednn, torch.float32)):
                    leaves = [
                        tensor.to(dtype, copy=True).requires_grad_(i != frozen)
                        for i, tensor in enumerate([x, *tensors[1:-1]])
                    ]
                    sizes.clear()
                    y = linear(*leaves)
                    trained = [leaf for leaf in leaves if leaf.requires_grad]
                    results.append([y, *torch.autograd.grad(y, trained, direction.to(dtype))])
                    assert bool(sizes) == (dtype == torch.float32 and n > 0)
                for found, wanted in zip(results[1], results[0], strict=True):
                    torch.testing.assert_close(found, wanted.float())
                assert all(size < 32 or size % 32 == 0 or size in (24, 40) for size in sizes)


@needs_onednn
def test_onednn_multiplies_float32_alone(monkeypatch) -> None:
    """Other number formats, and autocast, get F.linear's bits."""
    monkeypatch.setattr(fast, "multiply", lambda *_: pytest.fail("oneDNN was asked"))
    for dtype in (torch.float64, torch.bfloat16):
        x, weight, bias = torch.randn(33, 24), torch.randn(40, 24), torch.randn(40)
        x, weight, bias = (tensor.to(dtype) for tensor in (x, weight, bias))
        assert torch.equal(by_onednn(x, weight, bias), F.linear(x, weight, bias))
    with torch.autocast("cpu", torch.bfloat16):
        x, weight = torch.randn(33, 24), torch.randn(40, 24)
        assert torch.equal(by_onednn(x, weight), F.linear(x, weight))


@needs_onednn
@pytest.mark.parametrize("n", [0, 1, 16, 33])
@pytest.mark.parametrize("autocast", [False, True])
def test_logits_of_a_few_rows(n: int, autocast: bool) -> None:
    """Claim 21: however few rows there are, their logits are the products with the tokens'
    vectors, plain or by oneDNN."""
    head = TokenEmbedding(300, 64)
    torch.nn.init.normal_(head.weight)
    x = torch.randn(n, 64)
    fast_head = copy.deepcopy(head)
    fast_head.logits = functools.partial(fast.linear, head)
    for form in (head, fast_head):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = form.logits(x)
        enough = 0.2 if autocast else 1e-4
        assert logits.shape == (n, 300)
        assert torch.allclose(logits.float(), x @ head.weight.T, atol=enough)


def test_the_choice_of_onednn_is_the_processors(monkeypatch) -> None:
    """Models stay plain where MKL is as fast, and where blocks are compiled or on a GPU."""

    def raise_error(path: Path) -> str:
        raise FileNotFoundError(path)

    has_operator = hasattr(torch.ops.mkldnn, "_linear_pointwise")
    for read, is_slow in (
        (lambda path: "vendor_id\t: AuthenticAMD\n", has_operator),
        (lambda path: "vendor_id\t: GenuineIntel\n", False),
        (raise_error, False),
    ):
        monkeypatch.setattr(Path, "read_text", read)
        assert fast.is_slow_with_mkl.__wrapped__() == is_slow
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(torch.compiler, "disable", lambda function: function)
    for is_slow, device, compile_blocks in (
        (False, "cpu", False),
        (True, "cpu", True),
        (True, "cpu:0", False),
        (True, "cpu", False),
    ):
        monkeypatch.setattr(fast, "is_slow_with_mkl", lambda is_slow=is_slow: is_slow)
        model = speed_up(make_model(), device, compile_blocks)
        by_onednn = is_slow and device == "cpu" and not compile_blocks
        linears = [module for module in model.modules() if type(module) is nn.Linear]
        assert linears and all(("forward" in vars(each)) == by_onednn for each in linears)
        assert ("logits" in vars(model.tok_emb)) == by_onednn


# A model with fast forms


def dtype_of(form: str) -> torch.dtype:
    return torch.float32 if form == "onednn" else torch.float64


@needs_onednn
@pytest.mark.parametrize("form", FORMS)
def test_a_model_stays_what_it_is(form: str, put_in) -> None:
    """Names, parameters, what is trained and the mode stay; logits and gradients are those of the
    plain model; so is what it generates; and a copy is another model."""
    plain, model = make_model(dtype=dtype_of(form)), make_model(dtype=dtype_of(form))
    for network in (plain, model):
        network.blocks[0].mlp.requires_grad_(False)
    model.blocks[1].attn.train()
    modes = {name: module.training for name, module in model.named_modules()}
    before = {name: id(parameter) for name, parameter in model.named_parameters()}
    trained = [parameter.requires_grad for parameter in model.parameters()]
    names = list(model.state_dict())
    assert put_in(form, model) is model
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == before
    assert [parameter.requires_grad for parameter in model.parameters()] == trained
    assert list(model.state_dict()) == names == list(plain.state_dict())
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert not any(module.training for module in model.eval().modules())
    assert all(module.training for module in model.train().modules())
    lengths = [3, 17, 1, 40, 40, 2]
    ids = batch_of(lengths)
    expected = learn(plain, ids, lengths)
    assert_same(learn(model.eval(), ids, lengths), expected)
    assert_same({"": model(ids.view(1, -1))}, {"": plain(ids.view(1, -1))})
    prompts = [[1, 2, 3], [7], [4] * 9]
    assert model.generate(prompts, 9, stop=[5]) == plain.generate(prompts, 9, stop=[5])

    other = copy.deepcopy(model)
    model.train()
    assert not set(map(id, other.parameters())) & set(before.values())
    for parameter in model.parameters():
        parameter.data.fill_(1.0)
    for block in model.blocks:
        block.attn.heads, block.attn.dropout = (1, 1, 1), 0.5
    assert_same(learn(other, ids, lengths), expected)
    other.load_state_dict(plain.state_dict())
    model.load_state_dict(plain.state_dict())
    for block in model.blocks:
        block.attn.heads, block.attn.dropout = (CONFIG.n_head,) * 3, 0.0
    assert_same(learn(model, ids, lengths), expected)


@needs_onednn
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("first", ["speed_up", "add_lora"])
def test_adapters_go_on_and_off(first: str, form: str, put_in) -> None:
    """Claims 16, 17: in whatever order the fast forms came in, also twice: adapters alone are
    trained, with the plain model's gradients; and merged they are its weights."""

    def adapted(speed) -> GPT:
        model = make_model(dtype=dtype_of(form))
        if first == "speed_up":
            speed(model)
        torch.manual_seed(1)
        add_lora(model, rank=3, token_ids=(257, 7))
        for name, parameter in model.named_parameters():
            if name.endswith(("lora_b", "lora_rows")):
                nn.init.normal_(parameter, std=0.3)
        return speed(model) if first == "add_lora" else speed(speed(model))

    lengths = [1, 8, 21, 60]
    ids = batch_of(lengths)
    plain, model = adapted(lambda model: model), adapted(lambda model: put_in(form, model))
    assert list(model.state_dict()) == list(plain.state_dict())
    expected = learn(plain, ids, lengths)
    assert len(expected) == 1 + 2 * 8 + 1 and all(".lora_" in name for name in [*expected][1:])
    assert_same(learn(model, ids, lengths), expected)
    assert_same(learn(copy.deepcopy(model), ids, lengths), expected)
    merge_lora(plain)
    assert merge_lora(model) is model
    assert_same(dict(model.state_dict()), dict(plain.state_dict()))
    assert_same(learn(model, ids, lengths), learn(plain, ids, lengths))


@needs_onednn
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "gpt2"])
def test_other_families(family: str, form: str, put_in) -> None:
    """Claim 27: with shared keys and values, rotations, gates and without biases, too."""
    lengths = [1, 8, 21, 60]
    ids, changes = batch_of(lengths), {"dtype": dtype_of(form), **FAMILIES[family]}
    plain, model = make_model(**changes), put_in(form, make_model(**changes))
    assert_same(learn(model, ids, lengths), learn(plain, ids, lengths))
    prompts = [[1, 2, 3], [7], [4] * 9]
    assert model.generate(prompts, 9) == plain.generate(prompts, 9)


# Compiled blocks


def test_a_few_graphs_for_all_lists_of_lengths(compiler) -> None:
    """`--compile`: generation before the first step makes none, whatever its prompts; all training
    batches share a few, all validation batches a few more, for all layers together; and what they
    compute is the plain model's."""
    import torch._dynamo

    def n_graphs() -> int:
        return torch._dynamo.utils.counters["stats"]["unique_graphs"]

    plain, model = (make_model(n_layer=3, n_embd=16) for _ in range(2))
    speed_up(model, "cpu", compile_blocks=True)
    prompts = [[1, 2, 3], [7], [4] * 9, [5] * 30]
    for some in (prompts, prompts[:1], prompts[1:]):
        assert model.generate(some, 9, stop=[5]) == plain.generate(some, 9, stop=[5])
    assert n_graphs() == 0
    lists = [lengths for lengths in lists_of_lengths(3, 24, 12, 50) if sum(lengths) > 1]
    assert {1, 2, 3} <= {len(Spans(lengths, "cpu").sizes) for lengths in lists}
    batches = [(batch_of(lengths), lengths) for lengths in lists]

    def train() -> None:
        model.train()
        for ids, lengths in batches:
            assert_same(learn(model, ids, lengths), learn(plain, ids, lengths))

    @torch.no_grad()
    def validate() -> None:
        model.eval()
        for ids, lengths in batches:
            assert_exact(model(ids, lengths), plain(ids, lengths))

    train()
    assert 1 <= n_graphs() <= 4
    validate()
    assert n_graphs() <= 8
    with torch._dynamo.config.patch(error_on_recompile=True):
        model.generate(prompts, 9, temperature=1.0)
        train()
        validate()
    # A process without conversations computes one token: a size of 1 is a graph of its own.
    ids = torch.tensor([0])
    assert_same(learn(model.train(), ids, [1]), learn(plain, ids, [1]))
    assert n_graphs() <= 12 and not torch._dynamo.utils.counters["recompile_limit"]


# Activations computed twice


@pytest.mark.parametrize(
    "form, family", [*((form, "gpt2") for form in ("plain", *FORMS)), ("plain", "qwen3")]
)
def test_activation_checkpointing_changes_memory_alone(form: str, family: str, put_in) -> None:
    """Claim 14, and dropout draws the same twice: the same bits as without, of adapters, too; what
    a block has computed is not kept; and it is plain in generation, and in a copy."""
    kept: list[int] = []
    results, models = [], []
    for checkpointing in (False, True):
        model = make_model(dtype=dtype_of(form), dropout=0.3, **FAMILIES[family])
        add_lora(model, rank=2, dropout=0.2)
        model = model if form == "plain" else put_in(form, model)
        if checkpointing:
            speed_up(model, "cpu:0" if form == "padded" else "cpu", checkpointing=True)
        model = copy.deepcopy(model).train()
        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: kept.append(tensor.numel()) or tensor, lambda tensor: tensor
        ):
            results.append(learn(model, batch_of([3, 17, 1, 40, 2]), [3, 17, 1, 40, 2]))
        models.append((model.generate([[1, 2, 3], [7]], 9), sum(kept)))
        kept.clear()
    assert all(torch.equal(results[1][name], value) for name, value in results[0].items())
    (plain, all_kept), (sparing, few_kept) = models
    assert plain == sparing and (few_kept < all_kept / 2 or form == "compiled"), (
        few_kept,
        all_kept,
    )
