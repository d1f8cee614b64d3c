"""Llama, Qwen 2 and Qwen 3 against transformers, with small random weights: in and out, logits,
gradients, generation, adapters; what is refused; and the download, from a server of the test's
own."""

import functools
import http.server
import json
import shutil
import threading
from pathlib import Path

import pytest
import torch
from conftest import FAMILIES, conversation, make_model, write_jsonl
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import hf.__main__ as hf_main
import sft
from hf import weights
from hf.families import family_of, read_settings
from hf.tokenizer_files import tokenizer_json
from model import GPT
from runtime.files import save_checkpoint
from runtime.load import load_checkpoint
from tokenizer import END_OF_TEXT, LLAMA3_SPLIT, QWEN_SPLIT, Tokenizer

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
PLAIN_ROPE = {"rope_type": "default", "rope_theta": 5000.0}
SIZES = {
    "vocab_size": 260,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": None,
}
KINDS = {
    "llama": (LlamaForCausalLM, LlamaConfig, {"rope_parameters": PLAIN_ROPE}),
    "llama3": (LlamaForCausalLM, LlamaConfig, {"rope_parameters": LLAMA3_ROPE}),
    "llama-all-heads": (LlamaForCausalLM, LlamaConfig, {"num_key_value_heads": 6}),
    "llama-small-heads": (LlamaForCausalLM, LlamaConfig, {"head_dim": 4, "rms_norm_eps": 1e-3}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {"rope_parameters": PLAIN_ROPE}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 16}),
}


def their_model(kind: str, seed: int = 0, **settings) -> nn.Module:
    """With large random weights, biases and norms too, so that nothing is hidden by being zero or
    one."""
    torch.manual_seed(seed)
    model_class, config_class, special = KINDS[kind]
    model = model_class(config_class(**{**SIZES, **special, **settings}))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model.eval()


def random_ids(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(260, shape, generator=torch.Generator().manual_seed(seed))


def tokenizer_of(split: str = QWEN_SPLIT) -> Tokenizer:
    names = [END_OF_TEXT, "<|im_start|>", "<|im_end|>", "<|more|>"]
    special = {name: 256 + i for i, name in enumerate(names)}
    return Tokenizer({bytes([byte]): byte for byte in range(256)}, special, split)


def saved(folder: Path, theirs: nn.Module, **options) -> Path:
    """A folder as transformers writes it, with a tokenizer."""
    theirs.save_pretrained(folder, **options)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json(tokenizer_of())))
    return folder


def checkpoint(folder: Path, model: GPT, **more) -> Path:
    content = {
        "config": vars(model.config),
        "model": model.state_dict(),
        "tokenizer": tokenizer_of().state(),
        "template": "chatml",
        "stop": [258],
        "step": 0,
        "args": {},
    }
    save_checkpoint(folder / "checkpoint.pt", content | more)
    return folder / "checkpoint.pt"


@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_gradients(tmp_path, kind) -> None:
    """Claim 27: logits to 2e-5 of the largest in float32; in float64 logits and gradients to 1e-6
    of the norm (angles are float32 on both sides). A batch of ragged conversations, too."""
    theirs = their_model(kind)
    ours = weights.read_model(saved(tmp_path, theirs))
    ids = random_ids(3, 128)
    with torch.no_grad():
        logits, wanted = ours(ids), theirs(ids).logits
        assert (logits - wanted).abs().max() <= 2e-5 * wanted.abs().max()
    ours, theirs = ours.double(), theirs.double()
    theirs(ids).logits.log_softmax(-1)[:, :, 7].sum().backward()
    ours(ids).log_softmax(-1)[:, :, 7].sum().backward()
    family, gradients = family_of(ours.config), dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        parts = family.their_parts(ours.config, name, parameter.grad)
        for their, part in zip(family.their_names(name), parts, strict=True):
            wanted = gradients.pop(family.prefix + their).grad
            assert (part - wanted).norm() <= 1e-6 * wanted.norm(), their
    assert not gradients
    with torch.no_grad():
        together = ours(ids.flatten()[: 5 + 128 + 40], [5, 128, 40])
        alone = [theirs(part[None]).logits[0] for part in ids.flatten()[:173].split([5, 128, 40])]
        assert (together - torch.cat(alone)).norm() <= 1e-6 * torch.cat(alone).norm()


