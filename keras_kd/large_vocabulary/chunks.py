"""The loops of the fused losses: no `(tokens, vocabulary)` array is held.

Three sizes, each chosen for what happens at it. A chunk of tokens has one array of logits, which gives its place, bit
by bit, to its gradient; then hidden states and head get their gradients. Few chunks are fast, since each adds to all of
the head's gradient. A piece of a chunk is how long the teacher's logits live: as small as matrix products are still
fast. A share of a piece is what loss and gradient are computed of at once. XLA does this in half of TensorFlow's time,
with several arrays of the share's size; that is small, and no number depends on the batch, so that it compiles once.

To compute the logits again in the backward pass would cost 6 matrix products in place of 4, and they are most of the
time.
"""

import keras
import tensorflow as tf

from keras_kd.large_vocabulary.crossentropy import label_crossentropy
from keras_kd.large_vocabulary.sides import by_token, in_float32, logits_of_head, product_over_vocabulary, vocabulary_of

_ROWS = 64  # tokens of a piece
_SHARES = 8  # of a piece
_FEW_BYTES = 2**26  # of the logits of tokens that are few


class Chunks:
    """The loop over chunks of tokens, and in it that over the pieces of a chunk.

    All pieces have equally many tokens; zeros of weight 0 fill up the last.

    Args:
        loss: The tokenwise `DistillationLoss`.
        teacher: A `LiveTeacher` or `TopTeacher`.
        student: The student's `Head`, for its shapes.
        labels: `(..., )` int32, or None.
        store: `InPlace` or `Functional`.
        chunk_bytes: Bytes of a chunk's logits, at most, but no fewer than `_SHARES` tokens.

    Attributes:
        tokens, chunks, pieces, rows: How many tokens there are, chunks, pieces a chunk, tokens a share. The first three
            are numbers where the number of tokens is known, else scalars.
        few: Of so many tokens the logits are held: that is faster.
    """

    def __init__(self, loss, teacher, student, labels, store, chunk_bytes):
        self.loss = loss
        self.teacher = teacher
        self.store = store
        self.has_labels = labels is not None
        shape = student.hidden.shape[:-1]
        self.labels = by_token(
            tf.cast(labels, "int32") if self.has_labels else tf.fill(tf.shape(student.hidden)[:-1], -1)
        )
        known = shape.is_fully_defined()
        larger = max if known else tf.maximum
        self.tokens = shape.num_elements() if known else tf.size(self.labels)
        at_most = max(chunk_bytes // (4 * vocabulary_of(student)), _SHARES)
        self.rows = min(_ROWS, at_most, max(self.tokens, _SHARES) if known else _ROWS) // _SHARES
        piece = _SHARES * self.rows
        self.chunks = larger(-(-self.tokens // (at_most // piece * piece)), 1)
        self.pieces = larger(-(-self.tokens // (self.chunks * piece)), 1)
        self.few = min(chunk_bytes, _FEW_BYTES) // (4 * vocabulary_of(student))
        self.variables = list(loss.hyperparameters().values())
        self.differentiated = store.compiled(self._differentiated)

    def run(self, student, soft_weights, hard_weights):
        """Values (tokens,) x2 and the gradients of their weighted sum: of hidden states, kernel, bias."""
        arguments = (in_float32(student), soft_weights, hard_weights)
        if isinstance(self.tokens, int):
            return self._at_once(*arguments) if self.tokens <= self.few else self._in_chunks(*arguments)
        few = self.tokens <= self.few
        return tf.cond(few, lambda: self._at_once(*arguments), lambda: self._in_chunks(*arguments))

    def _at_once(self, student, soft_weights, hard_weights):
        """`run` of few tokens, whose logits are held."""
        teacher = self.teacher.logits(*self.teacher.token_values)
        token_values = (teacher, soft_weights, hard_weights, self.labels)
        soft, hard, gradient = self._differentiated(logits_of_head(student), *token_values, *self._values())
        hidden_gradient = product_over_vocabulary(gradient, student)
        left, right = (gradient, student.hidden) if student.vocabulary_first else (student.hidden, gradient)
        return soft, hard, hidden_gradient, tf.matmul(left, right, transpose_a=True), tf.reduce_sum(gradient, axis=0)

    def _in_chunks(self, student, soft_weights, hard_weights):
        """`run` of many tokens."""
        token_values = (student.hidden, soft_weights, hard_weights, self.labels, *self.teacher.token_values)
        hidden, *token_values = (self._chunked(tensor) for tensor in token_values)

        def chunk(i, arrays):
            """What chunk i adds to: the kernel's gradient, as two factors of it; the bias's; values of each token."""
            part = student._replace(hidden=by_token(hidden[i], 1))
            soft, hard, gradient = self._chunk(logits_of_head(part), [tensor[i] for tensor in token_values])
            values = (soft, hard, product_over_vocabulary(gradient, part))
            arrays = [array.write(i, value) for array, value in zip(arrays, values, strict=True)]
            factors = (gradient, part.hidden) if part.vocabulary_first else (part.hidden, gradient)
            return factors, tf.reduce_sum(gradient, axis=0), arrays

        def add_chunk(i, kernel_gradient, bias_gradient, arrays):
            factors, more_of_bias, arrays = chunk(i, arrays)
            kernel_gradient = self.store.with_product(kernel_gradient, *factors, 4 * _ROWS * vocabulary_of(student))
            return i + 1, kernel_gradient, bias_gradient + more_of_bias, arrays

        first = self.store.zero()
        factors, bias_gradient, arrays = chunk(first, _arrays(self.chunks, [None], [None], [None, hidden.shape[-1]]))
        kernel_gradient = tf.matmul(*factors, transpose_a=True)
        with tf.control_dependencies(
            [kernel_gradient, bias_gradient, *[array.flow for array in arrays]]
        ):  # else two are held
            state = (first + 1, kernel_gradient, bias_gradient, arrays)
        state = tf.while_loop(lambda i, *_: i < self.chunks, add_chunk, state, parallel_iterations=1)
        _, kernel_gradient, bias_gradient, (soft, hard, hidden_gradient) = state
        soft, hard, hidden_gradient = (
            by_token(soft.stack()),
            by_token(hard.stack()),
            by_token(hidden_gradient.stack(), 1),
        )
        return soft[: self.tokens], hard[: self.tokens], hidden_gradient[: self.tokens], kernel_gradient, bias_gradient

    def _chunk(self, logits, token_values):
        """Values (chunk,) x2 and, in the place of the student's logits (chunk, vocabulary), their gradient."""
        logits = tf.reshape(logits, (self.pieces * _SHARES, self.rows, logits.shape[-1]))
        variables = self._values()

        def add_piece(j, logits, arrays):
            soft_weights, hard_weights, labels, *teacher_side = (tensor[j] for tensor in token_values)
            teacher = self.teacher.logits(*[by_token(tensor, len(tensor.shape) - 2) for tensor in teacher_side])
            teacher, values = tf.reshape(teacher, (_SHARES, *logits.shape[1:])), []
            for k in range(_SHARES):
                with tf.control_dependencies([logits]):  # one share after the other: else all are held at once
                    share = [tensor[k] for tensor in (teacher, soft_weights, hard_weights, labels)]
                    *value, gradient = self.differentiated(logits[_SHARES * j + k], *share, *variables)
                logits = self.store.replaced(logits, _SHARES * j + k, gradient)
                values.append(value)
            values = zip(*values, strict=True)
            arrays = [array.write(j, tf.concat(value, axis=0)) for array, value in zip(arrays, values, strict=True)]
            return j + 1, logits, arrays

        state = (0, logits, _arrays(self.pieces, [None], [None]))
        _, logits, arrays = tf.while_loop(lambda j, *_: j < self.pieces, add_piece, state, parallel_iterations=1)
        return *[by_token(array.stack()) for array in arrays], by_token(logits, 1)

    def _differentiated(self, logits, teacher, soft_weights, hard_weights, labels, *variables):
        """Values (rows,) x2 and the gradient of the student's logits (rows, vocabulary).

        Temperature and weight of the loss come as tensors: XLA takes no variable of another device.
        """
        with tf.GradientTape() as tape, keras.StatelessScope(zip(self.variables, variables, strict=True)):
            tape.watch(logits)
            soft = self.loss.values(teacher, logits, labels=labels)
            hard = label_crossentropy(labels, logits) if self.has_labels else tf.zeros_like(soft)
            total = tf.reduce_sum(soft_weights * soft + hard_weights * hard)
        return soft, hard, tape.gradient(total, logits)

    def _values(self):
        """What the loss's variables hold."""
        return [tf.convert_to_tensor(variable.value) for variable in self.variables]

    def _chunked(self, tensor):
        """(tokens, ...) -> (chunks, pieces, shares, rows, ...)"""
        shape = (self.chunks, self.pieces, _SHARES, self.rows)
        filling = self.chunks * self.pieces * _SHARES * self.rows - self.tokens
        tensor = tf.pad(tensor, [[0, filling]] + [[0, 0]] * (len(tensor.shape) - 1))
        return tf.reshape(tensor, (*shape, *tensor.shape[1:]))


def _arrays(size, *shapes):
    return [tf.TensorArray("float32", size=size, element_shape=shape) for shape in shapes]
