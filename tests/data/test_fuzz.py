"""Corrupted annotation files: each loads or is one DataError, and nothing outside the folder is
opened.
"""

import os
import random
import resource
import shutil
import sys
from pathlib import Path

import pytest
from fuzz_files import LINES, SETS, make_set, mutate
from watch import within

from groundtune.data.formats.detect import load_splits
from groundtune.errors import DataError

CHANGES = {"os.remove", "os.rename", "os.mkdir", "os.symlink"}
_watch: dict[str, object] = {"inside": None, "touched": []}


def _hook(event: str, args: tuple) -> None:
    """Record all files outside the watched folder that Python opens or lists, and all that it
    changes.
    """
    inside = _watch["inside"]
    if inside is None or event not in {"open", "os.listdir", "os.scandir"} | CHANGES:
        return
    path = args[0]
    if isinstance(path, str | bytes | os.PathLike):
        at = os.path.abspath(os.fsdecode(path))
        if not at.startswith((str(inside), sys.prefix, sys.base_prefix)) and "/src/groundtune/" not in at:
            _watch["touched"].append((event, at))
    if event in CHANGES:
        _watch["touched"].append((event, str(path)))


sys.addaudithook(_hook)  # cannot be removed again; it does nothing unless a folder is watched


def fuzz(kind: str, count: int, seed: int, tmp_path: Path) -> tuple[int, int]:
    loaded = rejected = 0
    rng = random.Random(f"{kind}/{seed}")
    folder = tmp_path / "data"
    files = make_set(kind, folder)
    valid = {path: path.read_bytes() for path in files}
    assert sum(len(d.samples) for d in load_splits(folder).values()) >= 2
    for number in range(count):
        path = rng.choice(files)
        corrupted = mutate(valid[path], rng)
        path.write_bytes(corrupted)
        _watch.update(inside=folder, touched=[])
        try:
            with within(60):
                splits = load_splits(folder, keep_going=rng.random() < 0.3)
            loaded += 1
            for dataset in splits.values():
                "".join(dataset.messages).encode()  # no halves of surrogate pairs
                for sample in dataset.samples:
                    assert str(sample.image_path.resolve()).startswith(str(folder.resolve()))
                    assert (sample.boxes_xyxy[:, 2:] > sample.boxes_xyxy[:, :2]).all()
                    classes = dataset.class_names if sample.grounding is None else sample.grounding.phrases
                    assert all(0 <= c < len(classes) for c in sample.class_ids)
        except DataError as error:
            rejected += 1
            assert str(error).strip()
        except Exception as error:
            keep = Path(os.environ.get("FUZZ_KEEP", tmp_path)) / f"{kind}-{seed}-{number}-{path.name}"
            keep.write_bytes(corrupted)
            raise AssertionError(
                f"{kind} {number}: {type(error).__name__}: {error}; the file is {keep}"
            ) from error
        finally:
            _watch["inside"] = None
        assert not _watch["touched"], (kind, number, _watch["touched"])
        path.write_bytes(valid[path])
    return loaded, rejected


@pytest.mark.parametrize("kind", SETS)
def test_corrupted_files_load_or_are_one_data_error(tmp_path, kind):
    loaded, rejected = fuzz(kind, 45, 0, tmp_path)
    assert loaded and (rejected or kind in LINES)  # whose rows are dropped one by one


@pytest.mark.slow
@pytest.mark.parametrize("kind", SETS)
def test_ten_thousand_corrupted_files(tmp_path, kind):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    loaded, rejected = fuzz(kind, 700, 1, tmp_path)
    assert loaded > 100 and (rejected > 100 or kind in LINES)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 300 * 1024  # KB of memory


def test_a_path_that_leads_out_is_not_opened(tmp_path):
    for kind in SETS:
        shutil.rmtree(tmp_path / "data", ignore_errors=True)
        files = make_set(kind, tmp_path / "data")
        (tmp_path / "outside.png").write_bytes(b"secret")
        for path in files:
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
