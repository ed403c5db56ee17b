"""Packages that only some functions need: each belongs to an extra, which the error names."""

import contextlib
import sys


@contextlib.contextmanager
def needs_extra(name):
    """Import packages of the extra `name` inside; a missing one raises ImportError that names what to install.

    Example:

    >>> with needs_extra("plot"):
    ...     from matplotlib.figure import Figure
    """
    try:
        yield
    except ImportError as error:
        package = (error.name or "a package").partition(".")[0]
        raise ImportError(f"{package} is needed here and not installed: pip install 'keras-kd[{name}]'") from error


def is_of_package(value, module, name):
    """Whether a value is an instance of a class of a package, which need not be installed: `module.name`."""
    kind = getattr(sys.modules.get(module), name, None)
    return kind is not None and isinstance(value, kind)
