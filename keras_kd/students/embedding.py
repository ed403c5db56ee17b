"""A smaller embedding that starts as near to the teacher's as it can: of low rank, or in codes."""

import typing

import keras
import numpy as np
from keras import ops

from keras_kd._checks import require_count
from keras_kd._extras import needs_extra
from keras_kd._keras_private import set_mask
from keras_kd.students.rebuilding import Rebuilding, hand_over, require_functional, walk

CENTROIDS = 256  # as many as a byte tells apart
_CHUNK = 65_536  # rows of a table in float64 at a time


class _CompressedEmbedding(keras.layers.Layer):
    """An embedding whose table is made of smaller weights: with a mask, and as KerasHub's tied last layer."""

    def __init__(self, input_dim, output_dim, *, mask_zero=False, **kwargs):
        super().__init__(**kwargs)
        self.input_dim = require_count(input_dim, "input_dim", at_least=1)
        self.output_dim = require_count(output_dim, "output_dim", at_least=1)
        self.mask_zero = mask_zero
        self.supports_masking = True

    def call(self, inputs, reverse=False):
        if reverse:
            return self.logits(inputs)
        vectors = self.vectors(ops.cast(inputs, "int32"))
        return set_mask(vectors, ops.not_equal(inputs, 0)) if self.mask_zero else vectors

    def compute_output_spec(self, inputs, reverse=False):
        shape = (*inputs.shape[:-1], self.input_dim) if reverse else (*inputs.shape, self.output_dim)
        return keras.KerasTensor(shape, self.compute_dtype)

    def get_config(self):
        sizes = {"input_dim": self.input_dim, "output_dim": self.output_dim}
        return {**super().get_config(), **sizes, "mask_zero": self.mask_zero}


@keras.saving.register_keras_serializable(package="keras_kd")
class FactorizedEmbedding(_CompressedEmbedding):
    """An embedding as the product of a narrow table and a projection: `table[ids] @ projection`.

    It holds `rank · (input_dim + output_dim)` numbers in place of `input_dim · output_dim`. As KerasHub's
    `ReversibleEmbedding`, it is also the tied last layer of a language model: called with `reverse=True`, it gives a
    logit for each id.

    Args:
        input_dim: number of ids.
        output_dim: width of the vectors.
        rank: width of the table, from 1 to `output_dim`.
        mask_zero: whether the id 0 is padding, which the next layers are to leave out.
        **kwargs: see `keras.layers.Layer`.

    Call arguments:
        inputs: ids, `(..., )`; with `reverse=True` hidden states, `(..., output_dim)`.
        reverse: whether to give logits, `(..., input_dim)`.

    Returns:
        Vectors, `(..., output_dim)`.

    Example:

    >>> embedding = keras_kd.students.FactorizedEmbedding(30_000, 384, rank=128)
    >>> embedding(np.array([[3, 1]])).shape, embedding.count_params()
    (TensorShape([1, 2, 384]), 3889152)

    Source: Lan et al. 2019, "ALBERT", https://arxiv.org/abs/1909.11942.
    """

    def __init__(self, input_dim, output_dim, rank, *, mask_zero=False, **kwargs):
        super().__init__(input_dim, output_dim, mask_zero=mask_zero, **kwargs)
        self.rank = require_count(rank, "rank", at_least=1)
        if rank > output_dim:
            raise ValueError(f"rank must be <= output_dim = {output_dim}, got {rank}.")

    def build(self, input_shape=None):
        self.table = self.add_weight(shape=(self.input_dim, self.rank), initializer="uniform", name="table")
        self.projection = self.add_weight(
            shape=(self.rank, self.output_dim), initializer="orthogonal", name="projection"
        )
        self.built = True

    def vectors(self, ids):
        return ops.matmul(ops.take(self.table, ids, axis=0), self.projection)

    def logits(self, states):
        return ops.matmul(ops.matmul(states, ops.transpose(self.projection)), ops.transpose(self.table))

    def get_config(self):
        return {**super().get_config(), "rank": self.rank}


