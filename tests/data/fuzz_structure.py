"""Changes of the structure of annotation files: values, columns, elements and members of archives."""

import copy
import csv
import gzip
import io
import json
import random
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

_VALUES: list[Any] = [
    None, True, "", [], {}, [[]], [None], {"a": 1}, 0, -1, 1.5, 1e308, -1e308, 10**400, 2**63, -(2**64), float("nan"), float("inf"),
    "nan", "\u0663", "\u00b2", "\x00", "\ud800", "x" * 70_000, "../../outside.png", "/etc/passwd", [1, 2, 3, 4], [[1, 2], [3, 4]],
    {"x": "y"}, {"counts": [9e9, -1], "size": [30, 40]}, {"counts": "\u00ff" * 9, "size": [-1, 10**12]}, {"counts": "0", "size": [1e5, 1e5]},
]  # fmt: skip
_NUMBERS = [
    "nan",
    "inf",
    "-inf",
    "1e308",
    "-1",
    "",
    "\u0663",
    "\u00b2",
    "1_0",
    "0x1",
    "9" * 5000,
    "-0",
    "1e-320",
    "1.",
    "2.5",
    "\U0001d7d8",
]
_NAMES = [
    "../a.png",
    "/a.png",
    "C:\\a.png",
    "a\x00.png",
    "",
    ".",
    "x" * 300,
    "a/" * 200 + "a.png",
    "con",
    "\u202ea.png",
]


def change(content: bytes, name: str, rng: random.Random) -> bytes:
    """Return a file with one change of its structure; unchanged if it has none."""
    ways: dict[str, Callable[[bytes, random.Random], bytes]] = {
        ".json": _json, ".jsonl": _json_lines, ".ndjson": _json_lines, ".csv": _csv, ".xml": _xml, ".zip": _zip, ".gz": _gzip, ".parquet": _parquet,
    }  # fmt: skip
    way = ways.get(Path(name).suffix, _words)
    try:
        return way(content, rng)
    except (
        ValueError,
        csv.Error,
        ElementTree.ParseError,
        OSError,
        zipfile.BadZipFile,
    ):  # not the first change
        return _words(content, rng)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Return every container with each of its keys."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [(value, key) for key in keys] + [place for key in keys for place in _places(value[key])]


def _change_value(value: Any, rng: random.Random) -> Any:
    places = _places(value)
    if not places or rng.random() < 0.03:
        return rng.choice(_VALUES)
    holder, key = rng.choice(places)
    way = rng.random()
    if way < 0.6:
        holder[key] = rng.choice(_VALUES)
    elif way < 0.7:
        del holder[key]
    elif way < 0.8:
        holder[key] = [holder[key], holder[key]]
    elif way < 0.9 and isinstance(holder, list):
        holder.insert(key, holder[key])
    else:
        other, its_key = rng.choice(places)
        holder[key] = copy.deepcopy(other[its_key]) if its_key in _keys(other) else None
    return value


def _keys(value: Any) -> Any:
    return value if isinstance(value, dict) else range(len(value))


def _json(content: bytes, rng: random.Random) -> bytes:
    return json.dumps(_change_value(json.loads(content), rng)).encode()


def _json_lines(content: bytes, rng: random.Random) -> bytes:
    lines = content.splitlines()
    number = rng.randrange(len(lines)) if lines else 0
    lines[number : number + 1] = [_json(lines[number], rng)] if lines else []
    return b"\n".join(lines)


def _csv(content: bytes, rng: random.Random) -> bytes:
    rows = list(csv.reader(io.StringIO(content.decode())))
    width = max(map(len, rows), default=0)
    column = rng.randrange(width or 1)
    way = rng.randrange(4)
    for row in rows if way < 3 else [rng.choice(rows)] if rows else []:
        if column < len(row) and way == 0:
            del row[column]
        elif column < len(row) and way == 1:
            row.insert(rng.randrange(width), row[column])
        elif way == 2:
            rng.shuffle(row)
        elif column < len(row):
            try:
                row[column] = _json(row[column].encode(), rng).decode()
            except ValueError:
                row[column] = rng.choice([*_NUMBERS, "x" * 140_000, "[1, 2]", "{", "../../outside.png"])
    out = io.StringIO()
    csv.writer(out).writerows(rows)
    return out.getvalue().encode("utf-8", "replace")


def _xml(content: bytes, rng: random.Random) -> bytes:
    root = ElementTree.fromstring(content)
    parent, child = rng.choice([(parent, child) for parent in root.iter() for child in parent])
    way = rng.randrange(5)
    if way == 0:
        parent.remove(child)
    elif way == 1:
        parent.append(child)
    elif way == 2:
        rng.choice(list(root.iter())).append(ElementTree.fromstring(ElementTree.tostring(child)))
    elif way == 3 and child.attrib:
        child.set(
            rng.choice(list(child.attrib)), rng.choice([*_NUMBERS, "../../outside.png", "1,2;3", ";", ","])
        )
    else:
        child.text = rng.choice([*_NUMBERS, "../../outside.png", "train", "x" * 70_000])
    return ElementTree.tostring(root)


def _words(content: bytes, rng: random.Random) -> bytes:
    """Replace, drop or double a number or a word of a text, or one of its lines."""
    text = content.decode("utf-8", "replace")
    found = list(re.finditer(r"[-\w.]+|[^\n]*\n", text))
    if not found:
        return content
    match = rng.choice(found)
    new = rng.choice(
        [
            *_NUMBERS,
            match[0] * 2,
            match[0] + " " + match[0],
            "../..",
            "a.png",
            "- " + match[0],
            "*",
            "~",
            "{}",
            "[]",
        ]
    )
    return (text[: match.start()] + new + text[match.end() :]).encode("utf-8", "replace")


def _zip(content: bytes, rng: random.Random) -> bytes:
    """Rename, double, link or change a member, or add a bomb, an archive or many files."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    out = io.BytesIO()
    way, chosen = rng.randrange(8), rng.choice(list(members))
    with zipfile.ZipFile(
        out, "w", rng.choice([zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED, zipfile.ZIP_BZIP2])
    ) as archive:
        for name, member in members.items():
            info = zipfile.ZipInfo(rng.choice(_NAMES) if way == 0 and name == chosen else name)
            if way == 1 and name == chosen:
                info.external_attr = rng.choice([0o120777, 0o010777, 0o040777, 0]) << 16
            if way == 2 and name == chosen:
                member = change(member, name, rng)
            if name != chosen or way != 3:
                archive.writestr(info, member)
        if way == 4:
            archive.writestr("bomb.json", bytes(rng.choice([10**6, 2 * 10**7])), zipfile.ZIP_DEFLATED)
        if way == 5:
            archive.writestr(f"inner{len(members)}.zip", content)
        if way == 6:
            for number in range(2000):
                archive.writestr(f"{number}/{number}.txt", b"")
        if way == 7:
            archive.writestr(chosen + "/a.png", b"x")  # a file that is also a folder
    return out.getvalue()


def _gzip(content: bytes, rng: random.Random) -> bytes:
    data = bytearray(gzip.decompress(content))
    data[rng.randrange(len(data))] = rng.randrange(256)
    return gzip.compress(data)


def _parquet(content: bytes, rng: random.Random) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(io.BytesIO(content))
    rows = _change_value(table.to_pylist(), rng)
    out = io.BytesIO()
    try:
        pq.write_table(pa.Table.from_pylist(rows).replace_schema_metadata(table.schema.metadata), out)
    except (pa.ArrowException, AttributeError, KeyError, TypeError, OverflowError, UnicodeError) as error:
        raise ValueError from error
    return out.getvalue()
