"""The model card: what a saved model is, in the README.md of its folder, with the metadata that the Hub reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from groundtune.model.bundle import ModelBundle


def model_card(bundle: ModelBundle, results: Mapping[str, Any], in_transformers: bool) -> str:
    """Markdown with YAML front matter.

    Args:
        bundle: the model.
        results: "data" (what it was trained on, in words), "metrics" and "zero_shot" (shares by name), each of them
            optional.
        in_transformers: whether transformers opens the folder.
    """
    base = bundle.base_model or Path(bundle.source).name
    front: dict[str, Any] = {
        "license": "other",  # the base model's and the data's decide; the owner fills it in
        "library_name": "transformers" if in_transformers else "groundtune",
        "pipeline_tag": "zero-shot-object-detection",
        "tags": ["groundtune", "grounding-dino", "object-detection"],
    }
    if "/" in base:  # an id of the Hub; names of files and presets have none
        front["base_model"] = base
    lines = ["---", yaml.safe_dump(front, sort_keys=False, allow_unicode=True).rstrip(), "---", ""]
    trained = bool(bundle.classes)
    lines += [f"# Object detection{': ' + _listed(bundle.classes) if trained else ' by name'}", ""]
    lines.append("Finds objects by name in pictures. Made with Groundtune.")
    lines += ["", f"- Base model: {base or 'none, trained from scratch'}"]
    lines.append(f"- Data: {results.get('data', 'not stated')}")
    lines.append(f"- Classes: {', '.join(bundle.classes) if trained else 'none of its own; ask for any name'}")
    lines += ["- Licence: not stated; those of the base model and of the data apply. Fill in `license` above.", ""]
    lines += _metrics(results)
    lines += ["## Use", "", *_usage(bundle, in_transformers)]
    return "\n".join(lines) + "\n"


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _metrics(results: Mapping[str, Any]) -> list[str]:
    metrics, before = results.get("metrics", {}), results.get("zero_shot", {})
    if not metrics:
        return []
    rows = [
        f"| {name.removeprefix('valid/')} | {_share(before.get(name))} | {_share(value)} |"
        for name, value in metrics.items()
    ]
    return ["## Metrics", "", "COCO, on the validation split.", "", "| | before | after |", "|---|---|---|", *rows, ""]


def _usage(bundle: ModelBundle, in_transformers: bool) -> list[str]:
    names = bundle.classes or ["cat", "remote control"]
    asked = "" if bundle.classes else f", {names!r}"
    lines = [
        "```python",
        "import groundtune",
        "",
        f'detections = groundtune.load("FOLDER").predict("picture.jpg"{asked})',
        "```",
        "",
    ]
    if not in_transformers:
        return [*lines, "transformers cannot open this folder: it has no network of this kind."]
    lines += [
        "```python",
        "from transformers import pipeline",
        "",
        'detect = pipeline("zero-shot-object-detection", "FOLDER")',
        f'detect("picture.jpg", candidate_labels={[f"{name}." for name in names]!r})',
        "```",
    ]
    if (bundle.config.decoder_eps, bundle.config.head_eps) != (1e-5, 1e-5):
        lines += [
            "",
            "These weights clamp boxes at 1e-3 in the inverse sigmoid, transformers at 1e-5: its boxes may differ a little.",
        ]
    return lines


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
