"""Models from everywhere: presets, our own folders, Hugging Face directories and the Hub, IDEA's and MMDetection's .pth.

What a source says decides the sizes, the contrastive variant, head sharing, tokenizer, image format and the eps of the
inverse sigmoid. Deviation from transformers (pitfall 13): whether the heads of the decoder layers are one and the same is
read off the weights; a configuration that leaves the flag out would tie heads that are not equal.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BertTokenizer

from groundtune.errors import CheckpointError
from groundtune.model.bundle import (
    PRESET_FOLDER,
    ModelBundle,
    build_network,
    companion,
    image_format_of,
    kept_state,
    packaged_towers,
    presets,
    unique_state,
)
from groundtune.model.checkpoint import adapter, convert, hf
from groundtune.model.checkpoint.convert import LABELS, layout_of, same_branches, source_name, to_groundtune
from groundtune.model.checkpoint.files import in_one_line, read_json, read_pth, read_safetensors, read_weights
from groundtune.model.checkpoint.hub import looks_like_hub_id, snapshot
from groundtune.model.checkpoint.names import Layout
from groundtune.model.checkpoint.save import KEPT
from groundtune.model.config import ModelConfig
from groundtune.model.detector import GroundingDINO
from groundtune.model.language import bert_tokenizer
from groundtune.model.prompt_tuning import VECTORS, offsets_of
from groundtune.text.prompt import clean_name
from groundtune.text.tokens import build_tokenizer

Weights = dict[str, Tensor]
# What is made one by one; published models have at most 24 layers of a kind and prompts of 256 tokens.
_ONE_BY_ONE = (
    "encoder_layers",
    "decoder_layers",
    "num_levels",
    "max_text_len",
    "num_hidden_layers",
    "backbone.depths",
)
_TOWER_COUNTS = (
    *("num_hidden_layers", "num_attention_heads", "hidden_size", "intermediate_size"),
    *(f"backbone.{name}" for name in ("depths", "num_heads", "embed_dim", "window_size", "patch_size")),
)
_MOST, _LARGEST = 1024, 10_000_000
_SEPARATORS = {"[CLS]": 101, "[SEP]": 102, ".": 1012, "?": 1029}


def load_bundle(source: str | Path, seed: int = 0) -> ModelBundle:
    """Load a model.

    Args:
        source: a preset's name ("nano"); a folder of ours, an adapter's too, or a Hugging Face directory; a .pth of IDEA or
            MMDetection; or a Hub id such as "IDEA-Research/grounding-dino-tiny", which is downloaded once.
        seed: of the weights that the source leaves untrained.

    Raises:
        CheckpointError: the source does not exist, is not a model, or does not fit its own configuration.
    """
    path, name, known = Path(source), str(source), presets()
    if name in known and not path.is_dir():
        config, recipe = ModelConfig(**known[name]["model"]), load_recipe(name)
        network, image = (
            _preset_network(config, known[name]["weights"], seed),
            image_format_of(known[name]["image_format"]),
        )
        return ModelBundle(
            network, bert_tokenizer(), config, image, recipe=recipe, source=name, base_model=name
        )
    if path.suffix == ".safetensors" and path.is_file():
        raise CheckpointError(
            f"{path} is one file of a Hugging Face directory; name its folder {path.parent}."
        )
    if path.is_file():
        return bundle_of_pth_state(*read_pth(path), str(path), seed=seed)
    base_model = path.resolve().name
    if name and not path.exists() and looks_like_hub_id(name):
        path, base_model = snapshot(name), name
    if name and (path / "adapter_config.json").is_file():
        bundle = _bundle_of_adapter(path, seed)
    elif name and (path / "groundtune.json").is_file():
        bundle = _bundle_of_own_folder(path, name)
    elif name and (path / "config.json").is_file():
        bundle = _bundle_of_transformers(path, name, seed)
    else:
        found = (
            "a folder without groundtune.json and config.json" if path.is_dir() else "no such file or folder"
        )
        raise CheckpointError(
            f"Cannot load the model {name!r}: {found}. Expected a preset ({', '.join(known)}), a model folder or run "
            "folder of groundtune, a Hugging Face directory or Hub id, or a .pth of IDEA or MMDetection."
        )
    bundle.source, bundle.base_model = name, bundle.base_model or base_model
    return bundle


def _preset_network(config: ModelConfig, weights: str | None, seed: int) -> GroundingDINO:
    """The trained part of a preset ships in the package, as float16 and without the denoising labels of its classes."""
    if weights is None:
        return build_network(config, seed)
    file = PRESET_FOLDER / weights
    return _network(
        config,
        read_safetensors(file),
        file.name,
        seed,
        None,
        (*(f"{t}." for t in packaged_towers(config)), LABELS),
    )


def model_source(source: str | Path) -> str:
    """Return the model to load: that of a run directory, or the source itself."""
    inside = Path(source) / "model"
    return str(inside) if (inside / "groundtune.json").is_file() else str(source)


def load_recipe(source: str | Path) -> dict[str, Any]:
    """Training defaults of a model without loading it: of a preset, or of a folder of ours; {} where there are none."""
    known = presets()
    if str(source) in known and not Path(source).is_dir():
        return dict(known[str(source)].get("training", {}))
    path = Path(source) / "groundtune.json"
    recipe = read_json(path).get("recipe", {}) if path.is_file() else {}
    if not isinstance(recipe, dict):
        raise CheckpointError(f"{path}: expected an object as its recipe, found {type(recipe).__name__}.")
    return recipe


def _bundle_of_own_folder(folder: Path, where: str) -> ModelBundle:
    meta = read_json(folder / "groundtune.json")
    try:
        config, image = _plain_config(meta["config"]), image_format_of(meta["image_format"])
        classes, recipe = [clean_name(str(name)) for name in meta["classes"]], dict(meta["recipe"])
        base_model = str(meta.get("base_model", ""))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / 'groundtune.json'} is not complete: {error!r}.") from error
    weights, layout, towers = read_weights(folder), None, packaged_towers(_refuse_depth(config, where))
    if meta.get("layout") == "transformers":
        layout = layout_of("transformers", config)
        weights = to_groundtune(weights, layout, where) | read_safetensors(folder / "groundtune.safetensors")
    own_towers = {tower for tower in towers if any(key.startswith(f"{tower}.") for key in weights)}
    packaged = tuple(f"{tower}." for tower in towers if tower not in own_towers)
    vectors, tokenizer = weights.pop(VECTORS, None), _tokenizer(folder)
    network = _network(config, weights, where, 0, layout, packaged)
    if vectors is not None:
        names = meta.get("phrase_offsets")
        network.encoder.phrase_offsets = offsets_of(
            names, vectors, tokenizer, network.language_model.width, where
        )
    kept = _kept(network, folder / KEPT) if (folder / KEPT).is_file() else None
    return ModelBundle(
        network, tokenizer, config, image, classes, recipe, where, own_towers, base_model, kept
    )


def _kept(network: GroundingDINO, file: Path) -> GroundingDINO:
    weights, kept = read_safetensors(file), companion(network)
    expected = kept_state(kept)
    shapes, found = ({name: tensor.shape for name, tensor in state.items()} for state in (expected, weights))
    wrong = sorted(name for name in shapes.keys() | found.keys() if shapes.get(name) != found.get(name))
    if wrong:
        raise CheckpointError(
            f"The weights in {file} do not fit the model: {len(wrong)} are missing, unexpected or of another shape, for "
            f"example {', '.join(wrong[:3])}."
        )
    kept.load_state_dict(weights, strict=False)
    return kept


def _plain_config(values: dict[str, Any]) -> ModelConfig:
    """Sizes of the right types and nothing else: other options of transformers may name code on the Hub, to be run.

    Raises:
        TypeError, ValueError: anything else is there.
    """
    config, usual = ModelConfig(**values), vars(ModelConfig())
    kinds = {name: (int, float) if isinstance(value, float) else type(value) for name, value in usual.items()}
    wrong = {name: value for name, value in vars(config).items() if not isinstance(value, kinds[name])}
    if not wrong:
        wrong |= {
            name: value for name, value in vars(config).items() if isinstance(value, float) and value - value
        }
        wrong |= {
            n: v for n, v in config.backbone_config.items() if n not in (*hf.SWIN_OPTIONS, "out_indices")
        }
        wrong |= {n: v for n, v in config.language_config.items() if n not in hf.BERT_OPTIONS}
    if wrong:
        raise ValueError(f"its config has {wrong!r:.200}")
    return config


def _bundle_of_adapter(folder: Path, seed: int) -> ModelBundle:
    base, adapters = adapter.base_of(folder)
    try:
        bundle = load_bundle(base, seed)
    except CheckpointError as error:
        raise CheckpointError(
            f"The adapter {folder} stands on the model {base!r}, which cannot be loaded: {in_one_line(error)} Name where it "
            f"lies now in base_model_name_or_path of {adapters[0] / adapter.CONFIG}."
        ) from error
    for part in adapters:
        bundle = adapter.with_adapter(bundle, part)
    return bundle


def _bundle_of_transformers(folder: Path, where: str, seed: int) -> ModelBundle:
    config = _refuse_depth(hf.config_of_transformers(read_json(folder / "config.json"), where), where)
    layout = layout_of("transformers", config)
    weights = to_groundtune(read_weights(folder), layout, where)
    config.share_box_head &= same_branches(weights, "reg", config.decoder_layers)
    config.share_class_head &= same_branches(weights, "cls", config.decoder_layers)
    network = _network(config, weights, where, seed, layout, (LABELS,))
    return ModelBundle(network, _tokenizer(folder), config, hf.image_of_transformers(folder))


def bundle_of_pth_state(
    state: Weights, family: str, where: str, *, seed: int = 0, bert_heads: int | None = None
) -> ModelBundle:
    """A model from the weights and the family that `read_pth` gives, `where` the file is; arguments as in `load_bundle`.

    Raises:
        CheckpointError: the weights do not fit one network.
    """
    layout = None
    try:
        layout = convert.pth_layout(state, family)
        weights = to_groundtune(state, layout, where)
        config = convert.config_of_pth(weights, family, bert_heads)
    except KeyError as error:
        name = source_name(str(error.args[0]), layout)
        raise CheckpointError(
            f"{where} has no weights {name}, from which a size is read. Is it complete?"
        ) from error
    except (IndexError, TypeError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(
            f"{where} has weights of shapes that no Grounding DINO has: {error}."
        ) from error
    network = _network(config, weights, where, seed, layout, (LABELS,))
    image, base_model = hf.PUBLISHED_IMAGE, Path(where).name
    return ModelBundle(network, bert_tokenizer(), config, image, source=where, base_model=base_model)


def _network(
    config: ModelConfig,
    weights: Weights,
    where: str,
    seed: int,
    layout: Layout | None,
    absent: tuple[str, ...],
) -> GroundingDINO:
    """A network of these sizes and weights, which may lack the prefixes `absent`; messages have the names of the file."""
    try:
        with (
            warnings.catch_warnings(),
            torch.device("meta"),
        ):  # no memory: sizes are judged before any is taken
            warnings.simplefilter("ignore")  # packaged weights are not taken over either
            planned = build_network(config, seed)
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise CheckpointError(
            f"{where}: no network can be built of its sizes: {in_one_line(error)}."
        ) from error
    expected, needed = planned.state_dict(), unique_state(planned)
    shapes = {
        name: (list(weights[name].shape), list(expected[name].shape)) for name in weights if name in expected
    }
    faults = {
        "missing": [source_name(n, layout) for n in needed if n not in weights and not n.startswith(absent)],
        "unexpected": [source_name(name, layout) for name in weights if name not in expected],
        "of another shape": [
            f"{source_name(n, layout)} {a}, expected {b}" for n, (a, b) in shapes.items() if a != b
        ],
    }
    problems = [
        f"{len(names)} {kind}, for example {', '.join(names[:3])}" for kind, names in faults.items() if names
    ]
    if problems:
        raise CheckpointError(f"The weights in {where} do not fit the model: {'; '.join(problems)}.")
    network = build_network(config, seed)
    network.load_state_dict(weights, strict=False)
    return network


def _refuse_depth(config: ModelConfig, where: str) -> ModelConfig:
    """Layers and names are made one by one, so their number is judged before any is; and of heads no weight tells."""
    own = {name: value for name, value in vars(config).items() if type(value) is int}
    towers = config.language_config | {
        f"backbone.{name}": value for name, value in config.backbone_config.items()
    }
    for name, value in [*own.items(), *((name, towers[name]) for name in _TOWER_COUNTS if name in towers)]:
        counts = value if isinstance(value, list) else [value]
        most = _MOST if name in _ONE_BY_ONE else _LARGEST
        if len(counts) > _MOST or not all(isinstance(count, int) and 1 <= count <= most for count in counts):
            raise CheckpointError(f"{where}: no network can be built of its sizes: {name} is {value!r:.60}.")
    return config


def _tokenizer(folder: Path) -> BertTokenizer:
    """The directory's own tokenizer, as the plain WordPiece one: only its vocabulary decides."""
    if (folder / "vocab.txt").is_file():
        return build_tokenizer(folder / "vocab.txt")
    if not (folder / "tokenizer.json").is_file():  # transformers would make a tokenizer without a vocabulary
        raise CheckpointError(
            f"Cannot read the tokenizer in {folder}: neither vocab.txt nor tokenizer.json exists."
        )
    try:  # not from_pretrained, which takes more than a vocabulary from the folder, and may ask the Hub
        tokenizer = BertTokenizer(vocab=read_json(folder / "tokenizer.json")["model"]["vocab"])
    except Exception as error:  # the library that builds it raises plain Exception
        raise CheckpointError(f"Cannot read the tokenizer in {folder}: {in_one_line(error)}.") from error
    found = {token: tokenizer.convert_tokens_to_ids(token) for token in _SEPARATORS}
    if found != _SEPARATORS:
        why = f"the phrase separators have the ids {found}, expected {_SEPARATORS}"
        raise CheckpointError(f"The tokenizer in {folder} is not that of bert-base-uncased: {why}.")
    return tokenizer
