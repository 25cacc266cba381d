"""Blending: exact at both ends, linear between them for weights and adapters, and the point that is
chosen.
"""

import json
from pathlib import Path

import pytest
import torch
from engine_runs import CLASSES, differing, options, run, scenes, tiny_bundle, weights

from groundtune.cli import main
from groundtune.engine.blend import BlendPoint, best_point, blended, measure_line
from groundtune.engine.evaluate import Evaluation
from groundtune.errors import CheckpointError
from groundtune.model.adapters import add_adapters, is_adapter, merge_adapters
from groundtune.model.checkpoint.load import load_bundle
from groundtune.model.checkpoint.save import save_bundle
from groundtune.model.prompt_tuning import PhraseOffsets
from groundtune.report.blend import blend_chart

LABELS = "decoder.label_embedding.weight"


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scenes(
        tmp_path_factory.mktemp("blend") / "other", train=1, valid=2, classes=["yellow square", CLASSES[1]]
    )


def test_the_ends_are_exact_and_the_middle_is_linear() -> None:
    generator = torch.Generator().manual_seed(0)
    base = {"w": 1e4 * torch.randn(1000, generator=generator), "n": torch.tensor(3)}
    tuned = {"w": 1e-4 * torch.randn(1000, generator=generator), "n": torch.tensor(5)}
    assert not torch.equal(base["w"] + 1.0 * (tuned["w"] - base["w"]), tuned["w"])  # why it is not written so
    for at, end in ((0.0, base), (1.0, tuned)):
        assert differing(blended(base, tuned, at), end) == []
    quarter = blended({"w": torch.tensor([1.0, 8.0])}, {"w": torch.tensor([3.0, 4.0])}, 0.25)["w"]
    assert quarter.tolist() == [1.5, 7.0]
    half = blended({"w": torch.tensor([0.1], dtype=torch.float16)}, {"w": torch.tensor([0.1])}, 0.0)["w"]
    assert half.dtype == torch.float32 and half.item() == torch.tensor(0.1, dtype=torch.float16).item()


def test_models_that_are_no_kin_are_refused_and_other_labels_are_not() -> None:
    one, more = torch.ones(1), torch.ones(3, 2)
    with pytest.raises(
        CheckpointError, match="3 weights are in one of them only or differ in shape, for example a, c, b"
    ):
        blended({"a": one, "b": one}, {"b": torch.ones(2), "c": one}, 0.5)
    labels = blended({LABELS: torch.zeros(6, 2), "a": torch.zeros(1)}, {LABELS: more, "a": one}, 0.5)
    assert torch.equal(labels[LABELS], more) and labels["a"].item() == 0.5
    assert blended({LABELS: 0 * more}, {LABELS: more}, 0.5)[LABELS].unique().tolist() == [0.5]


def test_adapters_blend_by_their_scale(tokenizer) -> None:
    network = tiny_bundle(tokenizer).network
    plain = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    add_adapters(network, 2, 4.0)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if is_adapter(name) or name.startswith("bbox_head."):
                parameter.add_(torch.randn(parameter.shape, generator=generator))
    name = "encoder.fusion_layers.0.attn.vision_proj"
    delta = 2.0 * (
        network.get_parameter(f"{name}.lora_B.default.weight")
        @ network.get_parameter(f"{name}.lora_A.default.weight")
    )
    head = "bbox_head.reg_branches.0.layers.0.bias"
    tuned_head = network.get_parameter(head).detach().clone()
    network.load_state_dict(blended(before, network.state_dict(), 0.25))
    merge_adapters(network)
    found = network.state_dict()
    torch.testing.assert_close(found[f"{name}.weight"], plain[f"{name}.weight"] + 0.25 * delta.detach())
    torch.testing.assert_close(found[head], 0.75 * plain[head] + 0.25 * tuned_head)
    add_adapters(network, 2, 4.0)


def point(at: float, ap: float, kept: float | None, gain: float | None) -> BlendPoint:
    return BlendPoint(at, {"AP": ap}, {}, gain, kept)


@pytest.mark.parametrize(
    ("points", "chosen"),
    [
        # 90 % of the gain
        ([(0, 0.2, 1.0, 0.0), (0.5, 0.57, 0.9, 0.925), (0.7, 0.62, 0.7, 1.05), (1, 0.6, 0.5, 1.0)], 0.5),
        pytest.param([(0, 0.2, 1.0, 0.0), (0.5, 0.55, 0.9, 0.875), (1, 0.6, 0.5, 1.0)], 1, id="just less"),
        pytest.param([(0, 0.2, 1.0, 0.0), (0.5, 0.6, 0.5, 1.0), (1, 0.6, 0.5, 1.0)], 0.5, id="a tie"),
        # no gain: 2ab/(a+b) is .667, .692, .545
        pytest.param([(0, 0.5, 1.0, None), (0.5, 0.55, 0.93, None), (1, 0.5, 0.6, None)], 0.5, id="no gain"),
        # nothing to retain
        ([(0, 0.2, None, 0.0), (0.7, 0.65, None, 1.1), (1, 0.6, None, 1.0)], 0.7),
    ],
)
def test_the_point_that_is_chosen(points, chosen) -> None:
    assert best_point([point(*values) for values in points]).alpha == chosen


