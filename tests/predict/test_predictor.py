"""Predictions by name or sentence: boxes in the user's pixels, names as the user wrote them."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from predict_fakes import make_predictor
from supervision import Detections

from groundtune.api import Model
from groundtune.errors import ConfigError, DataError
from groundtune.predict.detect import detect_batch, sentence_prompts
from groundtune.predict.postprocess import ImageDetections, Selection
from groundtune.predict.predictor import batched
from groundtune.predict.tiles import Tiles
from groundtune.predict.video import Frame
from groundtune.predict.writers import records_of
from groundtune.text.prompt import sentence_prompt


def run(bundle, images, names=("cat", "dog"), threshold=0.0, **options):
    return list(make_predictor(bundle, list(names), threshold=threshold, **options).each(images))


def noise(height=40, width=60, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_nano_gives_boxes_inside_the_image_for_paths_images_and_arrays(nano, tmp_path):
    array = noise(90, 200)
    Image.fromarray(array).save(tmp_path / "a.png")
    results = run(nano, [tmp_path / "a.png", Image.fromarray(array), array], ["Red_Circle", "dog"])
    assert [len(part) for part in results] == [200] * 3  # 100 queries, two classes
    for part in results:
        assert (part.xyxy >= 0).all() and (part.xyxy <= [200, 90, 200, 90]).all()
        assert (part.xyxy[:, 2:] >= part.xyxy[:, :2]).all()
        assert part.xyxy[:, 2].max() > 90  # neither relative nor square
        assert (np.diff(part.confidence) <= 0).all()
        assert part.confidence.min() >= 0 and part.confidence.max() <= 1
        assert set(part.data["class_name"]) == {"Red_Circle", "dog"}
        # of 200 pixels; each row of a batch is rounded differently
        np.testing.assert_allclose(part.xyxy, results[0].xyxy, atol=1e-3)


def test_predictions_do_not_depend_on_the_batch(nano):
    images = [noise(90, 200, 1), noise(150, 60, 2), noise(100, 100, 3)]
    for a, b in zip(run(nano, images, batch_size=3), run(nano, images, batch_size=1), strict=True):
        np.testing.assert_allclose(np.sort(a.confidence), np.sort(b.confidence), atol=1e-4)
        np.testing.assert_allclose(a.xyxy[:5], b.xyxy[:5], atol=0.05)


def test_the_modes_of_the_network_and_of_torch_are_restored_after_each_batch(nano):
    nano.network.decoder.train()
    predictions = make_predictor(nano, ["cat"], batch_size=1, precision="bf16").each([noise(), noise()])
    next(predictions)
    assert torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
    assert nano.network.decoder.training and not nano.network.backbone.training
    nano.network.eval()


def test_a_list_gives_a_list_and_an_image_its_detections(stub):
    model = Model(stub, "cpu")
    single = model.predict(noise(), ["cat"])
    assert isinstance(single, Detections) and len(single) == 2
    several = model.predict([noise(), noise(20, 30)], ["cat"])
    assert [part.xyxy[0].tolist() for part in several] == [[0, 0, 60, 40], [0, 0, 30, 20]]
    assert model.predict([], ["cat"]) == [] and run(stub, []) == []
    assert make_predictor(stub, ["cat"]).find([]) == []
    with pytest.raises(ConfigError, match="no classes of its own"):
        model.predict(noise())


def test_batches_have_the_batch_size_and_keep_the_order(stub):
    predictions = run(stub, [noise(20 + i, 30) for i in range(5)], batch_size=2)
    assert [call.sizes_hw for call in stub.calls] == [[(20, 30), (21, 30)], [(22, 30), (23, 30)], [(24, 30)]]
    assert [part.xyxy[0, 3] for part in predictions] == [20, 21, 22, 23, 24]
    # short side 32: the network gets resized images, the boxes are in pixels of the original
    assert stub.calls[2].images[0].shape == (3, 32, 40)


def test_only_one_batch_of_a_stream_is_read_at_a_time(stub):
    read = []
    images = (read.append(i) or noise() for i in range(9))
    predictions = make_predictor(stub, ["cat"], batch_size=2).each(images)
    next(predictions)
    assert read == [0, 1]
    assert len(list(predictions)) == 8 and len(read) == 9
    assert list(batched("abcde", 2)) == [["a", "b"], ["c", "d"], ["e"]] and list(batched("", 2)) == []


@pytest.mark.parametrize("ahead", [False, True])
def test_frames_are_streamed_with_their_detections(stub, ahead):
    frames = [Frame(Path(f"{i}.png"), Image.fromarray(noise(20 + i, 30))) for i in range(3)]
    results = list(make_predictor(stub, ["cat"], batch_size=2).stream(frames, ahead))
    assert [frame.path.name for frame, _ in results] == ["0.png", "1.png", "2.png"]
    assert [part.xyxy[0, 3] for _, part in results] == [20, 21, 22]


@pytest.mark.parametrize(
    ("names", "prompt", "ids"),
    [
        (["Red_Circle", "dog"], "red circle. dog.", [0, 1]),
        (["CAT (big)", "cat"], "cat big. cat.", [0, 1]),
        (["  TV.monitor "], "tv monitor.", [0, 0]),
    ],
)
def test_names_come_back_as_they_were_given(stub, names, prompt, ids):
    (detections,) = run(stub, [noise()], names)
    assert stub.tokenizer.decode(stub.calls[0].prompts.text.input_ids[0][1:-1]) == prompt
    assert detections.class_id.tolist() == ids
    assert detections.data["class_name"].tolist() == [names[i] for i in ids]


def test_names_without_text_are_refused(stub):
    with pytest.raises(DataError, match="no text in '_'"):
        run(stub, [noise()], ["cat", "_"])


@pytest.mark.parametrize("names", [["cat", "Cat"], ["café", "cafe"], ["ᏣᎳᎩ", "ᏤᎳ"], ["cat", "cat "]])
def test_classes_that_the_model_cannot_distinguish_are_refused(stub, names):
    with pytest.raises(DataError) as error:
        run(stub, [noise()], ["dog", *names])
    assert all(repr(name) in str(error.value) for name in names) and "--rename" in str(error.value)
    assert "'dog'" not in str(error.value)


def test_names_with_unknown_letters_are_named(stub):
    assert "'ᏣᎳᎩ'" in make_predictor(stub, ["cat", "ᏣᎳᎩ"]).warning
    assert make_predictor(stub, ["cat", "dog"]).warning == ""


@pytest.mark.parametrize(("threshold", "count"), [(0.0, 2), (0.5, 2), (0.51, 1), (0.75, 1), (0.76, 0)])
def test_the_threshold_is_the_lowest_score(stub, threshold, count):
    (detections,) = run(stub, [noise()], threshold=threshold)
    assert detections.xyxy.shape == (count, 4)
    assert len(detections.class_id) == len(detections.data["class_name"]) == count
    cat = {"class": "cat", "score": 0.75, "box_xyxy": [0, 0, 60, 40]}
    dog = {"class": "dog", "score": 0.5, "box_xyxy": [0, 0, 30, 40]}
    assert records_of(detections) == [cat, dog][:count]


@pytest.mark.parametrize(
    ("thresholds", "names"),
    [
        ({"CAT": 0.8}, ["dog"]),
        ({"dog": 0.51, "horse": 0.0}, ["Cat"]),
        ({"cat": 0.75, "dog": 0.5}, ["Cat", "dog"]),
    ],
)
def test_a_class_has_its_own_threshold_however_it_is_written(stub, thresholds, names):
    """The scores are 0.75 and 0.5."""
    (detections,) = run(stub, [noise()], ["Cat", "dog"], 0.5, thresholds=thresholds)
    assert detections.data["class_name"].tolist() == names


def test_sentences_are_prompts_of_their_own(stub):
    sentences = ["The cat on the left?", "a [big dog] near [the sofa]"]
    predictor = make_predictor(stub, sentences, sentences=True)
    assert predictor.names == ["The cat on the left", "big dog", "the sofa"]
    (detections,) = predictor.find([Image.fromarray(noise())])
    prompts = stub.calls[0].prompts
    assert prompts.score_reduction == "max" and prompts.class_indices == [[0], [1, 2]]
    ids = prompts.text.input_ids
    texts = [stub.tokenizer.decode(row[row != stub.tokenizer.pad_token_id][1:-1]) for row in ids]
    assert texts == ["the cat on the left.", "a big dog near the sofa."]
    # tokens: [CLS] the cat on the left . [SEP] and [CLS] a big dog near the sofa . [SEP]
    assert [rows.nonzero()[:, 1].tolist() for rows in prompts.phrase_maps] == [[1, 2, 3, 4, 5], [2, 3, 5, 6]]
    assert detections.data["class_name"].tolist() == ["The cat on the left", "the sofa"]
    assert detections.class_id.tolist() == [0, 2]


def test_the_score_of_a_sentence_is_the_best_of_its_tokens(tokenizer):
    logits = torch.full((1, 2, 256), -torch.inf)
    logits[0, :, 1:6] = torch.tensor([[0.0, 2.0, -1.0, 0.0, 0.0], [-3.0, -2.0, -3.0, -3.0, -3.0]])
    output = {"pred_logits": logits, "pred_boxes": torch.tensor([[[0.5, 0.5, 1, 1]] * 2])}
    network = SimpleNamespace(forward_features=lambda maps, text: output)
    prompts = sentence_prompts(tokenizer, [sentence_prompt("the cat on the left")], 256)
    (detections,) = detect_batch(network, [[]], prompts, [(10, 10)])
    torch.testing.assert_close(detections.scores, torch.tensor([2.0, -2.0]).sigmoid())


@pytest.mark.parametrize("sentence", ["", " . ", "a [cat", "cat]", "[]", "a [ ] cat", "[a [b] c]", "?"])
def test_sentences_without_a_phrase_are_refused(stub, sentence):
    with pytest.raises(DataError, match="Invalid phrase"):
        make_predictor(stub, [sentence], sentences=True)


def test_a_sentence_of_one_word_scores_like_a_name(nano):
    """Mean and maximum of one token are equal."""
    image = noise(90, 120)
    (name,) = run(nano, [image], ["cat"])
    (sentence,) = run(nano, [image], ["cat"], sentences=True)
    np.testing.assert_allclose(name.confidence, sentence.confidence, atol=1e-5)


def test_tiles_are_detected_in_batches_and_merged(stub):
    (detections,) = run(stub, [noise(100, 180)], tiles=Tiles(100, 0.2), batch_size=2)
    assert [call.sizes_hw for call in stub.calls] == [[(100, 180), (100, 100)], [(100, 100)]]
    cats = detections.xyxy[detections.class_id == 0].tolist()
    assert cats == [[0, 0, 180, 100]]  # the cats of the tiles are cut, and agree with the whole one
    assert len(detections) > 1 and detections.data["class_name"][0] == "cat"
    (small,) = run(stub, [noise(100, 180)], tiles=Tiles(200, 0.2))
    assert len(small) == 2


def test_suppression_follows_the_merging_of_tiles_and_the_limit_both(stub):
    """The cats of the tiles join the one of the image; dogs are left halves of image and tiles."""
    image, tiles = noise(100, 180), Tiles(100, 0.2)
    (everything,) = run(stub, [image], tiles=tiles)
    (agnostic,) = run(stub, [image], tiles=tiles, selection=Selection(0.4, True, None))
    (best,) = run(stub, [image], tiles=tiles, selection=Selection(0.4, True, 1))
    expected = everything.with_nms(0.4, class_agnostic=True)
    assert sorted(map(tuple, agnostic.xyxy.tolist())) == sorted(map(tuple, expected.xyxy.tolist()))
    assert len(everything) > len(agnostic) >= len(best) == 1
    assert best.data["class_name"].tolist() == ["cat"]


def test_more_than_300_detections_are_asked_of_the_model_if_wanted(stub, monkeypatch):
    limits = []
    monkeypatch.setattr(
        "groundtune.predict.predictor.detect_batch",
        lambda *arguments: limits.append(arguments[5]) or [no_detections()],
    )
    for wanted in (None, 10, 500):
        run(stub, [noise()], selection=Selection(None, False, wanted))
    assert limits == [300, 300, 500]


def no_detections():
    return ImageDetections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long))
