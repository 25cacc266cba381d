"""What the commands do and print: results on stdout, messages and progress on stderr.

Each verb takes the values of its command line by name, still strings; heavy packages are imported where they are used.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from groundtune.config import (
    BlendConfig,
    CheckConfig,
    ConvertConfig,
    DemoConfig,
    EvaluateConfig,
    ExportConfig,
    InitConfig,
    LabelConfig,
    PredictConfig,
    ReportConfig,
    ReviewConfig,
)
from groundtune.errors import ConfigError, DataError, escape_control_chars
from groundtune.options import COMMAND_LINE, resolve
from groundtune.printing import (
    class_table,
    per_class,
    print_found,
    print_report,
    print_run,
    print_written,
    share,
    table,
)
from groundtune.progress import Progress

if TYPE_CHECKING:
    from groundtune.data.sample import Dataset
    from groundtune.model.bundle import ModelBundle
    from groundtune.predict.predictor import Predictor


def train(values: dict[str, Any]) -> int | None:
    from groundtune.commands import resolve_training, run_training
    from groundtune.data.check.run import describe_classes

    file = values.pop("config", None)
    config = resolve_training(values, Path(file) if file else None, where=COMMAND_LINE)
    from groundtune.engine.distributed import init_distributed_env, is_main, launch, launched

    init_distributed_env()
    if config.devices > 1 and not launched():
        return launch(config.devices, config.device, config.threads)
    progress = Progress(quiet=not is_main())

    def announce(out: Path, splits: dict[str, "Dataset"], bundle: "ModelBundle") -> None:
        for dataset in splits.values():
            for message in dataset.messages:
                progress.message(message)
        progress.message(class_table(describe_classes(splits, bundle.tokenizer)))
        progress.message(f"Run folder: {out}")

    found = run_training(config, progress, announce=announce)
    if is_main():
        print_run(found)
    return None


def check(values: dict[str, Any]) -> int:
    config = resolve(CheckConfig, [(COMMAND_LINE, values)])
    from groundtune.commands import run_check

    report = run_check(config, Progress())
    if config.json:
        print(json.dumps(report.as_dict(), indent=2, ensure_ascii=False))
    else:
        print_report(report)
    failed = report.count("error") or (config.strict and report.count("warning"))
    return DataError.exit_code if failed else 0


def convert(values: dict[str, Any]) -> None:
    config = resolve(ConvertConfig, [(COMMAND_LINE, values)])
    from groundtune.data.formats.convert import convert

    done = convert(Path(config.data), Path(config.output_dir), config.format, link=config.link)
    for message in done.messages:
        print(message, file=sys.stderr)
    print_written(done, config.format, config.output_dir)


def blend(values: dict[str, Any]) -> None:
    config = resolve(BlendConfig, [(COMMAND_LINE, values)])
    from groundtune.commands import run_blend
    from groundtune.device import set_up_cpu
    from groundtune.report.blend import blend_rows

    set_up_cpu(config.threads)
    points, best = run_blend(config, Progress())
    marks = ["", *("chosen" if point is best else "" for point in points)]
    print(table([[*row, mark] for row, mark in zip(blend_rows(points, share), marks, strict=True)]))
    print(f"\nThe chosen model is in {config.output_dir}, with blend.json and blend.html.")


def init(values: dict[str, Any]) -> None:
    config = resolve(InitConfig, [(COMMAND_LINE, values)])
    from groundtune.data.scenes import write_captioned_scenes, write_scenes

    if config.captions and config.classes:
        raise ConfigError(
            "classes: captioned scenes show everything that can be drawn; leave --classes or --captions out."
        )
    numbers = {
        "train": config.train_images,
        "valid": config.valid_images,
        "size": config.image_size,
        "seed": config.seed,
    }
    if config.captions:
        write_captioned_scenes(Path(config.output_dir), **numbers)
    else:
        write_scenes(Path(config.output_dir), classes=config.classes or None, **numbers)
    print(config.output_dir)


def evaluate(values: dict[str, Any]) -> None:
    config = resolve(EvaluateConfig, [(COMMAND_LINE, values)])
    out = Path(config.output) if config.output else None
    if out is not None and (out.is_dir() or not out.absolute().parent.is_dir()):
        raise ConfigError(f"out: {out} cannot be written; name a file in a folder that exists.")
    from groundtune import api
    from groundtune.device import set_up_cpu

    set_up_cpu(config.threads)
    progress = Progress()
    try:
        found = api.evaluate(
            config.model,
            config.data,
            split=config.split,
            classes=config.classes or None,
            rename=config.rename,
            batch_size=config.batch_size,
            device=config.device,
            precision=config.precision,
            progress=progress,
            ray=config.ray,
            ray_workers=config.ray_workers,
            threads=config.threads,
        )
    finally:
        progress.close()
    if out is not None:
        out.write_text(json.dumps(found.predictions), encoding="utf-8")
    if config.json:
        print(
            json.dumps(
                {"split": config.split, "metrics": found.metrics, "per_class": found.per_class}, indent=2
            )
        )
        return
    print(table([[config.split, ""], *([name, share(value)] for name, value in found.metrics.items())]))
    if found.per_class:
        print(f"\n{per_class(found.per_class)}")


def predict(values: dict[str, Any]) -> int:
    config = resolve(PredictConfig, [(COMMAND_LINE, values)])
    if config.phrase and config.classes:
        raise ConfigError(
            "phrase, classes: a prediction looks for sentences or for names; leave one of them out."
        )
    from groundtune.predict.sources import check_inputs_exist, check_output_not_input

    check_inputs_exist(config.images, config.recursive)
    if config.output_dir is not None:
        check_output_not_input(Path(config.output_dir), config.images, config.recursive)
    from groundtune import api
    from groundtune.commands import run_thresholds
    from groundtune.device import set_up_cpu
    from groundtune.predict.tiles import Tiles

    thresholds = run_thresholds(Path(config.thresholds)) if config.thresholds else {}
    set_up_cpu(config.threads)
    model = api.load(config.model, device=config.device)
    model.precision = config.precision
    predictor = model.predictor(
        config.classes or None,
        config.threshold,
        thresholds=thresholds,
        phrases=config.phrase,
        tiles=Tiles(config.tiles, config.tile_overlap) if config.tiles else None,
        batch_size=config.batch_size,
    )
    unreadable = _predict(config, predictor)
    if config.output_dir is not None:
        print(f"The results are in {config.output_dir}.", file=sys.stderr)
    return _told(unreadable)


def _told(unreadable: Mapping[str, str]) -> int:
    """Say which files could not be read; the exit code."""
    if unreadable:
        told = "\n  ".join([f"{len(unreadable)} of the files could not be read (to the end):", *unreadable])
        print(f"groundtune: {escape_control_chars(told)}", file=sys.stderr)
    return DataError.exit_code if unreadable else 0


def _predict(config: PredictConfig, predictor: "Predictor") -> dict[str, str]:
    """Look at everything that was named, print and save what is found; the files that cannot be read, and why."""
    from groundtune.predict.predictor import batched
    from groundtune.predict.sources import iter_frames
    from groundtune.predict.writers import JsonArray, Results, origin_of, records_of

    unreadable: dict[str, str] = {}
    silent = config.output_dir is None or "annotated" not in config.save_as

    def failed(path: str, reason: str) -> None:
        unreadable[path] = reason
        print(f"groundtune: left out: {escape_control_chars(reason)}", file=sys.stderr)

    inputs = [Path(name).parent for name in config.images]
    results = (
        Results(Path(config.output_dir), config.save_as, predictor.names, inputs)
        if config.output_dir is not None
        else None
    )
    listed = JsonArray(sys.stdout) if config.json else None
    try:
        for group in batched(
            iter_frames(config.images, config.recursive, config.frame_stride, failed), config.batch_size
        ):
            for shot, found in zip(group, predictor.find([shot.image for shot in group]), strict=True):
                if results is not None:
                    results.add(shot, found)
                if shot.video is not None and shot.video.sound and not silent:
                    print("The sound of videos is not saved.", file=sys.stderr)
                    silent = True
                if listed is not None:
                    listed.add({**origin_of(shot), "detections": records_of(found)})
                else:
                    print_found(shot, records_of(found))
    finally:
        if results is not None:
            results.close(unreadable)
        if listed is not None:
            listed.close()
    return unreadable


def label(values: dict[str, Any]) -> int:
    config = resolve(LabelConfig, [(COMMAND_LINE, values)])
    from groundtune import api
    from groundtune.device import set_up_cpu

    set_up_cpu(config.threads)
    done = api.label(**vars(config), quiet=False)
    for message in done.written.messages:
        print(message, file=sys.stderr)
    print_written(done.written, config.format, config.output_dir)
    return _told(done.unreadable)


def review(values: dict[str, Any]) -> None:
    config = resolve(ReviewConfig, [(COMMAND_LINE, values)])
    import signal
    from contextlib import suppress

    from groundtune.web.review_server import serve

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with (
        suppress(KeyboardInterrupt),
        serve(Path(config.data), config.split, config.host, config.port) as server,
    ):
        if not server.is_loopback:
            print(
                "Warning: whoever reaches this machine and learns the address can change the boxes.",
                file=sys.stderr,
            )
        print(server.url, flush=True)
        print("Ctrl-C ends the page; what was decided is saved.", file=sys.stderr)
        server.serve_forever()


def demo(values: dict[str, Any]) -> None:
    config = resolve(DemoConfig, [(COMMAND_LINE, values)])
    import signal
    import tempfile
    from contextlib import redirect_stdout

    from groundtune import api
    from groundtune.device import pick_device, pick_precision, set_up_cpu
    from groundtune.web.demo import Demo, need_gradio, serve
    from groundtune.web.review_server import is_loopback

    need_gradio()
    set_up_cpu(config.threads)
    device = pick_device(config.device)
    models = {source: api.load(source).bundle for source in (config.base, config.model) if source is not None}
    shown = Demo(models, device, pick_precision(config.precision, device), config.threshold)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    names = config.classes or models[config.model].classes
    with tempfile.TemporaryDirectory(prefix="groundtune-") as folder:
        page = serve(shown, names, config.host, config.port, folder)
        if not is_loopback(config.host):
            print(
                "Warning: whoever reaches this machine can use the page; it asks for no password.",
                file=sys.stderr,
            )
        print(page.local_url, flush=True)
        print("Ctrl-C ends the page.", file=sys.stderr)
        with redirect_stdout(sys.stderr):  # it says that it ends
            page.block_thread()


def export(values: dict[str, Any]) -> None:
    config = resolve(ExportConfig, [(COMMAND_LINE, values)])
    if config.output is None and config.push_to_hub is None:
        raise ConfigError(
            "out: missing; name a folder or file to write, or a model on the Hub with --push-to-hub."
        )
    if config.push_to_hub is not None and config.format != "hf":
        raise ConfigError("push_to_hub: only --format hf can be uploaded.")
    from groundtune import api
    from groundtune.commands import prompt_names

    model = api.load(config.model)
    if config.output is not None:
        names = prompt_names(config.classes, model.bundle) if config.fixed_classes or config.classes else None
        notes = api.export(
            model,
            config.output,
            format=config.format,
            classes=names,
            precision=config.precision,
            data=config.data,
            max_ap_drop=config.max_ap_drop,
        )
        for note in notes:
            print(f"Note: {note}", file=sys.stderr)
        print(config.output)
    if config.push_to_hub is not None:
        print(api.push_to_hub(model, config.push_to_hub, private=config.private))


def models(_: dict[str, Any]) -> None:
    from groundtune.model.bundle import presets, published

    rows = [["name", "parameters", "backbone", "license", "what it is"]]
    for name, about in (presets() | published()).items():
        rows.append([name, f"{about['parameters']} M", about["backbone"], about["license"], about["summary"]])
    print(table(rows))


def report(values: dict[str, Any]) -> None:
    config = resolve(ReportConfig, [(COMMAND_LINE, values)])
    from groundtune import api

    if len(config.runs) == 1:
        print(api.write_report(config.runs[0], data=config.data, max_images=config.max_images))
        return
    for warning in api.compare_runs(config.runs, config.output):
        print(f"Warning: {warning}", file=sys.stderr)
    print(config.output)


def env(_: dict[str, Any]) -> None:
    from groundtune.environment import describe

    print(table(list(describe().items())))
