"""More small data sets to corrupt: layouts of the same readers, and archives."""

import io
import json
import zipfile
from pathlib import Path

from coco_files import coco, image

NAMES = ["a.png", "b.png", "c.png"]
BOXES = [(1, 1, [2, 3, 10, 12]), (2, 7, [1, 1, 30, 20]), (3, 1, [0.5, 0, 1.25, 30])]


def _write(folder: Path, texts: dict[str, str]) -> list[Path]:
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return [folder / name for name in texts]


def lvis_set(folder: Path) -> list[Path]:
    content = coco(NAMES, BOXES, [(1, "cat"), (7, "dog")])
    for row in content["images"]:
        row |= {"neg_category_ids": [7], "not_exhaustive_category_ids": [1]}
        row["coco_url"] = f"http://images.cocodataset.org/val2017/{row.pop('file_name')}"
    for row in content["categories"]:
        row |= {"frequency": "c", "supercategory": "none"}
    return _write(folder, {"lvis.json": json.dumps(content)})


def masks_set(folder: Path) -> list[Path]:
    content = coco(NAMES, BOXES, [(1, "cat"), (7, "dog")])
    masks = [
        [[1, 1, 9, 1, 9, 9]],
        {"counts": [31, 9, 1160], "size": [30, 40]},
        {"counts": "o0900000`T1", "size": [30, 40]},
    ]
    for row, mask in zip(content["annotations"], masks, strict=True):
        row |= {"segmentation": mask, "bbox": []}
    return _write(folder, {"masks.json": json.dumps(content)})


def darknet_set(folder: Path) -> list[Path]:
    texts = {
        "obj.data": "classes = 2\ntrain = data/train.txt\nvalid = data/valid.txt\nnames = data/obj.names\n"
    }
    texts |= {
        "obj.names": "cat\nred dog\n",
        "train.txt": "data/obj/a.png\ndata/obj/b.png\n",
        "valid.txt": "data/obj/c.png\n",
    }
    for name in NAMES:
        image(folder / "obj" / name)
        texts[f"obj/{name[0]}.txt"] = "0 0.5 0.5 0.2 0.4\n1 0.4 0.4 0.2 0.2 0.9\n"
    return _write(folder, texts)


def yolo_folders_set(folder: Path) -> list[Path]:
    texts = {"classes.txt": "cat\nred dog\n"}
    for name in NAMES:
        image(folder / "images/train" / name)
        texts[f"labels/train/{name[0]}.txt"] = "0 0.5 0.5 0.2 0.4 0.5 0.5 2\n1 0.4 0.4 0.2 0.2 0.4 0.4 1\n"
    return _write(folder, texts)


def open_images_set(folder: Path) -> list[Path]:
    head = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf\n"
    rows = "".join(f"{name[0]},x,/m/01yrx,1,0.1,0.5,0.2,0.6,0,0,{int(name > 'b')}\n" for name in NAMES)
    names = {"class-descriptions-boxable.csv": "/m/01yrx,Cat\n/m/0bt9lr,Dog\n"}
    return _write(folder, {"train-annotations-bbox.csv": head + rows} | names)


def sku_set(folder: Path) -> list[Path]:
    return _write(
        folder, {"annotations_train.csv": "".join(f"{name},2,3,12,15,object,40,30\n" for name in NAMES)}
    )


def kaggle_set(folder: Path) -> list[Path]:
    rows = "".join(f'{name[0]},40,30,"[2, 3, 10, 12]",usask_1\n' for name in NAMES)
    return _write(folder, {"train.csv": "image_id,width,height,bbox,source\n" + rows})


def tracks_set(folder: Path) -> list[Path]:
    for number in range(3):
        image(folder / "images" / f"frame_{number:06}.png")
    shape = '<box frame="{}" outside="{}" occluded="0" keyframe="1" xtl="2" ytl="3" xbr="12" ybr="15"/>'
    shapes = "".join(shape.format(number, int(number == 2)) for number in range(3))
    size = "<original_size><width>40</width><height>30</height></original_size>"
    text = f'<annotations><meta><task>{size}</task></meta><track id="0" label="cat">{shapes}</track></annotations>'
    return _write(folder, {"annotations.xml": text})


def json_min_set(folder: Path) -> list[Path]:
    shape = {
        "x": 5,
        "y": 10,
        "width": 25,
        "height": 40,
        "rotation": 0,
        "original_width": 40,
        "original_height": 30,
    }
    rows = [
        {"image": f"/data/upload/1/0a1b2c3d-{name}", "id": number, "label": [shape | {"rectanglelabels": ["cat"]}], "annotation_id": number}
        for number, name in enumerate(NAMES)
    ]  # fmt: skip
    return _write(folder, {"tasks.json": json.dumps(rows)})


def parquet_set(folder: Path) -> list[Path]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    content = image(folder / "a.png").read_bytes()
    (folder / "a.png").unlink()
    objects = {"bbox": [[2.0, 3.0, 10.0, 12.0]], "category": [1], "iscrowd": [0]}
    rows = [
        {"image": {"bytes": content, "path": name}, "width": 40, "height": 30, "objects": objects}
        for name in NAMES
    ]
    classes = {"feature": {"bbox": {}, "category": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}
    info = json.dumps({"info": {"features": {"objects": classes}}})
    path = folder / "data/train-00000-of-00001.parquet"
    path.parent.mkdir()
    pq.write_table(pa.Table.from_pylist(rows).replace_schema_metadata({"huggingface": info}), path)
    return [path]


def zip_set(folder: Path) -> list[Path]:
    content = io.BytesIO()
    picture = image(folder / "a.png").read_bytes()
    (folder / "a.png").unlink()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in NAMES:
            archive.writestr(f"train/{name}", picture)
        archive.writestr(
            "train/_annotations.coco.json", json.dumps(coco(NAMES, BOXES, [(1, "cat"), (7, "dog")]))
        )
    (folder / "export.zip").write_bytes(content.getvalue())
    return [folder / "export.zip"]


def tar_set(folder: Path) -> list[Path]:
    import tarfile

    (zipped,) = zip_set(folder)
    with tarfile.open(folder / "export.tar.gz", "w:gz") as out, zipfile.ZipFile(zipped) as archive:
        for info in archive.infolist():
            member = tarfile.TarInfo(info.filename)
            member.size = info.file_size
            out.addfile(member, archive.open(info))
    zipped.unlink()
    return [folder / "export.tar.gz"]
