"""Recall of phrases and the sets of their boxes by hand, and a run on real captions."""

from pathlib import Path

import numpy as np
import pytest
import torch
from coco_files import image
from engine_fakes import FakeNetwork
from engine_runs import Recorder, evaluated, options, run, tiny_bundle

from groundtune.api import evaluate as evaluate_by_path
from groundtune.contracts import ImageFormat
from groundtune.data.formats.detect import load_splits
from groundtune.errors import DataError
from groundtune.metrics.grounding import PhraseResult, grounding_metrics
from groundtune.model.bundle import ModelBundle
from groundtune.model.config import ModelConfig

RIGHT, HALF, WRONG = [0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 4.9]  # IoU with `RIGHT`: 1, .5, .49
FAR = [50, 50, 60, 60]


def answer(found, true, scores=None):
    boxes = torch.tensor(found, dtype=torch.float32).reshape(-1, 4)
    scores = torch.tensor([0.1] * len(found) if scores is None else scores)
    return PhraseResult(boxes, scores, np.array(true, dtype=np.float32).reshape(-1, 4))


def recalls(answers):
    return [grounding_metrics(answers)[f"recall@{k}"] for k in (1, 5, 10)]


def test_recall_by_hand():
    """The second is P@1, P@5 and P@10 on referring data: the share of phrases with their one box
    among the first k.
    """
    right, half, wrong = RIGHT, HALF, WRONG
    answers = [
        answer([right], [right]),  # first
        answer([wrong, half], [right]),  # second: .5 is enough, .49 is not
        answer([wrong] * 7 + [right], [[50, 50, 60, 60], right]),  # eighth, any of its boxes
        answer([wrong] * 12 + [right], [right]),  # thirteenth
        answer([wrong], []),  # a phrase without a box does not count
    ]
    assert recalls(answers) == [1 / 4, 2 / 4, 3 / 4]
    assert recalls(answers[-1:]) == [None] * 3
    assert set(grounding_metrics([]).values()) == {None}


@pytest.mark.parametrize(
    ("found", "scores", "true", "exact"),
    [
        ([RIGHT], [0.3], [RIGHT], True),  # the threshold itself is enough
        ([RIGHT], [0.29], [RIGHT], False),  # missed
        # IoU .5 is enough, and what is below the threshold is not there
        ([HALF, RIGHT], [0.9, 0.29], [RIGHT], True),
        ([RIGHT, HALF], [0.9, 0.8], [RIGHT], False),  # a duplicate is one too many
        ([RIGHT, FAR], [0.9, 0.8], [FAR, RIGHT], True),
        ([RIGHT, HALF], [0.9, 0.8], [FAR, RIGHT], False),  # both overlap one box: F1 = 2 / (2 + 1 + 1)
        ([RIGHT], [0.9], [FAR, RIGHT], False),  # one of two: F1 = 2 / 3
        ([WRONG], [0.9], [RIGHT], False),
        ([RIGHT], [0.29], [], True),
        ([RIGHT], [0.3], [], False),
    ],
)
def test_an_answer_is_right_when_no_box_is_missed_and_none_too_many(found, scores, true, exact):
    metrics = grounding_metrics([answer(found, true, scores)])
    assert metrics["Pr@F1=1"] == exact
    assert metrics["T-acc" if true else "N-acc"] == ((scores[0] >= 0.3) == bool(true))
    assert metrics["N-acc" if true else "T-acc"] is None


def test_boxes_are_paired_the_largest_overlap_first():
    """The better answer overlaps the left box more, but the other one can only have that: 80 / 104,
    64 / 120, .9, 50 / 140.
    """
    left, right = [0, 0, 10, 10], [0, 4, 10, 14]
    between, second = [0, 2, 10, 10.4], [0, 0, 10, 9]
    assert grounding_metrics([answer([between, second], [left, right], [0.9, 0.8])])["Pr@F1=1"] == 1


def test_shares_of_sets_by_hand():
    """Of three phrases with boxes two are answered, of two without one; three of five answers are
    right.
    """
    answers = [
        answer([RIGHT], [RIGHT], [0.5]),
        answer([FAR], [RIGHT], [0.5]),
        answer([RIGHT], [RIGHT], [0.1]),
        answer([RIGHT], [], [0.1]),
        answer([], [], []),
    ]
    metrics = grounding_metrics(answers)
    assert (metrics["T-acc"], metrics["N-acc"], metrics["Pr@F1=1"]) == (2 / 3, 1.0, 3 / 5)


