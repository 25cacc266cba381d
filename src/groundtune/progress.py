"""What a run shows while it works, on stderr: a live bar in a terminal, a line now and then elsewhere.

The engine knows only the methods; it never prints. A terminal gets the step, the running mean of the loss, AP now and
best, the learning rate and the seconds left. A file or a pipe gets the same as a plain line every 15 seconds or so.
"""

import sys
import time
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

_LINE_EVERY = 15.0  # seconds between plain lines


class Progress:
    """Shows the steps of a run.

    Args:
        quiet: show nothing, messages neither.
        stream: where to; None takes stderr.
    """

    def __init__(self, quiet: bool = False, stream: TextIO | None = None) -> None:
        self._quiet = quiet
        self._stream = stream or sys.stderr
        self._bar: Bar | None = None
        self._training: TaskID | None = None
        self._evaluating: TaskID | None = None
        self._total = 0
        self._begin: tuple[float, int] | None = None  # when and where the first step of this process was
        self._last_line = time.monotonic()
        self._scores = ""

    def start(self, total_steps: int) -> None:
        """Training begins; steps that an earlier process did are in `total_steps`."""
        self._total = total_steps
        bar = self._live_bar()
        if bar is not None:
            self._training = bar.add_task("training", total=total_steps)

    def step(self, done: int, loss: float, lr: float) -> None:
        """A step is over.

        Args:
            done: steps so far, with those before a resume.
            loss: running mean.
            lr: largest learning rate of the step.
        """
        now = time.monotonic()
        if self._begin is None:
            self._begin = (now, done)
        state = f"loss {loss:.3f}{self._scores}  lr {lr:.1e}{self._time_left(now, done)}"
        if self._bar is not None and self._training is not None:
            self._bar.update(self._training, completed=done, description=state)
        elif now - self._last_line >= _LINE_EVERY or done == self._total:
            self._line(f"step {done}/{self._total}  {state}")

    def evaluation(self, done: int, total: int, doing: str = "evaluating") -> None:
        """So many pictures of an evaluation, or of something else that is called `doing`, are done."""
        bar = self._live_bar()
        if bar is not None:
            if self._evaluating is None:
                self._evaluating = bar.add_task(doing, total=total)
            bar.update(self._evaluating, completed=done)
            if done == total:
                bar.remove_task(self._evaluating)
                self._evaluating = None
        elif time.monotonic() - self._last_line >= _LINE_EVERY:
            self._line(f"{doing} {done}/{total} pictures")

    def metrics(self, ap: float | None, best: float | None) -> None:
        """An evaluation has given the AP, a share between 0 and 1; None where there was nothing to count."""
        self._scores = f"  AP {_score(ap)} (best {_score(best)})"
        if self._live_bar() is None:
            self._line(f"evaluation{self._scores}")

    def message(self, text: str) -> None:
        """Say something that stays."""
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Take the bar away; may be called twice."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        self._training = self._evaluating = None

    def _live_bar(self) -> "Bar | None":
        """The bar, started at its first use; None where there is no terminal."""
        if self._bar is None and not self._quiet and self._stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
            from rich.progress import Progress as Bar

            columns = (MofNCompleteColumn(), BarColumn(bar_width=24), TextColumn("{task.description}", markup=False))
            self._bar = Bar(*columns, console=Console(file=self._stream), transient=True)
            self._bar.start()
        return self._bar

    def _line(self, text: str) -> None:
        self._last_line = time.monotonic()
        self.message(text)

    def _time_left(self, now: float, done: int) -> str:
        """From the mean time of a step since the first one, evaluations between them included."""
        assert self._begin is not None
        begin, first = self._begin
        if done == first:
            return ""
        return f"  {round((now - begin) / (done - first) * (self._total - done))} s left"


def _score(share: float | None) -> str:
    return "-" if share is None else f"{share:.3f}"
