"""Batches as a whole: one canvas, one device; and the images of an evaluation, in order."""

import numpy as np
import pytest
import torch
from loader_files import FORMAT, dataset_of, loader_of, seven_images
from PIL import Image

from groundtune.data.prefetch import evaluation_images


@pytest.fixture()
def images(tmp_path):
    return seven_images(tmp_path)


def test_images_are_padded_with_zeros_at_the_right_and_below(images, tokenizer):
    batch = next(loader_of(images, tokenizer, batch_size=7).epoch(0))
    canvas = batch.canvas()
    assert canvas.shape[2:] == (max(h for h, _ in batch.sizes_hw), max(w for _, w in batch.sizes_hw))
    for place, image, (h, w) in zip(canvas, batch.images, batch.sizes_hw, strict=True):
        assert image.shape == (3, h, w) and torch.equal(place[:, :h, :w], image)
        assert not place[:, h:].any() and not place[:, :, w:].any()


def test_a_batch_moves_to_a_device_as_a_whole(images, tokenizer):
    batch = next(loader_of(images, tokenizer, lambda index, view: index != 0, batch_size=7).epoch(0))
    moved = batch.to(torch.device("meta"))
    held = [*vars(moved.text).values(), *moved.phrase_maps, *(p for p in moved.images if p is not None)]
    held += [
        value
        for target in moved.targets
        for value in vars(target).values()
        if isinstance(value, torch.Tensor)
    ]
    assert len(held) == 4 + 7 + 6 + 4 * 7 and {tensor.device.type for tensor in held} == {"meta"}
    assert moved.indices == batch.indices and [t.noise_seed for t in moved.targets] == [
        t.noise_seed for t in batch.targets
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_gives_the_images_in_order_and_whole(images, tokenizer, workers):
    batches = list(evaluation_images(images, FORMAT, 3, lambda index: index != 5, workers))
    assert [batch.indices for batch in batches] == [[0, 1, 2], [3, 4, 5], [6]]
    for batch in batches:
        for index, own, image, (h, w) in zip(
            batch.indices, batch.samples, batch.images, batch.sizes_hw, strict=True
        ):
            assert own is images.samples[index] and (image is None) == (index == 5)
            if image is not None:
                with Image.open(own.image_path) as stored:
                    wanted = np.asarray(stored.resize((w, h), Image.Resampling.BILINEAR)) / 255
                np.testing.assert_allclose(image.permute(1, 2, 0).numpy(), wanted, atol=1e-6)
    assert list(evaluation_images(dataset_of([]), FORMAT, 3)) == []
