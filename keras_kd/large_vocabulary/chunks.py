"""The loops of the fused losses: no `(tokens, vocabulary)` array is held.

The logits are computed for one chunk of tokens at a time, and so are, in the same pass, the loss, its gradient with
respect to the logits, and what that adds to the gradients of hidden states and head. Computing the logits again in the
backward pass would cost 6 matrix products in place of 4, and these products are most of the time.
"""

import tensorflow as tf

from keras_kd.large_vocabulary.sides import by_token, in_float32, logits_of_head, vocabulary_of

_PIECES = 16  # a chunk's matrix products take all its tokens, the divergence a 16th of them at a time
_SLICE_BYTES = 2**25  # of what is added to the head's gradient at a time


class Chunks:
    """The loop over chunks of tokens, and in it that over the pieces of a chunk.

    A chunk has `_PIECES` pieces of equally many tokens; zeros of weight 0 fill up the last chunk.

    Args:
        objective: The `Divergence`.
        teacher: A `LiveTeacher` or `TopTeacher`.
        student: The student's `Head`, for its shapes.
        labels: `(..., )` int32, or None.
        add: `added` or `added_in_place`.
        chunk_bytes: Bytes of a chunk's logits, at most, but no fewer than `_PIECES` tokens.

    Attributes:
        tokens, chunks, rows: How many there are, rows being the tokens of a piece; numbers where the number of tokens
            is known, else scalars.
    """

    def __init__(self, objective, teacher, student, labels, add, chunk_bytes):
        self.add = add
        self.objective = objective
        self.teacher = teacher
        self.has_labels = labels is not None
        shape = student.hidden.shape[:-1]
        self.labels = by_token(
            tf.cast(labels, "int32") if self.has_labels else tf.fill(tf.shape(student.hidden)[:-1], -1)
        )
        larger = max if shape.is_fully_defined() else tf.maximum
        self.tokens = shape.num_elements() if shape.is_fully_defined() else tf.size(self.labels)
        at_most = max(chunk_bytes // (4 * vocabulary_of(student) * _PIECES), 1) * _PIECES
        self.chunks = larger(-(-self.tokens // at_most), 1)
        self.rows = larger(-(-self.tokens // (self.chunks * _PIECES)), 1)

    def run(self, student, soft_weights, hard_weights):
        """Values (tokens,) x2 and the gradients of their weighted sum: of hidden states, kernel, bias."""
        student = in_float32(student)
        of_tokens = (student.hidden, soft_weights, hard_weights, self.labels, *self.teacher.of_tokens)
        hidden, *of_tokens = (self._chunked(tensor) for tensor in of_tokens)
        # Zeros made by a stateful operation: others may be folded into a constant, and that must not be added to.
        of_kernel = tf.raw_ops.Empty(shape=student.kernel.shape, dtype="float32", init=True)
        of_bias = tf.zeros((vocabulary_of(student),))
        rows = [_PIECES * self.rows if isinstance(self.rows, int) else None]

        def add_chunk(i, of_kernel, of_bias, arrays):
            part = student._replace(hidden=hidden[i])
            soft, hard, gradient = self._chunk(part, [tensor[i] for tensor in of_tokens])
            of_hidden = tf.matmul(gradient, part.kernel, transpose_b=not part.vocabulary_first)
            arrays = [array.write(i, value) for array, value in zip(arrays, (soft, hard, of_hidden), strict=True)]
            of_kernel = self.add(of_kernel, part.hidden, gradient, vocabulary_first=part.vocabulary_first)
            return i + 1, of_kernel, of_bias + tf.reduce_sum(gradient, axis=0), arrays

        state = (0, of_kernel, of_bias, _arrays(self.chunks, rows, rows, [*rows, student.hidden.shape[-1]]))
        state = tf.while_loop(lambda i, *_: i < self.chunks, add_chunk, state, parallel_iterations=1)
        _, of_kernel, of_bias, arrays = state
        soft, hard, of_hidden = (self._joined(array.stack()) for array in arrays)
        return soft, hard, of_hidden, of_kernel, of_bias

    def _chunk(self, student, of_tokens):
        """Values (chunk,) x2 and the gradient of the student's logits (chunk, vocabulary)."""
        # The logits are cut up, and each piece of them then gives its place to its gradient.
        pieces = tf.TensorArray("float32", size=_PIECES, clear_after_read=False)
        pieces = pieces.unstack(self._in_pieces(logits_of_head(student)))
        with tf.control_dependencies([pieces.flow]):  # the student's logits go before the teacher's come
            soft_weights, hard_weights, labels, *of_teacher = [tf.identity(tensor) for tensor in of_tokens]
        of_tokens = (soft_weights, hard_weights, labels, *self.teacher.chunk(*of_teacher))
        of_tokens = [self._in_pieces(tensor) for tensor in of_tokens]

        def add_piece(j, pieces, arrays):
            soft, hard, gradient = self._piece(pieces.read(j), *[tensor[j] for tensor in of_tokens])
            arrays = [array.write(j, value) for array, value in zip(arrays, (soft, hard), strict=True)]
            return j + 1, pieces.write(j, gradient), arrays

        rows = [self.rows if isinstance(self.rows, int) else None]
        state = (0, pieces, _arrays(_PIECES, rows, rows))
        _, pieces, arrays = tf.while_loop(lambda j, *_: j < _PIECES, add_piece, state, parallel_iterations=1)
        return [_by_row(array.stack()) for array in (*arrays, pieces)]

    def _piece(self, logits, soft_weights, hard_weights, labels, *of_teacher):
        """Values (rows,) x2 and the gradient of the student's logits (rows, vocabulary)."""
        teacher = self.teacher.piece(*of_teacher, vocabulary=logits.shape[-1])
        with tf.GradientTape() as tape:
            tape.watch(logits)
            soft = self.objective.call(teacher, logits)
            hard = _crossentropy(labels, logits) if self.has_labels else tf.zeros_like(soft)
            total = tf.reduce_sum(soft_weights * soft + hard_weights * hard)
        return soft, hard, tape.gradient(total, logits)

    def _chunked(self, tensor):
        """(tokens, ...) -> (chunks, chunk, ...)"""
        filling = self.chunks * _PIECES * self.rows - self.tokens
        tensor = tf.pad(tensor, [[0, filling]] + [[0, 0]] * (len(tensor.shape) - 1))
        return tf.reshape(tensor, (self.chunks, _PIECES * self.rows, *tensor.shape[1:]))

    def _in_pieces(self, tensor):
        """(chunk, ...) -> (pieces, rows, ...)"""
        return tf.reshape(tensor, (_PIECES, self.rows, *tensor.shape[1:]))

    def _joined(self, tensor):
        """(chunks, chunk, ...) -> (tokens, ...)"""
        return _by_row(tensor)[: self.tokens]


def _crossentropy(labels, logits):
    """(rows,), (rows, vocabulary) -> (rows,) nats; 0 where the label is negative."""
    values = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.maximum(labels, 0), logits)
    return tf.where(labels >= 0, values, 0.0)


def added(sums, hidden, gradient, *, vocabulary_first):
    """The kernel's gradient so far, with what a chunk adds: (chunk, width)ᵀ · (chunk, vocabulary), or transposed."""
    left, right = (gradient, hidden) if vocabulary_first else (hidden, gradient)
    return sums + tf.matmul(left, right, transpose_a=True)


def added_in_place(sums, hidden, gradient, *, vocabulary_first):
    """The same, some rows of the kernel at a time: no second array of the kernel's size, nor a copy of the first."""
    left, right = (gradient, hidden) if vocabulary_first else (hidden, gradient)
    rows, columns = sums.shape
    step = max(_SLICE_BYTES // (4 * columns), 1)
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        with tf.control_dependencies([sums]):  # else all products are made before the first is added
            part = left[:, start:stop]
        product = tf.matmul(part, right, transpose_a=True)
        sums = tf.raw_ops.InplaceAdd(x=sums, i=tf.range(start, stop), v=product)
    return sums


def _arrays(size, *shapes):
    return [tf.TensorArray("float32", size=size, element_shape=shape) for shape in shapes]


def _by_row(tensor):
    """(outer, inner, ...) -> (outer · inner, ...)"""
    return tf.reshape(tensor, (-1, *tensor.shape[2:]))
