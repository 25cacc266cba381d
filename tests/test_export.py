"""`groundtune export`: Hugging Face directories, IDEA's .pth and the Hub, and what cannot be
expressed in them.
"""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from engine_runs import tiny_bundle

from groundtune import api
from groundtune.cli import main
from groundtune.errors import CheckpointError
from groundtune.model.checkpoint import hub
from groundtune.model.checkpoint.load import load_bundle
from groundtune.model.checkpoint.save import save_bundle

IDEA = {
    "num_heads": 4,
    "encoder_points": 4,  # a .pth does not tell them, so reading takes the published 4
    "decoder_points": 4,
    "query_content": "learned",
    "contrastive_scale": "none",
    "contrastive_bias": False,
}
MM = IDEA | {
    "contrastive_scale": "auto",
    "contrastive_bias": True,
    "share_box_head": False,
    "share_class_head": False,
}


@pytest.fixture
def model(tokenizer, tmp_path, monkeypatch):
    """`model(sizes)`: a saved model folder's path, in an empty working folder."""
    monkeypatch.chdir(tmp_path)

    def save(sizes):
        bundle = tiny_bundle(tokenizer, **sizes)
        bundle.classes = ["cat"]
        save_bundle(bundle, tmp_path / "source")
        return "source"

    return save


def equal(a, b):
    a, b = a.network.state_dict(), b.network.state_dict()
    return a.keys() == b.keys() and all(
        torch.equal(a[n], b[n]) for n in a if n != "decoder.label_embedding.weight"
    )


def test_hf_writes_a_directory(model, capsys):
    source = model(MM)
    assert main(["export", source, "--format", "hf", "--output", "deep/hf"]) == 0
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("deep/hf\n", "")
    from transformers import AutoModelForZeroShotObjectDetection

    assert (
        AutoModelForZeroShotObjectDetection.from_pretrained("deep/hf").config.decoder_bbox_embed_share
        is False
    )
    assert equal(load_bundle("deep/hf"), load_bundle(source))


@pytest.mark.parametrize("separate", [False, True])
def test_idea_writes_a_pth(separate, model, capsys):
    source = model(IDEA | {"share_box_head": not separate})
    bundle = load_bundle(source)
    if separate:
        with torch.no_grad():
            bundle.network.bbox_head.reg_branches[1].layers[0].bias.add_(1.0)
        save_bundle(bundle, Path(source))
    assert main(["export", source, "--format", "idea", "--output", "idea.pth"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "idea.pth\n"
    notes = printed.err.splitlines()
    assert all(note.startswith("Note: ") for note in notes)
    assert any("denoising labels" in note for note in notes)
    assert any("1e-3" in note and "1e-5" in note for note in notes)
    assert any("dec_pred_bbox_embed_share = False" in note for note in notes) is separate
    state = torch.load("idea.pth", weights_only=True)["model"]
    assert "module.label_enc.weight" not in state
    from groundtune.model.checkpoint.files import read_pth
    from groundtune.model.checkpoint.load import bundle_of_pth_state

    again = bundle_of_pth_state(*read_pth(Path("idea.pth")), "idea.pth", bert_heads=2)
    assert equal(again, bundle) and again.config.share_box_head is not separate


def test_labels_that_came_with_the_weights_go_back_into_ideas_file(model):
    bundle = load_bundle(model(IDEA))
    bundle.config.class_labels = False
    assert "denoising labels" not in " ".join(api.export(api.Model(bundle), "idea.pth", format="idea"))
    state = torch.load("idea.pth", weights_only=True)["model"]
    assert torch.equal(state["module.label_enc.weight"], bundle.network.decoder.label_embedding.weight)


NANO = (
    "fusion_heads is 4",
    "the backbone is efficientnet-lite0",
    "the language model is minilm",
    "the queries start from",
)


@pytest.mark.parametrize(("format", "tool"), [("hf", "transformers"), ("idea", "IDEA's code")])
def test_nano_is_rejected_with_all_reasons(format, tool, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["export", "nano", "--format", format, "--output", "there"]) == 4
    printed = capsys.readouterr()
    assert printed.out == "" and os.listdir() == []
    assert printed.err.startswith(f"groundtune: error: The model 'nano' cannot be written for {tool}: ")
    assert all(reason in printed.err for reason in NANO), printed.err


def test_idea_cannot_express_mm_grounding_dino(model):
    with pytest.raises(CheckpointError, match=r"scaled and shifted \(MM-Grounding-DINO\)"):
        api.export(model(MM), "idea.pth", format="idea")


def test_sizes_that_the_other_tools_derive_must_agree(model):
    source = model(IDEA | {"fusion_dim": 64, "position_temperature": 20.5})
    expected = "fusion_dim is 64, there it is always 32; position_temperature is 20.5"
    for format in ("hf", "idea"):
        with pytest.raises(CheckpointError, match=expected):
            api.export(source, "there", format=format)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["source"], 2),
        (["source", "--format", "idea", "--push-to-hub", "me/it"], 2),
        (["source", "--output", "images"], 4),
        (["source", "--format", "idea", "--output", "images"], 4),
        (["missing", "--output", "x"], 4),
    ],
)
def test_mistakes_leave_everything_alone(arguments, code, model, tmp_path, capsys):
    model(IDEA)
    (tmp_path / "images").mkdir()
    (tmp_path / "images/cat.jpg").write_text("dear")
    assert main(["export", *arguments]) == code
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and printed.out == ""
    assert sorted(os.listdir()) == ["images", "source"] and os.listdir("images") == ["cat.jpg"]


@pytest.fixture
def uploads(monkeypatch):
    """Return the calls that reach the Hub, with the names of the files."""
    calls = []

    def upload_folder(repo_id, folder_path, commit_message):
        calls.append(("upload", repo_id, sorted(os.listdir(folder_path))))
        return f"https://huggingface.co/{repo_id}/commit/1"

    def create_repo(name, private, exist_ok):
        calls.append(("create", name, private))

    monkeypatch.setattr(
        hub, "HfApi", lambda: SimpleNamespace(create_repo=create_repo, upload_folder=upload_folder)
    )
    return calls


@pytest.mark.parametrize("private", [False, True])
def test_push_to_hub(private, model, uploads, capsys):
    source = model(IDEA)
    assert main(["export", source, "--push-to-hub", "me/it", *(["--private"] if private else [])]) == 0
    assert capsys.readouterr().out == "https://huggingface.co/me/it/commit/1\n"
    (created, uploaded) = uploads
    assert created == ("create", "me/it", private) and uploaded[:2] == ("upload", "me/it")
    assert {"README.md", "config.json", "model.safetensors", "groundtune.json", "tokenizer.json"} <= set(
        uploaded[2]
    )
    assert os.listdir() == ["source"]


def test_push_to_hub_and_a_folder_at_once(model, uploads, capsys):
    assert main(["export", model(IDEA), "--output", "here", "--push-to-hub", "me/it"]) == 0
    assert capsys.readouterr().out == "here\nhttps://huggingface.co/me/it/commit/1\n"
    assert uploads[1][2] == sorted(os.listdir("here"))
