"""A step in several parts is the step as a whole: losses, gradients and logged terms (gradient
accumulation).
"""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_runs import (
    Recorder,
    gradients_of,
    logged,
    options,
    same_gradients,
    skip_evaluation,
    steady_bundle,
)
from loader_files import dataset_of, sample, seven_images

from groundtune.config import TrainConfig
from groundtune.data.loader import TrainLoader
from groundtune.data.sample import Dataset
from groundtune.engine.train import train
from groundtune.model.denoising import denoising_queries
from groundtune.model.detector import GroundingDINO


def mixed_images(folder: Path) -> Dataset:
    """Eight images of seven shapes with 1, 6, 0, 2, 3, 0, 2 and 30 boxes; the last has more than
    the 20 queries.
    """
    corners = [(x, y, x + 7 + x % 3, y + 6 + y % 4) for y in (2, 11, 20) for x in range(1, 20, 2)]
    counts = [1, 6, 0, 2, 3, 0, 2, 30]
    return dataset_of(
        sample(folder, i, corners[:n], [(i + b) % 6 for b in range(n)]) for i, n in enumerate(counts)
    )


def numbers_of(
    tokenizer, dataset: Dataset, out: Path, **changed: Any
) -> tuple[list[dict[str, torch.Tensor]], list[dict]]:
    """Gradients and logged lines of an epoch, with prompts of different lengths."""
    config = options(
        out, epochs=1, batch_size=4, max_grad_norm=0.0, lr=1e-6, negative_probability=1.0, **changed
    )
    bundle = steady_bundle(tokenizer)
    with gradients_of(bundle) as gradients:
        train(
            config,
            bundle,
            {"train": dataset, "valid": dataclasses.replace(dataset, name="valid")},
            out,
            Recorder(),
            {},
        )
    return gradients, logged(out)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return mixed_images(tmp_path_factory.mktemp("mixed"))


@pytest.fixture(scope="module")
def whole(tokenizer, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    with pytest.MonkeyPatch.context() as patch:
        skip_evaluation(patch)
        return numbers_of(tokenizer, dataset, tmp_path_factory.mktemp("whole") / "run")


@pytest.mark.parametrize(("micro_batch_size", "parts"), [(1, [1] * 8), (3, [3, 1] * 2), (9, [4] * 2)])
def test_parts_of_a_step_add_up_to_it(
    tokenizer,
    dataset: Dataset,
    whole: tuple[Any, Any],
    tmp_path: Path,
    monkeypatch,
    micro_batch_size: int,
    parts: list[int],
) -> None:
    seen = []
    forward = GroundingDINO.forward

    def watched(self: Any, images: Any, sizes_hw: Any, text: Any, *args: Any) -> Any:
        seen.append((len(images), text))
        return forward(self, images, sizes_hw, text, *args)

    monkeypatch.setattr(GroundingDINO, "forward", watched)
    skip_evaluation(monkeypatch)
    gradients, lines = numbers_of(tokenizer, dataset, tmp_path / "run", micro_batch_size=micro_batch_size)
    assert [images for images, _ in seen] == parts
    for _, text in seen:  # padded for itself
        assert text.text_token_mask.sum(1).max() == text.input_ids.shape[1]
    same_gradients(gradients, whole[0])
    assert len(lines) == len(whole[1]) == 2
    for line, expected in zip(lines, whole[1], strict=True):
        assert (
            line.keys() == expected.keys()
            and {"d0.dn_loss_cls", "class_error", "enc_loss_giou"} <= line.keys()
        )
        for name, value in expected.items():
            assert name == "lr" or line[name] == pytest.approx(value, rel=1e-5), name
    assert sum(line["matched_boxes"] for line in lines) == 1 + 6 + 2 + 3 + 2 + 20


def test_without_a_box_in_the_batch_too(tokenizer, tmp_path: Path, monkeypatch) -> None:
    skip_evaluation(monkeypatch)
    boxes = [(2, 3, 20, 21)]
    dataset = dataset_of(
        [sample(tmp_path, i, boxes if i == 4 else [], [1] if i == 4 else []) for i in range(5)]
    )
    runs = [numbers_of(tokenizer, dataset, tmp_path / str(n), micro_batch_size=n) for n in (0, 1)]
    same_gradients(runs[1][0], runs[0][0])
    for one, other in zip(runs[0][1], runs[1][1], strict=True):
        assert one.pop("lr") == other.pop("lr") and one == pytest.approx(other, rel=1e-5)
    assert sorted(line["matched_boxes"] for line in runs[0][1]) == [0.0, 1.0]


def test_a_part_has_its_own_rows_and_nothing_of_the_others(tmp_path: Path, tokenizer) -> None:
    dataset = seven_images(tmp_path)
    loader = TrainLoader(
        dataset, tokenizer, steady_bundle(tokenizer).image_format, TrainConfig(data="", batch_size=7), 256
    )
    batch = next(loader.epoch(0))
    parts = batch.split(3)
    assert [part.indices for part in parts] == [batch.indices[:3], batch.indices[3:6], batch.indices[6:]]
    for number, part in enumerate(parts):
        for row in range(len(part.indices)):
            place = 3 * number + row
            assert part.prompts[row] is batch.prompts[place] and part.targets[row] is batch.targets[place]
            assert part.images[row] is batch.images[place] and part.samples[row] is batch.samples[place]
            assert part.views[row] == batch.views[place] and part.sizes_hw[row] == batch.sizes_hw[place]
            real = int(batch.text.text_token_mask[place].sum())
            assert torch.equal(part.text.input_ids[row, :real], batch.text.input_ids[place, :real])
            assert torch.equal(
                part.text.phrase_mask[row, :real, :real], batch.text.phrase_mask[place, :real, :real]
            )
        height, width = (max(size[axis] for size in part.sizes_hw) for axis in (0, 1))
        assert part.canvas().shape == (len(part.indices), 3, height, width)
    assert batch.split(7)[0].indices == batch.indices


def test_denoising_of_a_part_has_the_slots_of_the_whole(tmp_path: Path, tokenizer) -> None:
    """Also a part without a box: its slots are background, as in the whole batch."""
    image_format = steady_bundle(tokenizer).image_format
    loader = TrainLoader(seven_images(tmp_path), tokenizer, image_format, TrainConfig(data=""), 256)
    targets = [target for batch in loader.epoch(0) for target in batch.targets]
    embedding = torch.nn.Embedding(6, 8)
    whole = denoising_queries(targets, embedding)
    assert whole is not None and 0 in [len(target.boxes_cxcywh) for target in targets]
    for row, target in enumerate(targets):
        part = denoising_queries([target], embedding, 2)
        assert part is not None and (part.num_groups, part.group_size) == (50, 4)
        assert torch.equal(part.boxes_cxcywh[0], whole.boxes_cxcywh[row])
        assert torch.equal(part.content[0], whole.content[row])
    assert denoising_queries(targets[:1], embedding, 0) is None
