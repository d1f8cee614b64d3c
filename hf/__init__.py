"""Hugging Face's formats: published weights in; model, tokenizer, chat template and adapter out.

    python sft.py --init gpt2 --data mine.jsonl      trains published weights, or a folder's
    python -m hf export out/mine-1 DIR               writes a folder that transformers loads
    python -m hf export out/mine-1 DIR --adapter     writes a LoRA run's adapter, for peft
    python -m hf check gpt2 FILE                     the mean loss on a text, to compare

families.py has the names of that world's settings and weights, weights.py reads its files,
tokenizer_files.py its tokenizers, templates.py its chat templates.
"""

from pathlib import Path

from chat_template import TEMPLATES
from hf.templates import find_template
from hf.tokenizer_files import read_json
from hf.weights import PUBLISHED, cache_folder, find_model, load_model
from model import GPT
from tokenizer import END_OF_TEXT, Tokenizer


def load(name_or_dir: str | Path, dropout: float = 0.0) -> tuple[GPT, Tokenizer, dict]:
    """What `load_checkpoint` gives, for a model in this format. Its template is known where it is
    one of ours, as in a folder that `export` wrote. Raises ValueError and OSError for what is not
    there, is damaged, or is of another architecture."""
    folder = find_model(name_or_dir)
    if folder is None:
        known = f"no folder with a config.json, and none of {', '.join(PUBLISHED)}"
        raise FileNotFoundError(f"{name_or_dir}: {known}")
    model, tokenizer = load_model(folder, dropout)
    template = find_template(folder)
    stop = tokenizer.special(TEMPLATES[template].stop if template else END_OF_TEXT)
    others = [i for i in stop_ids(folder) if i != stop and i < tokenizer.n_vocab]
    file = name_or_dir if folder == cache_folder(str(name_or_dir)) else folder
    return model, tokenizer, {"file": str(file), "template": template, "stop": [stop, *others]}


def stop_ids(folder: Path) -> list[int]:
    """The ids at which generation ends, as the folder's generation_config.json says."""
    path = folder / "generation_config.json"
    ids = read_json(path).get("eos_token_id") if path.is_file() else None
    return [i for i in (ids if isinstance(ids, list) else [ids]) if type(i) is int and i >= 0]
