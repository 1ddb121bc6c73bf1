"""Loops compiled by numba, whose machine code is kept on disk for later processes."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

from filelock import FileLock

Loop = TypeVar("Loop", bound=Callable[..., Any])

_LOCK_S = 10  # longest wait for another process that writes to the same directory
_log = logging.getLogger(__name__)


def compiled(loop: Loop) -> Loop:
    """Compiles a loop when it is first called, and keeps the machine code on disk.

    The compiled loop releases the interpreter's lock while it runs. Numba compiles it once for each combination of
    argument types. The machine code goes to the directory that the environment variable NUMBA_CACHE_DIR names. If
    the variable is not set, it goes to `__pycache__` beside the source file, or to the user's cache directory where
    `__pycache__` cannot be written. If the cache cannot be read or written, the process compiles for itself and logs
    a warning.

    Numba discards cached code when the source file of `loop` changes, but does not notice a change in another file.
    So a compiled loop may call only compiled loops of its own file.

    Returns:
        The compiled loop. If numba is not installed, a function that raises ModuleNotFoundError when it is called;
        modules with compiled loops can then still be imported.
    """
    try:
        import numba
    except ModuleNotFoundError as error:
        return _refusal(error)
    dispatcher: Any = numba.njit(nogil=True)(loop)
    try:
        # Numba has no public way to choose the cache. `njit(cache=True)` sets this attribute too.
        dispatcher._cache = _cache_class()(loop)
    except RuntimeError:  # numba found no directory that it can write to
        _warn("No directory for compiled loops can be written: every process compiles them anew. Set NUMBA_CACHE_DIR.")
    return dispatcher


def _refusal(error: ModuleNotFoundError) -> Any:
    """Makes a function that takes any arguments and raises `error`."""
    def refuse(*_: object) -> None:
        raise error

    return refuse


@cache
def _warn(message: str) -> None:
    """Logs a warning once in a process, although every loop may have the same problem."""
    _log.warning(message)


@cache
def _cache_class() -> Any:
    """Makes a subclass of numba's cache of one loop. If it fails, it logs a warning and the run goes on."""
    from numba.core.caching import FunctionCache

    class TolerantCache(FunctionCache):
        def load_overload(self, sig: Any, target_context: Any) -> Any:
            try:
                return super().load_overload(sig, target_context)
            except Exception as error:  # unpickling a damaged file can raise anything
                _warn(f"Compiled loops in {self.cache_path} cannot be read and are compiled anew: {error!r}")
            try:
                self.flush()
            except OSError as error:
                _warn(f"Damaged compiled loops in {self.cache_path} cannot be removed: {error}")

        def save_overload(self, sig: Any, data: Any) -> None:
            try:
                # Without the lock, two processes that add code for different types at once could mix them up.
                with FileLock(os.path.join(self.cache_path, "unisono-loops.lock"), timeout=_LOCK_S):
                    super().save_overload(sig, data)
            except OSError as error:
                _warn(f"Compiled loops cannot be kept in {self.cache_path}: {error}")

    return TolerantCache
