"""Outputs of a teacher on disk: the teacher runs once, students learn from what it said as often as they like.

cache_teacher_outputs ──► sources.py     a teacher over a dataset, or arrays that another program made
              │     ├─► selection.py   which outputs: of losses, by name
              │     └─► keys.py        what an example is known by: its id, or a hash of its content
              ├─► layout.py      the files that hold the outputs; coding.py: full, int8; likeliest.py: top-k;
              │                  sampled.py: drawn classes; packing.py: numbers in as few bits as they need
              ├─► building.py    shard by shard, resumes; files.py: checksums; progress.py
              └─► stored.py      TeacherCache: found right when opened, one folder or several
                    └─► reading.py   joined with a dataset by key
fit(cache=) ────► fitting.py, growing.py: built while the student learns

The folder, which any program may write:

manifest.json         written last: without it there is no cache
key.bin               int64 (examples,): the integer id; FarmHash64 of the string id, or of the content as
                      `keras_kd.cache.keys.fingerprint` takes it
content.bin           only with ids: int64 (examples,), a hash of the rest of the example, by which two examples of one
                      id are told apart; 0 will do
output_0.bin, …       the numbers of the outputs, by their order in the manifest: one row an example
index.key.bin         int64 (distinct examples,): the keys in ascending order
index.position.bin    int64 (distinct examples,): the row of each; of several rows of one key, the first

Each file is nothing but the numbers of an array in C order, packed, little-endian: `array.tofile`, `np.memmap`.

coding       files of output i                                    decoded
Full         output_i: (...)                                      to float32
Int8         output_i: int8 (..., n); output_i.scale: float32     output · scale, float32
             (...)
TopK         output_i.classes: uint16 or uint32 (..., k);         log p of the k classes, and log_rest −
             output_i.log_p; output_i.log_rest: float32 (...)     log(classes − k) of each other: `TopClasses`
PackedTopK   see `keras_kd.cache.likeliest.PackedTopK`            `TopClasses`
GradedTopK   see `keras_kd.cache.likeliest.GradedTopK`            `TopClasses`
Sampled      see `keras_kd.cache.sampled.Sampled`                 `TopClasses`

Outputs by token, whose shape begins with null in the manifest, have a row for each token in these files, those of one
example behind those of the other, without the padding behind an example's last token, and two files more:

output_i.end.bin      int64 (examples,): behind which row of all an example ends; it begins where the one before it ends
output_i.mask.bin     uint8 (tokens,): 0 for masked tokens; only of outputs that came with a Keras mask

Padding is what is behind the last token that the output's Keras mask leaves in; without a mask, the last number of `x`
that is not `padding`. When they come back, outputs are padded with zeros to the length of their batch.

The manifest is JSON in ASCII:

setting.teacher             the fingerprint of a model, or a name
setting.preprocessing       what `cache_teacher_outputs` was told, or null
setting.signals             format; key {of: "content" or {"entry": name}, padding}; outputs {name: coding and shape of
                            an example}; masked, names; prediction (a name, list or dict of names) and layers {layer:
                            name}, where the outputs go; files {file: dtype, shape of a row, what a row is of}
examples, distinct          how many examples, how many keys
sequences                   {output by token: names of the entries of x as long as it, or null if x was not known}
shards                      what was written at once: examples; files {file: bytes, sha256 of this part of it}
index                       {file: bytes, sha256}
sha256                      of `json.dumps(all the other entries, sort_keys=True)`
"""

from keras_kd.cache.caching import cache_teacher_outputs
from keras_kd.cache.coding import TopLogProbs
from keras_kd.cache.stored import TeacherCache, open_teacher_cache

__all__ = ["TeacherCache", "TopLogProbs", "cache_teacher_outputs", "open_teacher_cache"]
