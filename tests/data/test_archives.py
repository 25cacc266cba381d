"""Archives in place of folders."""

import gzip
import io
import os
import stat
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from test_real_layouts import checks, coco, counts, in_folder, pic, put, xml, yolo  # noqa: F401

from groundtune.cli import main
from groundtune.data.formats.archive import CACHE
from groundtune.data.formats.detect import read_splits
from groundtune.errors import DataError


def zipped(path, folder, prefix=""):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(Path(folder).rglob("*")):
            if file.is_file():
                archive.write(file, prefix + file.relative_to(folder).as_posix())


def tarred(path, folder, mode):
    with tarfile.open(path, mode) as archive:
        archive.add(folder, arcname=".")


def refused(path, match):
    with pytest.raises(DataError, match=match) as error:
        read_splits(Path(path))
    assert str(path) in str(error.value)
    assert not any(Path(CACHE).glob("[!.]*")) and not any(Path(CACHE).glob(".*")), "something was left behind"


@pytest.mark.parametrize("name", ["e.zip", "E.ZIP", "e.tar", "e.tar.gz", "e.tgz"])
def test_every_kind(name):
    yolo("d/train", "abcd"), yolo("d/valid", "ef")
    put("d/data.yaml", "train: ../train/images\nval: ../valid/images\nnames: [cat]\n")
    if name.lower().endswith("zip"):
        zipped(name, "d")
    else:
        tarred(name, "d", "w" if name.endswith(".tar") else "w:gz")
    assert counts(name) == {"train": 4, "valid": 2}
    assert checks(name) == ["data-unpacked"]
    assert CACHE in read_splits(Path(name))["train"].samples[0].image_path.parts


@pytest.mark.parametrize("prefix", ["", "export/", "my set/deep/", "./", "train_2024/"])
def test_layouts_below_a_folder(prefix):
    for n in "ab":
        pic(f"c/train/{n}.jpg"), pic(f"v/JPEGImages/{n}.jpg"), put(f"v/Annotations/{n}.xml", xml(f"{n}.jpg"))
    put("c/train/_annotations.coco.json", coco(["a.jpg", "b.jpg"]))
    zipped("c.zip", "c", prefix), zipped("v.zip", "v", prefix)
    assert counts("c.zip") == counts("v.zip") == {"train": 2}


def test_a_zip_of_a_mac():
    pic("d/ä.jpg"), put("d/a.json", coco(["ä.jpg"])), put("d/.DS_Store", "x")
    put("d/__MACOSX/._a.json", "x"), put("d/._a.json", "x")
    zipped("e.zip", "d")
    whole = Path("e.zip").read_bytes()
    name = "ä.jpg".encode()
    for flags in (6, 8):  # bytes between the flags and the name, in both places of a name
        at = 0
        while (at := whole.find(name, at + 1)) > 0:
            start = at - (46 if whole[at - 46 : at - 42] == b"PK\x01\x02" else 30)
            flag = start + (flags if whole[start : start + 4] == b"PK\x03\x04" else 8)
            if flags == (6 if whole[start : start + 4] == b"PK\x03\x04" else 8):
                whole = whole[: flag + 1] + b"\x00" + whole[flag + 2 :]
    Path("e.zip").write_bytes(whole)
    assert zipfile.ZipFile("e.zip").namelist()[-1] != "ä.jpg"  # without the flag it reads otherwise
    assert counts("e.zip") == {"train": 1}
    assert not list(Path(CACHE).rglob("*MACOSX*")) and not list(Path(CACHE).rglob("._*"))


def test_it_is_unpacked_once_and_again_when_it_changes():
    pic("d/a.jpg"), put("d/a.json", coco(["a.jpg"]))
    zipped("e.zip", "d")
    path = read_splits(Path("e.zip"))["train"].samples[0].image_path
    before = path.stat().st_ino
    assert read_splits(Path("e.zip"))["train"].samples[0].image_path.stat().st_ino == before
    pic("d/b.jpg"), put("d/a.json", coco(["a.jpg", "b.jpg"]))
    zipped("e.zip", "d")
    assert counts("e.zip") == {"train": 2} and len(list(Path(CACHE).iterdir())) == 1


def test_the_cache_is_not_part_of_the_folder():
    pic("d/a.jpg"), put("d/a.json", coco(["a.jpg"])), zipped("d/e.zip", "d")
    assert counts("d/e.zip") == {"train": 1}
    assert counts("d") == {"train": 1} and checks("d") == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder(monkeypatch, tmp_path):
    pic("d/a.jpg"), put("d/a.json", coco(["a.jpg"])), zipped("d/e.zip", "d")
    os.chmod("d", 0o555)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    try:
        assert counts("d/e.zip") == {"train": 1}
    finally:
        os.chmod("d", 0o755)
    assert (tmp_path / "cache/groundtune").is_dir() and not Path("d", CACHE).exists()


def test_a_folder_that_cannot_be_written(monkeypatch, tmp_path):
    pic("d/a.jpg"), put("d/a.json", coco(["a.jpg"])), zipped("d/e.zip", "d")
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert counts("d/e.zip") == {"train": 1}
    assert (tmp_path / "cache/groundtune").is_dir() and not Path("d", CACHE).exists()


