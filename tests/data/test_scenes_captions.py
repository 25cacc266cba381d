"""Captioned scenes: captions describe their images exactly, and held-out things are never shown or
named.
"""

import json
import random
import re

import pytest
from held_out import held_out_classes
from PIL import Image

from groundtune.data.formats.detect import read_splits
from groundtune.data.scenes import write_captioned_scenes
from groundtune.data.scenes.captions import UNSEEN_SHAPES, caption_of, captioned_scene, held_out
from groundtune.data.scenes.shapes import CATEGORY_OF, COLORS, PATTERNS, SHAPES, Thing

RELATIONS = {  # between the box and the other box of the same name
    "left": lambda box, other: box[2] <= other[0],
    "right": lambda box, other: box[0] >= other[2],
    "upper": lambda box, other: box[3] <= other[1],
    "lower": lambda box, other: box[1] >= other[3],
}
RELATIONS |= dict.fromkeys(("larger", "largest"), lambda box, other: longer_side(box) > longer_side(other))
RELATIONS |= dict.fromkeys(("smaller", "smallest"), lambda box, other: longer_side(box) < longer_side(other))


@pytest.fixture(scope="module")
def scenes():
    return [captioned_scene(128, random.Random(seed)) for seed in range(500)]


def longer_side(box):
    return max(box[2] - box[0], box[3] - box[1])


def singular(noun):
    forms = [noun, noun.removesuffix("s"), noun.removesuffix("es")]
    forms += [re.sub("ies$", "y", noun), re.sub("ves$", "f", noun)]
    known = {*SHAPES, *CATEGORY_OF.values(), "thing", "object"}
    return next(form for form in forms if form in known)


def parsed(phrase):
    """Split a phrase into its adjectives and its noun in the singular."""
    adjectives, words = {}, phrase.split()
    kinds = {"relation": RELATIONS, "size": ("small", "large"), "pattern": PATTERNS, "color": COLORS}
    for kind, known in kinds.items():
        if words[0] in known:
            adjectives[kind] = words.pop(0)
    return adjectives, singular(" ".join(words))


def described(phrase, drawn):
    """Return the boxes of all things that a phrase fits, without the code that wrote it."""
    name, above, other = re.match(r"(.*?)(?: (above|below) the (.*))?$", phrase).groups()
    adjectives, noun = parsed(name)
    relation = adjectives.pop("relation", None)
    boxes = [
        box
        for thing, box in drawn
        if noun in (thing.shape, CATEGORY_OF.get(thing.shape), "thing", "object")
        and all(getattr(thing, kind) == word for kind, word in adjectives.items())
    ]
    if relation:
        return [box for box in boxes if all(RELATIONS[relation](box, o) for o in boxes if o is not box)]
    if above:
        [(_, top, _, bottom)] = described(other, drawn)
        middle = (top + bottom) / 2
        return [box for box in boxes if (box[3] <= middle if above == "above" else box[1] >= middle)]
    return boxes


def test_phrases_have_the_boxes_of_all_that_they_describe(scenes):
    for _, caption, drawn in scenes:
        texts = [caption.text[begin:end] for (begin, end), _ in caption.phrases]
        assert len(set(texts)) == len(texts)
        for text, (_, boxes) in zip(texts, caption.phrases, strict=True):
            assert sorted(boxes) == sorted(described(text, drawn)), caption.text
        labeled = [box for _, boxes in caption.phrases for box in boxes]
        assert len(set(labeled)) == len(labeled)  # one phrase each


def test_nothing_held_out_is_drawn_or_named(scenes):
    for _, caption, drawn in scenes:
        for thing, _ in drawn:
            assert not held_out(thing.color, thing.shape) and thing.shape not in UNSEEN_SHAPES
        assert not re.search(rf"\b({'|'.join(UNSEEN_SHAPES)})", caption.text)
        for (begin, end), _ in caption.phrases:
            for part in re.split(" (?:above|below) the ", caption.text[begin:end]):
                adjectives, noun = parsed(part)
                if "color" in adjectives and noun in SHAPES:
                    assert not held_out(adjectives["color"], noun)


