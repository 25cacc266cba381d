"""NanoDet-g, the evidence of the towers, distinct queries, and text in a frame."""

import importlib.util
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from groundtune.model.bundle import ModelBundle
from groundtune.model.checkpoint.load import load_bundle
from groundtune.model.encoder import Memory
from groundtune.model.evidence import TowerDetections, read_evidence
from groundtune.model.language import load_minilm, sentence_vectors
from groundtune.model.nanodet import NanoDet
from groundtune.model.selection import best_positions
from groundtune.model.towers import load_towers
from groundtune.text.prompt import class_prompt
from groundtune.text.tokens import TextInput, tokenize


@pytest.fixture
def nano() -> ModelBundle:
    return load_bundle("nano-everyday-untrained")


def test_nanodet_equals_the_published_graph(shared):
    spec = importlib.util.spec_from_file_location("tfjs_torch", shared / "towers/tfjs_torch.py")
    reader = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reader)
    graph = reader.Graph(str(shared / "towers/nanodet.json"))
    image = torch.rand(1, 3, 416, 416, generator=torch.Generator().manual_seed(0)) * 4 - 2
    names = ["Identity", *(f"Identity_{number}" for number in range(1, 6))]
    network = load_towers().nanodet.eval()
    with torch.no_grad():
        outputs = graph.run({"input_1": image[:, [2, 1, 0]]}, names)  # it reads BGR
        found = network.detect(network(image))
    for scores, distances in found:
        cells = scores.shape[2] * scores.shape[3]
        theirs = {output.shape[2]: output[0] for output in outputs if output.shape[1] == cells}
        expected = (theirs[44].view(cells, 4, 11).softmax(-1) * torch.arange(11.0)).sum(-1)
        torch.testing.assert_close(scores[0].flatten(1).T, theirs[80], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(distances[0].flatten(1).T, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size_hw", [(64, 96), (65, 33), (7, 20)])
def test_both_towers_have_maps_of_equal_sizes(size_hw):
    towers = load_towers().eval()
    with torch.no_grad():
        maps = towers(torch.randn(1, 3, *size_hw))
        scores = [level for level, _ in towers.detect(maps)]
    for x, y, width, stride in zip(maps, scores, towers.channels, (8, 16, 32), strict=True):
        assert x.shape[-2:] == y.shape[-2:] == tuple(math.ceil(side / stride) for side in size_hw)
        assert x.shape[1] + y.shape[1] == width


def one_cell(score: Tensor, distances: Tensor) -> TowerDetections:
    """One cell at each of three levels, and names that are the first axes of the text space."""
    levels = [(score[None, :, None, None], distances[None, :, None, None])] * 3
    return TowerDetections(levels, torch.zeros(1, 832, 1, 1), torch.eye(384)[:80])


def test_evidence_is_similarity_times_score_and_boxes_are_relative_to_the_image():
    score = torch.zeros(80)
    score[3] = 0.5
    detections = one_cell(score, torch.tensor([0.25, 0.5, 0.125, 0.25]))
    word = torch.zeros(1, 4, 384)
    word[..., 3], word[..., 200] = 0.8, 0.6  # cosine 0.8 to the name 3
    ids = torch.tensor([[101, 7000, 1012, 102]])
    text = TextInput(ids, torch.ones(1, 4).bool(), torch.zeros_like(ids), torch.eye(4).bool()[None])
    shapes = [(1, 1), (1, 1), (1, 1), (1, 1)]
    memory = Memory(
        torch.zeros(1, 4, 8), torch.zeros(1, 4, 8), text.text_token_mask, shapes, None, torch.ones(1, 4, 2)
    )
    found = read_evidence(detections, word, text, memory)
    similarity = ((0.8 - 0.45) / 0.55) ** 2
    assert found.terms.shape == (1, 4, 4, 2)
    assert found.terms[0, 0, 1, 0].item() == pytest.approx(math.log(0.5 * similarity / 0.01 + 1), rel=1e-4)
    assert found.terms[0, 0, 1, 1].item() == pytest.approx(-0.3)  # no word at all: cosine 0
    assert not found.terms[0, :, [0, 2, 3]].any()  # separators
    assert not found.terms[0, 3].any()  # the coarsest level has no detections
    # from .25 left of the center to .125 right of it, from the upper border to .25 below the center
    np.testing.assert_allclose(found.boxes_cxcywh[0, 0], [0.4375, 0.375, 0.375, 0.75], atol=1e-6)


def test_distinct_positions_come_first():
    boxes = torch.tensor(
        [[[0.5, 0.5, 0.4, 0.4], [0.5, 0.5, 0.39, 0.4], [0.2, 0.2, 0.1, 0.1], [0.8, 0.8, 0.1, 0.1]]]
    )
    scores = torch.tensor([[4.0, 3.0, 2.0, 1.0]])
    at = lambda index: boxes.gather(1, index[..., None].expand(-1, -1, 4))  # noqa: E731
    assert best_positions(scores, 3, 0.7, at)[1].tolist() == [[0, 2, 3]]
    values, index, distinct = best_positions(scores, 4, 0.7, at)
    assert (index.tolist(), distinct.tolist()) == ([[0, 2, 3, 1]], [[1, 1, 1, 0]])
    assert values.tolist() == [[4.0, 2.0, 1.0, 3.0]]
    assert best_positions(scores, 3, 1.0, at)[1].tolist() == [[0, 1, 2]]


def test_a_framed_phrase_has_the_same_features_alone_and_in_a_prompt(tokenizer):
    model = load_minilm(framed=True).eval()
    text, _ = tokenize(tokenizer, [class_prompt(["sofa", "red fire truck"]), class_prompt(["cup"])])
    cached = model(text)
    with torch.no_grad():
        whole = model.run_bert(text.input_ids, text.position_ids, text.phrase_mask)
    real = text.text_token_mask
    torch.testing.assert_close(cached[real], whole[real], atol=1e-4, rtol=1e-3)


def test_framed_names_are_near_to_names_that_mean_the_same(tokenizer):
    model = load_minilm(framed=True).eval()
    text, maps = tokenize(tokenizer, [class_prompt(["sofa", "couch", "banana"])])
    vectors = sentence_vectors(model(text), text)[0]
    sofa, couch, banana = (vectors[int(row.nonzero()[0])] for row in maps[0])
    assert sofa @ couch > 0.8 > 0.6 > sofa @ banana


def test_untrained_it_finds_what_nanodet_finds(nano):
    """A score of NanoDet alone, on an image that only it has an opinion on."""
    network = nano.network
    assert isinstance(network.backbone.nanodet, NanoDet)
    with torch.no_grad():
        network.evidence.weights.copy_(torch.tensor([1.0, 0.0]).expand_as(network.evidence.weights))
        image = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(1))
        maps = network.backbone(image)
        best = max(level[0, 16].max().item() for level, _ in network.backbone.detect(maps))
        text, phrase_maps = tokenize(nano.tokenizer, [class_prompt(["dog"])])
        output = network(image, [(96, 128)], text)
    logits = output["pred_logits"][0][:, phrase_maps[0][0]]
    assert logits.max().item() == pytest.approx(math.log(best / 0.01 + 1) - math.log(99), abs=1.0)


def test_an_image_does_not_depend_on_its_batch(nano):
    images = torch.zeros(2, 3, 96, 128)
    images[0] = torch.randn(3, 96, 128, generator=torch.Generator().manual_seed(2))
    images[1, :, :64, :96] = torch.randn(3, 64, 96, generator=torch.Generator().manual_seed(3))
    text, _ = tokenize(nano.tokenizer, [class_prompt(["dog", "traffic light"])] * 2)
    with torch.no_grad():
        both = nano.network(images, [(96, 128), (64, 96)], text)
        alone = nano.network(images[1:, :, :64, :96], [(64, 96)], text.rows(slice(1, 2)))
    # nearly equal scores may change places
    ours, single = (x["pred_logits"][row, :, :4].sort(0).values for x, row in ((both, 1), (alone, 0)))
    torch.testing.assert_close(ours, single, atol=2e-3, rtol=1e-3)
    distances = torch.cdist(alone["pred_boxes"][0], both["pred_boxes"][1])
    assert distances.amin(1).max() < 1e-3
