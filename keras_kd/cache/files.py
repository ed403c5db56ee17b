"""The files of a cache: each written whole, each known by its size and its SHA-256."""

import contextlib
import errno
import hashlib
import io
import json

import numpy as np

from keras_kd._files import written_whole

MANIFEST, BEGUN, INDEX = "manifest.json", "building.json", "index.npy"
_CHUNK = 2**20


def write_array(folder, name, array):
    """Write a `.npy` file; return `{"file", "bytes", "sha256"}`."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    content = np.ascontiguousarray(array).view(np.uint8).reshape(-1).data
    sha = hashlib.sha256(header.getvalue())
    sha.update(content)
    with told_if_full(folder / name), written_whole(folder / name) as partial, partial.open("wb") as file:
        file.write(header.getvalue())
        file.write(content)
    return {"file": name, "bytes": len(header.getvalue()) + len(content), "sha256": sha.hexdigest()}


def write_json(folder, name, content):
    """Write a JSON file that carries its own checksum."""
    content = {**content, "sha256": _own_sha(content)}
    with told_if_full(folder / name), written_whole(folder / name) as partial:
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


def open_array(folder, entry, *, verify):
    """A `.npy` file, mapped into memory, after its size and, with `verify`, its checksum were found right."""
    path = folder / entry["file"]
    if not path.is_file():
        raise _altered(path, "it is missing")
    if path.stat().st_size != entry["bytes"]:
        raise _altered(path, f"it has {path.stat().st_size:,} bytes instead of {entry['bytes']:,}")
    if verify and _sha_of(path) != entry["sha256"]:
        raise _altered(path, "its checksum is not that of the manifest")
    return np.load(path, mmap_mode="r", allow_pickle=False)


def remove_halves(folder):
    """Remove what killed runs left half written."""
    for name in ("shard_*", "index", "building", "manifest"):
        for partial in folder.glob(f".{name}.*"):
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def told_if_full(path):
    """An error of a full disk says what is safe and how to go on."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(
            error.errno,
            "the disk is full. The shards that were finished are good: free some space and call cache_signals again "
            "with the same arguments, which goes on behind them",
            str(path),
        ) from error


def _altered(path, reason):
    return ValueError(
        f"the cache holds a file that is not as it was written, {str(path)!r}: {reason}. Copy the cache again, or "
        "remove its folder and build it anew."
    )


def _own_sha(content):
    text = json.dumps({name: value for name, value in content.items() if name != "sha256"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _sha_of(path):
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            sha.update(chunk)
    return sha.hexdigest()
