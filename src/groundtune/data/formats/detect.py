"""Read a data set: every reader looks at the folder, and the best evidence wins.

A reader has a function `recognize(tree)`, which returns `Evidence` or None. Files that declare a
data set (a data.yaml) are better evidence than files whose content is that of a format. Formats
that annotate different splits are combined. Equal evidence is an error that names `--format`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from posixpath import basename

from groundtune.data.formats import (
    coco,
    createml,
    csv,
    cvat,
    hf,
    label_studio,
    label_txt,
    labelme,
    ndjson,
    odvg,
    paligemma,
    parquet,
    unread,
    via,
    voc,
    wider,
    yolo,
)
from groundtune.data.formats.archive import CACHE, is_archive, unpack
from groundtune.data.formats.assemble import assemble
from groundtune.data.formats.parts import divided
from groundtune.data.formats.records import Evidence, RawData, Source
from groundtune.data.formats.tree import Tree
from groundtune.data.formats.words import SPLITS
from groundtune.data.images import UNREAD_SUFFIXES, has_suffix, is_visible
from groundtune.data.problems import READING, Collector, Finding, Severity
from groundtune.data.sample import Dataset, join_examples, unify_classes
from groundtune.data.split import hold_out
from groundtune.errors import ConfigError, DataError, suggestion
from groundtune.files import collection_paused

READERS: dict[str, Callable[[Tree], Evidence | None]] = {
    "coco": coco.recognize,
    "odvg": odvg.recognize,
    "yolo": yolo.recognize,
    "voc": voc.recognize,
    "csv": csv.recognize,
    "cvat": cvat.recognize,
    "labelme": labelme.recognize,
    "label-studio": label_studio.recognize,
    "via": via.recognize,
    "createml": createml.recognize,
    "hf": hf.recognize,
    "parquet": parquet.recognize,
    "ndjson": ndjson.recognize,
    "paligemma": paligemma.recognize,
    "wider": wider.recognize,
    **label_txt.RECOGNIZERS,
}
"""The readers by the names that `--format` takes."""

_EXPECTED = (
    "Expected images with annotations in one of the layouts of docs/data.md, such as "
    "train/_annotations.coco.json, a YOLO data.yaml, Pascal VOC's XML files, or a CSV file of boxes"
)


class Splits(dict[str, Dataset]):
    """Splits by name, with one class list.

    Attributes:
        source: the data set.
        refused: reasons why other splits cannot be read.
    """

    def __init__(self, source: Path, splits: dict[str, Dataset], refused: dict[str, str]) -> None:
        super().__init__(splits)
        self.source, self.refused = source, refused

    def __missing__(self, split: str) -> Dataset:
        found = f"Found: {', '.join(self) or 'none'}.{suggestion(split, self)}"
        raise DataError(self.refused.get(split) or f"{self.source} has no split {split!r}. {found}")


def load_splits(
    path: Path,
    *,
    format: str | None = None,
    needed: Sequence[str] = ("train", "valid"),
    keep_going: bool = False,
) -> Splits:
    """Read a data set like `read_splits`; hold out "valid" from "train" if there is none."""
    splits = read_splits(path, format=format, needed=needed, keep_going=keep_going)
    if "train" in splits and "valid" not in splits and "valid" not in splits.refused:
        held = hold_out(splits["train"], seed=0)
        return Splits(splits.source, held | splits, splits.refused)
    return splits


@collection_paused()
def read_splits(
    path: Path,
    *,
    format: str | None = None,
    needed: Sequence[str] = ("train", "valid"),
    keep_going: bool = False,
) -> Splits:
    """Read the data set in a folder, in an archive, or in one annotation file.

    Args:
        path: folder, zip or tar file of one, or annotation file.
        format: name of the reader; None: the one with the best evidence.
        needed: splits that must not be faulty. Faults of others are warnings.
        keep_going: skip images and files that cannot be used, with a finding of severity "error".

    Returns:
        The existing splits of "train", "valid" and "test". A single file becomes "train".

    Raises:
        ConfigError: there is no such format.
        DataError: no format or several fit, or a needed split is not usable.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"The data {path} does not exist. {_EXPECTED}.")
    try:
        place = unpack(path) if is_archive(path) else path
        tree = tree_of(place)
        evidence = _best(tree, place, format)
        splits = _read(tree, evidence, path, keep_going)
    except OSError as error:
        raise DataError(f"Cannot read {error.filename or path}: {error.strerror or error}.") from error
    faults = [splits.refused[split] for split in splits.refused if split in needed or not splits]
    if faults and not (keep_going and splits):
        raise DataError("\n  ".join(faults))
    unify_classes(list(splits.values()))
    _add_notes(tree, splits, needed, evidence[0].unused)
    return splits


def tree_of(path: Path) -> Tree:
    """Return the files of a data set: of the folder, or of that around an annotation file."""
    if path.is_dir():
        return Tree(path)
    inner = path.parent.name.lower() in ("annotations", "annots", "labels", "lists", "imagesets")
    root = path.parent.parent if inner else path.parent
    return Tree(root, only=path.relative_to(root).as_posix())


