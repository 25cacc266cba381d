"""What a fresh machine gets: the package's files, the pins, the README's commands, the Makefile's choice of Python."""

import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest
import yaml

from groundtune.config import train_config
from groundtune.model.checkpoint.load import load_bundle

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PINS = dict(
    line.split("==")
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
)


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", name).group()).lower()


def test_every_package_that_is_asked_for_is_pinned_and_the_forbidden_ones_are_not_there() -> None:
    wanted = PROJECT["project"]["dependencies"] + sum(
        PROJECT["project"]["optional-dependencies"].values(), []
    )
    pinned = {canonical(name) for name in PINS}
    assert {canonical(name) for name in wanted} <= pinned
    assert PINS["torch"] == "2.13.0"  # without +cpu: fits the CPU build and the one with CUDA
    assert not {"torchvision", "timm", "opencv-python"} & pinned
    makefile = (ROOT / "Makefile").read_text()
    towers = re.search(r"TOWERS := (.*)", makefile).group(1).split()
    assert all(PINS[tower.split("==")[0]] == tower.split("==")[1] for tower in towers)


def test_the_license_is_the_full_apache_text() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert PROJECT["project"]["license"] == "Apache-2.0"
    assert [number for number in range(1, 10) if f"\n   {number}. " in text] == list(range(1, 10))
    assert "APPENDIX: How to apply the Apache License to your work." in text


def test_the_presets_are_in_the_package_folder_that_is_built() -> None:
    (package,) = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert (ROOT / package / "model/presets/nano.yaml").is_file()


@pytest.mark.slow
def test_the_wheel_in_an_environment_of_its_own_has_the_weights_of_nano(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    built = subprocess.run([*pip, "wheel", "--no-deps", "-w", tmp_path, ROOT], capture_output=True, text=True)
    if built.returncode and "hatchling" in built.stderr:
        pytest.skip("the wheel cannot be built here: pip does not reach a package index for hatchling")
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("groundtune-*.whl")
    venv.create(tmp_path / "env", with_pip=False)
    subprocess.run([*pip, "install", "--no-deps", "--target", tmp_path / "installed", wheel], check=True)
    show = (
        "import groundtune as gt; model = gt.load('nano'); print(gt.__file__);"
        "print(model.bundle.network.decoder.layers[0].cross_attn.value_proj.weight.double().abs().sum().item())"
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
    assert (ROOT / "src/groundtune/model/presets/nano.safetensors").stat().st_size <= 15e6


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
