"""What a run shows while it works, on stderr: a live view in a terminal, a line now and then elsewhere.

The engine knows only the methods; it never prints. A terminal gets bars and, below them, the running means of the losses,
AP now and best, the learning rate, the share of the time that training waits for data, and memory; on wide terminals the
terms of the loss too. A file or a pipe gets the same as a plain line every 15 seconds or so.
"""

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, TextIO, TypeVar

if TYPE_CHECKING:
    from rich.console import Group
    from rich.live import Live
    from rich.progress import Progress as Bars
    from rich.progress import TaskID


_LINE_EVERY = 15.0  # seconds between plain lines
_TERMS_FROM = 100  # columns of a terminal from which the terms of the loss are shown

_T = TypeVar("_T")


class Progress:
    """Shows the steps of a run.

    Args:
        quiet: show nothing, messages neither.
        stream: where to; None takes stderr.
    """

    def __init__(self, quiet: bool = False, stream: TextIO | None = None) -> None:
        self._quiet = quiet
        self._stream = stream or sys.stderr
        self._live: Live | None = None
        self._bars: Bars | None = None
        self._training: TaskID | None = None
        self._evaluating: TaskID | None = None
        self._total = 0
        self._begin: tuple[float, int] | None = None  # when and where the first step of this process was
        self._waited = self._worked = 0.0  # seconds in which training waited for a batch, and used one
        self._last_line = time.monotonic()
        self._scores = self._state = ""

    def start(self, total_steps: int) -> None:
        """Training begins; steps that an earlier process did are in `total_steps`."""
        self._total = total_steps
        bars = self._live_bars()
        if bars is not None:
            self._training = bars.add_task("training", total=total_steps, left="")

    def batches(self, batches: Iterable[_T]) -> Iterator[_T]:
        """Give the batches on, and take the time that training waits for them."""
        done = time.monotonic()
        for batch in batches:
            begin = time.monotonic()
            self._waited += begin - done
            yield batch
            done = time.monotonic()
            self._worked += done - begin

    def step(self, done: int, losses: Mapping[str, float], lr: float, memory_bytes: int) -> None:
        """A step is over.

        Args:
            done: steps so far, with those before a resume.
            losses: running means: "loss" and its main terms.
            lr: largest learning rate of the step.
            memory_bytes: the most that the run has needed so far.
        """
        now = time.monotonic()
        if self._begin is None:
            self._begin = (now, done)
        left = self._time_left(now, done)
        terms = "  ".join(f"{name.removeprefix('loss_')} {value:.3f}" for name, value in losses.items())
        narrow = self._live is not None and self._live.console.width < _TERMS_FROM
        shown = [f"loss {losses['loss']:.3f}" if narrow else terms, self._scores, f"lr {lr:.1e}"]
        if self._worked:
            shown.append(f"data {self._waited / (self._waited + self._worked):.0%}")
        state = "  ".join([*filter(None, shown), f"{memory_bytes / 2**20:,.0f} MB"])
        if self._bars is not None and self._training is not None:
            self._state = state
            self._bars.update(self._training, completed=done, left=left)
        elif now - self._last_line >= _LINE_EVERY or done == self._total:
            self._line(f"step {done}/{self._total}  {state}  {left}".rstrip())

    def evaluation(self, done: int, total: int, doing: str = "evaluating") -> None:
        """So many images of an evaluation, or of something else that is called `doing`, are done."""
        bars = self._live_bars()
        if bars is not None:
            if self._evaluating is None:
                self._evaluating = bars.add_task(doing, total=total, left="")
            bars.update(self._evaluating, completed=done)
            if done == total:
                bars.remove_task(self._evaluating)
                self._evaluating = None
        elif time.monotonic() - self._last_line >= _LINE_EVERY:
            self._line(f"{doing} {done}/{total} images")

    def metrics(self, ap: float | None, best: float | None) -> None:
        """An evaluation has given the AP, a share between 0 and 1; None where there was nothing to count."""
        self._scores = f"AP {_score(ap)} (best {_score(best)})"
        if self._live_bars() is None:
            self._line(f"evaluation  {self._scores}")

    def message(self, text: str) -> None:
        """Say something that stays."""
        if self._quiet:
            return
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Take the view away; may be called twice."""
        if self._live is not None:
            self._live.stop()
        self._live = self._bars = self._training = self._evaluating = None

    def _live_bars(self) -> "Bars | None":
        """The bars, shown from their first use on; None where there is no terminal."""
        if self._bars is None and not self._quiet and self._stream.isatty():
            from rich.console import Console
            from rich.live import Live
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
            from rich.progress import Progress as Bars

            console = Console(file=self._stream)
            words = [TextColumn(text, markup=False) for text in ("{task.description}", "{task.fields[left]}")]
            self._bars = Bars(
                words[0], BarColumn(bar_width=24), MofNCompleteColumn(), words[1], console=console
            )
            self._live = Live(get_renderable=self._view, console=console, transient=True)
            self._live.start()
        return self._bars

    def _view(self) -> "Group":
        from rich.console import Group
        from rich.text import Text

        assert self._bars is not None
        return Group(
            self._bars, *([Text(self._state, no_wrap=True, overflow="ellipsis")] if self._state else [])
        )

    def _line(self, text: str) -> None:
        self._last_line = time.monotonic()
        self.message(text)

    def _time_left(self, now: float, done: int) -> str:
        """From the mean time of a step since the first one, evaluations between them included."""
        assert self._begin is not None
        begin, first = self._begin
        if done == first:
            return ""
        return f"{timedelta(seconds=round((now - begin) / (done - first) * (self._total - done)))} left"


def _score(share: float | None) -> str:
    return "-" if share is None else f"{share:.3f}"
