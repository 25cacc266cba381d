"""The whole network: always finite, every parameter alive, and an image's result independent of its
batch.
"""

import math
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from groundtune.loss.criterion import GroundingDINOCriterion, total
from groundtune.text.prompt import clean_name
from groundtune.text.tokens import count_tokens

CRITERION = GroundingDINOCriterion()
NAMES = [["cat"], ["red blood cell", "remote control", "platelet"], ["zebra", "traffic light"]]
SIZES_HW = [(64, 96), (96, 48), (40, 72)]
# transformers' SwinBackbone has a norm whose result is not among its feature maps; the oracle's
# weights have it too

cached = cache(lambda tiny, kind: tiny(kind))
ODD_NAMES = ["cat", "Cat ", "red blood cell", "tv/monitor", "hot-dog's", "猫", "naïve café", "[SEP]", "a?b.c"]
any_text = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
written_names = st.lists(st.one_of(any_text, st.sampled_from(ODD_NAMES)), min_size=1, max_size=60)
image = st.tuples(st.integers(1, 80), st.integers(1, 80), st.integers(0, 20))
images = st.lists(image, min_size=1, max_size=3)
FLAT = {"none": (1, 1), "point": (0, 0), "line": (0, 1)}


def readable(names, tokenizer):
    """The part of some written names that makes one prompt: visible, unique, within 256 tokens."""
    unique = list(dict.fromkeys(filter(None, map(clean_name, names)))) or ["cat"]
    kept, room = [], 254
    for name, count in zip(unique, count_tokens(tokenizer, unique), strict=True):
        if 1 < count <= room:
            kept.append(name)
            room -= count
    return kept or ["cat"]


def alone(case, row):
    """One image of a batch, with its own prompt and without padding."""
    h, w = case.sizes_hw[row]
    text = case.text.rows(slice(row, row + 1))
    return type(case)(case.images[row : row + 1, :, :h, :w], [(h, w)], text, [case.targets[row]])


def gradients(network, loss):
    network.zero_grad()
    loss.backward()
    return {name: parameter.grad for name, parameter in network.named_parameters()}


@pytest.mark.parametrize("kind", ["swin", "nano"])
def test_loss_and_gradients_are_always_finite(kind, tiny, make_case, tokenizer):
    """Any prompt; images down to one pixel; no boxes, more boxes than queries or positions, boxes
    without area.
    """
    network = cached(tiny, kind).train()

    @settings(deadline=None, max_examples=25)
    @given(names=written_names, shapes=images, seed=st.integers(0, 10**6), flat=st.sampled_from(list(FLAT)))
    def check(names, shapes, seed, flat):
        prompt = readable(names, tokenizer)
        prompts = [prompt[index:] or prompt for index in range(len(shapes))]
        case = make_case(prompts, [(h, w) for h, w, _ in shapes], [count for _, _, count in shapes], seed)
        for target in case.targets:
            target.boxes_cxcywh[:1, 2:] *= torch.tensor(FLAT[flat])
        terms = CRITERION(case.run(network), case.targets)
        assert all(torch.isfinite(value) for value in terms.values())
        for name, gradient in gradients(network, total(terms)).items():
            frozen = name.startswith(("backbone.", "language_model."))
            assert (gradient is None) == frozen, name
            assert frozen or torch.isfinite(gradient).all(), name

    check()
    network.eval()


@pytest.mark.parametrize(
    ("kind", "overrides"),
    [
        ("swin", {}),
        ("swin", {"query_content": "selected", "contrastive_scale": "auto"}),
        ("swin", {"share_box_head": False, "contrastive_scale": "learnable", "contrastive_bias": True}),
        ("nano", {}),
        ("nano", {"query_content": "learned", "share_box_head": False}),
    ],
)
@pytest.mark.parametrize(
    "frozen", [(), ("backbone", "language_model"), ("language_model", "neck", "encoder.layers.0")]
)
def test_every_trainable_parameter_gets_a_gradient(kind, overrides, frozen, tiny, make_case):
    if kind == "nano" and not frozen:
        pytest.skip("the folded tower is made to be frozen")
    network = tiny(kind, frozen, **overrides).train()
    case = make_case(NAMES, SIZES_HW, [2, 3, 1])
    grads = gradients(network, total(CRITERION(case.run(network), case.targets)))
    is_frozen = {name: name.startswith(tuple(f"{path}." for path in frozen)) for name in grads}
    assert {name: gradient is None for name, gradient in grads.items()} == is_frozen
    dead = [name for name, gradient in grads.items() if gradient is not None and not gradient.any()]
    assert dead == []
    trainable = {name: parameter.requires_grad for name, parameter in network.named_parameters()}
    assert all(trainable[name] != is_frozen[name] for name in grads)