def rms_norm_in_float64(weight: torch.Tensor, eps: float, x: torch.Tensor) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_generation_is_theirs(tmp_path, kind) -> None:
    """Claim 27: token for token in float64, a ragged batch with the cache against theirs, one at a
    time."""
    theirs = their_model(kind, seed=3).double()
    for name, module in theirs.named_modules():
        if name.endswith("norm"):
            module.weight.data *= 3  # else one token is repeated for ever
            eps = module.variance_epsilon
            # Theirs is computed in float32, and so lively a model shows each last digit.
            module.forward = functools.partial(rms_norm_in_float64, module.weight, eps)
    ours = weights.read_model(saved(tmp_path, theirs))
    prompts = [random_ids(length, seed=length).tolist() for length in (1, 9, 40, 100)]
    answers, different = ours.generate(prompts, 24), set()
    for prompt, answer in zip(prompts, answers):
        ids = torch.tensor([prompt])
        seen = torch.ones_like(ids)  # else token 0 would be taken for padding
        new_ids = theirs.generate(ids, attention_mask=seen, max_new_tokens=24, pad_token_id=0)
        assert answer == new_ids[0, len(prompt) :].tolist()
        different |= set(answer)
    assert len(different) > 8


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_in_and_out_again_is_bit_identical_to_them(tmp_path, kind, dtype) -> None:
    """Claim 26: weights, and what the configuration computes."""
    theirs = their_model(kind).to(dtype)
    ours = weights.read_model(saved(tmp_path / "theirs", theirs))
    path = checkpoint(tmp_path, ours)
    assert hf_main.main(["export", str(path), str(tmp_path / "out")]) == 0
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(again) is type(theirs) and again.dtype == dtype
    state = again.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in theirs.state_dict().items())
    ids = random_ids(2, 60)
    with torch.no_grad():
        assert torch.equal(again(ids).logits, theirs(ids).logits)
    model, tokenizer, meta = load_checkpoint(tmp_path / "out")
    assert model.config == ours.config and tokenizer.state() == tokenizer_of().state()
    assert meta["template"] == "chatml" and meta["stop"] == [258]


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "gpt2"])
def test_our_weights_there(tmp_path, family) -> None:
    """Also with sizes that are left to their defaults here, and rows of padding."""
    ours = make_model(dtype=torch.float32, vocab_size=320, n_vocab=260, **FAMILIES[family])
    assert hf_main.main(["export", str(checkpoint(tmp_path, ours)), str(tmp_path / "out")]) == 0
    theirs, ids = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval(), random_ids(2, 200)
    with torch.no_grad():
        logits, wanted = ours(ids)[..., :260], theirs(ids).logits
    assert (logits - wanted).abs().max() <= 2e-5 * wanted.abs().max()
    again = load_checkpoint(tmp_path / "out")[0]
    assert again.config == type(again.config)(**{**vars(ours.config), "vocab_size": 260})


