"""Label Studio's exports, in the form of labelstud.io/guide/export and its issues."""

import json
from pathlib import Path

import pytest
from test_real_layouts import checks, counts, in_folder, pic, put  # noqa: F401 (a fixture)

from groundtune.data.formats.detect import read_splits

SIZE = {"original_width": 160, "original_height": 120, "image_rotation": 0}
RECT = {"x": 25, "y": 25, "width": 25, "height": 25, "rotation": 0}
LABELED = RECT | {"rectanglelabels": ["cat"]}


def item(value=None, kind="rectanglelabels", **more):
    return (
        SIZE
        | {
            "id": "r1",
            "from_name": "label",
            "to_name": "image",
            "type": kind,
            "origin": "manual",
            "value": value or LABELED,
        }
        | more
    )


def annotation(*items, cancelled=False):
    return {
        "id": 1,
        "completed_by": 1,
        "result": list(items),
        "was_cancelled": cancelled,
        "ground_truth": False,
        "lead_time": 4.2,
    }


def task(number, image, *annotations, **more):
    return {
        "id": number,
        "annotations": list(annotations),
        "file_upload": "x.jpg",
        "predictions": [],
        "data": {"image": image},
        "meta": {},
        "project": 1,
    } | more


def export(*tasks, path="d/project-1-at-2024-05-01.json"):
    put(path, json.dumps(tasks))


IMAGES = [
    "/data/upload/1/0a1b2c3d-{}.jpg",
    "/data/local-files/?d=images/{}.jpg",
    "/data/local-files/?d=images%2F{}.jpg",
    "s3://bucket/some/{}.jpg",
    "https://host/x/{}.jpg?X-Amz-Signature=1a2b&v=2",
    "http://localhost:8080/data/upload/1/0a1b2c3d-{}.jpg",
    "{}.jpg",
    "images\\{}.jpg",
]


@pytest.mark.parametrize("image", IMAGES)
def test_images_of_tasks(image):
    for n in "ab":
        pic(f"d/images/{n}.jpg")
    export(*(task(i, image.format(n), annotation(item())) for i, n in enumerate("ab")))
    assert counts("d") == {"train": 2} and set(checks("d")) <= {"image-path-resolved"}


@pytest.mark.parametrize("name", ["a+b.jpg", "a b.jpg", "a%20b.jpg"])
def test_other_letters_in_names(name):
    pic("d/images/" + name.replace("%20", " "))
    export(task(1, f"/data/local-files/?d=images/{name}", annotation(item())))
    assert counts("d") == {"train": 1}


def test_the_folder_of_an_uploaded_file_counts():
    pic("d/x/a.jpg"), pic("d/y/a.jpg")
    export(task(1, "s3://b/y/0a1b2c3d-a.jpg", annotation(item())))
    assert read_splits(Path("d"))["train"].samples[0].image_path == Path("d/y/a.jpg")


def test_an_uploaded_file_with_its_prefix_comes_first():
    pic("d/images/a.jpg"), pic("d/images/0a1b2c3d-a.jpg")
    export(task(1, "/data/upload/1/0a1b2c3d-a.jpg", annotation(item())))
    assert read_splits(Path("d"))["train"].samples[0].image_path.name == "0a1b2c3d-a.jpg"


MIN = {
    "image": "/data/upload/1/0a1b2c3d-a.jpg",
    "id": 1,
    "label": [LABELED | SIZE],
    "annotator": 1,
    "annotation_id": 1,
    "created_at": "2024",
    "updated_at": "2024",
    "lead_time": 4.2,
}


def test_json_min_and_csv():
    for n in "ab":
        pic(f"d/{n}.jpg"), pic(f"c/{n}.jpg")
    put(
        "d/min.json",
        json.dumps(
            [MIN, MIN | {"image": "/data/upload/1/0a1b2c3e-b.jpg", "id": 2}, MIN | {"annotation_id": 3}]
        ),
    )
    assert counts("d") == {"train": 2} and checks("d") == ["annotation-repeated"]
    cell = json.dumps(MIN["label"]).replace('"', '""')
    put(
        "c/min.csv",
        "annotation_id,annotator,created_at,id,image,label,lead_time,updated_at\n"
        + "".join(
            f'{i},1,2024,{i},/data/upload/1/0a1b2c3d-{n}.jpg,"{cell}",4.2,2024\n' for i, n in enumerate("ab")
        ),
    )
    assert counts("c") == {"train": 2} and checks("c") == []


def test_an_image_without_boxes_in_json_min():
    pic("d/a.jpg"), pic("d/b.jpg")
    put(
        "d/min.json",
        json.dumps(
            [{key: value for key, value in MIN.items() if key != "label"}, MIN | {"id": 2, "image": "b.jpg"}]
        ),
    )
    assert [len(sample.boxes_xyxy) for sample in read_splits(Path("d"))["train"].samples] == [0, 1]