def test_all_kinds_of_captions_occur(scenes):
    texts = [caption.text for _, caption, _ in scenes]
    words = {word for text in texts for word in text.split()}
    kinds = {"left", "upper", "largest", "above", "striped", "small", "thing", "letter", "two", "a", "the"}
    assert kinds <= words
    lists = [caption for _, caption, _ in scenes if not re.match(r"(an?|the|two|three|four) ", caption.text)]
    assert 0.65 < len(lists) / len(scenes) < 0.85
    assert any(all(boxes for _, boxes in caption.phrases) for caption in lists)
    assert any(drawn and not any(boxes for _, boxes in caption.phrases) for _, caption, drawn in scenes)
    assert min(len(drawn) for _, _, drawn in scenes) == 0 and max(len(drawn) for _, _, drawn in scenes) == 10
    assert all(caption.phrases and len(caption.text.split()) * 1.5 <= 70 for _, caption, _ in scenes)


def test_absent_names_never_look_like_a_drawn_thing():
    drawn = [(Thing("letter o", "navy"), (0, 0, 9, 9)), (Thing("cat", "olive"), (20, 0, 29, 9))]
    texts = [caption_of("{color} {shape}", drawn, random.Random(seed)).text for seed in range(3000)]
    named = {name for text in texts for name in text.split(" . ")}
    assert {"navy cat", "olive letter o"} & named
    assert not {"blue letter o", "navy ring", "blue ring", "green cat"} & named


def test_a_sentence_has_articles_numbers_and_plurals():
    shapes = ["leaf", "leaf", "cherry", "fish", "fish"]
    drawn = [(Thing(shape, "orange"), (n, 0, n + 1, 1)) for n, shape in enumerate(shapes)]
    drawn += [(Thing("scissors", "gray"), (9, 0, 10, 1))]
    texts = {caption_of("{color} {shape}", drawn, random.Random(seed)).text for seed in range(400)}
    assert "two orange leaves, gray scissors, an orange cherry and two orange fish" in texts


def test_the_same_seed_gives_the_same_files_and_the_reader_finds_no_fault(tmp_path):
    for name in ("a", "b"):
        write_captioned_scenes(tmp_path / name, train=30, valid=4, size=96)
    contents = [
        {p.relative_to(tmp_path / n): p.read_bytes() for p in (tmp_path / n).rglob("*.*")} for n in ("a", "b")
    ]
    assert contents[0] == contents[1] and len(contents[0]) == 30 + 4 + 2
    splits = read_splits(tmp_path / "a")
    assert {name: len(dataset.samples) for name, dataset in splits.items()} == {"train": 30, "valid": 4}
    rows = [json.loads(line) for line in (tmp_path / "a/train/captions.jsonl").read_text().splitlines()]
    assert not splits["train"].messages and not splits["train"].class_names
    for row, sample in zip(rows, splits["train"].samples, strict=True):
        regions = row["grounding"]["regions"]
        assert sample.grounding.caption == row["grounding"]["caption"]
        assert list(sample.grounding.phrases) == list(dict.fromkeys(region["phrase"] for region in regions))
        assert sample.boxes_xyxy.tolist() == [region["bbox"] for region in regions if region["bbox"]]
        with Image.open(sample.image_path) as image:
            assert image.size == sample.size_hw[::-1] == (row["width"], row["height"])


def test_about_15_percent_of_the_pairs_are_held_out():
    pairs = [(color, shape) for color in COLORS for shape in SHAPES]
    assert 0.13 < sum(held_out(*pair) for pair in pairs) / len(pairs) < 0.17
    names = held_out_classes(len(pairs))
    assert set(names) == {f"{c} {s}" for c, s in pairs if held_out(c, s) and s not in UNSEEN_SHAPES}
    assert len(set(names)) == len(names)


def test_held_out_classes_are_of_different_shapes():
    names = held_out_classes()
    assert len(names) == 12 == len({name.split(maxsplit=1)[1] for name in names})
    assert held_out_classes(seed=0) == names != held_out_classes(seed=1)
