"""On-policy distillation: a share of each batch is what the student itself writes, with its present weights."""

import keras
import numpy as np
import tensorflow as tf

from keras_kd._checks import require_count, require_number, require_tensorflow


class OnPolicy(keras.callbacks.Callback):
    """Put the student's own samples into a share of each batch (GKD), for the teacher to score.

    In training a decoder reads targets of the data; later it reads what it wrote itself, mistakes included, which it
    has never seen. Here a share of each batch is such texts: the student generates them, and both models read them as
    the decoder's input. Losses over logits, `JensenShannon` or `ReverseKL`, then teach it what the teacher would go on
    with. The labels of these rows are `ignore_id`: the samples are no truth.

    Samples wait in a buffer. As a callback of `fit`, this generates new ones when training begins and then every so
    many steps, with the weights that the student has at that time; in between, rows of the buffer are drawn at random.
    No gradient goes through the generation, as in the paper.

    Args:
        generate: A function of a dict of inputs without the targets that returns `(ids, scores, lengths)`, such as a
            `keras_kd.sequences.Generator` of the student with `Sampling()`: see `decode_dataset`.
        dataset: A batched `tf.data.Dataset` of `(x, y)`: `x` a dict with the decoder's ids, `y` the labels, integers
            `(batch, length)` each.
        start_id: The id that the decoder's input begins with.
        share: The share of samples in each batch, in (0, 1]; 0.5 is usual.
        every: Training steps (executions, with `steps_per_execution`) after which new samples are generated ≥ 1.
        batches: How many batches of `dataset` samples are generated for at a time ≥ 1.
        buffer_size: How many samples are kept ≥ 1, the latest.
        target_key: The entry of `x` with the decoder's ids.
        pad_id: The padding of all ids in `x`, by which models know what is padding.
        ignore_id: The label that the loss on the labels ignores: `ignore_class` of
            `keras.losses.SparseCategoricalCrossentropy`.
        seed: Of the choice of rows.

    Raises:
        RuntimeError: Keras runs on another backend than tensorflow.
        TypeError, ValueError: An argument is of the wrong kind or out of range; `dataset` is not of such elements.

    Attributes:
        dataset: The dataset with samples, for `fit`; batches of the size of the given one.

    Example:

    >>> data = tf.data.Dataset.from_tensor_slices(({"target_ids": [[1, 5, 6]] * 4}, [[5, 6, 2]] * 4)).batch(4)
    >>> student_writes = lambda x: (np.full((4, 1, 2), 7), np.zeros((4, 1)), np.full((4, 1), 2))
    >>> on_policy = keras_kd.sequences.OnPolicy(student_writes, data, start_id=1, share=0.5)
    >>> x, y = next(iter(on_policy.dataset))  # distiller.fit(on_policy.dataset, callbacks=[on_policy])
    >>> x["target_ids"].numpy()[2:].tolist(), y.numpy()[2:].tolist()
    ([[1, 7, 0], [1, 7, 0]], [[-1, -1, -1], [-1, -1, -1]])

    Source: Agarwal et al. 2024, "On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes",
    https://arxiv.org/abs/2306.13649; the buffer as in Ko et al. 2024, https://arxiv.org/abs/2402.03898.
    """

    def __init__(
        self,
        generate,
        dataset,
        *,
        start_id,
        share=0.5,
        every=100,
        batches=8,
        buffer_size=4096,
        target_key="target_ids",
        pad_id=0,
        ignore_id=-1,
        seed=0,
    ):
        require_tensorflow("OnPolicy")
        super().__init__()
        if not callable(generate):
            raise TypeError(f"generate must be a function of a dict of inputs, got {type(generate).__name__}.")
        _check_elements(dataset, target_key)
        self.share = require_number(share, "share", above=0.0, at_most=1.0)
        self.every = require_count(every, "every", at_least=1)
        self.batches = require_count(batches, "batches", at_least=1)
        self.buffer_size = require_count(buffer_size, "buffer_size", at_least=1)
        self.start_id = require_count(start_id, "start_id", at_least=0)
        self.target_key, self.pad_id, self.ignore_id = target_key, pad_id, ignore_id
        self._generate, self._given, self._drawn = generate, dataset, iter(dataset.repeat())
        self._buffer, self._steps = [], 0  # each row as the leaves of (x, y)
        self._generator = np.random.default_rng(seed)
        self.dataset = dataset.map(self._with_samples)

    def on_train_begin(self, logs=None):
        self._buffer, self._steps = [], 0
        self.refresh()

    def on_train_batch_end(self, batch, logs=None):
        self._steps += 1
        if self._steps % self.every == 0:
            self.refresh()

    def refresh(self):
        """Generate samples with the student's present weights; the oldest leave a full buffer."""
        rows = [row for _ in range(self.batches) for row in self._samples(*next(self._drawn))]
        self._buffer = (self._buffer + rows)[-self.buffer_size :]  # a new list: another thread reads the one before

    def _samples(self, x, y):
        """The rows of a batch with the student's samples in the place of targets and labels."""
        decoded = self._generate({name: entry for name, entry in x.items() if name != self.target_key})
        if not isinstance(decoded, tuple) or len(decoded) != 3:
            raise TypeError(f"generate must return (ids, scores, lengths), got {type(decoded).__name__}.")
        ids, scores, lengths = map(np.asarray, decoded)
        if ids.ndim != 3 or ids.shape[:2] != lengths.shape or len(ids) != len(y):
            raise ValueError(
                f"generate must return ids (batch, n_best, length) and lengths (batch, n_best) for the {len(y)} rows "
                f"of the batch, got {ids.shape} and {lengths.shape}."
            )
        x = {name: entry.numpy() for name, entry in x.items()}
        for row, which in np.argwhere((lengths > 0) & ~np.isneginf(scores)):
            written = ids[row, which, : lengths[row, which]]
            target = np.array([self.start_id, *written[:-1]], x[self.target_key].dtype)
            own = {**{name: entry[row] for name, entry in x.items()}, self.target_key: target}
            yield tf.nest.flatten((own, np.full(len(target), self.ignore_id, y.dtype.as_numpy_dtype)))

    def _with_samples(self, x, y):
        """A batch whose last rows are samples."""
        given = tf.nest.flatten((x, y))
        mixed = tf.numpy_function(self._mixed, given, [tensor.dtype for tensor in given])
        for tensor, like in zip(mixed, given, strict=True):
            tensor.set_shape([like.shape[0], *([None] if like.shape.rank > 1 else []), *like.shape[2:]])
        return tf.nest.pack_sequence_as((x, y), mixed)

    def _mixed(self, *given):
        if not self._buffer:
            self.refresh()
        buffer, rows = self._buffer, len(given[0])
        count = min(rows, max(1, round(self.share * rows)))
        kept = self._generator.permutation(rows)[: rows - count]
        drawn = self._generator.choice(len(buffer), count, replace=len(buffer) < count)
        fillers = [*[self.pad_id] * (len(given) - 1), self.ignore_id]
        return [
            _stacked([*leaf[kept], *(buffer[i][position] for i in drawn)], leaf, fillers[position])
            for position, leaf in enumerate(given)
        ]


def _stacked(rows, like, filler):
    """Rows of several lengths as one array of the dtype of `like`."""
    if like.ndim == 1:
        return np.array(rows, like.dtype)
    length = max(map(len, rows))
    stacked = np.full((len(rows), length, *like.shape[2:]), filler, like.dtype)
    for place, row in zip(stacked, rows, strict=True):
        place[: len(row)] = row
    return stacked


def _check_elements(dataset, target_key):
    if not isinstance(dataset, tf.data.Dataset):
        raise TypeError(f"dataset must be a batched tf.data.Dataset of (x, y), got {type(dataset).__name__}.")
    spec = dataset.element_spec
    is_pair = isinstance(spec, tuple) and len(spec) == 2 and isinstance(spec[0], dict) and target_key in spec[0]
    leaves = [spec[0][target_key], spec[1]] if is_pair else []
    if not is_pair or any(
        not isinstance(leaf, tf.TensorSpec) or leaf.shape.rank != 2 or not leaf.dtype.is_integer for leaf in leaves
    ):
        raise ValueError(
            f"dataset must give (x, y) with a dict x that holds {target_key!r}, and integers (batch, length) there and "
            f"as y, got {spec}. target_key names another entry."
        )
