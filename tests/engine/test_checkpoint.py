"""The training state on disk: what goes round, what is refused, and what a failing disk leaves."""

import hashlib
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_fakes import FakeNetwork

from groundtune.config import ParamGroup
from groundtune.engine import checkpoint
from groundtune.engine.optim import freeze
from groundtune.errors import CheckpointError


def state_of(network: FakeNetwork) -> checkpoint.State:
    return {"network": checkpoint.trained_weights(network), "epoch": 3, "random": checkpoint.random_state()}


@pytest.fixture
def network() -> FakeNetwork:
    network = FakeNetwork(seed=1)
    freeze(network, [ParamGroup(["backbone"], 0.0), ParamGroup(["encoder.0"], 0.0)])
    return network


def test_round_trip_without_running_code(tmp_path: Path, network: FakeNetwork) -> None:
    path = tmp_path / "new" / "last.pt"
    checkpoint.save_state(state_of(network), path)
    torch.load(path, weights_only=True)
    other = FakeNetwork(seed=2)
    freeze(other, [ParamGroup(["backbone"], 0.0), ParamGroup(["encoder.0"], 0.0)])
    frozen = {
        n: t.clone() for n, t in other.state_dict().items() if n.startswith(("backbone.", "encoder.0."))
    }
    state = checkpoint.load_state(path)
    assert state["epoch"] == 3
    checkpoint.load_trained_weights(other, state["network"], "it")
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, frozen[name] if name in frozen else network.state_dict()[name]), name
    assert [entry.name for entry in path.parent.iterdir()] == ["last.pt"]


def test_state_is_a_copy_of_what_is_not_frozen(network: FakeNetwork) -> None:
    state = checkpoint.trained_weights(network)
    assert {name.split(".")[0] for name in state} == {
        "language_model",
        "neck",
        "encoder",
        "decoder",
        "bbox_head",
    }
    assert "encoder.0.weight" not in state and "encoder.absolute_pos_embed" in state
    before = state["neck.weight"].clone()
    with torch.no_grad():
        network.neck.weight.add_(1)
    assert torch.equal(state["neck.weight"], before)


def test_random_generators_go_on_where_they_were(tmp_path: Path, network: FakeNetwork) -> None:
    def draw() -> tuple[float, float, float, float]:
        return float(torch.rand(())), float(np.random.rand()), float(np.random.randn()), random.gauss(0, 1)

    random.gauss(0, 1), np.random.randn()  # both keep a second number for the next call
    checkpoint.save_state(state_of(network), tmp_path / "last.pt")
    expected = [draw() for _ in range(3)]
    checkpoint.set_random_state(checkpoint.load_state(tmp_path / "last.pt")["random"])
    assert [draw() for _ in range(3)] == expected


class Foreign:
    """Unpickling it would run code: it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "There is no checkpoint at .*last.pt"),
        (b"", "cannot be read .* corrupted"),
        (b"not a checkpoint at all", "cannot be read .* corrupted"),
        ("half", "cannot be read .* corrupted"),
        ("code", "cannot be read .* corrupted"),
        ("code with a checksum", "cannot be read .* corrupted"),
        ("bit", "cannot be read .*checksum.* corrupted"),
        ("longer", "cannot be read .*checksum.* corrupted"),
        ({"network": {}}, "not a checkpoint of a Groundtune training run"),
        ([1, 2], "not a checkpoint of a Groundtune training run"),
        (torch.zeros(3), "not a checkpoint of a Groundtune training run"),
    ],
    ids=["missing", "empty", "text", "half", "code", "checksum", "bit", "longer", "dict", "list", "tensor"],
)
def test_unusable_files(tmp_path: Path, network: FakeNetwork, content: object, message: str) -> None:
    path = tmp_path / "last.pt"
    if content == "half":
        checkpoint.save_state(state_of(network), path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif content == "code":
        path.write_bytes(pickle.dumps(Foreign(tmp_path / "ran"), protocol=2))
    elif content == "code with a checksum":
        checkpoint.save_state({"network": {}, "epoch": Foreign(tmp_path / "ran")}, path)
    elif content == "bit":  # of a weight: torch itself would read it
        checkpoint.save_state({"network": {"a": torch.arange(100.0)}, "epoch": 1}, path)
        damaged = bytearray(path.read_bytes())
        damaged[damaged.find(torch.arange(100.0).numpy().tobytes()) + 41] ^= 1
        path.write_bytes(damaged)
        assert not torch.equal(torch.load(path)["network"]["a"], torch.arange(100.0))
    elif content == "longer":
        checkpoint.save_state({"network": {}, "epoch": 1}, path)
        path.write_bytes(path.read_bytes() + b"\0")
    elif isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        checkpoint.save_state(content, path)
    with pytest.raises(CheckpointError, match=message) as error:
        checkpoint.load_state(path)
    assert error.value.exit_code == 4 and "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "fault", [OSError(28, "No space left on device"), RuntimeError("PytorchStreamWriter failed")]
)
def test_a_failing_write_leaves_the_old_file_whole(
    tmp_path: Path, network, monkeypatch, fault: Exception
) -> None:
    path = tmp_path / "last.pt"
    checkpoint.save_state(state_of(network), path)
    before = path.read_bytes()

    def fail(state: object, file) -> None:
        file.write(b"half of it")
        raise fault

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(CheckpointError, match="cannot be written.*disk full"):
        checkpoint.save_state(state_of(network), path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_the_checksum_is_that_of_the_file_before_it(tmp_path: Path, network: FakeNetwork) -> None:
    """So that `sha256sum` can say it too."""
    checkpoint.save_state(state_of(network), tmp_path / "last.pt")
    content, _, said = (tmp_path / "last.pt").read_bytes().rpartition(b"\nsha256 ")
    assert hashlib.sha256(content).hexdigest() == said.decode()


def test_the_one_before_is_kept(tmp_path: Path) -> None:
    last, previous = tmp_path / "last.pt", tmp_path / "previous.pt"
    for epoch in (1, 2, 3):
        checkpoint.save_state({"network": {}, "epoch": epoch}, last, previous)
    assert checkpoint.load_state(last)["epoch"] == 3 and checkpoint.load_state(previous)["epoch"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.pt", "previous.pt"]


def test_another_model_is_refused_with_an_example(network: FakeNetwork) -> None:
    state = checkpoint.trained_weights(network)
    del state["neck.bias"]
    state |= {"stranger": torch.zeros(1), "decoder.bias": torch.zeros(3)}
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state["neck.weight"] = torch.zeros_like(state["neck.weight"])
    with pytest.raises(
        CheckpointError,
        match=r"Here .* 1 missing, .* neck\.bias; 1 unexpected, .* stranger; 1 of another shape, .*decoder\.bias",
    ):
        checkpoint.load_trained_weights(network, state, "Here")
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
