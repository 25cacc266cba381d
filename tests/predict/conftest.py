"""The model without weights that most tests of predictions use."""

import pytest
from predict_fakes import fake_bundle


@pytest.fixture()
def stub(monkeypatch, tokenizer):
    """A bundle that detects, in each image, all of it as class 0 (0.75) and its left half as the
    last class (0.5).
    """
    return fake_bundle(monkeypatch, tokenizer, lambda w, h: [[0, 0, w, h], [0, 0, w / 2, h]], [0.75, 0.5])


@pytest.fixture(scope="module")
def nano():
    from groundtune.model.checkpoint.load import load_bundle

    return load_bundle("nano")
