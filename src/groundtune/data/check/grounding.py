"""Captions and their phrases: spans that cut a word in two, and phrases that stand for nothing."""

from groundtune.data.findings import Collector
from groundtune.data.sample import Dataset


def check_grounding(dataset: Dataset, found: Collector) -> None:
    """Look at the phrases of every caption; pictures without one have nothing to look at."""
    for sample in dataset.samples:
        if sample.grounding is None:
            continue
        name, caption = sample.image_path.name, sample.grounding.caption
        with_boxes = set(sample.class_ids.tolist())
        for index, (phrase, spans) in enumerate(zip(sample.grounding.phrases, sample.grounding.spans, strict=True)):
            if any(_cuts_word(caption, begin) or _cuts_word(caption, end) for begin, end in spans):
                found.add("span-in-word", f"{name}: {phrase!r} in {caption!r}")
            if index not in with_boxes:
                found.add("phrase-without-boxes", f"{name}: {phrase!r}")


def _cuts_word(caption: str, place: int) -> bool:
    """Whether there is a letter on both sides of a place between characters."""
    return 0 < place < len(caption) and caption[place - 1].isalnum() and caption[place].isalnum()