def test_a_model_of_no_family_is_not_exported(tmp_path, capsys) -> None:
    """Claim 26."""
    for changes in ({"gated": True}, {"norm": "rms"}, FAMILIES["qwen3"] | {"bias": "qkv"}):
        path = checkpoint(tmp_path, make_model(vocab_size=260, n_vocab=260, **changes))
        assert hf_main.main(["export", str(path), str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: none of gpt2, llama, qwen2, qwen3 computes")
        assert error.count("\n") == 1 and not (tmp_path / "out").exists()


# Files


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_parts_and_half_precision(tmp_path, dtype) -> None:
    """Weights in several files, with an index, in half precision: read as float32, with the values
    that they have."""
    theirs = their_model("qwen3").to(dtype)
    folder = saved(tmp_path, theirs, max_shard_size="40KB")
    assert len(weights.parts_of(folder)) > 3 and not (folder / "model.safetensors").exists()
    ours = weights.read_model(folder)
    assert {tensor.dtype for tensor in ours.state_dict().values()} == {torch.float32}
    up = ours.blocks[1].mlp.up.weight
    parts = theirs.model.layers[1].mlp
    assert torch.equal(up.to(dtype), torch.cat([parts.gate_proj.weight, parts.up_proj.weight]))


def test_parts_that_are_missing_or_damaged(tmp_path) -> None:
    folder = saved(tmp_path, their_model("llama"), max_shard_size="100KB")
    first, second, *_ = weights.parts_of(folder)
    index = json.loads((folder / weights.INDEX).read_text())
    for wrong in ({}, {"weight_map": []}, {"weight_map": {"a": "../b.safetensors"}}):
        (folder / weights.INDEX).write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match="weight_map must say which file"):
            weights.read_model(folder)
    (folder / weights.INDEX).write_text(json.dumps(index))
    whole = second.read_bytes()
    second.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=f"{second.name}: not a whole safetensors file"):
        weights.read_model(folder)
    second.write_bytes(first.read_bytes())
    with pytest.raises(ValueError, match="is in another file, too"):
        weights.read_model(folder)
    second.unlink()
    with pytest.raises(FileNotFoundError, match=f"{second.name}: no such file"):
        weights.read_model(folder)


def test_older_files(tmp_path) -> None:
    """Rotations by their older names, frequencies among the weights, no prefix, a copy of the
    embedding as the head."""
    theirs = their_model("llama3")
    folder = saved(tmp_path, theirs)
    wanted = weights.read_model(folder)
    settings = json.loads((folder / "config.json").read_text())
    rope = settings.pop("rope_parameters")
    settings |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
    settings.pop("head_dim", None)
    (folder / "config.json").write_text(json.dumps(settings))
    tensors = load_file(folder / "model.safetensors")
    tensors = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    tensors["layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    tensors["lm_head.weight"] = tensors["embed_tokens.weight"].clone()
    save_file(tensors, folder / "model.safetensors")
    again = weights.read_model(folder)
    assert again.config == wanted.config and len(again.config.rope_scaling) == 4
    state = again.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in wanted.state_dict().items())
    rope["type"] = rope.pop("rope_type")
    (folder / "config.json").write_text(json.dumps(settings | {"rope_scaling": rope}))
    assert weights.read_model(folder).config == wanted.config


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [
        ("llama", {"tie_word_embeddings": False}, "tie_word_embeddings is False; .* one matrix"),
        ("llama", {"tie_word_embeddings": None}, "tie_word_embeddings is None; .* one matrix"),
        ("qwen2", {"hidden_act": "gelu"}, "hidden_act is 'gelu'; this model knows 'silu' only"),
        ("llama", {"attention_bias": True}, "attention_bias is True"),
        ("qwen3", {"attention_bias": True}, "attention_bias is True"),
        ("llama", {"mlp_bias": True}, "mlp_bias is True"),
        ("llama", {"rope_parameters": {"rope_type": "yarn"}}, "rotations of the kind 'yarn'"),
        ("llama", {"rope_parameters": {"type": "linear"}}, "rotations of the kind 'linear'"),
        ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "of whole heads, only"),
        ("llama", {"rope_parameters": [1]}, r"rope_scaling must be a JSON object, not \[1\]"),
        ("llama", {"rope_parameters": {"rope_theta": 0}}, "rope_theta must be a number above 0"),
        ("llama3", {"rope_parameters": {"rope_type": "llama3"}}, "factor must be a number"),
        (
            "llama3",
            {"rope_parameters": LLAMA3_ROPE | {"low_freq_factor": 4}},
            "low_freq_factor must be below",
        ),
        ("llama", {"rms_norm_eps": "small"}, "rms_norm_eps must be a number above 0, not 'small'"),
        ("llama", {"num_key_value_heads": 4}, "n_embd must be a multiple of n_head, that of n_kv"),
        ("llama", {"num_key_value_heads": -2}, "num_key_value_heads must be a whole number"),
        ("llama", {"head_dim": 2.0}, "head_dim must be a whole number from 1"),
        ("llama", {"max_position_embeddings": None}, "max_position_embeddings must be a whole"),
        ("qwen2", {"quantization_config": {"bits": 4}}, "its weights are quantised"),
        (
            "qwen2",
            {"use_sliding_window": True, "sliding_window": 64, "layer_types": None},
            "attention in a sliding window of 64 tokens; .* whole context .128.",
        ),
        (
            "qwen3",
            {"sliding_window": 64, "layer_types": ["full_attention", "sliding_attention"]},
            "sliding window of 64",
        ),
    ],
)
def test_what_would_compute_something_else_is_refused(tmp_path, kind, changes, reason) -> None:
    saved(tmp_path, their_model(kind))
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError, match=reason) as error:
        weights.load_model(tmp_path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"use_sliding_window": False, "sliding_window": 64, "layer_types": None},
        {"use_sliding_window": True, "sliding_window": 128, "layer_types": None},
        {
            "use_sliding_window": True,
            "sliding_window": 64,
            "layer_types": None,
            "max_window_layers": 3,
        },
    ],
)
def test_windows_that_do_not_matter(tmp_path, changes) -> None:
    path = saved(tmp_path, their_model("qwen2")) / "config.json"
    settings = json.loads(path.read_text()) | changes
    assert read_settings(path, settings)[0].name == "qwen2"


