"""The student as it is called once it has shipped: text goes in, a label and its probability come out."""

import keras
import tensorflow as tf

from keras_kd._checks import require_model, require_tensorflow
from keras_kd._keras_private import functional_graph
from keras_kd.outputs.endings import ending_kind, logits_of, output_activations
from keras_kd.outputs.model_inputs import input_names, input_specs

TEXT = "text"  # the name of the input
LABEL, PROBABILITIES, LOGITS = ANSWERS = "label", "probabilities", "logits"  # the names of the outputs
_SAMPLE = ["a", "b c"]


def end_to_end_model(student, tokenizer=None, labels=None):
    """Return one model from text to answer: the tokenizer before the student, the labels after it.

    The student's layers and weights are shared, not copied. `keras_kd.export` with the same arguments writes this
    model.

    Args:
        student: A functional or sequential `keras.Model`.
        tokenizer: What turns strings, `(batch,)`, into the student's inputs: a layer of `keras_kd.text`, a KerasHub
            preprocessor, or any function of TensorFlow. Of a dict that it returns, the entries named after the
            student's inputs are used. None: the inputs stay the student's own.
        labels: One str for each class, in the order of the student's outputs. None: the outputs stay the student's own.

    Returns:
        A functional `keras.Model`. With a tokenizer, its input is `"text"`: strings, `(batch,)`. With labels, its
        outputs are a dict: `"label"`, strings, `(batch,)`; `"probabilities"` and `"logits"`, float32,
        `(batch, classes)`. Of a student that ends in a softmax, the logits are its log-probabilities.

    Raises:
        TypeError: `student` is no `keras.Model`, `tokenizer` cannot be called, or `labels` are no strings.
        ValueError: A subclassed student; a tokenizer that does not give what the student takes; labels that are not
            one for each class, or occur twice, or a student that does not end in logits or a softmax.

    Example:

    >>> encoder = keras_kd.text.CharacterEncoder("abc", length=4)
    >>> student = keras.Sequential([keras.Input((4,), dtype="int32"), keras.layers.Embedding(5, 8),
    ...     keras.layers.GlobalAveragePooling1D(), keras.layers.Dense(2)])
    >>> model = keras_kd.deploy.end_to_end_model(student, encoder, labels=["no", "yes"])
    >>> model(tf.constant(["abc", "ccc"]))["label"].numpy().shape
    (2,)
    """
    require_tensorflow("end_to_end_model")
    require_model(student, "student")
    graph = functional_graph(student)
    if graph is None:
        raise ValueError(
            "student must be functional or sequential to get a tokenizer or labels: a subclassed model does not tell "
            "its inputs and outputs. keras.Model(inputs, student(inputs)) makes it functional."
        )
    inputs, outputs = graph.input, graph.output
    if tokenizer is not None:
        inputs = keras.Input((), dtype="string", name=TEXT)
        encoded = _Tokenization(tokenizer, _checked_inputs(student, tokenizer))(inputs)
        outputs = keras.Model(graph.inputs, outputs, name=student.name)(encoded)
    if labels is not None:
        outputs = _Answers(_checked_labels(student, labels), *output_activations(student))(outputs)
    return keras.Model(inputs, outputs, name=student.name)


@keras.saving.register_keras_serializable(package="keras_kd")
class _Tokenization(keras.layers.Layer):
    """Calls a tokenizer: strings, (batch,), to a list of what the student takes.

    `inputs` is a list of (name, shape without the batch, dtype).
    """

    def __init__(self, tokenizer, inputs, *, name="tokenization"):
        super().__init__(trainable=False, name=name)
        self.tokenizer = tokenizer
        self.inputs = [(name, tuple(shape), dtype) for name, shape, dtype in inputs]
        self.built = True

    def call(self, text):
        encoded = _by_name(self.tokenizer(text), [name for name, *_ in self.inputs])
        return [tf.cast(encoded[name], dtype) for name, _, dtype in self.inputs]

    def compute_output_spec(self, text):
        return [keras.KerasTensor((text.shape[0], *shape), dtype) for _, shape, dtype in self.inputs]

    def get_config(self):
        tokenizer = keras.saving.serialize_keras_object(self.tokenizer)
        return {"name": self.name, "tokenizer": tokenizer, "inputs": self.inputs}

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "tokenizer": keras.saving.deserialize_keras_object(config["tokenizer"])})


