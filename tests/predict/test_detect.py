"""Classes in images: prompts as batches, one ranking per image, boxes in pixels of the original."""

import math

import pytest
import torch
from engine_fakes import FakeNetwork
from engine_runs import CPU, TOWERS, tiny_bundle

from groundtune.engine.optim import freeze
from groundtune.predict.detect import PAIRS_PER_BATCH, class_prompts, detect_batch, inference_mode
from groundtune.predict.features import extract

COLORS = ["red", "green", "blue", "white", "black", "brown"]
THINGS = ["cat", "dog", "horse", "chair", "bottle", "traffic light", "aeroplane"]
NAMES = [f"{color} {thing}" for color in COLORS for thing in THINGS]
SIZES = [(64, 48), (32, 64), (64, 64)]


def images() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, *size, generator=generator) for size in SIZES]


def ranking_by_hand(network: FakeNetwork, image: torch.Tensor, names: list[str], tokenizer) -> list[tuple]:
    """(score, class, query) of all pairs, best first, from one prompt per class: the fake scores
    each token by itself.
    """
    maps = network.extract_features(image[None], [tuple(image.shape[1:])])
    pairs = []
    for index, name in enumerate(names):
        prompts = class_prompts(tokenizer, [name])
        logits = network.forward_features(maps, prompts.text)["pred_logits"][0]
        ids = tokenizer.convert_ids_to_tokens(prompts.text.input_ids[0].tolist())
        tokens = [index for index, token in enumerate(ids) if token not in ("[CLS]", "[SEP]", ".")]
        for query, row in enumerate(logits.tolist()):
            pairs.append((sum(1 / (1 + math.exp(-row[t])) for t in tokens) / len(tokens), index, query))
    return sorted(pairs, reverse=True)


def test_more_classes_than_fit_run_as_a_batch_into_one_ranking(tokenizer) -> None:
    network, batch = FakeNetwork().eval(), images()
    prompts = class_prompts(tokenizer, NAMES, 40)
    count = len(prompts.phrase_maps)
    assert count >= 4 and sum(prompts.class_indices, []) == list(range(len(NAMES)))
    assert all(int(row.sum()) <= 40 for row in prompts.text.text_token_mask)
    with torch.no_grad():
        results = detect_batch(network, extract(network, batch, CPU), prompts, SIZES)
        assert [pairs for pairs, _ in network.passes][:-1] == [PAIRS_PER_BATCH] * (
            3 * count // PAIRS_PER_BATCH
        )
        assert sum(pairs for pairs, _ in network.passes) == 3 * count
        assert network.extracted == 3  # once per image, not per prompt
        for detections, image in zip(results, batch, strict=True):
            expected = ranking_by_hand(network, image, NAMES, tokenizer)[:300]
            assert len(expected) == len(detections.scores) == 300 < len(NAMES) * 16
            assert detections.scores.tolist() == pytest.approx([score for score, _, _ in expected], abs=1e-6)
            assert len(set(detections.class_indices.tolist())) > len(
                prompts.class_indices[0]
            )  # of several prompts
            gaps = [one[0] - other[0] > 1e-6 for one, other in zip(expected, expected[1:], strict=False)]
            clear = [
                i for i in range(1, 299) if gaps[i - 1] and gaps[i]
            ]  # the order of the others may change
            assert len(clear) > 200
            assert all(int(detections.class_indices[i]) == expected[i][1] for i in clear)


def test_fewer_pairs_than_300(tokenizer) -> None:
    network = FakeNetwork().eval()
    with torch.no_grad():
        results = detect_batch(
            network, extract(network, images(), CPU), class_prompts(tokenizer, ["cat", "dog"]), SIZES
        )
        assert [len(detections.scores) for detections in results] == [2 * 16] * 3
        assert detect_batch(network, [], class_prompts(tokenizer, ["cat"]), []) == []


