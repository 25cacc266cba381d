"""The data set and the model folder that most runs of these tests begin with, of each file its own."""

from pathlib import Path

import pytest
from engine_runs import scenes, tiny_bundle

from groundtune.model.checkpoint.save import save_bundle


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scenes(tmp_path_factory.mktemp("scenes") / "data")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("model") / "base"
    save_bundle(tiny_bundle(tokenizer), folder)
    return folder
