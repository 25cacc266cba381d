"""Finding objects by name: boxes in the user's pixels, names as the user wrote them, and pictures that show them."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from supervision import Detections

from groundtune import predict as module
from groundtune.api import Model
from groundtune.cli import main
from groundtune.data.transforms import PictureFormat
from groundtune.errors import ConfigError, DataError
from groundtune.postprocess import PictureDetections
from groundtune.predict import predict, records_of, save_predictions

CPU = torch.device("cpu")
VIOLET, RED = (0xA3, 0x51, 0xFB), (0xFF, 0x40, 0x40)  # the first two colours of supervision's palette, RGB


@pytest.fixture(scope="module")
def nano():
    from groundtune.model.checkpoint.load import load_bundle

    return load_bundle("nano")


@pytest.fixture()
def stub(monkeypatch, tokenizer):
    """A bundle whose network finds, in every picture, all of it as class 0 and its left half as the last class."""
    calls = []

    def detect(network, features, prompts, sizes_hw):
        last = sum(len(indices) for indices in prompts.class_indices) - 1
        calls.append(SimpleNamespace(sizes_hw=list(sizes_hw), prompts=prompts, pictures=features))
        return [
            PictureDetections(
                torch.tensor([[0, 0, w, h], [0, 0, w / 2, h]], dtype=torch.float32),
                torch.tensor([0.75, 0.5]),
                torch.tensor([0, last]),
            )
            for h, w in sizes_hw
        ]

    monkeypatch.setattr(module, "detect_batch", detect)
    monkeypatch.setattr(module, "extract", lambda network, pictures, device: pictures)
    return SimpleNamespace(
        network=torch.nn.Linear(1, 1),
        tokenizer=tokenizer,
        config=SimpleNamespace(max_text_len=256),
        picture=PictureFormat((0.0,) * 3, (1.0,) * 3, 32, 64),
        classes=[],
        source="stub",
        calls=calls,
    )


def run(bundle, images, classes=("cat", "dog"), threshold=0.0, batch_size=4):
    return predict(bundle, images, classes, threshold=threshold, device=CPU, batch_size=batch_size)


def noise(height=40, width=60, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_nano_finds_boxes_within_the_picture_and_paths_arrays_and_pictures_are_alike(nano, tmp_path):
    array = noise(90, 200)
    Image.fromarray(array).save(tmp_path / "a.png")
    found = run(nano, [tmp_path / "a.png", Image.fromarray(array), array], ["Red_Circle", "dog"])
    assert [len(part) for part in found] == [200] * 3  # 100 queries, two classes
    for part in found:
        assert (part.xyxy >= 0).all() and (part.xyxy <= [200, 90, 200, 90]).all()
        assert (part.xyxy[:, 2:] >= part.xyxy[:, :2]).all() and part.xyxy[:, 2].max() > 90  # not in shares, not square
        assert (np.diff(part.confidence) <= 0).all() and part.confidence.min() >= 0 and part.confidence.max() <= 1
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


def test_a_list_gives_a_list_and_a_picture_its_detections(stub):
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
    # short side 32: the network sees resized pictures, the boxes come back in the original's pixels
    assert stub.calls[2].pictures[0].shape == (3, 32, 40)


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
    ("picture", "message"),
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
def test_what_is_no_picture_is_said(stub, picture, message):
    with pytest.raises(DataError, match=message):
        run(stub, [noise(), picture])


def test_files_are_read_alike_from_a_path_and_opened_by_the_user(stub, tmp_path):
    """Transparency, 16 bits: what `load_picture` does with files is done with PIL pictures too."""
    Image.new("RGBA", (32, 32), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.fromarray(np.full((32, 32), 32768, dtype=np.uint16)).save(tmp_path / "deep.png")
    for name, value in (("clear.png", 1.0), ("deep.png", 128 / 255)):
        run(stub, [tmp_path / name, Image.open(tmp_path / name)])
        for picture in stub.calls.pop().pictures:
            torch.testing.assert_close(picture, torch.full((3, 32, 32), value))


def test_a_picture_that_is_cut_off_is_named(stub, tmp_path):
    path = tmp_path / "cut.jpg"
    Image.fromarray(noise(64, 64)).save(path)
    path.write_bytes(path.read_bytes()[:900])
    for picture in (path, Image.open(path)):
        with pytest.raises(DataError, match="cut.jpg"):
            run(stub, [picture])


def detections(boxes, class_ids, names=("cat", "dog")):
    return Detections(
        xyxy=np.array(boxes, dtype=np.float32).reshape(-1, 4),
        confidence=np.linspace(0.9, 0.4, len(boxes)),
        class_id=np.array(class_ids, dtype=int),
        data={"class_name": np.array([names[c] for c in class_ids], dtype=object)},
    )


def test_drawn_pictures_have_boxes_of_the_right_colour_at_the_right_place(tmp_path):
    path = tmp_path / "a.jpg"
    Image.new("RGB", (300, 200), (10, 20, 30)).save(path, quality=95)
    found = detections([(50, 60, 150, 160), (170, 80, 280, 190)], [0, 1])
    save_predictions([path], [found], ["cat", "dog"], tmp_path / "new/out")
    drawn = np.asarray(Image.open(tmp_path / "new/out/a.png"))
    original = np.asarray(Image.open(path))
    assert drawn.shape == original.shape
    for (x0, y0, x1, y1), colour in zip(found.xyxy.astype(int), (VIOLET, RED), strict=True):
        for x, y in [(x0, (y0 + y1) // 2), (x1, (y0 + y1) // 2), ((x0 + x1) // 2, y1)]:
            assert tuple(drawn[y, x]) == colour  # RGB, not BGR
        assert np.array_equal(drawn[y0 + 5 : y1 - 5, x0 + 5 : x1 - 5], original[y0 + 5 : y1 - 5, x0 + 5 : x1 - 5])
        label = drawn[y0 - 12 : y0 - 2, x0 + 2 : x0 + 50].reshape(-1, 3)
        assert (label == colour).all(1).mean() > 0.3 and (label.min(1) > 200).any()  # white letters on the colour
    assert np.array_equal(drawn[:30], original[:30])
    with Image.open(path) as untouched:
        assert np.array_equal(np.asarray(untouched), original)


def test_the_better_detection_lies_on_top_and_letters_can_be_read_on_light_colours(tmp_path):
    Image.new("RGB", (200, 200)).save(tmp_path / "a.png")
    same_place = detections([(50, 60, 150, 160)] * 2, [1, 0])
    light = detections([(50, 60, 150, 160)], [2], ["", "", "pink: ü"])
    save_predictions([tmp_path / "a.png"] * 2, [same_place, light], ["cat", "dog", "ü"], tmp_path / "out")
    assert Image.open(tmp_path / "out/a.png").getpixel((50, 110)) == RED
    label = np.asarray(Image.open(tmp_path / "out/a-2.png"))[48:58, 52:100].reshape(-1, 3)
    assert label.min() < 60  # dark letters


def test_predictions_json_says_what_was_found_where(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (80, 60)).save(tmp_path / folder / "a.jpg")
    Image.new("RGB", (80, 60)).save(tmp_path / "two/a-2.jpg")
    paths = [tmp_path / "one/a.jpg", tmp_path / "two/a.jpg", tmp_path / "two/a-2.jpg"]
    found = [detections([(1, 2, 30, 40)], [1]), detections([], []), Detections.empty()]
    save_predictions(paths, found, ["cat", "dog"], tmp_path / "out")
    content = json.loads((tmp_path / "out/predictions.json").read_text(encoding="utf-8"))
    names = ["a.png", "a-2.png", "a-2-2.png"]
    one = {"class": "dog", "score": 0.9, "box_xyxy": [1.0, 2.0, 30.0, 40.0]}
    assert content == {
        "classes": ["cat", "dog"],
        "images": [
            {"image": str(path), "drawn": name, "detections": part}
            for path, name, part in zip(paths, names, [[one], [], []], strict=True)
        ],
    }
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted([*names, "predictions.json"])


def test_drawn_pictures_never_replace_the_pictures_themselves(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (80, 60)).save("a.png")
    before = Path("a.png").read_bytes()
    with pytest.raises(ConfigError, match="a.png would be replaced"):
        save_predictions([Path("a.png")], [detections([(1, 2, 30, 40)], [1])], ["cat", "dog"], tmp_path)
    assert Path("a.png").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", ["file", "file/deeper", "n" * 300])
def test_a_folder_that_cannot_be_written_is_a_config_error(tmp_path, name):
    (tmp_path / "file").touch()
    Image.new("RGB", (80, 60)).save(tmp_path / "a.jpg")
    with pytest.raises(ConfigError, match="save: cannot write to"):
        save_predictions([tmp_path / "a.jpg"], [Detections.empty()], ["cat"], tmp_path / name)


def test_the_command_line_draws_and_says_errors_in_one_line(stub, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("groundtune.model.checkpoint.load.load_bundle", lambda source, seed=0: stub)
    Image.new("RGB", (80, 60)).save(tmp_path / "a.jpg")
    line = ["predict", "stub", str(tmp_path / "a.jpg"), "--classes", "Red_Circle,dog", "--device", "cpu", "--save"]
    assert main([*line, str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "  Red_Circle  0.750  0.0 0.0 80.0 60.0",
        "  dog  0.500  0.0 0.0 40.0 60.0",
    ]
    assert (tmp_path / "out/a.png").is_file()
    assert main([*line, str(tmp_path / "a.jpg/out")]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith("groundtune: error: save: cannot write to")