def test_a_batch_gives_what_each_image_gives_alone(tokenizer) -> None:
    """With the real network, whose classes attend to each other within a prompt, and prompts of
    several lengths.
    """
    network = tiny_bundle(tokenizer).network
    prompts = class_prompts(tokenizer, NAMES[:20], 40)
    with torch.no_grad():
        together = detect_batch(network, extract(network, images(), CPU), prompts, SIZES)
        for image, size, batched in zip(images(), SIZES, together, strict=True):
            (alone,) = detect_batch(network, extract(network, [image], CPU), prompts, [size])
            assert torch.allclose(alone.scores, batched.scores, atol=1e-5)
            same = alone.class_indices == batched.class_indices  # the order of near equals may change
            assert same.float().mean() > 0.9
            assert (alone.boxes_xyxy - batched.boxes_xyxy).abs().amax(1)[same].median() < 1e-3


def test_the_language_model_reads_each_phrase_once(tokenizer, monkeypatch) -> None:
    network = tiny_bundle(tokenizer).network
    freeze(network, TOWERS)
    rows = []
    forward = type(network.language_model.bert).forward
    monkeypatch.setattr(
        type(network.language_model.bert),
        "forward",
        lambda self, input_ids, **rest: (rows.append(len(input_ids)), forward(self, input_ids, **rest))[1],
    )
    prompts = class_prompts(tokenizer, NAMES, 40)
    for image, size in zip(images(), SIZES, strict=True):
        with torch.no_grad():
            detect_batch(network, extract(network, [image], CPU), prompts, [size])
    assert sum(rows) == len(NAMES) + 2  # and [CLS] and [SEP]


def test_rows_are_cut_to_the_longest_of_the_batch(tokenizer) -> None:
    prompts = class_prompts(tokenizer, ["traffic light", "red traffic light", "cat"], 6)
    lengths = prompts.text.text_token_mask.sum(1).tolist()
    assert lengths == [5, 6, 4]  # [CLS] … . [SEP]
    for chosen in ([0], [2, 0], [1, 2, 2]):
        text = prompts.text.rows(chosen)
        longest = max(lengths[i] for i in chosen)
        assert text.input_ids.shape == (len(chosen), longest)
        assert text.phrase_mask.shape == (len(chosen), longest, longest)
        assert text.text_token_mask.sum(1).tolist() == [lengths[i] for i in chosen]


class FixedBoxes(FakeNetwork):
    """Returns the given boxes, in descending order of score."""

    def __init__(self, boxes_cxcywh: list[list[float]]) -> None:
        super().__init__()
        self.boxes = torch.tensor(boxes_cxcywh)

    def forward_features(self, features, text, targets=None):
        output = super().forward_features(features, text)
        output["pred_boxes"] = self.boxes.expand(len(features), -1, -1)
        descending = -torch.arange(float(len(self.boxes)))[:, None]
        output["pred_logits"] = output["pred_logits"][:, : len(self.boxes)].clamp(max=0) * 0 + descending
        return output


def test_boxes_are_pixels_of_the_original_and_inside_it(tokenizer) -> None:
    """Images of 40 x 200 and 100 x 50 pixels (height x width), whatever the size that the network
    gets.
    """
    network = FixedBoxes([[0.5, 0.5, 0.5, 0.5], [0.1, 0.5, 0.4, 1.0], [0.9, 0.95, 0.4, 0.2]]).eval()
    with torch.no_grad():
        maps = extract(network, images()[:2], CPU)
        wide, tall = detect_batch(network, maps, class_prompts(tokenizer, ["cat"]), [(40, 200), (100, 50)])
    assert wide.boxes_xyxy.flatten().tolist() == pytest.approx(
        [50, 10, 150, 30, 0, 0, 60, 40, 140, 34, 200, 40]
    )
    assert tall.boxes_xyxy.flatten().tolist() == pytest.approx(
        [12.5, 25, 37.5, 75, 0, 0, 15, 100, 35, 85, 50, 100]
    )


@pytest.mark.parametrize("fails", [False, True])
def test_inference_mode_puts_every_module_back(fails: bool) -> None:
    network = FakeNetwork()
    freeze(network, TOWERS)
    network.train()
    network.encoder[1].eval()
    before = {name: module.training for name, module in network.named_modules()}
    assert set(before.values()) == {True, False}
    try:
        with inference_mode(network, "fp32"):
            assert not any(module.training for module in network.modules()) and not torch.is_grad_enabled()
            assert not torch.is_inference_mode_enabled()
            if fails:
                raise ValueError
    except ValueError:
        pass
    assert {
        name: module.training for name, module in network.named_modules()
    } == before and torch.is_grad_enabled()
