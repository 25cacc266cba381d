"""`groundtune label`: what a model finds becomes a data set; what people drew stays; a stopped labeling goes on."""

import json
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from coco_files import coco, write
from PIL import Image

from groundtune.cli import main
from groundtune.contracts import ImageFormat
from groundtune.data.formats.coco import write_coco
from groundtune.data.formats.detect import read_splits
from groundtune.data.images import load_image
from groundtune.predict import predictor as module
from groundtune.predict.postprocess import ImageDetections

LABEL = ["label", "stub", "--device", "cpu", "--output-dir", "out"]
JOURNAL = Path("out.labels.jsonl")


@pytest.fixture()
def stub(monkeypatch, tokenizer, tmp_path):
    """A model that finds, in every image, all of it twice as the first class, and its left half as the last one."""
    seen = []

    def detect(network, features, prompts, sizes_hw, kept):
        last = sum(len(indices) for indices in prompts.class_indices) - 1
        seen.extend(sizes_hw)
        return [
            ImageDetections(
                torch.tensor(
                    [[0, 0, w, h], [0, 0, w, h - 1], [0, 0, w / 2, h], [5, 5, 5, 9]], dtype=torch.float32
                ),
                torch.tensor([0.75, 0.625, 0.5, 0.5]),
                torch.tensor([0, 0, last, last]),
            )
            for h, w in sizes_hw
        ]

    monkeypatch.setattr(module, "detect_batch", detect)
    monkeypatch.setattr(module, "extract", lambda network, images, device: images)
    network = torch.nn.Linear(1, 1)
    bundle = SimpleNamespace(
        network=network, to=network.to, own_names=None, kept=None, tokenizer=tokenizer, classes=[], source="stub",
        config=SimpleNamespace(max_text_len=256), image_format=ImageFormat((0.0,) * 3, (1.0,) * 3, 32, 64), seen=seen,
    )  # fmt: skip
    monkeypatch.setattr("groundtune.model.checkpoint.load.load_bundle", lambda source, seed=0: bundle)
    monkeypatch.chdir(tmp_path)
    return bundle


@pytest.fixture()
def images(stub):
    for name, size in (("in/a.jpg", (80, 60)), ("in/deep/a.jpg", (40, 60)), ("in/c.png", (30, 30))):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(name)
    Path("in/broken.jpg").write_text("no image")


def boxes(sample):
    return list(zip(sample.class_ids.tolist(), sample.boxes_xyxy.tolist(), strict=True))


def test_images_become_a_data_set_with_scores_and_without_doubles(images, stub, capsys):
    assert (
        main([*LABEL, "in", "in/*.png", "--recursive", "--classes", "Red_Circle,dog"]) == 3
    )  # one cannot be read
    said = capsys.readouterr()
    assert said.out.split() == ["coco", "images", "boxes", "train", "3", "6", "out"]
    assert (
        "1 file(s) could not be read or are truncated:\n" in said.err
        and said.err.count("left out: Cannot read") == 1
    )
    train = read_splits(Path("out"))["train"]
    assert train.class_names == ["red circle", "dog"] and not JOURNAL.exists()
    assert [s.image_path.name for s in train.samples] == ["a.jpg", "c.png", "a-2.jpg"]
    assert boxes(train.samples[0]) == [(0, [0, 0, 80, 60]), (1, [0, 0, 40, 60])]
    assert boxes(train.samples[2]) == [(0, [0, 0, 40, 60]), (1, [0, 0, 20, 60])]
    assert [s.confidence.tolist() for s in train.samples] == [[0.75, 0.5]] * 3


@pytest.mark.parametrize("format", ["yolo", "voc", "odvg"])
def test_other_formats_have_the_boxes(images, format):
    assert main([*LABEL, "in/a.jpg", "--classes", "cat,dog", "--format", format, "--threshold", "0.6"]) == 0
    [sample] = read_splits(Path("out"))["train"].samples
    assert boxes(sample) == [(0, [0, 0, 80, 60])]


def test_the_double_stays_where_suppression_is_off(images):
    assert main([*LABEL, "in/a.jpg", "--classes", "cat,dog", "--nms", "1"]) == 0
    assert len(read_splits(Path("out"))["train"].samples[0].class_ids) == 3


