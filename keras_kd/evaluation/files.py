"""Files that appear whole or not at all."""

import contextlib
import os
import pathlib
import uuid


@contextlib.contextmanager
def written_whole(path):
    """Yield a path beside `path` to write to; move it to `path` when the block ends well, delete it when it fails.

    A reader never sees half a file, and a failure leaves an older file as it was. Missing folders are created.

    Example:
        >>> with written_whole("scores.json") as partial:
        ...     partial.write_text("{}")
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The ending stays: matplotlib, for one, chooses the format by it.
    partial = path.with_name(f".{path.stem}.{uuid.uuid4().hex}{path.suffix}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
