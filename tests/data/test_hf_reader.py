"""Hugging Face: metadata.jsonl, metadata.csv and Parquet."""

import json
import random
import sys
from pathlib import Path

import pytest
from test_real_layouts import checks, counts, in_folder, pic, put  # noqa: F401

from groundtune.data.formats.archive import CACHE
from groundtune.data.formats.detect import read_splits
from groundtune.errors import DataError

BOX = [40.0, 30.0, 40.0, 30.0]


def rows(names, objects):
    return "".join(json.dumps({"file_name": name, "objects": objects}) + "\n" for name in names)


@pytest.mark.parametrize("key", ["category", "categories", "label", "labels"])
def test_splits_are_folders(key):
    for split, names in (("train", ["a.jpg", "b.jpg"]), ("validation", ["c.jpg"])):
        for name in names:
            pic(f"d/{split}/{name}")
        put(f"d/{split}/metadata.jsonl", rows(names, {"bbox": [BOX], key: ["cat"]}))
    assert counts("d") == {"train": 2, "valid": 1}
    assert checks("d") == []


def test_one_file_for_all_splits():
    names = ["train/a.jpg", "train/b.jpg", "test/c.jpg"]
    for name in names:
        pic(f"d/data/{name}")
    put("d/data/metadata.jsonl", rows(names, [{"bbox": BOX, "category": "cat", "id": 7, "area": 1200}]))
    assert counts("d") == {"train": 2, "test": 1}


README = """---
dataset_info:
  features:
  - name: image
    dtype: image
  - name: label
    dtype:
      class_label:
        names:
          '0': indoors
  - name: objects
    {}:
    - name: bbox
      sequence: float64
    - name: category
      dtype:
        class_label:
          names:
            '0': dog
            '1': cat
---
# Cats
"""
FEATURES = {
    "label": {"names": ["indoors"], "_type": "ClassLabel"},
    "objects": {
        "feature": {"category": {"names": ["dog", "cat"], "_type": "ClassLabel"}},
        "_type": "Sequence",
    },
}


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("README.md", README.format("sequence")),
        ("README.md", README.format("struct")),
        ("dataset_info.json", json.dumps({"features": FEATURES})),
        ("dataset_infos.json", json.dumps({"default": {"features": FEATURES}})),
        ("classes.txt", "dog\ncat\n"),
    ],
)
def test_names_of_numbers(file, text):
    pic("d/a.jpg"), put("d/metadata.jsonl", rows(["a.jpg"], {"bbox": [BOX], "category": [1]}))
    with pytest.raises(DataError, match="categories are numbers.*Add a classes.txt"):
        read_splits(Path("d"))
    put(f"d/{file}", text)
    dataset = read_splits(Path("d"))["train"]
    assert counts("d", ["dog", "cat"]) == {"train": 1} and dataset.samples[0].class_ids.tolist() == [1]
    put("d/metadata.jsonl", rows(["a.jpg"], {"bbox": [BOX, BOX, BOX], "category": [1, 2, -1]}))
    assert checks("d") == ["annotation-unknown-category"]


@pytest.mark.parametrize("quote", ['""', "'"])
def test_csv(quote):
    pic("d/a.jpg"), pic("d/b.jpg")
    objects = "{'bbox': [[40, 30, 40, 30]], 'categories': ['cat']}".replace("'", quote)
    put("d/metadata.csv", f'file_name,objects\na.jpg,"{objects}"\nb.jpg,"{objects}"\n')
    assert counts("d") == {"train": 2}


def test_broken_rows():
    for name in "abc":
        pic(f"d/{name}.jpg")
    text = rows(["a.jpg"], {"bbox": [BOX], "category": ["cat"]})
    text += rows(["b.jpg"], {"bbox": [BOX, BOX], "category": ["cat"]}) + rows(
        ["c.jpg"], {"bbox": [], "category": []}
    )
    put("d/metadata.jsonl", text)
    dataset = read_splits(Path("d"))["train"]
    assert [len(each.boxes_xyxy) for each in dataset.samples] == [1, 0, 0]
    assert checks("d") == ["annotation-broken"]
    put("d/metadata.jsonl", text + "{\n")
    with pytest.raises(DataError, match="line 4 without a file_name"):
        read_splits(Path("d"))


