"""The thread that an offloaded model runs on, from the beginning of its outermost call to the end."""

from __future__ import annotations

import threading

from pyendor.errors import UsageError


class Turn:
    """A context manager that one thread at a time is in, as often as it likes; for others it is an error.

    A thread that ended without leaving does not keep others out.

    Attributes:
        depth: how often the owner has entered.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner: threading.Thread | None = None
        self.depth = 0

    def __enter__(self) -> None:
        """Enter.

        Raises:
            UsageError: another thread is inside.
        """
        here = threading.current_thread()
        with self._lock:
            if self._owner is not here:
                if self._owner is not None and self._owner.is_alive():
                    raise UsageError(
                        f"the offloaded model is running on thread {self._owner.name!r}: an offloaded model "
                        "runs on one thread at a time; wait until that call has ended, or load it twice"
                    )
                self._owner, self.depth = here, 0
            self.depth += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self.depth -= 1
            if self.depth == 0:
                self._owner = None
