"""The files of a cache, each checked part by part by its size and its SHA-256."""

import contextlib
import hashlib
import json

import numpy as np

from keras_kd._files import written_whole
from keras_kd.cache.layout import KEY, Column

MANIFEST, BEGUN = "manifest.json", "building.json"


class AlteredFileError(ValueError):
    """A file of a cache is not as it was written; the message names it."""

    def __init__(self, path, reason):
        super().__init__(
            f"the cache holds a file that is not as it was written, {str(path)!r}: {reason}. Copy the cache again, or "
            "remove its folder and build it anew."
        )


def append(path, array, at):
    """Append an array to a file that has `at` bytes; return what was added: `{"bytes", "sha256"}`."""
    content = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    if _size(path) != at:
        reason = f"it has {_size(path):,} bytes instead of {at:,}; does another process build there as well?"
        raise AlteredFileError(path, reason)
    with path.open("ab") as file:
        file.write(content)
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def cut(path, size):
    """Cut a file that is longer; remove it if nothing of it is to stay."""
    if not size:
        path.unlink(missing_ok=True)
    elif _size(path) > size:
        with path.open("r+b") as file:
            file.truncate(size)


def opened(folder, column):
    """The file of a `Column` as an array, `(rows, *column.shape)`, mapped into memory."""
    path, dtype = folder / column.file, np.dtype(column.dtype)
    rows, over = divmod(_size(path), dtype.itemsize * int(np.prod(column.shape)))
    if over:
        raise AlteredFileError(path, f"it has no whole number of rows of {dtype} {column.shape}")
    if not rows:
        return np.zeros((0, *column.shape), dtype)
    # Views of an array cost less than those of a memmap.
    return np.asarray(np.memmap(path, dtype, "r", shape=(rows, *column.shape)))


def write_json(path, content):
    """Write a JSON file that carries its own checksum."""
    content = {**content, "sha256": _own_sha(content)}
    with written_whole(path) as partial:
        partial.write_text(json.dumps(content, indent=1, ensure_ascii=True), encoding="ascii")


def read_json(path):
    """The content of a JSON file; ValueError if it is not what was written."""
    with contextlib.suppress(ValueError):  # no JSON, or no ASCII
        content = json.loads(path.read_bytes().decode("ascii"))
        if isinstance(content, dict) and content.pop("sha256", None) == _own_sha(content):
            return content
    raise AlteredFileError(path, "its checksum does not fit its content")


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


def require_shards(folder, shards, layout, *, verify, longer=False):
    """Raise ValueError unless the files consist of these shards: by size and, with `verify`, by their checksums.

    Args:
        shards: Of a JSON file: their fields are checked, too.
        longer: Whether more may follow in a file.
    """
    if not isinstance(shards, list):
        raise ValueError(f"its field 'shards' is no list: {shards!r}")
    files = {column.file for column in layout.columns.values()}
    for number, shard in enumerate(shards):
        if {*shard["files"]} != files or shard["examples"] * 8 != shard["files"][layout.columns[KEY].file]["bytes"]:
            raise ValueError(f"shard {number} of 'shards' has other files or another number of 'examples'")
        names = shard["sequences"]
        if {*names} != {*layout.by_token} or not all(isinstance(one, (list, type(None))) for one in names.values()):
            raise ValueError(f"shard {number} of 'shards' has the 'sequences' {names}")
    for file in files:
        path, end = folder / file, 0
        size, expected = _size(path), sum(shard["files"][file]["bytes"] for shard in shards)
        if size < expected or (size > expected and not longer):
            raise AlteredFileError(path, f"it has {size:,} bytes instead of {expected:,}")
        content = opened(folder, Column(file, "|u1"))
        for number, shard in enumerate(shards if verify else []):
            start, end = end, end + shard["files"][file]["bytes"]
            if hashlib.sha256(content[start:end]).hexdigest() != shard["files"][file]["sha256"]:
                raise AlteredFileError(path, f"the checksum of its part {number} is not that of the manifest")


def common_sequences(sequences):
    """Of several `{output: names, or None}`, the names that are in all."""
    first, *others = sequences
    return {
        output: names and [name for name in names if all(name in (one[output] or []) for one in others)]
        for output, names in first.items()
    }


def _size(path):
    return path.stat().st_size if path.is_file() else 0


def _own_sha(content):
    text = json.dumps({name: value for name, value in content.items() if name != "sha256"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
