"""CSV in its many headers."""

import pytest
from coco_files import image

from groundtune.data.formats.detect import load_splits, read_splits
from groundtune.errors import DataError


def read(tmp_path, text, name="boxes.csv", images=("a.png", "b.png")):
    for file in images:
        image(tmp_path / file)
    (tmp_path / name).write_text(text)
    return read_splits(tmp_path)["train"]


@pytest.mark.parametrize(
    "text",
    [
        "path,class,x1,y1,x2,y2\na.png,red_dog,2,3,12,15\na.png,cat,0,0,5,5\nb.png,,,,,\n",
        "filename,width,height,class,xmin,ymin,xmax,ymax\na.png,40,30,red_dog,2,3,12,15\na.png,40,30,cat,0,0,5,5\nb.png,40,30,,,,,\n",
        "class;y1;x1;y2;x2;Image Path\nred_dog;3;2;15;12;a.png\ncat;0;0;5;5;a.png\n;;;;;b.png\n",
        "image,label,x,y,width,height\na.png,red_dog,2,3,10,12\na.png,cat,0,0,5,5\nb.png,,,,,\n",
        "file_name\tx\ty\tw\th\tcategory\na.png\t2\t3\t10\t12\tred_dog\na.png\t0\t0\t5\t5\tcat\nb.png\t\t\t\t\t\n",
        "a.png,2,3,12,15,red_dog\na.png,0,0,5,5,cat\nb.png,,,,,\n",
        "a.png,red_dog,2,3,12,15\na.png,cat,0,0,5,5\nb.png,,,,,\n",
        "/home/someone/data/a.png,2,3,12,15,red_dog\n/home/someone/data/a.png,0,0,5,5,cat\n/home/someone/data/b.png,,,,,\n",
        '\ufeff"path","class","x1","y1","x2","y2"\r\n"a.png","red_dog","2","3","12","15"\r\na.png,cat,0,0,5,5\r\nb.png,,,,,\r\n',
    ],
)
def test_all_headers_give_the_same_records(tmp_path, text):
    dataset = read(tmp_path, text)
    assert dataset.class_names == ["cat", "red_dog"]
    full, empty = dataset.samples
    assert full.boxes_xyxy.tolist() == [[2, 3, 12, 15], [0, 0, 5, 5]] and full.class_ids.tolist() == [1, 0]
    assert full.size_hw == (30, 40) and len(empty.boxes_xyxy) == 0
    assert [f.check for f in dataset.findings] == ["image-path-resolved"] * text.startswith("/home")


def test_bad_rows_cost_only_themselves(tmp_path):
    rows = [
        "a.png,cat,2,3,12,15",
        "a.png,cat,x,3,12,15",
        "a.png,cat,9,3,2,15",
        "a.png,,1,1,5,5",
        ",cat,1,1,2,2",
        "a.png,cat,1",
    ]
    text = "\n".join(["path,class,x1,y1,x2,y2", *rows])
    dataset = read(tmp_path, text)
    assert dataset.samples[0].boxes_xyxy.tolist() == [[2, 3, 12, 15]]
    assert {f.check: f.count for f in dataset.findings} == {
        "annotation-unknown-image": 1,
        "box-not-numbers": 2,
        "box-inverted": 1,
        "annotation-unknown-category": 1,
        "file-unused": 1,
    }
    assert "row 3 of a.png" in str(dataset.findings[1])


def test_files_named_after_splits_and_roboflows_folders(tmp_path):
    rows = "filename,width,height,class,xmin,ymin,xmax,ymax\na.png,40,30,cat,2,3,12,15\n"
    for split in ("train", "valid"):
        image(tmp_path / "one" / split / "a.png")
        (tmp_path / "one" / split / "_annotations.csv").write_text(rows)
        image(tmp_path / "two/images/a.png")
        (tmp_path / "two" / f"{split}.csv").write_text(rows)
    for folder in ("one", "two"):
        splits = load_splits(tmp_path / folder)
        assert {name: len(dataset.samples) for name, dataset in splits.items()} == {"train": 1, "valid": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("name,age\nx,3\n", "'name', 'age' are not those of boxes"),
        ("a\n", "not those of boxes"),
    ],
)
def test_other_columns_are_an_error(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path, text)


def test_corners_that_are_widths_are_an_error_not_a_guess(tmp_path):
    rows = "".join(f"a.png,{20 + i},{10 + i},5,{4 + i},cat\n" for i in range(6))
    with pytest.raises(DataError, match="look like x, y, width, height.* 6 of them"):
        read(tmp_path, rows)
