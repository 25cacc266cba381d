"""LoRA: every adapter learns, merging is exact, and an adapter on disk opens on its own base only."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_bundle
from torch import nn

from groundtune.errors import CheckpointError
from groundtune.loss.criterion import GroundingDINOCriterion, total
from groundtune.model.adapters import add_adapters, is_adapter, merge_adapters
from groundtune.model.bundle import ModelBundle
from groundtune.model.checkpoint.adapter import save_adapter
from groundtune.model.checkpoint.load import load_bundle
from groundtune.model.checkpoint.save import save_bundle
from groundtune.model.detector import GroundingDINO

NAMES = [["cat", "red blood cell"], ["zebra"], ["traffic light", "dog", "sofa"]]
SIZES_HW = [(64, 96), (48, 80), (96, 64)]


def adapters(network: GroundingDINO) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in network.named_parameters() if is_adapter(name)}


def trained(network: GroundingDINO, heads: bool = False) -> None:
    """Moves adapters, and the heads, as training would."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if is_adapter(name) or (heads and name.startswith(("bbox_head.", "decoder.label_embedding."))):
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def linear_layers(network: GroundingDINO) -> Iterator[str]:
    for part in ("encoder", "decoder"):
        for name, module in network.get_submodule(part).named_modules(prefix=part):
            if type(module) is nn.Linear:
                yield name


@pytest.mark.parametrize("kind", ["swin", "nano"])
def test_new_adapters_stand_at_every_linear_layer_and_change_no_bit(kind, tiny, make_case) -> None:
    network, case = tiny(kind), make_case(NAMES, SIZES_HW, [0] * 3)
    layers = set(linear_layers(network))
    with torch.no_grad():
        before = case.run(network)
        add_adapters(network, 4, 8.0)
        after = case.run(network)
    assert {name.rpartition(".lora_")[0] for name in adapters(network)} == layers
    assert {"encoder.layers.0.self_attn.value_proj", "decoder.layers.1.cross_attn.output_proj"} < layers
    assert torch.equal(before["pred_logits"], after["pred_logits"])
    assert torch.equal(before["pred_boxes"], after["pred_boxes"])


@pytest.mark.parametrize("kind", ["swin", "nano"])
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_every_adapter_matrix_gets_a_gradient(kind, gradient_checkpointing, tiny, make_case) -> None:
    network, case = tiny(kind), make_case(NAMES, SIZES_HW, [2, 0, 1])
    add_adapters(network, 4, 8.0)
    trained(network)  # at B = 0 the gradient of A is 0
    network.train()
    network.configure_training(denoising=True, gradient_checkpointing=gradient_checkpointing, bucket=None)
    total(GroundingDINOCriterion()(case.run(network), case.targets)).backward()
    matrices = adapters(network).items()
    silent = [name for name, matrix in matrices if matrix.grad is None or not matrix.grad.any()]
    assert len(adapters(network)) > 60 and silent == []


@pytest.mark.parametrize("kind", ["swin", "nano"])
def test_merged_is_the_adapted_network(kind, tiny, make_case) -> None:
    network, case = tiny(kind).double(), make_case(NAMES, SIZES_HW, [0] * 3)
    case.images = case.images.double()
    plain = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with torch.no_grad():
        base = case.run(network)
        add_adapters(network, 4, 8.0)
        trained(network)
        expected = {
            name.split(".lora_")[0] + ".weight": 2.0 * b @ network.get_parameter(name.replace("_B", "_A"))
            for name, b in adapters(network).items()
            if "_B" in name
        }  # 2 is alpha / rank
        adapted = case.run(network)
        merge_adapters(network)
        merged = case.run(network)
    finite = adapted["pred_logits"].isfinite()
    assert (adapted["pred_logits"] - base["pred_logits"])[finite].abs().max() > 0.01  # it matters
    torch.testing.assert_close(merged["pred_logits"], adapted["pred_logits"], rtol=0, atol=1e-9)
    torch.testing.assert_close(merged["pred_boxes"], adapted["pred_boxes"], rtol=0, atol=1e-9)
    assert network.state_dict().keys() == plain.keys()
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(tensor, plain[name] + expected.get(name, 0.0), rtol=0, atol=1e-6)


def test_the_seed_makes_the_adapters_and_leaves_the_random_state(tiny) -> None:
    networks = [tiny() for _ in range(3)]
    state = torch.get_rng_state()
    for network, seed in zip(networks, (0, 0, 1), strict=True):
        add_adapters(network, 4, 8.0, seed)
    assert torch.equal(torch.get_rng_state(), state)
    name = "encoder.layers.0.self_attn.value_proj.lora_A.default.weight"
    first, same, other = (network.get_parameter(name) for network in networks)
    assert torch.equal(first, same) and not torch.equal(first, other)


@pytest.fixture
def saved(tokenizer, tmp_path: Path) -> tuple[Path, ModelBundle]:
    """An adapter folder on the base `tmp_path / "base"`, and the merged model."""
    save_bundle(tiny_bundle(tokenizer), tmp_path / "base")
    bundle = load_bundle(tmp_path / "base")
    bundle.network.init_label_embedding(["red circle", "blue star"], tokenizer)
    bundle.classes = ["red circle", "blue star"]
    add_adapters(bundle.network, 4, 8.0)
    trained(bundle.network, heads=True)
    save_adapter(bundle, tmp_path / "adapter", {"data": "shapes"})
    merge_adapters(bundle.network)
    return tmp_path / "adapter", bundle


