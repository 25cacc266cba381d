"""Training on data sets of which each labels half of the classes."""

import json
from pathlib import Path

import pytest
from engine_runs import options, tiny_bundle

import groundtune as gt
from groundtune.data.scenes import write_scenes
from groundtune.engine.prepare import prepare

CLASSES = ["red circle", "blue star", "green triangle", "purple heart"]


def half_labeled(folder: Path, labeled: list[str], train: int, seed: int) -> Path:
    """Objects of all classes; training boxes of the labeled ones only. The split valid has all."""
    write_scenes(folder, train=train, valid=24, size=128, seed=seed, classes=CLASSES)
    path = folder / "train/_annotations.coco.json"
    content = json.loads(path.read_text())
    kept = {row["id"] for row in content["categories"] if row["name"] in labeled}
    content["annotations"] = [row for row in content["annotations"] if row["category_id"] in kept]
    path.write_text(json.dumps(content))
    return folder


def trained_ap(folder: Path, exhaustive: bool, seed: int = 1) -> float:
    """AP after training on 46 images with circles and stars and 2 with triangles and hearts.

    Triangles and hearts have no box in 46 of 48 images. (With as many missing boxes as given ones the
    unmasked loss is as good: the focal loss still ranks these objects above the background.)
    """
    one = half_labeled(folder / "one", CLASSES[:2], 46, seed)
    two = half_labeled(folder / "two", CLASSES[2:], 2, seed + 100)
    run = gt.train(
        "nano",
        one,
        extra_data=[str(two)],
        exhaustive=exhaustive,
        output_dir=folder / "run",
        short_side=128,
        epochs=16,
        batch_size=4,
        lr=5e-4,
        warmup_steps=5,
        eval_epochs=16,
        retention_data=["none"],
        report_to=["none"],
        quiet=True,
    )
    return run.metrics["valid/AP"]


def test_the_option_reaches_the_training_images(data, tokenizer):
    for exhaustive in (True, False):
        train = prepare(options(data, exhaustive=exhaustive), tiny_bundle(tokenizer)).training_splits["train"]
        known = [None if exhaustive else set(sample.class_ids.tolist()) for sample in train.samples]
        assert [sample.exhaustive for sample in train.samples] == known


@pytest.mark.slow
def test_unlabeled_classes_that_are_masked_cost_less(tmp_path):
    # measured: 0.575 and 0.507 with seed 1, 0.545 and 0.477 with seed 2
    masked, unmasked = (trained_ap(tmp_path / str(each), each) for each in (False, True))
    assert masked >= unmasked + 0.03
