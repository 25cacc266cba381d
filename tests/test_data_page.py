"""The page about data sets: every tree and file on it is written, and read with the right box."""

import re
from pathlib import Path

import pytest
from PIL import Image

from groundtune.cli import main
from groundtune.data.formats.detect import READERS, read_splits

PAGE = (Path(__file__).parents[1] / "docs/data.md").read_text(encoding="utf-8")
SECTIONS = [section for section in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:] if "```" in section]
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.DOTALL | re.MULTILINE)


def leaves(tree: str) -> list[str]:
    """Return the files of a tree as it is drawn."""
    entries: list[tuple[int, str]] = []
    for line in tree.splitlines():
        indent, name = re.fullmatch(r"([│├└─\s]*)(\S.*)", line).groups()
        entries.append((len(indent) // 4, name.strip()))
    paths, folders = [], []
    for (depth, name), (following, _) in zip(entries, [*entries[1:], (0, "")], strict=True):
        folders[depth:] = [name]
        if following <= depth:
            paths.append("/".join(folders))
    return paths


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.splitlines()[0])
def test_the_layouts_of_the_page_are_read(section, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (_, _, tree), *files, (language, _, command) = BLOCK.findall(section)
    contents = {name: text for _, names, text in files for name in names.split(", ")}
    for path in map(Path, leaves(tree)):
        path.parent.mkdir(parents=True, exist_ok=True)
        if str(path) in contents:
            path.write_text(contents.pop(str(path)), encoding="utf-8")
        else:
            image = Image.new("RGB", (160, 120), (len(str(path)) * 9 % 200, 140, 90))
            image.paste((220, 20, 20), (40, 30, 80, 60))
            image.save(path)
    assert not contents and language == "bash"
    assert main(command.split()[1:]) == 0
    splits = read_splits(Path(command.split()[2]))
    assert "train" in splits
    for dataset in splits.values():
        assert dataset.class_names in (["cat"], [])
        assert [sample.boxes_xyxy.tolist() for sample in dataset.samples] == [[[40, 30, 80, 60]]] * len(
            dataset.samples
        )


def test_every_reader_is_on_the_page():
    assert set(READERS) <= set(re.findall(r"`([\w-]+)`:", PAGE))
