"""Ctrl-C and SIGTERM end a run between two training steps, where nothing is half done."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
PATIENCE = 2.0  # seconds since the last step, after which a signal no longer waits for the next


class Stop:
    """While it is entered, a signal asks training to stop; a second one, or one that finds no
    training, raises KeyboardInterrupt at once. Outside the main thread it does nothing."""

    def __init__(self) -> None:
        self.asked = False
        self._stepped = float("-inf")
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            self._before = {each: signal.signal(each, self._handle) for each in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)

    def between_steps(self) -> bool:
        """Return whether to stop here; to be called after each step."""
        self._stepped = time.perf_counter()
        return self.asked

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked or time.perf_counter() - self._stepped > PATIENCE:
            raise KeyboardInterrupt
        self.asked = True