@keras.saving.register_keras_serializable(package="keras_kd")
class _Answers(keras.layers.Layer):
    """From the outputs of a classifier, whose last activation is given, to label, probabilities and logits."""

    def __init__(self, labels, activation, *, name="answers"):
        super().__init__(trainable=False, name=name, dtype="float32")
        self.labels = list(labels)
        self.activation = activation
        self.built = True

    def call(self, outputs):
        is_softmax = ending_kind(self.activation) == "probabilities"
        logits = logits_of(outputs, self.activation) if is_softmax else outputs
        label = tf.gather(tf.constant(self.labels), tf.argmax(outputs, axis=-1))
        probabilities = outputs if is_softmax else tf.nn.softmax(outputs)
        return {LABEL: label, PROBABILITIES: probabilities, LOGITS: logits}

    def compute_output_spec(self, outputs):
        return {
            LABEL: keras.KerasTensor(outputs.shape[:1], "string"),
            PROBABILITIES: keras.KerasTensor(outputs.shape, "float32"),
            LOGITS: keras.KerasTensor(outputs.shape, "float32"),
        }

    def get_config(self):
        return {"name": self.name, "labels": self.labels, "activation": self.activation}


def _by_name(encoded, names):
    """What a tokenizer returned as {name: tensor}; a single tensor goes to the student's only input."""
    return encoded if isinstance(encoded, dict) else {names[0]: encoded}


def _checked_inputs(student, tokenizer):
    """(name, shape without the batch, dtype) of each input of the student, which the tokenizer was seen to give."""
    if not callable(tokenizer):
        raise TypeError(
            f"tokenizer must be a layer or function from strings to the student's inputs, got "
            f"{type(tokenizer).__name__}. A SentencePiece model goes into keras_kd.text.SentencePieceEncoder."
        )
    encoded, specs = tokenizer(tf.constant(_SAMPLE)), input_specs(student)
    if not isinstance(encoded, dict) and len(specs) > 1:
        raise ValueError(f"tokenizer must give a dict with the student's inputs, {sorted(specs)}, got one tensor.")
    names = keras.tree.flatten(input_names(student))
    encoded = _by_name(encoded, names)
    missing = sorted(set(specs) - set(encoded))
    if missing:
        raise ValueError(
            f"tokenizer must give the student's inputs, {sorted(specs)}; it gives {sorted(encoded)}, without "
            f"{missing}. Give the encoder the options that add them, or name the student's inputs after its entries."
        )
    for name, spec in specs.items():
        expected, came = spec.shape, getattr(encoded[name], "shape", None)
        if not isinstance(encoded[name], tf.Tensor) or not expected[1:].is_compatible_with(came[1:]):
            kind = f"shape {came}" if isinstance(encoded[name], tf.Tensor) else type(encoded[name]).__name__
            raise ValueError(
                f"tokenizer must give {name!r} of the shape {tuple(expected)} for the student, got {kind}. Make "
                "tokenizer and student with one length."
            )
    return [(name, tuple(specs[name].shape[1:]), specs[name].dtype.name) for name in names]


def _checked_labels(student, labels):
    labels = [labels] if isinstance(labels, str) else list(labels)
    if not all(isinstance(label, str) for label in labels):
        raise TypeError(f"labels must be a list of str, one for each class, got {labels!r:.200}.")
    shapes = [tuple(tensor.shape) for tensor in keras.tree.flatten(functional_graph(student).output)]
    if len(shapes) != 1 or len(shapes[0]) != 2 or shapes[0][1] == 1:
        raise ValueError(
            f"labels need a student with one output of the shape (batch, classes), two classes or more, got {shapes}. "
            "Leave labels out, or export keras.Model(student.inputs, <the output of the classes>)."
        )
    if len(labels) != shapes[0][1] or len(set(labels)) != len(labels):
        raise ValueError(
            f"labels must be {shapes[0][1]} different strings, one for each class of the student, got {len(labels)}: "
            f"{labels!r:.200}."
        )
    (activation,) = output_activations(student)
    if activation not in ("linear", "softmax"):
        raise ValueError(
            f"labels need a student that ends in logits (a Dense layer without activation) or in a softmax, got one "
            f"that ends in {activation!r}."
        )
    return labels
