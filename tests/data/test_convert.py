"""Every format reads back as it was written; folders appear whole or not at all."""

import json
import re
import string
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from coco_files import coco, image, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loader_files import FORMAT
from PIL import Image

from groundtune.cli import main
from groundtune.config import DATA_FORMATS as FORMATS
from groundtune.config import TrainConfig
from groundtune.data.formats import convert as convert_module
from groundtune.data.formats.coco import write_coco
from groundtune.data.formats.convert import Converted
from groundtune.data.formats.detect import load_splits, read_splits
from groundtune.data.formats.odvg import write_odvg
from groundtune.data.images import load_image
from groundtune.data.loader import TrainLoader
from groundtune.data.sample import Dataset, Grounding, Sample
from groundtune.errors import DataError


def convert(data: Path, out: Path, format: str, link: bool = False) -> Converted:
    return convert_module.convert(data, out, format, link=link, input_format=None)


CROWDS = ("coco", "voc", "csv", "hf")  # formats that can express boxes of groups


def assert_same(
    before: dict[str, Dataset], after: dict[str, Dataset], ids: bool = False, crowds: bool = True
) -> None:
    assert before.keys() == after.keys()
    for split, dataset in before.items():
        assert after[split].class_names == dataset.class_names
        assert not ids or after[split].category_ids == dataset.category_ids
        read = {key(sample): sample for sample in after[split].samples}
        assert len(read) == len(dataset.samples) == len(after[split].samples)
        for sample in dataset.samples:
            other, kept = read[key(sample)], ~sample.crowd | crowds
            assert other.size_hw == sample.size_hw and other.grounding == sample.grounding
            assert other.class_ids.tolist() == sample.class_ids[kept].tolist()
            assert other.crowd.tolist() == sample.crowd[kept].tolist()
            np.testing.assert_allclose(other.boxes_xyxy, sample.boxes_xyxy[kept], atol=0.01)


def key(sample: Sample) -> str:
    """The number at the end of a name, or the name."""
    match = re.search(r"=(\d+)\.png$", sample.image_path.name)
    return match[1] if match else sample.image_path.name


NAMES = st.lists(
    st.text(string.ascii_lowercase + "0123456789 -/'&<>\"é漢:#[]{},;\\%", min_size=1, max_size=12).filter(
        str.strip
    ),
    min_size=1,
    max_size=5,
)
SIDES = st.integers(1, 5000)
FILE_NAMES = st.text("ab.,;:'\"#%=& é漢\\\n\t\u2028\ufffeÄ́", max_size=8)


@st.composite
def splits(draw):
    """One or two splits of images of any size with boxes anywhere inside."""
    names = list(dict.fromkeys(" ".join(name.split()) for name in draw(NAMES)))
    found = {}
    for split in draw(st.sampled_from([("train",), ("train", "valid"), ("train", "valid", "test")])):
        images = []
        for _ in range(draw(st.integers(1, 3))):
            height, width = draw(SIDES), draw(SIDES)
            boxes = []
            for _ in range(draw(st.integers(0, 4))):
                xs = sorted(draw(st.tuples(*[st.floats(0, width, width=32)] * 2)))
                ys = sorted(draw(st.tuples(*[st.floats(0, height, width=32)] * 2)))
                if xs[1] - xs[0] > 0.05 and ys[1] - ys[0] > 0.05:
                    label = draw(st.integers(0, len(names) - 1))
                    boxes.append((xs[0], ys[0], xs[1], ys[1], label, draw(st.booleans())))
            images.append((height, width, list(dict.fromkeys(boxes)), draw(FILE_NAMES)))
        found[split] = images
    return names, found


def as_datasets(folder: Path, names: list[str], found: dict) -> dict[str, Dataset]:
    datasets = {}
    for split, images in found.items():
        samples = []
        for number, (height, width, boxes, text) in enumerate(images):
            path = folder / f"{text}={len(datasets)}{number}.png"
            Image.new("1", (width, height)).save(path)
            rows = np.array([box[:4] for box in boxes], dtype=np.float32).reshape(-1, 4)
            classes = np.array([box[4] for box in boxes], dtype=np.int64)
            crowd = np.array([box[5] for box in boxes], dtype=bool)
            samples.append(Sample(path, number + 5, (height, width), rows, classes, crowd))
        datasets[split] = Dataset(split, folder, names, samples, [3 * i + 7 for i in range(len(names))])
    return datasets


