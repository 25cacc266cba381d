"""`groundtune label`: detections become a data set, boxes of people stay, and an interrupted run is
resumed.
"""

import json
import weakref
from pathlib import Path

import pytest
from coco_files import coco, write
from PIL import Image
from predict_fakes import fake_bundle

from groundtune.cli import main
from groundtune.data.formats.coco import write_coco
from groundtune.data.formats.detect import read_splits
from groundtune.data.images import load_image
from groundtune.predict.predictor import Predictor

LABEL = ["label", "stub", "--device", "cpu", "--output-dir", "out"]
JOURNAL = Path("out.labels.jsonl")


@pytest.fixture()
def stub(monkeypatch, tokenizer, tmp_path):
    """A model that detects, in each image, all of it twice as the first class, its left half as the
    last one, and a line.
    """
    bundle = fake_bundle(
        monkeypatch,
        tokenizer,
        lambda w, h: [[0, 0, w, h], [0, 0, w, h - 1], [0, 0, w / 2, h], [5, 5, 5, 9]],
        [0.75, 0.625, 0.5, 0.5],
    )
    monkeypatch.chdir(tmp_path)
    return bundle


def seen(bundle):
    """The sizes of all images that the model has processed."""
    return [size for call in bundle.calls for size in call.sizes_hw]


@pytest.fixture()
def images(stub):
    for name, size in (("in/a.jpg", (80, 60)), ("in/deep/a.jpg", (40, 60)), ("in/c.png", (30, 30))):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(name)
    Path("in/broken.jpg").write_text("no image")


def boxes(sample):
    return list(zip(sample.class_ids.tolist(), sample.boxes_xyxy.tolist(), strict=True))


def test_images_become_a_data_set_with_scores_and_without_duplicates(images, stub, capsys):
    assert main([*LABEL, "in", "in/*.png", "--recursive", "--classes", "Red_Circle,dog"]) == 3
    printed = capsys.readouterr()
    assert printed.out.split() == ["coco", "images", "boxes", "train", "3", "6", "out"]
    assert printed.err.count("Cannot read the image") == 1 and printed.err.endswith("broken.jpg\n")
    train = read_splits(Path("out"))["train"]
    assert train.class_names == ["Red_Circle", "dog"] and not JOURNAL.exists()
    assert [s.image_path.name for s in train.samples] == ["a.jpg", "c.png", "a-2.jpg"]
    assert boxes(train.samples[0]) == [(0, [0, 0, 80, 60]), (1, [0, 0, 40, 60])]
    assert boxes(train.samples[2]) == [(0, [0, 0, 40, 60]), (1, [0, 0, 20, 60])]
    assert [s.confidence.tolist() for s in train.samples] == [[0.75, 0.5]] * 3


@pytest.mark.parametrize("format", ["yolo", "voc", "odvg"])
def test_other_formats_have_the_boxes(images, format):
    assert main([*LABEL, "in/a.jpg", "--classes", "cat,dog", "--format", format, "--threshold", "0.6"]) == 0
    [sample] = read_splits(Path("out"))["train"].samples
    assert boxes(sample) == [(0, [0, 0, 80, 60])]


def test_an_iou_threshold_of_1_keeps_duplicates(images):
    assert main([*LABEL, "in/a.jpg", "--classes", "cat,dog", "--nms", "1"]) == 0
    assert len(read_splits(Path("out"))["train"].samples[0].class_ids) == 3


def test_suppression_across_classes_and_a_limit(images, capsys):
    """All of the image is there twice as a cat, its left half as a dog."""
    line = [*LABEL, "in/a.jpg", "--classes", "cat,dog"]
    for number, (options, kept) in enumerate(
        [(["--nms", "0.4", "--agnostic-nms"], 1), (["--max-detections", "1"], 1), (["--nms", "none"], 3)]
    ):
        assert main([*line, *options, "--output-dir", f"out{number}"]) == 0
        assert len(read_splits(Path(f"out{number}"))["train"].samples[0].class_ids) == kept


