"""What the command line answers to mistakes, compared as a whole with messages.txt.

UPDATE_MESSAGES=1 rewrites the file. Review the difference as prose: what is wrong and where, what
was expected, how to fix it.
"""

import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from groundtune.cli import main
from groundtune.data.scenes import write_scenes

SNAPSHOT = Path(__file__).with_name("messages.txt")

COMMANDS = """
# commands and options
trian
--foo
train --epocs 5 x
train x --epoch=5
train x --no-denoisin
train x --zzzz
predict nano a.jpg --clases cat
evaluate --splitt train
env --json
train x y
train x --lr
train
evaluate nano
check
predict nano
export nano
export nano --format onnx --batch 4
export nano --format openvino --output x.xml --opset 18
convert data
blend nano run
label nano data
train --resume no
train --config no.yaml
evaluate nano data --output no/x.json

# habits of other tools
train data --imgsz 640
train data --patience 5
train data --learning_rate 1e-4
train data --num_train_epochs 3
train data --per_device_train_batch_size 4
train data --gradient_accumulation_steps 2
train data --batch 8
train data --out x
train data --output x
train data --project p --name n
train data --fp16
train data --resume_from_checkpoint x
train data --lr_scheduler_type cosine
train data --optim adamw
train data --freeze 10
train data --mosaic 1
train data --names a,b
train data --data data
train data --early-stopping
train data --overwrite_output_dir
train data --gpus 2
predict nano a.jpg --conf 0.5
predict nano --source a.jpg
predict nano a.jpg --iou 0.5
predict nano a.jpg --save-txt
evaluate nano data --output-dir x.json
export nano --out x.onnx
report run --output-dir page.html
evaluate nano data --imgsz 640

# values
train data --lr fast
train data --lr 0
train data --flip 2
train data --epochs 0
train data --epochs 2.5
train data --ema-decay 1
train data --precision fp8
train data --rename rbc
train data --report-to tensorbord
train data --multi-scale 1,big
train data --extra-data data=lots
train data --incomplete rest,train
train data --lr fast --workers -1 --flip 2
predict nano a.jpg --threshold 2
convert data out --format cocoo
init scene out
init scenes out --captions --classes cat
predict nano a.jpg --phrase cat --classes cat
export nano --format onx -o x
export nano --format idea --push-to-hub me/it
export nano --classes cat -o x
check data --ignore leak-naer

# data
train nowhere
evaluate nano nowhere
check nowhere
check data --rename "red circel=ball"
evaluate nano data --split trian
evaluate nano data --classes "red circel"
train broken
train list
train data --retention-data nowhere
train data --extra-data nowhere
convert data full --format yolo
label nano data -o full
label nano -o out
predict nano a.jpg b.jpg
predict nano empty
review data --split test
init scenes out --classes "red circel"

# runs and models
train data -o full
train data -o file.txt
report full
report full full -o no/x.html
blend nano nano -o out
evaluate missing data
evaluate full data
evaluate me/missing.pth data
export nano -o full
predict nano data/valid --classes empty.txt
predict nano data/valid --thresholds full
"""

OPTIONS = """
epoch: 3
lr: 0.1
optimizer: {lrr: 1}
zzz: 3
optimizer: AdamW
optimizer: {type: SGD}
optimizer: {lr: fast}
optimizer: {lr: .nan}
epochs: true
epochs:
denoising: maybe
precision: fp8
imgsz: 640
patience: 5
multi_scale: [1, 0]
output_dir: [a]
rename: [a]
short_side: 400\\nmax_side: 300
tune: lora\\nparam_groups: [{modules: [neck]}]
keep_base: true\\nblend: 0.5
param_groups: backbone
param_groups: [{lr_mult: 1}]
param_groups: [{modules: [neck], lr_mul: 1}]
param_groups: [{modules: [bakbone.layers.0]}]
param_groups: [{modules: [neck]}, {modules: [neck], lr_mult: 0}]
param_groups: [{modules: []}]
a: [
- epochs
1: 2
epochs: &a 1\\nbatch_size: *a
epoch: 3\\nflip: 2\\nseed: -1
"""


@pytest.fixture()
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a working directory with data, directories and files for the commands."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write_scenes(tmp_path / "data", train=6, valid=2, classes=["red circle", "blue star"], size=64)
    for name, content in (("broken", {"images": []}), ("list", [1, 2])):
        (tmp_path / name / "train").mkdir(parents=True)
        (tmp_path / name / "train/_annotations.coco.json").write_text(json.dumps(content))
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    for name in ("full/notes.txt", "file.txt"):
        (tmp_path / name).write_text("notes")
    (tmp_path / "empty.txt").write_text("\n")
    return tmp_path


def answers(capsys: pytest.CaptureFixture) -> Iterator[str]:
    """Yield each mistake, and the exit code and message that answer it."""
    for line in COMMANDS.strip().splitlines():
        yield line if line.startswith("#") or not line else f"$ groundtune {line}\n{answer(line, capsys)}"
    yield "\n# options in a YAML file"
    for line in OPTIONS.strip().splitlines():
        Path("c.yaml").write_text(line.replace("\\n", "\n"))
        yield f"{line}\n{answer('train data --config c.yaml', capsys)}"


def answer(line: str, capsys: pytest.CaptureFixture) -> str:
    code = main(shlex.split(line))
    printed = capsys.readouterr()
    assert printed.out == "" and "Traceback" not in printed.err, line
    return f"[{code}] {printed.err}"


def test_every_mistake_is_answered_as_in_the_snapshot(folder: Path, capsys: pytest.CaptureFixture) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    text = "\n".join(answers(capsys))
    (folder / "c.yaml").unlink()
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")}.keys() == before.keys()
    if os.environ.get("UPDATE_MESSAGES"):
        SNAPSHOT.write_text(text, encoding="utf-8")
    assert text.splitlines() == SNAPSHOT.read_text(encoding="utf-8").splitlines()
