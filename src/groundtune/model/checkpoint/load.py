"""Models from everywhere: presets, our own folders, Hugging Face directories, the Hub, .pth files.

The source decides sizes, contrastive variant, head sharing, tokenizer, image format and the eps of
the inverse sigmoid. Deviation from transformers: the weights decide whether decoder layers share
heads; where a configuration omits the flag, transformers would tie heads that are not equal.
"""

import math
import shlex
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BertTokenizer

from groundtune.errors import CheckpointError
from groundtune.model import bundle as bundles
from groundtune.model.bundle import ModelBundle, build_network, image_format_of, presets, unique_state
from groundtune.model.checkpoint import adapter, convert, files, hf
from groundtune.model.checkpoint.convert import LABELS, layout_of, same_branches, source_name, to_groundtune
from groundtune.model.checkpoint.files import in_one_line, names_of, read_json, read_safetensors
from groundtune.model.checkpoint.hub import looks_like_hub_id, snapshot
from groundtune.model.checkpoint.names import Layout
from groundtune.model.checkpoint.save import BASE_NETWORK
from groundtune.model.config import ModelConfig
from groundtune.model.detector import GroundingDINO
from groundtune.model.language import bert_tokenizer
from groundtune.model.prompt_tuning import VECTORS, offsets_of
from groundtune.text.tokens import build_tokenizer, check_separators

Weights = dict[str, Tensor]
# Sizes whose elements are created one by one; published models have at most 256.
_COUNTS = "encoder_layers decoder_layers num_levels max_text_len num_hidden_layers backbone.depths".split()
_BERT_SIZES = "num_hidden_layers num_attention_heads hidden_size intermediate_size".split()
_SWIN_SIZES = "depths num_heads embed_dim window_size patch_size".split()
_MAX_COUNT, _MAX_SIZE = 1024, 10_000_000


def load_bundle(source: str | Path, seed: int = 0) -> ModelBundle:
    """Load a model.

    Args:
        source: a preset ("nano"); a folder of ours (a model, run or adapter) or a Hugging Face
            directory; a .pth of IDEA or MMDetection; or a Hub id such as
            "IDEA-Research/grounding-dino-tiny", which is downloaded once.
        seed: for weights that the source does not have.

    Raises:
        CheckpointError: the source does not exist, is not a model, or is damaged.
    """
    path, name, known = Path(source), str(source), presets()
    if name in known and not path.is_dir():
        return _bundle_of_preset(name, known[name], seed)
    if path.suffix == ".safetensors" and path.is_file():
        raise CheckpointError(f"{path} is one file of a Hugging Face folder; name its folder {path.parent}.")
    if path.is_file():
        return bundle_of_pth_state(*files.read_pth(path), str(path), seed=seed)
    base_model = path.resolve().name
    if name and not path.exists() and looks_like_hub_id(name):
        path, base_model = snapshot(name), name
    if name and (path / adapter.CONFIG).is_file():
        bundle = _bundle_of_adapter(path, seed)
    elif name and (path / "groundtune.json").is_file():
        bundle = _bundle_of_own_folder(path, name)
    elif name and (path / "config.json").is_file():
        bundle = _bundle_of_transformers(path, name, seed)
    else:
        if (path / "checkpoints").is_dir() and (path / "config.yaml").is_file():
            fix = f"Resume it with: groundtune train --resume {shlex.quote(name)}"
            raise CheckpointError(f"The run {name} has no model: its first evaluation did not end. {fix}")
        no_files = "a folder without groundtune.json and config.json"
        raise CheckpointError(
            f"Cannot load the model {name!r}: {no_files if path.is_dir() else 'no such file or folder'}. "
            f"Expected a preset ({', '.join(known)}), a model folder or run directory of groundtune, a "
            "Hugging Face directory or Hub id, or a .pth of IDEA or MMDetection."
        )
    bundle.source, bundle.base_model = name, bundle.base_model or base_model
    return bundle


def model_source(source: str | Path) -> str:
    """Return the model to load: that of a run directory, or the source itself."""
    inside = Path(source) / "model"
    return str(inside) if (inside / "groundtune.json").is_file() else str(source)


