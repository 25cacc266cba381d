"""A model whose detections are known, and a predictor with the default options."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from groundtune.contracts import ImageFormat
from groundtune.predict import predictor as module
from groundtune.predict.postprocess import ImageDetections, Selection
from groundtune.predict.predictor import Predictor
from groundtune.text.prompt import class_phrases

CPU = torch.device("cpu")


def make_predictor(bundle: Any, names: list[str], **options: Any) -> Predictor:
    selection = Selection(None, False, None)
    given = {
        "threshold": 0.3,
        "thresholds": {},
        "selection": selection,
        "sentences": False,
        "tiles": None,
        "batch_size": 4,
    }
    return Predictor(bundle, names, CPU, **given | {"precision": "fp32"} | options)


def fake_bundle(
    monkeypatch: pytest.MonkeyPatch, tokenizer: Any, boxes: Any, scores: list[float]
) -> SimpleNamespace:
    """A bundle that detects `boxes(w, h)` in each image; the first half is class 0, the second the
    last class.

    `calls` are the batches, with sizes_hw, prompts and images; loading any model gives this bundle.
    """
    calls: list[SimpleNamespace] = []

    def detect(network, features, prompts, sizes_hw, base_network, limit, max_pairs):
        last = sum(len(indices) for indices in prompts.class_indices) - 1
        calls.append(SimpleNamespace(sizes_hw=list(sizes_hw), prompts=prompts, images=features))
        half = len(scores) // 2
        classes = torch.tensor([0] * half + [last] * half)
        return [
            ImageDetections(torch.tensor(boxes(w, h), dtype=torch.float32), torch.tensor(scores), classes)
            for h, w in sizes_hw
        ]

    monkeypatch.setattr(module, "detect_batch", detect)
    monkeypatch.setattr(module, "extract", lambda network, images, device: images)
    network = torch.nn.Linear(1, 1)
    bundle = SimpleNamespace(
        network=network,
        to=network.to,
        tuned_phrases=None,
        base_network=None,
        tokenizer=tokenizer,
        config=SimpleNamespace(max_text_len=256),
        image_format=ImageFormat((0.0,) * 3, (1.0,) * 3, 32, 64),
        classes=[],
        phrases={},
        phrases_of=class_phrases,
        source="stub",
        calls=calls,
    )
    monkeypatch.setattr("groundtune.model.checkpoint.load.load_bundle", lambda source, seed=0: bundle)
    return bundle
