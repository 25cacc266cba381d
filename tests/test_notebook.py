"""The notebook of the examples runs from the first cell to the last, in an empty directory."""

import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "examples" / "colab.ipynb"


@pytest.mark.slow
def test_the_notebook_runs_on_a_cpu(tmp_path: Path, monkeypatch) -> None:
    nbformat = pytest.importorskip("nbformat", reason="needs nbclient, nbformat and ipykernel")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert [cell.outputs for cell in notebook.cells if cell.cell_type == "code" and cell.outputs] == []
    install = [cell for cell in notebook.cells if "install" in cell.metadata.get("tags", [])]
    assert [cell.source for cell in install] == ["%pip install --quiet groundtune"]
    notebook.cells.remove(install[0])  # it is installed here
    command = tmp_path / "bin" / "groundtune"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m groundtune.cli "$@"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(command.parent), prepend=":")
    paths = [str(NOTEBOOK.parents[1] / "src"), *filter(None, sys.path)]
    monkeypatch.setenv("PYTHONPATH", ":".join(paths))
    monkeypatch.setenv("NOTEBOOK_IMAGES", "8")
    monkeypatch.setenv("NOTEBOOK_EPOCHS", "1")
    (tmp_path / "work").mkdir()
    resources = {"metadata": {"path": str(tmp_path / "work")}}
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "precision auto" in printed and "groundtune: error" not in printed
    assert (tmp_path / "work" / "run" / "report.html").is_file()
    assert "html" in str(notebook.cells[-1].outputs)
