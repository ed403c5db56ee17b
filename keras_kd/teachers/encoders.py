"""One vector per text, of the tokens of an encoder."""

import keras
from keras import ops

from keras_kd._checks import require_choice, require_model
from keras_kd._keras_private import functional_graph
from keras_kd.outputs.model_inputs import input_names

_MASK, _SEQUENCE = "padding_mask", "sequence_output"  # as KerasHub's encoders call them


def sentence_encoder(backbone, *, pooling="mean", normalize=True, name="sentence_encoder"):
    """Make the model that gives one vector per text, of a KerasHub encoder that gives one per token.

    It is a teacher of vectors, and with `logistic_head` one of classes. What the backbone computes, it computes with
    the same layers and weights, so that losses over features find them by name, and students can be made of it. (A
    `keras_hub.models.TextEmbedder` gives such vectors as well and teaches as it is; its backbone is one layer of it.)

    Args:
        backbone: A functional encoder with the input `padding_mask` and the output `(batch, length, width)`, alone or
            as `sequence_output`: `keras_hub.models.BertBackbone`, `XLMRobertaBackbone` and others.
        pooling: "mean" of all tokens that are no padding, as the E5 models want it; or "first", the vector of the first
            token (`<s>`, `[CLS]`), as BGE-M3 wants it.
        normalize: Whether vectors get the length 1.
        name: Name of the model.

    Returns:
        A functional `keras.Model` from the backbone's inputs to float32 `(batch, width)`.

    Raises:
        TypeError: `backbone` is no `keras.Model`.
        ValueError: It is not functional, or has no such input or output; `pooling` is neither.

    Example:

    >>> import keras_hub
    >>> backbone = keras_hub.models.BertBackbone(50, num_layers=1, num_heads=2, hidden_dim=8, intermediate_dim=16)
    >>> encoder = keras_kd.teachers.sentence_encoder(backbone)
    >>> ids, ones = np.array([[2, 7, 3]]), np.ones((1, 3))
    >>> encoder({"token_ids": ids, "padding_mask": ones, "segment_ids": 0 * ids}).shape
    TensorShape([1, 8])

    Reference:
        [Reimers and Gurevych, 2019](https://arxiv.org/abs/1908.10084)
    """
    require_choice(pooling, "pooling", ("mean", "first"))
    tokens = ops.cast(_tokens(backbone), "float32")  # whatever the backbone computes in
    vector = _mean(tokens, backbone.input[_MASK]) if pooling == "mean" else tokens[:, 0]
    if normalize:
        vector = keras.layers.UnitNormalization(dtype="float32", name="sentence_vector")(vector)
    return keras.Model(backbone.input, vector, name=name)


def _tokens(backbone):
    """The symbolic output `(batch, length, width)`; the argument is checked first."""
    graph = functional_graph(require_model(backbone, "backbone"))
    outputs = None if graph is None else graph.output
    tokens = outputs.get(_SEQUENCE) if isinstance(outputs, dict) else outputs
    if not keras.backend.is_keras_tensor(tokens) or len(tokens.shape) != 3 or _MASK not in input_names(backbone):
        raise ValueError(
            f"backbone must be a functional encoder with the input {_MASK!r} and the output (batch, length, width), "
            f"alone or as {_SEQUENCE!r}, got {backbone.name!r} of type {type(backbone).__name__} with the outputs "
            f"{outputs}."
        )
    return tokens


def _mean(tokens, mask):
    # (batch, length, width), (batch, length) -> (batch, width)
    mask = ops.expand_dims(ops.cast(mask, "float32"), -1)
    return ops.sum(tokens * mask, axis=1) / ops.sum(mask, axis=1)
