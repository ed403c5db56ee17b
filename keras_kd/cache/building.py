"""Builds a cache shard by shard, so that a killed build goes on where it stopped and ends with the same bytes."""

import concurrent.futures

import numpy as np

from keras_kd.cache import files
from keras_kd.cache.layout import CONTENT, KEY
from keras_kd.fingerprint import differences


class Writer:
    """Appends examples to the files of a folder, shard by shard, and makes a cache of them at the end.

    A shard is what is written at once: a run of examples, its part of each file with a checksum of its own.

    Args:
        folder: A `pathlib.Path`.
        setting: What makes the cache what it is: the teacher and the layout, as JSON holds them.
        layout: The `Layout` of its files.
        shard_bytes: A shard is closed behind the batch that makes it as large as this.

    Attributes:
        shards: What `building.json` says of the finished shards.

    Raises:
        ValueError: The folder holds another cache that was begun, a damaged one, or other files.
    """

    def __init__(self, folder, setting, layout, shard_bytes):
        self._folder, self._setting, self.layout, self._shard_bytes = folder, setting, layout, shard_bytes
        files.remove_halves(folder)
        self.shards = self._begun()
        self._sizes = {}
        for name in layout.columns:
            parts = parts_of(self.shards, name)
            files.require_parts(folder, name, parts, verify=True, longer=True)
            self._sizes[name] = sum(part["bytes"] for part in parts)
            files.cut(folder, name, self._sizes[name])  # what a killed run wrote behind its last finished shard
        self._tokens = {name: self._tokens_stored(name) for name in layout.by_token}
        self._forget()

    @property
    def examples(self):
        """How many examples lie in finished shards."""
        return sum(shard["examples"] for shard in self.shards)

    def stored(self, name):
        """A file of the finished shards, mapped into memory."""
        return files.opened(self._folder, name, *self.layout.columns[name][:2])

    def add(self, encoded):
        """Take a batch, an `Encoded`; close the shard if it is large enough, and say whether it was."""
        for name, values in encoded.rows.items():
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise ValueError(self._not_finite(name, values, encoded))
        self._batches.append(encoded)
        self._buffered += sum(values.nbytes for values in encoded.rows.values())
        if self._buffered >= self._shard_bytes:
            self.close_shard()
        return not self._batches

    def close_shard(self):
        """Write what was added since the last shard was closed."""
        if not self._batches:
            return
        rows = {name: np.concatenate([one.rows[name] for one in self._batches]) for name in self._batches[0].rows}
        first_of_each(rows[KEY], rows.get(CONTENT))  # ids that stand for two examples are best told early
        tokens = dict(self._tokens)
        for name in self.layout.by_token:
            ends = tokens[name] + np.cumsum(np.concatenate([one.lengths[name] for one in self._batches]))
            rows[self.layout.end_of(name)], tokens[name] = ends, int(ends[-1])
        shard = {
            "examples": len(rows[KEY]),
            "sequences": alike(one.sequences for one in self._batches),
            "files": {name: self._append(name, rows[name], tokens) for name in self.layout.columns},
        }
        shards = [*self.shards, shard]
        self._note(shards)
        self.shards, self._tokens = shards, tokens
        for name, part in shard["files"].items():
            self._sizes[name] += part["bytes"]
        self._forget()

    def finish(self):
        """Write the index and, last, the manifest: from then on the cache is one."""
        self.close_shard()
        if not self.shards:
            raise ValueError("dataset must hold at least one example, got none.")
        keys = np.asarray(self.stored(KEY))
        content = self.stored(CONTENT) if CONTENT in self.layout.columns else None
        positions = first_of_each(keys, content)
        index = zip(files.INDEX, (keys[positions], positions.astype("<i8")), strict=True)
        manifest = {
            "setting": self._setting,
            "examples": len(keys),
            "distinct": len(positions),
            "sequences": alike(shard["sequences"] for shard in self.shards),
            "shards": self.shards,
            "index": {name: files.write(self._folder, name, array) for name, array in index},
        }
        files.write_json(self._folder, files.MANIFEST, manifest)
        (self._folder / files.BEGUN).unlink()

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

    def _tokens_stored(self, name):
        ends = self.stored(self.layout.end_of(name))
        return int(ends[-1]) if len(ends) else 0

    def _append(self, name, rows, tokens):
        try:
            return files.append(self._folder, name, rows, self._sizes[name])
        except OSError:
            for other, size in self._sizes.items():
                files.cut(self._folder, other, size)
            raise

    def _forget(self):
        self._batches, self._buffered = [], 0

    def _not_finite(self, file, values, encoded):
        layout = self.layout
        output = next(name for name in layout.codings if file in layout.files_of(name))
        sound = np.isfinite(values).reshape(len(values), -1).all(axis=1)
        keys = encoded.rows[KEY]
        keys = np.repeat(keys, encoded.lengths[output]) if output in layout.by_token else keys
        return (
            f"output {output!r} of the example with the key {keys[~sound][0]} holds NaN or infinite values, "
            f"or such as {values.dtype} cannot hold. Check the teacher on it; dtype='float32' holds numbers beyond "
            "65,504."
        )


def build(writer, folder, source, advance):
    """Store what is missing of a source; `advance(examples)` is called behind each batch."""
    done, position = writer.examples, 0
    with concurrent.futures.ThreadPoolExecutor(1) as beside:  # hashes and writes while the teacher runs on
        writing = beside.submit(bool)
        for element in source:
            if position < done:
                count = _require_as_stored(writer, *source.keys(element), position, folder)
            else:
                encoded = source.encoded(element)
                count = len(encoded.rows[KEY])
                writing.result()
                writing = beside.submit(writer.add, encoded) if count else writing
            position += count
            advance(count)
        writing.result()
    if position < done:
        raise ValueError(_OTHER_EXAMPLES.format(folder=str(folder)))
    writer.finish()


def parts_of(shards, name):
    """The parts of a file."""
    return [shard["files"][name] for shard in shards]


def first_of_each(keys, content=None):
    """Positions of the first record of each key, ordered by key.

    Raises:
        ValueError: Two records of one key differ in content.
    """
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    first = np.concatenate([[True], keys[1:] != keys[:-1]])
    if content is not None:
        content = content[order]
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
            f"path {str(folder)!r} holds outputs of another teacher or of other settings. It differs in\n"
            + "\n".join(differing)
            + "\nGive another path, or remove that folder."
        )


def _require_as_stored(writer, keys, content, position, folder):
    """How many examples a batch has; ValueError if it is not the one that was stored at this position."""
    there = slice(position, position + len(keys))
    same = np.array_equal(writer.stored(KEY)[there], keys)
    if not same or (CONTENT in writer.layout.columns and not np.array_equal(writer.stored(CONTENT)[there], content)):
        raise ValueError(_OTHER_EXAMPLES.format(folder=str(folder)))
    return len(keys)


def alike(sequences):
    """Of `{output: names, or None}`, the names that are in all."""
    sequences = list(sequences)
    return {
        output: None if names is None else [name for name in names if all(name in one[output] for one in sequences)]
        for output, names in sequences[0].items()
    }


_OTHER_EXAMPLES = (
    "dataset gives other examples, another order or another batch size than when the build in {folder!r} was begun. "
    "Give it as it was then (shuffle afterwards: outputs go by key), or remove that folder."
)
"""What a build says that does not find the examples again."""
