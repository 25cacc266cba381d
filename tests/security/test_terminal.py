"""Text from untrusted files on the terminal: control characters are escaped, and names are cleaned
quickly.
"""

import json
import re
from pathlib import Path

import pytest
from coco_files import coco, image
from watch import within

from groundtune.cli import main
from groundtune.data.problems import CheckSpec, Collector
from groundtune.errors import DataError, GroundtuneError, escape_control_chars
from groundtune.text.prompt import clean_name

COMMANDS = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202etxt.exe\u2066\r\x08"
OBEYED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def test_messages_escape_control_characters() -> None:
    assert escape_control_chars("a\x1b[2J\u202eb\nc") == r"a\x1b[2J\u202eb" + "\nc"
    assert not OBEYED.search(str(DataError(f"the file {COMMANDS}")))
    found = Collector({"bad": CheckSpec("error", "{n} files.", "None.")})
    found.add("bad", COMMANDS)
    assert not OBEYED.search(str(found.findings()[0])) and "owned" in str(found.findings()[0])


def test_a_message_has_a_maximum_length() -> None:
    assert len(str(GroundtuneError("x" * 10**6))) < 20_000


@pytest.mark.parametrize("missing", [False, True])
def test_check_and_convert_print_no_control_characters(
    tmp_path: Path, capsys, monkeypatch, missing: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"{COMMANDS}.png"
    if not missing:
        image(tmp_path / "data" / name)
    (tmp_path / "data").mkdir(exist_ok=True)
    boxes = [(1, 1, [1, 1, 9, 9]), (1, 2, [-5, 1, 90, 9]), (7, 7, [1, 1, 1, 1])]
    (tmp_path / "data/a.json").write_text(
        json.dumps(coco([name], boxes, [(1, f"cat{COMMANDS}"), (2, COMMANDS * 2)]))
    )
    main(["check", "data"])
    main(["convert", "data", "out", "--format", "coco"])
    printed = capsys.readouterr()
    assert "owned" in printed.out + printed.err and not OBEYED.search(printed.out + printed.err)


@pytest.mark.parametrize(
    "name", ["(" * 200_000 + ")" * 200_000, "()" * 200_000, "(" * 400_000, "a)" * 200_000]
)
def test_thousands_of_parentheses_are_cleaned_quickly(name: str) -> None:
    with within(20):
        assert set(clean_name(name)) <= set("(a) ")