@pytest.mark.parametrize("format", FORMATS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=splits())
def test_classes_read_back_as_written(format, data, tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("set")
    datasets = as_datasets(folder, *data)
    monkeypatch.setattr(convert_module, "read_splits", lambda path, format: datasets)
    done = convert(folder, folder / "out", format)
    assert done.images == {split: len(d.samples) for split, d in datasets.items()}
    assert_same(datasets, read_splits(folder / "out"), ids=format == "coco", crowds=format in CROWDS)


WORDS = st.text(string.ascii_letters + " .,?é漢'-", min_size=1, max_size=40).filter(
    lambda text: any(map(str.isalpha, text))
)


@st.composite
def captioned(draw):
    """A caption with phrases anywhere in it, some of several spans, some without a box."""
    caption = draw(WORDS)
    letters = [i for i, letter in enumerate(caption) if letter.isalpha()]
    spans = set()
    for _ in range(draw(st.integers(0, 3))):
        ranges = set()
        for _ in range(draw(st.integers(1, 2))):
            begin = draw(st.sampled_from(letters))
            ranges.add((begin, draw(st.integers(begin + 1, len(caption)))))
        spans.add(tuple(sorted(ranges)))
    spans = tuple(draw(st.permutations(sorted(spans))))
    boxes = [(p, k) for p in range(len(spans)) for k in range(draw(st.integers(0, 2)))]
    return Grounding(caption, spans), boxes


@pytest.mark.parametrize("format", ["coco", "odvg"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(found=st.lists(captioned(), min_size=1, max_size=3))
def test_captions_read_back_as_written(format, found, tmp_path_factory):
    folder = tmp_path_factory.mktemp("set")
    samples = []
    for number, (grounding, boxes) in enumerate(found):
        path = image(folder / f"{number}.png")
        rows = np.array([(p, k, p + 5.25, k + 7) for p, k in boxes], dtype=np.float32).reshape(-1, 4)
        classes = np.array([p for p, _ in boxes], dtype=np.int64)
        samples.append(
            Sample(path, number, (30, 40), rows, classes, np.zeros(len(boxes), dtype=bool), grounding)
        )
    dataset = Dataset("train", folder, [], samples, [])
    names = [sample.image_path.name for sample in samples]
    if format == "coco":
        write_coco(dataset, names, folder / "captions.json")
    else:
        write_odvg(dataset, names, folder / "captions.jsonl")
    assert_same({"train": dataset}, read_splits(folder))


@pytest.mark.parametrize("name", ["bccd", "chess", "amenity", "cat144", "tinycoco"])
def test_real_folders_give_identical_batches_in_every_format(shared, tmp_path, tokenizer, name):
    """Images are sorted by name on both sides: only COCO and ODVG keep the order of the file."""

    def batches(folder):
        dataset = load_splits(folder)["train"]
        dataset.samples.sort(key=lambda sample: sample.image_path.name)
        dataset.samples = dataset.samples[:24]
        loader = TrainLoader(dataset, tokenizer, FORMAT, TrainConfig(data="", batch_size=4, crop=0.3), 256)
        return list(loader.epoch(1))

    wanted = batches(shared / "data" / name)
    for format in FORMATS:
        convert(shared / "data" / name, tmp_path / format, format, link=format != "voc")
        for batch, other in zip(wanted, batches(tmp_path / format), strict=True):
            assert batch.prompts == other.prompts and batch.indices == other.indices
            for pixels, target, same_pixels, same_target in zip(
                batch.images, batch.targets, other.images, other.targets, strict=True
            ):
                assert torch.equal(pixels, same_pixels)
                assert torch.equal(target.labels, same_target.labels)
                assert torch.equal(target.positive_map, same_target.positive_map)
                torch.testing.assert_close(target.boxes_cxcywh, same_target.boxes_cxcywh, rtol=0, atol=1e-6)


def test_real_captions_convert(shared, tmp_path):
    before = read_splits(shared / "data/refs")
    for format in ("coco", "odvg"):
        convert(shared / "data/refs", tmp_path / format, format, link=True)
        assert_same(before, read_splits(tmp_path / format))
    with pytest.raises(DataError, match="YOLO cannot express captions"):
        convert(shared / "data/refs", tmp_path / "yolo", "yolo")


def small(folder: Path, **kwargs) -> Path:
    write(folder / "train/_annotations.coco.json", coco(**kwargs), folder / "train")
    return folder


def test_files_are_what_other_tools_expect(tmp_path):
    """Read without our readers: 40 x 30 pixels, one box [2, 3, 10, 12] as x, y, width, height."""
    data = small(tmp_path / "in", categories=[(5, "Red_Dog"), (7, "cat")], boxes=[(1, 5, [2, 3, 10, 12])])
    for format in FORMATS:
        convert(data, tmp_path / format, format)
    assert (tmp_path / "yolo/train/labels/a.txt").read_text().split() == ["0", "0.175", "0.3", "0.25", "0.4"]
    content = yaml.safe_load((tmp_path / "yolo/data.yaml").read_text())
    assert content == {"train": "train/images", "nc": 2, "names": {0: "Red_Dog", 1: "cat"}}
    xml = ElementTree.parse(tmp_path / "voc/Annotations/a.xml").getroot()
    corners = [xml.findtext(f"object/bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax")]
    assert corners == ["2", "3", "12", "15"]
    assert (tmp_path / "voc/ImageSets/Main/train.txt").read_text() == "a\n"
    line = (tmp_path / "odvg/train/annotations.odvg.jsonl").read_text()
    assert '"bbox": [2.0, 3.0, 12.0, 15.0], "label": 0, "category": "Red_Dog"' in line
    assert (tmp_path / "odvg/label_map.json").read_text() == '{"0": "Red_Dog", "1": "cat"}'


def test_equal_file_names_get_different_names(tmp_path):
    names = ["x/a.png", "y/a.png", "y/A.png", "y/a.bmp"]
    content = coco(names=names, boxes=[(i, 1, [i, 1, 5, 5]) for i in (1, 2, 3, 4)])
    write(tmp_path / "in/train/_annotations.coco.json", content, tmp_path / "in/train")
    for format in FORMATS:
        convert(tmp_path / "in", tmp_path / format, format)
        samples = read_splits(tmp_path / format)["train"].samples
        assert len({sample.image_path.stem.lower() for sample in samples}) == 4
        assert sorted(float(sample.boxes_xyxy[0, 0]) for sample in samples) == [1, 2, 3, 4]


def test_crowd_boxes_become_difficult_or_are_skipped_with_a_message(tmp_path):
    content = coco(boxes=[(1, 1, [2, 3, 10, 12]), (1, 1, [0, 0, 30, 30])])
    content["annotations"][1]["iscrowd"] = 1
    write(tmp_path / "in/train/_annotations.coco.json", content, tmp_path / "in/train")
    for format in FORMATS:
        done = convert(tmp_path / "in", tmp_path / format, format)
        (sample,) = read_splits(tmp_path / format)["train"].samples
        if format in CROWDS:
            assert sample.crowd.tolist() == [False, True]
        else:
            assert sample.crowd.tolist() == [False] and "1 boxes of groups skipped" in done.messages[-1]


@pytest.mark.parametrize(
    ("stated", "frame"), [((50, 20), "stored"), ((20, 50), "turned"), ((100, 40), "scaled")]
)
def test_turned_and_scaled_images_keep_their_boxes_on_the_object(tmp_path, stated, frame):
    """A white square under the box, stored pixels 50 x 20 with EXIF orientation 6 (viewers show 20
    x 50).
    """
    box = {"stored": [5, 5, 10, 10], "turned": [5, 5, 10, 10], "scaled": [10, 10, 20, 20]}[frame]
    pixels = np.zeros((20, 50, 3), dtype=np.uint8)
    pixels[5:15, 5:15] = 255  # shown turned, stored (x, y) is at (19 - y, x): the square's place is the same
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "in").mkdir()
    Image.fromarray(pixels).save(tmp_path / "in/a.png", exif=exif)
    write(tmp_path / "in/a.json", coco(boxes=[(1, 1, box)], size=stated))
    for format in FORMATS:
        convert(tmp_path / "in", tmp_path / format, format)
        (sample,) = read_splits(tmp_path / format)["train"].samples
        assert sample.size_hw == stated[::-1]
        x0, y0, x1, y1 = sample.boxes_xyxy[0].round().astype(int)
        assert np.asarray(load_image(sample.image_path, sample.size_hw))[y0:y1, x0:x1].mean() > 240


def full_disk(source: Path, target: Path) -> None:
    raise OSError(28, "No space left")


def test_the_folder_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    data = small(tmp_path / "in", names=["a.png", "b.png"])
    with monkeypatch.context() as patch:
        patch.setattr(convert_module.shutil, "copyfile", full_disk)
        with pytest.raises(DataError, match="Cannot write .*No space left"):
            convert(data, tmp_path / "out", "coco")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]
    (tmp_path / "out").mkdir()
    convert(data, tmp_path / "out", "coco")  # an empty one is fine
    with pytest.raises(DataError, match="is not empty"):
        convert(data, tmp_path / "out", "coco")
    with pytest.raises(DataError, match="expected coco, yolo, voc, odvg, csv, hf, got 'kitti'"):
        convert(data, tmp_path / "new", "kitti")


def test_the_command_makes_no_split_and_links_images(tmp_path, capsys):
    data = small(
        tmp_path / "in",
        names=[f"{i}.png" for i in range(9)],
        boxes=[(1, 1, [1, 1, 5, 5]), (2, 1, [1, 1, 0, 5])],
    )
    assert main(["convert", str(data), str(tmp_path / "out"), "--format", "yolo", "--link"]) == 0
    output = capsys.readouterr()
    assert output.out.split() == ["yolo", "images", "boxes", "train", "9", "1", str(tmp_path / "out")]
    assert "1 boxes dropped: no area" in output.err
    assert (tmp_path / "out/train/images/3.png").is_symlink()
    assert list(read_splits(tmp_path / "out")) == ["train"]
    assert main(["convert", str(data), str(tmp_path / "out"), "--format", "yolo"]) == 3
    assert main(["convert", str(data), str(tmp_path / "new"), "--format", "kitti"]) == 2


def test_class_names_that_xml_and_csv_cannot_hold_are_errors(tmp_path):
    data = small(tmp_path / "in", categories=[(1, "cat\ufffe")])
    for format in ("voc", "csv"):
        with pytest.raises(DataError, match=f"{format.upper()} cannot hold .*'cat.*'"):
            convert(data, tmp_path / "out", format)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


@pytest.mark.parametrize("format", FORMATS)
def test_names_that_mean_something_else_stay_images(format, tmp_path):
    """Images called like lists of splits or of classes, and without a suffix of images."""
    names = [
        "train.png",
        "val.png",
        "test.png",
        "classes.png",
        "labels.png",
        "metadata.png",
        "a.jpg_large",
        "b",
    ]
    content = coco(names=names, boxes=[(i, 1, [i, 2, 5, 6]) for i in range(1, 6)])
    write(tmp_path / "in/train/_annotations.coco.json", content)
    for name in names:
        Image.new("RGB", (40, 30)).save(tmp_path / "in/train" / name, "PNG")
    convert(tmp_path / "in", tmp_path / "out", format)
    splits = read_splits(tmp_path / "out")
    assert {split: len(dataset.samples) for split, dataset in splits.items()} == {"train": 8}
    found = sorted(float(box[0]) for sample in splits["train"].samples for box in sample.boxes_xyxy)
    assert found == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("format", FORMATS)
def test_a_split_without_boxes_and_classes_without_boxes_stay(format, tmp_path):
    categories = [(1, "zebra"), (2, "cat"), (3, "ape")]
    for split, boxes in (("train", [(1, 2, [2, 3, 10, 12])]), ("valid", [])):
        write(
            tmp_path / f"in/{split}/_annotations.coco.json",
            coco(categories=categories, boxes=boxes, names=[f"{split}.png"]),
            tmp_path / "in" / split,
        )
    convert(tmp_path / "in", tmp_path / "out", format)
    assert_same(read_splits(tmp_path / "in"), read_splits(tmp_path / "out"))


@pytest.mark.parametrize("format", ["coco", "yolo", "odvg", "hf"])
def test_class_names_with_line_ends_and_spaces_stay(format, tmp_path):
    names = [" cat", "dog\n---\nx", "a\tb", "tail ", "\u2028", "0", "yes", "null", "\x85x"]
    data = small(
        tmp_path / "in",
        categories=[(i + 1, name) for i, name in enumerate(names)],
        boxes=[(1, i + 1, [i, 1, 9, 9]) for i in range(len(names))],
    )
    convert(data, tmp_path / "out", format)
    assert_same(read_splits(data), read_splits(tmp_path / "out"))


def test_hugging_face_and_coco_keep_areas(tmp_path):
    content = coco(boxes=[(1, 1, [2, 3, 10, 12])])
    content["annotations"][0]["area"] = 61.5  # of an outline
    write(tmp_path / "in/train/_annotations.coco.json", content, tmp_path / "in/train")
    for format in ("coco", "hf"):
        convert(tmp_path / "in", tmp_path / format, format)
        (sample,) = read_splits(tmp_path / format)["train"].samples
        assert sample.object_areas().tolist() == [61.5]


def test_the_files_of_hugging_face_and_csv(tmp_path):
    """As https://huggingface.co/docs/datasets/image_dataset and Roboflow's CSV export have them."""
    boxes = [(1, 7, [2, 3, 10, 12])]
    data = small(
        tmp_path / "in", names=["a.png", "b.png"], categories=[(5, 'dog, "big"'), (7, "cat")], boxes=boxes
    )
    convert(data, tmp_path / "hf", "hf")
    rows = [json.loads(line) for line in (tmp_path / "hf/train/metadata.jsonl").read_text().splitlines()]
    objects = {"id": [0], "bbox": [[2, 3, 10, 12]], "category": ["cat"], "area": [120], "iscrowd": [0]}
    assert rows[0] == {"file_name": "a.png", "image_id": 1, "width": 40, "height": 30, "objects": objects}
    assert rows[1]["file_name"] == "b.png" and rows[1]["objects"]["bbox"] == []
    front = yaml.safe_load((tmp_path / "hf/README.md").read_text().split("---")[1])
    columns = front["dataset_info"]["features"][-1]["sequence"]
    assert columns[2]["dtype"]["class_label"]["names"] == {"0": 'dog, "big"', "1": "cat"}
    convert(data, tmp_path / "csv", "csv")
    header = "filename,width,height,class,xmin,ymin,xmax,ymax\n"
    text = (tmp_path / "csv/train/_annotations.csv").read_text()
    assert text == header + "a.png,40,30,cat,2,3,12,15\nb.png,40,30,,,,,\n"
    assert (tmp_path / "csv/classes.txt").read_text() == 'dog, "big"\ncat\n'


def test_the_datasets_library_loads_what_is_written(tmp_path):
    datasets = pytest.importorskip("datasets")
    content = coco(names=["a.png", "b.png"], boxes=[(1, 1, [2, 3, 10, 12])], categories=[(1, "dog,\ncat")])
    write(tmp_path / "in/valid/_annotations.coco.json", content, tmp_path / "in/valid")
    convert(tmp_path / "in", tmp_path / "hf", "hf")
    loaded = datasets.load_dataset(str(tmp_path / "hf"), cache_dir=str(tmp_path / "cache"))
    first, second = loaded["validation"]
    assert first["objects"]["bbox"] == [[2, 3, 10, 12]] and first["objects"]["category"] == ["dog,\ncat"]
    assert first["image"].size == (40, 30) and second["objects"]["bbox"] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bccd", "chess", "amenity", "cat144", "tinycoco"])
def test_real_sets_are_equal_after_each_format(shared, tmp_path, name):
    before = read_splits(shared / "data" / name)
    for format in FORMATS:
        convert(shared / "data" / name, tmp_path / format, format, link=True)
        assert_same(before, read_splits(tmp_path / format), ids=format == "coco")
