"""Teacher outputs on disk: the teacher runs once, and students learn from its outputs as often as they like.

The folder, which any program may write:

manifest.json         written last: without it, the folder is no cache
key.bin               int64 (examples,): the integer id; FarmHash64 of the string id, or of the content as
                      `keras_kd.cache.keys.fingerprint` takes it
content.bin           only with ids: int64 (examples,), a hash of the rest of the example, by which two examples of one
                      id are told apart; may be 0
output_0.bin, …       the numbers of the outputs, in the order of the manifest's `outputs`: one row per example

Each file is the numbers of an array in C order, little-endian, without a header: `array.tofile`, `np.memmap`.

coding       files of output i                                    decoded
Full         output_i: (...)                                      to float32
Whole        output_i: int32 or uint8 (...)                       as it is: ids or bytes of `decode_dataset`
Int8         output_i: int8 (..., n); output_i.scale: float32     output · scale, float32
             (...)
TopK         output_i.classes: uint16 or uint32 (..., k);         log p of the k classes, and log_rest −
             output_i.log_p; output_i.log_rest: float32 (...)     log(classes − k) of each other: `TopClasses`
Sampled      output_i.draws: uint16 or uint32 (..., N),           the share of draws of each class: `TopClasses`
             ascending

Outputs by token, whose shape begins with null in the manifest, have a row per token in these files, example after
example, without the padding after an example's last token, and two files more:

output_i.end.bin      int64 (examples,): the row after the example's last; it begins where the example before it ends
output_i.mask.bin     uint8 (tokens,): 0 for masked tokens; only of outputs that came with a Keras mask or as a
                      `tf.RaggedTensor`

Padding is what follows the last token that the output's Keras mask leaves in; without a mask, the last number of `x`
that is not `padding`. When they are read, outputs are padded with zeros to the length of their batch.

The manifest is JSON in ASCII:

setting.teacher             the fingerprint of a model, or a name
setting.preprocessing       that of `cache_teacher_outputs`, or null
setting.outputs             format; key {of: "content" or {"entry": name}, padding}; outputs {name: coding and shape of
                            an example}: "output", or "output a", "output 0" of several, and "layer b"; masked, names;
                            prediction, the names as a str, list or dict; layers, a list; endings {name: {activation:
                            the output's last, undone: "softmax" or "sigmoid" if it is stored as logits without it,
                            else null, output_name: of an output in a list, else null}}, {} if not known
examples                    how many
sequences                   {output by token: names of the entries of x as long as it, or null if x was not known}
shards                      what was written at once: examples; sequences; files {file: bytes, sha256 of this part}
sha256                      of `json.dumps(all the other entries, sort_keys=True)`
"""

from keras_kd.cache.building import cache_teacher_outputs
from keras_kd.cache.codings import TopLogProbs
from keras_kd.cache.reading import TeacherCache, open_teacher_cache

__all__ = ["TeacherCache", "TopLogProbs", "cache_teacher_outputs", "open_teacher_cache"]
