"""The command line: what it says, what it returns, what it leaves behind. Training itself is a fake here."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import supervision

from groundtune.cli import main
from groundtune.config import TrainConfig, to_yaml
from groundtune.data.scenes import write_scenes
from groundtune.errors import TrainingDiverged

SOURCE = Path(__file__).parents[1] / "src"


@dataclass
class Engine:
    """Stands for model and engine: notes what it is called with, and gives fixed numbers."""

    tokenizer: Any
    calls: list[dict[str, Any]] = field(default_factory=list)
    error: BaseException | None = None

    def load_bundle(self, source: str, seed: int = 0) -> SimpleNamespace:
        config = SimpleNamespace(max_text_len=256, num_queries=100)
        image = SimpleNamespace(short_side=320, max_side=320)
        known = {"classes": ["cat"], "recipe": {}, "image": image}
        return SimpleNamespace(
            source=source, tokenizer=self.tokenizer, config=config, network=None, tuned_names=None, **known
        )

    def train(
        self, config: TrainConfig, bundle: Any, splits: dict, out: Path, progress: Any, retained: dict
    ) -> SimpleNamespace:
        self.calls.append({"config": config, "bundle": bundle, "splits": splits, "out": out})
        if self.error is not None:
            raise self.error
        out.mkdir(parents=True)
        return SimpleNamespace(
            folder=out,
            zero_shot={"valid/AP": 0.0123, "valid/AP50": 0.05, "valid/AP75": None},
            metrics={"valid/AP": 0.5, "valid/AP50": 0.75, "valid/AP75": 0.25},
            per_class={"red circle": {"AP": 0.5, "AP50": 1.0}, "cat": {"AP": None, "AP50": None}},
            retention={name: {"before": {"AP": 0.4116}, "after": {"AP": 0.22}} for name in retained},
            seconds=61.4,
        )

    def evaluate(self, bundle: Any, dataset: Any, **options: Any) -> SimpleNamespace:
        self.calls.append({"bundle": bundle, "dataset": dataset, **options})
        options["progress"].evaluation(1, 1)
        per_class = {"red circle": {"AP": 0.5, "AP50": 1.0}}
        return SimpleNamespace(
            metrics={"AP": 0.5, "AP50": None}, per_class=per_class, predictions=[{"image_id": 1}]
        )

    def find(self, predictor: Any, images: list) -> list[supervision.Detections]:
        self.calls.append({"names": predictor.names, "threshold": predictor.threshold, "images": images})
        none = supervision.Detections.empty()
        one = supervision.Detections(
            np.array([[1.0, 2.0, 3.5, 4.25]]),
            confidence=np.array([0.75]),
            class_id=np.array([0]),
            data={"class_name": np.array([predictor.names[0]])},
        )
        return [one, *[none] * (len(images) - 1)]


@pytest.fixture()
def engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tokenizer: Any) -> Engine:
    """The fake engine, in an empty working folder."""
    import groundtune.model.checkpoint.load as loading
    import groundtune.predict.predictor as predict
    import groundtune.report.build as report

    fake = Engine(tokenizer)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loading, "load_bundle", fake.load_bundle)
    monkeypatch.setitem(sys.modules, "groundtune.engine.train", SimpleNamespace(train=fake.train))
    monkeypatch.setitem(sys.modules, "groundtune.engine.evaluate", SimpleNamespace(evaluate=fake.evaluate))
    monkeypatch.setattr(report, "build_report", lambda folder, splits: folder / "report.html")
    monkeypatch.setattr(predict.Predictor, "find", lambda predictor, images: fake.find(predictor, images))
    return fake


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    write_scenes(folder, train=6, valid=2, classes=["red circle", "blue star"], size=64)
    return folder


def groundtune(*arguments: str, **options: Any) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    command = [sys.executable, "-m", "groundtune.cli", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, **options)


@pytest.mark.parametrize(
    "code", ["import groundtune", "from groundtune.cli import main; main(['train', '--help'])"]
)
def test_import_and_help_do_without_the_heavy_packages(code: str) -> None:
    heavy = (
        "{'torch', 'transformers', 'numpy', 'PIL', 'rich', 'supervision', 'accelerate'} & set(sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; {code}; assert not {heavy}, {heavy}"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("trian", "there is no command 'trian'. Did you mean train? See groundtune --help."),
        ("--foo", "unrecognized arguments: --foo. See groundtune --help."),
        (
            "train --epocs 5 x",
            "there is no option --epocs. Did you mean --epochs? See groundtune train --help.",
        ),
        (
            "train x --epoch=5",
            "there is no option --epoch. Did you mean --epochs? See groundtune train --help.",
        ),
        (
            "train x --no-denoisin",
            "there is no option --no-denoisin. Did you mean --no-denoising? See groundtune train --help.",
        ),
        (
            "predict nano a.jpg --clases cat",
            "there is no option --clases. Did you mean --classes? See groundtune predict --help.",
        ),
        (
            "evaluate --splitt train",
            "there is no option --splitt. Did you mean --split? See groundtune evaluate --help.",
        ),
        ("train x --zzzz", "there is no option --zzzz. See groundtune train --help."),
        ("env --json", "there is no option --json. See groundtune env --help."),
        ("train x y", "'y' is one argument too many. See groundtune train --help."),
        ("train x --lr", "argument --lr: expected one argument. See groundtune train --help."),
        ("train x --lr fast", "--lr: expected a number, got 'fast'."),
        ("train", "data: missing; expected a folder with images and boxes, or a COCO .json file."),
        ("evaluate nano", "data: missing; expected a folder with images and boxes, or a COCO .json file."),
        (
            "predict nano",
            "images: missing; expected images, videos, folders or patterns of them, the number of a camera, or - for paths "
            "on stdin.",
        ),
        (
            "predict nano x.jpg --threshold 2",
            "--threshold: expected a number of at least 0 and of at most 1, got 2.0.",
        ),
        (
            "train x --config no.yaml",
            "Cannot read the configuration no.yaml: No such file or directory. Expected a YAML file.",
        ),
        ("train --resume no", "resume: no has no config.yaml; name the folder of a run that was started."),
        (
            "evaluate nano x --output-dir no/x.json",
            "out: no/x.json cannot be written; name a file in a folder that exists.",
        ),
    ],
)
def test_pitfall_32_a_wrong_command_line_is_one_line_with_one_suggestion(
    engine: Engine, capsys: pytest.CaptureFixture, line: str, said: str
) -> None:
    assert main(line.split()) == 2
    shown = capsys.readouterr()
    assert shown.err == f"groundtune: error: {said}\n"
    assert shown.out == ""
    assert engine.calls == []


def test_without_arguments_the_help_is_shown(capsys: pytest.CaptureFixture) -> None:
    assert main([]) == 2
    assert "fine-tune a model on a folder" in capsys.readouterr().err
    assert main(["--help"]) == 0
    assert "fine-tune a model on a folder" in capsys.readouterr().out
    assert main(["--version"]) == 0


def written(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def coco(folder: Path, content: object) -> None:
    (folder / "data/train").mkdir(parents=True)
    (folder / "data/train/_annotations.coco.json").write_text(json.dumps(content))


CASES = {
    "missing folder": (None, "train nowhere", 3, "The data nowhere does not exist."),
    "not COCO": ({"images": []}, "train data", 3, "_annotations.coco.json"),
    "not COCO but a list": ([1, 2], "train data", 3, "_annotations.coco.json"),
    "missing folder, evaluate": (None, "evaluate nano nowhere", 3, "The data nowhere does not exist."),
    "missing images": (None, "predict nano a.jpg b.jpg", 3, "a.jpg: no such image; b.jpg: no"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_data_is_one_message_and_leaves_nothing_behind(
    engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture, case: str
) -> None:
    content, line, code, said = CASES[case]
    if content is not None:
        coco(tmp_path, content)
    before = written(tmp_path)
    assert main(line.split()) == code
    shown = capsys.readouterr()
    assert shown.err.startswith("groundtune: error: ")
    assert said in shown.err
    assert "Traceback" not in shown.err
    assert written(tmp_path) == before
    assert engine.calls == []


@pytest.mark.parametrize("name", ["(x)", "\u200b"])  # cleans to nothing; has no token
def test_a_class_without_a_token_is_named_before_anything_is_written(
    engine: Engine, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture, name: str
) -> None:
    shutil.copytree(scenes, tmp_path / "data")
    for path in tmp_path.glob("data/*/_annotations.coco.json"):
        path.write_text(json.dumps(json.loads(path.read_text())).replace("blue star", json.dumps(name)[1:-1]))
    before = written(tmp_path)
    assert main(["train", "data"]) == 3
    assert ascii(name)[1:-1] in ascii(capsys.readouterr().err).replace("\\\\", "\\")
    assert written(tmp_path) == before
    assert engine.calls == []


def test_an_unknown_module_is_answered_with_the_names_that_exist(
    engine: Engine, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "c.yaml").write_text("param_groups: [{modules: [backbon], lr_mult: 0}]\n")
    assert main(["train", str(scenes), "--config", "c.yaml"]) == 2
    assert capsys.readouterr().err == (
        "groundtune: error: param_groups: no module is called 'backbon'; there are backbone, language_model, neck, "
        "encoder, decoder, bbox_head and paths inside them. Did you mean backbone?\n"
    )
    assert written(tmp_path) == {"c.yaml"}


def test_a_run_folder_with_something_in_it_is_refused_and_left_alone(
    engine: Engine, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/notes.txt").write_text("mine")
    assert main(["train", str(scenes), "--output-dir", "run"]) == 2
    assert capsys.readouterr().err == (
        "groundtune: error: out: the folder run is not empty. Name another with --output-dir, or go on with that run by "
        "--resume run.\n"
    )
    assert written(tmp_path) == {"run", "run/notes.txt"}
    assert main(["train", str(scenes), "--output-dir", "run/notes.txt"]) == 2
    assert "is a file; name a folder" in capsys.readouterr().err


def test_train_shows_the_classes_and_prints_the_table(
    engine: Engine, scenes: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["train", "--epochs", "3", str(scenes), "--lr", "1e-3", "--no-denoising"]) == 0
    shown = capsys.readouterr()
    assert shown.out == (
        "valid  zero-shot   best    gain\n"
        "AP         0.012  0.500  +0.488\n"
        "AP50       0.050  0.750  +0.700\n"
        "AP75           -  0.250       -\n"
        "\n"
        "class          AP   AP50\n"
        "red circle  0.500  1.000\n"
        "cat             -      -\n"
        "\n"
        "61 s. The best weights are in runs/scenes-nano/model, everything else in runs/scenes-nano.\n"
    )
    table = [line.split("  ") for line in shown.err.splitlines() if "red circle" in line]
    assert table[0][0].strip() == "1"  # the file's own id: 0 is the placeholder
    assert "Prompt: red circle. blue star." in shown.err
    assert "Run folder: runs/scenes-nano\n" in shown.err
    config = engine.calls[0]["config"]
    assert (config.epochs, config.optimizer.lr, config.denoising) == (3, 1e-3, False)
    assert config.output_dir == "runs/scenes-nano"


def test_train_prints_what_is_left_of_the_retained_sets(
    engine: Engine, scenes: Path, capsys: pytest.CaptureFixture
) -> None:
    """.22 of .4116 is 53.4 %. A set that is not there ends the run before the model is loaded."""
    assert main(["train", str(scenes), "--retention-data", f"{scenes},{scenes / 'valid'}"]) == 0
    assert capsys.readouterr().out.split("\n\n")[2].splitlines() == [
        f"retained {name}: AP 0.412 -> 0.220 (53 % kept)" for name in (scenes.name, "valid")
    ]
    assert main(["train", str(scenes), "--retention-data", "gone"]) == 3
    assert "The data gone does not exist." in capsys.readouterr().err and len(engine.calls) == 1


def test_the_recipe_of_the_model_stands_below_the_command_line(engine: Engine, scenes: Path) -> None:
    from groundtune.model.checkpoint.load import load_recipe

    recipe = load_recipe("nano")
    assert recipe["batch_size"] != TrainConfig(data="x").batch_size
    main(["train", str(scenes)])
    main(["train", str(scenes), "--batch-size", "3"])
    assert [call["config"].batch_size for call in engine.calls] == [recipe["batch_size"], 3]


def test_runs_without_a_name_are_numbered(engine: Engine, scenes: Path) -> None:
    for _ in range(3):
        assert main(["train", str(scenes)]) == 0
    assert [str(call["out"]) for call in engine.calls] == [
        "runs/scenes-nano",
        "runs/scenes-nano-2",
        "runs/scenes-nano-3",
    ]


def test_resume_takes_up_the_options_of_the_run(engine: Engine, scenes: Path, tmp_path: Path) -> None:
    engine.error = KeyboardInterrupt()
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text(
        to_yaml(TrainConfig(data=str(scenes), output_dir="elsewhere", epochs=77))
    )
    assert main(["train", "--resume", "run"]) == 130
    call = engine.calls[0]
    assert (call["config"].epochs, call["config"].resume, call["out"]) == (77, "run", Path("run"))
    assert (
        call["config"].batch_size == TrainConfig(data="x").batch_size
    )  # not the recipe's: the run had been resolved


def test_errors_become_exit_codes_and_debug_shows_where(
    engine: Engine, scenes: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.error = TrainingDiverged("5 steps in a row were not finite.")
    assert main(["train", str(scenes)]) == 5
    assert capsys.readouterr().err.endswith("groundtune: error: 5 steps in a row were not finite.\n")
    with pytest.raises(TrainingDiverged):
        main(["train", str(scenes), "--debug"])
    monkeypatch.setenv("GROUNDTUNE_DEBUG", "1")
    with pytest.raises(TrainingDiverged):
        main(["train", str(scenes)])


def test_a_model_that_does_not_exist_is_exit_code_4(scenes: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["evaluate", "nowhere", str(scenes)]) == 4
    assert "Cannot load the model 'nowhere': no such file or folder" in capsys.readouterr().err


def test_evaluate_prints_a_table_or_json(
    engine: Engine, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    line = ["evaluate", "nano", str(scenes), "--split", "train", "--classes", "Blue_Star"]
    assert main(line) == 0
    assert capsys.readouterr().out == (
        "train\nAP     0.500\nAP50       -\n\nclass          AP   AP50\nred circle  0.500  1.000\n"
    )
    assert engine.calls[0]["class_indices"] == [1]
    assert engine.calls[0]["dataset"].name == "train"
    assert main([*line, "--json", "--output-dir", "found.json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"] == {"AP": 0.5, "AP50": None}
    assert json.loads((tmp_path / "found.json").read_text()) == [{"image_id": 1}]


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (["--split", "trian"], "there is no split 'trian'; found: train, valid. Did you mean train?"),
        (["--classes", "red circel"], "Unknown class 'red circel' (did you mean 'red circle'?)"),
    ],
)
def test_evaluate_knows_splits_and_classes(
    engine: Engine, scenes: Path, capsys: pytest.CaptureFixture, option: list[str], said: str
) -> None:
    assert main(["evaluate", "nano", str(scenes), *option]) == 3
    assert said in capsys.readouterr().err


def test_predict_prints_boxes_and_saves(engine: Engine, scenes: Path, capsys: pytest.CaptureFixture) -> None:
    folder = scenes / "valid"
    images = sorted(folder.glob("*.jpg")) or sorted(folder.glob("*.png"))
    line = ["predict", "nano", str(folder), "--threshold", "0.5"]
    assert main([*line, "--classes", "cat, remote control", "--output-dir", "drawn"]) == 0
    assert (
        capsys.readouterr().out
        == f"{images[0]}: 1 found\n  cat  0.750  1.0 2.0 3.5 4.2\n{images[1]}: 0 found\n"
    )
    assert len(engine.calls[0]["images"]) == 2
    assert engine.calls[0]["names"] == ["cat", "remote control"]
    assert engine.calls[0]["threshold"] == 0.5
    assert (Path("drawn") / f"{images[1].stem}.png").is_file()
    assert main([*line, "--json"]) == 0  # the names of the fine-tuning
    first = json.loads(capsys.readouterr().out)[0]
    assert first["detections"] == [{"class": "cat", "score": 0.75, "box_xyxy": [1.0, 2.0, 3.5, 4.25]}]


def test_a_run_folder_stands_for_its_model(engine: Engine, scenes: Path, tmp_path: Path) -> None:
    (tmp_path / "run/model").mkdir(parents=True)
    (tmp_path / "run/model/groundtune.json").write_text("{}")
    assert main(["evaluate", "run", str(scenes)]) == 0
    assert engine.calls[0]["bundle"].source == "run/model"
    assert main(["train", str(scenes), "--model", "run"]) == 0
    assert engine.calls[1]["config"].model == "run/model"
    assert engine.calls[1]["out"] == Path("runs/scenes-run")


def test_models_and_env_are_lists(capsys: pytest.CaptureFixture) -> None:
    assert main(["models"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[0].split()[:4] == ["name", "parameters", "backbone", "license"]
    assert rows[1].startswith("nano")
    assert any(
        row.split()[:5] == ["iSEE-Laboratory/llmdet_tiny", "172", "M", "Swin-T", "Apache-2.0"] for row in rows
    )
    assert main(["env"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert {"groundtune", "python", "torch", "device", "threads", "deformable", "tensorboard"} <= set(names)


def test_a_reader_of_stdout_that_goes_is_no_traceback() -> None:
    code = "import sys; from groundtune.cli import main; sys.exit(main(['models']))"
    reader, writer = os.pipe()
    os.close(reader)
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, stdout=writer, stderr=subprocess.PIPE, text=True
    )
    os.close(writer)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_the_python_interface_checks_its_options_like_the_command_line(engine: Engine, scenes: Path) -> None:
    import groundtune as gt
    from groundtune.errors import ConfigError

    run = gt.train("nano", scenes, epochs=2, output_dir="runs/x", quiet=True)
    assert run.metrics["valid/AP"] == 0.5
    assert engine.calls[0]["config"].epochs == 2
    with pytest.raises(
        ConfigError, match=r"train\(\): epoch: there is no such option. Did you mean epochs\?"
    ):
        gt.train("nano", scenes, epoch=2)
    model = gt.load("nano")
    gt.train(model, scenes, lr=0.5, quiet=True)
    assert engine.calls[1]["bundle"] is model.bundle
    assert engine.calls[1]["config"].optimizer.lr == 0.5
    image = np.zeros((4, 4, 3), np.uint8)
    assert len(model.predict(image, ["sofa"])) == 1
    assert [len(found) for found in model.predict([image, image])] == [1, 0]
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = gt.trian
