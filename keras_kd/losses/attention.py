"""Losses over the self-attention of transformers: relations between tokens, and attention maps."""

import math

import keras
from keras import ops

from keras_kd._checks import require_count, require_flag
from keras_kd.losses.base import DistillationLoss, differ
from keras_kd.losses.logits import kl_divergence
from keras_kd.outputs.hooks import NOT_ATTENDED


class AttentionLoss(DistillationLoss):
    """Base class of the losses over the attention of a layer of each model, one value per token.

    A subclass names the `axes` of an output, and which of them count tokens or examples, `token_axes`.
    """

    def __init__(self, teacher_layer, student_layer, **kwargs):
        super().__init__(teacher_layer=teacher_layer, student_layer=student_layer, **kwargs)

    def value_rank(self, output_rank):
        return 2

    def compared_axes(self, rank):
        return self.token_axes

    def check_shapes(self, teacher_shape, student_shape):
        shapes = teacher_shape, student_shape
        if len(teacher_shape) != 4 or len(student_shape) != 4:
            raise self.shape_error(f"compares {self.axes}", *shapes)
        if differ(*shapes, self.token_axes):
            raise self.shape_error("compares token by token", *shapes, "Pad the tokens of both models to one length.")


@keras.saving.register_keras_serializable(package="keras_kd")
class SelfAttentionRelations(AttentionLoss):
    """Self-attention relations (MiniLMv2): how the tokens of a text relate to each other in one layer of each model.

    Of queries, keys and values each, `R = softmax(X Xᵀ / √d)` relates every token to every other, by head. The loss is
    the KL divergence of the student's relations from the teacher's, in nats, averaged over heads, one value per token;
    the values of Q-Q, K-K and V-V are added. Relations have no width, so models of any widths can be compared; with
    `heads`, both sides are split into that many heads, so that their own numbers of heads may differ too.

    The named layers are or hold one `keras.layers.MultiHeadAttention` (or `GroupQueryAttention`, or a subclass), as
    KerasHub's `TransformerEncoder` and `TransformerDecoder` do. Usual are the student's last layer and, of a large
    teacher, a layer a few below its last. Padded tokens are left out.

    Args:
        teacher_layer, student_layer: The layers to compare.
        of: Which relations: some of "query", "key" and "value".
        heads: The number of relation heads ≥ 1, a divisor of heads · dim of both models; more than the models have is
            usual (48 for a student 384 wide). `None`: the heads of the models, equally many on both sides.
        **kwargs: See `keras_kd.losses.DistillationLoss`.

    Call arguments:
        teacher: `(batch, length, heads, dim)`: queries, keys or values of all heads.
        student: The same batch and length; number and width of the heads may differ.
        mask: `(batch, length)` bool, False for padding; the Keras masks of the outputs unless given.

    Raises:
        ValueError: `of` names something else; a layer holds no attention; lengths differ; the numbers of heads do not
            fit.

    Example:

    >>> teacher, student = np.eye(3).reshape(1, 3, 1, 3), np.zeros((1, 3, 1, 2))
    >>> float(keras_kd.losses.SelfAttentionRelations("layer_11", "layer_2")(teacher, student))
    0.0405...

    Reference: Wang et al., "MiniLMv2: Multi-Head Self-Attention Relation Distillation for Compressing Pretrained
    Transformers", Findings of ACL 2021 (https://arxiv.org/abs/2012.15828), equations 5 to 8.
    """

    needs_mask = True
    axes = "(batch, length, heads, dim)"
    token_axes = (0, 1)

    def __init__(self, teacher_layer, student_layer, *, of=("query", "key", "value"), heads=None, **kwargs):
        super().__init__(teacher_layer, student_layer, **kwargs)
        self.of = (of,) if isinstance(of, str) else tuple(of)
        if not self.of or not set(self.of) <= {"query", "key", "value"}:
            raise ValueError(f"of must be some of 'query', 'key' and 'value', got {of!r}.")
        self.heads = None if heads is None else require_count(heads, "heads", at_least=1)

    @property
    def parts(self):
        return self.of

    def check_shapes(self, teacher_shape, student_shape):
        super().check_shapes(teacher_shape, student_shape)
        if self.heads is None and teacher_shape[2] != student_shape[2]:
            way_out = "Give the number of relation heads with heads=; it must divide heads · dim of both."
            raise self.shape_error("compares head by head", teacher_shape, student_shape, way_out)
        for role, shape in (("teacher", teacher_shape), ("student", student_shape)):
            if self.heads is not None and (shape[2] * shape[3]) % self.heads:
                raise ValueError(
                    f"heads must divide heads · dim of the {role}, {shape[2]} · {shape[3]} = {shape[2] * shape[3]}, "
                    f"got {self.heads} for outputs {teacher_shape} and {student_shape}."
                )

    def call(self, teacher, student, mask):
        # (batch, length, heads, dim) x2, (batch, length) or None -> (batch, length) nats
        log_relations = (self._log_relations(output, mask) for output in (teacher, student))
        return ops.mean(kl_divergence(*log_relations), axis=1)

    def _log_relations(self, output, mask):
        # (batch, length, heads, dim) -> (batch, relation heads, length, length)
        if self.heads is not None:
            width = output.shape[2] * output.shape[3]
            output = ops.reshape(output, (*ops.shape(output)[:2], self.heads, width // self.heads))
        scores = ops.einsum("bqhd,bkhd->bhqk", output, output) / math.sqrt(output.shape[-1])
        if mask is not None:
            scores = ops.where(mask[:, None, None, :], scores, NOT_ATTENDED)
        return ops.log_softmax(scores, axis=-1)


@keras.saving.register_keras_serializable(package="keras_kd")
class AttentionMaps(AttentionLoss):
    """Attention maps (TinyBERT): the mean squared difference of the attention scores of two layers, before the softmax.

    `L = mean over heads and keys of (Aᵗ − Aˢ)²`, `A = Q Kᵀ / √d`, one value per query. Keys that the attention's mask
    hides on either side do not count, and neither do queries that a Keras mask of either side leaves out. Layers are
    named as for `SelfAttentionRelations`.

    Args:
        teacher_layer, student_layer: The layers to compare, or a list of them on both sides.
        mean_over_heads: Compare the mean over the heads of each side, so that their numbers may differ.
        **kwargs: See `keras_kd.losses.DistillationLoss`.

    Call arguments:
        teacher: Scores `(batch, heads, queries, keys)`, -1e9 where a mask hides the key.
        student: The same shape; with `mean_over_heads`, the number of heads may differ.

    Raises:
        ValueError: A layer holds no attention; numbers of heads or lengths differ.

    Example:

    >>> teacher, student = np.array([[[[2.0, 0.0], [1.0, 1.0]]]]), np.zeros((1, 1, 2, 2))
    >>> float(keras_kd.losses.AttentionMaps("layer_11", "layer_3")(teacher, student))
    1.5

    Reference: Jiao et al., "TinyBERT: Distilling BERT for Natural Language Understanding", Findings of EMNLP 2020
    (https://arxiv.org/abs/1909.10351), equation 7.
    """

    parts = ("scores",)
    axes = "(batch, heads, queries, keys)"
    token_axes = (0, 2, 3)

    def __init__(self, teacher_layer, student_layer, *, mean_over_heads=False, **kwargs):
        super().__init__(teacher_layer, student_layer, **kwargs)
        self.mean_over_heads = require_flag(mean_over_heads, "mean_over_heads")

    def check_shapes(self, teacher_shape, student_shape):
        super().check_shapes(teacher_shape, student_shape)
        if teacher_shape[1] != student_shape[1] and not self.mean_over_heads:
            way_out = "Set mean_over_heads=True."
            raise self.shape_error("compares head by head", teacher_shape, student_shape, way_out)

    def call(self, teacher, student):
        # (batch, heads, queries, keys) x2 -> (batch, queries)
        seen = ops.logical_and(_is_seen(teacher), _is_seen(student))
        if self.mean_over_heads:
            teacher, student = (ops.mean(scores, axis=1, keepdims=True) for scores in (teacher, student))
        squares = ops.where(seen, ops.square(ops.where(seen, teacher - student, 0.0)), 0.0)
        by_query = ops.sum(ops.mean(squares, axis=1), axis=-1)
        keys = ops.sum(ops.cast(seen, squares.dtype)[:, 0], axis=-1)
        return by_query / ops.maximum(keys, 1.0)


def _is_seen(scores):
    """Keys that no mask hides from a query, bool `(batch, 1, queries, keys)`: masks do not differ by head."""
    return scores[:, :1] > NOT_ATTENDED / 10
