"""What the words in the paths of a data set mean: splits, and pairs of images and annotations."""

import re
import unicodedata
from functools import cache
from posixpath import basename, dirname, splitext

_SPLIT_WORDS = {
    "train": "train training trn trainval traindata trainset",
    "valid": "val valid validation dev eval evaluation minival valset",
    "test": "test testing testset testdev",
}
SPLITS = tuple(_SPLIT_WORDS)
_SPLIT_OF = {word: split for split, listed in _SPLIT_WORDS.items() for word in listed.split()}
_GENERIC = frozenset(
    "image images img imgs jpegimages photos data dataset label labels annotation annotations "
    "annots annot xml xmls json jsons txt labeltxt groundtruth gt obj set instances coco od vg".split()
)


def split_of(path: str) -> str | None:
    """Return the split that a file is of, by a word in its name or by the name of a folder."""
    splits = [_SPLIT_OF[word] for word in _words(splitext(basename(path))[0]) if word in _SPLIT_OF]
    if splits:
        return splits[0] if len({*splits} - {"train"}) < 2 and "test" not in splits[1:] else None
    return folder_split(dirname(path))


def folder_split(folder: str) -> str | None:
    """Return the split of the innermost folder that is named after one, such as "val_images"."""
    for part in reversed(folder.split("/")):
        words = [word for word in _words(part) if word not in _GENERIC]
        if len(words) == 1 and words[0] in _SPLIT_OF:
            return _SPLIT_OF[words[0]]
    return None


@cache
def _words(text: str) -> tuple[str, ...]:
    return tuple(word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", text))


def pair_key(path: str) -> tuple[str, ...]:
    """Return what an image and its annotation file have in common.

    "train/images/a.jpg" and "Labels/train/a.txt" are a pair.
    """
    stem = splitext(path)[0]
    *folders, name = fold(stem).split("/")
    return (*sorted(part for part in folders if re.sub(r"[\W\d_]", "", part) not in _GENERIC), name)


def fold(text: str) -> str:
    """Return a name without regard to letter case and Unicode normal form."""
    return unicodedata.normalize("NFC", text).casefold()
