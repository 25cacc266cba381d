"""SIGINT, SIGTERM and SIGUSR1 as a wish to stop, which a run follows where its state is whole.

SLURM sends SIGTERM, or with `--signal=USR1@120` SIGUSR1, some time before it kills. A signal that was ignored when the run
began stays ignored: a shell that starts a job in the background means it.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from accelerate import Accelerator

from groundtune.errors import Interrupted

_SIGNALS = [number for number in signal.Signals if number.name in ("SIGINT", "SIGTERM", "SIGUSR1")]
_STOPPING = b"\nStopping when this step is done; Ctrl-C again ends at once, without saving.\n"


class StopRequest:
    """Remembers the first signal. It is looked at after each step; a second SIGINT raises KeyboardInterrupt anywhere."""

    def __init__(self) -> None:
        self._number: int | None = None
        self._raises = False

    def follow(self, accelerator: Accelerator) -> None:
        """Stop if a signal has come to any of the processes, which all must call this.

        Raises:
            Interrupted: one has.
        """
        if self._number is not None:
            accelerator.set_trigger()
        if accelerator.check_trigger():
            raise self._interrupted()

    @contextmanager
    def at_once(self, accelerator: Accelerator) -> Iterator[None]:
        """Inside, a signal raises Interrupted wherever it meets the work, which must be safe to leave half done.

        Several processes do their work to the end: they would wait for each other in the middle of it.
        """
        self._raises = accelerator.num_processes == 1
        try:
            if self._raises and self._number is not None:
                raise self._interrupted()
            yield
        finally:
            self._raises = False

    def receive(self, number: int, frame: FrameType | None) -> None:
        """The handler."""
        if self._number is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self._number is None and number == signal.SIGINT:
            os.write(2, _STOPPING)  # print is not safe here: the signal may have come in the middle of another
        self._number = self._number or number
        if self._raises:
            self._raises = False
            raise self._interrupted()

    def _interrupted(self) -> Interrupted:
        return Interrupted("stopped", 130 if self._number == signal.SIGINT else 143)


@contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Handle the signals inside, and give them back to their handlers afterwards; only in the main thread."""
    request = StopRequest()
    mine = _SIGNALS if threading.current_thread() is threading.main_thread() else []
    before = {number: signal.getsignal(number) for number in mine}
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, request.receive)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