@pytest.mark.parametrize("query_content", ["learned", "selected"])
def test_the_encoder_terms_teach_the_encoder_and_its_own_head(query_content, tiny, make_case):
    network = tiny("swin", query_content=query_content, contrastive_bias=True).train()
    case = make_case(NAMES, SIZES_HW, [2, 3, 1])
    terms = CRITERION(case.run(network), case.targets)
    for term, head in (("cls", "cls_branches.2."), ("bbox", "reg_branches.2."), ("giou", "reg_branches.2.")):
        network.zero_grad()
        terms[f"enc_loss_{term}"].backward(retain_graph=True)
        reached = {name for name, p in network.named_parameters() if p.grad is not None and p.grad.any()}
        taught = ("decoder.memory_trans_", f"bbox_head.{head}", "encoder.layers.")
        names = {name for name, _ in network.named_parameters() if name.startswith(taught)}
        assert names - reached == set(), term
        assert not any(name.startswith("decoder.layers.") for name in reached)


@pytest.mark.parametrize(
    "frozen", [("backbone", "language_model"), ("backbone", "language_model", "encoder")]
)
def test_frozen_modules_stay_in_eval_mode_and_out_of_autograd(frozen, tiny, make_case):
    # BERT and Swin drop 0.1 by themselves
    network = tiny("swin", frozen, fusion_droppath=0.5, dropout=0.5).train()
    assert network.training and network.neck.training and network.decoder.training
    for path in frozen:
        assert not any(module.training for module in network.get_submodule(path).modules()), path
    seen = {}
    for path in ("backbone", "language_model"):
        network.get_submodule(path).register_forward_hook(
            lambda m, i, o, path=path: seen.setdefault(path, []).append(o)
        )
    case = make_case(NAMES[:1], SIZES_HW[:1], [1])
    case.images.requires_grad_()  # otherwise nothing in a frozen tower would ask for autograd anyway
    for _ in range(2):
        case.run(network)
    first, second = seen["backbone"]
    assert not any(level.requires_grad for level in first) and all(map(torch.equal, first, second))
    first, second = seen["language_model"]
    assert not first.requires_grad and torch.equal(first, second)
    network.freeze([])
    assert all(module.training for module in network.modules())
    assert all(parameter.requires_grad for parameter in network.parameters())
    with pytest.raises(AttributeError, match="nek"):
        network.freeze(["nek"])


@pytest.mark.parametrize("kind", ["swin", "nano"])
@pytest.mark.parametrize("frozen", [("backbone", "language_model"), ("backbone",)])
def test_an_image_in_a_batch_equals_the_image_alone(kind, frozen, tiny, make_case):
    """Other sizes, longer prompts and more phrases beside it; the cached text path and the plain
    one.
    """
    network = tiny(kind, frozen, num_queries=30, encoder_layers=2)
    sizes_hw = [*SIZES_HW, (13, 30)]  # the last one has fewer positions than queries
    case = make_case([*NAMES, ["dog", "hair dryer"]], sizes_hw, [0] * 4, seed=3)
    with torch.no_grad():
        together = case.run(network)
        for row in range(4):
            single = alone(case, row)
            expected = single.run(network)
            length, count = single.text.input_ids.shape[1], expected["pred_boxes"].shape[1]
            outputs = ([one, *one["aux_outputs"], one["enc_outputs"]] for one in (together, expected))
            for batched, own in zip(*outputs, strict=True):
                logits = batched["pred_logits"][row]
                assert (logits[:count, :length] - own["pred_logits"][0, :, :length]).abs().max() <= 1e-4
                assert (batched["pred_boxes"][row, :count] - own["pred_boxes"][0]).abs().max() <= 1e-4
                assert (logits[count:, :length] == -30).all(), "slots that no position fills"
                assert (logits[:, length:] == -math.inf).all()