@pytest.mark.parametrize(("orientation", "size"), [(3, (80, 60)), (6, (80, 60)), (6, (60, 60))])
def test_a_turned_image_is_processed_as_the_data_set_will_be_read(images, monkeypatch, orientation, size):
    turned = Image.new("RGB", size)
    turned.paste("white", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned.save("in/turned.png", exif=exif)
    processed, find = [], Predictor.find
    monkeypatch.setattr(Predictor, "find", lambda self, given: processed.extend(given) or find(self, given))
    assert main([*LABEL, "in/turned.png", "--classes", "cat,dog"]) == 0
    [sample] = read_splits(Path("out"))["train"].samples
    assert processed[0].tobytes() == load_image(sample.image_path, sample.size_hw).tobytes()


def half_labeled():
    rows = {"train": [(1, 2, [1, 2, 10, 10]), (3, 1, [0, 0, 5, 5])], "valid": [(2, 1, [3, 3, 9, 9])]}
    for split, boxes in rows.items():
        names = [f"{split}{number}.jpg" for number in (1, 2, 3)]
        content = coco(names, boxes, [(1, "cat"), (2, "dog")], (50, 40))
        write(Path("data", split, "_annotations.coco.json"), content, Path("data", split))


def test_of_a_data_set_only_images_without_boxes_are_labeled(images, stub):
    half_labeled()
    assert main([*LABEL, "in/a.jpg", "--data", "data"]) == 0
    before, after = read_splits(Path("data")), read_splits(Path("out"))
    assert after["train"].class_names == before["train"].class_names
    assert after["train"].category_ids == before["train"].category_ids
    for split, index in (("train", 0), ("train", 2), ("valid", 0), ("valid", 1)):
        assert boxes(after[split].samples[index]) == boxes(before[split].samples[index])
        assert after[split].samples[index].confidence is None
    last = len(before["train"].class_names) - 1
    assert boxes(after["train"].samples[1]) == [(0, [0, 0, 50, 40]), (last, [0, 0, 25, 40])]
    assert boxes(after["train"].samples[3]) == [(0, [0, 0, 80, 60]), (last, [0, 0, 40, 60])]
    assert seen(stub) == [(40, 50), (60, 80)] and [len(s.samples) for s in after.values()] == [4, 3]


def test_an_interrupted_run_is_resumed_and_a_truncated_line_is_repeated(images, stub, monkeypatch, capsys):
    line = [*LABEL, "in/a.jpg", "in/deep/a.jpg", "in/c.png", "--classes", "cat,dog", "--batch-size", "1"]
    find = Predictor.find

    def interrupted(predictor, given):
        if len(seen(stub)) == stops[0]:
            raise KeyboardInterrupt
        return find(predictor, given)

    stops = [2, 3]
    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "find", interrupted)
        while stops:
            assert main(line) == 130 and not Path("out").exists()
            assert len(JOURNAL.read_text().splitlines()) == 3  # the settings and two images
            JOURNAL.write_bytes(JOURNAL.read_bytes()[:-20])
            del stops[0]
    assert main([*line, "--threshold", "0.4"]) == 2
    assert "threshold: differs from the interrupted run in out.labels.jsonl" in capsys.readouterr().err
    assert main(line) == 0
    assert seen(stub) == [(60, 80), (60, 40), (60, 40), (60, 40), (30, 30)]
    assert [len(s.class_ids) for s in read_splits(Path("out"))["train"].samples] == [2, 2, 2]


def test_no_more_than_two_batches_of_images_are_held(images, stub, monkeypatch):
    for number in range(30):
        Image.new("RGB", (20, 20)).save(f"in/{number}.png")
    given_before, held = [], []
    find = Predictor.find

    def watched(predictor, given):
        given_before.extend(map(weakref.ref, given))
        held.append(sum(image() is not None for image in given_before))
        return find(predictor, given)

    monkeypatch.setattr(Predictor, "find", watched)
    assert main([*LABEL, "in/*.png", "--classes", "cat,dog"]) == 0
    assert len(given_before) == 31 and max(held) <= 8


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--classes", "cat"], 2, "images: missing"),
        (["-", "--classes", "cat"], 2, "images: only files can be labeled, got -"),
        (["http://h/a.jpg", "--classes", "cat"], 2, "images: only files can be labeled, got http://h/a.jpg"),
        (["in/none.jpg", "--classes", "cat"], 3, "in/none.jpg: no such image"),
        (["in/broken.jpg", "--classes", "cat"], 3, "None of the images could be read"),
        (["in/a.jpg"], 2, "model stub has no classes of its own"),
        (["--data", "data", "--classes", "cet"], 3, "'cet' (did you mean 'cat'?)"),
        (["--data", "data/more"], 3, "Nothing to label: all training images"),
        (["in", "--output-dir", "in", "--classes", "cat"], 3, "in is not empty"),
    ],
)
def test_mistakes_are_reported(images, capsys, arguments, code, message):
    half_labeled()
    write(Path("data/more/a.json"), coco(["a.png"]), Path("data/more"))
    assert main([*LABEL, *arguments]) == code
    assert message in capsys.readouterr().err and not Path("out").exists()


