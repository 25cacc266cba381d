"""The look-up of known vulnerabilities: a finding fails, and what could not be looked up is said."""

import importlib.util
import json
import shlex
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / ".ci/audit.py"
SOUND = {"name": "numpy", "version": "2.0", "vulns": []}
BAD = {"name": "pillow", "version": "1.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["1.1"]}]}
UNKNOWN = {"name": "torch", "skip_reason": "not found on PyPI"}


@pytest.fixture
def audit(tmp_path: Path):
    """`audit(answer)`: the exit code where pip-audit answers so."""
    spec = importlib.util.spec_from_file_location("audit", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "bin").mkdir()

    def run(answer: str) -> int:
        program = tmp_path / "bin/pip-audit"
        code = f"import sys; print({answer!r}); print('no route', file=sys.stderr); sys.exit(1)"
        program.write_text(f"#!/bin/sh\nexec {shlex.quote(sys.executable)} -c {shlex.quote(code)}\n")
        program.chmod(0o755)
        return module.main(tmp_path, tmp_path / "pins.txt")

    return run


@pytest.mark.parametrize(
    ("packages", "code", "said"),
    [
        ([SOUND], 0, "0 known vulnerabilities in 1 of 1 packages"),
        ([SOUND, UNKNOWN], 0, "0 known vulnerabilities in 1 of 2 packages"),
        ([SOUND, BAD, UNKNOWN], 1, "pillow 1.0: PYSEC-1, mended in 1.1"),
        (
            [UNKNOWN, UNKNOWN],
            0,
            "SKIPPED, known vulnerabilities were NOT looked for: the database knows none of the 2",
        ),
    ],
)
def test_answers(audit, capsys, packages: list[dict], code: int, said: str) -> None:
    assert audit(json.dumps({"dependencies": packages})) == code
    printed = capsys.readouterr()
    assert said in printed.out + printed.err


@pytest.mark.parametrize("answer", ["", "{}", "Traceback"])
def test_no_answer_is_told_and_passes(audit, capsys, answer: str) -> None:
    assert audit(answer) == 0
    assert "THE AUDIT WAS SKIPPED" in (told := capsys.readouterr().err) and "no route" in told
