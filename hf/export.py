"""Folders that transformers and peft load."""

import json
import shutil
from pathlib import Path

from torch import Tensor

from hf import weights
from hf.tokenizer_files import tokenizer_files
from hf.weights import (
    ARCHITECTURE,
    PUBLISHED,
    SIZES,
    cache_folder,
    find_gpt2,
    new_folder,
    their_name,
    turned,
)
from lora import LoraLinear, merge_lora
from model import GPT
from tokenizer import END_OF_TEXT, Tokenizer


def write_folder(
    out_dir: Path, tensor_file: str, tensors: dict[str, Tensor], settings: dict[str, dict]
) -> None:
    """A new folder with a file of weights and JSON files, whole or not there. Raises ValueError and
    OSError."""
    safetensors = weights.import_safetensors()
    tensors = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    with new_folder(out_dir) as folder:
        for name, content in settings.items():
            (folder / f"{name}.json").write_text(json.dumps(content, indent=2), encoding="utf-8")
        try:
            safetensors.torch.save_file(tensors, folder / tensor_file, metadata={"format": "pt"})
        except safetensors.SafetensorError as error:
            raise OSError(f"{out_dir / tensor_file} could not be written ({error})") from None
        shutil.copymode(
            folder / "tokenizer.json", folder / tensor_file
        )  # the package lets only the owner read


def write_model(model: GPT, tokenizer: Tokenizer, meta: dict, out_dir: str | Path) -> str | None:
    """Write a folder that transformers loads; give the chat template's name. Adapters are merged.
    Padded rows of the vocabulary are left out, because nothing there would keep them from being
    sampled. Raises ValueError and OSError, and then leaves nothing."""
    config, [stop], state = model.config, meta["stop"], merge_lora(model).state_dict()
    state["tok_emb.weight"] = state["tok_emb.weight"][: config.n_vocab]
    tensors = {
        f"transformer.{their_name(name)}": turned(name, tensor) for name, tensor in state.items()
    }
    end_of_text = tokenizer.special(END_OF_TEXT)
    ids = {"bos_token_id": end_of_text, "eos_token_id": stop, "pad_token_id": end_of_text}
    settings = (
        ARCHITECTURE | {theirs: getattr(config, ours) for ours, theirs in SIZES.items()} | ids
    )
    settings |= {"architectures": ["GPT2LMHeadModel"], "vocab_size": config.n_vocab}
    settings |= {"dtype": str(state["tok_emb.weight"].dtype).removeprefix("torch.")}
    settings |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    files = {
        "config": settings,
        "generation_config": ids,
        **tokenizer_files(tokenizer, meta["template"], stop),
    }
    write_folder(Path(out_dir), "model.safetensors", tensors, files)
    return meta["template"]


def write_adapter(model: GPT, tokenizer: Tokenizer, meta: dict, out_dir: str | Path) -> str | None:
    """Write a LoRA run's adapter for peft, and its tokenizer; give the chat template's name. The
    rows of the special tokens are whole there, not differences. Raises ValueError and OSError, and
    then leaves nothing."""
    lora = model.lora
    tensors, layers, base = {}, [], meta["base"]["path"]
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            layers.append(f"transformer.{their_name(name)}")
            tensors |= {
                f"{layers[-1]}.lora_A.weight": module.lora_a,
                f"{layers[-1]}.lora_B.weight": module.lora_b,
            }
    folder = find_gpt2(base)  # None for a checkpoint of ours, which peft could not load
    is_published = base in PUBLISHED and folder == cache_folder(base)
    base_name = PUBLISHED[base] if is_published else folder and str(folder.resolve())
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base_name}
    settings |= {
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "use_rslora": lora.rslora,
    }
    settings |= {
        "target_modules": layers,
        "fan_in_fan_out": True,
        "bias": "none",
        "inference_mode": True,
    }
    if lora.token_ids:
        settings["trainable_token_indices"] = {"transformer.wte": [*lora.token_ids]}
        rows = model.tok_emb(model.tok_emb.token_ids)  # (tokens, C)
        tensors["transformer.wte.token_adapter.trainable_tokens_delta"] = rows
    tensors = {f"base_model.model.{name}": tensor for name, tensor in tensors.items()}
    files = {
        "adapter_config": settings,
        **tokenizer_files(tokenizer, meta["template"], meta["stop"][0]),
    }
    write_folder(Path(out_dir), "adapter_model.safetensors", tensors, files)
    return meta["template"]
