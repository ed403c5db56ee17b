"""A student without layers: one vector per piece, averaged over the text."""

import keras
import numpy as np
from keras import ops

from keras_kd._checks import require_count
from keras_kd.outputs.model_inputs import input_names
from keras_kd.students.embedding import centered_factors, checked_counts
from keras_kd.students.rebuilding import require_functional
from keras_kd.students.tokenizers import pieces_of
from keras_kd.students.vocabulary import embedding_of_pieces
from keras_kd.transfer import LayerTransfer, Transfer

_RARE = 1e-3  # "a" of Arora et al.: pieces that make up more than this share of the text weigh less than half


@keras.saving.register_keras_serializable(package="keras_kd")
class WeightedMean(keras.layers.Layer):
    """The mean of a vector per piece over a text, each piece with a learned weight: Σ eᵃ⁽ⁱ⁾ vᵢ / Σ eᵃ⁽ⁱ⁾.

    Args:
        input_dim: number of pieces.
        output_dim: width of the vectors.
        **kwargs: see `keras.layers.Layer`.

    Call arguments:
        inputs: ids, `(batch, length)`.
        padding_mask: `(batch, length)`, 1 for a piece and 0 for padding.

    Returns:
        `(batch, output_dim)`; zeros for a text without pieces.

    Example:

    >>> layer = keras_kd.students.WeightedMean(1000, 64)
    >>> layer(np.array([[3, 1, 0]]), np.array([[1, 1, 0]])).shape
    TensorShape([1, 64])
    """

    def __init__(self, input_dim, output_dim, **kwargs):
        super().__init__(**kwargs)
        self.input_dim = require_count(input_dim, "input_dim", at_least=1)
        self.output_dim = require_count(output_dim, "output_dim", at_least=1)

    def build(self, *input_shapes):
        self.vectors = self.add_weight(shape=(self.input_dim, self.output_dim), initializer="uniform", name="vectors")
        self.log_weights = self.add_weight(shape=(self.input_dim,), initializer="zeros", name="log_weights")
        self.built = True

    def call(self, inputs, padding_mask):
        ids, present = ops.cast(inputs, "int32"), ops.cast(padding_mask, self.compute_dtype)
        weights = ops.exp(ops.take(self.log_weights, ids, axis=0)) * present  # (batch, length)
        total = ops.einsum("bl,bld->bd", weights, ops.take(self.vectors, ids, axis=0))
        return total / ops.maximum(ops.sum(weights, axis=1, keepdims=True), keras.config.epsilon())

    def compute_output_spec(self, inputs, padding_mask):
        return keras.KerasTensor((inputs.shape[0], self.output_dim), self.compute_dtype)

    def get_config(self):
        return {**super().get_config(), "input_dim": self.input_dim, "output_dim": self.output_dim}


