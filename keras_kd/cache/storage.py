"""The files of a cache, each checked part by part by its size and its SHA-256."""

import contextlib
import hashlib
import json

import numpy as np

from keras_kd._files import written_whole
from keras_kd.cache.layout import KEY, Column

MANIFEST, BEGUN = "manifest.json", "building.json"
INDEX = ("index.key.bin", "index.position.bin")


class AlteredFileError(ValueError):
    """A file of a cache is not as it was written; the message names it."""

    def __init__(self, path, reason):
        super().__init__(
            f"the cache holds a file that is not as it was written, {str(path)!r}: {reason}. Copy the cache again, or "
            "remove its folder and build it anew."
        )


def append(folder, name, array, at):
    """Append an array to a file that has `at` bytes; return what was added: `{"bytes", "sha256"}`."""
    content = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    path = folder / name
    size = path.stat().st_size if path.exists() else 0
    if size != at:
        reason = f"it has {size:,} bytes instead of {at:,}; does another process build there as well?"
        raise AlteredFileError(path, reason)
    with path.open("ab") as file:
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
    with written_whole(folder / name) as partial:
        partial.write_text(json.dumps(content, indent=1, ensure_ascii=True), encoding="ascii")


def read_json(folder, name):
    """The content of a JSON file; ValueError if it is not what was written."""
    try:
        content = json.loads((folder / name).read_bytes().decode("ascii"))
        if isinstance(content, dict) and content.pop("sha256", None) == _own_sha(content):
            return content
    except ValueError:  # no JSON, or no ASCII
        pass
    raise AlteredFileError(folder / name, "its checksum does not fit its content")


def opened(folder, name, column):
    """A file as an array, `(rows, *column.shape)`, mapped into memory."""
    path, dtype = folder / name, np.dtype(column.dtype)
    rows, over = divmod(path.stat().st_size if path.exists() else 0, dtype.itemsize * int(np.prod(column.shape)))
    if over:
        raise AlteredFileError(path, f"it has no whole number of rows of {dtype} {tuple(column.shape)}")
    if not rows:
        return np.zeros((0, *column.shape), dtype)
    # Views of an array cost less than those of a memmap.
    return np.asarray(np.memmap(path, dtype, "r", shape=(rows, *column.shape)))


def require_parts(folder, name, parts, *, verify, longer=False):
    """Raise ValueError unless a file consists of these parts: by its size and, with `verify`, by their checksums.

    Args:
        parts: `[{"bytes", "sha256"}]`, in order.
        longer: Whether more may follow.
    """
    path, expected = folder / name, sum(part["bytes"] for part in parts)
    if expected and not path.is_file():
        raise AlteredFileError(path, "it is missing")
    size = path.stat().st_size if path.exists() else 0
    if size < expected or (size > expected and not longer):
        raise AlteredFileError(path, f"it has {size:,} bytes instead of {expected:,}")
    if verify:
        content, start = opened(folder, name, Column("|u1")), 0
        for number, part in enumerate(parts):
            end = start + part["bytes"]
            if hashlib.sha256(content[start:end]).hexdigest() != part["sha256"]:
                raise AlteredFileError(path, f"the checksum of its part {number} is not that of the manifest")
            start = end


def require_shards(folder, shards, layout, *, verify, longer=False):
    """Raise ValueError unless the shards of a JSON file have the fields that they should, and the files are theirs."""
    if not isinstance(shards, list):
        raise ValueError(f"its field 'shards' is no list: {shards!r}")
    for number, shard in enumerate(shards):
        if set(shard["files"]) != {*layout.columns} or shard["examples"] * 8 != shard["files"][KEY]["bytes"]:
            raise ValueError(f"shard {number} of 'shards' has other files or another number of 'examples'")
        names = shard["sequences"]
        if {*names} != {*layout.by_token} or not all(isinstance(one, (list, type(None))) for one in names.values()):
            raise ValueError(f"shard {number} of 'shards' has the 'sequences' {names}")
    for name in layout.columns:
        require_parts(folder, name, [shard["files"][name] for shard in shards], verify=verify, longer=longer)


def common_sequences(sequences):
    """Of several `{output: names, or None}`, the names that are in all."""
    sequences = list(sequences)
    return {
        output: None if names is None else [name for name in names if all(name in one[output] for one in sequences)]
        for output, names in sequences[0].items()
    }


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


def _own_sha(content):
    text = json.dumps({name: value for name, value in content.items() if name != "sha256"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