def load_recipe(source: str | Path) -> dict[str, Any]:
    """Return the training defaults of a preset or a folder of ours, or else {}."""
    if str(source) in presets() and not Path(source).is_dir():
        return dict(presets()[str(source)].get("training", {}))
    path = Path(source) / "groundtune.json"
    recipe = read_json(path).get("recipe", {}) if path.is_file() else {}
    if not isinstance(recipe, dict):
        raise CheckpointError(f"{path}: expected an object as its recipe, found {type(recipe).__name__}.")
    return recipe


def _bundle_of_preset(name: str, values: dict[str, Any], seed: int) -> ModelBundle:
    """Load a preset, whose trained part ships as float16 and without denoising labels."""
    config, image = ModelConfig(**values["model"]), image_format_of(values["image_format"])
    if values["weights"] is None:
        network = build_network(config, seed)
    else:
        file = bundles.PRESET_FOLDER / values["weights"]
        absent = [f"{tower}." for tower in bundles.packaged_towers(config)]
        network = _network(config, read_safetensors(file), file.name, seed, None, (*absent, LABELS))
    recipe = dict(values.get("training", {}))
    return ModelBundle(network, bert_tokenizer(), config, image, recipe=recipe, source=name, base_model=name)


def _bundle_of_own_folder(folder: Path, where: str) -> ModelBundle:
    meta = read_json(folder / "groundtune.json")
    try:
        config, image = _plain_config(meta["config"]), image_format_of(meta["image_format"])
        (classes, phrases), recipe = names_of(meta), dict(meta["recipe"])
        base_model = str(meta.get("base_model", ""))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / 'groundtune.json'} is incomplete or damaged: {error!r}.") from error
    _check_sizes(config, where)
    weights, layout, towers = files.read_weights(folder), None, bundles.packaged_towers(config)
    if meta.get("layout") == "transformers":
        layout = layout_of("transformers", config)
        weights = to_groundtune(weights, layout, where) | read_safetensors(folder / "groundtune.safetensors")
    tuned_towers = {tower for tower in towers if any(key.startswith(f"{tower}.") for key in weights)}
    packaged = tuple(f"{tower}." for tower in towers if tower not in tuned_towers)
    vectors, tokenizer = weights.pop(VECTORS, None), _tokenizer(folder)
    network = _network(config, weights, where, 0, layout, packaged)
    if vectors is not None:
        names, width = meta.get("phrase_offsets"), network.language_model.width
        network.encoder.phrase_offsets = offsets_of(names, vectors, tokenizer, width, where)
    base = _base_network(network, folder / BASE_NETWORK)
    return ModelBundle(
        network, tokenizer, config, image, classes, recipe, where, tuned_towers, base_model, base, phrases
    )


def _base_network(network: GroundingDINO, file: Path) -> GroundingDINO | None:
    if not file.is_file():
        return None
    weights, base = read_safetensors(file), bundles.companion(network)
    files.check_fit(weights, unique_state(base, bundles.TOWERS), str(file))
    base.load_state_dict(weights, strict=False)
    return base


def _bundle_of_adapter(folder: Path, seed: int) -> ModelBundle:
    base, adapters = adapter.base_of(folder)
    try:
        bundle = load_bundle(base, seed)
    except CheckpointError as error:
        raise CheckpointError(
            f"The adapter {folder} needs the model {base!r}, which cannot be loaded: {in_one_line(error)} "
            f"Give its new path in base_model_name_or_path of {adapters[0] / adapter.CONFIG}."
        ) from error
    for part in adapters:
        bundle = adapter.with_adapter(bundle, part)
    return bundle


def _bundle_of_transformers(folder: Path, where: str, seed: int) -> ModelBundle:
    config = hf.config_of_transformers(read_json(folder / "config.json"), where)
    _check_sizes(config, where)
    layout = layout_of("transformers", config)
    weights = to_groundtune(files.read_weights(folder), layout, where)
    config.share_box_head &= same_branches(weights, "reg", config.decoder_layers)
    config.share_class_head &= same_branches(weights, "cls", config.decoder_layers)
    network = _network(config, weights, where, seed, layout, (LABELS,))
    return ModelBundle(network, _tokenizer(folder), config, hf.image_of_transformers(folder))