@keras.saving.register_keras_serializable(package="keras_kd")
class ProductQuantizedEmbedding(_CompressedEmbedding):
    """An embedding in codes: a vector is `codes` parts side by side, each one of 256 centroids.

    It holds `codes` bytes per id, which are not trained, and 256 centroids for each part, which are. LiteRT runs it
    with built-in operations and keeps the codes as bytes.

    Args:
        input_dim: number of ids.
        output_dim: width of the vectors.
        codes: parts of a vector: a divisor of `output_dim`.
        mask_zero: whether the id 0 is padding, which the next layers are to leave out.
        **kwargs: see `keras.layers.Layer`.

    Call arguments:
        inputs: ids, `(..., )`; with `reverse=True` hidden states, `(..., output_dim)`.
        reverse: whether to give logits, `(..., input_dim)`; it makes the whole table for that.

    Returns:
        Vectors, `(..., output_dim)`.

    Example:

    >>> embedding = keras_kd.students.ProductQuantizedEmbedding(30_000, 384, codes=48)
    >>> embedding(np.array([[3, 1]])).shape, embedding.count_params()
    (TensorShape([1, 2, 384]), 1538304)

    Source: Jégou et al. 2011, "Product Quantization for Nearest Neighbor Search".
    """

    def __init__(self, input_dim, output_dim, codes, *, mask_zero=False, **kwargs):
        super().__init__(input_dim, output_dim, mask_zero=mask_zero, **kwargs)
        self.codes = require_count(codes, "codes", at_least=1)
        if output_dim % codes:
            raise ValueError(f"codes must divide output_dim = {output_dim}, got {codes}.")

    def build(self, input_shape=None):
        shape = (self.codes * CENTROIDS, self.output_dim // self.codes)  # the centroids of the parts after each other
        self.centroids = self.add_weight(shape=shape, initializer="uniform", name="centroids")
        self.code_table = self.add_weight(
            shape=(self.input_dim, self.codes), initializer="zeros", dtype="uint8", trainable=False, name="code_table"
        )
        self.built = True

    def vectors(self, ids):
        first = CENTROIDS * ops.arange(self.codes, dtype="int32")
        rows = ops.cast(ops.take(self.code_table, ids, axis=0), "int32") + first  # (..., codes)
        return ops.reshape(ops.take(self.centroids, rows, axis=0), (*ops.shape(ids), self.output_dim))

    def logits(self, states):
        return ops.matmul(states, ops.transpose(self.vectors(ops.arange(self.input_dim, dtype="int32"))))

    def get_config(self):
        return {**super().get_config(), "codes": self.codes}


def factorize_embedding(teacher, rank, *, counts=None, embedding=None):
    """Make a student whose embedding is a `FactorizedEmbedding` that starts as near to the teacher's as its rank can.

    The table E is replaced by A · P of the rank r that minimizes Σᵢ nᵢ ‖Eᵢ - Aᵢ P‖², with the count nᵢ of each piece:
    frequent pieces are kept best. It is found by the singular value decomposition of √n · E. A tied last layer becomes
    the same product. Drop pieces first (`trim_vocabulary`), then factorize.

    Args:
        teacher: a built functional `keras.Model`, such as a KerasHub backbone; of a task, its backbone.
        rank: r, from 1 to the width of the embedding.
        counts: `(pieces,)` ≥ 0, how often each piece occurs: see `count_pieces`. Each counts once more than that, so
            that unseen ones count too. None counts all pieces alike.
        embedding: the name of the embedding; None is the one with the most rows.

    Returns:
        `(student, transfer)`: a functional `keras.Model` with fresh layers and the teacher's weights, and the
        `keras_kd.transfer.Transfer`, which says what share of the weighted squares Σᵢ nᵢ ‖Eᵢ‖² the product keeps.

    Raises:
        TypeError: an argument of another type.
        ValueError: a rank that the embedding does not have; counts of another vocabulary; no such embedding.

    Example:

    >>> teacher = keras.Sequential([keras.Input((None,)), keras.layers.Embedding(1000, 64, name="pieces")])
    >>> student, transfer = keras_kd.students.factorize_embedding(teacher, rank=16)
    >>> teacher.count_params(), student.count_params()
    (64000, 17024)
    """
    layer, holder = _replaceable(teacher, embedding)
    if require_count(rank, "rank", at_least=1) > layer.output_dim:
        raise ValueError(f"rank must be <= {layer.output_dim}, the width of the embedding {layer.name!r}, got {rank}.")
    weights = checked_counts(counts, layer.input_dim, f"rows of {layer.name!r}")
    thin = FactorizedEmbedding(layer.input_dim, layer.output_dim, rank, **_options(layer))
    table, projection, kept = factorized(np.asarray(layer.embeddings), weights, rank)
    how = f"SVD of rank {rank}, {100 * kept:.1f} % kept"
    return _with_embedding(teacher, layer, holder, thin, [table, projection], how)


def quantize_embedding(teacher, codes, *, counts=None, embedding=None, seed=0):
    """Make a student whose embedding is a `ProductQuantizedEmbedding`, the nearest that k-means finds to the teacher's.

    A vector is cut into `codes` parts, and each part is replaced by the nearest of 256 centroids: a piece takes `codes`
    bytes. At the same size it is nearer to the teacher's table than a product of low rank in 8 bits, so that more of
    the vocabulary can stay. Training moves the centroids, which pieces share: those that the texts lack move along.

    Args:
        teacher: a built functional `keras.Model`, as in `factorize_embedding`.
        codes: bytes per piece: a divisor of the width of the embedding.
        counts: `(pieces,)` ≥ 0, how often each piece occurs: see `count_pieces`. k-means weighs pieces by the square
            root, so that the rare ones keep centroids too. None counts all pieces alike.
        embedding: the name of the embedding; None is the one with the most rows.
        seed: of k-means.

    Returns:
        `(student, transfer)`, as `factorize_embedding` does; the table says what share of the squares is kept.

    Raises:
        TypeError: an argument of another type.
        ValueError: the width is no multiple of `codes`; fewer than 256 pieces; counts of another vocabulary; no such
            embedding.
        ImportError: scikit-learn is not installed.

    Example:

    >>> teacher = keras.Sequential([keras.Input((None,)), keras.layers.Embedding(1000, 64, name="pieces")])
    >>> student, transfer = keras_kd.students.quantize_embedding(teacher, codes=16)
    >>> teacher.count_params(), student.count_params()  # 1000 pieces of 16 bytes, and 16 · 256 centroids of 4 numbers
    (64000, 32384)

    Source: Jégou et al. 2011, "Product Quantization for Nearest Neighbor Search"; Joulin et al. 2016, "FastText.zip",
    https://arxiv.org/abs/1612.03651.
    """
    layer, holder = _replaceable(teacher, embedding)
    if layer.input_dim < CENTROIDS:
        raise ValueError(f"the embedding {layer.name!r} must have {CENTROIDS} rows or more, got {layer.input_dim}.")
    weights = checked_counts(counts, layer.input_dim, f"rows of {layer.name!r}")
    quantized = ProductQuantizedEmbedding(layer.input_dim, layer.output_dim, codes, **_options(layer))
    table = np.asarray(layer.embeddings, "float32")
    centroids, code_table, kept = product_quantized(table, weights, codes, seed)
    how = f"{codes} codes per piece, {100 * kept:.1f} % kept"
    return _with_embedding(teacher, layer, holder, quantized, [centroids, code_table], how)


def _replaceable(teacher, name):
    """The embedding and the layer that holds it, as `find_embedding` gives them, of a model that can be made anew."""
    found = find_embedding(require_functional(teacher), name)
    if isinstance(teacher.get_config().get("backbone"), dict):
        raise ValueError(
            f"teacher must not be the task {type(teacher).__name__}, whose class makes its own embedding: give its "
            "backbone, then build the rest on the student of that."
        )
    return found


def _options(layer):
    return {"mask_zero": layer.mask_zero, "dtype": layer.dtype_policy, "name": layer.name}


def _with_embedding(teacher, layer, holder, new, arrays, how):
    """The teacher made again with another embedding, the arrays of its weights, and how they were made in words."""
    rebuilding = Rebuilding(lambda other: new if other is holder else None, call=_call_of(new, layer, holder))
    student = rebuilding(teacher)
    pairs = [(new, layer), *rebuilding.pairs]
    if holder is not layer:
        pairs.append((student.get_layer(holder.position_embedding.name), holder.position_embedding))
    return student, hand_over(teacher, student, pairs, values=lambda new, old: (arrays, how))


def find_embedding(teacher, name=None):
    """The embedding of this name, or the one with the most rows, and the layer of the graph that holds it."""
    found = {}
    for path, layer in walk(teacher, inside=True):
        if isinstance(layer, keras.layers.Embedding) and (name is None or name in (layer.name, path)):
            found.setdefault(id(layer), layer)
    if not found or (name is not None and len(found) > 1):
        embeddings = [path for path, layer in walk(teacher, inside=True) if isinstance(layer, keras.layers.Embedding)]
        raise ValueError(f"embedding must name one keras.layers.Embedding of the teacher, {embeddings}, got {name!r}.")
    layer = max(found.values(), key=lambda layer: layer.input_dim)
    if any(other is layer for _, other in walk(teacher)):
        return layer, layer
    holder = next(
        other for _, other in walk(teacher) if getattr(other, "token_embedding", None) is layer and other is not teacher
    )
    return layer, holder


def factorized(table, weights, rank):
    """The nearest product of rank `rank` to a table of vectors, each row weighted.

    Args:
        table: `(rows, width)`.
        weights: `(rows,)` > 0.
        rank: from 1 to `width`.

    Returns:
        `(rows, rank)` and `(rank, width)`, float32, and the share of the weighted squares that their product keeps.
    """
    gram = np.zeros((table.shape[1],) * 2)
    for start in range(0, len(table), _CHUNK):
        rows = table[start : start + _CHUNK].astype("float64")
        gram += rows.T @ (rows * weights[start : start + _CHUNK, None])
    squares, directions = np.linalg.eigh(gram)  # ascending
    projection = directions[:, ::-1][:, :rank].T.astype("float32")
    kept = squares[::-1][:rank].sum() / max(squares.sum(), np.finfo("float64").tiny)
    return table.astype("float32") @ projection.T, projection, float(kept)


def product_quantized(table, weights, codes, seed):
    """The codes nearest to a table of vectors, by k-means in each part of them, each row weighted.

    Args:
        table: float32 `(rows, width)`.
        weights: `(rows,)` > 0.
        codes: the number of parts, a divisor of `width`.
        seed: of k-means.

    Returns:
        Centroids, float32 `(codes · 256, width / codes)`; codes, uint8 `(rows, codes)`; the share of the weighted
        squares that they keep.
    """
    with needs_extra("students"):
        from sklearn.cluster import KMeans
    centroids, found, lost = [], [], 0.0
    for part in np.split(table, codes, axis=1):
        means = KMeans(CENTROIDS, n_init=1, max_iter=25, random_state=seed)
        means.fit(part, sample_weight=np.sqrt(weights))
        code = means.predict(part)
        lost += float(weights @ np.square(part - means.cluster_centers_[code]).sum(axis=1))
        centroids.append(means.cluster_centers_)
        found.append(code)
    kept = 1.0 - lost / float(weights @ np.square(table).sum(axis=1))
    return np.concatenate(centroids).astype("float32"), np.stack(found, axis=1).astype("uint8"), kept


class CenteredFactors(typing.NamedTuple):
    """The nearest `center + table @ projection` of a rank to a table of vectors, and the share of variance it keeps."""

    table: np.ndarray  # (rows, rank)
    projection: np.ndarray  # (rank, width)
    center: np.ndarray  # (width,)
    kept: float


def centered_factors(vectors, weights, rank):
    """Return the `CenteredFactors` of `(rows, width)` vectors: their principal components, each row weighted."""
    center = np.average(vectors.astype("float64"), axis=0, weights=weights).astype("float32")
    table, projection, kept = factorized(vectors - center, weights, rank)
    return CenteredFactors(table, projection, center, kept)


def checked_counts(counts, rows, what):
    """`(rows,)` weights, one more than the count of each; `what` names the rows in an error."""
    if counts is None:
        return np.ones(rows)
    counts = np.asarray(counts)
    if counts.ndim != 1 or len(counts) > rows or counts.dtype.kind not in "iuf":
        raise ValueError(
            f"counts must be one number for each of the {rows} {what}, got {counts.dtype} of the shape {counts.shape}. "
            "keras_kd.students.count_pieces counts with the model's tokenizer."
        )
    if not np.isfinite(counts).all() or counts.min() < 0:
        raise ValueError("counts must be finite and >= 0.")
    return 1.0 + np.pad(counts.astype("float64"), (0, rows - len(counts)))


def _call_of(thin, layer, holder):
    """How the new layer is called; where the old one stands in KerasHub's TokenAndPositionEmbedding, with positions."""
    if holder is layer:
        return None

    def call(made, *args, **kwargs):
        if made is not thin:
            return made(*args, **kwargs)
        tokens = thin(*args)
        positions = type(holder.position_embedding).from_config(holder.position_embedding.get_config())
        return keras.layers.Add()([tokens, positions(tokens, **kwargs)])

    return call
