"""Builds a cache shard by shard, so that a killed build goes on where it stopped and ends with the same bytes."""

import numpy as np

from keras_kd.cache import files
from keras_kd.fingerprint import differences


class Building:
    """A cache that is being built in a folder.

    Args:
        folder: A `pathlib.Path`.
        setting: What makes the cache what it is: the teacher and the layout, as JSON holds them.
        layout: The `Layout` of its records.
        shard_bytes: A shard is closed behind the batch that makes it as large as this.

    Raises:
        ValueError: The folder holds another cache that was begun, a damaged one, or other files.
    """

    def __init__(self, folder, setting, layout, shard_bytes):
        self._folder, self._setting, self._layout, self._shard_bytes = folder, setting, layout, shard_bytes
        files.remove_halves(folder)
        self.shards = self._begun()
        self._arrays = [files.open_array(folder, shard, verify=True) for shard in self.shards]
        self._buffer, self._buffered = [], 0

    @property
    def examples(self):
        """How many examples lie in finished shards."""
        return sum(shard["examples"] for shard in self.shards)

    def run(self, source, advance):
        """Store what is missing of a source; `advance(examples)` is called behind each batch."""
        done, position = self.examples, 0
        for element in source:
            keys, content = source.keys(element)
            if position < done:
                self._require_as_stored(keys, content, position)
            elif len(keys):
                self._add(keys, content, source.encoded(element))
            position += len(keys)
            advance(len(keys))
        if position < done:
            raise ValueError(_OTHER_EXAMPLES.format(folder=str(self._folder)))
        self._close_shard()
        if not self.shards:
            raise ValueError("dataset must hold at least one example, got none.")
        self._finish()

    def _begun(self):
        """The finished shards of an earlier run."""
        if (self._folder / files.BEGUN).exists():
            begun = files.read_json(self._folder, files.BEGUN)
            require_same(begun["setting"], self._setting, self._folder)
            return begun["shards"]
        if self._folder.exists() and any(self._folder.iterdir()):
            raise ValueError(f"path must be a new or empty folder, or a cache, got {str(self._folder)!r} with files.")
        self._note([])
        return []

    def _note(self, shards):
        files.write_json(self._folder, files.BEGUN, {"setting": self._setting, "shards": shards})

    def _require_as_stored(self, keys, content, position):
        """Raise ValueError if a batch is not the one that was stored at this position."""
        stored = [array[max(0, position - start) :][: len(keys)] for start, array in self._overlapping(position, keys)]
        stored = np.concatenate(stored)
        same = len(stored) == len(keys) and np.array_equal(stored["key"], keys)
        if not same or ("content" in stored.dtype.names and not np.array_equal(stored["content"], content)):
            raise ValueError(_OTHER_EXAMPLES.format(folder=str(self._folder)))

    def _overlapping(self, position, keys):
        start = 0
        for array in self._arrays:
            if start < position + len(keys) and position < start + len(array):
                yield start, array
            start += len(array)

    def _add(self, keys, content, encoded):
        records = np.empty(len(keys), self._layout.record)
        records["key"] = keys
        if "content" in records.dtype.names:
            records["content"] = content
        for name, values in encoded.items():
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise ValueError(_not_finite(name, values, keys))
            records[name] = values
        self._buffer.append(records)
        self._buffered += records.nbytes
        if self._buffered >= self._shard_bytes:
            self._close_shard()

    def _close_shard(self):
        if not self._buffer:
            return
        records = np.concatenate(self._buffer)
        first_of_each(records)  # ids that stand for two examples are best told early
        entry = files.write_array(self._folder, f"shard_{len(self.shards):05}.npy", records)
        shards = [*self.shards, {"examples": len(records), **entry}]
        self._note(shards)
        self.shards, self._buffer, self._buffered = shards, [], 0

    def _finish(self):
        """Write the index and, last, the manifest: from then on the cache is one."""
        names = [name for name in ("key", "content") if name in self._layout.record.names]
        arrays = [files.open_array(self._folder, shard, verify=False)[names] for shard in self.shards]
        records = np.concatenate(arrays)
        positions = first_of_each(records)
        index = np.stack([records["key"][positions], positions]).astype("<i8")
        content = {
            "setting": self._setting,
            "examples": len(records),
            "distinct": len(positions),
            "shards": self.shards,
            "index": files.write_array(self._folder, files.INDEX, index),
        }
        files.write_json(self._folder, files.MANIFEST, content)
        (self._folder / files.BEGUN).unlink()


def first_of_each(records):
    """Positions of the first record of each key, ordered by key.

    Raises:
        ValueError: Two records of one key differ in content.
    """
    order = np.argsort(records["key"], kind="stable")
    keys = records["key"][order]
    first = np.concatenate([[True], keys[1:] != keys[:-1]])
    if "content" in records.dtype.names:
        content = records["content"][order]
        differ = ~first[1:] & (content[1:] != content[:-1])
        if differ.any():
            raise ValueError(
                f"key must name one example each, but two different examples have the key {keys[1:][differ][0]}. "
                "Number the examples anew; store a dataset before it is augmented or repeated."
            )
    return order[first]


def require_same(there, asked, folder):
    """Raise ValueError, with the differences, if the folder holds another cache than the one asked for."""
    differing = list(differences(there, asked))
    if differing:
        raise ValueError(
            f"path {str(folder)!r} holds signals of another teacher or of other settings. It differs in\n"
            + "\n".join(differing)
            + "\nGive another path, or remove that folder."
        )


def _not_finite(name, values, keys):
    sound = np.isfinite(values).reshape(len(values), -1).all(axis=1)
    return (
        f"signal {name!r} of the example with the key {keys[~sound][0]} holds NaN or infinite values, "
        f"or such as {values.dtype} cannot hold. Check the teacher on it; dtype='float32' holds numbers beyond 65,504."
    )


_OTHER_EXAMPLES = (
    "dataset gives other examples, another order or another batch size than when the build in {folder!r} was begun. "
    "Give it as it was then (shuffle afterwards: signals go by key), or remove that folder."
)
