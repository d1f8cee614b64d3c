"""The GPT against a slow, obvious one; batches against single conversations; generation against plain recomputation."""

import math
from collections.abc import Sequence

import pytest
import torch
from conftest import make_model
from torch import Tensor

from model import GPT, GPTConfig

EOS = 256
EXACT = 1e-12


def reference_logits(model: GPT, ids: Sequence[int]) -> Tensor:
    """(T, V): GPT-2's forward for one sequence, written out with matrix products, one head at a time."""
    weights, config = dict(model.named_parameters()), model.config
    T, D = len(ids), config.n_embd // config.n_head
    hidden_future = torch.full((T, T), -math.inf, dtype=torch.float64).triu(1)

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    x = weights["tok_emb.weight"][list(ids)] + weights["pos_emb.weight"][:T]
    for block in (f"blocks.{layer}." for layer in range(config.n_layer)):
        q, k, v = linear(block + "attn.qkv", norm(block + "attn_norm", x)).chunk(3, dim=-1)
        heads = []
        for head in (slice(start, start + D) for start in range(0, config.n_embd, D)):
            weight = (q[:, head] @ k[:, head].T / math.sqrt(D) + hidden_future).exp()
            heads.append(weight / weight.sum(-1, keepdim=True) @ v[:, head])
        x = x + linear(block + "attn.proj", torch.cat(heads, dim=-1))
        h = linear(block + "mlp.up", norm(block + "mlp_norm", x))
        h = 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
        x = x + linear(block + "mlp.down", h)
    return norm("final_norm", x) @ weights["tok_emb.weight"].T


def assert_exact(actual: Tensor, expected: Tensor) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).norm() <= EXACT * expected.norm()


def conversations(*lengths: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(EOS, (length,), generator=generator).tolist() for length in lengths]


def right_pad(rows: list[list[int]], pad_ids: Sequence[int]) -> tuple[Tensor, Tensor]:
    """(B, T) ids, the padding taken from `pad_ids` in turn, and the flat positions of the real tokens."""
    T = max(map(len, rows))
    ids = [row + [pad_ids[i % len(pad_ids)] for i in range(T - len(row))] for row in rows]
    return torch.tensor(ids), torch.tensor([b * T + t for b, row in enumerate(rows) for t in range(len(row))])


@pytest.fixture(autouse=True)
def one_thread():
    """These matrices are far too small to share; on a busy machine, waiting for a second thread costs seconds."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


def nll(logits: Tensor, targets: Tensor) -> Tensor:
    return -logits.log_softmax(-1).gather(1, targets[:, None]).sum()


def gradients(model: GPT, loss: Tensor) -> dict[str, Tensor]:
    return dict(zip(dict(model.named_parameters()), torch.autograd.grad(loss, list(model.parameters()))))


@pytest.mark.parametrize("changes", [{}, {"n_head": 1}, {"n_layer": 1, "n_embd": 24}])
def test_forward_equals_gpt2_written_out(changes: dict) -> None:
    """Issue 2: GPT-2's architecture, to the last digit, from one token up to a full context."""
    model = make_model(context_length=50, **changes)
    for length in (1, 2, 17, 50):
        rows = conversations(length, length, seed=length)
        assert_exact(model(torch.tensor(rows)), torch.stack([reference_logits(model, row) for row in rows]))


@pytest.mark.parametrize("use_at", [False, True])
@pytest.mark.parametrize("use_real", [False, True])
def test_padded_batch_equals_each_conversation_alone(use_at: bool, use_real: bool) -> None:
    """Claims 5, 13, 14: with `at` and `real` or without, whatever stands in the padding, logits and gradients of a
    ragged batch are those of its conversations computed one by one and in full; padding changes not one bit."""
    model, rows = make_model(), conversations(9, 1, 30, 30, 2, 14)
    wanted = [[t for t in range(len(row)) if (3 * t + b) % 4 == 0] for b, row in enumerate(rows)]  # some rows: none
    assert [] in wanted and any(len(row) - 1 in at for row, at in zip(rows, wanted))
    targets = torch.tensor([(7 * b + t) % EOS for b, at in enumerate(wanted) for t in at])
    expected = torch.cat([reference_logits(model, row)[at] for row, at in zip(rows, wanted)])
    expected_gradients = gradients(model, nll(expected, targets))
    at = torch.tensor([b * 30 + t for b, row in enumerate(wanted) for t in row])
    seen = []
    for pad_ids in ([0], [EOS], rows[0], range(EOS, 0, -1)):
        ids, real = right_pad(rows, pad_ids)
        logits = model(ids, at=at if use_at else None, real=real if use_real else None)
        assert logits.shape == ((len(at), 257) if use_at else (6, 30, 257))
        logits = logits if use_at else logits.flatten(0, 1)[at]
        seen.append({"logits": logits, **gradients(model, nll(logits, targets))})
        assert_exact(logits, expected)
        for name, gradient in expected_gradients.items():
            assert_exact(seen[-1][name], gradient)
    assert all(torch.equal(other[name], seen[0][name]) for other in seen[1:] for name in other)


