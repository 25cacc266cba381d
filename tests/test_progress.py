"""The progress of a run on a terminal and in a pipe."""

import io
import re
from collections.abc import Iterator

import pytest

from groundtune.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """Time that a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr("groundtune.progress.time.monotonic", lambda: self.now)


def losses(loss: float) -> dict[str, float]:
    return {"loss": loss, "loss_cls": loss / 2, "loss_giou": loss / 4}


def test_a_pipe_gets_a_line_every_15_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run is resumed after step 10. A step takes 2 s, half a second of it for the batch."""
    clock, stream = Clock(monkeypatch), io.StringIO()
    progress = Progress(stream=stream)
    progress.start(40)
    progress.evaluation(2, 2)

    def loaded() -> Iterator[int]:
        for batch in range(11, 41):
            clock.now += 0.5
            yield batch

    for done in progress.batches(loaded()):
        clock.now += 1.5
        progress.step(done, losses(1 / done), 5e-4, 3000 * 2**20)
        if done == 20:
            progress.metrics(0.5, None)
    progress.close()
    progress.close()
    assert stream.getvalue().splitlines() == [
        "step 18/40  loss 0.056  cls 0.028  giou 0.014  lr 5.0e-04  data 28%  3,000 MB  0:00:44 left",
        "evaluation  AP 0.500 (best -)",
        "step 28/40  loss 0.036  cls 0.018  giou 0.009  AP 0.500 (best -)  lr 5.0e-04  data 26%  3,000 MB  "
        "0:00:24 left",
        "step 36/40  loss 0.028  cls 0.014  giou 0.007  AP 0.500 (best -)  lr 5.0e-04  data 26%  3,000 MB  "
        "0:00:08 left",
        "step 40/40  loss 0.025  cls 0.013  giou 0.006  AP 0.500 (best -)  lr 5.0e-04  data 26%  3,000 MB  "
        "0:00:00 left",
    ]


@pytest.mark.parametrize(("columns", "terms"), [(80, ""), (140, "  cls 0.750  giou 0.375")])
def test_a_terminal_gets_a_live_view_that_fits_and_messages_stay(
    monkeypatch: pytest.MonkeyPatch, columns: int, terms: str
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    stream = Terminal()
    progress = Progress(stream=stream)
    progress.start(1000)
    progress.message("[red]not markup[/red]")
    progress.evaluation(1, 2)
    progress.evaluation(2, 2)
    progress.metrics(0.25, 0.5)
    progress.step(3, losses(1.5), 1e-3, 2**30)
    progress.step(4, losses(1.5), 1e-3, 2**30)
    progress.close()
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())
    assert "[red]not markup[/red]" in shown
    assert re.search(r"training .*4/1000 \d+:\d\d:\d\d left", shown)
    assert f"loss 1.500{terms}  AP 0.250 (best 0.500)  lr 1.0e-03  1,024 MB" in shown
    assert max(map(len, re.split(r"[\r\n]+", shown))) <= columns
    progress.message("afterwards")
    assert stream.getvalue().endswith("afterwards\n")


def test_quiet_shows_nothing() -> None:
    stream = Terminal()
    progress = Progress(quiet=True, stream=stream)
    progress.start(2)
    progress.message("x")
    progress.evaluation(1, 1)
    progress.step(2, losses(1.0), 1.0, 1)
    progress.metrics(None, None)
    progress.close()
    assert stream.getvalue() == ""
