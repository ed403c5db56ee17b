"""`quantize_aware`: a student that is trained for the integers that its LiteRT file will hold."""

import keras

from keras_kd._checks import require_choice, require_tensorflow
from keras_kd._keras_private import functional_graph
from keras_kd.deploy.fake_quantization import (
    BITS,
    FakeQuantization,
    QuantizeAware,
    class_in_files,
    quantizable,
    quantized_class,
)
from keras_kd.outputs.hooks import layer_paths
from keras_kd.students.rebuilding import Rebuilding, require_functional


def quantize_aware(student, *, weights="int8", activations=None, skip=()):
    """Make a copy of a student that computes with rounded weights, and can be trained for that.

    Distil the copy as any student, a short while at a small learning rate after training in floats, and export it:
    the LiteRT file holds the integers that were trained.

    A weight w is read as s · round(w / s), s = max |w| / (2ᵇ⁻¹ − 1) over the weights of its output channel, or of its
    row for embeddings; the gradient is that of w. Rounded are the kernels of Dense, EinsumDense, Conv1D, Conv2D,
    DepthwiseConv1D and DepthwiseConv2D, and the tables of Embedding and ReversibleEmbedding, also inside of other
    layers such as keras_hub's TransformerEncoder. All else stays as it is: biases, normalization, position
    embeddings, recurrent layers, layers in TimeDistributed and Bidirectional, grouped convolutions.

    With `activations="int8"`, inputs and outputs of these layers, but for embeddings, are rounded to 8 bits too, within
    a range that follows the batches of training by a moving average (momentum 0.99), outside of which the gradient is
    0. Scores of attention, normalization and sums are computed in floats, in the file too.

    | weights | activations | `keras_kd.export` with | the file |
    |---|---|---|---|
    | "int8" | None | `quantize="dynamic"` | int8 weights; activations in floats, rounded per call |
    | "int8" | "int8" | `quantize="int8"`, without `calibration` | int8 weights and activations with these ranges |
    | "int4" | None | `quantize="dynamic"` | 4 bits a weight in dense layers, convolutions and embeddings |

    Args:
        student: a built functional or sequential `keras.Model`. It is not changed.
        weights: "int8" or "int4".
        activations: "int8", or None to leave them in floats. With "int4" weights, None.
        skip: names or paths of layers that stay in floats, such as "encoder/block_0" or "logits"; a name stands for all
            layers whose paths end with it, and a layer for those inside of it.

    Returns:
        A functional `keras.Model` with the student's weights, names of inputs and layers, not compiled. It is saved and
        loaded as any model.

    Raises:
        TypeError: `student` is not a `keras.Model`.
        ValueError: a student that is not built, or neither functional nor sequential; one that `model.quantize()` or
            `quantize_aware` has quantized; other bits; a name in `skip` that no layer to quantize has; no layer left.

    Example:

    >>> student = keras.Sequential([keras.Input((8,)), keras.layers.Dense(64, "relu"), keras.layers.Dense(3)])
    >>> quantized = keras_kd.deploy.quantize_aware(student)
    >>> distiller = keras_kd.Distiller(student, quantized, keras_kd.losses.LogitsMSE())
    >>> kernel = quantized.layers[1].kernel  # as it is read: at most 255 different numbers in a column
    >>> bool(np.abs(kernel - student.layers[0].kernel).max() < np.abs(kernel).max() / 250)
    True

    Source: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference", https://arxiv.org/abs/1712.05877; for encoders Zafrir et al. 2019, "Q8BERT",
    https://arxiv.org/abs/1910.06188.
    """
    require_tensorflow("quantize_aware")
    require_choice(weights, "weights", list(BITS))
    require_choice(activations, "activations", [None, "int8"])
    if weights == "int4" and activations is not None:
        raise ValueError(
            f"activations must be None with weights='int4', got {activations!r}: LiteRT takes 4-bit weights with "
            "activations in floats. Give weights='int8' for both in integers."
        )
    require_functional(student, "student")
    _require_floats(student)
    skipped = _skipped(student, skip)
    chosen = {"weights": weights, "activations": activations}
    settings = {
        id(layer): {"layer": class_in_files(layer), **chosen, "skip": skip}
        for layer, skip in _layers_to_remake(student, skipped)
    }
    if not settings:
        left = "skip leaves none" if skipped else "it has none"
        raise ValueError(f"student must have a layer that can be quantized, {_KINDS}, but {left}.")
    return _remade(student, settings)


_KINDS = "a Dense, EinsumDense, Conv1D, Conv2D, DepthwiseConv1D, DepthwiseConv2D or Embedding"


def _require_floats(student):
    for path, layer in layer_paths(student):
        if isinstance(layer, QuantizeAware):
            raise ValueError(
                f"student must be in floats, but {path!r} is quantized already by keras_kd.deploy.quantize_aware. Pass "
                "the student that it was made of."
            )
        if isinstance(layer.dtype_policy, keras.dtype_policies.QuantizedDTypePolicy):
            raise ValueError(
                f"student must be in floats, but {path!r} is quantized by model.quantize(), to "
                f"{layer.dtype_policy.name}. Pass the student as it was before."
            )


def _skipped(student, names):
    """The ids of the layers that `skip` names, each with those inside of it."""
    if isinstance(names, str):
        raise TypeError(f"skip must be a list of names, got the str {names!r}; pass [{names!r}].")
    layers = list(layer_paths(student))
    ids = set()
    for name in names:
        found = [path for path, _ in layers if path == name or path.endswith(f"/{name}")]
        within = {id(layer) for path, layer in layers if any(f"{path}/".startswith(f"{one}/") for one in found)}
        within &= {id(layer) for layer in quantizable(student).values()}
        if not within:
            raise ValueError(
                f"skip must name layers of the student that can be quantized, {list(quantizable(student))}, or layers "
                f"around them, got {name!r}."
            )
        ids |= within
    return ids


def _layers_to_remake(model, skipped):
    """The layers of the graph and of nested ones that are or hold layers to quantize, each with what it is to skip."""
    for layer in model.layers:
        found = quantizable(layer)
        skip = [path for path, inner in found.items() if id(inner) in skipped]
        if len(skip) == len(found):
            continue
        if isinstance(layer, keras.Model) and functional_graph(layer) is not None:
            yield from _layers_to_remake(layer, skipped)
        else:
            yield layer, skip


def _remade(student, settings):
    """The student again, with the layers whose ids are in `settings` quantized, and its weights."""

    def edit(layer):
        return {**layer.get_config(), "quantization": settings[id(layer)]} if id(layer) in settings else None

    def class_of(layer):
        return quantized_class(type(layer)) if id(layer) in settings else type(layer)

    rebuilding = Rebuilding(edit, class_of=class_of)
    graph = functional_graph(student)
    # Not the student itself: a task of KerasHub makes the layers after its backbone in a class of its own.
    made = rebuilding(keras.Model(graph.input, graph.output, name=student.name))
    for new, layer in rebuilding.pairs:
        new.trainable = layer.trainable
        for to, value in zip(_trained_weights(new), layer.weights, strict=True):
            to.assign(value)
    return made


def _trained_weights(layer):
    """The weights of a layer but for the ranges of activations."""
    inner = [inner for _, inner in layer_paths(layer) if isinstance(inner, FakeQuantization)]
    ranges = {id(weight) for quantization in inner for weight in quantization.weights}
    return [weight for weight in layer.weights if id(weight) not in ranges]
