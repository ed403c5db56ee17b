"""How the loops of the fused losses hold the arrays that they write to bit by bit, inside and outside of XLA."""

import tensorflow as tf


class InPlace:
    """Arrays are written to where they are, and a small function is compiled by itself."""

    @staticmethod
    def compiled(function):
        """The function, run by XLA; in eager execution, where it would be compiled in each call, as it is."""
        return tf.function(function, jit_compile=True, autograph=False) if tf.inside_function() else function

    @staticmethod
    def zero():
        """The number of the first chunk, made by a stateful operation.

        Of constants, what the first chunk holds might be folded into a constant, which must not be written to.
        """
        return tf.raw_ops.Empty(shape=[], dtype="int32", init=True)

    @staticmethod
    def replaced(array, place, value):
        """The array, with the value at `array[place]`."""
        return tf.raw_ops.InplaceUpdate(x=array, i=[place], v=value[None])

    @staticmethod
    def with_product(sums, left, right, most_bytes):
        """`sums + leftᵀ · right`, some rows at a time: there is no second array as large as the sums."""
        rows, columns = sums.shape
        step = max(most_bytes // (4 * columns), 1)
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            with tf.control_dependencies([sums]):  # else all products are made before the first is added
                part = left[:, start:stop]
            product = tf.matmul(part, right, transpose_a=True)
            sums = tf.raw_ops.InplaceAdd(x=sums, i=tf.range(start, stop), v=product)
        return sums


class Functional:
    """The same where XLA compiles all of it and knows no writing in place."""

    @staticmethod
    def compiled(function):
        return function

    @staticmethod
    def zero():
        return 0

    @staticmethod
    def replaced(array, place, value):
        return tf.tensor_scatter_nd_update(array, [[place]], value[None])

    @staticmethod
    def with_product(sums, left, right, most_bytes):
        return sums + tf.matmul(left, right, transpose_a=True)
