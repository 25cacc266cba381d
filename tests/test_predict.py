"""Finding objects by name or sentence: boxes in the user's pixels, names as the user wrote them; and the command for it."""

import json
import sys
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from supervision import Detections
from video_files import UNEVEN, write_video

from groundtune.api import Model
from groundtune.cli import main
from groundtune.contracts import ImageFormat
from groundtune.errors import ConfigError, DataError
from groundtune.predict import predictor as module
from groundtune.predict.postprocess import ImageDetections
from groundtune.predict.predictor import Predictor, batched, predict
from groundtune.predict.tiles import Tiles
from groundtune.predict.writers import records_of

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def nano():
    from groundtune.model.checkpoint.load import load_bundle

    return load_bundle("nano")


@pytest.fixture()
def stub(monkeypatch, tokenizer):
    """A bundle whose network finds, in every image, all of it as class 0 and its left half as the last class."""
    calls = []

    def detect(network, features, prompts, sizes_hw, kept):
        last = sum(len(indices) for indices in prompts.class_indices) - 1
        calls.append(SimpleNamespace(sizes_hw=list(sizes_hw), prompts=prompts, images=features))
        return [
            ImageDetections(
                torch.tensor([[0, 0, w, h], [0, 0, w / 2, h]], dtype=torch.float32),
                torch.tensor([0.75, 0.5]),
                torch.tensor([0, last]),
            )
            for h, w in sizes_hw
        ]

    monkeypatch.setattr(module, "detect_batch", detect)
    monkeypatch.setattr(module, "extract", lambda network, images, device: images)
    network = torch.nn.Linear(1, 1)
    return SimpleNamespace(
        network=network,
        to=network.to,
        own_names=None,
        kept=None,
        tokenizer=tokenizer,
        config=SimpleNamespace(max_text_len=256),
        image_format=ImageFormat((0.0,) * 3, (1.0,) * 3, 32, 64),
        classes=[],
        source="stub",
        calls=calls,
    )


def run(bundle, images, classes=("cat", "dog"), threshold=0.0, batch_size=4):
    return predict(bundle, images, classes, threshold=threshold, device=CPU, batch_size=batch_size)


