"""One teacher per language, as one model."""

import keras
import tensorflow as tf

from keras_kd._languages import LanguageTable
from keras_kd.outputs.model_inputs import input_specs
from keras_kd.teachers.members import input_structure, like_members, members_of, require_alike, shared_inputs


def route_by_language(teachers, *, language_key="language", default=None):
    """Return one model that sends each example to the teacher of its language.

    The batch is a dict with the language of each example, `x["language"]`. Each teacher runs only on the examples of
    its languages, so that a step costs about as much as one teacher. XLA cannot compile that: `jit_compile` is turned
    off with a warning. Inputs and outputs are as in `ensemble`. Losses cannot read layers inside the teachers, which
    get only some rows of the batch.

    Keras refuses NumPy's string dtype: pass languages as `np.array(["en", "de"], dtype=object)`, `tf.constant`, or in a
    `tf.data.Dataset`.

    Args:
        teachers: A dict of functional or sequential models by language, all str or all int; languages may share one.
            Their outputs have the same shapes.
        language_key: Key of `x` for the language of each example: strings or integers, `(batch,)` or `(batch, 1)`.
        default: A model for all other languages. None: another language raises, before its batch is trained on.

    Returns:
        A functional `keras.Model` that takes a dict of the teachers' inputs and `language_key`, and gives logits.

    Raises:
        TypeError: `teachers` is not a dict of `keras.Model`s by str or by int, or `language_key` not a str.
        ValueError: There is no language; a teacher is not built, or neither functional nor sequential; inputs of one
            name, or outputs, differ.
        tf.errors.InvalidArgumentError: During training, a language without a teacher; ValueError in eager execution.

    Example:

    >>> def always(number):
    ...     bias = keras.initializers.Constant(number)
    ...     layer = keras.layers.Dense(1, kernel_initializer="zeros", bias_initializer=bias)
    ...     return keras.Sequential([keras.Input((2,), name="features"), layer])
    >>> teacher = keras_kd.teachers.route_by_language({"en": always(1.0), "de": always(2.0)}, default=always(3.0))
    >>> x = {"features": tf.zeros((4, 2)), "language": tf.constant(["de", "fr", "en", "de"])}
    >>> teacher(x).numpy().ravel().tolist()
    [2.0, 3.0, 1.0, 2.0]
    """
    if not isinstance(teachers, dict):
        raise TypeError(f"teachers must be a dict of keras.Models by language, got {teachers!r}.")
    if not isinstance(language_key, str):
        raise TypeError(f"language_key must be a str, the key of the languages in x, got {language_key!r}.")
    dtype = LanguageTable(teachers, "teachers").dtype
    arguments = {f"teachers[{language!r}]": model for language, model in teachers.items()}
    arguments |= {} if default is None else {"default": default}
    distinct = {}  # languages may share a model
    for argument, model in arguments.items():
        distinct.setdefault(id(model), (argument, model))
    members = members_of(dict(distinct.values()))
    indices = {key: index for index, key in enumerate(distinct)}
    choices = [[language, indices[id(model)]] for language, model in teachers.items()]

    inputs = shared_inputs(members, {language_key: tf.TensorSpec((None,), dtype)})
    if tf.as_dtype(inputs[language_key].dtype).is_integer != dtype.is_integer:
        raise ValueError(
            f"x[{language_key!r}] must be {dtype.name}, as the keys of teachers are, but a teacher reads it as "
            f"{inputs[language_key].dtype}. Use keys of that dtype, or another language_key."
        )
    read = {name for member in members for name in input_specs(member.model)}
    # The language is an input of the members only if one of them has an input of that name.
    readable = {name: tensor for name, tensor in inputs.items() if name != language_key or language_key in read}
    shapes, endings = require_alike(members, [member(readable) for member in members])
    router = Router(members, choices, indices.get(id(default)), list(map(list, shapes)))
    outputs = router({"languages": inputs[language_key], "inputs": readable})
    return keras.Model(
        input_structure(members, inputs), like_members(members, outputs, endings), name="route_by_language"
    )


@keras.saving.register_keras_serializable(package="keras_kd")
class Router(keras.layers.Layer):
    """Sends each example to the member of its language, and gives a list of the logits of each output, float32.

    `choices` are `[language, index of its member]`, `default` is the index for all other languages or None, `shapes`
    those of the outputs. A batch is `{"languages": (batch,) or (batch, 1), "inputs": {input name: (batch, ...)}}`.
    """

    def __init__(self, members, choices, default, shapes, *, name="router"):
        super().__init__(name=name, dtype="float32", autocast=False)
        self.supports_jit = False  # XLA needs to know the number of a member's examples
        self.members = members
        self.choices = choices
        self.default = default
        self.shapes = shapes
        self.built = True

    def call(self, batch):
        table = LanguageTable([language for language, _ in self.choices], "teachers")
        chosen = table.lookup([index for _, index in self.choices], tf.reshape(batch["languages"], (-1,)), self.default)
        rows = [tf.where(chosen == index)[:, 0] for index in range(len(self.members))]
        logits = [self._logits(*pair, batch["inputs"]) for pair in zip(self.members, rows, strict=True)]
        return [
            tf.ensure_shape(_reordered(rows, parts), shape)
            for parts, shape in zip(zip(*logits, strict=True), self.shapes, strict=True)
        ]

    def _logits(self, member, rows, inputs):
        """The member's logits for its rows, one tensor per output; without rows it does not run."""

        def run():
            return member({name: tf.gather(tensor, rows) for name, tensor in inputs.items()})

        def skip():
            # 1 for unknown sizes: the other members have the real ones.
            return [tf.zeros([0, *(size or 1 for size in shape[1:])]) for shape in self.shapes]

        return tf.cond(tf.size(rows) > 0, run, skip)

    def get_config(self):
        return {
            "members": [keras.saving.serialize_keras_object(member) for member in self.members],
            "choices": self.choices,
            "default": self.default,
            "shapes": self.shapes,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        members = [keras.saving.deserialize_keras_object(m, custom_objects=custom_objects) for m in config["members"]]
        return cls(**{**config, "members": members})


def _reordered(rows, parts):
    """The logits of all members, `(rows of a member, ...)` each, as `(batch, ...)` in the order of the batch."""
    sizes = tf.reduce_max(tf.stack([tf.shape(part)[1:] for part in parts]), axis=0)
    parts = [tf.reshape(part, tf.concat([tf.shape(part)[:1], sizes], axis=0)) for part in parts]
    return tf.dynamic_stitch([tf.cast(member_rows, tf.int32) for member_rows in rows], parts)
