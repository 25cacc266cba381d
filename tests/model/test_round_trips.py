"""Weights that go through us and come out in a file again: equal tensors, under the same names."""

import json

import pytest
import torch
from oracle_models import CASES, oracle
from safetensors.torch import load_file, save_file

from groundtune.model.checkpoint.convert import LABELS, to_groundtune, to_layout
from groundtune.model.checkpoint.files import read_pth
from groundtune.model.checkpoint.load import bundle_of_pth_state, load_bundle
from groundtune.model.checkpoint.names import project_layout
from groundtune.model.checkpoint.save import save_bundle, save_idea


@pytest.fixture
def theirs(tokenizer, tmp_path):
    """`theirs(family, heads, stages)`: a folder as transformers writes it."""

    def write(family="grounding-dino", heads=None, stages=(2, 3, 4)):
        model = oracle(family, heads or {}, list(stages))
        model.save_pretrained(tmp_path / "theirs")
        tokenizer.save_pretrained(tmp_path / "theirs")
        return tmp_path / "theirs"

    return write


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize(("family", "heads", "stages"), CASES)
def test_transformers_to_ours_to_transformers(family, heads, stages, theirs, tmp_path):
    folder = theirs(family, heads, stages)
    save_bundle(load_bundle(folder), tmp_path / "ours")
    found, expected = (load_file(place / "model.safetensors") for place in (tmp_path / "ours", folder))
    tied = {n for n in found if n.startswith(("bbox_embed", "class_embed")) and n not in expected}
    for name in tied:  # transformers leaves the second names of tied heads out
        first = ".".join([name.split(".")[0], "0", *name.split(".")[2:]])
        assert torch.equal(found.pop(name), expected[first])
    pooled = "model.backbone.conv_encoder.model.swin.layernorm."  # of classification: no feature map goes through it
    assert_equal(found, {name: tensor for name, tensor in expected.items() if not name.startswith(pooled)})
    written, original = (
        json.loads((place / "config.json").read_text()) for place in (tmp_path / "ours", folder)
    )
    for flag in (
        "decoder_bbox_embed_share",
        *(["decoder_cls_embed_share"] if family.startswith("mm") else []),
    ):
        assert written[flag] is original[flag] is heads[flag]
    settings = set(original) - {"dropout", "transformers_version", "dtype", "backbone_config", "text_config"}
    assert {name: written[name] for name in settings} == {name: original[name] for name in settings}


def test_idea_to_ours_to_idea(shared, tmp_path):
    """Without the tables that are computed; the box heads stand under both of their names, as in
    the original.
    """
    original, family = read_pth(shared / "golden/idea_tiny.pth")
    bundle = bundle_of_pth_state(original, family, "idea_tiny.pth", bert_heads=4)
    notes = save_idea(bundle, tmp_path / "deep/ours.pth")
    assert notes == ["The denoising labels, which only training uses, are omitted."]
    raw = torch.load(tmp_path / "deep/ours.pth", weights_only=True)
    assert list(raw) == ["model"] and all(name.startswith("module.") for name in raw["model"])
    found, again = read_pth(tmp_path / "deep/ours.pth")
    computed = ("relative_position_index", "position_ids", "pooler.dense.weight", "pooler.dense.bias")
    assert again == "idea"
    assert_equal(found, {name: t.float() for name, t in original.items() if not name.endswith(computed)})


def test_mmdetection_to_ours_to_transformers(shared, tmp_path):
    original, family = read_pth(shared / "golden/mmdet_mm_tiny.pth")
    bundle = bundle_of_pth_state(original, family, "mmdet_mm_tiny.pth", bert_heads=4)
    save_bundle(bundle, tmp_path / "ours")
    again = load_bundle(tmp_path / "ours")
    assert_equal(again.network.state_dict(), bundle.network.state_dict())
    stored = load_file(tmp_path / "ours/model.safetensors")
    pairs = {  # ours as transformers names it: theirs
        "model.level_embed": "level_embed",
        "model.enc_output.weight": "memory_trans_fc.weight",
        "model.encoder_output_bbox_embed.layers.2.bias": "bbox_head.reg_branches.2.4.bias",
        "bbox_embed.1.layers.0.weight": "bbox_head.reg_branches.1.0.weight",
        "class_embed.1.bias": "bbox_head.cls_branches.1.bias",
        "model.encoder_output_class_embed.bias": "bbox_head.cls_branches.2.bias",
        "model.encoder.layers.1.fusion_layer.vision_param": "encoder.fusion_layers.1.gamma_v",
        "model.decoder.layers.0.encoder_attn_text_layer_norm.weight": "decoder.layers.0.norms.1.weight",
        "model.input_proj_vision.3.0.weight": "neck.extra_convs.0.conv.weight",
    }
    for ours, theirs in pairs.items():
        assert torch.equal(stored[ours].flatten(), original[theirs].float().flatten()), ours
    packed = original["decoder.layers.1.self_attn.attn.in_proj_weight"].float()
    parts = [stored[f"model.decoder.layers.1.self_attn.{part}.weight"] for part in ("query", "key", "value")]
    assert torch.equal(torch.cat(parts), packed)
    labels = load_file(tmp_path / "ours/groundtune.safetensors")
    assert labels.keys() == {LABELS}
    assert torch.equal(labels[LABELS], original["dn_query_generator.label_embedding.weight"].float())


def test_patch_merging_is_reordered_by_hand():
    """MMDetection unfolds 2 x 2 patches channel by channel in reading order: (c, row, column). The
    original stacks the four neighbors (0, 0), (1, 0), (0, 1), (1, 1), each with all its channels.
    Two channels, written out.
    """
    layout = project_layout("mmdetection", [2, 3, 4], 4, 6)
    theirs = torch.arange(8.0)  # c0: 00 01 10 11, c1: 00 01 10 11
    (pair,) = to_groundtune({"backbone.stages.0.downsample.norm.weight": theirs}, layout, "here").items()
    assert pair[1].tolist() == [0, 4, 2, 6, 1, 5, 3, 7]
    (back,) = to_layout(dict([pair]), layout)[0].values()
    assert torch.equal(back, theirs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_files_load_as_float32(dtype, theirs):
    folder = theirs()
    weights = {name: tensor.to(dtype) for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    network = load_bundle(folder).network
    assert {tensor.dtype for tensor in network.parameters()} == {torch.float32}
    widened = weights["model.enc_output.weight"].float()
    assert torch.equal(network.decoder.memory_trans_fc.weight, widened)


def test_shards_and_the_old_weights_file_load_alike(theirs, tmp_path):
    folder = theirs(
        "mm-grounding-dino", {"decoder_bbox_embed_share": False, "decoder_cls_embed_share": False}
    )
    expected = load_bundle(folder).network.state_dict()
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    shards = {"a.safetensors": names[:100], "b.safetensors": names[100:]}
    for shard, inside in shards.items():
        save_file({name: weights[name] for name in inside}, folder / shard)
    places = {name: shard for shard, inside in shards.items() for name in inside}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    sharded = load_bundle(folder).network.state_dict()
    (folder / "model.safetensors.index.json").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    pickled = load_bundle(folder).network.state_dict()
    without_labels = {name: tensor for name, tensor in expected.items() if name != LABELS}
    for found in (sharded, pickled):
        assert_equal({name: tensor for name, tensor in found.items() if name != LABELS}, without_labels)
