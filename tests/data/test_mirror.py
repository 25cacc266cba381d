"""Mirrored training images: boxes as in PIL's mirror image, and the classes of what is seen there."""

from dataclasses import replace

import numpy as np
import pytest
from loader_files import FORMAT, dataset_of, loader_of, sample
from PIL import Image, ImageDraw, ImageOps

from groundtune.data.mirror import describe_mirroring

ARROWS = ["left arrow", "right arrow", "dog"]


def arrows(folder, names=ARROWS):
    """Two images with a left arrow (white head) and a right arrow (gray head), and a dog."""
    samples = [sample(folder, i, [(4, 5, 30, 25), (40, 8, 70, 28)], [0, 1], size_hw=(48, 96)) for i in (0, 1)]
    samples.append(sample(folder, 2, [(10, 10, 40, 40)], [2], size_hw=(48, 96)))
    return dataset_of(samples, names)


def seen(batch, entry=0):
    """Phrase and pixel corners of each box of an entry."""
    height, width = batch.sizes_hw[entry]
    boxes = batch.targets[entry].boxes_cxcywh.numpy() * [width, height, width, height]
    corners = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], axis=1)
    phrases = [batch.prompts[entry].phrases[label] for label in batch.targets[entry].labels.tolist()]
    return dict(zip(phrases, corners.round(3).tolist(), strict=True))


def batches(dataset, tokenizer, epochs=8, **options):
    loader = loader_of(dataset, tokenizer, **options)
    return [(epoch, batch) for epoch in range(epochs) for batch in loader.epoch(epoch)]


