"""The names of other projects' weights: `names.txt` is their table, read in both directions."""

import functools
import re
from dataclasses import dataclass
from pathlib import Path

Rows = list[tuple[str, str]]

PROJECTS = ("transformers", "idea", "mmdetection")  # the columns of the table, after our own
_NECKS = {"transformers": "model.input_proj_vision.", "idea": "input_proj."}  # one list of all levels
_STAGE_NORMS = {"idea": "backbone.0.norm", "mmdetection": "backbone.norm"}  # they count stages from 0
_COPIES = {
    "transformers": [(f"model.decoder.{head}", head) for head in ("bbox_embed.", "class_embed.")],
    "idea": [("transformer.decoder.bbox_embed.", "bbox_embed.")],
}
_SCALARS = {"transformers": r".*class_embed\..*"}
_UNFOLDED = {"mmdetection": r"backbone\.stages\.\d+\.downsample\.(norm|reduction)\..*"}


@dataclass(frozen=True)
class Layout:
    """One project's names.

    Attributes:
        columns: four tables (theirs, ours): of whole tensors, and of each of the packed parts.
        copies: prefixes (copy, original) of theirs; a copy repeats another tensor (tied heads).
        unfolded: pattern of names whose last axis is in the order of `nn.Unfold`.
        scalars: pattern of names without an axis, where ours has one of length 1.
        dropped: pattern of names that hold nothing learned, or that no output reads.
    """

    columns: list[Rows]
    copies: Rows
    unfolded: str
    scalars: str
    dropped: str = r".*\.(relative_position_index|position_ids|pooler\..*|model\.(swin\.)?layernorm\..*)"


def renamed(name: str, rows: Rows) -> str | None:
    """Exchange the prefix of a name by the row that matches most of it, if any."""
    matches = [(match, old, new) for old, new in rows if (match := _pattern(old).match(name))]
    if not matches:
        return None
    match, _, new = max(matches, key=lambda row: (row[0].end(), "{" not in row[1]))
    return new.format(**match.groupdict()) + name[match.end() :]


@functools.cache
def _pattern(prefix: str) -> re.Pattern[str]:
    return re.compile(re.escape(prefix).replace(r"\{i\}", r"(?P<i>\d+)").replace(r"\{j\}", r"(?P<j>\d+)"))


def project_layout(project: str, stages: list[int], levels: int, decoder_layers: int) -> Layout:
    """Return the names of one of `PROJECTS`; the output `stages` of the backbone count from 1."""
    rows = _table(project, decoder_layers)
    if neck := _NECKS.get(project):
        ours = [f"neck.convs.{n}." for n in range(len(stages))]
        ours += [f"neck.extra_convs.{n}." for n in range(levels - len(stages))]
        for level, name in enumerate(ours):
            rows += [(f"{neck}{level}.0.", f"{name}conv."), (f"{neck}{level}.1.", f"{name}gn.")]
    if norm := _STAGE_NORMS.get(project):
        rows += [
            (f"{norm}{stage - 1}.", f"backbone.body.hidden_states_norms.stage{stage}.") for stage in stages
        ]
    whole = [row for row in rows if "*" not in row[1]]
    packed = [row for row in rows if "*" in row[1]]
    parts = [[(theirs, ours.replace("*", part)) for theirs, ours in packed] for part in "qkv"]
    unfolded, scalars = _UNFOLDED.get(project, ""), _SCALARS.get(project, "")
    return Layout([whole, *parts], _COPIES.get(project, []), unfolded, scalars)


def _table(project: str, decoder_layers: int) -> Rows:
    """Return the pairs (theirs, ours) of `names.txt`."""
    text = Path(__file__).with_name("names.txt").read_text(encoding="utf-8")
    column = 1 + PROJECTS.index(project)
    rows, prefix, our_prefix = [], "", ""
    for line in text.replace("{last}", str(decoder_layers)).splitlines():
        words = line.split()
        if words[:1] == ["under"]:
            prefix, our_prefix = words[1 + column], words[1]
        elif words and words[0] != "#" and words[column] != "-":
            theirs = words[0] if words[column] == "=" else words[column]
            rows.append((prefix + theirs, our_prefix + words[0]))
    return rows
