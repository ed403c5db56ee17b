"""Whole numbers in few bytes: of so many bits each, or, where they ascend, after Elias and Fano.

Both ways run in TensorFlow, over the last axis of tensors of any rank. Bits fill each byte from its lowest one.
"""

import functools
from typing import NamedTuple

import numpy as np
import tensorflow as tf


class Fixed(NamedTuple):
    """`count` whole numbers of `width` bits each, 1 ≤ width ≤ 24, one behind the other, each with its lowest bit first.

    Of 50 numbers of 5 bits: 250 bits, 32 bytes.
    """

    count: int
    width: int

    @property
    def bytes(self):
        """How many bytes the numbers take."""
        return _bytes_of(self.count * self.width)

    def encode(self, numbers):
        # (..., count) int32 in [0, 2^width) -> (..., bytes) uint8
        bits = tf.bitwise.right_shift(numbers[..., None], tf.range(self.width)) & 1
        return _packed(tf.reshape(bits, [*_leading(numbers), self.count * self.width]))

    def decode(self, content):
        # (..., bytes) uint8 -> (..., count) int32
        starts = [number * self.width for number in range(self.count)]
        content = tf.cast(tf.concat([content, tf.zeros([*_leading(content), 3], tf.uint8)], axis=-1), tf.int32)
        numbers = tf.gather(content, [start // 8 for start in starts], axis=-1)
        for byte in range(1, _bytes_of(self.width + 7)):
            further = tf.gather(content, [start // 8 + byte for start in starts], axis=-1)
            numbers |= tf.bitwise.left_shift(further, 8 * byte)
        return tf.bitwise.right_shift(numbers, [start % 8 for start in starts]) & (2**self.width - 1)


class Ascending(NamedTuple):
    """`count` whole numbers below `limit` in ascending order, equal ones allowed, after Elias and Fano.

    The lower w bits of each are kept as they are. Of the rest, h, there is a row of bits in which the i-th number, from
    0, is the 1 at place hᵢ + i. So count · w + count + ⌊(limit − 1) / 2ʷ⌋ bits are always enough; w is chosen for the
    fewest bytes. Of 50 numbers below 250,002 (w = 12): 711 bits, 89 bytes; log₂ of the number of sets is 686 bits.

    P. Elias, "Efficient storage and retrieval by content and address of static files", Journal of the ACM 21 (1974);
    R. M. Fano, "On the number of bits required to implement an associative memory" (1971).
    """

    count: int
    limit: int

    @property
    def bytes(self):
        """How many bytes the numbers take."""
        return self._bytes(self._width)

    def encode(self, numbers):
        # (..., count) int32 in [0, limit), ascending -> (..., bytes) uint8: the upper bits, the lower ones
        upper = tf.bitwise.right_shift(numbers, self._width) + tf.range(self.count)
        ones = _packed(_ones_at(upper, self._upper(self._width)))
        if not self._width:
            return ones
        lower = Fixed(self.count, self._width).encode(numbers & (2**self._width - 1))
        return tf.concat([ones, lower], axis=-1)

    def decode(self, content):
        # (..., bytes) uint8 -> (..., count) int32
        start = _bytes_of(self._upper(self._width))
        ones, lower = _ones_so_far(content[..., :start]), content[..., start:]
        nth = tf.broadcast_to(tf.range(1, self.count + 1), [*_leading(content), self.count])
        numbers = tf.searchsorted(ones, nth, side="left") - tf.range(self.count)
        if self._width:
            numbers = tf.bitwise.left_shift(numbers, self._width) | Fixed(self.count, self._width).decode(lower)
        return tf.minimum(numbers, self.limit - 1)  # bytes that were never encoded, such as padding, stay in range

    @property
    def _width(self):
        return min(range(self.limit.bit_length()), key=self._bytes)

    def _upper(self, width):
        """How many bits the row of upper bits has."""
        return self.count + ((self.limit - 1) >> width)

    def _bytes(self, width):
        return _bytes_of(self._upper(width)) + _bytes_of(self.count * width)


class Graded(NamedTuple):
    """Up to `count` ascending numbers below `limit` in `bytes` bytes, of which low ones take fewer bits than high ones.

    For ids that go by how common they are, as those of most tokenizers do. As `Ascending`, but with buckets that widen:
    the w lowest bits are kept of a number of a bucket 2ʷ wide, and four buckets make an octave, w ≈ log₂(number / 4).
    Numbers spread evenly over all octaves, as by Zipf's law, so take 1 + 1.4 bits beside those. What does not fit is
    left out: `fitting` says how many do.

    Of 50 numbers below 250,002 the buckets take 119 bits, and each number w more.
    """

    count: int
    limit: int
    bytes: int

    @property
    def least_bytes(self):
        """How many bytes are enough for any one number."""
        return self._start + _bytes_of(int(self._widths[-1]))

    def bits(self, numbers):
        """How many bits it takes if all fit."""
        # (..., count) int32 -> (...) int32
        return self.count + len(self._widths) + tf.reduce_sum(self._width_of(numbers), axis=-1)

    def fitting(self, numbers):
        """How many of the first numbers fit."""
        # (..., count) int32 in any order -> (...) int32
        return tf.reduce_sum(tf.cast(tf.cumsum(self._width_of(numbers), axis=-1) <= self._room, tf.int32), axis=-1)

    def encode(self, numbers, fitting):
        # (..., count) int32, of which the first `fitting` ascend, (...) -> (..., bytes) uint8
        there = tf.sequence_mask(fitting, self.count)
        bucket, width = self._bucket_of(numbers), self._width_of(numbers)
        length = 8 * self._start
        upper = tf.where(there, bucket + tf.range(self.count), length + tf.range(self.count))
        ones = _ones_at(upper, length)
        width = tf.where(there, width, 0)
        lower = tf.where(there, numbers - tf.gather(self._starts, bucket), 0)
        return tf.concat([_packed(ones), self._joined(lower, tf.cumsum(width, axis=-1, exclusive=True))], axis=-1)

    def decode(self, content):
        """The numbers, and how many there are; behind those, the last is repeated."""
        # (..., bytes) uint8 -> (..., count) int32, (...) int32
        ones = _ones_so_far(content[..., : self._start])
        found = tf.clip_by_value(ones[..., -1:], 1, self.count)
        nth = tf.minimum(tf.range(1, self.count + 1), found)
        bucket = tf.searchsorted(ones, nth, side="left") - (nth - 1)
        bucket = tf.clip_by_value(bucket, 0, len(self._widths) - 1)
        width = tf.gather(self._widths, bucket)
        place = tf.cumsum(width, axis=-1, exclusive=True)
        place = tf.gather(place, nth - 1, batch_dims=place.shape.rank - 1)
        lower = tf.concat([content[..., self._start :], tf.zeros([*_leading(content), 1], tf.uint8)], axis=-1)
        numbers = tf.zeros_like(place)
        for byte in range(_bytes_of(int(self._widths[-1]) + 7)):
            at = tf.minimum(place // 8 + byte, self.bytes - self._start)
            further = tf.cast(tf.gather(lower, at, batch_dims=at.shape.rank - 1), tf.int32)
            numbers |= tf.bitwise.left_shift(further, 8 * byte)
        numbers = tf.bitwise.right_shift(numbers, place % 8) & (tf.bitwise.left_shift(1, width) - 1)
        return tf.minimum(numbers + tf.gather(self._starts, bucket), self.limit - 1), found[..., 0]

    def _joined(self, numbers, places):
        """Numbers at places, in bits, that do not overlap."""
        # (..., count) int32 x2 -> (..., bytes) uint8
        size = self.bytes - self._start
        rows = tf.reshape(numbers, [-1, self.count, 1])
        places = tf.reshape(places, [-1, self.count, 1])
        bytes_of_number = tf.range(_bytes_of(int(self._widths[-1]) + 7))
        pieces = tf.bitwise.right_shift(tf.bitwise.left_shift(rows, places % 8), 8 * bytes_of_number) & 255
        at = tf.minimum(places // 8 + bytes_of_number, size - 1) + size * tf.range(tf.shape(rows)[0])[:, None, None]
        joined = tf.math.unsorted_segment_sum(tf.reshape(pieces, [-1]), tf.reshape(at, [-1]), size * tf.shape(rows)[0])
        return tf.cast(tf.reshape(joined, [*_leading(numbers), size]), tf.uint8)

    def _bucket_of(self, numbers):
        found = tf.searchsorted(self._starts, tf.reshape(numbers, [-1]), side="right") - 1
        return tf.reshape(found, tf.shape(numbers))

    def _width_of(self, numbers):
        return tf.gather(self._widths, self._bucket_of(numbers))

    @property
    def _starts(self):
        return _buckets(self.limit)[0]

    @property
    def _widths(self):
        return _buckets(self.limit)[1]

    @property
    def _start(self):
        """Behind which byte the lower bits begin."""
        return _bytes_of(self.count + len(self._widths))

    @property
    def _room(self):
        """How many lower bits there are."""
        return 8 * (self.bytes - self._start)


@functools.cache
def _buckets(limit):
    """Where buckets begin, and log₂ of how wide they are."""
    starts, widths = [0], []
    while starts[-1] < limit:
        widths.append(max(starts[-1] // 4, 1).bit_length() - 1)
        starts.append(starts[-1] + 2 ** widths[-1])
    return np.array(starts[:-1], np.int32), np.array(widths, np.int32)


def _ones_at(places, length):
    """A row of bits with a 1 at each of some places, which ascend; those beyond its end are passed over."""
    # (..., count) int32 -> (..., length) int32 of 0 and 1
    every = tf.broadcast_to(tf.range(length), [*_leading(places), length])
    return tf.searchsorted(places, every, side="right") - tf.searchsorted(places, every, side="left")


def _ones_so_far(content):
    """How many bits of 1 there are in a row up to each of them, itself included."""
    # (..., bytes) uint8 -> (..., 8 · bytes) int32
    bits = tf.bitwise.right_shift(tf.cast(content, tf.int32)[..., None], tf.range(8)) & 1
    return tf.cumsum(tf.reshape(bits, [*_leading(content), 8 * content.shape[-1]]), axis=-1)


def _packed(bits):
    # (..., n) int32 of 0 and 1 -> (..., ⌈n / 8⌉) uint8
    n = bits.shape[-1]
    bits = tf.concat([bits, tf.zeros([*_leading(bits), -n % 8], tf.int32)], axis=-1)
    bits = tf.reshape(bits, [*_leading(bits), _bytes_of(n), 8])
    return tf.cast(tf.reduce_sum(tf.bitwise.left_shift(bits, tf.range(8)), axis=-1), tf.uint8)


def _leading(tensor):
    """The sizes of all axes but the last, as they are known."""
    dynamic = tf.unstack(tf.shape(tensor)[:-1], num=tensor.shape.rank - 1)
    return [size if size is not None else dynamic[axis] for axis, size in enumerate(tensor.shape[:-1])]


def _bytes_of(bits):
    return -(-bits // 8)
