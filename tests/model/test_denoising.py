"""Denoising queries: how many, how noisy, who sees whom, and that they teach something ."""

import pytest
import torch
from torch import nn

from groundtune.contracts import Target
from groundtune.loss.criterion import GroundingDINOCriterion, total
from groundtune.model import detector
from groundtune.model.denoising import DenoisingQueries, denoising_attention, denoising_queries, pad_denoising

CRITERION = GroundingDINOCriterion()
LABELS = 10


def target(count, seed=0, class_id=3):
    """Boxes far enough from the border that no noise is clipped: centers 0.5, sides at most 0.2."""
    generator = torch.Generator().manual_seed(seed)
    sides = 0.05 + 0.15 * torch.rand(count, 2, generator=generator)
    boxes = torch.cat((torch.full((count, 2), 0.5), sides), dim=-1)
    labels = torch.full((count,), class_id)
    return Target(boxes, labels, labels, torch.ones(count, 256, dtype=torch.bool), seed)


def one_hot_embedding():
    """Content tells the label: row i is the i-th unit vector."""
    embedding = nn.Embedding(LABELS, LABELS)
    embedding.weight.data = torch.eye(LABELS)
    return embedding


def by_group(denoising, values):
    """(B, G·2M, …) → (B, G, 2, M, …): positives first, then negatives."""
    return values.unflatten(1, (denoising.num_groups, 2, denoising.group_size // 2))


@pytest.mark.parametrize(
    ("counts", "groups", "size"),
    [([1], 100, 2), ([3, 1, 0], 33, 6), ([7], 14, 14), ([100], 1, 200), ([130, 2], 1, 260), ([0, 34], 2, 68)],
)
def test_groups_follow_the_most_boxes_of_an_image(counts, groups, size):
    denoising = denoising_queries([target(count) for count in counts], one_hot_embedding())
    assert (denoising.num_groups, denoising.group_size) == (groups, size)
    assert denoising.content.shape == (len(counts), groups * size, LABELS)
    assert denoising.boxes_cxcywh.shape == (len(counts), groups * size, 4)


@pytest.mark.parametrize("batch", [1, 3])
def test_no_box_in_the_batch_gives_none(batch):
    assert denoising_queries([target(0)] * batch, one_hot_embedding()) is None


def test_corners_move_by_up_to_half_a_side_for_positives_and_up_to_a_whole_one_for_negatives():
    """The corners of a negative pass each other where both move inwards; its side is then 0, as the
    reference clamps it.
    """
    targets = [target(10, seed) for seed in range(30)]
    denoising = denoising_queries(targets, one_hot_embedding())
    center, side = by_group(denoising, denoising.boxes_cxcywh).split(2, dim=-1)
    truth = torch.stack([target.boxes_cxcywh for target in targets])[:, None, None]
    corners = torch.stack((center - side / 2, center + side / 2))
    true_corners = torch.stack((truth[..., :2] - truth[..., 2:] / 2, truth[..., :2] + truth[..., 2:] / 2))
    moved = (corners - true_corners) / (truth[..., 2:] / 2)  # (corner, B, G, positive or negative, M, xy)
    collapsed = side <= 1e-6
    assert not (side < 0).any()
    assert collapsed.float().mean((0, 1, 3, 4)).tolist() == pytest.approx([0.0, 0.25], abs=0.02)
    positive, negative = (moved[:, :, :, part][:, ~collapsed[:, :, part]] for part in (0, 1))
    for amount, low in ((positive.abs(), 0), (negative.abs(), 1)):
        assert low - 1e-4 <= amount.min() < low + 0.01 and low + 0.99 < amount.max() < low + 1 + 1e-4
        assert amount.mean().item() == pytest.approx(low + 0.5, abs=0.02)
    assert (positive > 0).float().mean(1).tolist() == pytest.approx([0.5, 0.5], abs=0.02)
    # of the four pairs of directions the one with both inwards is gone
    assert (negative > 0).float().mean(1).tolist() == pytest.approx([1 / 3, 2 / 3], abs=0.02)


def test_boxes_stay_in_the_image_and_a_box_without_area_is_finite():
    truth = target(3)
    truth.boxes_cxcywh = torch.tensor([[0.02, 0.98, 0.04, 0.04], [0.5, 0.5, 1.0, 1.0], [0.3, 0.3, 0.0, 0.0]])
    denoising = denoising_queries([truth], one_hot_embedding())
    assert ((denoising.boxes_cxcywh >= 0) & (denoising.boxes_cxcywh <= 1)).all()
    flat = by_group(denoising, denoising.boxes_cxcywh)[0, :, :, 2]
    torch.testing.assert_close(flat, torch.tensor([0.3, 0.3, 0.0, 0.0]).expand_as(flat))


def test_a_quarter_of_the_labels_is_drawn_anew_and_spare_slots_are_empty():
    denoising = denoising_queries([target(5, seed) for seed in range(100)] + [target(2)], one_hot_embedding())
    content = by_group(denoising, denoising.content)
    assert (content[:100].sum(-1) == 1).all()
    drawn = content[:100].argmax(-1).flatten()
    # one draw in LABELS gives the label that it had
    assert (drawn != 3).float().mean().item() == pytest.approx(0.25 * (1 - 1 / LABELS), abs=0.01)
    assert drawn.bincount(minlength=LABELS).min() > 0
    assert (content[100, :, :, :2].sum(-1) == 1).all() and (content[100, :, :, 2:] == 0).all()


def test_class_ids_past_the_embedding_wrap_around():
    denoising = denoising_queries([target(5, class_id=LABELS + 4)], one_hot_embedding())
    assert denoising.content.argmax(-1).flatten().bincount().argmax() == 4


def test_noise_of_an_image_depends_on_its_seed_and_not_on_its_batch():
    own, embedding = target(4, seed=5), one_hot_embedding()
    state = torch.get_rng_state()
    single = denoising_queries([own], embedding)
    batched = denoising_queries([target(2, seed=1), own, target(4, seed=9)], embedding)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(batched.boxes_cxcywh[1], single.boxes_cxcywh[0])
    assert torch.equal(batched.content[1], single.content[0])
    own.noise_seed = 6
    assert not torch.equal(denoising_queries([own], embedding).boxes_cxcywh, single.boxes_cxcywh)


def test_attention_mask_by_hand():
    denoising = DenoisingQueries(torch.empty(0), torch.empty(0), num_groups=2, group_size=2)
    # columns: group 1 | group 2 | matching
    expected = [[1, 1, 0, 0, 1, 1, 1]] * 2 + [[0, 0, 1, 1, 1, 1, 1]] * 2 + [[0, 0, 0, 0, 1, 1, 1]] * 3
    assert denoising_attention(denoising, 3, torch.device("cpu")).long().tolist() == expected


def test_matching_queries_and_other_groups_do_not_notice_denoising(tiny, make_case, monkeypatch):
    """Through the whole network, with an image of fewer positions than queries beside."""
    network = tiny("swin", dropout=0.0).train()
    case = make_case([["cat", "dog"], ["zebra"]], [(64, 96), (16, 16)], [3, 2])
    with torch.no_grad():
        noisy = case.run(network)
        group = noisy["dn_meta"]["group_size"]
        changed = denoising_queries(case.targets, network.decoder.label_embedding)
        changed.boxes_cxcywh[:, group:] = 0.9
        monkeypatch.setattr(detector, "denoising_queries", lambda *arguments: changed)
        other = case.run(network)
        network.configure_training(denoising=False, gradient_checkpointing=False, bucket=None)
        without = case.run(network)
    for output in (other, without):
        torch.testing.assert_close(output["pred_boxes"], noisy["pred_boxes"], rtol=0, atol=1e-5)
        torch.testing.assert_close(output["pred_logits"], noisy["pred_logits"], rtol=0, atol=1e-4)
    for first, second in zip(noisy["dn_outputs"], other["dn_outputs"], strict=True):
        off = (first["pred_boxes"] - second["pred_boxes"]).abs()
        assert off[:, :group].max() <= 1e-5 and off[:, group:].max() > 0.01


@pytest.mark.parametrize("num_queries", [900, 100, 37])
def test_padded_queries_of_up_to_100_boxes_have_one_number_that_8_divides(num_queries):
    totals = {
        pad_denoising(denoising_queries([target(count)], one_hot_embedding()), num_queries).content.shape[1]
        for count in (1, 2, 3, 7, 33, 34, 60, 99, 100)
    }
    assert len(totals) == 1 and 200 <= min(totals) < 208 and (min(totals) + num_queries) % 8 == 0
    many = pad_denoising(denoising_queries([target(130)], one_hot_embedding()), num_queries)
    assert 260 <= many.content.shape[1] < 268 and (many.content.shape[1] + num_queries) % 8 == 0
    assert many.content.shape[1] == many.boxes_cxcywh.shape[1] == 260 + many.padding


def test_padding_changes_no_output_no_loss_and_no_gradient(tiny, make_case, monkeypatch):
    network = tiny("swin", dropout=0.0).train()
    case = make_case([["cat", "dog"], ["zebra"]], [(64, 96), (16, 16)], [3, 2])
    results = []
    for pad in (lambda queries: queries, lambda queries: pad_denoising(queries, 12)):
        monkeypatch.setattr(detector, "denoising_queries", lambda *given, p=pad: p(denoising_queries(*given)))
        network.zero_grad()
        output = case.run(network)
        assert output["dn_outputs"][0]["pred_boxes"].shape[1] == 198
        terms = CRITERION(output, case.targets)
        total(terms).backward()
        gradients = {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}
        results.append((output["pred_boxes"].detach(), terms, gradients))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=0, atol=1e-5)
    assert results[0][1].keys() == results[1][1].keys()
    for name, term in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], term, rtol=1e-4, atol=1e-5)
    largest = max(gradient.abs().max().item() for gradient in results[0][2].values())
    for name, gradient in results[0][2].items():
        torch.testing.assert_close(results[1][2][name], gradient, rtol=1e-3, atol=1e-6 * largest)


def test_denoising_is_alive(tiny, make_case):
    network = tiny("swin").train()
    case = make_case([["cat", "dog"], ["zebra"]], [(64, 96), (48, 48)], [3, 2])
    terms, gradient = {}, {}
    for on in (False, True):
        network.configure_training(denoising=on, gradient_checkpointing=False, bucket=None)
        network.zero_grad()
        terms[on] = CRITERION(case.run(network), case.targets)
        total(terms[on]).backward()
        gradient[on] = network.decoder.label_embedding.weight.grad
    extra = set(terms[True]) - set(terms[False])
    assert extra == {f"{layer}dn_loss_{term}" for layer in ("d0.", "") for term in ("cls", "bbox", "giou")}
    assert all(terms[True][name] > 0 for name in extra)
    assert gradient[False] is None
    assert (gradient[True] != 0).any(dim=1).all(), "every label, those drawn by a flip too"
    assert total(terms[True]) > total(terms[False])