def noise(height=40, width=60, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_nano_finds_boxes_within_the_image_and_paths_arrays_and_images_are_alike(nano, tmp_path):
    array = noise(90, 200)
    Image.fromarray(array).save(tmp_path / "a.png")
    found = run(nano, [tmp_path / "a.png", Image.fromarray(array), array], ["Red_Circle", "dog"])
    assert [len(part) for part in found] == [200] * 3  # 100 queries, two classes
    for part in found:
        assert (part.xyxy >= 0).all() and (part.xyxy <= [200, 90, 200, 90]).all()
        assert (part.xyxy[:, 2:] >= part.xyxy[:, :2]).all() and part.xyxy[
            :, 2
        ].max() > 90  # not in shares, not square
        assert (
            (np.diff(part.confidence) <= 0).all()
            and part.confidence.min() >= 0
            and part.confidence.max() <= 1
        )
        assert set(part.data["class_name"]) == {"Red_Circle", "dog"}
        np.testing.assert_allclose(
            part.xyxy, found[0].xyxy, atol=1e-3
        )  # of 200 px; a row of a batch rounds in its own way


def test_nano_finds_the_same_in_any_company(nano):
    images = [noise(90, 200, 1), noise(150, 60, 2), noise(100, 100, 3)]
    together, alone = run(nano, images, batch_size=3), run(nano, images, batch_size=1)
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_allclose(np.sort(a.confidence), np.sort(b.confidence), atol=1e-4)
        np.testing.assert_allclose(a.xyxy[:5], b.xyxy[:5], atol=0.05)


def test_nano_is_left_in_the_mode_that_it_was_in(nano):
    nano.network.decoder.train()
    run(nano, [noise()])
    assert nano.network.decoder.training and not nano.network.backbone.training
    nano.network.eval()


def test_a_list_gives_a_list_and_an_image_its_detections(stub):
    model = Model(stub, "cpu")
    one = model.predict(noise(), ["cat"])
    assert isinstance(one, Detections) and len(one) == 2
    several = model.predict([noise(), noise(20, 30)], ["cat"])
    assert [part.xyxy[0].tolist() for part in several] == [[0, 0, 60, 40], [0, 0, 30, 20]]
    assert model.predict([], ["cat"]) == [] and run(stub, []) == []
    with pytest.raises(ConfigError, match="no classes of its own"):
        model.predict(noise())


def test_batches_have_the_asked_size_and_keep_the_order(stub):
    images = [noise(20 + i, 30) for i in range(5)]
    found = run(stub, images, batch_size=2)
    assert [call.sizes_hw for call in stub.calls] == [[(20, 30), (21, 30)], [(22, 30), (23, 30)], [(24, 30)]]
    assert [part.xyxy[0, 3] for part in found] == [20, 21, 22, 23, 24]
    # short side 32: the network sees resized images, the boxes come back in the original's pixels
    assert stub.calls[2].images[0].shape == (3, 32, 40)


@pytest.mark.parametrize(
    ("classes", "looked_for", "ids"),
    [
        (["Red_Circle", "dog"], ["red circle", "dog"], [0, 1]),
        (["cat", "Cat", "CAT (big)", "dog"], ["cat", "dog"], [0, 3]),  # one class, under its first name
        (["  TV.monitor "], ["tv monitor"], [0, 0]),
    ],
)
def test_names_come_back_as_they_were_given(stub, classes, looked_for, ids):
    (found,) = run(stub, [noise()], classes)
    text = stub.calls[0].prompts.text.input_ids[0]
    assert stub.tokenizer.decode(text[1:-1]) == " ".join(f"{name}." for name in looked_for)
    assert found.class_id.tolist() == ids
    assert found.data["class_name"].tolist() == [classes[i] for i in ids]


def test_names_without_text_are_refused(stub):
    with pytest.raises(DataError, match="no text left.*'_'"):
        run(stub, [noise()], ["cat", "_"])


@pytest.mark.parametrize(("threshold", "count"), [(0.0, 2), (0.5, 2), (0.51, 1), (0.75, 1), (0.76, 0)])
def test_the_threshold_is_the_smallest_score(stub, threshold, count):
    (found,) = run(stub, [noise()], threshold=threshold)
    assert found.confidence.tolist() == [0.75, 0.5][:count]
    assert found.xyxy.shape == (count, 4) and len(found.class_id) == len(found.data["class_name"]) == count
    assert (
        records_of(found)
        == [
            {"class": "cat", "score": 0.75, "box_xyxy": [0, 0, 60, 40]},
            {"class": "dog", "score": 0.5, "box_xyxy": [0, 0, 30, 40]},
        ][:count]
    )


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (noise().astype(np.float32), r"\(40, 60, 3\) float32"),
        (noise()[:, :, 0], r"\(40, 60\) uint8"),
        (noise().transpose(2, 0, 1), r"\(3, 40, 60\)"),
        (np.zeros((40, 60, 4), dtype=np.uint8), "RGB order, found"),
        (np.zeros((0, 60, 3), dtype=np.uint8), r"\(0, 60, 3\)"),
        (("a.png", "b.png"), "found tuple"),
        (None, "found NoneType"),
        (Path("absent.png"), "absent.png does not exist"),
    ],
)
def test_what_is_no_image_is_said(stub, image, message):
    with pytest.raises(DataError, match=message):
        run(stub, [noise(), image])


