"""Every published model: each name of its file is used once, each of our parameters is filled once,
shapes agree.

Nothing of the sizes is held in memory: our networks and transformers' are built on the meta device,
and a source tensor is one number, its own, seen in the shape of the tensor; so the number says
where a parameter of ours came from.
"""

import json
import re
from collections import Counter

import pytest
import torch
from oracle_models import CASES, FAMILIES, oracle
from safetensors.torch import load_file
from tiny_models import WIDER_SWIN, tiny_config
from transformers import BertConfig, SwinConfig
from transformers.core_model_loading import revert_weight_conversion

from groundtune.model.bundle import build_network, unique_state
from groundtune.model.checkpoint.convert import (
    LABELS,
    config_of_pth,
    layout_of,
    pth_layout,
    same_branches,
    to_groundtune,
    to_layout,
)
from groundtune.model.checkpoint.hf import config_of_transformers, transformers_config
from groundtune.model.checkpoint.names import PROJECTS, project_layout

TINY = {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "window_size": 7}
BASE = TINY | {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32]}
BASE |= {"window_size": 12, "image_size": 384}
LARGE = BASE | {"embed_dim": 192, "num_heads": [6, 12, 24, 48]}
SEPARATE = {"decoder_bbox_embed_share": False, "decoder_cls_embed_share": False}
PUBLISHED = {  # backbone, its output stages, family; MM-Grounding-DINO and LLMDet are one architecture
    "grounding-dino-tiny": (TINY, [2, 3, 4], False),
    "grounding-dino-base": (BASE, [2, 3, 4], False),
    "mm-grounding-dino-tiny, llmdet-tiny": (TINY, [2, 3, 4], True),
    "mm-grounding-dino-base, llmdet-base": (BASE, [2, 3, 4], True),
    "mm-grounding-dino-large, llmdet-large": (LARGE, [1, 2, 3, 4], True),
}
KEY_LISTS = {"idea_swin-t": "idea", "mmdet_mm_swin-t": "mmdetection"}
# What a file has and a network needs not: tables that are computed, the pooler, and second names of
# tied heads
NOT_LEARNED = (
    r".*(relative_position_index|position_ids)|.*pooler\..*|.*conv_encoder\.model(\.swin)?\.layernorm\..*"
)
SECOND_NAMES = r"^(model|transformer)\.decoder\.(bbox|class)_embed\.(.*)"


def their_config(name):
    swin, stages, mm = PUBLISHED[name]
    common = {
        "backbone_config": SwinConfig(**swin, out_indices=stages),
        "text_config": BertConfig(),
        "num_feature_levels": len(stages) + 1,
    }
    config_class, _ = FAMILIES["mm-grounding-dino" if mm else "grounding-dino"]
    return config_class(**common, **(SEPARATE if mm else {}))


def shapes_in_file(model):
    """Names and shapes as `save_pretrained` writes them (`test_the_names_are_those_of_a_saved_file`
    sees to it).
    """
    model._weight_conversions = None
    state = revert_weight_conversion(model, dict(model.state_dict()))
    tied = {name for name in state if re.match(SECOND_NAMES, name)}
    for flag, head in (("decoder_bbox_embed_share", "bbox"), ("decoder_cls_embed_share", "class")):
        if getattr(model.config, flag, False):
            tied |= {name for name in state if re.match(rf"{head}_embed\.[1-9]", name)}
    return {name: tuple(tensor.shape) for name, tensor in state.items() if name not in tied}


def numbered(shapes, shared):
    """One number for each tensor, in its shape; the names of a tied head have one number."""

    def first(name):
        name = re.sub(SECOND_NAMES, r"\2_embed.\3", name)
        return re.sub(r"^bbox_embed\.\d+", "bbox_embed.0", name) if shared else name

    numbers = {name: float(number) for number, name in enumerate(dict.fromkeys(map(first, shapes)))}
    return {name: torch.tensor(numbers[first(name)]).expand(shape) for name, shape in shapes.items()}


def check_complete(state, ours, config, packed):
    """Each source number arrives: once, or in the three parts of a packed tensor; each of our
    parameters has one.
    """
    with torch.device("meta"):
        network = build_network(config)
    expected = {
        name: tuple(t.shape) for name, t in network.state_dict().items() if name != LABELS or LABELS in ours
    }
    unique = {name for name in unique_state(network) if name in expected}
    assert unique <= ours.keys() <= expected.keys()
    assert {name: tuple(tensor.shape) for name, tensor in ours.items()} == {
        name: expected[name] for name in ours
    }
    arrived = Counter(float(ours[name].flatten()[0]) for name in unique)
    sent = {float(tensor.flatten()[0]): name for name, tensor in state.items()}
    times = {
        name: 0 if re.fullmatch(NOT_LEARNED, name) else 3 if re.search(packed, name) else 1
        for name in sent.values()
    }
    assert {name: arrived[number] for number, name in sent.items()} == times
    assert arrived.keys() <= sent.keys() and len(unique) == sum(times.values())


