"""LoRA against peft: the same A and B give the same outputs, gradients and merged weights; our
adapters load there."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_exact, conversation, make_base, make_model, write_jsonl
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoTokenizer, GPT2LMHeadModel

import hf.__main__ as hf_main
import sft
from hf.families import GPT2
from lora import adapter_state, add_lora
from model import GPT
from runtime.files import save_checkpoint
from runtime.load import load_checkpoint
from tokenizer import END_OF_TEXT, Tokenizer

IDS = torch.tensor([[7, 257, 3, 258, 7, 9, 250, 257], [258, 258, 7, 1, 0, 44, 7, 5]])
SETTINGS = [
    {"rank": 3, "alpha": 5.0},
    {"rank": 2, "alpha": 16.0, "rslora": True},
    {"rank": 4, "alpha": 4.0, "targets": ("attn.qkv", "blocks.1.mlp.down")},
    {"rank": 3, "alpha": 5.0, "token_ids": (257, 7, 258)},  # one that the base had before
]


def lora_run(
    folder: Path, dtype: torch.dtype = torch.float32, **settings
) -> tuple[Path, Path, GPT]:
    """A base, the checkpoint of a LoRA run on it whose adapters do something, and its model."""
    tokenizer = Tokenizer({bytes([byte]): byte for byte in range(256)}, {END_OF_TEXT: 256})
    base, path = make_model(dtype=dtype), folder / "base.pt"
    content = {
        "config": vars(base.config),
        "model": base.state_dict(),
        "tokenizer": tokenizer.state(),
    }
    save_checkpoint(path, content | {"template": None, "stop": [256], "step": 0, "args": {}})
    model = add_lora(base, **{"token_ids": (257, 258)} | settings)
    for name, parameter in model.named_parameters():
        if name.endswith(("lora_b", "lora_rows")):
            nn.init.normal_(parameter, std=0.3)
    tokenizer = tokenizer.with_special(["<|im_start|>", "<|im_end|>"])
    content = {
        "config": asdict(model.config),
        **adapter_state(model),
        "tokenizer": tokenizer.state(),
        "base": {"path": str(path), "template": None},
    }
    save_checkpoint(
        folder / "lora.pt", content | {"template": "chatml", "stop": [258], "step": 1, "args": {}}
    )
    return path, folder / "lora.pt", model


def load_in_peft(folder: Path, base: Path, adapter: Path, **named) -> PeftModel:
    """As the README says: the base is exported, too, and has room made for the new tokens."""
    hf_main.export(base, folder / "base")
    hf_main.export(adapter, folder / "adapter", adapter=True)
    theirs = GPT2LMHeadModel.from_pretrained(folder / "base")
    theirs.resize_token_embeddings(len(AutoTokenizer.from_pretrained(folder / "adapter")))
    return PeftModel.from_pretrained(
        theirs, folder / "adapter", autocast_adapter_dtype=False, **named
    ).eval()


def loss_of(logits: Tensor) -> Tensor:
    return F.cross_entropy(
        logits[:, :-1, :259].flatten(0, 1), IDS[:, 1:].flatten(), reduction="sum"
    )


def their_gradients(model: PeftModel) -> dict[str, Tensor]:
    """By our names."""
    parts = {"lora_A.default.weight": "lora_a", "lora_B.default.weight": "lora_b"}
    parts |= {"token_adapter.trainable_tokens_delta.default": "lora_rows"}
    modules = [name for name, module in make_model().named_modules() if hasattr(module, "weight")]
    ours = {GPT2.their_names(name)[0]: name for name in modules}
    gradients = {}
    for name, parameter in model.named_parameters(remove_duplicate=True):
        if parameter.grad is not None:
            module, part = next(
                (name.partition(f".{part}")[0], part) for part in parts if part in name
            )
            gradients[
                f"{ours[module.removeprefix('base_model.model.transformer.')]}.{parts[part]}"
            ] = parameter.grad
    return gradients


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: "-".join(settings))
def test_an_exported_adapter_gives_our_logits_and_gradients_in_peft(tmp_path, settings) -> None:
    base, adapter, ours = lora_run(tmp_path, **settings)
    theirs = load_in_peft(tmp_path, base, adapter, is_trainable=True)
    logits, their_logits = ours(IDS)[..., :259], theirs(IDS).logits
    assert (logits - their_logits).abs().max() <= 1e-5 * their_logits.abs().max()
    loss_of(logits).backward()
    loss_of(their_logits).backward()
    gradients = {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}
    wanted = their_gradients(theirs)
    assert gradients.keys() == wanted.keys() and "tok_emb.lora_rows" in gradients
    for name, gradient in gradients.items():
        assert (gradient - wanted[name]).abs().max() <= 1e-5 * wanted[name].abs().max(), name


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: "-".join(settings))
def test_the_same_in_float64(tmp_path, settings) -> None:
    base, adapter, ours = lora_run(tmp_path, torch.float64, **settings)
    theirs = load_in_peft(tmp_path, base, adapter, is_trainable=True)
    assert_exact(ours(IDS)[..., :259], theirs(IDS).logits)
    loss_of(ours(IDS)).backward()
    loss_of(theirs(IDS).logits).backward()
    wanted = their_gradients(theirs)
    for name, parameter in ours.named_parameters():
        if parameter.grad is not None:
            assert_exact(parameter.grad, wanted[name])


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: "-".join(settings))
def test_merged_weights_are_those_of_merge_and_unload(tmp_path, settings) -> None:
    base, adapter, _ = lora_run(tmp_path, torch.float64, **settings)
    theirs = load_in_peft(tmp_path, base, adapter).merge_and_unload().state_dict()
    hf_main.export(adapter, tmp_path / "merged")
    ours = GPT2LMHeadModel.from_pretrained(tmp_path / "merged").state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert_exact(tensor, theirs[name])


@pytest.mark.parametrize("rslora", [False, True])
def test_an_adapter_made_in_peft_computes_the_same_here(rslora, tmp_path) -> None:
    """The other way round: A and B come from peft's own initialisation and its names for the
    settings."""
    base, _, _ = lora_run(tmp_path)
    hf_main.export(base, tmp_path / "base")
    config = LoraConfig(
        r=3, lora_alpha=5, target_modules=["c_attn", "c_proj", "c_fc"], use_rslora=rslora
    )
    torch.manual_seed(0)
    with pytest.warns(
        UserWarning, match="fan_in_fan_out"
    ):  # which is what the exported configuration says
        theirs = get_peft_model(GPT2LMHeadModel.from_pretrained(tmp_path / "base"), config).eval()
    ours = add_lora(load_checkpoint(base)[0], rank=3, alpha=5, rslora=rslora)
    state = {name.replace(".default.", "."): tensor for name, tensor in theirs.state_dict().items()}
    for name, module in ours.named_modules():
        if hasattr(module, "lora_a"):
            prefix = f"base_model.model.transformer.{GPT2.their_names(name)[0]}"
            nn.init.normal_(theirs.get_submodule(prefix).lora_B["default"].weight, std=0.3)
            module.lora_a.data, module.lora_b.data = (
                state[f"{prefix}.lora_{x}.weight"].clone() for x in "AB"
            )
    with torch.no_grad():
        logits, wanted = ours(IDS % 257), theirs(IDS % 257).logits
    assert (logits - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_peft_finds_a_base_of_its_own_format(tmp_path) -> None:
    """A run from `--init DIR` names DIR, so that one line loads base, adapter and the rows of new
    tokens."""
    hf_main.export(make_base(tmp_path / "base.pt"), tmp_path / "base")
    data = write_jsonl(
        tmp_path / "data.jsonl", [conversation(f"question {i}", f"answer {i}") for i in range(40)]
    )
    flags = f"--data {data} --steps 3 --lora-rank 2 --lr 0.05 --device cpu"
    flags += f" --init {tmp_path}/base --out {tmp_path}/run"
    assert sft.main(flags.split()) == 0
    hf_main.export(tmp_path / "run", tmp_path / "adapter", adapter=True)
    theirs = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    ours, tokenizer, _ = load_checkpoint(tmp_path / "run")
    with torch.no_grad():
        logits, wanted = ours(IDS)[..., :259], theirs(IDS).logits
    assert (logits - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    chat = AutoTokenizer.from_pretrained(tmp_path / "adapter")
    prompt = chat.apply_chat_template(
        conversation("Hi")["messages"], add_generation_prompt=True, return_tensors="pt"
    )
    new_ids = theirs.generate(**prompt, max_new_tokens=20, eos_token_id=chat.eos_token_id)
    [wanted_ids] = ours.generate(
        prompt["input_ids"].tolist(), 20, stop=[tokenizer.special("<|im_end|>")]
    )
    assert new_ids[0, prompt["input_ids"].shape[1] :].tolist()[: len(wanted_ids)] == wanted_ids


def test_what_the_adapters_file_says_of_its_base(tmp_path) -> None:
    """No name of a base that peft could not load, or would look for on the network."""
    base, adapter, _ = lora_run(tmp_path, rank=2)
    hf_main.export(adapter, tmp_path / "adapter", adapter=True)
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] is None


def test_a_run_without_adapter_has_none_to_export(tmp_path, capsys) -> None:
    base = make_base(tmp_path / "base.pt")
    assert hf_main.main(["export", str(base), str(tmp_path / "out"), "--adapter"]) == 2
    error = capsys.readouterr().err
    assert error == f"error: {base}: no adapter in this checkpoint; export it without --adapter\n"
    assert not (tmp_path / "out").exists()