def test_an_adapter_opens_on_its_base_as_the_merged_model(saved, tmp_path) -> None:
    folder, merged = saved
    names = "adapter_config.json adapter_model.safetensors groundtune.json heads.safetensors"
    assert sorted(path.name for path in folder.iterdir()) == names.split()
    opened = load_bundle(folder)
    state, expected = opened.network.state_dict(), merged.network.state_dict()
    assert state.keys() == expected.keys()
    assert [name for name in state if not torch.equal(state[name], expected[name])] == []
    assert (opened.classes, opened.base_model) == (["red circle", "blue star"], "base")
    save_bundle(opened, tmp_path / "whole")  # and it can be saved whole
    assert torch.equal(
        load_bundle(tmp_path / "whole").network.state_dict()["encoder.level_embed"],
        state["encoder.level_embed"],
    )


def test_peft_itself_reads_the_adapter(saved, tmp_path) -> None:
    from peft import PeftModel

    folder, merged = saved
    theirs = PeftModel.from_pretrained(load_bundle(tmp_path / "base").network, folder)
    theirs = theirs.merge_and_unload().state_dict()
    ours = merged.network.state_dict()
    layers = [f"{name}.weight" for name in linear_layers(merged.network)]
    assert layers and [name for name in layers if not torch.equal(theirs[name], ours[name])] == []


def test_an_adapter_on_an_adapter(saved, tmp_path) -> None:
    folder, _ = saved
    bundle = load_bundle(folder)
    add_adapters(bundle.network, 2, 4.0, seed=5)
    trained(bundle.network)
    save_adapter(bundle, tmp_path / "second", {})
    merge_adapters(bundle.network)
    state = load_bundle(tmp_path / "second").network.state_dict()
    assert [
        name for name, tensor in bundle.network.state_dict().items() if not torch.equal(tensor, state[name])
    ] == []


def test_another_base_is_refused(saved, tmp_path, tokenizer) -> None:
    folder, _ = saved
    other = tiny_bundle(tokenizer)
    with torch.no_grad():
        other.network.encoder.level_embed[0, 0] += 1e-3  # of the same shapes
    save_bundle(other, tmp_path / "base")
    with pytest.raises(CheckpointError, match="was trained on other weights than those of .*base"):
        load_bundle(folder)


def test_the_heads_of_the_base_do_not_matter(saved, tmp_path, tokenizer) -> None:
    folder, _ = saved
    other = tiny_bundle(tokenizer)
    with torch.no_grad():
        other.network.decoder.label_embedding.weight.add_(1.0)  # made at random where a source has none
    save_bundle(other, tmp_path / "base")
    load_bundle(folder)


def rewrite(path: Path, **changed) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def test_an_adapter_without_its_base_says_where_it_looked(saved, tmp_path) -> None:
    folder, _ = saved
    shutil.move(tmp_path / "base", tmp_path / "moved")
    with pytest.raises(
        CheckpointError, match=r"needs the model '.*base', which cannot be loaded.*adapter_config\.json"
    ):
        load_bundle(folder)
    rewrite(folder / "adapter_config.json", base_model_name_or_path=str(tmp_path / "moved"))
    load_bundle(folder)


@pytest.mark.parametrize("base", ["{folder}", "", None, 3])
def test_an_adapter_that_names_itself_or_nothing_is_refused(base, saved) -> None:
    folder, _ = saved
    named = base.format(folder=folder) if isinstance(base, str) else base
    rewrite(folder / "adapter_config.json", base_model_name_or_path=named)
    with pytest.raises(CheckpointError, match="names no model as base_model_name_or_path"):
        load_bundle(folder)


@pytest.mark.parametrize(
    ("file", "changed", "told"),
    [
        ("adapter_config.json", {"lora_alpha": "much"}, "is incomplete"),
        ("groundtune.json", {"image_format": {}}, "is incomplete"),
        ("groundtune.json", {"classes": None}, "is incomplete"),
        ("heads.safetensors", {"bbox_head.reg_branches.0.layers.0.bias": None}, "do not fit"),
        ("heads.safetensors", {"decoder.label_embedding.weight": None}, "is incomplete"),
        ("heads.safetensors", {"bbox_head.reg_branches.0.layers.0.bias": torch.zeros(3)}, "do not fit"),
        (
            "adapter_model.safetensors",
            {"base_model.model.encoder.more.lora_A.weight": torch.zeros(4, 4)},
            "do not fit",
        ),
    ],
)
def test_a_damaged_adapter_is_refused_in_words(file, changed, told, saved) -> None:
    from safetensors.torch import load_file, save_file

    path = saved[0] / file
    if path.suffix == ".json":
        rewrite(path, **changed)
    else:
        weights = load_file(path) | changed
        save_file({name: tensor for name, tensor in weights.items() if tensor is not None}, path)
    with pytest.raises(CheckpointError, match=told):
        load_bundle(saved[0])
