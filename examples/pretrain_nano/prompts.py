"""Prompts of the pretraining: names and synonyms of what is in an image, and of what is not.

What a set of photographs does not list is no negative: a prompt names only what the image's own set
lists, and things that its kind of image cannot show.
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from features import Sample
from torch import Tensor
from transformers import BertTokenizer

from groundtune.boxes import xyxy_to_cxcywh
from groundtune.contracts import Target
from groundtune.text.prompt import Prompt, phrase_prompt
from groundtune.text.tokens import TextInput, tokenize

WORDS = json.loads((Path(__file__).parent / "words.json").read_text())
COCO: list[str] = WORDS["coco"]
SYNONYMS: dict[str, list[str]] = WORDS["synonyms"]
KINDS: dict[str, list[str]] = WORDS["kinds"]
_MAX_WORDS = 90  # of a prompt
_SYNONYM, _KIND = 0.35, 0.15  # shares of the names and of the images
_SCENE = "scenes"


def batch_of(
    samples: Sequence[tuple[str, Sample]],
    vocabulary: dict[str, list[str]],
    tokenizer: BertTokenizer,
    rng: random.Random,
) -> tuple[list[list[Tensor]], TextInput, list[Target]]:
    """Draw a prompt for each (set, sample); return features, prompts and targets."""
    drawn = [_prompt(name, sample, vocabulary[name], rng) for name, sample in samples]
    text, maps = tokenize(tokenizer, [prompt for prompt, _ in drawn])
    features, targets = [], []
    for (_, sample), (_, boxes_of), phrase_map in zip(samples, drawn, maps, strict=True):
        labels = torch.tensor([row for row, boxes in enumerate(boxes_of) for _ in boxes], dtype=torch.long)
        boxes = xyxy_to_cxcywh(torch.cat([*boxes_of, torch.zeros(0, 4)]).clamp(0, 1))
        visible = (boxes[:, 2:] > 0.002).all(1)
        boxes, labels = boxes[visible], labels[visible]
        targets.append(Target(boxes, labels, labels, phrase_map[labels], rng.randrange(2**31)))
        features.append([level.float() for level in sample["maps"]])
    return features, text, targets


def _prompt(name: str, sample: Sample, listed: list[str], rng: random.Random) -> tuple[Prompt, list[Tensor]]:
    """Return a prompt, and the boxes of each of its phrases."""
    if name == _SCENE:
        spans = [span for span, _ in sample["phrases"]]
        prompt = Prompt(
            sample["caption"], [sample["caption"][a:b] for a, b in spans], [[span] for span in spans]
        )
        return prompt, [boxes for _, boxes in sample["phrases"]]
    groups = _groups(name, set(sample["names"]), listed, rng)
    boxes = [
        torch.stack(
            [box for box, label in zip(sample["boxes"], sample["names"], strict=True) if label in names]
        )
        if names & set(sample["names"])
        else torch.zeros(0, 4)
        for names in groups.values()
    ]
    return phrase_prompt(list(groups)), boxes


def _groups(name: str, present: set[str], listed: list[str], rng: random.Random) -> dict[str, set[str]]:
    """Choose phrases, each for a set of names: those in the image first, while there is room."""
    chosen: dict[str, set[str]] = {}
    used: set[str] = set()
    if name == "coco_train" and rng.random() < _KIND:
        for kind, names in KINDS.items():
            if set(names) & present - used and rng.random() < 0.5:
                chosen[kind], used = set(names), used | set(names)
    absent = [other for other in listed if other not in present | used]
    count = rng.choice((3, 8, 15, 25, 40) if name == "coco_train" else (2, 6, 12))
    negatives = rng.sample(absent, min(len(absent), count))
    if name not in ("coco_train", "openimages5"):  # a table of fruit shows no bus
        far = rng.sample(WORDS["far"], rng.choice((0, 4, 10)))
        negatives += [other for other in far if other not in listed]
    for label in [*sorted(present - used), *negatives]:
        synonym = label in SYNONYMS and rng.random() < _SYNONYM
        chosen.setdefault(rng.choice(SYNONYMS[label]) if synonym else label, {label})
    kept, words = [], 0
    for phrase, names in chosen.items():
        words += len(phrase.split()) + 1
        if words <= _MAX_WORDS:
            kept.append((phrase, names))
    rng.shuffle(kept)
    return dict(kept)