def test_what_transformers_saves_for_untied_heads_is_refused(tmp_path) -> None:
    theirs = their_model("llama", tie_word_embeddings=False)
    with pytest.raises(ValueError, match="one matrix for both"):
        weights.load_model(saved(tmp_path, theirs))


# Adapters


@pytest.mark.parametrize("kind", ["llama3", "qwen2", "qwen3"])
def test_an_adapter_of_a_run_in_peft(tmp_path, kind) -> None:
    """Claims 16, 18, 26: our A, and our B cut by rows, are q, k and v (gate and up); logits and
    merged weights are ours. Special tokens that the base had are trained as well."""
    base = saved(tmp_path / "base", their_model(kind))
    records = [conversation(f"question {i}", f"answer {i}") for i in range(40)]
    data = write_jsonl(tmp_path / "data.jsonl", records)
    flags = f"--data {data} --init {base} --out {tmp_path}/run --steps 3 --lora-rank 2 --lr 0.05"
    assert sft.main(f"{flags} --device cpu".split()) == 0
    for folder, more in (("adapter", ["--adapter"]), ("merged", [])):
        arguments = ["export", str(tmp_path / "run"), str(tmp_path / folder), *more]
        assert hf_main.main(arguments) == 0
    ours, _, _ = load_checkpoint(tmp_path / "run")
    assert ours.adapter.token_ids == (257, 258) and ours.tok_emb.lora_rows.abs().min(1).values.max()
    theirs = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    ids = random_ids(2, 50)
    with torch.no_grad():
        wanted = ours(ids)
        for other in (theirs, merged):
            assert (other(ids).logits - wanted).abs().max() <= 2e-5 * wanted.abs().max()
    names = json.loads((tmp_path / "adapter/adapter_config.json").read_text())["target_modules"]
    assert len(names) == 3 * 7 and "model.layers.2.mlp.gate_proj" in names
    state = theirs.merge_and_unload().double().state_dict()
    for name, tensor in merged.double().state_dict().items():
        assert (tensor - state[name]).norm() <= 1e-6 * tensor.norm(), name


