"""The Hub: huggingface_hub's real download code against a server on loopback, in a process of its
own with its own cache.
"""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hub_server import COMMIT, HubServer
from huggingface_hub import constants
from oracle_models import oracle
from safetensors.torch import load_file, save_file

from groundtune.cli import main
from groundtune.errors import CheckpointError
from groundtune.model.checkpoint import hub
from groundtune.model.checkpoint.load import load_bundle

SOURCE = Path(__file__).parents[2] / "src"
MODEL = "owner/small-dino"
LOAD = """
import sys
import groundtune
bundle = groundtune.load(sys.argv[1]).bundle
print(bundle.source, bundle.base_model, float(bundle.network.encoder.level_embed.detach().double().sum()))
"""


@pytest.fixture(scope="module")
def models(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    oracle("grounding-dino", {}, [2, 3, 4]).save_pretrained(folder / MODEL)
    tokenizer.save_pretrained(folder / MODEL)
    (folder / MODEL / "README.md").write_text("not needed")
    weights = load_file(folder / MODEL / "model.safetensors")
    # as long as three of the pieces of 10 MiB that huggingface_hub writes and can resume after
    metadata = {"format": "pt", "filling": "x" * (26 << 20)}
    save_file(weights, folder / MODEL / "model.safetensors", metadata=metadata)
    return folder


@pytest.fixture
def server(models):
    serving = HubServer(models)
    yield serving
    serving.shutdown()
    serving.server_close()


@pytest.fixture
def in_this_process(monkeypatch, tmp_path):
    """`in_this_process(address)`: huggingface_hub asks there, with an empty cache of its own."""

    def connect(address):
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache/hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.chdir(tmp_path)

    return connect


@pytest.fixture
def in_a_process(tmp_path):
    """`in_a_process(address, code or verb, *arguments, **environment)`: what a user's process says
    and returns.
    """

    def start(address, code, *arguments, **environment):
        start_with = ["-c", code] if "\n" in code else ["-m", code]
        command = [sys.executable, *start_with, *arguments]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        hub_settings = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(SOURCE)}
        hub_settings |= {"HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}
        settings = kept | hub_settings | environment
        options = {"capture_output": True, "text": True, "timeout": 120, "cwd": tmp_path}
        return subprocess.run(command, env=settings, **options)

    return start


def cached(tmp_path):
    return tmp_path / "cache/hub" / f"models--{MODEL.replace('/', '--')}" / "snapshots" / COMMIT


def test_a_model_is_downloaded_once_and_then_works_without_the_hub(server, models, in_a_process, tmp_path):
    first = in_a_process(server.address, LOAD, MODEL)
    assert first.returncode == 0, first.stderr
    expected = float(load_bundle(models / MODEL).network.encoder.level_embed.detach().double().sum())
    assert first.stdout.split() == [MODEL, MODEL, str(expected)]
    files = {path.name: path.read_bytes() for path in cached(tmp_path).iterdir()}
    assert files == {p.name: p.read_bytes() for p in (models / MODEL).iterdir() if p.name != "README.md"}
    downloads = [path for method, path, _ in server.requests if method == "GET" and "/resolve/" in path]
    assert len(downloads) == len(files) == len(set(downloads))
    server.requests.clear()
    again = in_a_process(server.address, LOAD, MODEL, HF_HUB_OFFLINE="1")
    assert (again.stdout, server.requests) == (first.stdout, [])


def test_a_cut_connection_is_resumed_where_it_broke(server, models, in_a_process, tmp_path):
    """The server closes half-way through the weights; the second request asks for the second half
    only.
    """
    size = (models / MODEL / "model.safetensors").stat().st_size
    server.cut = {"model.safetensors"}
    found = in_a_process(server.address, LOAD, MODEL)
    assert found.returncode == 0, found.stderr
    gets = [(path, wanted) for method, path, wanted in server.requests if method == "GET"]
    wanted = [wanted for path, wanted in gets if path.endswith("model.safetensors")]
    assert wanted[0] is None and len(wanted) == 2
    assert wanted[1] is not None and wanted[1].startswith("bytes=")
    begin = int(wanted[1].removeprefix("bytes=").split("-")[0])
    assert 10 << 20 <= begin <= size // 2
    weights = (models / MODEL / "model.safetensors").read_bytes()
    assert (cached(tmp_path) / "model.safetensors").read_bytes() == weights


def test_old_weights_are_fetched_only_where_there_are_no_others(models, server, in_this_process):
    old = models / "owner/old"
    old.mkdir(exist_ok=True)
    for path in (models / MODEL).glob("*.json"):
        (old / path.name).write_bytes(path.read_bytes())
    torch.save(load_file(models / MODEL / "model.safetensors"), old / "pytorch_model.bin")
    in_this_process(server.address)
    assert load_bundle("owner/old").base_model == "owner/old"


@pytest.mark.parametrize(
    ("model", "status", "message"),
    [
        ("owner/nothing", 0, "model 'owner/nothing': it does not exist on the Hub. No local folder"),
        (MODEL, 401, "it does not exist, or needs a token; set HF_TOKEN"),
        (MODEL, 403, "access is not granted; request it on the model's page, and set HF_TOKEN"),
        (MODEL, 500, "the Hub returned 500; try again later"),
    ],
)
def test_the_command_line_reports_a_refusal(model, status, message, server, in_this_process, capsys):
    server.status = status
    in_this_process(server.address)
    assert main(["export", model, "--output", "here"]) == 4
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.count("\n") == 1 and printed.out == ""
    assert not Path("here").exists()


NOTHING_CACHED = (
    f"groundtune: error: The model {MODEL!r} is not completely in the cache, and the Hub cannot be reached "
    "(or HF_HUB_OFFLINE is set). Connect once, copy the model's folder here and give its path, or use the "
    "built-in --model nano.\n"
)


def test_offline_with_nothing_cached_says_what_to_do(in_a_process):
    command = ["groundtune.cli", "export", MODEL, "--output", "here"]
    found = in_a_process("http://127.0.0.1:9", *command, HF_HUB_OFFLINE="1")
    assert (found.returncode, found.stdout, found.stderr) == (4, "", NOTHING_CACHED)


def test_no_hub_and_nothing_cached_says_the_same(in_this_process, capsys):
    in_this_process("http://127.0.0.1:9")
    assert main(["export", MODEL, "--output", "here"]) == 4
    assert capsys.readouterr().err == NOTHING_CACHED


def test_hub_ids_and_other_names():
    assert all(map(hub.looks_like_hub_id, ["IDEA-Research/grounding-dino-tiny", "owner/model.v2"]))
    others = ["nano", "./owner/model", "/owner/model", "a/b/c", "weights/model.pth", "owner/", ""]
    assert not any(map(hub.looks_like_hub_id, others))


def test_upload_creates_the_model_and_sends_the_folder(monkeypatch, tmp_path):
    calls = []
    api = SimpleNamespace(
        create_repo=lambda *arguments, **options: calls.append((arguments, options)),
        upload_folder=lambda **options: calls.append(options) or "https://hub/owner/mine/commit/1",
    )
    monkeypatch.setattr(hub, "HfApi", lambda: api)
    assert hub.upload(tmp_path, "owner/mine", private=True) == "https://hub/owner/mine/commit/1"
    assert calls[0] == (("owner/mine",), {"private": True, "exist_ok": True})
    assert (calls[1]["repo_id"], calls[1]["folder_path"]) == ("owner/mine", tmp_path)


def test_an_upload_that_fails_asks_for_the_token(monkeypatch, tmp_path):
    def refuse(*arguments, **options):
        raise OSError("401 Client Error\nmore")

    monkeypatch.setattr(hub, "HfApi", lambda: SimpleNamespace(create_repo=refuse))
    message = r"Cannot upload to 'owner/mine': 401 Client Error\. Is HF_TOKEN set"
    with pytest.raises(CheckpointError, match=message):
        hub.upload(tmp_path, "owner/mine", private=False)