def test_a_mirrored_image_equals_pil_and_exchanges_the_classes(tmp_path, tokenizer):
    """A mark of the arrow's own brightness travels with the box: PIL moves it, the loader names it."""
    image = Image.new("RGB", (96, 48))
    ImageDraw.Draw(image).rectangle((4, 5, 29, 24), fill=(255, 255, 255))
    ImageDraw.Draw(image).rectangle((40, 8, 69, 27), fill=(128, 128, 128))
    dataset = arrows(tmp_path)
    image.save(dataset.samples[0].image_path)
    dataset.samples = dataset.samples[:1]
    (batch,) = loader_of(dataset, tokenizer, flip=1.0, batch_size=1).epoch(0)
    expected = np.asarray(ImageOps.mirror(image))
    assert (batch.images[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8).tolist() == (
        expected.tolist()
    )
    white, gray = ([*np.argwhere(expected[..., 0] == v).min(0)[::-1]] for v in (255, 128))
    assert seen(batch) == {"right arrow": [66, 5, 92, 25], "left arrow": [26, 8, 56, 28]}
    assert (white, gray) == ([66, 5], [26, 8])
    # denoising labels are the exchanged classes too
    assert sorted(batch.targets[0].class_ids.tolist()) == [0, 1]
    (plain,) = loader_of(dataset, tokenizer, flip=0.0, batch_size=1).epoch(0)
    assert seen(plain) == {"left arrow": [4, 5, 30, 25], "right arrow": [40, 8, 70, 28]}


@pytest.mark.parametrize("options", [{}, {"cache_views": 2}, {"cache_views": 3, "multi_scale": [0.8, 1.0]}])
@pytest.mark.parametrize("crop", [0.0, 1.0])
def test_every_view_names_the_arrow_by_its_side(tmp_path, tokenizer, options, crop):
    dataset, turned = arrows(tmp_path), set()
    dataset.samples = dataset.samples[:2]
    loader = loader_of(dataset, tokenizer, flip=0.5, crop=crop, **options)
    for epoch in range(12):
        for batch in loader.epoch(epoch):
            view = loader.geometry(batch.indices[0], batch.views[0])
            boxes, inside = view.boxes(dataset.samples[0].boxes_xyxy)
            names = ARROWS[1::-1] if view.flip else ARROWS[:2]
            expected = dict(zip(np.array(names)[inside].tolist(), boxes.tolist(), strict=True))
            assert seen(batch) == {name: pytest.approx(box, abs=0.01) for name, box in expected.items()}
            turned.add(view.flip)
    assert turned == {False, True}


def test_without_the_other_class_the_image_is_not_mirrored_and_others_do_not_teach_it(tmp_path, tokenizer):
    dataset = arrows(tmp_path, ["left arrow", "fork", "dog"])
    for _, batch in batches(dataset, tokenizer, flip=1.0, batch_size=1, negative_probability=0.0):
        phrases = set(batch.prompts[0].phrases)
        if batch.indices == [2]:  # only a dog: mirrored, and what was a right arrow would be a left one
            assert seen(batch) == {"dog": [56, 10, 86, 40]} and phrases == {"fork", "dog"}
        else:
            assert seen(batch)["left arrow"] == [4, 5, 30, 25] and phrases == {"left arrow", "fork", "dog"}


def test_a_cache_does_not_hold_the_same_view_twice(tmp_path, tokenizer):
    alone = arrows(tmp_path, ["left arrow", "digit 2", "b"])
    assert loader_of(alone, tokenizer, cache_views=2).num_views == 1
    assert loader_of(arrows(tmp_path), tokenizer, cache_views=2).num_views == 2
    mixed = loader_of(arrows(tmp_path, ["left arrow", "fork", "dog"]), tokenizer, cache_views=2)
    assert [mixed.geometry(index, 1).flip for index in (0, 1, 2)] == [False, False, True]


def test_an_image_of_a_source_that_annotates_one_side_only(tmp_path, tokenizer):
    """Its mirror image shows which right arrows there are, not which left ones."""
    dataset = arrows(tmp_path)
    dataset.samples = [
        replace(dataset.samples[0], boxes_xyxy=np.float32([[4, 5, 30, 25]]), class_ids=np.array([0]),
                crowd=np.zeros(1, bool), annotated=frozenset({0, 2}))
    ]  # fmt: skip
    for _, batch in batches(dataset, tokenizer, flip=1.0, negative_probability=0.0):
        assert set(batch.prompts[0].phrases) == {"right arrow", "dog"}


@pytest.mark.parametrize("options", [{}, {"cache_views": 2}, {"crop": 0.5, "multi_scale": [0.7, 1.0]}])
def test_views_and_draws_of_ordinary_data_do_not_change(tmp_path, tokenizer, options):
    """Images with and without mirrored words have the same random numbers, but for the flip."""
    plain = loader_of(arrows(tmp_path, ["cup", "fork", "dog"]), tokenizer, **options)
    alone = loader_of(arrows(tmp_path, ["cup", "left fork", "dog"]), tokenizer, **options)
    assert plain.batch_plan(3) == alone.batch_plan(3)
    for index in range(3):
        for view in range(2, 12):
            first, second = plain.geometry(index, view), alone.geometry(index, view)
            assert replace(first, flip=False) == replace(second, flip=False)
            assert not second.flip or (first.flip and index == 2)


def test_the_run_and_check_name_the_classes(tmp_path):
    dataset = arrows(tmp_path, [*ARROWS, "letter k"])
    assert describe_mirroring(dataset) == [
        "mirrored images exchange the classes 'left arrow' and 'right arrow'",
        "images with 'letter k' are not mirrored, as no class has the mirrored name",
    ]
    assert describe_mirroring(arrows(tmp_path, ["cup", "fork", "dog"])) == []


def test_the_case_of_a_letter_is_that_of_the_data_set(tmp_path):
    """A mirrored "b" is a "d", a mirrored "B" is no letter."""
    dataset = arrows(tmp_path, ["B", "D", "H"])
    assert describe_mirroring(dataset) == [
        "images with 'B', 'D' are not mirrored, as no class has the mirrored name"
    ]
    renamed = replace(
        arrows(tmp_path, ["B", "D", "Q"]),
        renamed=dict(zip("BDQ", ["left arrow", "right arrow", "o"], strict=True)),
    )
    assert describe_mirroring(renamed) == ["mirrored images exchange the classes 'B' and 'D'"]
    assert FORMAT.short_side == 48
