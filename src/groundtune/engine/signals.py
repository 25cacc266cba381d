"""SIGINT, SIGTERM and SIGUSR1 as requests to stop, which a run follows after the current step.

SLURM sends SIGTERM, or with `--signal=USR1@120` SIGUSR1, some time before it kills a job.
"""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from accelerate import Accelerator

from groundtune.errors import Interrupted

_REACTION = 2.0  # seconds in which Python handles a signal, unless it waits in another library
STOP_SIGNALS = [number for number in signal.Signals if number.name in ("SIGINT", "SIGTERM", "SIGUSR1")]


@contextmanager
def handled_signals(
    handler: Callable[[int, FrameType | None], None], numbers: Sequence[signal.Signals]
) -> Iterator[None]:
    """Handle signals inside and restore their handlers afterwards.

    An ignored signal stays ignored: nohup, or a shell that starts a background job, means it.
    """
    before = {number: signal.getsignal(number) for number in numbers}
    before = {number: old for number, old in before.items() if old not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


class StopRequest:
    """Remembers the first stop signal. A second SIGINT raises KeyboardInterrupt immediately.

    While there is `nothing_to_save`, before the first step and after the last one, a signal raises
    `Interrupted` immediately.
    """

    def __init__(self) -> None:
        self._number: int | None = None
        self._raises = False
        self.nothing_to_save = True
        self._handled = 0

    def raise_if_requested(self, share: Callable[[bool], Sequence[bool]]) -> None:
        """Raise `Interrupted` if any process has received a signal, by `distributed.share`."""
        if any(share(self._number is not None)):
            raise self._interrupted()

    @contextmanager
    def immediately(self, accelerator: Accelerator) -> Iterator[None]:
        """Inside, a signal raises `Interrupted` at any point: only for work that may be abandoned.

        Several processes finish the work instead: in its middle they would wait for each other.
        """
        self._raises = accelerator.num_processes == 1
        try:
            if self._raises and self._number is not None:
                raise self._interrupted()
            yield
        finally:
            self._raises = False

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        self._handled += 1
        if self._number is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self._number is None and number == signal.SIGINT and not self.nothing_to_save:
            # print is not reentrant
            os.write(2, b"\nStopping after this step; press Ctrl-C again to stop now without saving.\n")
        self._number = self._number or number
        if self._raises or self.nothing_to_save:
            self._raises = self.nothing_to_save = False
            raise self._interrupted()

    def exit_if_stuck(self, received: socket.socket) -> None:
        """Exit where a signal must raise, but Python does not handle it: it waits for a process."""
        numbers: list[int] = []
        while byte := received.recv(1):
            if byte[0] not in STOP_SIGNALS:
                continue
            numbers.append(byte[0])
            if self.nothing_to_save or numbers.count(signal.SIGINT) > 1:
                time.sleep(_REACTION)
                if self._handled < len(numbers):
                    os.write(2, b"groundtune: interrupted.\n")
                    os._exit(130 if signal.SIGINT in numbers else 143)

    def _interrupted(self) -> Interrupted:
        return Interrupted("interrupted", 130 if self._number == signal.SIGINT else 143)


@contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Turn the stop signals inside into a `StopRequest`; in the main thread only."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    received, sent = socket.socketpair()
    with handled_signals(request.receive, STOP_SIGNALS), received, sent:
        sent.setblocking(False)
        before = signal.set_wakeup_fd(sent.fileno(), warn_on_full_buffer=False)
        watcher = threading.Thread(target=request.exit_if_stuck, args=(received,), daemon=True)
        watcher.start()
        try:
            yield request
        finally:
            signal.set_wakeup_fd(before)
            sent.close()
            watcher.join()
