"""The loops of the fused loss, which hold no array `(tokens, vocabulary)`.

Tokens are divided three times:

- A chunk has one array of logits, which its gradient overwrites; hidden states and head then get their gradients. Each
  chunk adds once to the whole gradient of the head, so few chunks are fast.
- The teacher's logits are held for one block of a chunk at a time: matrix products of fewer tokens are slow.
- Loss and gradient are computed for one slice of a block at a time, by XLA in half of TensorFlow's time. It holds
  several arrays of the size of the slice, which does not depend on the batch, so that XLA compiles once.

Computing the logits again in the backward pass would take 6 matrix products in place of 4.
"""

import keras
import tensorflow as tf

from keras_kd.large_vocabulary.heads import (
    by_token,
    hidden_gradient_of,
    in_float32,
    label_crossentropy,
    logits_of_head,
    vocabulary_of,
)

_BLOCK = 64  # tokens
_SLICES = 8  # of a block
_DENSE_BYTES = 2**26  # up to here, the logits of all tokens are held, which is faster


class Chunks:
    """The loop over the chunks of tokens, and in it the loop over the blocks of a chunk.

    All blocks have the same number of tokens; zeros of weight 0 fill the last one.

    Args:
        loss: The tokenwise `DistillationLoss`.
        teacher: A `HeadTeacher` or `TopClassesTeacher`.
        student: The student's `Head`, for its shapes.
        labels: `(...)` int32, or None.
        in_place: Whether arrays are overwritten in place; XLA, where it compiles the whole step, cannot do that.
        chunk_bytes: Bytes of a chunk's logits at most, but at least `_SLICES` tokens.
    """

    def __init__(self, loss, teacher, student, labels, in_place, chunk_bytes):
        self.loss = loss
        self.teacher = teacher
        self.in_place = in_place
        self.has_labels = labels is not None
        shape = student.hidden.shape[:-1]
        self.labels = by_token(
            tf.cast(labels, "int32") if self.has_labels else tf.fill(tf.shape(student.hidden)[:-1], -1)
        )
        # Numbers where the number of tokens is known, else scalar tensors.
        known = shape.is_fully_defined()
        larger = max if known else tf.maximum
        self.tokens = shape.num_elements() if known else tf.size(self.labels)
        at_most = max(chunk_bytes // (4 * vocabulary_of(student)), _SLICES)
        self.rows = min(_BLOCK, at_most, max(self.tokens, _SLICES) if known else _BLOCK) // _SLICES  # of a slice
        block = _SLICES * self.rows
        self.chunks = larger(-(-self.tokens // (at_most // block * block)), 1)
        self.blocks = larger(-(-self.tokens // (self.chunks * block)), 1)  # of a chunk
        self.most_dense = min(chunk_bytes, _DENSE_BYTES) // (4 * vocabulary_of(student))
        self.variables = list(loss.hyperparameters().values())
        self.slice_gradient = self._gradient
        if in_place and tf.inside_function():  # eager execution would compile it in each call
            self.slice_gradient = tf.function(self._gradient, jit_compile=True, autograph=False)

    def run(self, student, soft_weights, hard_weights):
        """Values (tokens,) x2 and the gradients of their weighted sum: of hidden states, kernel, bias."""
        arguments = (in_float32(student), soft_weights, hard_weights)
        if isinstance(self.tokens, int):
            return self._dense(*arguments) if self.tokens <= self.most_dense else self._in_chunks(*arguments)
        return tf.cond(
            self.tokens <= self.most_dense, lambda: self._dense(*arguments), lambda: self._in_chunks(*arguments)
        )

    def _dense(self, student, soft_weights, hard_weights):
        """`run` for few tokens, whose logits are held."""
        teacher = self.teacher.logits(*self.teacher.token_values)
        token_values = (teacher, soft_weights, hard_weights, self.labels)
        soft, hard, gradient = self._gradient(logits_of_head(student), *token_values, *self._variable_values())
        kernel_gradient = tf.matmul(*_kernel_factors(gradient, student), transpose_a=True)
        return soft, hard, hidden_gradient_of(gradient, student), kernel_gradient, tf.reduce_sum(gradient, axis=0)

    def _in_chunks(self, student, soft_weights, hard_weights):
        """`run` for many tokens."""
        token_values = (student.hidden, soft_weights, hard_weights, self.labels, *self.teacher.token_values)
        hidden, *token_values = (self._chunked(tensor) for tensor in token_values)

        def chunk(i, results):
            """Of chunk i: two factors of the kernel's gradient, the bias's gradient, and the results per token."""
            part = student._replace(hidden=by_token(hidden[i], 1))
            soft, hard, gradient = self._chunk(logits_of_head(part), [tensor[i] for tensor in token_values])
            values = (soft, hard, hidden_gradient_of(gradient, part))
            results = [array.write(i, value) for array, value in zip(results, values, strict=True)]
            return _kernel_factors(gradient, part), tf.reduce_sum(gradient, axis=0), results

        def add_chunk(i, kernel_gradient, bias_gradient, results):
            factors, chunk_bias_gradient, results = chunk(i, results)
            most_bytes = 4 * _BLOCK * vocabulary_of(student)
            kernel_gradient = _plus_product(kernel_gradient, *factors, most_bytes, self.in_place)
            return i + 1, kernel_gradient, bias_gradient + chunk_bias_gradient, results

        # With a constant index, TensorFlow may fold the chunk's arrays into constants, which cannot be overwritten.
        first = tf.raw_ops.Empty(shape=[], dtype="int32", init=True) if self.in_place else 0
        results = _tensor_arrays(self.chunks, [None], [None], [None, hidden.shape[-1]])
        factors, bias_gradient, results = chunk(first, results)
        kernel_gradient = tf.matmul(*factors, transpose_a=True)
        # Without this, the arrays of two chunks are held at once.
        with tf.control_dependencies([kernel_gradient, bias_gradient, *[array.flow for array in results]]):
            state = (first + 1, kernel_gradient, bias_gradient, results)
        state = tf.while_loop(lambda i, *_: i < self.chunks, add_chunk, state, parallel_iterations=1)
        _, kernel_gradient, bias_gradient, (soft, hard, hidden_gradient) = state
        values = by_token(soft.stack()), by_token(hard.stack()), by_token(hidden_gradient.stack(), 1)
        return *[value[: self.tokens] for value in values], kernel_gradient, bias_gradient

    def _chunk(self, logits, token_values):
        """Values (chunk,) x2 and, in place of the student's logits (chunk, vocabulary), their gradient."""
        logits = tf.reshape(logits, (self.blocks * _SLICES, self.rows, logits.shape[-1]))
        variables = self._variable_values()

        def add_block(j, logits, results):
            soft_weights, hard_weights, labels, *teacher_values = (tensor[j] for tensor in token_values)
            teacher = self.teacher.logits(*[by_token(tensor, len(tensor.shape) - 2) for tensor in teacher_values])
            teacher, values = tf.reshape(teacher, (_SLICES, *logits.shape[1:])), []
            for k in range(_SLICES):
                with tf.control_dependencies([logits]):  # one slice after the other: else all are held at once
                    arguments = [tensor[k] for tensor in (teacher, soft_weights, hard_weights, labels)]
                    *value, gradient = self.slice_gradient(logits[_SLICES * j + k], *arguments, *variables)
                logits = _replaced(logits, _SLICES * j + k, gradient, self.in_place)
                values.append(value)
            values = zip(*values, strict=True)
            results = [array.write(j, tf.concat(value, axis=0)) for array, value in zip(results, values, strict=True)]
            return j + 1, logits, results

        state = (0, logits, _tensor_arrays(self.blocks, [None], [None]))
        _, logits, results = tf.while_loop(lambda j, *_: j < self.blocks, add_block, state, parallel_iterations=1)
        return *[by_token(array.stack()) for array in results], by_token(logits, 1)

    def _gradient(self, logits, teacher, soft_weights, hard_weights, labels, *variables):
        """Values (rows,) x2 and the gradient of the student's logits (rows, vocabulary).

        Temperature and weight of the loss come as tensors: XLA takes no variable of another device.
        """
        with tf.GradientTape() as tape, keras.StatelessScope(zip(self.variables, variables, strict=True)):
            tape.watch(logits)
            soft = self.loss.values(teacher, logits, labels=labels)
            hard = label_crossentropy(labels, logits) if self.has_labels else tf.zeros_like(soft)
            total = tf.reduce_sum(soft_weights * soft + hard_weights * hard)
        return soft, hard, tape.gradient(total, logits)

    def _variable_values(self):
        return [tf.convert_to_tensor(variable.value) for variable in self.variables]

    def _chunked(self, tensor):
        # (tokens, ...) -> (chunks, blocks, slices, rows, ...)
        shape = (self.chunks, self.blocks, _SLICES, self.rows)
        filling = self.chunks * self.blocks * _SLICES * self.rows - self.tokens
        tensor = tf.pad(tensor, [[0, filling]] + [[0, 0]] * (len(tensor.shape) - 1))
        return tf.reshape(tensor, (*shape, *tensor.shape[1:]))


def _kernel_factors(gradient, head):
    """The kernel's gradient as two factors A and B of Aᵀ · B, from the gradient of the logits."""
    return (gradient, head.hidden) if head.vocabulary_first else (head.hidden, gradient)


def _tensor_arrays(size, *shapes):
    return [tf.TensorArray("float32", size=size, element_shape=shape) for shape in shapes]


def _replaced(array, index, value, in_place):
    """The array after `array[index] = value`."""
    if in_place:
        return tf.raw_ops.InplaceUpdate(x=array, i=[index], v=value[None])
    return tf.tensor_scatter_nd_update(array, [[index]], value[None])


def _plus_product(sums, left, right, most_bytes, in_place):
    """`sums + leftᵀ · right`; in place some rows at a time, so that there is no second array of the size of `sums`."""
    if not in_place:
        return sums + tf.matmul(left, right, transpose_a=True)
    rows, columns = sums.shape
    step = max(most_bytes // (4 * columns), 1)
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        with tf.control_dependencies([sums]):  # else all products are computed before the first is added
            part = left[:, start:stop]
        product = tf.matmul(part, right, transpose_a=True)
        sums = tf.raw_ops.InplaceAdd(x=sums, i=tf.range(start, stop), v=product)
    return sums
