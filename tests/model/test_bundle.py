"""Saving and loading: the same outputs, whole folders or none, messages that say what is wrong."""

import json
import os

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tiny_models import tiny_config

from groundtune.contracts import ImageFormat
from groundtune.errors import CheckpointError
from groundtune.model.bundle import ModelBundle, build_network, presets
from groundtune.model.checkpoint import save as room
from groundtune.model.checkpoint.load import load_bundle, load_recipe
from groundtune.model.checkpoint.save import save_bundle

IMAGE = ImageFormat(mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.1), short_side=64, max_side=96)
PROMPTS = [["cat", "red blood cell"], ["zebra"]]


@pytest.fixture
def make_bundle(tiny, tokenizer):
    def make(kind="swin", **overrides):
        config, recipe = tiny_config(kind, **overrides), {"epochs": 3, "lr": 1e-3}
        return ModelBundle(
            tiny(kind, **overrides), tokenizer, config, IMAGE, ["cat", "zebra"], recipe, "here"
        )

    return make


@pytest.fixture
def saved(make_bundle, tmp_path):
    bundle = make_bundle()
    save_bundle(bundle, tmp_path / "deep" / "model")
    return bundle, tmp_path / "deep" / "model"


def outputs(network, make_case):
    case = make_case(PROMPTS, [(64, 96), (48, 48)], [1, 1])
    with torch.no_grad():
        output = case.run(network)
    return output["pred_logits"], output["pred_boxes"]


@pytest.mark.parametrize(
    ("kind", "overrides"),
    [("swin", {}), ("swin", {"share_box_head": False}), ("nano", {"language_model": "minilm"})],
)
def test_saved_and_loaded_gives_equal_outputs(kind, overrides, make_bundle, make_case, tmp_path):
    bundle = make_bundle(kind, **overrides)
    bundle.network.init_label_embedding(["cat", "zebra", "hair dryer"], bundle.tokenizer)
    if kind == "nano":  # the packages' own weights are not stored, so they must be the packages' own
        fresh = build_network(bundle.config).language_model
        bundle.network.language_model.load_state_dict(fresh.state_dict())
    save_bundle(bundle, tmp_path / "model")
    loaded = load_bundle(tmp_path / "model")
    assert not loaded.network.training
    assert loaded.network.frozen == ({"backbone", "language_model"} if kind == "nano" else set())
    loaded.network.freeze(["backbone", "language_model"])
    # phrases were cached in batches of other sizes
    ours, theirs = (outputs(one.network, make_case) for one in (bundle, loaded))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    weights = loaded.network.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in bundle.network.state_dict().items())
    for part in ("config", "image_format", "classes", "recipe"):
        assert getattr(loaded, part) == getattr(bundle, part), part
    assert load_recipe(tmp_path / "model") == loaded.recipe == {"epochs": 3, "lr": 1e-3}
    text = "red blood cell. naïve café. "
    assert loaded.tokenizer(text).input_ids == bundle.tokenizer(text).input_ids
    assert loaded.tokenizer(text).char_to_token(0) == 1
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert any(name.startswith("backbone.") for name in stored) == (kind == "swin")


def test_a_fine_tuned_packaged_tower_survives_a_second_saving(make_bundle, make_case, tmp_path):
    """Loading freezes the tower again; its weights are nevertheless not the package's."""
    bundle = make_bundle("nano")
    bundle.network.freeze(["language_model"])
    with torch.no_grad():
        for parameter in bundle.network.backbone.parameters():
            parameter.mul_(1.02)
    expected = outputs(bundle.network, make_case)
    for folder in ("first", "second"):
        save_bundle(bundle, tmp_path / folder)
        bundle = load_bundle(tmp_path / folder)
        assert "backbone" in bundle.network.frozen
        assert all(map(torch.equal, outputs(bundle.network, make_case), expected)), folder


