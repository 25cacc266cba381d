"""WIDER FACE: one text file per split."""

from pathlib import Path

from test_real_layouts import checks, counts, in_folder, pic, put  # noqa: F401

from groundtune.data.formats.detect import read_splits

FACES = "0--Parade/0_Parade_a_1.jpg\n1\n40 30 40 30 0 0 0 0 0 0 \n1--Hand shaking/b.jpg\n1\n40 30 40 30 2 0 0 0 0 0 \n"


def wider(text=FACES):
    for part in ("train", "val"):
        pic(f"d/WIDER_{part}/images/0--Parade/0_Parade_a_1.jpg")
        pic(f"d/WIDER_{part}/images/1--Hand shaking/b.jpg")
        put(f"d/wider_face_split/wider_face_{part}_bbx_gt.txt", text)


def test_splits_and_faces():
    wider()
    assert counts("d", ["face"]) == {"train": 2, "valid": 2}
    paths = {str(each.image_path) for each in read_splits(Path("d"))["valid"].samples}
    assert paths == {
        "d/WIDER_val/images/0--Parade/0_Parade_a_1.jpg",
        "d/WIDER_val/images/1--Hand shaking/b.jpg",
    }
    assert checks("d") == []


def test_no_face_and_invalid_faces():
    pic("d/WIDER_train/images/2--Group/c.jpg")
    wider(FACES.replace("0 0 0 \n1--", "1 0 0 \n1--") + "2--Group/c.jpg\n0\n0 0 0 0 0 0 0 0 0 0 \n")
    put("d/wider_face_split/wider_face_val_bbx_gt.txt", FACES)
    samples = read_splits(Path("d"))["train"].samples
    assert [each.crowd.tolist() for each in samples] == [[True], [False], []]


def test_broken_lines_are_counted():
    wider(FACES + "x y z 1\n")
    finding = read_splits(Path("d"))["train"].findings[0]
    assert finding.check == "annotation-broken" and finding.examples == ["line 7 'x y z 1'"]
