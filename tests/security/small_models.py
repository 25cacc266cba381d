"""Folders of a model of a few thousand weights, and the vocabulary of a thousand words that goes
with it.
"""

from pathlib import Path
from typing import Any

from tiny_models import BERT, tiny_bundle
from transformers import BertTokenizer

from groundtune.model.bundle import ModelBundle
from groundtune.model.checkpoint.save import save_bundle
from groundtune.text.tokens import build_tokenizer

WORDS = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 1012: ".", 1029: "?"}
WORDS |= {1030: "cat", 1031: "dog", 1000: "red", 1001: "blue", 1002: "green"}
IN_TRANSFORMERS: dict[str, Any] = {
    "query_content": "learned",
    "contrastive_scale": "none",
    "contrastive_bias": False,
}


def small_tokenizer(folder: Path) -> BertTokenizer:
    (folder / "vocab.txt").write_text(
        "".join(f"{WORDS.get(number, f'[unused{number}]')}\n" for number in range(1032))
    )
    return build_tokenizer(folder / "vocab.txt")


def small_bundle(folder: Path, **sizes: Any) -> ModelBundle:
    bundle = tiny_bundle(small_tokenizer(folder), language_config=BERT | {"vocab_size": 1032}, **sizes)
    bundle.classes = ["cat", "dog"]
    return bundle


def save_small(folder: Path, kind: str) -> Path:
    """A folder of ours ("own"), or a Hugging Face directory without anything of ours ("theirs")."""
    folder.mkdir()
    sizes = (
        IN_TRANSFORMERS | {"fusion_heads": 1, "text_ffn_dim": 32, "fusion_dim": 32}
        if kind == "theirs"
        else {}
    )
    save_bundle(small_bundle(folder, **sizes), folder / kind)
    if kind == "theirs":
        for name in ("groundtune.json", "groundtune.safetensors", "README.md"):
            (folder / kind / name).unlink()
    return folder / kind
