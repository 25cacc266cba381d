"""Hostile YAML: one message with the position, no traceback, little memory, no code."""

import random
from pathlib import Path

import pytest
from fuzz_files import mutate
from watch import watched, within

from groundtune.config import TrainConfig, to_yaml, train_config
from groundtune.data.formats.detect import load_splits
from groundtune.errors import ConfigError, DataError, GroundtuneError
from groundtune.files import parse_yaml

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
HOSTILE = {
    "aliases": (BOMB + "epochs: *i\n", r"at line 2, column 8: an alias \(\*name\) is not read"),
    "an alias of itself": ("data: &a [*a]\n", r"at line 1, column 11: an alias"),
    "merged": ("a: &a {epochs: 1}\n<<: *a\n", "an alias"),
    "deep": ("epochs: " + "[" * 2_000, "nested too deeply"),
    "deep mappings": ("{a: " * 2_000, "nested too deeply"),
    "long": ("# " + "x" * 2**21, "over 1,048,576 characters"),
    "a day that is none": ("epochs: 2001-99-99\n", "not YAML"),
    "a long number": ("epochs: " + "9" * 5000, "not YAML"),
    "an object": ("epochs: !!python/object/apply:os.mkdir [ran]\n", "could not determine a constructor"),
    "several documents": ("epochs: 1\n---\nepochs: 2\n", "not YAML"),
    "a list as a name": ("? [a]\n: 1\n", "not YAML"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_options_are_one_message(tmp_path: Path, monkeypatch, kind: str) -> None:
    monkeypatch.chdir(tmp_path)
    text, message = HOSTILE[kind]
    (tmp_path / "config.yaml").write_text(text)
    with within(60), watched() as seen, pytest.raises(ConfigError, match=message) as error:
        train_config({"data": "d"}, tmp_path / "config.yaml", {})
    assert seen == [] and len(str(error.value)) < 400 and not (tmp_path / "ran").exists()


def test_plain_options_are_read_as_yaml_reads_them() -> None:
    text = "a: 1\nb: [x, 2.5, true, null]\nc: {d: '*no alias'}\ne: 2001-01-02T00:00:00Z\n"
    import yaml

    assert parse_yaml(text) == yaml.safe_load(text) and parse_yaml("") is None
    assert parse_yaml(to_yaml(TrainConfig(data="d")))["data"] == "d"


def test_a_bomb_in_a_data_yaml_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for text in (
        f"{BOMB}names: *i\ntrain: images\n",
        f"names: [cat]\n{BOMB}train: *i\n",
        "names: " + "[" * 2_000,
    ):
        (tmp_path / "data.yaml").write_text(text)
        with within(60), pytest.raises(DataError) as error:
            load_splits(tmp_path)
        assert len(str(error.value)) < 400


def fuzz(count: int, folder: Path) -> tuple[int, int]:
    sound = to_yaml(TrainConfig(data="d", rename={"rbc": "red blood cell"}, multi_scale=[0.8, 1.2])).encode()
    rng, read, refused = random.Random(0), 0, 0
    for _ in range(count):
        (folder / "config.yaml").write_bytes(corrupted := mutate(sound, "config.yaml", rng))
        try:
            with within(60), watched() as seen:
                train_config({}, folder / "config.yaml", {})
            read += 1
        except GroundtuneError as error:
            refused += 1
            assert len(str(error)) < 20_000, corrupted
        assert seen == []
    return read, refused


def test_corrupted_options_are_read_or_rejected(tmp_path: Path) -> None:
    read, refused = fuzz(40, tmp_path)
    assert read and refused


@pytest.mark.slow
def test_5000_corrupted_options(tmp_path: Path) -> None:
    read, refused = fuzz(5000, tmp_path)
    assert read > 100 and refused > 1000
