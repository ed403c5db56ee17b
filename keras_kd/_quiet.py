"""Silence TensorFlow, whose C++ code writes to the standard error past Python."""

import contextlib
import logging
import os
import threading
import warnings

_ONE_AT_A_TIME = threading.RLock()  # interleaved threads would restore each other's redirection


@contextlib.contextmanager
def quiet():
    """Drop what is written to the standard error (file descriptor 2), to Python's warnings and to TensorFlow's loggers.

    They are shared by all threads: what other threads write meanwhile is lost too, and a second call waits.
    """
    with _ONE_AT_A_TIME, _without_warnings(), open(os.devnull, "wb") as nowhere:
        try:
            terminal = os.dup(2)
        except OSError:  # it is closed: nothing is written
            yield
            return
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)


@contextlib.contextmanager
def _without_warnings():
    """Silence warnings of TensorFlow's own deprecations, and its loggers."""
    loggers = [logging.getLogger(name) for name in ("tensorflow", "absl")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def first_line(error):
    """The first line of an error's text, at most 300 characters: TensorFlow and Keras write whole pages."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
