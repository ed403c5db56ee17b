"""Shared by the teachers made of several models: members, common inputs, matching outputs."""

import keras
import tensorflow as tf
from keras import ops

from keras_kd._checks import require_teacher
from keras_kd._keras_private import functional_graph
from keras_kd.outputs.endings import output_activations
from keras_kd.outputs.model_inputs import input_names, input_specs
from keras_kd.outputs.reader import OutputReader, output_names


@keras.saving.register_keras_serializable(package="keras_kd")
class Member(keras.layers.Layer):
    """One of several teachers: reads its inputs by name from a dict, gives a list of logits, float32, one per output.

    Args:
        model: A functional or sequential model. Where it ends in softmax or sigmoid, the logits are those before it.
        name: Name of the layer; models may have the same name.
    """

    def __init__(self, model, *, name):
        super().__init__(name=name, dtype="float32", autocast=False)
        self.model = model
        self.endings = output_activations(model)
        self._reader = OutputReader(model, role="teacher")
        self.built = True

    def call(self, inputs, training=None):
        outputs, logits = self._reader(inputs, training), []
        for i, ending in enumerate(self.endings):
            undo = ending if ending in ("softmax", "sigmoid") else None
            logits += self._reader.select(outputs, i, undo=undo)
        return [ops.cast(tensor, "float32") for tensor in logits]

    def get_config(self):
        return {"name": self.name, "model": keras.saving.serialize_keras_object(self.model)}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        model = keras.saving.deserialize_keras_object(config["model"], custom_objects=custom_objects)
        return cls(model, name=config["name"])


def members_of(models):
    """A `Member` for each of `models`, a dict by the name of the argument, such as "teachers[0]"."""
    if not models:
        raise ValueError("teachers must hold one teacher or more, got none.")
    members = []
    for argument, model in models.items():
        if functional_graph(require_teacher(model, argument)) is None:
            raise ValueError(
                f"{argument} must be functional or sequential, for its inputs to be known by name, got a "
                f"{type(model).__name__}. Wrap it: inputs = keras.Input(shape, name=...); "
                "keras.Model(inputs, teacher(inputs))."
            )
        member = Member(model, name=f"member_{len(members)}")
        over_other_axes = [ending for ending in member.endings if ending.startswith("softmax over")]
        if over_other_axes:
            raise ValueError(
                f"{argument} must have its classes in the last axis, but it ends in {over_other_axes[0]}. Move them "
                "there before the softmax, for instance with keras.layers.Permute."
            )
        members.append(member)
    return members


# Inputs ------------------------------------------------------------------------------------------------------------


def shared_inputs(members, extra=None):
    """The inputs of all members, `{input name: keras.Input}`, and `extra` ones, `{input name: tf.TensorSpec}`."""
    specs = {}
    for member in members:
        for name, spec in input_specs(member.model).items():
            specs[name] = _merged(name, specs.get(name, spec), spec)
    specs = {**(extra or {}), **specs}
    return {name: keras.Input(tuple(spec.shape[1:]), dtype=spec.dtype.name, name=name) for name, spec in specs.items()}


def input_structure(members, inputs):
    """The inputs, `{input name: keras.Input}`, in the members' structure if all have the same; else one or a dict."""
    structures = [input_names(member.model) for member in members]
    alike = all(names == structures[0] for names in structures)
    if alike and set(keras.tree.flatten(structures[0])) == set(inputs):
        return keras.tree.map_structure(lambda name: inputs[name], structures[0])
    return inputs if len(inputs) > 1 else next(iter(inputs.values()))


def _merged(name, spec, other):
    """One spec for an input that two members share; a size is unknown only where it is in both."""
    integers = spec.dtype.is_integer and other.dtype.is_integer
    if not spec.shape.is_compatible_with(other.shape) or not (spec.dtype == other.dtype or integers):
        raise ValueError(
            f"input {name!r} must be the same for all teachers that read it, got {spec.dtype.name} {tuple(spec.shape)} "
            f"and {other.dtype.name} {tuple(other.shape)}. Give one of them an input of another name: "
            "inputs = keras.Input(shape, name=...); keras.Model(inputs, teacher(inputs))."
        )
    dtype = spec.dtype if spec.dtype == other.dtype else tf.int64
    return tf.TensorSpec(spec.shape.merge_with(other.shape), dtype)


# Outputs -----------------------------------------------------------------------------------------------------------


def require_alike(members, outputs):
    """The common shape and the common ending, "sigmoid" or "linear", of each output: two lists.

    Args:
        members: The `Member`s.
        outputs: The symbolic logits of each.
    """
    counts = [len(tensors) for tensors in outputs]
    if len(set(counts)) != 1:
        raise ValueError(
            f"teachers must all have the same number of outputs, got {counts}. Choose outputs: "
            "keras.Model(teacher.input, teacher.output['name'])."
        )
    shapes = [_common_shape(i, [tensors[i].shape for tensors in outputs]) for i in range(counts[0])]
    endings = [_common_ending(i, [member.endings[i] for member in members]) for i in range(counts[0])]
    return shapes, endings


def like_members(members, tensors, endings):
    """Logits as the outputs of the combined model, with the structure, names and endings of the members."""
    model = members[0].model
    structure = functional_graph(model).output
    # A dict names its outputs by its keys, which may also be the names of inputs.
    names = [None] * len(tensors) if isinstance(structure, dict) else output_names(model) or [None] * len(tensors)
    ended = [ending_in(*parts) for parts in zip(endings, tensors, names, strict=True)]
    return keras.tree.pack_sequence_as(structure, ended)


def ending_in(ending, tensor, name=None):
    """The last activation, "sigmoid" or "linear", of logits, in float32."""
    return keras.layers.Activation(ending, dtype="float32", name=name)(tensor)


def _common_shape(position, shapes):
    common = tf.TensorShape(shapes[0])
    for shape in shapes[1:]:
        if not common.is_compatible_with(shape):
            raise ValueError(f"teachers must agree on the shape of output {position}, got {list(map(tuple, shapes))}.")
        common = common.merge_with(shape)
    return tuple(common)


def _common_ending(position, endings):
    if "sigmoid" not in endings:
        return "linear"
    if set(endings) != {"sigmoid"}:
        raise ValueError(
            f"teachers must all end in sigmoid or none of them, but output {position} ends in {endings}: independent "
            "units and mutually exclusive classes have no mean. For teachers that give logits of independent "
            "units: keras.Sequential([teacher, keras.layers.Activation('sigmoid')])."
        )
    return "sigmoid"
