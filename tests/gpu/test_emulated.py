"""`emulated_checks.py` in a process of its own, on an emulated GPU; needs a C++ compiler."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
TORCH = Path(torch.__file__).parent


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that makes torch see a CUDA device."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None or sys.platform != "linux" or torch.version.cuda is not None:
        pytest.skip("needs a C++ compiler and the CPU build of torch")
    library = tmp_path_factory.mktemp("emulator") / "guard.so"
    include = [f"-I{TORCH / 'include'}", f"-I{TORCH / 'include/torch/csrc/api/include'}"]
    link = [f"-L{TORCH / 'lib'}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{TORCH / 'lib'}"]
    command = [compiler, "-O1", "-w", "-shared", "-fPIC", "-std=c++17", *include, str(HERE / "guard.cpp")]
    subprocess.run([*command, *link, "-o", str(library)], check=True)
    return library


def check(emulator: Path, marker: str) -> None:
    """Runs the checks of a marker; their output is the message."""
    paths = [str(HERE), *sys.path]
    environment = {**os.environ, "GROUNDTUNE_EMULATOR": str(emulator), "PYTHONPATH": os.pathsep.join(paths)}
    options = ["-q", "-p", "emulated_cuda", "-p", "no:cacheprovider", "-m", marker]
    command = [sys.executable, "-m", "pytest", *options, str(HERE / "emulated_checks.py")]
    ran = subprocess.run(command, env=environment, cwd=HERE.parents[1], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[-8000:] + ran.stderr[-2000:]


def test_budgets_on_an_emulated_gpu(emulator: Path) -> None:
    check(emulator, "not slow")


@pytest.mark.slow
def test_runs_on_an_emulated_gpu_equal_those_on_the_cpu(emulator: Path) -> None:
    check(emulator, "slow")
