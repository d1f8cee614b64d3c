"""Folders that transformers and peft load."""

import json
import shutil
from pathlib import Path

from torch import Tensor

from chat_template import TEMPLATES
from hf import weights
from hf.families import family_of, settings_of
from hf.templates import jinja
from hf.tokenizer_files import tokenizer_files
from hf.weights import PUBLISHED, cache_folder, find_model, new_folder
from lora import LoraConfig, LoraLinear, merge_lora
from model import GPT
from tokenizer import END_OF_TEXT, Tokenizer


def write_folder(
    out_dir: Path, tensor_file: str, tensors: dict[str, Tensor], settings: dict[str, dict]
) -> None:
    """A new folder with a file of weights and JSON files, whole or not there. Raises ValueError and
    OSError."""
    safetensors = weights.import_safetensors()
    # Copies, because the package refuses tensors that are parts of another one.
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
    with new_folder(out_dir) as folder:
        for name, content in settings.items():
            text = json.dumps(content, indent=2, ensure_ascii=False)
            (folder / f"{name}.json").write_text(text, encoding="utf-8")
        try:
            safetensors.torch.save_file(tensors, folder / tensor_file, metadata={"format": "pt"})
        except safetensors.SafetensorError as error:
            raise OSError(f"{out_dir / tensor_file} could not be written ({error})") from None
        # The package lets only the owner read.
        shutil.copymode(folder / "tokenizer.json", folder / tensor_file)


def write_model(model: GPT, tokenizer: Tokenizer, meta: dict, out_dir: str | Path) -> str | None:
    """Write a folder that transformers loads; give the chat template's name. Adapters are merged.
    Padded rows of the vocabulary are left out, because nothing there would keep them from being
    sampled. Raises ValueError and OSError, and then leaves nothing."""
    config, stop, state = model.config, meta["stop"], merge_lora(model).state_dict()
    family, tensors = family_of(config), {}
    state["tok_emb.weight"] = state["tok_emb.weight"][: config.n_vocab]
    for name, tensor in state.items():
        parts = family.their_parts(config, name, tensor)
        for their, part in zip(family.their_names(name), parts):
            tensors[family.prefix + their] = part
    end_of_text = tokenizer.special(END_OF_TEXT)
    ids = {"bos_token_id": end_of_text, "pad_token_id": end_of_text}
    ids["eos_token_id"] = stop[0] if len(stop) == 1 else stop
    dtype = str(state["tok_emb.weight"].dtype).removeprefix("torch.")
    files = {
        "config": settings_of(config, family) | ids | {"dtype": dtype},
        "generation_config": ids,
        **files_beside(tokenizer, meta),
    }
    write_folder(Path(out_dir), "model.safetensors", tensors, files)
    return meta["template"]


def write_adapter(model: GPT, tokenizer: Tokenizer, meta: dict, out_dir: str | Path) -> str | None:
    """Write a LoRA run's adapter for peft, and its tokenizer; give the chat template's name. Where
    their layers are parts of ours, each has our A, and its rows of our B. The rows of the special
    tokens are whole there, not differences. Raises ValueError and OSError, and then leaves
    nothing."""
    lora, family = model.adapter, family_of(model.config)
    if not isinstance(lora, LoraConfig):
        what = f"peft's form of an adapter of the kind {lora.kind!r} is not written"
        raise ValueError(f"{what}; without --adapter, those that can be merged are exported merged")
    tensors, layers, base = {}, [], meta["base"]["path"]
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            parts = family.their_parts(model.config, name, module.lora_b)
            for their, part in zip(family.their_names(name), parts):
                layers.append(family.prefix + their)
                tensors[f"{layers[-1]}.lora_A.weight"] = module.lora_a
                tensors[f"{layers[-1]}.lora_B.weight"] = part
    folder = find_model(base)  # None for a checkpoint of ours, which peft could not load
    is_published = base in PUBLISHED and folder == cache_folder(base)
    base_name = PUBLISHED[base] if is_published else folder and str(folder.resolve())
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base_name}
    settings |= {
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "use_rslora": lora.rslora,
        "target_modules": layers,
        "fan_in_fan_out": bool(family.turned),
        "bias": "none",
        "inference_mode": True,
    }
    if lora.token_ids:
        [embedding] = family.their_names("tok_emb")
        embedding = family.prefix + embedding
        settings["trainable_token_indices"] = {embedding: [*lora.token_ids]}
        rows = model.tok_emb(model.tok_emb.token_ids)  # (tokens, C)
        tensors[f"{embedding}.token_adapter.trainable_tokens_delta"] = rows
    tensors = {f"base_model.model.{name}": tensor for name, tensor in tensors.items()}
    files = {"adapter_config": settings, **files_beside(tokenizer, meta)}
    write_folder(Path(out_dir), "adapter_model.safetensors", tensors, files)
    return meta["template"]


def files_beside(tokenizer: Tokenizer, meta: dict) -> dict[str, dict]:
    """The tokenizer's files."""
    template = meta["template"] and jinja(TEMPLATES[meta["template"]])
    return tokenizer_files(tokenizer, template, meta["stop"][0])
