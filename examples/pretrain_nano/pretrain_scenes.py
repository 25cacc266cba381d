r"""Pretrain `nano`: grounding on generated scenes and a few real images.

    python examples/pretrain_nano/pretrain_scenes.py WORK --extra-data A=4,B=3 \
        [--extra-data-last C,D=2]

WORK gets the scenes (about 300 MB), a run directory for each stage, and at the end
`nano.safetensors`. After an interruption, run the same command again: complete stages are
kept. The released weights come from these stages, all with seed 0. The data of --extra-data-last
are used in the last stage only. So `WORK/second/model` has not seen them, and can be evaluated on
them.
"""

import argparse
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

import groundtune
from groundtune.data.scenes import write_captioned_scenes
from groundtune.model.bundle import packaged_towers
from groundtune.model.checkpoint.convert import LABELS

# Small images and a high learning rate first, then the full image size.
STAGES = {
    "first": {"lr": 1e-3, "lr_drop_at": 1.0, "warmup_steps": 200, "short_side": 256, "max_side": 256},
    "second": {
        "max_train_images": 10000,
        "lr": 1e-3,
        "lr_drop_at": 0.7,
        "warmup_steps": 50,
        "short_side": 320,
        "max_side": 320,
    },
    "last": {"max_train_images": 3000, "lr": 5e-4, "lr_drop_at": 0.6, "warmup_steps": 50},
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument(
        "--extra-data",
        default="",
        help="data sets of real images in the first and last stage, as PATH=WEIGHT,PATH=WEIGHT",
    )
    parser.add_argument("--extra-data-last", default="", help="more data sets of the last stage")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 keeps PyTorch's own number")
    args = parser.parse_args()
    scenes = args.work / "scenes"
    if not scenes.exists():
        write_captioned_scenes(scenes, train=16000, valid=200, seed=1)
    model: str | Path = "nano"  # its sizes
    for name, options in STAGES.items():
        extra = {"first": [args.extra_data], "last": [args.extra_data, args.extra_data_last]}.get(name, [])
        options["extra_data"] = [source for sources in extra for source in sources.split(",") if source]
        run = args.work / name
        if not (run / "metrics.json").exists():
            shutil.rmtree(run, ignore_errors=True)  # a stage is one epoch, and starts over
            groundtune.train(
                model,
                scenes,
                output_dir=run,
                threads=args.threads,
                epochs=1,
                min_steps=0,
                cache_features=False,
                **options,
            )
        model = run / "model"
    save_half(model, args.work / "nano.safetensors")


def save_half(model: Path, out: Path) -> None:
    """Write the trained weights as float16, without the towers and the denoising labels of a data
    set.
    """
    bundle = groundtune.load(model).bundle
    skipped = (*(f"{tower}." for tower in packaged_towers(bundle.config)), LABELS)
    trained = {
        k: v.to(torch.float16).clone()
        for k, v in bundle.network.state_dict().items()
        if not k.startswith(skipped)
    }
    save_file(trained, out)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