class Reader(FakeNetwork):
    """Query 0 fires on "cup" alone, query 1 weakly on every token of "the left cup"."""

    def __init__(self, tokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward_features(self, features, text, targets=None):
        logits = torch.full((len(features), 2, 256), -9.0)
        cup, left = (self.tokenizer.convert_tokens_to_ids(word) for word in ("cup", "left"))
        for row, ids in enumerate(text.input_ids):
            for token, word in enumerate(ids.tolist()):
                if word == cup:
                    logits[row, 0, token], logits[row, 1, token] = 3.0, 2.0
                elif word == left:
                    logits[row, 1, token] = 2.0
        boxes = torch.tensor([[0.25, 0.5, 0.5, 1.0], [0.75, 0.5, 0.5, 1.0]]).repeat(len(features), 1, 1)
        return {"pred_logits": logits, "pred_boxes": boxes}


def captions(folder: Path, *rows: str) -> Path:
    folder.mkdir()
    lines = []
    for number, regions in enumerate(rows):
        image(folder / f"{number}.png")
        grounding = f'{{"caption": "the left cup near a plate", "regions": [{regions}]}}'
        row = f'"filename": "{number}.png", "height": 30, "width": 40, "grounding": {grounding}'
        lines.append(f"{{{row}}}")
    (folder / "valid.jsonl").write_text("\n".join(lines))
    return folder


def test_a_phrase_scores_by_its_best_token(tmp_path, tokenizer):
    """By the maximum query 0, the left half, wins; by the mean of two tokens query 1 would."""
    left = '{"bbox": [0, 0, 20, 30], "phrase": "left cup"}'
    right = '{"bbox": [20, 0, 40, 30], "phrase": "left cup"}, {"bbox": [], "phrase": "a plate"}'
    data = load_splits(captions(tmp_path / "data", left, right))["valid"]
    image_format_of = ImageFormat(mean=(0.0,) * 3, std=(1.0,) * 3, short_side=48, max_side=64)
    bundle = ModelBundle(Reader(tokenizer).eval(), tokenizer, ModelConfig(), image_format_of)
    watcher = Recorder()
    found = evaluated(bundle, data, batch_size=1, progress=watcher)
    assert found.metrics == {
        "recall@1": 0.5,
        "recall@5": 1.0,
        "recall@10": 1.0,
        "T-acc": 1.0,
        "N-acc": 1.0,  # no word of "a plate" is fired on
        "Pr@F1=1": 1 / 3,  # for the left cup both halves are answered
    }
    assert found.score == 0.5
    assert [(p["image_id"], p["phrase"], p["bbox"]) for p in found.predictions] == [
        (1, "left cup", [0, 0, 20, 30]),
        (2, "left cup", [0, 0, 20, 30]),
        (2, "a plate", [0, 0, 20, 30]),
    ]
    assert found.predictions[0]["score"] == pytest.approx(torch.tensor(3.0).sigmoid().item())
    assert watcher.events == [("evaluation", 1), ("evaluation", 2)]
    data.samples[0] = data.samples[0].__class__(**{**vars(data.samples[0]), "grounding": None})
    with pytest.raises(DataError, match="some images have captions"):
        evaluated(bundle, data)


@pytest.mark.slow
def test_refs_trains_and_reports_recall(shared, tmp_path, tokenizer):
    config = options(shared / "data/refs", epochs=2, max_train_images=12, max_valid_images=6, flip=1.0)
    bundle = tiny_bundle(tokenizer)
    before = {name: value.clone() for name, value in bundle.network.state_dict().items()}
    result = run(config, bundle, tmp_path / "run")
    assert result.metrics.keys() == {f"valid/{name}" for name in grounding_metrics([])}
    assert result.per_class == {}
    assert all(0 <= result.metrics[f"valid/recall@{k}"] <= 1 for k in (1, 5, 10))
    assert any(not torch.equal(before[name], value) for name, value in bundle.network.state_dict().items())
    again = evaluate_by_path(str(tmp_path / "run/model"), shared / "data/refs", device="cpu")
    assert again.metrics.keys() == grounding_metrics([]).keys() and len(again.predictions) >= 63


@pytest.mark.slow
def test_classes_and_captions_train_in_one_run(shared, tmp_path, tokenizer):
    from groundtune.data.combine import add_extra_data
    from groundtune.engine.train import train

    config = options(shared / "data/tinycoco", epochs=1, max_valid_images=3)
    splits = load_splits(shared / "data/tinycoco")
    splits["train"].samples = splits["train"].samples[:6]
    add_extra_data(splits, [(shared / "data/refs", 0.03)])
    result = train(config, tiny_bundle(tokenizer), splits, tmp_path / "run", Recorder(), {})
    assert "valid/AP" in result.metrics and len(result.per_class) == 43
