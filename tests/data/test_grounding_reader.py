"""Captions with phrases: ODVG and tokens_positive JSON, small ones and real ones."""

import json

import pytest
from coco_files import coco, image, write

from groundtune.data.formats.detect import load_splits, read_splits
from groundtune.data.formats.odvg import phrase_spans
from groundtune.errors import DataError


def odvg(tmp_path, *rows):
    """One image of 40 x 30 per row."""
    lines = []
    for number, row in enumerate(rows):
        image(tmp_path / f"{number}.png")
        lines.append(json.dumps({"filename": f"{number}.png", "height": 30, "width": 40} | row))
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    return read_splits(tmp_path)["train"]


def regions(caption, *found):
    return {
        "grounding": {
            "caption": caption,
            "regions": [dict(zip(("bbox", "phrase"), r, strict=True)) for r in found],
        }
    }


def test_a_phrase_is_found_as_whole_words(tmp_path):
    dataset = odvg(
        tmp_path,
        regions("A carrot near the car, a  red Car.", ([1, 2, 9, 9], "car"), ([0, 0, 5, 5], "a red car")),
    )
    (sample,) = dataset.samples
    assert sample.grounding.spans == (
        ((18, 21), (30, 33)),
        ((23, 33),),
    )  # not in "carrot"; case and spaces differ
    assert sample.grounding.phrases == ["car Car", "a  red Car"]
    assert phrase_spans("upright", "right") == phrase_spans("x", "") == phrase_spans("a.b", ".") == []


def test_several_boxes_of_a_phrase_several_spans_and_empty_regions(tmp_path):
    dataset = odvg(
        tmp_path,
        {
            "grounding": {
                "caption": "two cats and a dog",
                "regions": [
                    {"bbox": [[0, 0, 5, 5], [6, 6, 9, 9]], "phrase": "two cats"},
                    {"bbox": [1, 1, 4, 4], "phrase": ["two", "cats"], "tokens_positive": [[0, 8]]},
                    {"bbox": [2, 2, 8, 8], "tokens_positive": [[0, 3], [13, 18]]},
                    {"bbox": [], "phrase": "a dog"},
                    {"phrase": "cats"},
                ],
            }
        },
        regions("nothing at all"),
    )
    full, empty = dataset.samples
    assert full.grounding.spans == (((0, 8),), ((0, 3), (13, 18)), ((13, 18),), ((4, 8),))
    assert full.class_ids.tolist() == [0, 0, 0, 1] and not dataset.messages
    assert empty.grounding.spans == () and empty.boxes_xyxy.shape == (0, 4)
    assert dataset.class_names == [] and dataset.is_grounding


def test_spans_and_phrases_that_are_not_in_the_caption_are_dropped(tmp_path):
    bad = [
        [[3, 99]],
        [[-1, 2]],
        [[2, 2]],
        [[5, 3]],
        [["0", 3]],
        [[True, 3]],
        "x",
        [[6, 7]],
        [[0, 3], [50, 60]],
    ]
    rows = [
        {"bbox": [i, 1, i + 5, 9], "phrase": "zebra", "tokens_positive": spans} for i, spans in enumerate(bad)
    ]
    rows += [{"bbox": [0, 0, 3, 3], "phrase": "cat"}, {"bbox": [9, 9, 3, 3], "phrase": "cat"}, 7]
    dataset = odvg(tmp_path, {"grounding": {"caption": "one cat . ", "regions": rows}})
    (sample,) = dataset.samples
    assert sample.grounding.spans == (
        ((6, 7),),
        ((0, 3),),
        ((4, 7),),
    )  # "t", the usable half of the ninth, "cat"
    assert sample.class_ids.tolist() == [0, 1, 2]
    found = {f.check: f.count for f in dataset.findings}
    assert found == {
        "phrase-not-in-caption": 1,
        "annotation-broken": 1,
        "span-outside-caption": 7,
        "box-inverted": 1,
    }


