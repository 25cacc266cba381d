"""The command line: parsing, exit codes, what is printed and what is left behind. Training is
replaced.
"""

import dataclasses
import errno
import json
import os
import pkgutil
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from tiny_models import tiny_bundle

import groundtune as gt
from groundtune import api, config
from groundtune.cli import build_parsers, main
from groundtune.config import TrainConfig, to_yaml
from groundtune.data.scenes import write_scenes
from groundtune.engine.train import RunResult
from groundtune.errors import ConfigError, NotWritten, TrainingDiverged
from groundtune.files import check_writable
from groundtune.model.checkpoint.load import load_recipe
from groundtune.options import leaf_fields, other_names

SOURCE = Path(__file__).parents[1] / "src"
CONFIGS = [
    kind for kind in vars(config).values() if isinstance(kind, type) and dataclasses.is_dataclass(kind)
]


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    write_scenes(folder, train=6, valid=2, classes=["red circle", "blue star"], size=64)
    return folder


@pytest.fixture()
def tiny(tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """Save a small model in an empty working directory, and return its name."""
    monkeypatch.chdir(tmp_path)
    bundle = tiny_bundle(tokenizer)
    bundle.classes = ["red circle", "blue star"]
    api.Model(bundle).save("tiny")
    return "tiny"


@pytest.fixture()
def runs(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Replace the training loop by one that only notes its arguments."""
    calls: list[dict[str, Any]] = []

    def train(
        config: TrainConfig, bundle: Any, splits: Any, out: Path, progress: Any, retention_data: Any
    ) -> RunResult:
        calls.append({"config": config, "bundle": bundle, "splits": splits, "out": out})
        out.mkdir(parents=True, exist_ok=True)
        numbers = {name: {"before": {"AP": 0.4116}, "after": {"AP": 0.22}} for name in retention_data}
        return RunResult(out, {}, {"valid/AP": 0.5}, {}, {}, numbers, 61.4)

    monkeypatch.setattr("groundtune.engine.train.train", train)
    monkeypatch.setattr("groundtune.report.build.build_report", lambda *_: None)
    return calls


def python(code: str, **options: Any) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, **options)


def written(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize(
    "code",
    [
        "import groundtune",
        "from groundtune.cli import main; main(['train', '--help'])",
        "from groundtune.cli import main; main(['train', 'x', '--lr', 'fast'])",
    ],
)
def test_import_help_and_mistakes_do_without_the_heavy_packages(code: str) -> None:
    heavy = "{'torch', 'transformers', 'numpy', 'PIL', 'rich', 'yaml', 'supervision'} & set(sys.modules)"
    done = python(f"import sys; {code}; assert not {heavy}, {heavy}", stdout=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", ["models", "check"])
def test_a_reader_of_stdout_that_ends_causes_no_traceback(command: str, scenes: Path) -> None:
    line = [command] if command == "models" else [command, str(scenes), "--fast"]
    reader, writer = os.pipe()
    os.close(reader)
    done = python(f"import sys; from groundtune.cli import main; sys.exit(main({line}))", stdout=writer)
    os.close(writer)
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    assert done.returncode == 1


def test_help_lists_the_commands_and_each_has_a_help_text(capsys: pytest.CaptureFixture) -> None:
    assert main([]) == 2 and main(["--help"]) == 0 and main(["--version"]) == 0
    printed = capsys.readouterr()
    assert (
        "fine-tune a model on a data set" in printed.out and "fine-tune a model on a data set" in printed.err
    )
    for verb in build_parsers()[1]:
        assert main([verb, "--help"]) == 0
        assert capsys.readouterr().out.startswith(f"usage: groundtune {verb}")


def test_the_usage_has_what_is_required(capsys: pytest.CaptureFixture) -> None:
    main(["convert", "--help"])
    usage = "usage: groundtune convert DATA OUTPUT_DIR --format coco|yolo|voc|odvg|csv|hf [options]"
    assert capsys.readouterr().out.startswith(usage)
    main(["label", "--help"])
    assert capsys.readouterr().out.startswith(
        "usage: groundtune label MODEL [IMAGES...] --output-dir DIR [options]"
    )


def test_every_alias_stands_for_an_option_that_exists() -> None:
    names = {leaf.rpartition(".")[2] for kind in CONFIGS for leaf in leaf_fields(kind)}
    for target in other_names():
        parts = [part.partition("}")[0] for part in target.split("{")[1:]] if " " in target else [target]
        assert parts and set(parts) <= names, target


def test_the_options_that_other_tools_share_are_understood(
    tiny: str, runs: list[dict[str, Any]], scenes: Path
) -> None:
    line = "--lr 1e-4 --batch-size 8 --epochs 3 --seed 1 --output-dir x --model tiny"
    assert main(["train", str(scenes), *line.split()]) == 0
    found = runs[0]["config"]
    assert (found.optimizer.lr, found.batch_size, found.epochs, found.seed) == (1e-4, 8, 3, 1)
    assert found.output_dir == "x"


def test_train_shows_the_classes_and_prints_a_table(
    tiny: str, runs: list[dict[str, Any]], scenes: Path, capsys: pytest.CaptureFixture
) -> None:
    line = ["train", "--epochs", "3", str(scenes), "--lr", "1e-3", "--no-denoising", "--model", tiny]
    assert main([*line, "--retention-data", f"{scenes},{scenes / 'valid'}"]) == 0
    printed = capsys.readouterr()
    assert printed.out == (
        "valid  zero-shot   best  gain\n"
        "AP             -  0.500     -\n"
        "\n"
        f"retention {scenes.name}: AP 0.412 -> 0.220 (53 %)\n"  # .22 of .4116
        "retention valid: AP 0.412 -> 0.220 (53 %)\n"
        "\n"
        "61 s. Best weights: runs/scenes-tiny/model. Run directory: runs/scenes-tiny.\n"
    )
    table = [line.split("  ") for line in printed.err.splitlines() if "red circle" in line]
    assert table[0][0].strip() == "1"  # the file's own id: 0 is the placeholder
    assert "Prompt: red circle. blue star." in printed.err
    assert "Run directory: runs/scenes-tiny\n" in printed.err
    found = runs[0]["config"]
    assert (found.epochs, found.optimizer.lr, found.denoising) == (3, 1e-3, False)
    assert found.output_dir == "runs/scenes-tiny"


def test_a_run_is_printed_by_metric_and_by_class(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    before = {"valid/AP": 0.0123, "valid/AP50": 0.05, "valid/AP75": None}
    after = {"valid/AP": 0.5, "valid/AP50": 0.75, "valid/AP75": 0.25}
    per_class = {"red circle": {"AP": 0.5, "AP50": 1.0}, "cat": {"AP": None, "AP50": None}}
    result = RunResult(Path("runs/x"), before, after, after, per_class, {}, 61.4)
    monkeypatch.setattr(api, "train", lambda config: result)
    assert main(["train", "data"]) == 0
    assert capsys.readouterr().out == (
        "valid  zero-shot   best    gain\n"
        "AP         0.012  0.500  +0.488\n"
        "AP50       0.050  0.750  +0.700\n"
        "AP75           -  0.250       -\n"
        "\n"
        "class          AP   AP50\n"
        "red circle  0.500  1.000\n"
        "cat             -      -\n"
        "\n"
        "61 s. Best weights: runs/x/model. Run directory: runs/x.\n"
    )


def test_the_command_line_overrides_the_recipe_of_the_model() -> None:
    recipe = load_recipe("nano")
    assert recipe["batch_size"] != TrainConfig.batch_size
    assert api.training_options({"data": "x"}, None, "x").batch_size == recipe["batch_size"]
    assert api.training_options({"data": "x", "batch_size": "3"}, None, "x").batch_size == 3


def test_runs_without_a_name_are_numbered(
    tiny: str, runs: list[dict[str, Any]], scenes: Path, tmp_path: Path
) -> None:
    (tmp_path / "run/model").mkdir(parents=True)
    shutil.copytree("tiny", "run/model", dirs_exist_ok=True)  # a run directory stands for its model
    for model in (tiny, tiny, tiny, "run"):
        assert main(["train", str(scenes), "--model", model]) == 0
    names = ["runs/scenes-tiny", "runs/scenes-tiny-2", "runs/scenes-tiny-3", "runs/scenes-run"]
    assert [str(run["out"]) for run in runs] == names
    assert runs[3]["config"].model == "run/model"


def test_a_resumed_run_has_its_own_options(tiny: str, runs: list[dict[str, Any]], scenes: Path) -> None:
    Path("run").mkdir()
    options = TrainConfig(data=str(scenes), model=tiny, output_dir="elsewhere", epochs=77)
    Path("run/config.yaml").write_text(to_yaml(options))
    assert main(["train", "--resume", "run"]) == 0
    found = runs[0]["config"]
    assert (found.epochs, found.resume, runs[0]["out"]) == (77, "run", Path("run"))


@pytest.mark.parametrize("name", ["_?", "\u200b"])  # cleans to nothing; has no token
def test_a_class_without_a_token_is_reported_before_anything_is_written(
    tiny: str, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture, name: str
) -> None:
    shutil.copytree(scenes, tmp_path / "data")
    for path in tmp_path.glob("data/*/_annotations.coco.json"):
        path.write_text(json.dumps(json.loads(path.read_text())).replace("blue star", json.dumps(name)[1:-1]))
    before = written(tmp_path)
    assert main(["train", "data", "--model", tiny]) == 3
    assert ascii(name)[1:-1] in ascii(capsys.readouterr().err).replace("\\\\", "\\")
    assert written(tmp_path) == before


@pytest.mark.parametrize(
    ("error", "code"), [(TrainingDiverged("5 steps were not finite."), 5), (KeyboardInterrupt(), 130)]
)
def test_errors_become_exit_codes_and_debug_shows_where(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    def fail(config: TrainConfig) -> None:
        raise error

    monkeypatch.setattr(api, "train", fail)
    assert main(["train", "data"]) == code
    assert capsys.readouterr().err == f"groundtune: {f'error: {error}' if code == 5 else 'interrupted.'}\n"
    with pytest.raises(type(error)):
        main(["train", "data", "--debug"])
    monkeypatch.setenv("GROUNDTUNE_DEBUG", "1")
    with pytest.raises(type(error)):
        main(["train", "data"])


def test_evaluate_prints_a_table_or_json(tiny: str, scenes: Path, capsys: pytest.CaptureFixture) -> None:
    line = ["evaluate", tiny, str(scenes), "--split", "train", "--classes", "Blue_Star"]
    assert main(line) == 0
    table = [row.split() for row in capsys.readouterr().out.splitlines() if row]
    assert main([*line, "--json", "--output", "found.json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert table[0] == ["train"] and [row[0] for row in table[1:]] == [*content["metrics"], "class", "blue"]
    assert content["split"] == "train" and list(content["per_class"]) == ["blue star"]
    predictions = json.loads(Path("found.json").read_text())
    assert {row["category_id"] for row in predictions} == {2}


def test_the_output_of_evaluate_names_images_and_classes(tiny: str, scenes: Path) -> None:
    """It is still COCO's result format, for pycocotools and for this package."""
    assert main(["evaluate", tiny, str(scenes), "--output", "found.json"]) == 0
    rows = json.loads(Path("found.json").read_text())
    file = scenes / "valid/_annotations.coco.json"
    content = json.loads(file.read_text())
    images = {row["id"]: row["file_name"] for row in content["images"]}
    names = {row["id"]: row["name"] for row in content["categories"]}
    assert rows and all(row["file_name"] == images[row["image_id"]] for row in rows)
    assert all(row["category_name"] == names[row["category_id"]] for row in rows)
    assert len(COCO(str(file)).loadRes("found.json").getAnnIds()) == len(rows)
    gt.convert(scenes, "yolo", format="yolo")
    result = gt.evaluate(tiny, "yolo")
    assert {Path(row["file_name"]).name for row in result.predictions} == set(images.values())
    assert all((Path("yolo") / row["file_name"]).is_file() for row in result.predictions)


@pytest.mark.parametrize("place", ["no/x.json", ".", "/proc/x.json", "file/x.json"])
def test_an_output_that_cannot_be_written_ends_before_the_evaluation(
    tiny: str, scenes: Path, place: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("file").write_text("")
    before = written(Path())
    monkeypatch.setattr("groundtune.data.reading.read_data", lambda *_: pytest.fail("it went on"))
    assert main(["evaluate", tiny, str(scenes), "--output", place]) == 2
    assert f"output: cannot write {place} (" in capsys.readouterr().err and written(Path()) == before


def test_an_output_is_tried_without_a_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old.json").write_text("old")
    for name in ("old.json", "new.json"):
        check_writable(tmp_path / name, "output")
    assert written(tmp_path) == {"old.json"} and (tmp_path / "old.json").read_text() == "old"

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(ConfigError, match=r"cannot write .*new.json \(Read-only file system\)"):
        check_writable(tmp_path / "new.json", "output")


@pytest.mark.parametrize("place", ["/dev/full", "found.json"])
def test_the_numbers_are_printed_even_if_the_disk_is_full(
    tiny: str, scenes: Path, place: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ["evaluate", tiny, str(scenes)]
    assert main(line) == 0
    table = capsys.readouterr().out

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    Path("found.json").write_text("old")
    before = written(Path())
    assert main([*line, "--output", place]) == 2
    printed = capsys.readouterr()
    assert printed.out == table
    assert printed.err.endswith(f"error: output: cannot write {place}: No space left on device.\n")
    assert written(Path()) == before and Path("found.json").read_text() == "old"
    assert Path("/dev/full").is_char_device()
    with pytest.raises(NotWritten) as caught:
        gt.evaluate(tiny, scenes, output=place)
    assert set(caught.value.result.metrics) >= {"AP", "APs"}


def test_predict_prints_boxes_or_json_and_saves(
    tiny: str, scenes: Path, capsys: pytest.CaptureFixture
) -> None:
    line = ["predict", tiny, str(scenes / "valid"), "--threshold", "0"]
    assert main([*line, "--classes", "cat, remote control", "--output-dir", "drawn", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert [Path(row["image"]).parent.name for row in content] == ["valid", "valid"]
    assert {found["class"] for found in content[0]["detections"]} == {"cat", "remote control"}
    assert len(list(Path("drawn").glob("*.png"))) == 2
    assert main(line) == 0  # the classes of the fine-tuning
    lines = capsys.readouterr().out.splitlines()
    first = content[0]["detections"]
    assert lines[0] == f"{content[0]['image']}: {len(first)} detections"
    assert lines[1].split("  ")[1] in ("red circle", "blue star") and len(lines[1].split()) == 7


def test_models_and_env_are_tables(capsys: pytest.CaptureFixture) -> None:
    assert main(["models"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[0].split()[:4] == ["name", "parameters", "backbone", "license"]
    assert rows[1].startswith("nano")
    published = ["iSEE-Laboratory/llmdet_tiny", "172", "M", "Swin-T", "Apache-2.0"]
    assert any(row.split()[:5] == published for row in rows)
    assert main(["env"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert {"groundtune", "python", "torch", "device", "threads", "deformable", "tensorboard"} <= set(names)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gt.train("nano", "x", epoch=2), r"train\(\): epoch: .* Did you mean epochs\?"),
        (lambda: gt.train("nano", "x", learning_rate=2), r"train\(\): learning_rate: .* Did you mean lr\?"),
        (lambda: gt.evaluate("nano"), r"evaluate\(\): data: missing"),
        (lambda: gt.evaluate("nano", "x", batch_size=0), r"evaluate\(\): batch_size: .* at least 1, got 0"),
        (lambda: gt.label("nano", "a.jpg"), r"label\(\): output_dir: missing"),
        (lambda: gt.check("x", fats=True), r"check\(\): fats: .* Did you mean fast\?"),
        (lambda: gt.convert("x", "y", format="cocoo"), r"convert\(\): format: .* Did you mean coco\?"),
        (lambda: gt.blend("x", "y", "z", at=[0.5]), r"blend\(\): at: .* Did you mean alphas\?"),
        (lambda: api.export("nano", "x", format="onx"), r"export\(\): format: .* Did you mean onnx\?"),
        (lambda: gt.write_report("x", images=5), r"write_report\(\): images: .* Did you mean max_images\?"),
        (lambda: api.predict("nano", "x", conf=0.5), r"predict\(\): conf: .* Did you mean threshold\?"),
    ],
)
def test_functions_check_their_options_like_the_command_line(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call()


def test_a_loaded_model_is_trained_in_place_and_keeps_its_device(
    tiny: str, runs: list[dict[str, Any]], scenes: Path
) -> None:
    model = gt.load(tiny, device="cpu")
    run = gt.train(model, scenes, lr=0.5, epochs=2, output_dir="runs/x", quiet=True)
    assert run.metrics["valid/AP"] == 0.5 and runs[0]["bundle"] is model.bundle
    found = runs[0]["config"]
    assert (found.optimizer.lr, found.epochs, found.device, found.model) == (0.5, 2, "cpu", "tiny")


def test_a_model_predicts_one_image_or_a_list(tiny: str) -> None:
    model, image = gt.load(tiny), np.zeros((64, 64, 3), np.uint8)
    assert set(model.predict(image, ["sofa"], threshold=0).data["class_name"]) == {"sofa"}
    assert [len(found) for found in model.predict([image, image], threshold=1)] == [0, 0]
    assert set(model.predict(image, threshold=1, thresholds={"blue star": 0}).data["class_name"]) == {
        "blue star"
    }
    with pytest.raises(ConfigError, match=r"predictor\(\): treshold: .* Did you mean threshold\?"):
        model.predict(image, treshold=1)


def test_unknown_public_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = gt.trian


def test_no_package_hides_a_public_function() -> None:
    assert not {module.name for module in pkgutil.iter_modules(gt.__path__)} & set(gt.__all__)