def test_layers_run_on_real_tokens_and_the_head_on_targets_only() -> None:
    """Claim 13: neither padding nor positions without a target cost a matrix product; with no target at all the
    gradient is zero."""
    model, (ids, real) = make_model(), right_pad(conversations(3, 20, 8), [EOS])
    n_rows: dict[str, int] = {}
    for name, module in model.named_modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.LayerNorm)):
            module.register_forward_hook(lambda _, x, y, name=name: n_rows.update({name: y.numel() // y.shape[-1]}))
    model(ids, at=torch.tensor([2, 25, 39, 47]), real=real)
    assert n_rows.pop("final_norm") == 4
    assert len(n_rows) == 12 and set(n_rows.values()) == {3 + 20 + 8}
    nothing = model(ids, at=torch.tensor([], dtype=torch.long), real=real)
    assert nothing.shape == (0, 257)
    assert all(not gradient.any() for gradient in gradients(model, nothing.sum()).values())


@pytest.mark.parametrize(("dtype", "threads"), [(torch.float32, 1), (torch.float32, 2), (torch.float64, 1)])
@pytest.mark.parametrize("use_real", [False, True])
def test_perturbing_one_conversation_leaves_the_others_bit_identical(dtype, threads: int, use_real: bool) -> None:
    """Claim 14: conversations never see each other; and within the one that changes, no token sees a later one."""
    torch.set_num_threads(threads)
    model, rows = make_model(dtype=dtype), conversations(40, 7, 64, 63, 1, 22)
    ids, real = right_pad(rows, [EOS])
    before = model(ids, real=real if use_real else None)
    for b, row in enumerate(rows):
        for first in {0, len(row) // 2}:
            changed = ids.clone()
            changed[b, first : len(row)] = (changed[b, first : len(row)] + 101) % EOS
            after = model(changed, real=real if use_real else None)
            others = [i for i in range(len(rows)) if i != b]
            assert torch.equal(after[others], before[others])
            assert torch.equal(after[b, :first], before[b, :first])
            assert not torch.isclose(after[b, first : len(row)], before[b, first : len(row)]).all(-1).any()


@pytest.mark.parametrize(
    ("V", "n_vocab", "wanted", "V_after"),
    [(257, 257, 258, 320), (257, 257, 320, 320), (257, 257, 321, 384), (320, 257, 260, 320), (300, 300, 290, 300)],
)
def test_new_rows_are_the_mean_and_old_logits_stay(V: int, n_vocab: int, wanted: int, V_after: int) -> None:
    """Issue 2: new tokens start as the average of those that exist (not of padding); V grows to a multiple of 64."""
    model, ids = make_model(vocab_size=V, n_vocab=n_vocab), torch.tensor(conversations(20))
    old, before = model.tok_emb.weight.detach().clone(), model(ids)
    mean = sum(old[:n_vocab]) / n_vocab
    model.grow_vocab(wanted)
    assert (model.config.vocab_size, model.config.n_vocab) == (V_after, max(n_vocab, wanted))
    weight = model.tok_emb.weight
    assert weight.shape == (V_after, 32) and weight.requires_grad and weight.dtype == torch.float64
    assert torch.equal(weight[:n_vocab], old[:n_vocab])
    for row in weight[n_vocab:wanted]:
        assert_exact(row, mean)
    assert_exact(model(ids)[..., :n_vocab], before[..., :n_vocab])


def test_growing_one_model_leaves_another_with_the_same_config_alone() -> None:
    """Issue 2: base and tuned model stand side by side; a config object given to both is not written to."""
    config = GPTConfig(vocab_size=257, context_length=8, n_layer=1, n_head=1, n_embd=8)
    GPT(config).grow_vocab(300)
    assert (config.vocab_size, config.n_vocab) == (257, 257)


def test_initial_weights_are_gpt2s() -> None:
    """Issue 2: deviation 0.02, divided by sqrt(2 * layers) where a layer adds to the stream; biases 0, norms 1."""
    torch.manual_seed(0)
    for name, parameter in GPT(GPTConfig(257, 128, n_layer=3, n_head=4, n_embd=64)).named_parameters():
        if "norm" in name or "bias" in name:
            assert (parameter == float("norm.weight" in name)).all(), name
        else:
            adds_to_stream = name.endswith((".attn.proj.weight", ".mlp.down.weight"))
            assert abs(parameter.std() / (0.02 / math.sqrt(6) if adds_to_stream else 0.02) - 1) < 0.05, name


# Generation


def lively_model(seed: int = 0, **changes) -> GPT:
    """Says something new at nearly every position, where large random weights alone repeat one token for ever."""
    model = make_model(seed, **{"context_length": 32} | changes)
    model.pos_emb.weight.data *= 5
    model.final_norm.bias.data.zero_()
    return model


def reference_greedy(model: GPT, prompt: list[int], max_new_tokens: int, stop: Sequence[int] = ()) -> list[int]:
    """The whole sequence is computed anew for each token."""
    new: list[int] = []
    while len(new) < max_new_tokens and len(prompt) + len(new) < model.config.context_length:
        token_id = int(reference_logits(model, prompt + new)[-1, : model.config.n_vocab].argmax())
        if token_id in stop:
            break
        new.append(token_id)
    return new


@pytest.mark.parametrize("seed", range(4))
def test_cached_ragged_greedy_equals_full_recomputation_one_at_a_time(seed: int) -> None:
    """Claim 21: with rows that stop at once, early, late and never, and rows that fill the context."""
    model, prompts = lively_model(seed), conversations(1, 7, 31, 20, 25, 3, 30, 2, seed=seed)
    free = [reference_greedy(model, prompt, 12) for prompt in prompts]
    assert [len(new) for new in free] == [12, 12, 1, 12, 7, 12, 2, 12]  # to the limit, or to the end of the context
    assert model.generate(prompts, 12) == free
    assert model.generate(prompts[::-1], 12) == free[::-1]
    stop = [free[5][0], free[3][7], free[1][9], free[4][3]]
    expected = [reference_greedy(model, prompt, 12, stop) for prompt in prompts]
    assert expected[5] == [] and len(set(map(len, expected))) >= 4
    assert model.generate(prompts, 12, stop=stop) == expected
    assert [model.generate([prompt], 12, stop=stop)[0] for prompt in prompts] == expected


def table_model(*logits: float, **changes) -> GPT:
    """A GPT whose logits are these, after whatever prompt."""
    n = len(logits)
    model = make_model(vocab_size=n, n_embd=n, n_head=1, n_layer=1, context_length=16, **{"n_vocab": n} | changes)
    model.tok_emb.weight.data = torch.eye(n, dtype=torch.float64)
    model.final_norm.weight.data.zero_()
    model.final_norm.bias.data = torch.tensor(logits, dtype=torch.float64)
    return model


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "weights"),
    [  # weights at temperature 1: 4, 16, 1, 9, 36; at 0.5 their squares, at 2 their roots, which are sixteenths
        (1.0, None, None, [4, 16, 1, 9, 36]),
        (2.0, None, None, [2, 4, 1, 3, 6]),
        (0.5, 3, None, [0, 256, 0, 81, 1296]),
        (2.0, 1, None, [0, 0, 0, 0, 6]),
        (2.0, 99, 1.0, [2, 4, 1, 3, 6]),
        (2.0, None, 0.01, [0, 0, 0, 0, 6]),
        (2.0, None, 0.37, [0, 0, 0, 0, 6]),
        (2.0, None, 0.38, [0, 4, 0, 0, 6]),
        (2.0, None, 0.62, [0, 4, 0, 0, 6]),
        (2.0, None, 0.63, [0, 4, 0, 3, 6]),
        (2.0, None, 0.94, [2, 4, 1, 3, 6]),
        (1.0, None, 0.93, [4, 16, 0, 9, 36]),
        (2.0, 4, 0.85, [0, 4, 0, 3, 6]),  # 13 of 15: of the probability that top-k left
    ],
)
def test_sampling_draws_from_exactly_the_stated_distribution(temperature, top_k, top_p, weights) -> None:
    """Claim 21 and issue 2: temperature, top-k and top-p against a table; padded rows, by far the likeliest, never come."""
    n = 20_000
    model = table_model(*[2 * math.log(root) for root in (2, 4, 1, 3, 6)], 99.0, 99.0, n_vocab=5)
    drawn = model.generate([[1]] * (n // 2), 2, temperature=temperature, top_k=top_k, top_p=top_p, seed=1)
    counts = torch.tensor(drawn).flatten().bincount(minlength=7).tolist()
    for count, p in zip(counts, [*(weight / sum(weights) for weight in weights), 0, 0], strict=True):
        assert abs(count - n * p) <= 5 * math.sqrt(n * p * (1 - p)), (counts, n * p)


def test_padded_rows_have_no_influence_at_all() -> None:
    """Claim 21: huge padded rows are never chosen, greedily or by sampling, and do not take a place in top-k."""
    plain, loud = (lively_model(3, vocab_size=320, n_vocab=257) for _ in range(2))
    loud.tok_emb.weight.data[257:] *= 1000
    prompts = conversations(4, 11, 2)
    assert (loud(torch.tensor(prompts[:1]))[0].argmax(-1) >= 257).all()
    for sampling in ({}, {"temperature": 1.0}, {"temperature": 0.7, "top_k": 3}, {"temperature": 1.5, "top_p": 0.9}):
        assert loud.generate(prompts, 20, **sampling) == plain.generate(prompts, 20, **sampling)


def test_a_very_low_temperature_is_greedy() -> None:
    """Issue 2: every temperature that is accepted works, also one that sends logits / temperature beyond all bounds."""
    assert table_model(30.0, 29.0, -30.0, 28.0).generate([[1]], 3, temperature=1e-307) == [[0, 0, 0]]


def test_a_seed_decides_the_ids_and_nothing_else() -> None:
    """Issue 2: the same seed gives the same ids, another one others; torch's own random state is not touched."""
    model, prompts, state = lively_model(), conversations(5, 9), torch.get_rng_state()
    first, second, other = (model.generate(prompts, 20, temperature=1.0, seed=seed) for seed in (7, 7, 8))
    assert first == second != other
    assert first[0] != first[1] and torch.equal(torch.get_rng_state(), state)


def test_stream_gives_what_generate_gives_step_by_step() -> None:
    """Issue 2: a streaming form; a prompt that has ended never comes back; gradients stay on between the steps."""
    model, prompts = lively_model(), conversations(3, 28, 10)
    stop = [model.generate(prompts, 9)[0][4]]
    for sampling in ({}, {"temperature": 1.0, "top_k": 50, "seed": 3}):
        collected, going_on = [[], [], []], {0, 1, 2}
        for step in model.stream(prompts, 9, stop=stop, **sampling):
            assert step.keys() <= going_on and torch.is_grad_enabled()
            going_on = step.keys()
            for row, token_id in step.items():
                collected[row].append(token_id)
        assert collected == model.generate(prompts, 9, stop=stop, **sampling)


@pytest.mark.parametrize("training", [False, True])
def test_generation_runs_without_dropout_and_restores_the_mode(training: bool) -> None:
    """Issue 2: also where the stream is abandoned half way, or fails."""
    model, prompts = lively_model(dropout=0.5), conversations(5, 9)
    expected = model.generate(prompts, 5)
    model.train(training)
    assert model.generate(prompts, 5) == expected
    assert all(module.training == training for module in model.modules())
    stream = model.stream(prompts, 5)
    next(stream)
    stream.close()
    with pytest.raises(IndexError):
        model.generate([[1, 2, 99_999]], 5)
    assert all(module.training == training for module in model.modules())


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"prompts": [[1, 2], []]}, "empty prompt"),
        ({"prompts": [[1], [1] * 16]}, "16 tokens.*context of 16"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.01}, "top_p"),
        ({"top_p": math.nan}, "top_p"),
        ({"max_new_tokens": -1}, "max_new_tokens"),
    ],
)
def test_generation_refuses_what_it_cannot_do(arguments: dict, reason: str) -> None:
    """Issue 2: bad input gets a clear error."""
    with pytest.raises(ValueError, match=reason):
        make_model(context_length=16).generate(**{"prompts": [[1]], "max_new_tokens": 3} | arguments)


@torch.no_grad()
def test_more_tokens_than_the_context_holds_are_refused() -> None:
    """Issue 2: a ValueError, in one go and token by token; nothing to generate is no error."""
    model = make_model(context_length=16)
    with pytest.raises(ValueError, match="17 tokens.*context of 16"):
        model(torch.zeros(1, 17, dtype=torch.long))
    cache, _ = model.prefill([[1] * 16, [1] * 3], 1)
    with pytest.raises(ValueError, match="17 tokens.*context of 16"):
        model.decode_one_token(torch.tensor([1, 1]), cache)
    assert model.generate([[1] * 15], 0) == [[]] and model.generate([], 5) == []