def _best(tree: Tree, path: Path, format: str | None) -> list[Evidence]:
    """Return the best evidence; several if they annotate different splits."""
    if format is not None and format not in READERS:
        raise ConfigError(
            f"format: expected {', '.join(READERS)}, got {format!r}.{suggestion(format, READERS)}"
        )
    readers = [format] if format else list(READERS)
    found = [evidence for name in readers if (evidence := READERS[name](tree)) is not None]
    if not any(evidence.rank for evidence in found) and (known := unread.recognize(tree)):
        found = [known]
    if not found:
        if not path.is_dir():
            raise DataError(f"{path} is not a data set that can be read. {_EXPECTED}.")
        names = sorted(entry.name + "/" * entry.is_dir() for entry in path.iterdir())
        entries = [name for name in names if is_visible(name)]
        inside = join_examples(entries, 8) or "an empty folder"
        as_format = f" as {format}" if format else ""
        raise DataError(f"No data set in {path}{as_format}. {_EXPECTED}. Found: {inside}.")
    best = [evidence for evidence in found if evidence.rank == max(each.rank for each in found)]
    if best[0].rank == 0:
        return best[:1]
    splits = [split for evidence in best for split in evidence.sources]
    if len(splits) > len(set(splits)) and len(best) > 1:
        kinds = " and ".join(f"{each.format} ({each.example})" for each in best)
        raise DataError(
            f"{path} can be read as {kinds}. Choose with --format {best[0].format} or --format "
            f"{best[1].format}, or give the path of the annotation file."
        )
    named = len(best) > 1 and "train" in splits  # then those without a split are not used
    unused = [each for each in found if each.rank < best[0].rank or (named and "" in each.sources)]
    best[0].unused = [f"{each.example} ({each.format})" for each in unused if each.rank]
    return best


def _read(tree: Tree, found: Sequence[Evidence], path: Path, keep_going: bool) -> Splits:
    """Read each split; a fault of one is the reason why it is refused."""
    sources = {split: source for evidence in found for split, source in evidence.sources.items()}
    refused = {split: reason for evidence in found for split, reason in evidence.refused.items()}
    if len(sources) == 1 and found[0].rank < 3 and not tree.only:
        sources, unlisted = _divided(tree, *sources.popitem())
        refused |= unlisted
    if "" in sources and ("train" not in sources or tree.only):
        sources = {"train": sources.pop("")} | sources
    if "" in refused:
        refused = {"train": refused.pop("")} | refused
    if tree.only and len(sources) == 1:
        sources = {"train": next(iter(sources.values()))}
    if not sources and not refused:
        refused["train"] = f"{tree.root / found[0].example} lists no images. Expected at least one."
    splits = {}
    for split in (split for split in SPLITS if split in sources):
        source = sources[split]
        try:
            raw = source.read(source.file)
            splits[split] = assemble(raw, split, raw.tree or tree, source.image_dirs, keep_going)
        except DataError as error:
            refused[split] = str(error)
    return Splits(path, splits, refused)


def _divided(tree: Tree, split: str, source: Source) -> tuple[dict[str, Source], dict[str, str]]:
    """Return the only source by the splits of lists of images, and the splits that are refused."""

    def read(raw: RawData) -> Callable[[Path], RawData]:
        return lambda _: raw

    if split not in ("", "train"):
        return {split: source}, {}
    try:
        raws, refused = divided(tree, split, source.read(source.file))
    except DataError:  # reported when the split is read
        return {split: source}, {}
    return {name: source._replace(read=read(raw)) for name, raw in raws.items()}, refused


def _add_notes(tree: Tree, splits: Splits, needed: Sequence[str], unused_files: Sequence[str]) -> None:
    """Report unpacked folders, refused splits, and annotations and images that no split uses."""
    first = next(iter(splits.values()))
    for root in dict.fromkeys(dataset.root for dataset in splits.values() if CACHE in dataset.root.parts):
        message, fix = "The images are unpacked in", "Delete this folder to free its space."
        first.findings.append(Finding("data-unpacked", "note", message, fix, 1, [str(root)]))
    for split, reason in splits.refused.items():
        severity: Severity = "error" if split in needed else "warning"
        message, fix = f"the split {split!r} cannot be read and is skipped:", "Correct it to use it."
        first.findings.append(Finding("data-unreadable", severity, message, fix, 1, [reason]))
    if tree.only:
        return
    problems = Collector(READING)
    for file in tree.files:
        if has_suffix(basename(file), UNREAD_SUFFIXES):
            problems.add("image-format-unread", file)
    for file in unused_files:
        problems.add("annotations-unused", file)
    first.findings += problems.findings()
    used = {sample.image_path for dataset in splits.values() for sample in dataset.samples}
    reported = " ".join(
        text for dataset in splits.values() for each in dataset.findings for text in each.examples
    )
    unused = [file for file in tree.images if tree.root / file not in used and basename(file) not in reported]
    if unused:
        beside = {path.parent for path in used} & {(tree.root / file).parent for file in unused}
        message = f"{len(unused)} images in the folder have no annotations, and are not used."
        fix = "Nothing has to be done if they do not belong to the data set."
        severity = "warning" if beside else "note"
        first.findings.append(Finding("file-unused", severity, message, fix, len(unused), unused[:2]))