def parquet(path, images, labels=(1,), names=("dog", "cat"), **columns):
    import pyarrow as pa
    import pyarrow.parquet as pq

    objects = [{"bbox": [BOX], "category": list(labels)}] * len(images)
    table = pa.table({"image": images, "objects": objects} | columns)
    features = {
        "objects": {"category": {"feature": {"names": names, "_type": "ClassLabel"}, "_type": "List"}}
    }
    metadata = {"huggingface": json.dumps({"info": {"features": features}})} if names else {}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata(metadata), path)


def encoded(suffix="jpg"):
    pic(f"tmp/x.{suffix}")
    return Path(f"tmp/x.{suffix}").read_bytes()


def test_parquet():
    image = {"bytes": encoded(), "path": "a.jpg"}
    other = {"bytes": encoded("png"), "path": None}
    parquet("d/data/train-00000-of-00002.parquet", [image, image])
    parquet("d/data/train-00001-of-00002.parquet", [other])
    parquet("d/data/validation-00000-of-00001.parquet", [image], width=[160], height=[120])
    assert counts("d", ["dog", "cat"]) == {"train": 3, "valid": 1}
    splits = read_splits(Path("d"))
    assert [each.class_ids.tolist() for each in splits["train"].samples] == [[1]] * 3
    paths = [each.image_path for each in splits["train"].samples]
    assert [each.suffix for each in paths] == [".jpg", ".jpg", ".png"]
    assert paths[2].read_bytes() == other["bytes"] and CACHE in paths[2].parts
    assert checks("d") == ["data-unpacked", "data-unpacked"]
    assert counts("d/data/validation-00000-of-00001.parquet", ["dog", "cat"]) == {"train": 1}


def test_parquet_is_unpacked_once():
    image = {"bytes": encoded(), "path": "a.jpg"}
    parquet("d/train.parquet", [image])
    path = read_splits(Path("d"))["train"].samples[0].image_path
    path.write_bytes(encoded("png"))
    read_splits(Path("d"))
    assert path.read_bytes() == encoded("png")
    parquet("d/train.parquet", [image, image])
    assert counts("d", ["dog", "cat"]) == {"train": 2} and path.read_bytes() == image["bytes"]


def test_parquet_with_names_of_files():
    pic("d/images/a.jpg")
    parquet("d/train.parquet", [{"bytes": None, "path": "images/a.jpg"}], names=None, labels=["cat"])
    assert (
        counts("d") == {"train": 1} and not Path("d", CACHE, "train.parquet").joinpath("0000000.jpg").exists()
    )


def test_parquet_faults(monkeypatch):
    parquet("d/train.parquet", [{"bytes": encoded(), "path": "a.jpg"}], names=None)
    with pytest.raises(DataError, match="categories are numbers"):
        read_splits(Path("d"))
    whole = Path("d/train.parquet").read_bytes()
    for text in (whole[:-20], b"", b"PAR1" + whole[-400:]):
        put("d/train.parquet", text)
        with pytest.raises(DataError, match=r"Cannot read d/train.parquet"):
            read_splits(Path("d"))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(DataError, match=r"pip install groundtune\[parquet\]"):
        read_splits(Path("d"))


def test_the_first_image_may_be_empty():
    for name in "abc":
        pic(f"d/{name}.jpg")
    put(
        "d/metadata.jsonl",
        rows(["a.jpg"], []) + rows(["b.jpg"], None) + rows(["c.jpg"], [{"bbox": BOX, "label": "cat"}]),
    )
    assert [len(each.boxes_xyxy) for each in read_splits(Path("d"))["train"].samples] == [0, 0, 1]


@pytest.mark.parametrize("objects", ["[1]", "{bbox", "7"])
def test_objects_that_cannot_be_read_are_counted(objects):
    pic("d/a.jpg"), pic("d/b.jpg")
    good = "{'bbox': [[40, 30, 40, 30]], 'categories': ['cat']}"
    put("d/metadata.csv", f'file_name,objects\na.jpg,"{objects}"\nb.jpg,"{good}"\n')
    assert checks("d") == ["annotation-broken"]


def test_corrupted_parquet_files_load_or_are_one_data_error():
    parquet("d/train.parquet", [{"bytes": encoded(), "path": "a.jpg"}] * 2)
    whole, rng, loaded = Path("d/train.parquet").read_bytes(), random.Random(0), 0
    for _ in range(200):
        content = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        Path("d/train.parquet").write_bytes(content[: rng.choice([None, None, rng.randrange(len(content))])])
        try:
            loaded += len(read_splits(Path("d"), keep_going=True))
        except DataError as error:
            assert str(error).strip()
    assert 0 < loaded < 200