def test_a_file_that_is_not_a_journal_is_not_changed(images, capsys):
    JOURNAL.write_text("my notes\n")
    assert main([*LABEL, "in/a.jpg", "--classes", "cat"]) == 3
    assert "is not a journal" in capsys.readouterr().err and JOURNAL.read_text() == "my notes\n"


def test_a_score_in_a_coco_file_is_the_confidence_of_its_box_and_is_written_back(tmp_path):
    content = coco(["a.jpg"], [(1, 1, [0, 0, number, 9]) for number in range(5, 10)])
    for row, score in zip(content["annotations"], [0.25, 1, 0, "0.5", None], strict=True):
        row["score"] = score
    write(tmp_path / "a.json", content, tmp_path)
    [dataset] = read_splits(tmp_path).values()
    assert dataset.samples[0].confidence.tolist() == [0.25, 1, 1, 1, 1]  # no valid score: drawn by a person
    write_coco(dataset, ["a.jpg"], tmp_path / "again.json")
    rows = json.loads((tmp_path / "again.json").read_text())["annotations"]
    assert [row.get("score") for row in rows] == [0.25, None, None, None, None]
    assert [row["bbox"][2] for row in rows] == [5, 6, 7, 8, 9]


CAPTIONS = [
    {"image": "in/a.jpg", "caption": "a [red circle] beside [two dogs]"},
    {"image": "in/c.png", "caption": "The cat on the left."},
]


def captions(*rows):
    text = "\n".join(json.dumps(row) if isinstance(row, dict) else row for row in rows)
    Path("captions.jsonl").write_text(text)
    return ["--captions", "captions.jsonl"]


@pytest.mark.parametrize("format", ["odvg", "coco"])
def test_captions_get_the_boxes_of_their_phrases(images, format):
    assert main([*LABEL, *captions(*CAPTIONS), "--format", format]) == 0
    first, second = read_splits(Path("out"))["train"].samples
    assert first.grounding.phrases == ["red circle", "two dogs"] and "beside" in first.grounding.caption
    assert boxes(first) == [(0, [0, 0, 80, 60]), (1, [0, 0, 40, 60])]
    assert second.grounding.phrases == ["The cat on the left"]
    assert boxes(second) == [(0, [0, 0, 30, 30]), (0, [0, 0, 15, 30])]  # its last phrase is the first one


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["no JSON"], "line 1: expected a JSON object with the strings 'image' and 'caption'"),
        ([{"image": "in/a.jpg"}], "line 1: expected a JSON object"),
        ([{"image": "in/a.jpg", "caption": 3}], "line 1: expected a JSON object"),
        ([{"image": "in/a.jpg", "caption": "a [cat"}], "line 1: Invalid phrase 'a [cat'"),
        ([CAPTIONS[0], CAPTIONS[0]], "line 2: in/a.jpg already has a caption"),
        ([], "the file has no captions"),
    ],
)
def test_invalid_captions_are_reported(images, capsys, rows, message):
    assert main([*LABEL, *captions(*rows)]) == 3
    assert message in capsys.readouterr().err and not Path("out").exists()


def test_options_that_conflict_with_captions(images, capsys):
    assert main([*LABEL, *captions(*CAPTIONS), "in/a.jpg"]) == 2
    assert "captions: remove images, data, classes and ray" in capsys.readouterr().err
    assert main([*LABEL, *captions(*CAPTIONS), "--format", "yolo"]) == 2
    assert "format: yolo cannot store captions; choose odvg or coco" in capsys.readouterr().err


def test_a_caption_that_is_too_long_is_skipped(images, capsys):
    long = {"image": "in/c.png", "caption": "cat " * 300}
    assert main([*LABEL, *captions(CAPTIONS[0], long)]) == 3
    assert "in/c.png" in capsys.readouterr().err
    assert len(read_splits(Path("out"))["train"].samples) == 1
