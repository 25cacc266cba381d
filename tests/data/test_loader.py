"""Training batches: the right boxes under the right phrases, and equal batches for equal seeds."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
import torch
from coco_files import coco, write
from loader_files import NAMES, dataset_of, loader_of, sample, seven_images

from groundtune.data.combine import rename_classes
from groundtune.data.formats.detect import load_splits, read_splits
from groundtune.data.scenes import write_scenes
from groundtune.errors import DataError


@pytest.fixture()
def images(tmp_path):
    return seven_images(tmp_path)


def entries(batches, pixels=True):
    """Everything in the batches but the padding, as one comparable tuple per entry."""
    return [
        (
            batch.indices[i],
            batch.views[i],
            batch.sizes_hw[i],
            batch.prompts[i],
            batch.targets[i].boxes_cxcywh.numpy().tobytes(),
            tuple(batch.targets[i].labels.tolist()),
            tuple(batch.targets[i].class_ids.tolist()),
            batch.targets[i].noise_seed,
            batch.images[i].numpy().tobytes() if pixels else None,
        )
        for batch in batches
        for i in range(len(batch.indices))
    ]


def classes_of(prompt, names=NAMES):
    return [names.index(phrase) for phrase in prompt.phrases]


def test_boxes_are_relative_to_the_resized_image_without_its_padding(tmp_path, tokenizer):
    dataset = dataset_of(sample(tmp_path, i, [(10, 6, 30, 26)], [i]) for i in range(4))
    (batch,) = loader_of(dataset, tokenizer, batch_size=4).epoch(0)
    canvas = batch.canvas()
    assert len(set(batch.sizes_hw)) == 4 and canvas.shape == (4, 3, 96, 96)
    for image, (h, w), target in zip(canvas, batch.sizes_hw, batch.targets, strict=True):
        bright = image[0] > 0.5
        xs, ys = bright.any(0).nonzero().flatten(), bright.any(1).nonzero().flatten()
        white = torch.stack([xs[0], ys[0], xs[-1] + 1, ys[-1] + 1])
        cx, cy, bw, bh = (target.boxes_cxcywh[0] * torch.tensor([w, h, w, h])).tolist()
        assert [cx - bw / 2, cy - bh / 2, cx + bw / 2, cy + bh / 2] == pytest.approx(white.tolist(), abs=1)


def test_a_target_by_hand(tmp_path, tokenizer):
    dataset = dataset_of([sample(tmp_path, 0, [(8, 10, 24, 30)], [4], size_hw=(40, 80))])
    loader = loader_of(dataset, tokenizer, flip=0.0, shuffle_classes=False, negative_probability=0.0)
    (batch,) = loader.epoch(0)
    assert batch.targets[0].boxes_cxcywh.tolist() == [pytest.approx([0.2, 0.5, 0.2, 0.5])]
    assert batch.targets[0].labels.tolist() == [4] and batch.targets[0].class_ids.tolist() == [4]
    assert batch.prompts[0].caption == "cat. red blood cell. tv monitor. zebra. car. carrot. "


@pytest.mark.parametrize("ids", [[7, 900, 3], [0, -5, 1], ["x", "9", "1"]])
def test_category_ids_do_not_reach_the_batches(tmp_path, tokenizer, ids):
    def batches(category_ids):
        boxes = [(1 + i % 4, category_ids[i % 3], [i, 2, 10 + i, 20]) for i in range(9)]
        names = zip(category_ids, ["cat", "zebra", "tv monitor"], strict=True)
        content = coco([f"{i}.png" for i in range(4)], boxes, list(names))
        dataset = read_splits(write(tmp_path / "a.json", content, tmp_path))["train"]
        return [b for e in range(3) for b in loader_of(dataset, tokenizer, batch_size=3).epoch(e)]

    contiguous, arbitrary = batches([1, 2, 3]), batches(ids)
    assert entries(arbitrary) == entries(contiguous)
    for target, prompt in ((t, p) for b in arbitrary for t, p in zip(b.targets, b.prompts, strict=True)):
        phrases = [prompt.phrases[label] for label in target.labels.tolist()]
        assert phrases == [["cat", "zebra", "tv monitor"][c] for c in target.class_ids.tolist()]


def test_positives_are_always_in_the_prompt_and_never_negatives(images, tokenizer):
    loader = loader_of(images, tokenizer, batch_size=7)
    negatives = set()
    for epoch in range(40):
        (batch,) = loader.epoch(epoch)
        for own, prompt, target in zip(batch.samples, batch.prompts, batch.targets, strict=True):
            classes = classes_of(prompt)
            assert set(own.class_ids.tolist()) <= set(classes) and len(set(classes)) == len(classes) >= 1
            assert sorted(target.class_ids.tolist()) == sorted(own.class_ids.tolist())
            assert [classes[label] for label in target.labels.tolist()] == target.class_ids.tolist()
            negatives.add(len(classes) - len(set(own.class_ids.tolist())))
    assert negatives == {0, 1, 2, 3, 4, 5, 6}  # none to all; 6 in the empty image


def test_the_positive_map_marks_the_tokens_of_the_phrase(images, tokenizer):
    seen = set()
    for batch in loader_of(images, tokenizer, batch_size=3).epoch(0):
        for ids, target in zip(batch.text.input_ids, batch.targets, strict=True):
            assert target.positive_map.dtype == torch.bool and target.positive_map.shape[1] == 256
            for row, class_id in zip(target.positive_map, target.class_ids.tolist(), strict=True):
                assert tokenizer.decode(ids[row[: len(ids)]]) == NAMES[class_id]
                seen.add(class_id)
    assert len(seen) == 6


def test_crowds_are_not_trained_on_and_their_class_is_not_a_negative(tmp_path, tokenizer):
    boxes = [(2, 2, 20, 20), (4, 4, 30, 30), (6, 6, 36, 36)]
    mixed = sample(tmp_path, 0, boxes, [0, 1, 0], [False, True, True])
    only_crowd = sample(tmp_path, 1, boxes[:1], [2], [True])
    loader = loader_of(dataset_of([mixed, only_crowd]), tokenizer, batch_size=1)
    for epoch in range(20):
        for batch in loader.epoch(epoch):
            target, classes = batch.targets[0], classes_of(batch.prompts[0])
            assert target.class_ids.tolist() == ([0] if batch.indices == [0] else [])
            assert (1 if batch.indices == [0] else 2) not in classes and classes
    (batch,) = loader_of(dataset_of([only_crowd], NAMES[:3]), tokenizer).epoch(0)
    assert batch.targets[0].boxes_cxcywh.shape == (0, 4)
    dataset = dataset_of([dataclasses.replace(only_crowd, class_ids=np.array([0]))], NAMES[:1])
    (batch,) = loader_of(dataset, tokenizer).epoch(0)
    assert (
        batch.prompts[0].phrases == ("cat",) and len(batch.targets[0].labels) == 0
    )  # a prompt needs a class


def test_a_class_that_was_cropped_away_is_not_a_negative(tmp_path, tokenizer):
    corners = [(0, 0, 10, 10), (70, 0, 80, 10), (0, 70, 10, 80), (70, 70, 80, 80)]
    dataset = dataset_of([sample(tmp_path, 0, corners, [0, 1, 2, 3], size_hw=(80, 80))])
    loader = loader_of(dataset, tokenizer, crop=1.0, multi_scale=[0.75, 1.25], negative_probability=0.0)
    seen = Counter()
    for epoch in range(40):
        (batch,) = loader.epoch(epoch)
        target = batch.targets[0]
        present = set(target.class_ids.tolist())
        assert present and set(classes_of(batch.prompts[0])) == present | {4, 5}
        corners = target.boxes_cxcywh[:, :2], target.boxes_cxcywh[:, 2:] / 2
        assert (corners[0] - corners[1]).min() >= -1e-6 and (corners[0] + corners[1]).max() <= 1 + 1e-6
        assert batch.images[0].shape[1:] == batch.sizes_hw[0]
        seen[len(present)] += 1
    assert seen[1] and len(seen) > 1


def test_empty_images_are_trained_on(images, tokenizer):
    batch = next(b for b in loader_of(images, tokenizer, batch_size=2).epoch(0) if 3 in b.indices)
    target = batch.targets[batch.indices.index(3)]
    assert target.boxes_cxcywh.shape == (0, 4) and target.labels.shape == target.class_ids.shape == (0,)
    assert target.positive_map.shape == (0, 256) and batch.prompts[batch.indices.index(3)].phrases


def test_the_same_seed_gives_the_same_batches_with_any_number_of_workers(images, tokenizer):
    def run(**options):
        options = {"batch_size": 3, "crop": 0.5, "multi_scale": [0.5, 1.0], **options}
        loader = loader_of(images, tokenizer, **options)
        return entries(batch for epoch in (0, 1) for batch in loader.epoch(epoch))

    first = run()
    assert run() == first and run(workers=2) == first
    assert run(seed=1) != first and first[:7] != first[7:]
    assert sorted(run(batch_size=1)) == sorted(run(batch_size=7)) == sorted(first)  # but not their order


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50])
def test_every_image_once_per_epoch(images, tokenizer, size):
    loader = loader_of(images, tokenizer, batch_size=size)
    plans = [loader.batch_plan(epoch) for epoch in range(6)]
    for epoch, plan in enumerate(plans):
        assert sorted(sum(plan, [])) == list(range(7)) and len(plan) == len(loader) == -(-7 // size)
        assert sum(len(batch) != size for batch in plan) <= 1
        assert [batch.indices for batch in loader.epoch(epoch)] == plan
    assert size >= 7 or len({str(plan) for plan in plans}) > 1


def test_images_of_like_shape_share_a_batch(tmp_path, tokenizer):
    dataset = dataset_of(sample(tmp_path, i, size_hw=[(40, 80), (80, 40)][i % 2]) for i in range(16))
    for plan in (loader_of(dataset, tokenizer, batch_size=4).batch_plan(epoch) for epoch in range(5)):
        assert all(len({index % 2 for index in batch}) == 1 for batch in plan)


@pytest.mark.parametrize(("size", "processes"), [(4, 2), (3, 2), (2, 2), (6, 4), (1, 3)])
def test_the_shares_of_the_processes_are_the_batches_of_one(images, tokenizer, size, processes):
    whole = list(loader_of(images, tokenizer, batch_size=size).epoch(2))
    shares = [
        list(loader_of(images, tokenizer, rank=rank, processes=processes, batch_size=size).epoch(2))
        for rank in range(processes)
    ]
    assert {len(share) for share in shares} == {len(whole)}
    for batch, *parts in zip(whole, *shares, strict=True):
        assert set(entries(parts)) == set(entries([batch]))
        assert sum(len(part.indices) for part in parts) == len(batch.indices)  # nothing is shown twice


def test_an_image_whose_classes_need_several_prompts_is_repeated(tmp_path, tokenizer):
    names = [f"number {n}" for n in range(100, 220)]  # three tokens each, 360 in all
    boxes = [(i % 40, i % 30, i % 40 + 5, i % 30 + 6) for i in range(120)]
    dataset = dataset_of([sample(tmp_path, 0, boxes, range(120)), sample(tmp_path, 1, boxes[:1], [7])], names)
    (batch,) = loader_of(dataset, tokenizer, batch_size=2).epoch(0)
    rows = [i for i, index in enumerate(batch.indices) if index == 0]
    assert len(rows) == 2 and len(batch.indices) == 3 and batch.text.input_ids.shape[1] <= 256
    trained = [batch.targets[i].class_ids.tolist() for i in rows]
    prompts = [set(classes_of(batch.prompts[i], names)) for i in rows]
    assert sorted(sum(trained, [])) == list(range(120))
    assert all(set(ids) <= prompt for ids, prompt in zip(trained, prompts, strict=True))
    assert all(not set(ids) & prompt for ids, prompt in zip(trained, prompts[::-1], strict=True))
    assert len({batch.targets[i].noise_seed for i in rows}) == 2
    assert batch.images[rows[0]] is batch.images[rows[1]]


@pytest.mark.parametrize(
    ("options", "views"),
    [
        ({}, 0),
        ({"cache_views": 1}, 1),
        ({"cache_views": 5}, 2),
        ({"cache_views": 5, "flip": 0.0}, 1),
        ({"cache_views": 5, "crop": 1.0}, 5),
        ({"cache_views": 5, "multi_scale": [0.5, 1.0], "flip": 0.0}, 5),
    ],
)
def test_cached_views_take_turns(images, tokenizer, options, views):
    loader = loader_of(images, tokenizer, **options)
    assert loader.num_views == views
    assert {loader.view_of(3, epoch) for epoch in range(12)} == set(range(views or 12))
    first, second = loader.geometry(0, 0), loader.geometry(0, 1)
    if views:
        assert first.crop_xyxy == (0, 0, 80, 40) and first.size_hw == (48, 96) and not first.flip
    if views > 1 and loader.config.flip:
        assert second == dataclasses.replace(first, flip=True)
    if loader.config.crop:
        assert len({loader.geometry(0, view) for view in range(views)}) == views


def test_images_whose_pixels_are_not_needed_are_not_opened(images, tokenizer):
    whole = list(loader_of(images, tokenizer, batch_size=7, cache_views=2).epoch(1))
    images.samples[2].image_path.unlink()
    calls = []

    def needs(index, view):
        calls.append((index, view))
        return index != 2

    batches = list(loader_of(images, tokenizer, needs, batch_size=7, cache_views=2).epoch(1))
    assert entries(batches[:1], pixels=False) == entries(whole, pixels=False)
    assert [p is None for p in batches[0].images] == [i == 2 for i in batches[0].indices]
    assert sorted(calls) == [(index, (index + 1) % 2) for index in range(7)]
    with pytest.raises(ValueError, match="not decoded"):
        batches[0].canvas()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_can_begin_at_any_batch(images, tokenizer, workers):
    loader = loader_of(images, tokenizer, batch_size=2, workers=workers)
    batches = list(loader.epoch(3))
    for first in range(5):
        assert entries(loader.epoch(3, first_batch=first)) == entries(batches[first:])
    assert len(batches) == 4


def test_a_data_set_needs_images(tokenizer):
    with pytest.raises(DataError, match="'train'.*no images"):
        loader_of(dataset_of([]), tokenizer)


def test_synonyms_are_drawn_in_training_prompts_and_templates_contain_the_old_name(tmp_path, tokenizer):
    write_scenes(tmp_path / "scenes", train=3, valid=1, classes=["red circle", "blue star"], size=64)
    splits = load_splits(tmp_path / "scenes")
    rename_classes(list(splits.values()), {"red circle": "ball|{} thing|Round_Spot", "blue star": "a {}"})
    train = splits["train"]
    assert train.class_names == ["red circle", "blue star"] and train.phrases == ["ball", "a blue star"]
    assert train.synonyms == {"red circle": ["red circle thing", "round spot"]}
    seen = set()
    for epoch in range(20):
        for batch in loader_of(train, tokenizer).epoch(epoch):
            for prompt, target in zip(batch.prompts, batch.targets, strict=True):
                phrases = [prompt.phrases[label] for label in target.labels]
                seen |= {(train.class_names[c], p) for c, p in zip(target.class_ids, phrases, strict=True)}
    names = {("red circle", phrase) for phrase in ("ball", "red circle thing", "round spot")}
    assert seen == names | {("blue star", "a blue star")}
    with pytest.raises(DataError, match="'a blue star' would name more than one class"):
        rename_classes([train], {"ball": "sphere|a blue star"})