# By name


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    cut: str | None = None  # the file of which the last bytes are not sent
    asked: list[str] = []

    def log_message(self, *_) -> None:
        pass

    def do_GET(self) -> None:
        self.asked.append(self.path.rpartition("/")[2])
        super().do_GET()

    def copyfile(self, source, outputfile) -> None:
        is_cut = self.cut and self.path.endswith(self.cut)
        outputfile.write(source.read()[: -9 if is_cut else None])


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A server with one model under the name of a published one, and an empty cache."""
    folder = tmp_path / "server" / "Qwen" / "Qwen3-0.6B" / "resolve" / "main"
    saved(folder, their_model("qwen3"), max_shard_size="40KB")
    (folder / "generation_config.json").write_text('{"eos_token_id": [258, 256, 999]}')
    handler = functools.partial(QuietHandler, directory=str(tmp_path / "server"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(weights, "HUB", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(QuietHandler, "cut", None)
    monkeypatch.setattr(QuietHandler, "asked", [])
    yield folder
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_published_model_is_downloaded_whole_and_once(hub, tmp_path) -> None:
    """With its parts and their index; files that need not be there are not missed."""
    model, tokenizer, meta = load_checkpoint("Qwen3-0.6B")
    n_asked = len(QuietHandler.asked)
    assert meta["file"] == "Qwen3-0.6B" and meta["stop"] == [256, 258]
    assert model.config == weights.read_model(hub).config and tokenizer.n_vocab == 260
    assert n_asked == 5 + 2 + len(weights.parts_of(hub)) and load_checkpoint("Qwen3-0.6B")
    assert len(QuietHandler.asked) == n_asked
    assert [path.name for path in (tmp_path / "hub").iterdir()] == ["Qwen3-0.6B"]


@pytest.mark.parametrize(
    "file", ["config.json", "tokenizer.json", "00002-of", weights.INDEX, "generation_config.json"]
)
def test_a_download_cut_short_leaves_nothing(hub, tmp_path, monkeypatch, capsys, file) -> None:
    """Claim 8 of what is read: whole or not at all, whichever file it was."""
    name = next(path.name for path in hub.iterdir() if file in path.name)
    monkeypatch.setattr(QuietHandler, "cut", name)
    for _ in range(2):
        assert sft.main(["--init", "Qwen3-0.6B", "--out", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err.splitlines()[-1]  # after the downloader's bars
        assert error.startswith("error: Qwen3-0.6B could not be downloaded")
        assert list((tmp_path / "hub").iterdir()) == [] and not (tmp_path / "out").exists()
    monkeypatch.setattr(QuietHandler, "cut", None)
    assert load_checkpoint("Qwen3-0.6B")


def test_a_server_without_a_needed_file(hub, tmp_path, capsys) -> None:
    for file in ("tokenizer.json", weights.INDEX):
        shutil.move(hub / file, tmp_path / "away")
        assert sft.main(["--init", "Qwen3-0.6B", "--out", str(tmp_path / "out")]) == 2
        assert "could not be downloaded" in capsys.readouterr().err
        assert list((tmp_path / "hub").iterdir()) == []
        shutil.move(tmp_path / "away", hub / file)


def test_our_and_their_names_of_a_base(hub, tmp_path) -> None:
    """A run from a published name keeps the name; its adapter names the repository."""
    data = write_jsonl(tmp_path / "data.jsonl", [{"prompt": "a", "completion": "b"}] * 40)
    flags = f"--data {data} --init Qwen3-0.6B --out {tmp_path}/run --steps 1 --lora-rank 1"
    assert sft.main(f"{flags} --device cpu".split()) == 0
    assert load_checkpoint(tmp_path / "run")[2]["base"]["path"] == "Qwen3-0.6B"
    hf_main.export(tmp_path / "run", tmp_path / "adapter", adapter=True)
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "Qwen/Qwen3-0.6B"


def test_llama3_calls_the_end_of_a_text_by_another_name(tmp_path) -> None:
    folder = saved(tmp_path, their_model("llama3"))
    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|more|>"]
    special = {name: 256 + i for i, name in enumerate(names)}
    ranks = {bytes([byte]): byte for byte in range(256)}
    content = tokenizer_json(Tokenizer(ranks, special, LLAMA3_SPLIT))
    (folder / "tokenizer.json").write_text(json.dumps(content))
    model, tokenizer, meta = load_checkpoint(folder)
    assert meta["stop"] == [257] == [tokenizer.special(END_OF_TEXT)]
    assert tokenizer.with_special([END_OF_TEXT]).n_vocab == 260 == model.config.n_vocab


def test_exactness_of_parts() -> None:
    """Rows of q, k and v, of gate and up; and GPT-2's, turned."""
    for name, family in FAMILIES.items():
        model = make_model(**family)
        theirs = family_of(model.config)
        assert theirs.name == name
        for weight, tensor in model.state_dict().items():
            parts = theirs.their_parts(model.config, weight, tensor)
            assert torch.equal(
                parts[0].T if weight.endswith(theirs.turned) else torch.cat(parts), tensor
            )
