"""Retention: what fine-tuning left of a model's numbers on data sets that it was not trained on."""

from collections.abc import Mapping

_NOTHING = 0.0005  # reads 0.000


def retention(
    numbers: Mapping[str, Mapping[str, float | None]],
) -> tuple[str, float | None, float | None, float | None]:
    """The number that a retained data set is judged by, AP or recall@1 of captions.

    Args:
        numbers: its metrics "before" and "after" training.

    Returns:
        The number's name, its values before and after, and the share that was kept, above 1 where the model became better;
        None where there was nothing to keep.
    """
    name = "AP" if "AP" in numbers["before"] else "recall@1"
    before, after = numbers["before"][name], numbers["after"][name]
    if before is None or after is None or before < _NOTHING:
        return name, before, after, None
    return name, before, after, after / before