@pytest.mark.parametrize(("orientation", "size"), [(3, (80, 60)), (6, (80, 60)), (6, (60, 60))])
def test_a_turned_image_is_looked_at_as_the_data_set_will_be_read(
    images, stub, monkeypatch, orientation, size
):
    turned = Image.new("RGB", size)
    turned.paste("white", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned.save("in/turned.png", exif=exif)
    seen = []
    find = module.Predictor.find
    monkeypatch.setattr(
        module.Predictor, "find", lambda predictor, given: seen.extend(given) or find(predictor, given)
    )
    assert main([*LABEL, "in/turned.png", "--classes", "cat,dog"]) == 0
    [sample] = read_splits(Path("out"))["train"].samples
    assert seen[0].tobytes() == load_image(sample.image_path, sample.size_hw).tobytes()


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
    for split, place in (("train", 0), ("train", 2), ("valid", 0), ("valid", 1)):
        assert boxes(after[split].samples[place]) == boxes(before[split].samples[place])
        assert after[split].samples[place].confidence is None
    last = len(before["train"].class_names) - 1
    assert boxes(after["train"].samples[1]) == [(0, [0, 0, 50, 40]), (last, [0, 0, 25, 40])]
    assert boxes(after["train"].samples[3]) == [(0, [0, 0, 80, 60]), (last, [0, 0, 40, 60])]
    assert stub.seen == [(40, 50), (60, 80)] and [len(s.samples) for s in after.values()] == [4, 3]


def test_a_stopped_labeling_goes_on_and_a_line_that_was_cut_off_is_done_again(
    images, stub, monkeypatch, capsys
):
    line = [*LABEL, "in/a.jpg", "in/deep/a.jpg", "in/c.png", "--classes", "cat,dog", "--batch-size", "1"]
    find = module.Predictor.find

    def stopped(predictor, given):
        if len(stub.seen) == stops[0]:
            raise KeyboardInterrupt
        return find(predictor, given)

    stops = [2, 3]
    with monkeypatch.context() as patch:
        patch.setattr(module.Predictor, "find", stopped)
        while stops:
            assert main(line) == 130 and not Path("out").exists()
            assert len(JOURNAL.read_text().splitlines()) == 3  # the settings and two images
            JOURNAL.write_bytes(JOURNAL.read_bytes()[:-20])
            del stops[0]
    assert main([*line, "--threshold", "0.4"]) == 2 and "threshold: other than" in capsys.readouterr().err
    assert main(line) == 0
    assert stub.seen == [(60, 80), (60, 40), (60, 40), (60, 40), (30, 30)]
    assert [len(s.class_ids) for s in read_splits(Path("out"))["train"].samples] == [2, 2, 2]


def test_no_more_than_two_batches_of_images_are_held(images, stub, monkeypatch):
    for number in range(30):
        Image.new("RGB", (20, 20)).save(f"in/{number}.png")
    given_before, held = [], []
    find = module.Predictor.find

    def watched(predictor, given):
        given_before.extend(map(weakref.ref, given))
        held.append(sum(image() is not None for image in given_before))
        return find(predictor, given)

    monkeypatch.setattr(module.Predictor, "find", watched)
    assert main([*LABEL, "in/*.png", "--classes", "cat,dog"]) == 0
    assert len(given_before) == 31 and max(held) <= 8


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--classes", "cat"], 2, "images: missing; name images"),
        (["-", "--classes", "cat"], 2, "images: -: only files can be labeled"),
        (["in/none.jpg", "--classes", "cat"], 3, "in/none.jpg: there is no such image"),
        (["in/broken.jpg", "--classes", "cat"], 3, "None of the images could be read"),
        (["in/a.jpg"], 2, "classes: the model stub has no classes of its own"),
        (["--data", "data", "--classes", "cet"], 3, "'cet' (did you mean 'cat'?)"),
        (["--data", "data/valid1"], 3, "nothing to label: every training image"),
        (["in", "--output-dir", "in", "--classes", "cat"], 3, "in is not empty"),
    ],
)
def test_mistakes_are_told_in_words(images, capsys, arguments, code, said):
    half_labeled()
    write(Path("data/valid1/a.json"), coco(["a.png"]), Path("data/valid1"))
    assert main([*LABEL, *arguments]) == code
    assert said in capsys.readouterr().err and not Path("out").exists()


