"""The model card: what a saved model is, in the README.md of its folder, with the metadata that the Hub reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from groundtune.model.bundle import ModelBundle


def model_card(bundle: ModelBundle, results: Mapping[str, Any], in_transformers: bool) -> str:
    """Markdown with YAML front matter.

    Args:
        bundle: the model.
        results: "data" (what it was trained on), "metrics" and "zero_shot" (numbers by name), each of them optional.
        in_transformers: whether transformers opens the folder.
    """
    front: dict[str, Any] = {
        "library_name": "transformers" if in_transformers else "groundtune",
        "pipeline_tag": "zero-shot-object-detection",
        "tags": ["groundtune", "grounding-dino", "object-detection"],
        "license": "other",  # the base model's and the data's decide; the owner fills it in
    }
    if "/" in bundle.source and not bundle.source.startswith((".", "/")) and bundle.source.count("/") == 1:
        front["base_model"] = bundle.source
    lines = ["---", yaml.safe_dump(front, sort_keys=False).rstrip(), "---", "", "# An open-vocabulary detector", ""]
    lines.append(
        f"Fine-tuned with [Groundtune](https://pypi.org/project/groundtune/) from `{bundle.source or 'nothing'}`."
    )
    if "data" in results:
        lines.append(f"Data: `{results['data']}`.")
    classes = ", ".join(f"`{name}`" for name in bundle.classes)
    lines += ["", f"Classes: {classes or 'none of its own; ask for any name'}.", ""]
    metrics = results.get("metrics", {})
    if metrics:
        zero_shot = results.get("zero_shot", {})
        lines += ["| valid | before | after |", "|---|---|---|"]
        lines += [
            f"| {name.removeprefix('valid/')} | {_share(zero_shot.get(name))} | {_share(value)} |"
            for name, value in metrics.items()
        ]
        lines.append("")
    lines += _usage(bundle, in_transformers)
    lines += [
        "",
        "## Licence",
        "",
        "Not stated. The licences of the base model and of the data apply; fill in `license` above.",
    ]
    return "\n".join(lines) + "\n"


def _usage(bundle: ModelBundle, in_transformers: bool) -> list[str]:
    names = bundle.classes or ["cat", "remote control"]
    lines = ["```python", "import groundtune", 'detections = groundtune.load(".").predict("picture.jpg")', "```"]
    if not in_transformers:
        return [*lines, "", "transformers cannot open this folder: it has no network of this kind."]
    eps = {bundle.config.decoder_eps, bundle.config.head_eps}
    lines += [
        "",
        "```python",
        "from transformers import pipeline",
        'detect = pipeline("zero-shot-object-detection", ".")',
        f'detect("picture.jpg", candidate_labels={[f"{name}." for name in names]!r})',
        "```",
    ]
    if eps != {1e-5}:
        lines += [
            "",
            "transformers clamps boxes at 1e-5 where these weights were made with 1e-3: boxes may differ a little.",
        ]
    return lines


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
