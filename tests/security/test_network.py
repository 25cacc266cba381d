"""Nothing asks the network unless the user named something that is there: every verb, in processes
of their own.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src"
VERBS = """
import sys
calls = []
sys.addaudithook(lambda event, args: calls.append((event, args)) if event in (
    "socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "urllib.Request", "http.client.connect"
) else None)
from groundtune.cli import main
def does(*arguments):
    code = main([str(argument) for argument in arguments])
    assert code == 0, (arguments, code)
    assert not calls, (arguments, calls)
"""
ALL_VERBS = """
does("models")
does("env")
does("init", "scenes", "data", "--train-images", 4, "--valid-images", 2, "--image-size", 64)
does("convert", "data", "yolo", "--format", "yolo")
does("check", "data")
does("train", "data", "--output-dir", "run", "--epochs", 1, "--batch-size", 2, "--report-to", "tensorboard", "--device", "cpu")
does("train", "data", "--output-dir", "run2", "--model", "run", "--epochs", 1, "--device", "cpu")
does("evaluate", "run", "data", "--device", "cpu")
does("predict", "run", "data/valid", "--output-dir", "drawn", "--device", "cpu")
does("report", "run")
does("report", "run", "run2")
"""


def run(code: str, folder: Path, *before: str) -> None:
    """Without the settings that would keep libraries quiet anyway, and with an empty cache."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HF_", "TRANSFORMERS_", "DO_NOT"))
    }
    settings = kept | {"HF_HOME": str(folder / "cache"), "PYTHONPATH": str(SOURCE), "HOME": str(folder)}
    command = [*before, sys.executable, "-c", VERBS + code]
    done = subprocess.run(command, env=settings, cwd=folder, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_connection_would_be_noticed(tmp_path: Path) -> None:
    for code in (
        "import socket\nsocket.create_connection(('127.0.0.1', 9))",
        "import urllib.request as u\nu.urlopen('http://x.invalid')",
    ):
        with pytest.raises(AssertionError, match="asked"):
            run(f"try:\n    exec({code!r})\nexcept OSError:\n    pass\nassert not calls, 'asked'", tmp_path)


@pytest.mark.slow
def test_no_verb_asks_the_network(tmp_path: Path) -> None:
    """And all of them work without one, where Linux lets the test take it away."""
    alone = ["unshare", "--map-root-user", "--net"]
    possible = (
        shutil.which("unshare") and subprocess.run([*alone, "true"], capture_output=True).returncode == 0
    )
    run(ALL_VERBS, tmp_path, *(alone if possible else []))