@pytest.mark.parametrize(
    ("value", "box", "check"),
    [
        # label-studio issue 2293: 300 × 100 at (200, 100) of 1000 × 500, by 90 degrees, is 100 × 300 at (100, 100)
        ({"x": 20, "y": 20, "width": 30, "height": 20, "rotation": 90, "rectanglelabels": ["cat"]}, [100, 100, 200, 400], "rotated-to-boxes"),
        ({"points": [[10, 30], [20, 20], [20, 80]], "closed": True, "polygonlabels": ["cat"]}, [100, 100, 200, 400], "segments-to-boxes"),
        ({"x": 15, "y": 50, "radiusX": 5, "radiusY": 30, "rotation": 0, "ellipselabels": ["cat"]}, [100, 100, 200, 400], "segments-to-boxes"),
        ({"x": 15, "y": 50, "radiusX": 15, "radiusY": 10, "rotation": 90, "ellipselabels": ["cat"]}, [100, 100, 200, 400], "segments-to-boxes"),
    ],
)  # fmt: skip
def test_other_shapes(value, box, check):
    pic("d/a.jpg", (1000, 500))
    export(task(1, "a.jpg", annotation(item(value, original_width=1000, original_height=500))))
    sample = read_splits(Path("d"))["train"].samples[0]
    assert sample.boxes_xyxy.tolist() == [pytest.approx(box, abs=1e-3)] and checks("d") == [check]


def test_a_size_that_is_not_stated():
    pic("d/a.jpg"), pic("d/b.jpg")
    bare = {"type": "rectanglelabels", "value": LABELED}
    export(
        task(1, "a.jpg", annotation(bare)),
        task(2, "b.jpg", annotation(bare, {"value": LABELED | {"rotation": 30}})),
    )
    assert counts("d") == {"train": 2} and "box-not-numbers" in checks("d")


def test_brushes_and_points_have_no_box():
    pic("d/a.jpg")
    export(
        task(
            1,
            "a.jpg",
            annotation(
                item(),
                item({"format": "rle", "rle": [1, 2], "brushlabels": ["cat"]}),
                item({"x": 1, "y": 1, "width": 0.5, "keypointlabels": ["nose"]}),
                {"type": "choices", "value": {"choices": ["ok"]}, "to_name": "x"},
            ),
        )
    )
    assert counts("d") == {"train": 1}
    (finding,) = read_splits(Path("d"))["train"].findings
    assert finding.check == "shape-without-box" and finding.count == 2


def test_labels_apart_from_their_rectangles():
    pic("d/a.jpg")
    texts = item(RECT | {"text": ["x"]}, "textarea")
    export(
        task(
            1, "a.jpg", annotation(item(RECT, "rectangle"), item(RECT | {"labels": ["cat"]}, "labels"), texts)
        )
    )
    assert counts("d") == {"train": 1} and checks("d") == []
    export(task(1, "a.jpg", annotation(item(), item(RECT | {"x": 1}, "rectangle"))))
    assert counts("d") == {"train": 1} and checks("d") == ["annotation-unknown-category"]


def test_a_box_with_two_labels():
    pic("d/a.jpg")
    export(task(1, "a.jpg", annotation(item(RECT | {"rectanglelabels": ["cat", "animal"]}))))
    dataset = read_splits(Path("d"))["train"]
    assert dataset.class_names == ["animal", "cat"] and dataset.samples[0].class_ids.tolist() == [1, 0]


def test_several_annotations_and_predictions():
    for n in "abcde":
        pic(f"d/{n}.jpg")
    other = item(LABELED | {"x": 0})
    export(
        task(1, "a.jpg", annotation(other, cancelled=True), annotation(item()), annotation(other)),
        task(2, "b.jpg", annotation(item()), predictions=[{"result": [other]}]),
        task(3, "c.jpg"),
        task(4, "d.jpg", annotation(other, cancelled=True)),
        task(5, "e.jpg", annotation(item(image_rotation=90))),
    )
    found = {each.check: each for each in read_splits(Path("d"))["train"].findings}
    assert set(found) == {"annotation-repeated", "predictions-ignored", "image-skipped", "file-unused"}
    assert found["image-skipped"].examples == [
        "task 3 (not annotated)",
        "task 4 (not annotated)",
        "task 5 (rotated in the tool)",
    ]
    assert counts("d") == {"train": 2}


def test_an_answer_without_boxes_is_an_empty_image():
    pic("d/a.jpg"), pic("d/b.jpg")
    export(task(1, "a.jpg", annotation()), task(2, "b.jpg", annotation(item())))
    assert [len(sample.boxes_xyxy) for sample in read_splits(Path("d"))["train"].samples] == [0, 1]


def test_boxes_of_two_images_in_a_task_are_not_mixed():
    pic("d/a.jpg"), pic("d/b.jpg")
    export(task(1, "a.jpg", annotation(item(), item(to_name="second"))), task(2, "b.jpg", annotation(item())))
    assert counts("d") == {"train": 1} and "image-skipped" in checks("d")


def test_splits():
    for split, n in (("train", "a"), ("val", "b")):
        pic(f"d/{split}/{n}.jpg"), export(task(1, f"{n}.jpg", annotation(item())), path=f"d/{split}.json")
    assert counts("d") == {"train": 1, "valid": 1}