def test_a_foreign_journal_is_left_alone(images, capsys):
    JOURNAL.write_text("my notes\n")
    assert main([*LABEL, "in/a.jpg", "--classes", "cat"]) == 3
    assert "is not the journal" in capsys.readouterr().err and JOURNAL.read_text() == "my notes\n"


def test_a_score_in_a_coco_file_is_the_confidence_of_its_box_and_is_written_back(tmp_path):
    content = coco(["a.jpg"], [(1, 1, [0, 0, number, 9]) for number in range(5, 10)])
    for row, score in zip(content["annotations"], [0.25, 1, 0, "0.5", None], strict=True):
        row["score"] = score
    write(tmp_path / "a.json", content, tmp_path)
    [dataset] = read_splits(tmp_path).values()
    assert dataset.samples[0].confidence.tolist() == [
        0.25,
        1,
        1,
        1,
        1,
    ]  # what is no score was drawn by a person
    write_coco(dataset, ["a.jpg"], tmp_path / "again.json")
    rows = json.loads((tmp_path / "again.json").read_text())["annotations"]
    assert [row.get("score") for row in rows] == [0.25, None, None, None, None]
    assert [row["bbox"][2] for row in rows] == [5, 6, 7, 8, 9]


CAPTIONS = [
    {"image": "in/a.jpg", "caption": "a [red circle] beside [two dogs]"},
    {"image": "in/c.png", "caption": "The cat on the left."},
]


def captions(*rows, name="said.jsonl"):
    Path(name).write_text("\n".join(json.dumps(row) if isinstance(row, dict) else row for row in rows))
    return ["--captions", name]


@pytest.mark.parametrize("format", ["odvg", "coco"])
def test_captions_get_the_boxes_of_their_phrases(images, format):
    assert main([*LABEL, *captions(*CAPTIONS), "--format", format]) == 0
    first, second = read_splits(Path("out"))["train"].samples
    assert first.grounding.phrases == ["red circle", "two dogs"] and "beside" in first.grounding.caption
    assert boxes(first) == [(0, [0, 0, 80, 60]), (1, [0, 0, 40, 60])]
    assert second.grounding.phrases == ["The cat on the left"]
    assert boxes(second) == [
        (0, [0, 0, 30, 30]),
        (0, [0, 0, 15, 30]),
    ]  # the stub's last phrase is the first one


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (["no JSON"], "line 1: it is no JSON object with the texts 'image' and 'caption'"),
        ([{"image": "in/a.jpg"}], "line 1: it is no JSON object"),
        ([{"image": "in/a.jpg", "caption": 3}], "line 1: it is no JSON object"),
        ([{"image": "in/a.jpg", "caption": "a [cat"}], "line 1: The sentence 'a [cat' cannot be looked for"),
        ([CAPTIONS[0], CAPTIONS[0]], "line 2: in/a.jpg has a caption already"),
        ([], "there is no caption in it"),
    ],
)
def test_captions_that_cannot_be_used(images, capsys, rows, told):
    assert main([*LABEL, *captions(*rows)]) == 3
    assert told in capsys.readouterr().err and not Path("out").exists()


def test_captions_say_what_to_look_at_and_for(images, capsys):
    assert main([*LABEL, *captions(*CAPTIONS), "in/a.jpg"]) == 2
    assert "captions: the file names the images" in capsys.readouterr().err
    assert main([*LABEL, *captions(*CAPTIONS), "--format", "yolo"]) == 2
    assert "format: yolo has no place for captions; choose odvg or coco" in capsys.readouterr().err


def test_a_caption_that_is_too_long_is_left_out(images, capsys):
    long = {"image": "in/c.png", "caption": "cat " * 300}
    assert main([*LABEL, *captions(CAPTIONS[0], long)]) == 3
    assert "in/c.png" in capsys.readouterr().err
    assert len(read_splits(Path("out"))["train"].samples) == 1