def test_a_line_is_measured_with_its_ends(tokenizer) -> None:
    base, tuned = (tiny_bundle(tokenizer).network for _ in range(2))
    with torch.no_grad():
        tuned.encoder.level_embed.add_(1.0)
    start, end = base.encoder.level_embed.detach().clone(), tuned.encoder.level_embed.detach().clone()
    seen = []

    def measure():
        seen.append(float((tuned.encoder.level_embed - start).detach().mean()))
        ap = {0: 0.2, 1: 0.5, 2: 0.6}[len(seen) - 1]
        others = {"coco": 0.4 - 0.1 * len(seen), "empty": 0.0}  # .3, .2, .1
        evaluations = {name: Evaluation({"AP": value}, {}, []) for name, value in others.items()}
        return Evaluation({"AP": ap}, {}, []), evaluations

    points = measure_line(base, tuned, [0.25], measure)
    assert seen == pytest.approx([0.0, 0.25, 1.0], abs=1e-5)
    assert [p.alpha for p in points] == [0.0, 0.25, 1.0]
    assert [p.gain for p in points] == pytest.approx([0.0, 0.75, 1.0])
    # a set with nothing to keep does not count
    assert [p.retention_share for p in points] == pytest.approx([1.0, 2 / 3, 1 / 3])
    assert torch.equal(tuned.encoder.level_embed, end)
    coco = points[1].retention["coco"]
    assert [coco[when]["AP"] for when in ("before", "after")] == pytest.approx([0.3, 0.2])
    chart = blend_chart(points)
    assert chart.count("<polyline") == 3 and "coco" in chart


@pytest.mark.parametrize("way", ["full", "lora", "prompt"])
def test_a_run_blends_in_the_end(way, data, base, tmp_path) -> None:
    changed = {"epochs": 1, "tune": way}
    runs = {}
    for at in (None, 0.5, 0.0, 1.0) if way == "full" else (None, 0.5):
        bundle = load_bundle(base)
        result = run(options(data, blend=at, **changed), bundle, tmp_path / str(at))
        runs[at] = weights(bundle), result
    start = weights(load_bundle(base))
    if way == "full":
        assert set(differing(start, runs[0.0][0])) <= {LABELS}
        assert runs[0.0][1].metrics == runs[0.0][1].zero_shot
        assert differing(runs[1.0][0], runs[None][0]) == []
    for name, tensor in runs[0.5][0].items():
        if name != LABELS:
            middle = (start.get(name, 0.0) + runs[None][0][name]) / 2
            torch.testing.assert_close(tensor, middle, rtol=0, atol=1e-6)
    told = json.loads((tmp_path / "0.5/metrics.json").read_text())
    assert told["best"] == runs[0.5][1].metrics
    shipped = load_bundle(tmp_path / "0.5/model")
    assert differing(weights(shipped), runs[0.5][0]) == []
    if way == "lora":
        assert differing(weights(load_bundle(tmp_path / "0.5/adapter")), runs[0.5][0]) == []


@pytest.fixture(scope="module")
def tuned(data, base, other, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("blend") / "run"
    run(options(data, epochs=1, lr=1e-3, retention_data=[str(other)]), load_bundle(base), out)
    return out


def test_the_command(base, tuned, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    options = "--alphas 0.5 --output-dir chosen --device cpu"
    assert main(["blend", str(base), str(tuned), *options.split()]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["alpha", "target", "gain", "other", "retention"]
    assert [line.split()[0] for line in table[1:4]] == ["0", "0.5", "1"]
    told = json.loads(Path("chosen/blend.json").read_text())
    assert [point["alpha"] for point in told["points"]] == [0.0, 0.5, 1.0]
    metrics = json.loads((tuned / "metrics.json").read_text())
    assert told["points"][0]["metrics"]["AP"] == metrics["zero_shot"]["valid/AP"]
    assert told["points"][2]["metrics"]["AP"] == metrics["best"]["valid/AP"]
    assert told["points"][2]["retention"]["other"]["after"] == metrics["retention"]["other"]["after"]
    marked = [line.split()[0] for line in table[1:4] if line.endswith("chosen")]
    assert marked == [f"{told['chosen']:g}"]
    chosen, ends = load_bundle("chosen"), [weights(load_bundle(folder)) for folder in (base, tuned / "model")]
    assert differing(weights(chosen), blended(*ends, told["chosen"])) == []
    assert chosen.classes == CLASSES
    page = Path("chosen/blend.html").read_text()
    assert "<polyline" in page and 'class="best"' in page and "other" in page


def test_the_command_says_what_it_needs(base, tuned, data, tmp_path, monkeypatch, capsys, tokenizer) -> None:
    monkeypatch.chdir(tmp_path)

    def refused(*arguments: str) -> str:
        assert main(["blend", *arguments]) in (2, 3, 4)
        return capsys.readouterr().err

    assert "the data set that it was fine-tuned on" in refused(
        str(base), str(tuned / "model"), "--output-dir", "x"
    )
    assert "--alphas: expected a number between 0 and 1, got 1.5" in refused(
        str(base), str(tuned), "--output-dir", "x", "--alphas", "0.5,1.5"
    )
    assert "--output-dir: missing" in refused(str(base), str(tuned))
    Path("full").mkdir()
    Path("full/mine.txt").touch()
    assert "is not empty and no model" in refused(str(base), str(tuned), "--output-dir", "full")
    save_bundle(tiny_bundle(tokenizer, d_model=32), tmp_path / "small")
    assert "cannot be blended" in refused("small", str(tuned), "--output-dir", "x", "--device", "cpu")


def test_offsets_of_names_blend_from_nothing(tokenizer) -> None:
    base, tuned = tiny_bundle(tokenizer).network, tiny_bundle(tokenizer).network
    tuned.encoder.phrase_offsets = PhraseOffsets(["cat"], tokenizer, 16)
    torch.nn.init.ones_(tuned.encoder.phrase_offsets.vectors)
    found = blended(base.state_dict(), tuned.state_dict(), 0.25)
    assert found["encoder.phrase_offsets.vectors"].unique().tolist() == [0.25]
