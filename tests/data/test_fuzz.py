"""Corrupted annotation files: each loads or is one DataError, and nothing outside the folder is
opened.
"""

import json
import os
import random
import resource
import shutil
import sys
import time
from pathlib import Path

import pytest
from fuzz_files import LINES, SETS, make_set, mutate
from watch import within

from groundtune.config import DATA_FORMATS as FORMATS
from groundtune.data.check.kinds import ModelLimits
from groundtune.data.check.names import alike_names
from groundtune.data.check.run import check_data
from groundtune.data.formats.archive import CACHE
from groundtune.data.formats.convert import write_data
from groundtune.data.formats.detect import Splits, load_splits
from groundtune.errors import DataError

COUNT = -(-10_000 // len(SETS))  # files of each kind
CHANGES = {"os.remove", "os.rename", "os.mkdir", "os.symlink"}
_watch: dict[str, object] = {"inside": None, "touched": [], "unpacks": False}


def _hook(event: str, args: tuple) -> None:
    """Record all files outside the watched folder that Python opens or lists, and all that it
    changes.
    """
    inside = _watch["inside"]
    if inside is None or event not in {"open", "os.listdir", "os.scandir"} | CHANGES:
        return
    path = args[0]
    if isinstance(path, str | bytes | os.PathLike):
        if _watch["unpacks"] and not os.path.isabs(path):  # shutil.rmtree, relative to a folder
            return
        at = os.path.abspath(os.fsdecode(path))
        if not at.startswith((str(inside), sys.prefix, sys.base_prefix)) and "/src/groundtune/" not in at:
            _watch["touched"].append((event, at))
    if event in CHANGES and CACHE not in str(path):
        _watch["touched"].append((event, str(path)))


sys.addaudithook(_hook)  # cannot be removed again; it does nothing unless a folder is watched


def fuzz(kind: str, count: int, seed: int, tmp_path: Path, tokenizer) -> tuple[int, int]:
    loaded = rejected = 0
    rng = random.Random(f"{kind}/{seed}")
    folder = tmp_path / "data"
    files = make_set(kind, folder)
    entry = files[0] if kind in ("zip", "tar") else folder
    valid = {path: path.read_bytes() for path in files}
    assert sum(len(d.samples) for d in load_splits(entry).values()) >= 2
    for number in range(count):
        path = rng.choice(files)
        corrupted = mutate(valid[path], path.name, rng)
        path.write_bytes(corrupted)
        _watch.update(inside=folder, touched=[], unpacks=kind in ("zip", "tar", "parquet"))
        began = time.process_time()
        try:
            with within(60):
                splits = load_splits(entry, keep_going=rng.random() < 0.3)
            _watch["inside"] = None
            loaded += 1
            _check_splits(splits, folder, tmp_path / "written", FORMATS[number % len(FORMATS)], tokenizer)
        except DataError as error:
            rejected += 1
            assert str(error).strip() and str(error).isprintable() or "\n" in str(error)
        except Exception as error:
            keep = Path(os.environ.get("FUZZ_KEEP", tmp_path)) / f"{kind}-{seed}-{number}-{path.name}"
            keep.write_bytes(corrupted)
            raise AssertionError(
                f"{kind} {number}: {type(error).__name__}: {error}; the file is {keep}"
            ) from error
        finally:
            _watch["inside"] = None
            shutil.rmtree(tmp_path / "written", ignore_errors=True)
        assert time.process_time() - began < 10, (kind, number)
        assert not _watch["touched"], (kind, number, _watch["touched"])
        path.write_bytes(valid[path])
    return loaded, rejected


def _check_splits(splits: Splits, folder: Path, out: Path, format: str, tokenizer) -> None:
    """Assert that what was read is sound, and that it can be checked and written."""
    for dataset in splits.values():
        "".join(dataset.messages).encode()  # no halves of surrogate pairs
        for sample in dataset.samples:
            assert str(sample.image_path.resolve()).startswith(str(folder.resolve()))
            assert (sample.boxes_xyxy[:, 2:] > sample.boxes_xyxy[:, :2]).all()
            classes = dataset.class_names if sample.grounding is None else sample.grounding.phrases
            assert all(0 <= c < len(classes) for c in sample.class_ids)
    report = check_data("data", splits, ModelLimits(tokenizer, 256, 100, 800, 1333), files=True, workers=1)
    json.dumps(report.as_dict()).encode()
    write_data(splits, out, format, link=True)


@pytest.mark.parametrize("kind", SETS)
def test_corrupted_files_load_or_are_one_data_error(tmp_path, kind, tokenizer):
    loaded, rejected = fuzz(kind, 45, 0, tmp_path, tokenizer)
    assert (loaded or kind == "parquet") and (rejected or kind in LINES)  # whose rows are dropped one by one


@pytest.mark.slow
@pytest.mark.parametrize("kind", SETS)
def test_ten_thousand_corrupted_files(tmp_path, kind, tokenizer):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    loaded, rejected = fuzz(kind, COUNT, 1, tmp_path, tokenizer)
    assert loaded > 10 and (rejected > 20 or kind in LINES)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 300 * 1024  # KB of memory


def test_a_path_that_leads_out_is_not_opened(tmp_path):
    for kind in SETS:
        shutil.rmtree(tmp_path / "data", ignore_errors=True)
        files = make_set(kind, tmp_path / "data")
        (tmp_path / "outside.png").write_bytes(b"secret")
        for path in [file for file in files if file.suffix not in (".zip", ".gz", ".parquet")]:
            text = path.read_text()
            for name in ("a.png", "images"):
                path.write_text(text.replace(name, "../outside.png" if name == "a.png" else "../.."))
                _watch.update(inside=tmp_path / "data", touched=[])
                try:
                    load_splits(tmp_path / "data")
                except DataError:
                    pass
                finally:
                    _watch["inside"] = None
                assert not _watch["touched"], (kind, path, _watch["touched"])
            path.write_text(text)


def test_a_table_without_rows(tmp_path):
    (tmp_path / "metadata.csv").write_text('file_name,objects,"bbox"\n')
    with pytest.raises(DataError, match="metadata.csv lists no images"):
        load_splits(tmp_path)


def test_long_cells_of_class_names(tmp_path):
    files = make_set("open_images", tmp_path / "data")
    files[1].write_text("/m/01yrx," + "x" * 200_000)
    with pytest.raises(DataError, match=r"class-descriptions-boxable\.csv: it is not CSV: field larger"):
        load_splits(tmp_path / "data")


def test_long_names_are_not_compared_letter_by_letter():
    assert alike_names(["x" * 600_000, "control", "contol"]) == [("control", "contol")]


def test_label_files_of_an_image_have_a_limit(tmp_path):
    files = make_set("yolo", tmp_path / "data")
    with files[2].open("ab") as file:
        file.truncate(2**26 + 1)  # takes no space
    findings = load_splits(tmp_path / "data", keep_going=True)["train"].findings
    assert findings[0].check == "annotation-file-unreadable"
    assert findings[0].examples == ["a.txt (it has over 67,108,864 bytes)"]
