"""Hugging Face's Parquet files: an image and its `objects` in each row (see `hf`).

Splits are files, maybe several: `data/train-00000-of-00002.parquet`. Images inside the files are
unpacked once into a cache beside them (see `archive`). Names of categories are those that the
schema states. Requires pyarrow: `pip install groundtune[parquet]`.

Source: https://huggingface.co/docs/hub/datasets-image (Parquet), `datasets.Features`.
"""

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from posixpath import dirname, splitext
from typing import Any

from groundtune.data.formats.archive import Budget, unpacked
from groundtune.data.formats.files import find_name_list, image_folders, is_text
from groundtune.data.formats.hf import add_classes, add_objects, label_names
from groundtune.data.formats.records import Evidence, RawData, RawImage, Source
from groundtune.data.formats.tree import Tree
from groundtune.data.formats.words import split_of
from groundtune.data.images import IMAGE_SUFFIXES
from groundtune.errors import DataError

_BATCH = 64  # rows
_SIZES = ("height", "width")


def recognize(tree: Tree) -> Evidence | None:
    """Recognize Parquet files with the columns `image` and `objects`."""
    files = tree.declared(".parquet")
    if not files:
        return None
    try:
        import pyarrow.parquet as pq
    except ImportError:
        reason = f"{tree.root / files[0]}: Parquet requires pyarrow. Run: pip install groundtune[parquet]"
        return Evidence("parquet", 1, {}, {"": reason}, files[0])
    groups: dict[str, list[str]] = {}
    refused = {}
    for file in files:
        split = split_of(file) or ""
        try:
            schema = pq.read_schema(tree.root / file)
        except Exception as error:  # of any kind; pyarrow raises many for broken files
            refused[split] = f"Cannot read {tree.root / file}: {error}. Download it again."
            continue
        if {"image", "objects"} <= {*schema.names}:
            groups.setdefault(split, []).append(file)
    if not groups:
        return Evidence("parquet", 1, {}, refused, files[0]) if refused else None
    sources = {split: _source(tree, its) for split, its in groups.items() if split not in refused}
    return Evidence("parquet", 2, sources, refused, files[0])


def _source(tree: Tree, files: Sequence[str]) -> Source:
    listed = find_name_list(tree, [dirname(files[0]), ""])
    paths = [tree.root / file for file in files]
    return Source(paths[0], image_folders(tree, files[0]), lambda path: _read(path, paths, listed))


def _read(path: Path, paths: Sequence[Path], listed: Sequence[str]) -> RawData:
    try:
        return _raw(path, paths, listed)
    except DataError:
        raise
    except Exception as error:  # of any kind; pyarrow raises many for broken files
        raise DataError(f"Cannot read {path}: {error}. Download it again.") from error


def _raw(path: Path, paths: Sequence[Path], listed: Sequence[str]) -> RawData:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pq.read_schema(path)
    names = listed or label_names(json.loads((schema.metadata or {}).get(b"huggingface", b"null")))
    columns = ["objects", *(side for side in _SIZES if side in schema.names)]
    image_type = schema.field("image").type
    if pa.types.is_string(image_type):
        columns.append("image")
    elif pa.types.is_struct(image_type) and image_type.get_field_index("path") >= 0:
        columns.append("image.path")
    tree = Tree(unpacked(paths, partial(_extract, paths)))
    inside = {splitext(file)[0]: file for file in tree.files}
    raw = RawData(path, "xywh", states_size={*_SIZES} <= {*columns}, tree=tree if inside else None)
    for index, row in enumerate(_rows(paths, columns)):
        name = inside.get(_stem(index)) if inside else _path(row.get("image"))
        if not name:
            raw.problems.add("image-broken", f"row {index} without an image")
            continue
        image = RawImage((name,), f"row {index}", (row.get("height"), row.get("width")))
        raw.images.append(image)
        add_objects(image, row.get("objects"), names, raw)
    add_classes(raw, names)
    return raw


def _rows(paths: Sequence[Path], columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq

    for path in paths:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_BATCH, columns=columns):
                yield from batch.to_pylist()


def _extract(paths: Sequence[Path], folder: Path) -> None:
    """Write the images inside the files."""
    budget = Budget(paths, folder)
    for index, row in enumerate(_rows(paths, ["image"])):
        image = row.get("image")
        content = image.get("bytes") if isinstance(image, dict) else image
        if isinstance(content, bytes):
            budget.spend(len(content))
            stated = splitext(_path(image) or "")[1].lower()
            guessed = ".png" if content.startswith(b"\x89PNG") else ".jpg"
            suffix = stated if stated in IMAGE_SUFFIXES else guessed
            (folder / f"{_stem(index)}{suffix}").write_bytes(content)


def _stem(index: int) -> str:
    return f"{index:07d}"


def _path(image: Any) -> str | None:
    """Return the path in a value of the column `image`."""
    path = image.get("path") if isinstance(image, dict) else image
    return path.replace("\\", "/") if is_text(path) else None
