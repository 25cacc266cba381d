"""1203 class names, as many as LVIS has: training samples them, evaluation ranks their chunks
together.
"""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_runs import Recorder, evaluated, options, scenes, tiny_bundle

from groundtune.data.formats.detect import load_splits
from groundtune.data.images import load_image
from groundtune.data.sample import Dataset
from groundtune.data.transforms import resize_keep_ratio, to_tensor
from groundtune.engine.train import train
from groundtune.text.prompt import class_prompt
from groundtune.text.tokens import tokenize

FIRST = [
    "red",
    "small",
    "wooden",
    "old",
    "striped",
    "round",
    "broken",
    "shiny",
    "upper",
    "plastic",
    "warm",
    "wild",
    "flat",
]
SECOND = [
    "lamp",
    "engine",
    "rabbit",
    "bottle",
    "ladder",
    "window",
    "violin",
    "tractor",
    "helmet",
    "anchor",
    "cactus",
]
THIRD = ["", " box", " cover", " handle", " toy", " model", " part", " stand", " case"]
NAMES = [f"{a} {b}{c}" for a, b, c in itertools.product(FIRST, SECOND, THIRD)][:1203]


@pytest.fixture(scope="module")
def splits(tmp_path_factory) -> dict[str, Dataset]:
    """Scenes whose three classes are the names 5, 700 and 1202 of 1203."""
    found = load_splits(scenes(tmp_path_factory.mktemp("many") / "scenes", train=4, valid=2))
    for name, dataset in found.items():
        samples = [replace(s, class_ids=np.array([5, 700, 1202])[s.class_ids]) for s in dataset.samples]
        found[name] = replace(dataset, class_names=NAMES, samples=samples, category_ids=list(range(1, 1204)))
    return found


def by_hand(bundle, dataset: Dataset, index: int) -> list[tuple[float, int, list[float]]]:
    """One image, chunk after chunk through the whole network, all scores in one list, the best 300
    of it.
    """
    sample = dataset.samples[index]
    view = resize_keep_ratio(sample.size_hw, bundle.image_format)
    pixels = to_tensor(view.image(load_image(sample.image_path, sample.size_hw)), bundle.image_format)
    height, width = sample.size_hw
    found: list[tuple[float, int, list[float]]] = []
    chunk: list[int] = []
    for number in [*range(1203), None]:
        names = [NAMES[i] for i in [*chunk, number] if i is not None]
        length = len(bundle.tokenizer(class_prompt(names).caption)["input_ids"])
        if number is not None and length <= 256:
            chunk.append(number)
            continue
        text, maps = tokenize(bundle.tokenizer, [class_prompt([NAMES[i] for i in chunk])])
        with torch.no_grad():
            output = bundle.network(pixels[None], [view.size_hw], text)
        probabilities = output["pred_logits"][0].sigmoid()
        for place, class_id in enumerate(chunk):
            score = probabilities[:, maps[0][place]].mean(1)
            for query, (cx, cy, w, h) in enumerate(output["pred_boxes"][0].tolist()):
                x0, y0 = max(0.0, (cx - w / 2) * width), max(0.0, (cy - h / 2) * height)
                x1, y1 = min(width, (cx + w / 2) * width), min(height, (cy + h / 2) * height)
                found.append((float(score[query]), class_id, [x0, y0, x1 - x0, y1 - y0]))
        chunk = [] if number is None else [number]
    return sorted(found, key=lambda entry: -entry[0])[:300]


def test_chunks_by_hand_give_the_same_ranking_and_names_are_encoded_once(splits, tokenizer, monkeypatch):
    bundle = tiny_bundle(tokenizer)
    encoded: list[int] = []
    encode = type(bundle.network.language_model)._encode

    def counting(self, phrases):
        encoded.extend(phrases)
        encode(self, phrases)

    monkeypatch.setattr(type(bundle.network.language_model), "_encode", counting)
    valid = splits["valid"]
    predictions = evaluated(bundle, valid).predictions
    assert len(encoded) == len(set(encoded)) == 1203 + 2  # and the two special tokens
    evaluated(bundle, valid)
    assert len(encoded) == 1205
    for index, sample in enumerate(valid.samples):
        own = [p for p in predictions if p["image_id"] == sample.image_id]
        expected = by_hand(bundle, valid, index)
        assert len(own) == len(expected) == 300
        np.testing.assert_allclose([p["score"] for p in own], [score for score, _, _ in expected], atol=1e-5)
        scores = {(p["category_id"] - 1, round(p["bbox"][0], 2), round(p["bbox"][1], 2)) for p in own}
        hand = {(class_id, round(box[0], 2), round(box[1], 2)) for _, class_id, box in expected}
        assert len(scores & hand) > 290  # equal scores at the end of the list may fall either way


def test_training_samples_the_names_and_keeps_all_classes(splits, tokenizer, tmp_path: Path):
    bundle = tiny_bundle(tokenizer)
    config = options(Path("unused"), epochs=1)
    result = train(config, bundle, splits, tmp_path / "run", Recorder(), {})
    assert result.metrics["valid/AP"] is not None and len(bundle.classes) == 1203
    assert bundle.network.decoder.label_embedding.num_embeddings == 1203