def test_files_are_read_alike_from_a_path_and_opened_by_the_user(stub, tmp_path):
    """Transparency, 16 bits: what `load_image` does with files is done with PIL images too."""
    Image.new("RGBA", (32, 32), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.fromarray(np.full((32, 32), 32768, dtype=np.uint16)).save(tmp_path / "deep.png")
    for name, value in (("clear.png", 1.0), ("deep.png", 128 / 255)):
        run(stub, [tmp_path / name, Image.open(tmp_path / name)])
        for image in stub.calls.pop().images:
            torch.testing.assert_close(image, torch.full((3, 32, 32), value))


def test_an_image_that_is_cut_off_is_named(stub, tmp_path):
    path = tmp_path / "cut.jpg"
    Image.fromarray(noise(64, 64)).save(path)
    path.write_bytes(path.read_bytes()[:900])
    for image in (path, Image.open(path)):
        with pytest.raises(DataError, match="cut.jpg"):
            run(stub, [image])


def test_images_are_taken_a_batch_at_a_time_and_never_all(stub):
    asked = []
    images = (asked.append(i) or noise() for i in range(9))
    found = Predictor(stub, ["cat"], CPU, batch_size=2).each(images)
    next(found)
    assert asked == [0, 1]
    assert len(list(found)) == 8 and len(asked) == 9
    assert list(batched("abcde", 2)) == [["a", "b"], ["c", "d"], ["e"]] and list(batched("", 2)) == []
    assert Predictor(stub, ["cat"], CPU).find([]) == []


def test_torch_is_as_it_was_between_the_images_of_a_stream(nano):
    found = Predictor(nano, ["cat"], CPU, batch_size=1, precision="bf16").each([noise(), noise()])
    next(found)
    assert torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize(
    ("thresholds", "names"),
    [
        ({"CAT": 0.8}, ["dog"]),
        ({"dog": 0.51, "horse": 0.0}, ["Cat"]),
        ({"cat": 0.75, "dog": 0.5}, ["Cat", "dog"]),
    ],
)
def test_a_name_has_its_own_threshold_however_it_is_written(stub, thresholds, names):
    """Scores of the stub: 0.75 and 0.5."""
    (found,) = Predictor(stub, ["Cat", "dog"], CPU, 0.5, thresholds).find([Image.fromarray(noise())])
    assert found.data["class_name"].tolist() == names


def test_sentences_are_prompts_of_their_own_and_score_by_their_best_token(stub):
    sentences = ["The cat. on the left?", "a [big dog] near [the sofa]"]
    predictor = Predictor(stub, sentences, CPU, sentences=True)
    assert predictor.names == ["The cat on the left", "big dog", "the sofa"]
    (found,) = predictor.find([Image.fromarray(noise())])
    prompts = stub.calls[0].prompts
    assert prompts.how == "max" and prompts.class_indices == [[0], [1, 2]]
    ids = prompts.text.input_ids
    read = [stub.tokenizer.decode(row[row != stub.tokenizer.pad_token_id][1:-1]) for row in ids]
    assert read == ["the cat on the left.", "a big dog near the sofa."]
    # tokens of the first: [CLS] the cat on the left . [SEP]; of the second: [CLS] a big dog near the sofa . [SEP]
    assert [rows.nonzero()[:, 1].tolist() for rows in prompts.phrase_maps] == [[1, 2, 3, 4, 5], [2, 3, 5, 6]]
    assert found.data["class_name"].tolist() == ["The cat on the left", "the sofa"]
    assert found.class_id.tolist() == [0, 2]


def test_the_score_of_a_sentence_is_the_best_of_its_tokens(tokenizer, monkeypatch):
    """Through `detect_batch` itself, on logits put together by hand."""
    from groundtune.predict.detect import detect_batch, sentence_prompts
    from groundtune.text.prompt import sentence_prompt

    logits = torch.full((1, 2, 256), -torch.inf)
    logits[0, :, 1:6] = torch.tensor([[0.0, 2.0, -1.0, 0.0, 0.0], [-3.0, -2.0, -3.0, -3.0, -3.0]])
    network = SimpleNamespace(
        forward_features=lambda maps, text: {
            "pred_logits": logits,
            "pred_boxes": torch.tensor([[[0.5, 0.5, 1, 1]] * 2]),
        }
    )
    prompts = sentence_prompts(tokenizer, [sentence_prompt("the cat on the left")])
    (found,) = detect_batch(network, [[]], prompts, [(10, 10)])
    torch.testing.assert_close(found.scores, torch.tensor([2.0, -2.0]).sigmoid())


@pytest.mark.parametrize("sentence", ["", " . ", "a [cat", "cat]", "[]", "a [ ] cat", "[a [b] c]", "?"])
def test_sentences_that_cannot_be_looked_for_are_said(stub, sentence):
    with pytest.raises(DataError, match="cannot be looked for"):
        Predictor(stub, [sentence], CPU, sentences=True)


def test_a_sentence_of_nano_is_found_like_a_name(nano):
    """One word is both, and its one token makes mean and maximum equal."""
    image = Image.fromarray(noise(90, 120))
    (name,) = Predictor(nano, ["cat"], CPU, 0.0).find([image])
    (sentence,) = Predictor(nano, ["cat"], CPU, 0.0, sentences=True).find([image])
    np.testing.assert_allclose(name.confidence, sentence.confidence, atol=1e-5)


def test_tiles_look_at_the_image_and_its_parts_and_answer_once(stub):
    """The stub finds, in every region, all of it as class 0, and its left half as the last class."""
    (found,) = Predictor(stub, ["cat", "dog"], CPU, tiles=Tiles(100, 0.2), batch_size=2).find(
        [Image.fromarray(noise(100, 180))]
    )
    assert [call.sizes_hw for call in stub.calls] == [[(100, 180), (100, 100)], [(100, 100)]]
    cats = found.xyxy[found.class_id == 0].tolist()
    assert cats == [[0, 0, 180, 100]]  # of the tiles every cat is cut, and agrees with the whole one
    assert len(found) > 1 and found.data["class_name"][0] == "cat"
    (small,) = Predictor(stub, ["cat", "dog"], CPU, tiles=Tiles(200)).find([Image.fromarray(noise(100, 180))])
    assert len(small) == 2


@pytest.mark.slow
def test_memory_does_not_grow_with_the_images(stub, tmp_path, monkeypatch):
    """700 images of 0.3 MB, once decoded: 180 MB lie between the 100th and the last one."""
    import psutil

    load(monkeypatch, stub)
    Image.new("RGB", (320, 240)).save(tmp_path / "a.png")
    sizes = []

    def lines():
        for number in range(700):
            if number in (100, 699):
                sizes.append(psutil.Process().memory_info().rss)
            yield f"{tmp_path / 'a.png'}\n"

    monkeypatch.setattr(sys, "stdin", lines())
    monkeypatch.setattr(stub, "calls", SimpleNamespace(append=lambda call: None))
    line = [
        "predict",
        "stub",
        "-",
        "--classes",
        "cat,dog",
        "--device",
        "cpu",
        "--output-dir",
        str(tmp_path / "out"),
    ]
    assert main([*line, "--save-as", "json,coco,yolo,csv"]) == 0
    assert len(json.loads((tmp_path / "out/coco.json").read_text())["annotations"]) == 1400
    assert sizes[1] - sizes[0] < 40_000_000


def load(monkeypatch, bundle):
    """Let every model source load this bundle."""
    monkeypatch.setattr("groundtune.model.checkpoint.load.load_bundle", lambda source, seed=0: bundle)


@pytest.fixture()
def folder(stub, tmp_path, monkeypatch):
    """An empty working folder with two images, where every model is the stub."""
    load(monkeypatch, stub)
    monkeypatch.chdir(tmp_path)
    for name in ("in/a.jpg", "in/b.jpg"):
        Path(name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (80, 60)).save(name)


PREDICT = ["predict", "stub", "--classes", "Red_Circle,dog", "--device", "cpu"]
FOUND = ["  Red_Circle  0.750  0.0 0.0 80.0 60.0", "  dog  0.500  0.0 0.0 40.0 60.0"]


def test_the_command_prints_and_saves(folder, capsys):
    assert main([*PREDICT, "in", "--output-dir", "out"]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines() == ["in/a.jpg: 2 found", *FOUND, "in/b.jpg: 2 found", *FOUND]
    assert said.err == "The results are in out.\n"
    assert sorted(path.name for path in Path("out").iterdir()) == ["a.png", "b.png", "predictions.json"]
    assert main([*PREDICT, "in/b.jpg", "--json", "--threshold", "0.6"]) == 0
    one = {"class": "Red_Circle", "score": 0.75, "box_xyxy": [0.0, 0.0, 80.0, 60.0]}
    assert json.loads(capsys.readouterr().out) == [{"image": "in/b.jpg", "detections": [one]}]


def test_an_unreadable_image_in_the_middle_does_not_end_it(folder, capsys):
    Path("in/aa.jpg").write_text("no image")
    assert main([*PREDICT, "in", "--output-dir", "out", "--json"]) == 3
    said = capsys.readouterr()
    assert [one["image"] for one in json.loads(said.out)] == ["in/a.jpg", "in/b.jpg"]
    assert "skipped: Cannot read the image in/aa.jpg" in said.err
    assert said.err.endswith("1 file(s) could not be read or are truncated:\n  in/aa.jpg\n")
    content = json.loads(Path("out/predictions.json").read_text())
    assert list(content["unreadable"]) == ["in/aa.jpg"] and len(content["images"]) == 2


def test_a_video_is_looked_at_and_drawn_with_its_times(folder, capsys):
    write_video(Path("in/film.mp4"), UNEVEN, sound=True)
    assert (
        main(
            [
                *PREDICT,
                "in/film.mp4",
                "in/film.mp4",
                "--frame-stride",
                "2",
                "--output-dir",
                "out",
                "--save-as",
                "drawn,coco",
            ]
        )
        == 0
    )
    said = capsys.readouterr()
    assert said.out.splitlines()[::3][:4] == [
        f"in/film.mp4 frame {frame} at {time} s: 2 found"
        for frame, time in ((0, "0.000"), (2, "0.100"), (4, "0.260"), (6, "1.000"))
    ]
    assert said.err.count("The sound of videos is not saved.") == 1
    from groundtune.predict.sources import video_frames

    for name in ("out/film.mp4", "out/film-2.mp4"):
        drawn = list(video_frames(Path(name), 1))
        assert [round(float(shot.time), 3) for shot in drawn] == [0, 0.1, 0.26, 1]
        edge = np.asarray(drawn[0].image)[5:-5, :2].reshape(-1, 3).mean(0)
        assert edge[2] > 180 and edge[0] > 90 and edge[1] < 130  # violet, the first class, around all of it
    images = json.loads(Path("out/coco.json").read_text())["images"]
    assert images[1] == {
        "id": 2, "file_name": "in/film.mp4", "width": 64, "height": 48, "frame": 2, "seconds": 0.1
    }  # fmt: skip


def test_a_damaged_video_keeps_what_was_done(folder, capsys):
    path = write_video(Path("in/film.mkv"), [Fraction(i, 10) for i in range(50)], noise=True)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert main([*PREDICT, "in/film.mkv", "--frame-stride", "5", "--output-dir", "out"]) == 3
    assert "was cut off" in capsys.readouterr().err
    from groundtune.predict.sources import video_frames

    done = len(json.loads(Path("out/predictions.json").read_text())["images"])
    assert len(list(video_frames(Path("out/film.mp4"), 1))) == done > 2


def test_what_was_done_before_ctrl_c_is_kept(folder, capsys, monkeypatch):
    def interrupted():
        yield "in/a.jpg\n"
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stdin", interrupted())
    assert main([*PREDICT, "-", "--output-dir", "out", "--batch-size", "1", "--json"]) == 130
    assert [one["image"] for one in json.loads(capsys.readouterr().out)] == ["in/a.jpg"]
    assert [one["image"] for one in json.loads(Path("out/predictions.json").read_text())["images"]] == [
        "in/a.jpg"
    ]


def test_names_come_from_a_file_and_sentences_have_commas(folder, stub, capsys):
    Path("names.txt").write_text("Red_Circle\n\n  dog \n")
    assert main(["predict", "stub", "in/a.jpg", "--classes", "names.txt", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == FOUND
    line = [
        "predict",
        "stub",
        "in/a.jpg",
        "--phrase",
        "the cat, left",
        "--phrase",
        "a dog",
        "--device",
        "cpu",
    ]
    assert main(line) == 0
    assert [row.split("  ")[1] for row in capsys.readouterr().out.splitlines()[1:]] == [
        "the cat, left",
        "a dog",
    ]
    assert main([*PREDICT, "in/a.jpg", "--phrase", "x"]) == 2
    assert main(["predict", "stub", "in/a.jpg", "--classes", "absent.txt"]) == 3
    Path("names.txt").write_text("\n")
    assert main(["predict", "stub", "in/a.jpg", "--classes", "names.txt"]) == 2
    assert capsys.readouterr().err.count("\n") == 3


def test_a_folder_that_cannot_be_written_is_one_line(folder, capsys):
    assert main([*PREDICT, "in/a.jpg", "--output-dir", "in/a.jpg/out"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith("groundtune: error: save: cannot write to")
    assert main([*PREDICT, "in", "--output-dir", "in"]) == 2
    assert "name a folder outside of it" in capsys.readouterr().err


def test_names_of_files_cannot_command_the_terminal(folder, capsys):
    name = "in/\x1b[2J\udcff.jpg"
    Path("in/a.jpg").rename(name)
    assert main([*PREDICT, name, "--output-dir", "out", "--save-as", "drawn,json,csv,coco,yolo"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "in/\\x1b[2J?.jpg: 2 found"
    assert json.loads(Path("out/predictions.json").read_text())["images"][0]["image"] == name


def test_thresholds_of_a_run_are_those_of_its_report(tmp_path, stub, folder, capsys):
    """Every object is found with the score of its class, and there is something wrong 0.2 below: F1 is 1 at that score."""
    from groundtune.data.formats.detect import load_splits
    from groundtune.data.scenes import write_scenes

    write_scenes(Path("data"), train=1, valid=3, classes=["red circle", "dog"], size=64)
    valid = load_splits(Path("data"))["valid"]
    predictions = []
    for sample in valid.samples:
        for (x0, y0, x1, y1), class_id in zip(
            sample.boxes_xyxy.tolist(), sample.class_ids.tolist(), strict=True
        ):
            score = (0.7, 0.45)[class_id]
            known = {"image_id": sample.image_id, "category_id": valid.category_ids[class_id], "score": score}
            predictions.append({**known, "bbox": [x0, y0, x1 - x0, y1 - y0]})
            predictions.append({**known, "bbox": [0, 0, 1, 1], "score": score - 0.2})
    Path("run").mkdir()
    Path("run/config.yaml").write_text("data: data\n")
    Path("run/predictions_valid.json").write_text(json.dumps(predictions))
    from groundtune.report.run_data import run_thresholds

    assert {score["score"] for score in predictions} >= {0.7, 0.45}
    assert run_thresholds(Path("run")) == pytest.approx({"red circle": 0.7, "dog": 0.45})
    assert main([*PREDICT, "in/a.jpg", "--thresholds", "run", "--threshold", "0.99"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == FOUND
    Path("run/predictions_valid.json").unlink()
    assert main([*PREDICT, "in/a.jpg", "--thresholds", "run"]) == 3
    assert "run has no thresholds" in capsys.readouterr().err
