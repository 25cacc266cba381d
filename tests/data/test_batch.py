"""Batches as a whole: padding and device; and the images of an evaluation, in order."""

import numpy as np
import pytest
import torch
from loader_files import FORMAT, dataset_of, loader_of, seven_images
from PIL import Image

from groundtune.data.prefetch import evaluation_images
from groundtune.errors import DataError


@pytest.fixture()
def images(tmp_path):
    return seven_images(tmp_path)


def test_images_are_padded_with_zeros_at_the_right_and_below(images, tokenizer):
    batch = next(loader_of(images, tokenizer, batch_size=7).epoch(0))
    canvas = batch.canvas()
    assert canvas.shape[2:] == (max(h for h, _ in batch.sizes_hw), max(w for _, w in batch.sizes_hw))
    for padded, image, (h, w) in zip(canvas, batch.images, batch.sizes_hw, strict=True):
        assert image.shape == (3, h, w) and torch.equal(padded[:, :h, :w], image)
        assert not padded[:, h:].any() and not padded[:, :, w:].any()


def test_a_batch_moves_to_a_device_as_a_whole(images, tokenizer):
    batch = next(loader_of(images, tokenizer, lambda index, view: index != 0, batch_size=7).epoch(0))
    moved = batch.to(torch.device("meta"))
    tensors = [image for image in moved.images if image is not None]
    for part in (moved.text, *moved.targets):
        tensors += [value for value in vars(part).values() if isinstance(value, torch.Tensor)]
    assert len(tensors) == 4 + 6 + 4 * 7 and {tensor.device.type for tensor in tensors} == {"meta"}
    assert moved.indices == batch.indices
    assert moved.text.host is batch.text and [t.host for t in moved.targets] == batch.targets
    assert [t.noise_seed for t in moved.targets] == [t.noise_seed for t in batch.targets]


@pytest.mark.parametrize("threads", [0, 2])
def test_evaluation_gets_whole_images_in_order(images, threads):
    batches = list(evaluation_images(images, FORMAT, 3, lambda index: index != 5, threads=threads))
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
    assert list(evaluation_images(dataset_of([]), FORMAT, 3, threads=0)) == []


@pytest.mark.parametrize("threads", [0, 2])
def test_evaluation_names_a_corrupted_image(images, threads):
    images.samples[4].image_path.write_bytes(b"no image")
    with pytest.raises(DataError, match="4.png"):
        list(evaluation_images(images, FORMAT, 2, threads=threads))