HOSTILE = [
    "../a.jpg",
    "/etc/a.jpg",
    "x/../../a.jpg",
    "..\\a.jpg",
    "C:\\a.jpg",
    "C:a.jpg",
    "__MACOSX/../../a.jpg",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_names_that_lead_out(name):
    with zipfile.ZipFile("e.zip", "w") as archive:
        archive.writestr("b.jpg", b"x"), archive.writestr(name, b"x")
    with tarfile.open("e.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    for file in ("e.zip", "e.tar.gz"):
        refused(file, "names that lead out of it: ")
    assert sorted(os.listdir()) == [CACHE, "e.tar.gz", "e.zip"] and not Path("../a.jpg").exists()


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
)
def test_links_and_devices_of_a_tar(kind):
    with tarfile.open("e.tar", "w") as archive:
        info = tarfile.TarInfo("images/a.jpg")
        info.type, info.linkname = kind, "../../../etc/passwd"
        archive.addfile(info)
    refused("e.tar", "links or devices: 'images/a.jpg'. If you trust it, unpack it with another tool")


def test_links_and_encrypted_files_of_a_zip():
    with zipfile.ZipFile("e.zip", "w") as archive:
        info = zipfile.ZipInfo("a.jpg")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    refused("e.zip", "links or devices: 'a.jpg'")
    with zipfile.ZipFile("e.zip", "w") as archive:
        archive.writestr("a.jpg", b"x")
    content = bytearray(Path("e.zip").read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    Path("e.zip").write_bytes(content)
    refused("e.zip", "encrypted files: 'a.jpg'")


def test_bombs():
    zeros = bytes(2**20)
    with zipfile.ZipFile("e.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(40):
            archive.writestr(f"{number}.txt", zeros)
    with tarfile.open("e.tar.gz", "w:gz") as archive:
        info = tarfile.TarInfo("a.txt")
        info.size = 40 * 2**20
        archive.addfile(info, io.BytesIO(zeros * 40))
    for file in ("e.zip", "e.tar.gz"):
        refused(file, "unpacks to more than 17 MB or .* files. The limits are 200 times its size")


def test_a_header_that_grows_in_memory():
    info = tarfile.TarInfo("././@PaxHeader")
    info.type, info.size = tarfile.XHDTYPE, 2**40
    for file, opened in (("e.tar", open), ("e.tgz", gzip.open)):
        with opened(file, "wb") as target:
            target.write(info.tobuf() + bytes(2**20))
        refused(file, "Cannot unpack|unpacks to more than")


@pytest.mark.parametrize("name", ["e.zip", "e.tar", "e.tar.gz"])
def test_damaged_archives_leave_nothing(name):
    for n in "abc":
        pic(f"d/{n}.jpg")
    put("d/a.json", coco(["a.jpg", "b.jpg", "c.jpg"]))
    zipped(name, "d") if name == "e.zip" else tarred(name, "d", "w" if name == "e.tar" else "w:gz")
    whole = Path(name).read_bytes()
    half = len(whole.rstrip(b"\0")) // 2
    changed = whole[:half] + bytes(300) + whole[half + 300 :]  # a tar file has no checksums of its files
    for content in (whole[:half], b"", b"no archive", *([changed] if name != "e.tar" else [])):
        Path(name).write_bytes(content)
        refused(name, "Cannot unpack e|is not a data set|No data set")
    Path(name).write_bytes(whole)
    assert counts(name) == {"train": 3}


def test_a_tar_whose_second_header_is_damaged():
    for n in "ab":
        pic(f"d/{n}.jpg")
    put("d/a.json", coco(["a.jpg", "b.jpg"])), tarred("e.tar", "d", "w")
    whole = bytearray(Path("e.tar").read_bytes())
    at = whole.index(b"./b.jpg")
    whole[at + 148 : at + 156] = b"7777777\0"  # the checksum
    Path("e.tar").write_bytes(whole)
    refused("e.tar", "a header is damaged|bad checksum")


def test_an_archive_without_a_data_set():
    put("d/readme.txt", "x"), zipped("e.zip", "d")
    with pytest.raises(DataError, match="No data set in .*e.zip.*Found: readme.txt"):
        read_splits(Path("e.zip"))


def test_convert_takes_an_archive(capsys):
    pic("d/a.jpg"), put("d/a.json", coco(["a.jpg"])), zipped("e.zip", "d")
    main(["convert", "e.zip", "out", "--format", "yolo"])
    assert "unpacked in .groundtune-cache/e.zip" in capsys.readouterr().err
    assert Path("out/train/labels/a.txt").read_text() == "0 0.375 0.375 0.25 0.25\n"


def test_a_full_disk_leaves_nothing_and_can_be_tried_again(monkeypatch):
    yolo("d/train", "ab"), put("d/data.yaml", "train: train/images\nnames: [cat]\n")
    zipped("d.zip", "d", "export/inner/")

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("groundtune.data.formats.archive.shutil.copyfileobj", full)
        with pytest.raises(DataError, match="d.zip: No space left on device. Unpack it elsewhere"):
            read_splits(Path("d.zip"))
    assert not [*Path(CACHE).iterdir()]
    assert counts("d.zip") == {"train": 2}


def test_processes_that_unpack_the_same_archive_agree():
    yolo("d/train", "abc"), put("d/data.yaml", "train: train/images\nnames: [cat]\n")
    zipped("d.zip", "d")
    with ThreadPoolExecutor(4) as pool:
        found = [*pool.map(lambda _: len(read_splits(Path("d.zip"))["train"].samples), range(4))]
    assert found == [3] * 4 and [path.name for path in Path(CACHE).iterdir()] == ["d.zip"]
