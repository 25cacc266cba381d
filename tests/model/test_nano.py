"""The weights of nano that ship: they read what they are asked for, in words that stood together in
no training image.
"""

import json
from pathlib import Path

import pytest
from held_out import held_out_classes

import groundtune
from groundtune.data.scenes import write_scenes


@pytest.mark.slow
def test_pairs_that_pretraining_left_out_are_found_by_name_and_not_by_another(tmp_path: Path) -> None:
    write_scenes(tmp_path / "scenes", train=1, valid=100, classes=held_out_classes(count=24, seed=0), seed=77)
    right = groundtune.evaluate("nano", tmp_path / "scenes").metrics["AP50"]
    path = tmp_path / "scenes/valid/_annotations.coco.json"
    content = json.loads(path.read_text())
    classes = [category for category in content["categories"] if category["id"]]
    names = [category["name"] for category in classes]
    for category, name in zip(classes, names[1:] + names[:1], strict=True):
        category["name"] = name
    path.write_text(json.dumps(content))
    swapped = groundtune.evaluate("nano", tmp_path / "scenes").metrics["AP50"]
    assert right >= 0.5 and swapped <= 0.1
