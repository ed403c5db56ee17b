"""Files and folders that appear whole or not at all, their sizes, and damaged ones."""

import contextlib
import hashlib
import os
import pathlib
import shutil
import uuid
import zipfile
import zlib

from keras_kd._quiet import first_line

_UNREADABLE = (zipfile.BadZipFile, zlib.error, OSError, KeyError, EOFError)  # archives and HDF5, as Keras reads them


@contextlib.contextmanager
def written_whole(path, companion=None):
    """Yield a path beside `path` to write a file or folder to; move it to `path` at the end, remove it on failure.

    A reader never sees half a file, and a failure leaves an older one as it was. A file replaces a file, a folder
    replaces a folder. Missing parent folders are made, and removed again on failure. `companion` is the ending of a
    second file that is written beside the one that is yielded: it is moved first.

    Example:

    >>> with written_whole("scores.json") as partial:
    ...     partial.write_text("{}")
    """
    path = pathlib.Path(path)
    missing = [folder for folder in path.parents if not folder.exists()]  # the innermost first
    # The ending stays: matplotlib, for one, chooses the format by it.
    partial = path.with_name(f".{path.stem}.{uuid.uuid4().hex}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        if companion is not None:
            os.replace(partial.with_suffix(companion), path.with_suffix(companion))
        _move(partial, path)
    except BaseException:
        _remove(partial)
        if companion is not None:
            _remove(partial.with_suffix(companion))
        for folder in missing:
            with contextlib.suppress(OSError):  # it was not made, or someone else has put something into it
                folder.rmdir()
        raise


@contextlib.contextmanager
def naming_damaged_file(path, errors=_UNREADABLE):
    """Raise ValueError that names the file or folder at `path` where what reads it raises one of `errors`."""
    try:
        if str(path).endswith(".keras") and os.path.isfile(path) and not zipfile.is_zipfile(path):
            raise zipfile.BadZipFile("it is no zip archive")
        yield
    except errors as error:
        if not os.path.exists(path):
            raise
        raise ValueError(
            f"{str(path)!r} is damaged or cannot be loaded ({type(error).__name__}: {first_line(error)}). Save it "
            "again, or restore an earlier copy."
        ) from error


def bytes_on_disk(path):
    """Return the bytes of a file, or of all files in a folder."""
    path = pathlib.Path(path)
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)


def content_hash(path, *others):
    """The SHA-256 of the content of a file, or of several end to end; of a folder, of its files' names and contents."""
    path, content = pathlib.Path(path), hashlib.sha256()
    if path.is_file():
        for file in (path, *map(pathlib.Path, others)):
            content.update(file.read_bytes())
        return content.hexdigest()
    for file in sorted(found for found in path.rglob("*") if found.is_file()):
        content.update(os.fsencode(file.relative_to(path)) + hashlib.sha256(file.read_bytes()).digest())
    return content.hexdigest()


def _move(new, path):
    if not (new.is_dir() and path.is_dir()):
        os.replace(new, path)  # which refuses to put a file in a folder's place, and the other way round
        return
    # A folder that is not empty cannot be replaced in one step.
    old = path.with_name(f"{new.name}.old")
    os.replace(path, old)
    try:
        os.replace(new, path)
    except BaseException:
        os.replace(old, path)
        raise
    _remove(old)


def _remove(path):
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
