"""Names of things that a data set does not name but a model may know: what must stay findable while it is fine-tuned.

Two sources: a fixed list of common things, and the words of the data set's own names put together anew. Who labels "white
king" and "black queen" shows the model what white, black, king and queen mean, and a "white queen" in the picture that
nobody labelled would be taught as background.
"""

from collections import Counter
from collections.abc import Sequence

COMMON_NAMES = tuple(
    """person, face, hand, dog, cat, bird, horse, cow, sheep, fish, insect, flower, tree, plant, leaf, fruit, apple, banana,
    orange, vegetable, bread, cake, pizza, food, plate, bowl, cup, glass, bottle, spoon, fork, knife, table, chair, sofa,
    bed, lamp, door, window, shelf, box, bag, book, paper, pen, scissors, clock, phone, screen, laptop, keyboard, mouse,
    remote control, camera, toy, ball, shoe, hat, shirt, glasses, umbrella, bicycle, motorcycle, car, bus, truck, train,
    boat, airplane, wheel, traffic light, sign, building, house, bench, wall, tool, machine, robot, letter, number""".replace(
        "\n   ", ""
    ).split(", ")
)
"""Common things, from people to letters; a mixture of everyday objects that no one data set was made for."""

_MOST_RECOMBINED = 60


def recombined_names(names: Sequence[str]) -> list[str]:
    """Put words that several names begin with before every word that ends such a name.

    Args:
        names: cleaned class names. None give none.

    Returns:
        The combinations that are no class yet, in the order of their words: nothing for names without words in common, and at
        most 60 (the first).
    """
    pairs = [name.rsplit(" ", 1) for name in names if " " in name]
    times = Counter(begin for begin, _ in pairs)
    begins = [begin for begin in times if times[begin] > 1]
    ends = dict.fromkeys(end for begin, end in pairs if begin in begins)
    made = [f"{begin} {end}" for begin in begins for end in ends]
    return [name for name in made if name not in names][:_MOST_RECOMBINED]