def test_classes_and_captions_in_one_file(tmp_path):
    boxes = {
        "detection": {
            "instances": [
                {"bbox": [0, 0, 5, 5], "label": 4, "category": "dog"},
                {"bbox": [1, 1, 6, 6], "label": 2},
            ]
        }
    }
    (tmp_path / "label_map.json").write_text('{"2": "cat", "4": "dog"}')
    dataset = odvg(tmp_path, boxes, regions("a cat", ([1, 1, 9, 9], "a cat")))
    assert (
        dataset.class_names == ["cat", "dog"] and dataset.category_ids == [2, 4] and not dataset.is_grounding
    )
    assert dataset.samples[0].class_ids.tolist() == [1, 0] and dataset.samples[0].grounding is None
    assert dataset.samples[1].class_ids.tolist() == [0] and dataset.samples[1].grounding.phrases == ["a cat"]


def test_tokens_positive(tmp_path):
    content = coco(
        ["a.png", "b.png"],
        [(1, 1, [2, 3, 10, 12]), (1, 1, [0, 0, 5, 5]), (2, 1, [1, 1, 9, 9])],
        [(1, "object")],
    )
    for row, spans in zip(content["annotations"], ([[2, 5]], [[2, 5]], [[0, 1], [4, 7]]), strict=True):
        row["tokens_positive"] = spans
    content["images"][0] |= {"caption": "a cat and a dog", "tokens_positive_eval": [[[10, 15]], [[2, 5]]]}
    content["images"][1]["caption"] = "a big cow"
    dataset = read_splits(write(tmp_path / "x.json", content, tmp_path))["train"]
    first, second = dataset.samples
    assert first.grounding.phrases == ["a dog", "cat"] and first.class_ids.tolist() == [1, 1]
    assert first.boxes_xyxy.tolist() == [[2, 3, 12, 15], [0, 0, 5, 5]]
    assert second.grounding.spans == (((0, 1), (4, 7)),) and not dataset.messages
    del content["images"][1]["caption"]
    dataset = read_splits(write(tmp_path / "x.json", content))["train"]
    assert len(dataset.samples) == 1 and dataset.findings[0].check == "caption-missing"


@pytest.mark.parametrize("text", ["", "{}\n", '{"filename": "a.png"}\n', "x\ny\n", "[1]\n"])
def test_other_lines_are_an_error(tmp_path, text):
    (tmp_path / "data.jsonl").write_text(text)
    with pytest.raises(DataError, match="is not ODVG|lists no images"):
        read_splits(tmp_path)


def test_a_broken_line_is_reported_with_its_number(tmp_path):
    odvg(tmp_path, regions("a cat", ([1, 1, 9, 9], "cat")))
    with (tmp_path / "data.jsonl").open("a") as file:
        file.write('\n{"filename": "0.pn')
    with pytest.raises(DataError, match="1 images have no usable entry. line 2"):
        read_splits(tmp_path)
    assert len(read_splits(tmp_path, keep_going=True)["train"].samples) == 1


def boxes_with_spans(sample):
    spans = sample.grounding.spans
    return sorted(
        (b.round(1).tolist(), spans[c]) for b, c in zip(sample.boxes_xyxy, sample.class_ids, strict=True)
    )


def test_both_forms_of_the_real_captions_are_the_same(shared):
    """633 and 136 boxes in 260 and 63 images; the two files were written by other tools than ours."""
    splits = load_splits(shared / "data/refs")
    assert {n: (len(d.samples), sum(len(s.boxes_xyxy) for s in d.samples)) for n, d in splits.items()} == {
        "train": (260, 633),
        "valid": (63, 136),
    }
    for name, dataset in splits.items():
        assert not dataset.messages
        lines = read_splits(shared / "data/refs" / name / "refs.odvg.jsonl")["train"]
        for sample, other in zip(dataset.samples, lines.samples, strict=True):
            assert sample.image_path == other.image_path
            assert sample.grounding.caption == other.grounding.caption
            assert boxes_with_spans(sample) == boxes_with_spans(other)