@pytest.mark.parametrize("name", PUBLISHED)
def test_transformers_models_at_the_published_sizes(name):
    theirs = their_config(name)
    swin, stages, mm = PUBLISHED[name]
    _, model_class = FAMILIES["mm-grounding-dino" if mm else "grounding-dino"]
    with torch.device("meta"):
        shapes = shapes_in_file(model_class(theirs))
    config = config_of_transformers(theirs.to_dict(), name)
    state = numbered(shapes, shared=not mm)
    ours = to_groundtune(state, layout_of("transformers", config), name)
    assert config.share_box_head is not mm and same_branches(ours, "reg", 6) is not mm
    check_complete(state, ours, config, packed="^$")
    assert config.backbone_config["out_indices"] == stages and config.num_levels == len(stages) + 1
    written = transformers_config(config)
    for name in ("d_model", "num_feature_levels", "encoder_ffn_dim", "num_queries", "max_text_len"):
        assert getattr(written, name) == getattr(theirs, name)
    assert written.decoder_bbox_embed_share == theirs.decoder_bbox_embed_share
    assert written.backbone_config.to_dict() == theirs.backbone_config.to_dict()


@pytest.mark.parametrize("name", KEY_LISTS)
def test_the_originals_files_at_the_published_sizes(name, golden_files):
    family = KEY_LISTS[name]
    state = numbered(json.loads((golden_files / f"{name}_keys.json").read_text()), shared=family == "idea")
    layout = pth_layout(state, family)
    ours = to_groundtune(state, layout, name)
    config = config_of_pth(ours, family)
    check_complete(state, ours, config, packed=r"qkv|in_proj")
    swin = {option: config.backbone_config[option] for option in TINY}
    assert swin == TINY and config.backbone_config["out_indices"] == [2, 3, 4]
    assert config.language_config == {
        "vocab_size": 30522,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "max_position_embeddings": 512,
    }
    sizes = (config.d_model, config.num_heads, config.num_levels, config.encoder_points, config.num_queries)
    assert sizes == (256, 8, 4, 4, 900)
    assert (config.encoder_layers, config.decoder_layers, config.ffn_dim) == (6, 6, 2048)
    assert (config.fusion_dim, config.fusion_heads, config.text_ffn_dim) == (1024, 4, 1024)
    assert config.share_box_head is (family == "idea")


@pytest.mark.parametrize("stages", [[2, 3, 4], [1, 2, 3, 4]], ids=["3 stages", "4 stages"])
@pytest.mark.parametrize("name", PROJECTS)
def test_a_rename_table_is_one_to_one(name, stages):
    """No prefix occurs twice on either side; only packed ones of theirs have three of ours."""
    whole, *parts = project_layout(name, stages, len(stages) + 1, 6).columns
    assert parts[0] or name == "transformers"
    for part in parts:
        theirs = [row[0] for row in whole + part]
        assert len(set(theirs)) == len(theirs) and [row[0] for row in part] == [row[0] for row in parts[0]]
    ours = [row[1] for rows in (whole, *parts) for row in rows]
    assert len(set(ours)) == len(ours)


@pytest.mark.parametrize("stages", [[2, 3, 4], [1, 2, 3, 4]], ids=["3 stages", "4 stages"])
@pytest.mark.parametrize("name", PROJECTS)
def test_all_our_names_go_out_and_come_back(name, stages):
    """For every parameter of a network, and with values: packing, reordering and tied heads are
    undone too.
    """
    config = tiny_config(
        backbone_config=WIDER_SWIN | {"depths": [2, 1, 1, 1], "out_indices": stages},
        num_levels=len(stages) + 1,
        contrastive_scale="auto" if name != "idea" else "none",
        contrastive_bias=name != "idea",
        share_box_head=name == "idea",
        share_class_head=False,
    )
    network = build_network(config)
    state = {key: torch.randn(tensor.shape) for key, tensor in network.state_dict().items()}
    tied = {key: key.replace("reg_branches.1.", "reg_branches.0.") for key in state} if name == "idea" else {}
    state = {key: state[tied.get(key, key)] for key in state}
    theirs, left = to_layout(state, layout_of(name, config))
    assert set(left) == ({LABELS} if name == "transformers" else set())
    back = to_groundtune(theirs, layout_of(name, config), "here") | left
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


@pytest.mark.parametrize(("family", "heads", "stages"), CASES)
def test_the_names_are_those_of_a_saved_file(family, heads, stages, tmp_path):
    model = oracle(family, heads, stages)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in saved.items()} == shapes_in_file(model)
