"""Show the progress of a run on stderr.

A terminal gets live bars and below them the running means of the losses, the current and the best
AP, the learning rate, the share of time that training waits for data, and memory. Wide terminals
also get the terms of the loss. A file or a pipe gets the same as a plain line every 15 seconds.
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

_LINE_INTERVAL = 15.0  # seconds between plain lines
_WIDE = 100  # columns of a terminal that has room for the terms of the loss

_T = TypeVar("_T")


def counted(number: int, noun: str) -> str:
    """Return "1 image" or "1,200 boxes"."""
    ending = "" if number == 1 else "es" if noun.endswith(("x", "s")) else "s"
    return f"{number:,} {noun}{ending}"


def format_metric(value: float | None) -> str:
    """Return a metric between 0 and 1 as text, "-" for None."""
    return "-" if value is None else f"{value:.3f}"


class Progress:
    """Show the steps of a run on a stream (None means stderr); `quiet` hides all messages too."""

    def __init__(self, quiet: bool = False, stream: TextIO | None = None) -> None:
        self._quiet = quiet
        self._stream = stream or sys.stderr
        self._live: Live | None = None
        self._bars: Bars | None = None
        self._training: TaskID | None = None
        self._evaluating: TaskID | None = None
        self._total = 0
        self._first_step: tuple[float, int] | None = None  # time and number of this process's first step
        self._wait_seconds = self._work_seconds = 0.0  # training waits for a batch, and uses it
        self._last_line = time.monotonic()
        self._scores = self._state = ""

    def start(self, total_steps: int) -> None:
        """Begin training; `total_steps` includes those before a resume."""
        self._total = total_steps
        if bars := self._live_bars():
            self._training = bars.add_task("training", total=total_steps, left="")

    def batches(self, batches: Iterable[_T]) -> Iterator[_T]:
        """Iterate over batches, and measure how long training waits for them."""
        done = time.monotonic()
        for batch in batches:
            begin = time.monotonic()
            self._wait_seconds += begin - done
            yield batch
            done = time.monotonic()
            self._work_seconds += done - begin

    def step(self, done: int, losses: Mapping[str, float], lr: float, memory_bytes: int) -> None:
        """Show the step, running means of the losses, the largest learning rate, peak memory."""
        now = time.monotonic()
        if self._first_step is None:
            self._first_step = (now, done)
        left = self._time_left(now, done)
        terms = "  ".join(f"{name.removeprefix('loss_')} {value:.3f}" for name, value in losses.items())
        narrow = self._live is not None and self._live.console.width < _WIDE
        parts = [f"loss {losses['loss']:.3f}" if narrow else terms, self._scores, f"lr {lr:.1e}"]
        if self._work_seconds:
            parts.append(f"data {self._wait_seconds / (self._wait_seconds + self._work_seconds):.0%}")
        state = "  ".join([*filter(None, parts), f"{memory_bytes / 2**20:,.0f} MB"])
        if self._bars is not None and self._training is not None:
            self._state = state
            self._bars.update(self._training, completed=done, left=left)
        elif now - self._last_line >= _LINE_INTERVAL or done == self._total:
            self._line(f"step {done}/{self._total}  {state}  {left}".rstrip())

    def evaluation(self, done: int, total: int, doing: str = "evaluating") -> None:
        """Show that `done` of `total` images are processed; `doing` is the name of the work."""
        if bars := self._live_bars():
            if self._evaluating is None:
                self._evaluating = bars.add_task(doing, total=total, left="")
            bars.update(self._evaluating, completed=done)
            if done == total:
                bars.remove_task(self._evaluating)
                self._evaluating = None
        elif time.monotonic() - self._last_line >= _LINE_INTERVAL:
            self._line(f"{doing} {done}/{total} images")

    def metrics(self, ap: float | None, best: float | None) -> None:
        """Show the AP of an evaluation, between 0 and 1, and the best one so far."""
        self._scores = f"AP {format_metric(ap)} (best {format_metric(best)})"
        if self._live_bars() is None:
            self._line(f"evaluation  {self._scores}")

    def message(self, text: str) -> None:
        """Print a message that stays on the screen."""
        if self._quiet:
            return
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Remove the live view; may be called twice."""
        if self._live is not None:
            self._live.stop()
        self._live = self._bars = self._training = self._evaluating = None

    def _live_bars(self) -> "Bars | None":
        """Return the bars, which appear at their first use, or None without a terminal."""
        if self._bars is None and not self._quiet and self._stream.isatty():
            from rich import console, live
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
            from rich.progress import Progress as Bars

            terminal = console.Console(file=self._stream)
            name, left = (
                TextColumn(f"{{task.{text}}}", markup=False) for text in ("description", "fields[left]")
            )
            self._bars = Bars(name, BarColumn(bar_width=24), MofNCompleteColumn(), left, console=terminal)
            self._live = live.Live(get_renderable=self._view, console=terminal, transient=True)
            self._live.start()
        return self._bars

    def _view(self) -> "Group":
        from rich.console import Group
        from rich.text import Text

        assert self._bars is not None
        state = [Text(self._state, no_wrap=True, overflow="ellipsis")] if self._state else []
        return Group(self._bars, *state)

    def _line(self, text: str) -> None:
        self._last_line = time.monotonic()
        self.message(text)

    def _time_left(self, now: float, done: int) -> str:
        """Estimate from the mean time of a step so far, evaluations included."""
        assert self._first_step is not None
        begin, first = self._first_step
        if done == first:
            return ""
        return f"{timedelta(seconds=round((now - begin) / (done - first) * (self._total - done)))} left"
