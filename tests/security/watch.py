"""What a file made the process do: network, other programs, code out of pickles, and whatever else
nobody asked for.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

FOREIGN = (
    "socket.",
    "subprocess.",
    "os.system",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "os.spawn",
    "pickle.find_class",
)
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.chmod", "shutil.")
_seen: list[str] | None = None


def _hook(event: str, args: tuple[object, ...]) -> None:
    if _seen is None or event == "socket.gethostname":
        return
    writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if writes or event.startswith(FOREIGN + CHANGES):
        _seen.append(f"{event} {args!r:.200}")


sys.addaudithook(_hook)  # cannot be removed again; it does nothing unless something is watched


@contextmanager
def watched() -> Iterator[list[str]]:
    """The list fills with what happens; a test asserts that it stays empty."""
    global _seen
    seen: list[str] = []
    _seen = seen
    try:
        yield seen
    finally:
        _seen = None


class Hangs(BaseException):
    """Passes every `except Exception`."""


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """Raises `Hangs` where the block takes longer; far above what any of them needs on a busy
    machine.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise Hangs(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
