"""The criterion's rules: all queries, valid tokens only, binary targets, one normalizer, always
finite.
"""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from groundtune.loss.criterion import BatchCounts, GroundingDINOCriterion, total
from groundtune.text.prompt import class_prompt
from groundtune.text.tokens import create_positive_map_from_span, tokenize

criterion = GroundingDINOCriterion()


def _predictions(generator, mask, queries, scale=3.0):
    images, length = mask.shape
    logits = torch.full((images, queries, 256), -math.inf)
    valid = scale * torch.randn(images, queries, length, generator=generator)
    logits[..., :length] = valid.masked_fill(~mask.unsqueeze(1), -math.inf)
    boxes = (torch.rand(images, queries, 4, generator=generator) * 4 - 2).sigmoid()
    return {"pred_logits": logits.requires_grad_(), "pred_boxes": boxes.requires_grad_()}


def _batch(seed, counts, queries=5, layers=3, length=7, groups=2):
    """Random outputs of all heads and random targets; one box in four has no width."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(length) < torch.randint(1, length + 1, (len(counts), 1), generator=generator)
    decoder = [_predictions(generator, mask, queries) for _ in range(layers)]
    outputs = {
        **decoder[-1],
        "aux_outputs": decoder[:-1],
        "enc_outputs": _predictions(generator, mask, max(1, queries - 1)),
        "text_token_mask": mask,
    }
    if max(counts) > 0:
        group_size = 2 * max(counts)
        outputs["dn_outputs"] = [_predictions(generator, mask, groups * group_size) for _ in range(layers)]
        outputs["dn_meta"] = {"num_groups": groups, "group_size": group_size}
    targets = []
    for image, count in enumerate(counts):
        boxes = torch.rand(count, 4, generator=generator) * 0.5 + 0.2
        boxes[::4, 2] = 0
        positive_map = torch.zeros(count, 256, dtype=torch.bool)
        positive_map[:, 0] = True
        length = int(mask[image].sum())
        positive_map[1:, :length] = torch.rand(max(count - 1, 0), length, generator=generator) < 0.5
        targets.append(SimpleNamespace(boxes_cxcywh=boxes, positive_map=positive_map, confidence=None))
    return outputs, targets


def _heads(outputs):
    return [outputs, *outputs["aux_outputs"], outputs["enc_outputs"], *outputs.get("dn_outputs", [])]


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    counts=st.lists(st.integers(0, 8), min_size=1, max_size=4),
    queries=st.integers(1, 6),
)
def test_always_finite_with_finite_gradients(seed, counts, queries):
    """Also: fewer queries than boxes, in the decoder or in the encoder alone."""
    outputs, targets = _batch(seed, counts, queries)
    terms = criterion(outputs, targets)
    loss = total(terms)
    loss.backward()
    assert all(torch.isfinite(value) and value.ndim == 0 for value in terms.values())
    for head in _heads(outputs):
        for tensor in (head["pred_logits"], head["pred_boxes"]):
            assert tensor.grad is not None and torch.isfinite(tensor.grad).all()
        outside = ~torch.isfinite(head["pred_logits"])
        assert (head["pred_logits"].grad[outside] == 0).all()
    assert terms["matched_boxes"] == sum(min(count, queries) for count in counts)
    assert not terms["class_error"].requires_grad and not terms["matched_boxes"].requires_grad
    expected = sum(value for name, value in terms.items() if name not in ("class_error", "matched_boxes"))
    torch.testing.assert_close(loss, expected)


def test_names_of_the_terms():
    outputs, targets = _batch(0, [1, 2])
    heads = ["", "d0.", "d1.", "enc_", "d0.dn_", "d1.dn_", "dn_"]
    expected = {f"{head}loss_{term}" for head in heads for term in ("cls", "bbox", "giou")}
    assert set(criterion(outputs, targets)) == expected | {"class_error", "matched_boxes"}
    minimal = {name: outputs[name] for name in ("pred_logits", "pred_boxes", "text_token_mask")}
    assert len(criterion(minimal, targets)) == 3 + 2


def _one_query(logits_of_tokens, box=(0.5, 0.5, 0.2, 0.2), padded=0):
    """One image, one box, its phrase on token 1; -inf past the tokens as the head gives it."""
    logits = torch.full((1, len(logits_of_tokens), 256), -math.inf)
    logits[0, :, : len(logits_of_tokens[0])] = torch.tensor(logits_of_tokens)
    mask = torch.ones(1, len(logits_of_tokens[0]) + padded, dtype=torch.bool)
    mask[:, len(logits_of_tokens[0]) :] = False
    positive_map = torch.zeros(1, 256, dtype=torch.bool)
    positive_map[0, 1] = True
    boxes = torch.tensor(box).expand(1, len(logits_of_tokens), 4)
    target = SimpleNamespace(
        boxes_cxcywh=torch.tensor([[0.5, 0.5, 0.2, 0.2]]), positive_map=positive_map, confidence=None
    )
    return {"pred_logits": logits, "pred_boxes": boxes, "text_token_mask": mask}, [target]


@pytest.mark.parametrize("padded", [0, 5])
def test_infinite_logits_are_filtered_before_the_loss(padded):
    outputs, targets = _one_query([[0.0, 0.0, 0.0]], padded=padded)
    terms = criterion(outputs, targets)
    # p = 1/2 everywhere: one positive token and two negative ones; nothing from 253 masked columns
    expected = 2 * (0.25 * 0.25 + 2 * 0.75 * 0.25) * math.log(2)
    assert terms["loss_cls"].item() == pytest.approx(expected, rel=1e-5)
    assert terms["loss_bbox"].item() == 0
    assert terms["loss_giou"].item() == pytest.approx(0, abs=1e-5)


def test_terms_of_a_shifted_box_by_hand():
    outputs, targets = _one_query([[0.0, 0.0, 0.0]], box=(0.6, 0.5, 0.2, 0.4))
    terms = criterion(outputs, targets)
    assert terms["loss_bbox"].item() == pytest.approx(5 * 0.3, rel=1e-5)
    overlap, union, enclosing = 0.1 * 0.2, 0.08 + 0.04 - 0.02, 0.3 * 0.4
    expected = 2 * (1 - overlap / union + (enclosing - union) / enclosing)
    assert terms["loss_giou"].item() == pytest.approx(expected, rel=1e-4)


def test_class_error_counts_valid_positions_only():
    outputs, targets = _one_query([[-1.0, 2.0, -1.0, 0.5], [-3.0, -3.0, -3.0, -3.0]], padded=4)
    assert criterion(outputs, targets)["class_error"].item() == pytest.approx(100 / 8)


def test_unmatched_queries_and_images_without_boxes_are_pushed_down():
    outputs, targets = _batch(5, [2, 0], queries=6)
    total(criterion(outputs, targets)).backward()
    for head in _heads(outputs):
        gradient, finite = head["pred_logits"].grad, torch.isfinite(head["pred_logits"])
        assert (gradient[finite] != 0).all(), "every query, matched or not"
        assert (gradient[1][finite[1]] > 0).all(), "an image without boxes is all background"
    quiet, _ = _batch(5, [2, 0], queries=6)
    with torch.no_grad():
        quiet["pred_logits"][1] -= 5
    assert criterion(quiet, targets)["loss_cls"] < criterion(outputs, targets)["loss_cls"]


def test_denoising_negatives_and_spare_slots_have_zero_targets_and_full_weight():
    outputs, targets = _batch(6, [1, 2], groups=2)  # M = 2: groups [+ + - -] [+ + - -]
    total(criterion(outputs, targets)).backward()
    raised = {(0, 0), (0, 4), (1, 0), (1, 1), (1, 4), (1, 5)}
    for head in outputs["dn_outputs"]:
        for image in range(2):
            for query in range(8):
                first_token = head["pred_logits"].grad[image, query, 0]  # positive for box 0; box 1 is random
                box = head["pred_boxes"].grad[image, query]
                if (image, query) in raised:
                    assert (box != 0).any()
                else:
                    assert first_token > 0 and (box == 0).all()
        assert (head["pred_logits"].grad[:, [0, 4], 0] < 0).all()


def test_denoising_that_does_not_fit_its_layout_is_refused():
    outputs, targets = _batch(6, [1, 2])
    outputs["dn_meta"]["group_size"] = 2
    with pytest.raises(ValueError, match="denoising"):
        criterion(outputs, targets)


def _train_one_query(tokenizer, names, make_map):
    prompt = class_prompt(names)
    text, _ = tokenize(tokenizer, [prompt])
    box = torch.tensor([[0.5, 0.5, 0.2, 0.2]])
    targets = [SimpleNamespace(boxes_cxcywh=box, positive_map=make_map(prompt)[:1], confidence=None)]
    logits = torch.zeros(1, 1, 256, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.3)
    for _ in range(150):
        outputs = {"pred_logits": logits, "pred_boxes": box[None], "text_token_mask": text.text_token_mask}
        optimizer.zero_grad()
        total(criterion(outputs, targets)).backward()
        optimizer.step()
    phrase = tokenize(tokenizer, [prompt])[1][0][0]
    return logits.detach().sigmoid()[0, 0, phrase]


def test_a_name_of_any_length_reaches_a_high_probability(tokenizer):
    """With soft 1/n targets the optimum of these names is 1, .5, .16, .08."""
    for name, tokens in [("cat", 1), ("hair dryer", 3), ("red blood cell count", 4)]:
        reached = _train_one_query(tokenizer, [name, "dog"], lambda p: tokenize(tokenizer, [p])[1][0])
        assert len(reached) == tokens and reached.min() > 0.85

    def averaging(prompt):
        return create_positive_map_from_span(tokenizer([prompt.caption]), prompt.spans)

    normalized = _train_one_query(tokenizer, ["red blood cell count", "dog"], averaging)
    assert normalized.min() > 0.85, "the criterion makes the target binary whatever it is given"


def _detached(outputs, images=slice(None)):
    return {name: outputs[name][images].detach() for name in ("pred_logits", "pred_boxes")}


def test_an_image_of_a_batch_of_mixed_prompts_equals_the_image_alone():
    counts = [3, 0, 1, 2]
    outputs, targets = _batch(8, counts)
    together = criterion(outputs, targets)
    sums = {"loss_cls": 0.0, "loss_bbox": 0.0, "loss_giou": 0.0, "enc_loss_cls": 0.0}
    for image, target in enumerate(targets):
        own = slice(image, image + 1)
        mask = outputs["text_token_mask"][own]
        alone = _detached(outputs, own) | {"enc_outputs": _detached(outputs["enc_outputs"], own)}
        terms = criterion(alone | {"text_token_mask": mask[:, : int(mask.sum())]}, [target])
        for name in sums:
            sums[name] += terms[name].item() * max(counts[image], 1)
    for name, value in sums.items():
        assert value / sum(counts) == pytest.approx(together[name].item(), rel=1e-4)


def test_every_layer_is_compared_with_the_original_targets():
    outputs, targets = _batch(9, [3, 2], layers=4)
    terms = criterion(outputs, targets)
    prefixes = ["d0.", "d1.", "d2.", "enc_"]
    for prefix, head in zip(prefixes, [*outputs["aux_outputs"], outputs["enc_outputs"]], strict=True):
        alone = criterion({**_detached(head), "text_token_mask": outputs["text_token_mask"]}, targets)
        for term in ("loss_cls", "loss_bbox", "loss_giou"):
            assert alone[term].item() == pytest.approx(terms[prefix + term].item(), rel=1e-5)


@pytest.mark.parametrize("extra", [0.0, 0.2])
def test_a_zero_area_box_is_finite_even_where_the_prediction_equals_it(extra):
    outputs, targets = _one_query([[0.0, 1.0, 0.0]])
    boxes = torch.tensor([[[0.5, 0.5, 0.0, extra]]], requires_grad=True)
    outputs["pred_boxes"] = boxes
    targets[0].boxes_cxcywh = torch.tensor([[0.5, 0.5, 0.0, extra]])
    loss = total(criterion(outputs, targets))
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(boxes.grad).all()


def test_the_terms_of_parts_of_a_batch_add_up_to_its_own():
    """Parts of processes or of micro-batches. Of seven boxes in one image five find a query, of the
    encoder's four.
    """
    outputs, targets = _batch(10, [7, 1, 0, 2])
    whole = criterion(outputs, targets)
    counts = BatchCounts([7, 1, 0, 2], int(outputs["text_token_mask"].sum()))
    slices = (slice(0, 1), slice(1, 2), slice(2, 4))
    parts = [criterion(_slice_outputs(outputs, part), targets[part], counts) for part in slices]
    assert whole["matched_boxes"] == 5 + 1 + 0 + 2 and whole["class_error"] > 0
    for name, value in whole.items():
        assert sum(part[name].item() for part in parts) == pytest.approx(value.item(), rel=1e-4), name


def test_boxes_past_the_queries_do_not_count():
    """Three equal boxes, two queries a tenth beside them: the mean over the two pairs is 5 × 0.1,
    over the boxes less.
    """
    mask = torch.ones(1, 2, dtype=torch.bool)
    logits = torch.full((1, 2, 256), -math.inf)
    logits[..., :2] = 0
    predicted = torch.tensor([[[0.6, 0.5, 0.2, 0.2]] * 2])
    positive_map = torch.zeros(3, 256, dtype=torch.bool)
    target = SimpleNamespace(boxes_cxcywh=torch.tensor([[0.5, 0.5, 0.2, 0.2]] * 3), positive_map=positive_map)
    target.confidence = None
    terms = criterion({"pred_logits": logits, "pred_boxes": predicted, "text_token_mask": mask}, [target])
    assert terms["loss_bbox"].item() == pytest.approx(0.5) and terms["matched_boxes"] == 2


def _slice_outputs(outputs, images):
    parts = {
        name: [_detached(head, images) for head in outputs[name]] for name in ("aux_outputs", "dn_outputs")
    }
    parts["enc_outputs"] = _detached(outputs["enc_outputs"], images)
    mask = outputs["text_token_mask"][images]
    return outputs | _detached(outputs, images) | parts | {"text_token_mask": mask}


def test_same_numbers_under_autocast_and_from_bfloat16_in_float32():
    outputs, targets = _batch(11, [3, 1])
    plain = criterion(outputs, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = criterion(outputs, targets)
    assert all(torch.equal(plain[name], mixed[name]) for name in plain)
    low = outputs | {name: outputs[name].bfloat16() for name in ("pred_logits", "pred_boxes")}
    assert all(value.dtype == torch.float32 for value in criterion(low, targets).values())