@pytest.mark.parametrize(
    ("failing", "error"),
    [
        *(("save_file", OSError), ("save_file", SafetensorError), ("tokenizer", OSError)),
        *(("replace", OSError), ("second replace", OSError)),
    ],
)
def test_a_failing_write_leaves_the_old_model_whole(failing, error, saved, make_case, monkeypatch):
    bundle, folder = saved
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with torch.no_grad():
        bundle.network.decoder.norm.weight.mul_(2.0)
    calls, replace = [], os.replace

    def fail(*args, **kwargs):
        raise error("disk full")

    def fail_at_the_second(source, target):
        calls.append(source)
        if len(calls) == 2:
            raise OSError("disk full")
        replace(source, target)

    with monkeypatch.context() as patch:
        if failing == "save_file":
            patch.setattr(room, "save_file", fail)
        elif failing == "tokenizer":
            patch.setattr(type(bundle.tokenizer), "save_pretrained", fail)
        else:
            patch.setattr(
                "groundtune.files._exchange", lambda path, other: False
            )  # as elsewhere than on Linux
            patch.setattr(os, "replace", fail if failing == "replace" else fail_at_the_second)
        with pytest.raises(CheckpointError, match="disk full"):
            save_bundle(bundle, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert list(folder.parent.iterdir()) == [folder], "nothing is left beside it"
    save_bundle(bundle, folder)
    assert list(folder.parent.iterdir()) == [folder]
    assert torch.equal(load_bundle(folder).network.decoder.norm.weight, bundle.network.decoder.norm.weight)


def _edit(folder, change):
    meta = json.loads((folder / "groundtune.json").read_text())
    change(meta)
    (folder / "groundtune.json").write_text(json.dumps(meta))


def _edit_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


def _without(prefix):
    return lambda weights: [weights.pop(name) for name in list(weights) if name.startswith(prefix)]


DAMAGES = {  # of what only our own folders have; weights and tokenizers are in test_faults
    "without groundtune.json": lambda f: (f / "groundtune.json").unlink(),
    "groundtune.json is not valid JSON": lambda f: (f / "groundtune.json").write_text("{"),
    "must hold an object, found list": lambda f: (f / "groundtune.json").write_text("[]"),
    "damaged: KeyError.*classes": lambda f: _edit(f, lambda meta: meta.pop("classes")),
    "damaged: TypeError.*color": lambda f: _edit(f, lambda meta: meta["config"].update(color=1)),
    "damaged: KeyError.*mean": lambda f: _edit(f, lambda meta: meta["image_format"].pop("mean")),
    "Unknown backbone 'resnet'": lambda f: _edit(f, lambda meta: meta["config"].update(backbone="resnet")),
    "missing, for example backbone.body": lambda f: _edit_weights(f, _without("backbone.")),
    "1 missing, for example language_model.bert": lambda f: _edit_weights(
        f, _without("language_model.bert.embeddings.LayerNorm.bias")
    ),
}


@pytest.mark.parametrize("message", DAMAGES)
def test_a_damaged_folder_is_refused_with_the_reason(message, saved):
    _, folder = saved
    DAMAGES[message](folder)
    with pytest.raises(CheckpointError, match=message):
        load_bundle(folder)


@pytest.mark.parametrize("source", ["nano2", "a/missing/folder", ""])
def test_an_unknown_source_lists_the_presets(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="Expected a preset .*nano.*, a model folder or run directory"):
        load_bundle(source)
    assert load_recipe(source) == {}


def test_a_folder_of_something_else_is_never_replaced(saved, make_bundle, tmp_path):
    """Saving replaces a model; a folder of images that was named by mistake stays as it is."""
    images = tmp_path / "images"
    images.mkdir()
    (images / "cat.jpg").write_text("dear")
    with pytest.raises(CheckpointError, match="images is not empty and no model of groundtune; name another"):
        save_bundle(make_bundle(), images)
    assert [path.read_text() for path in images.iterdir()] == ["dear"]
    (images / "cat.jpg").unlink()
    save_bundle(make_bundle(), images)
    assert load_bundle(images).classes == ["cat", "zebra"]


def test_a_folder_that_cannot_be_written_is_a_checkpoint_error(make_bundle, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="Cannot write the model"):
        save_bundle(make_bundle(), tmp_path / "file" / "model")


def test_nano_follows_its_seed_alone_and_leaves_the_global_random_state():
    state = torch.get_rng_state()
    first = load_bundle("nano-untrained", seed=3).network.state_dict()
    torch.rand(5)
    moved = torch.get_rng_state()
    again = load_bundle("nano-untrained", seed=3).network.state_dict()
    assert torch.equal(torch.get_rng_state(), moved) and not torch.equal(moved, state)
    other = load_bundle("nano-untrained", seed=4).network.state_dict()
    assert first.keys() == again.keys() and all(torch.equal(first[name], again[name]) for name in first)
    same = {name for name in first if torch.equal(first[name], other[name])}
    assert {name for name in first if name.startswith(("backbone.", "language_model."))} <= same
    assert not same & {"decoder.label_embedding.weight", "neck.convs.0.conv.weight", "encoder.level_embed"}
    torch.set_rng_state(state)


def test_presets_are_described_and_have_a_recipe():
    for name, preset in presets().items():
        assert preset["summary"] and preset["license"]
        assert load_recipe(name) == preset["training"]
