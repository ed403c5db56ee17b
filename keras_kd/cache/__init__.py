"""Signals of a teacher on disk: the teacher runs once, students learn from what it said as often as they like.

cache_signals ──► sources.py     a teacher over a dataset, or arrays that another program made
              │     ├─► selection.py   which signals: of objectives, by name
              │     └─► keys.py        what an example is known by: its id, or a hash of its content
              ├─► layout.py      the record of one example; coding.py: full, int8, top-k
              ├─► building.py    shard by shard, resumes; files.py: written whole, checksums; progress.py
              └─► stored.py      SignalCache: found right when opened, joined with a dataset by key

The folder, which any program may write:

manifest.json    written last: without it there is no cache
shard_00000.npy  and so on: NumPy arrays of records (format 1.0, C order, packed, little-endian), one an example
index.npy        int64 (2, distinct examples): the keys in ascending order, and the position of the record of each,
                 counted through all shards; of several records of one key, the first

A record begins with `key` (int64: the integer id; FarmHash64 of the string id, or of the content as
`keras_kd.cache.keys.fingerprint` takes it) and, where there are ids, `content` (int64, a hash of the rest of the
example, by which two examples of one id are told apart; 0 will do). The fields of the signals follow:

coding   fields of a signal s                                 decoded to float32
Full     s                                                    s
Int8     s: int8 (..., n); s.scale: float32 (...)             s · s.scale
TopK     s.classes: uint16 or uint32 (..., k); s.log_p        log p of the k classes, and
         (..., k); s.log_rest: float32 (...), in nats         s.log_rest − log(classes − k) of each other

The manifest is JSON in ASCII:

setting.teacher             the fingerprint of a model, or a name
setting.signals             format; key ("content" or {"entry": name}); signals {name: coding and shape of an example};
                            prediction (a name, list or dict of names) and layers {layer: name}, where the signals go;
                            record: the fields in order, [name, NumPy dtype, shape]
examples, distinct          how many records, how many keys
shards, index               file, bytes, sha256 (of the file), and of a shard examples
sha256                      of `json.dumps(all the other entries, sort_keys=True)`
"""

from keras_kd.cache.coding import TopLogProbs
from keras_kd.cache.signals import cache_signals
from keras_kd.cache.stored import SignalCache, open_cache

__all__ = ["SignalCache", "TopLogProbs", "cache_signals", "open_cache"]
