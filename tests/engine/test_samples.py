"""The images that a run shows before its first step."""

import json
from pathlib import Path

import numpy as np
import pytest
from engine_runs import Recorder, options, run, scenes, tiny_bundle
from made_samples import made_sample
from PIL import Image

from groundtune.config import TrainConfig
from groundtune.contracts import ImageFormat
from groundtune.data.loader import TrainLoader
from groundtune.data.sample import Dataset
from groundtune.engine.run_folder import write_samples


def test_what_the_network_gets_is_drawn_and_written_down(tmp_path: Path, tokenizer) -> None:
    """Mirrored and twice as large: a box 10 … 30 of 100 pixels lies at 140 … 180 of 200. The left
    half is bright.
    """
    pixels = np.full((50, 100, 3), 40, np.uint8)
    pixels[:, :50] = 200
    Image.fromarray(pixels).save(tmp_path / "a.png")
    boxes = [[60, 20, 90, 40], [10, 5, 30, 25]]
    sample = made_sample(boxes, [0, 1], path=tmp_path / "a.png", size_hw=(50, 100))
    dataset = Dataset(
        name="train",
        root=tmp_path,
        class_names=["cat", "remote control"],
        samples=[sample] * 3,
        category_ids=[1, 2],
    )
    fmt = ImageFormat(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), short_side=100, max_side=200)
    plain = TrainConfig(data="", batch_size=2, flip=1.0, shuffle_classes=False, negative_probability=0.0)
    write_samples(TrainLoader(dataset, tokenizer, fmt, plain, 256), tmp_path / "samples", limit=3)
    records = json.loads((tmp_path / "samples" / "samples.json").read_text())
    assert [record["file"] for record in records] == ["01.jpg", "02.jpg", "03.jpg"]
    assert records[0] == records[2] | {"file": "01.jpg"} == {
        "file": "01.jpg",
        "image": "a.png",
        "size_hw": [100, 200],
        "prompt": "cat. remote control. ",
        "boxes": [
            {"number": 1, "phrase": "cat", "tokens": ["cat"], "box_xyxy": [20.0, 40.0, 80.0, 80.0]},
            {"number": 2, "phrase": "remote control", "tokens": ["remote", "control"], "box_xyxy": [140.0, 10.0, 180.0, 50.0]},
        ],
    }  # fmt: skip
    shown = np.asarray(Image.open(tmp_path / "samples" / "01.jpg")).astype(int)
    assert shown.shape == (100, 200, 3)
    assert np.abs(shown[90:, :90] - 40).max() < 20 and np.abs(shown[90:, 110:] - 200).max() < 20
    edges = {1: shown[60, 80], 2: shown[30, 180]}  # the right edge of each box, in the color of its phrase
    assert np.abs(edges[1] - [230, 159, 0]).max() < 60 and np.abs(edges[2] - [86, 180, 233]).max() < 60


def test_a_run_writes_them_once(tmp_path: Path, tokenizer) -> None:
    data, out = scenes(tmp_path / "data"), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(options(data, cache_features=True), tiny_bundle(tokenizer), out, Recorder(stop_at=4))
    assert len(list((out / "samples").glob("*.jpg"))) == 5  # all training images
    (out / "samples" / "samples.json").write_text("mine")
    run(options(data, cache_features=True, resume=str(out)), tiny_bundle(tokenizer), out)
    assert (out / "samples" / "samples.json").read_text() == "mine"