def static_student(teacher, tokenizer, width, *, counts=None, prefix="", batch_size=256, name="static_student"):
    """Make a student that is a table: each piece's vector as the teacher gives it, averaged over a text.

    The teacher reads each piece as a text of its own. The principal components of its vectors, frequent pieces counting
    more, become a table of `width` numbers per piece (`WeightedMean`) and a Dense layer back to the teacher's space.
    Pieces that make up much of the text start with little weight: a / (a + share), a = 0.001. Distil it on sentences:
    `CosineFeatures` between the two vectors is a good loss. It computes some hundred times less than an encoder with
    layers, and does not know the order of words.

    Args:
        teacher: a functional `keras.Model` from KerasHub's inputs, the dict of `token_ids`, `padding_mask` and perhaps
            `segment_ids`, to one vector per text, `(batch, units)`. Where the last layer is a `UnitNormalization`, the
            student ends with one.
        tokenizer: the teacher's, as in `trim_vocabulary`. Trim first: the table has a row for each piece.
        width: numbers per piece, from 1 to `units`.
        counts: `(pieces,)` ≥ 0, how often each piece occurs: see `count_pieces`. None counts all pieces alike.
        prefix: str that the teacher was trained to read before each text; the E5 models want `"query: "`.
        batch_size: pieces that the teacher reads at a time.
        name: name of the model.

    Returns:
        `(student, transfer)`: a functional `keras.Model` of `token_ids` and `padding_mask`, and the
        `keras_kd.transfer.Transfer`, which says what share of the variance of the piece vectors is kept.

    Raises:
        TypeError: an argument of another type.
        ValueError: a teacher with other inputs or another output; a tokenizer that does not belong to it; `width` above
            `units`; counts of another vocabulary.

    Example:

    >>> import keras_hub
    >>> pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "tea", "the"]
    >>> backbone = keras_hub.models.BertBackbone(7, num_layers=1, num_heads=2, hidden_dim=8, intermediate_dim=8)
    >>> teacher = keras.Model(backbone.input, backbone.output["pooled_output"])
    >>> student, transfer = keras_kd.students.static_student(teacher, keras_hub.models.BertTokenizer(pieces), width=4)
    >>> student.count_params()  # 7 pieces of 4 + 1 numbers, and a Dense layer from 4 to 8
    75

    Source: Tulkens and van Dongen 2024, Model2Vec, https://github.com/MinishLab/model2vec; the weights are those of
    Arora et al. 2017, "A Simple but Tough-to-Beat Baseline for Sentence Embeddings".
    """
    pieces = pieces_of(tokenizer)
    units = _vector_units(require_functional(teacher))
    if require_count(width, "width", at_least=1) > units:
        raise ValueError(f"width must be <= {units}, the units of the teacher's vector, got {width}.")
    size = len(pieces.vocabulary)
    embedding_of_pieces(teacher, size)  # raises where the tokenizer is another model's
    counts = checked_counts(counts, size, "pieces of the tokenizer")
    vectors = _piece_vectors(teacher, pieces, prefix, require_count(batch_size, "batch_size", at_least=1))
    factors = centered_factors(vectors, counts, width)
    student = _static_model(teacher, size, width, units, name)
    mean, projection = student.get_layer("pieces"), student.get_layer("projection")
    share = counts / counts.sum()
    mean.set_weights([factors.table, np.log(_RARE / (_RARE + share))])
    projection.set_weights([factors.projection, factors.center])
    how = f"teacher's vector of each piece, {width} components, {100 * factors.kept:.1f} % of the variance kept"
    rows = [
        LayerTransfer(layer.name, type(layer).__name__, layer.count_params(), teacher.name, how)
        for layer in (mean, projection)
    ]
    return student, Transfer(tuple(rows), frozen=False)


def _vector_units(teacher):
    names = input_names(teacher)
    if not isinstance(names, dict) or not {"token_ids", "padding_mask"} <= set(names) <= {
        "token_ids", "padding_mask", "segment_ids",
    }:  # fmt: skip
        raise ValueError(
            "teacher must take KerasHub's dict of token_ids, padding_mask and perhaps segment_ids, got the inputs "
            f"{names}. Build it from backbone.input."
        )
    if len(teacher.outputs) != 1 or len(teacher.outputs[0].shape) != 2:
        shapes = [tuple(output.shape) for output in teacher.outputs]
        raise ValueError(
            f"teacher must give one vector per text, (batch, units), got outputs of the shapes {shapes}. Add the "
            "pooling it was trained with: keras.Model(backbone.input, vector)."
        )
    return teacher.outputs[0].shape[-1]


def _piece_vectors(teacher, pieces, prefix, batch_size):
    """The teacher's vector of each piece as a text: start, prefix, piece, end."""
    before = [pieces.start, *(pieces.encode([prefix])[0].tolist() if prefix else ())]
    ids = np.array([[*before, piece, pieces.end] for piece in range(len(pieces.vocabulary))], "int32")
    inputs = {"token_ids": ids, "padding_mask": np.ones_like(ids), "segment_ids": np.zeros_like(ids)}
    read = {key: inputs[key] for key in input_names(teacher)}
    return teacher.predict(read, batch_size=batch_size, verbose=0).astype("float32")


def _static_model(teacher, size, width, units, name):
    token_ids = keras.Input((None,), dtype="int32", name="token_ids")
    padding_mask = keras.Input((None,), dtype="int32", name="padding_mask")
    mean = WeightedMean(size, width, name="pieces")(token_ids, padding_mask)
    vector = keras.layers.Dense(units, name="projection")(mean)
    if isinstance(teacher.layers[-1], keras.layers.UnitNormalization):
        vector = keras.layers.UnitNormalization(name="vector")(vector)
    return keras.Model({"token_ids": token_ids, "padding_mask": padding_mask}, vector, name=name)
