"""What is shown while a run works."""

import io

import pytest

from groundtune.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """Time that a test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr("groundtune.progress.time.monotonic", lambda: self.now)


def test_a_pipe_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, stream = Clock(monkeypatch), io.StringIO()
    progress = Progress(stream=stream)
    progress.start(40)
    progress.evaluation(2, 2)
    for done in range(11, 41):  # a run that goes on after step 10, 2 s a step
        clock.now += 2
        progress.step(done, 1 / done, 5e-4)
        if done == 20:
            progress.metrics(0.5, None)
    progress.close()
    progress.close()
    assert stream.getvalue().splitlines() == [
        "step 18/40  loss 0.056  lr 5.0e-04  44 s left",
        "evaluation  AP 0.500 (best -)",
        "step 28/40  loss 0.036  AP 0.500 (best -)  lr 5.0e-04  24 s left",
        "step 36/40  loss 0.028  AP 0.500 (best -)  lr 5.0e-04  8 s left",
        "step 40/40  loss 0.025  AP 0.500 (best -)  lr 5.0e-04  0 s left",
    ]


def test_a_terminal_gets_a_live_bar_and_messages_stay() -> None:
    stream = Terminal()
    progress = Progress(stream=stream)
    progress.start(10)
    progress.message("[red]not markup[/red]")
    progress.evaluation(1, 2)
    progress.evaluation(2, 2)
    progress.metrics(0.25, 0.5)
    progress.step(3, 1.5, 1e-3)
    progress.close()
    shown = stream.getvalue()
    assert "[red]not markup[/red]" in shown
    assert "3/10" in shown
    assert "loss 1.500  AP 0.250 (best 0.500)  lr 1.0e-03" in shown
    progress.message("afterwards")
    assert stream.getvalue().endswith("afterwards\n")


def test_quiet_is_quiet() -> None:
    stream = Terminal()
    progress = Progress(quiet=True, stream=stream)
    progress.start(2)
    progress.message("x")
    progress.evaluation(1, 1)
    progress.step(2, 1.0, 1.0)
    progress.metrics(None, None)
    progress.close()
    assert stream.getvalue() == ""