def bundle_of_pth_state(
    state: Weights, family: str, where: str, *, seed: int = 0, bert_heads: int | None = None
) -> ModelBundle:
    """Make a model of the weights and the family that `read_pth` returns, of the file `where`.

    `bert_heads` are the heads of the language model; None: one per 64 channels.

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
        raise CheckpointError(f"{where} has no {name}, which defines a size. Is it complete?") from error
    except (IndexError, TypeError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(f"{where} has shapes that no Grounding DINO has: {error}.") from error
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
    """Build a network and load its weights, which may lack the prefixes `absent`."""
    try:
        # On the meta device sizes are checked before any memory is taken.
        with warnings.catch_warnings(), torch.device("meta"):
            warnings.simplefilter("ignore")  # packaged weights are not copied there
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
        raise _unusable_sizes(where, in_one_line(error)) from error
    expected, needed = planned.state_dict(), unique_state(planned)
    optional = {name for name in expected if name not in needed or name.startswith(absent)}
    files.check_fit(weights, expected, where, optional, lambda name: source_name(name, layout))
    network = build_network(config, seed)
    network.load_state_dict(weights, strict=False)
    return network


def _unusable_sizes(where: str, why: str) -> CheckpointError:
    return CheckpointError(f"{where}: no network can be built of its sizes: {why}.")


def _plain_config(values: dict[str, Any]) -> ModelConfig:
    """Check the types of sizes, and that no option can make transformers run code.

    Raises:
        TypeError, ValueError: with the options that are wrong.
    """
    config, usual = ModelConfig(**values), vars(ModelConfig())
    kinds = {name: (int, float) if isinstance(value, float) else type(value) for name, value in usual.items()}

    def is_plain(name: str, value: Any) -> bool:
        return isinstance(value, kinds[name]) and not (isinstance(value, float) and not math.isfinite(value))

    wrong = {name: value for name, value in vars(config).items() if not is_plain(name, value)}
    if not wrong:
        towers = ((config.backbone_config, hf.SWIN_OPTIONS), (config.language_config, hf.BERT_OPTIONS))
        wrong = {name: value for tower, known in towers for name, value in tower.items() if name not in known}
    if wrong:
        raise ValueError(f"its config has {wrong!r:.200}")
    return config


def _check_sizes(config: ModelConfig, where: str) -> None:
    """Check sizes before anything is built: layers are created one by one."""
    bert, swin = config.language_config, config.backbone_config
    sizes: dict[str, Any] = {name: value for name, value in vars(config).items() if type(value) is int}
    sizes |= {name: bert[name] for name in _BERT_SIZES if name in bert}
    sizes |= {f"backbone.{name}": swin[name] for name in _SWIN_SIZES if name in swin}
    for name, value in sizes.items():
        counts = value if isinstance(value, list) else [value]
        largest = _MAX_COUNT if name in _COUNTS else _MAX_SIZE
        valid = all(isinstance(count, int) and 1 <= count <= largest for count in counts)
        if not valid or len(counts) > _MAX_COUNT:
            raise _unusable_sizes(where, f"{name} is {value!r:.60}")


def _tokenizer(folder: Path) -> BertTokenizer:
    """Read the directory's own tokenizer as the plain WordPiece one: only its vocabulary counts."""
    if (folder / "vocab.txt").is_file():
        return build_tokenizer(folder / "vocab.txt")
    if not (folder / "tokenizer.json").is_file():  # transformers would make a tokenizer without a vocabulary
        raise CheckpointError(f"Cannot read the tokenizer in {folder}: expected vocab.txt or tokenizer.json.")
    try:  # not from_pretrained, which reads more than the vocabulary and may connect to the Hub
        tokenizer = BertTokenizer(vocab=read_json(folder / "tokenizer.json")["model"]["vocab"])
    except Exception as error:  # the library that builds it raises plain Exception
        raise CheckpointError(f"Cannot read the tokenizer in {folder}: {in_one_line(error)}.") from error
    return check_separators(tokenizer, f"The tokenizer in {folder}")
