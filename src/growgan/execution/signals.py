"""Graceful shutdown: Ctrl-C and SIGTERM stop a run between two training steps."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

SHUTDOWN_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# If no step has ended for this long, a signal interrupts at once instead of after the next step.
STEP_TIMEOUT_SECONDS = 2.0


class GracefulShutdown:
    """A context in which the first signal asks training to stop after the current step.

    A second signal, or one that arrives while nothing is being trained, raises KeyboardInterrupt at
    once. Outside the main thread, signals cannot be handled, and the context has no effect.
    """

    def __init__(self) -> None:
        self.requested = False
        self._last_step_time = float("-inf")
        self._previous_handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> GracefulShutdown:
        if threading.current_thread() is threading.main_thread():
            self._previous_handlers = {
                number: signal.signal(number, self._handle) for number in SHUTDOWN_SIGNALS
            }
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    def should_stop(self) -> bool:
        """Return whether to stop. Call this after each training step."""
        self._last_step_time = time.perf_counter()
        return self.requested

    def _handle(self, signal_number: int, frame: FrameType | None) -> None:
        if self.requested or time.perf_counter() - self._last_step_time > STEP_TIMEOUT_SECONDS:
            raise KeyboardInterrupt
        self.requested = True
