"""The files of a cache, each checked part by part by its size and its SHA-256."""

import contextlib
import errno
import hashlib
import json

import numpy as np

from keras_kd._files import written_whole

MANIFEST, BEGUN = "manifest.json", "building.json"
INDEX = ("index.key.bin", "index.position.bin")
_CHUNK = 2**20


def append(folder, name, array, at):
    """Append an array to a file that has `at` bytes; return what was added: `{"bytes", "sha256"}`."""
    content = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    path = folder / name
    size = path.stat().st_size if path.exists() else 0
    if size != at:
        raise _altered(path, f"it has {size:,} bytes instead of {at:,}; does another process build there as well?")
    with _explained_if_full(path), path.open("ab") as file:
        file.write(content)
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def write(folder, name, array):
    """Write a file whole; return `{"bytes", "sha256"}`."""
    content = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    with _explained_if_full(folder / name), written_whole(folder / name) as partial, partial.open("wb") as file:
        file.write(content)
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def cut(folder, name, size):
    """Cut a file that is longer; remove it if nothing of it is to stay."""
    path = folder / name
    if not size:
        path.unlink(missing_ok=True)
    elif path.exists() and path.stat().st_size > size:
        with path.open("r+b") as file:
            file.truncate(size)


def write_json(folder, name, content):
    """Write a JSON file that carries its own checksum."""
    content = {**content, "sha256": _own_sha(content)}
    with _explained_if_full(folder / name), written_whole(folder / name) as partial:
        partial.write_text(json.dumps(content, indent=1, ensure_ascii=True), encoding="ascii")


def read_json(folder, name):
    """The content of a JSON file; ValueError if it is not what was written."""
    try:
        content = json.loads((folder / name).read_bytes().decode("ascii"))
        if isinstance(content, dict) and content.pop("sha256", None) == _own_sha(content):
            return content
    except ValueError:  # no JSON, or no ASCII
        pass
    raise _altered(folder / name, "its checksum does not fit its content")


def require_parts(folder, name, parts, *, verify, longer=False):
    """Raise ValueError unless a file consists of these parts: by its size and, with `verify`, by their checksums.

    Args:
        parts: `[{"bytes", "sha256"}]`, in order.
        longer: Whether more may follow.
    """
    path, expected = folder / name, sum(part["bytes"] for part in parts)
    if not path.is_file():
        if expected:
            raise _altered(path, "it is missing")
        return
    size = path.stat().st_size
    if size < expected or (size > expected and not longer):
        raise _altered(path, f"it has {size:,} bytes instead of {expected:,}")
    if verify:
        with path.open("rb") as file:
            for number, part in enumerate(parts):
                if _sha_of(file, part["bytes"]) != part["sha256"]:
                    raise _altered(path, f"the checksum of its part {number} is not that of the manifest")


def opened(folder, name, dtype, shape):
    """A file as an array, `(rows, *shape)`, mapped into memory."""
    path, dtype = folder / name, np.dtype(dtype)
    rows, over = divmod(path.stat().st_size if path.exists() else 0, dtype.itemsize * int(np.prod(shape)))
    if over:
        raise _altered(path, f"it has no whole number of rows of {dtype} {tuple(shape)}")
    if not rows:
        return np.zeros((0, *shape), dtype)
    return np.asarray(
        np.memmap(path, dtype, "r", shape=(rows, *shape))
    )  # views of an array cost less than those of a memmap


def remove_halves(folder):
    """Remove what killed runs left half written."""
    for name in ("index", "building", "manifest"):
        for partial in folder.glob(f".{name}.*"):
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def fields_of(path):
    """Name the JSON file in errors of its fields."""
    try:
        yield
    except AlteredFileError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        reason = f"the field {error} is missing or unknown" if isinstance(error, KeyError) else str(error).rstrip(".")
        raise ValueError(
            f"{str(path)!r} is not that of a cache: {reason}. Copy the cache again, or remove its folder and build it "
            "anew."
        ) from error


@contextlib.contextmanager
def _explained_if_full(path):
    """Add to the error of a full disk what is safe and how to go on."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(
            error.errno,
            "the disk is full. The shards that were finished are good: free some space and make the same call again, "
            "which resumes after them",
            str(path),
        ) from error


class AlteredFileError(ValueError):
    """A file of a cache is not as it was written; the message names it."""


def _altered(path, reason):
    return AlteredFileError(
        f"the cache holds a file that is not as it was written, {str(path)!r}: {reason}. Copy the cache again, or "
        "remove its folder and build it anew."
    )


def _own_sha(content):
    text = json.dumps({name: value for name, value in content.items() if name != "sha256"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _sha_of(file, count):
    sha = hashlib.sha256()
    while count and (chunk := file.read(min(count, _CHUNK))):
        sha.update(chunk)
        count -= len(chunk)
    return sha.hexdigest()
