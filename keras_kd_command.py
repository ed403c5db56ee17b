"""The console script `keras-kd`: starts `keras_kd.cli` without the messages that TensorFlow writes on import.

A module beside the package, since importing anything of `keras_kd` imports TensorFlow.
"""

import contextlib
import os
import sys


def main():
    """Run `keras-kd`; return the exit code."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    on_terminal = sys.stdout.isatty()
    if on_terminal:
        print("loading TensorFlow ...", end="\r", flush=True)
    with _without_stderr():
        from keras_kd import cli
    if on_terminal:
        print("\x1b[2K", end="", flush=True)
    return cli.main()


@contextlib.contextmanager
def _without_stderr():
    """Drop what is written to file descriptor 2, which C++ code writes to past Python."""
    with open(os.devnull, "wb") as nowhere:
        terminal = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)


if __name__ == "__main__":
    raise SystemExit(main())