@pytest.mark.parametrize("kind", ["swin", "nano"])
def test_more_padding_changes_nothing(kind, tiny, make_case):
    network = cached(tiny, kind)
    case = make_case(NAMES, SIZES_HW, [0] * 3)
    with torch.no_grad():
        expected = case.run(network)
        case.images = torch.nn.functional.pad(case.images, (0, 37, 0, 50), value=9.0)
        wider = case.run(network)
        large = make_case([*NAMES, ["a"]], [*SIZES_HW, (150, 170)], [0] * 4).run(network)
    for output in (wider, large):
        length = case.text.input_ids.shape[1]
        finite = expected["pred_logits"].isfinite()
        assert (output["pred_logits"][:3][finite] - expected["pred_logits"][finite]).abs().max() <= 1e-4
        assert (output["pred_boxes"][:3] - expected["pred_boxes"]).abs().max() <= 1e-4
        assert output["text_token_mask"].shape[1] == length


def test_boxes_look_forward_twice_and_no_further(tiny, make_case):
    network = tiny("swin", decoder_layers=3, share_box_head=False)
    case = make_case(NAMES, SIZES_HW, [0] * 3)
    output = case.run(network)
    layers = [*output["aux_outputs"], output]
    branches = [branch.layers[-1].weight for branch in network.bbox_head.reg_branches[:3]]

    def reached(tensor):
        found = torch.autograd.grad(tensor.sum(), branches, retain_graph=True, allow_unused=True)
        return [gradient is not None and bool(gradient.any()) for gradient in found]

    first, second, third = (
        [index for index, hit in enumerate(reached(x["pred_boxes"])) if hit] for x in layers
    )
    assert (first, second, third) == ([0], [0, 1], [1, 2])
    finite = layers[2]["pred_logits"].isfinite()
    assert reached(layers[2]["pred_logits"][finite]) == [False] * 3, "what a layer samples from is detached"


@pytest.mark.parametrize("query_content", ["learned", "selected"])
def test_fewer_positions_than_queries(query_content, tiny, make_case):
    network = tiny("swin", num_queries=300, query_content=query_content).train()
    case = make_case(NAMES[:1], [(32, 48)], [2])
    output = case.run(network)
    positions = 4 * 6 + 2 * 3 + 1 * 2 + 1 * 1  # strides 8, 16, 32, 64, rounded up
    assert output["pred_boxes"].shape == output["enc_outputs"]["pred_boxes"].shape == (1, positions, 4)
    assert torch.isfinite(total(CRITERION(output, case.targets)))


def test_selection_is_the_best_token_of_every_position(tiny, make_case):
    network = cached(tiny, "swin")
    case = make_case(NAMES[1:2], SIZES_HW[:1], [0])
    memories = []
    hook = network.encoder.register_forward_hook(lambda module, args, memory: memories.append(memory))
    with torch.no_grad():
        output = case.run(network)
        memory = memories[0]
        features = network.decoder.memory_trans_norm(network.decoder.memory_trans_fc(memory.vision))[0]
        expected = torch.stack([torch.stack([f @ t for t in memory.text[0]]) for f in features])
    hook.remove()
    best = sorted(range(len(expected)), key=lambda position: -expected[position].max().item())[:12]
    logits = output["enc_outputs"]["pred_logits"][0, :, : expected.shape[1]]
    torch.testing.assert_close(logits, expected[best], rtol=1e-4, atol=1e-4)


def test_label_embedding_starts_from_the_projected_text_features(tiny, tokenizer):
    network = tiny("swin")
    names = ["cat", "red blood cell", "hair dryer"]
    network.init_label_embedding(names, tokenizer)
    labels = network.decoder.label_embedding.weight
    assert labels.shape == (3, 64) and labels.requires_grad
    for row, name in zip(labels, names, strict=True):
        ids = tokenizer(f"{name}.", add_special_tokens=False, return_tensors="pt").input_ids
        with torch.no_grad():
            features = network.language_model.bert(input_ids=ids).last_hidden_state[0, :-1]  # without the "."
            expected = network.encoder.text_projection(features).mean(0)
        torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-5)
