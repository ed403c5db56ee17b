"""The models and data that the benchmark runs on; nothing in here belongs to one backend."""

import math
from typing import NamedTuple

import keras
import numpy as np

SPREAD = 3.0  # standard deviation of the teacher's logits: what it says is not flat


class Task(NamedTuple):
    """A teacher, a student of which everyone trains a copy, and the data.

    Attributes:
        teacher, student: `Architecture`, from which PyTorch builds them as well, and `keras.Model` made of it.
        layers: `(layer of the teacher, layer of the student)` of each pair of features that is compared.
        tokens: How many an example has.
        members: The teachers of which the teacher is the mean, by name.
    """

    name: str
    architectures: tuple
    teacher: keras.Model
    student: keras.Model
    layers: tuple
    x: np.ndarray
    y: np.ndarray
    batch: int
    tokens: int = 1
    members: dict | None = None

    @property
    def steps(self):
        """Batches in an epoch."""
        return len(self.x) // self.batch

    def new_student(self):
        """A copy of the student, with its weights."""
        student = keras.models.clone_model(self.student)
        student.set_weights(self.student.get_weights())
        return student

    def first_batch(self):
        return self.x[: self.batch], self.y[: self.batch]

    def dataset(self):
        import tensorflow as tf

        return tf.data.Dataset.from_tensor_slices((self.x, self.y)).batch(self.batch)


class Architecture(NamedTuple):
    """The name of a function of this module, and its arguments."""

    kind: str
    options: dict

    def build(self):
        return {"mlp": mlp, "cnn": cnn, "text": text}[self.kind](**self.options)


# Models. Layers whose features are compared have names; the last one is called logits. --------------------------------


def mlp(*, inputs, widths, classes):
    pixels = x = keras.Input((inputs,), name="pixels")
    for i, width in enumerate(widths, start=1):
        x = keras.layers.Dense(width, "relu", name=f"hidden_{i}")(x)
    return keras.Model(pixels, keras.layers.Dense(classes, name="logits")(x))


def cnn(*, size, channels, depth, classes):
    """Stages of `depth` convolutions with batch normalization, each stage at half the size of the one before."""
    image = x = keras.Input((size, size, 3), name="image")
    for stage, width in enumerate(channels, start=1):
        for i in range(depth):
            stride = 2 if stage > 1 and i == 0 else 1
            padded = keras.layers.ZeroPadding2D(1)(x)  # as PyTorch pads: alike on both sides, whatever the stride
            x = keras.layers.Conv2D(width, 3, strides=stride, use_bias=False)(padded)
            x = keras.layers.BatchNormalization()(x)
            x = keras.layers.Activation("relu", name=f"stage_{stage}" if i == depth - 1 else None)(x)
    return keras.Model(image, keras.layers.Dense(classes, name="logits")(keras.layers.GlobalAveragePooling2D()(x)))


def text(*, length, words, width, blocks, classes, heads=4):
    """A transformer encoder, normalized before each part, with the mean over tokens below the head."""
    ids = keras.Input((length,), dtype="int32", name="ids")
    x = keras.layers.Embedding(words, width)(ids)
    for i in range(1, blocks + 1):
        attended = keras.layers.MultiHeadAttention(heads, width // heads)(*[keras.layers.LayerNormalization()(x)] * 2)
        x = keras.layers.Add()([x, attended])
        hidden = keras.layers.Dense(4 * width, "gelu")(keras.layers.LayerNormalization()(x))
        x = keras.layers.Add(name=f"block_{i}")([x, keras.layers.Dense(width)(hidden)])
    pooled = keras.layers.GlobalAveragePooling1D()(keras.layers.LayerNormalization()(x))
    return keras.Model(ids, keras.layers.Dense(classes, name="logits")(pooled))


def forward_flops(model):
    """Floating point operations of the matrix products of a forward pass of one example, 2 for a multiply and add."""
    return sum(_flops_of(layer) for layer in model.layers)


def _flops_of(layer):
    if isinstance(layer, (keras.layers.Dense, keras.layers.Conv2D)):
        positions = math.prod(layer.output.shape[1:-1])
        return 2 * math.prod(layer.kernel.shape) * positions
    if isinstance(layer, keras.layers.MultiHeadAttention):
        length, width = layer.output.shape[1:]
        projections = sum(math.prod(weight.shape) for weight in layer.weights if weight.name == "kernel")
        return 2 * length * projections + 4 * length**2 * width  # scores, and what they weigh
    return 0


# Tasks ---------------------------------------------------------------------------------------------------------------


def tasks(tiny=False):
    """Each kind of model, with logits only and with the features of two layers beside them, one at a time.

    With logits only the student is far smaller than its teacher. With features it has the width of the teacher, which
    `keras.distillation` asks for, and half its depth or less.
    """
    for make in (mlp_task, cnn_task, text_task):
        for features in (False, True):
            yield make(features, tiny)


def mlp_task(features, tiny=False):
    inputs, width, batch, steps = (12, 32, 4, 2) if tiny else (784, 1024, 256, 50)
    widths = ([width] * 4, [width] * 2) if features else ([width] * 2, [width // 16])
    both = [Architecture("mlp", {"inputs": inputs, "widths": of_one, "classes": 10}) for of_one in widths]
    x = random_numbers((batch * steps, inputs))
    return made("MLP", both, [("hidden_2", "hidden_1"), ("hidden_4", "hidden_2")] if features else [], x, batch)


def cnn_task(features, tiny=False):
    size, channels, batch, steps = (8, [8, 16], 4, 2) if tiny else (32, [32, 64, 128], 64, 8)
    options = {"size": size, "classes": 10}
    teacher = Architecture("cnn", {**options, "channels": channels, "depth": 3})
    narrow = channels if features else [width // 2 for width in channels]
    student = Architecture("cnn", {**options, "channels": narrow, "depth": 1})
    last = [f"stage_{stage}" for stage in (len(channels) - 1, len(channels))]
    layers = list(zip(last, last, strict=True)) if features else []
    return made("CNN", [teacher, student], layers, random_numbers((batch * steps, size, size, 3)), batch)


def text_task(features, tiny=False, *, length=64, classes=1000):
    width, batch, steps = (16, 4, 2) if tiny else (256, 32, 8)
    length, classes = (6, 11) if tiny else (length, classes)
    options = {"length": length, "words": 256, "classes": classes}
    teacher = Architecture("text", {**options, "width": width, "blocks": 4})
    narrow = {"width": width, "blocks": 2} if features else {"width": width // 4, "blocks": 1}
    student = Architecture("text", {**options, **narrow})
    x = np.random.default_rng(0).integers(0, 256, (batch * steps, length)).astype("int32")
    layers = [("block_2", "block_1"), ("block_4", "block_2")] if features else []
    return made("text", [teacher, student], layers, x, batch)._replace(tokens=length)


def made(name, architectures, layers, x, batch):
    """The task of such models on such data, with labels at random."""
    keras.utils.set_random_seed(0)
    teacher, student = (architecture.build() for architecture in architectures)
    head = teacher.get_layer("logits")
    head.kernel.assign(head.kernel * (SPREAD / teacher.predict(x[:batch], verbose=0).std()))
    y = np.random.default_rng(1).integers(0, teacher.output.shape[-1], len(x))
    name = f"{name}, {'two layers' if layers else 'logits'}"
    return Task(name, tuple(architectures), teacher, student, tuple(layers), x, y, batch)


def random_numbers(shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")
