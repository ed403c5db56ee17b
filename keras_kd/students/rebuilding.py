"""A functional model made anew with changed layers, and the teacher's weights handed over to it with a table."""

import dataclasses

import keras

from keras_kd._checks import require_teacher
from keras_kd._keras_private import functional_graph, sublayers
from keras_kd.transfer import LayerTransfer, Transfer, transfer_weights


def require_functional(model, argument="teacher"):
    """Return `model` if it is a built functional or sequential model, whose layers can be made anew; else raise."""
    if functional_graph(require_teacher(model, argument)) is None:
        raise ValueError(
            f"{argument} must be a functional or sequential model, got {type(model).__name__} {model.name!r} with a "
            "call of its own, which does not say how its layers are connected. Build it with keras.Input."
        )
    return model


class Rebuilding:
    """Makes a functional model anew, layer by layer, and remembers which new layer stands for which.

    Args:
        edit: A function of a layer or nested model. It returns None to have it made again as it is, a changed config,
            or a new layer in its place.
        dropped: ids of layers that the new model does not have.
        call: A function of a new layer and its call arguments that returns its outputs, where that is no plain call.
        class_of: A function of a layer that gives the class to make it of.
    """

    def __init__(self, edit, dropped=(), call=None, class_of=type):
        self._edit, self._dropped, self._call, self._class_of = edit, frozenset(dropped), call, class_of
        self.made = {}  # id of a layer: the new layer
        self.pairs = []  # (new layer, layer), those with weights and no nested models

    def __call__(self, model):
        """Return the new model: trainable, and with fresh weights."""
        student = self._remade(model)
        student.trainable = True
        return student

    def _remade(self, layer):
        if not isinstance(layer, keras.layers.Layer):
            return layer  # an operation without state, such as x[:, 0]
        if id(layer) not in self.made:
            edited = self._edit(layer)
            if isinstance(edited, keras.layers.Layer):
                self.made[id(layer)] = edited
            elif edited is None and isinstance(layer, keras.Model) and functional_graph(layer) is not None:
                self.made[id(layer)] = self._remade_model(layer)
            else:
                self._pair(layer, self._from_config(layer, layer.get_config() if edited is None else edited))
        return self.made[id(layer)]

    def _remade_model(self, model):
        config = model.get_config()
        if isinstance(config.get("backbone"), dict):  # a task of KerasHub, whose class makes all but the backbone
            config = {**config, "backbone": self._remade(model.backbone), "preprocessor": None}
            return self._pair(model, type(model).from_config(config))
        graph = functional_graph(model)
        call = self._call or (lambda layer, *args, **kwargs: layer(*args, **kwargs))
        return keras.models.clone_model(graph, clone_function=self._remade, call_function=call)

    def _from_config(self, layer, config):
        """A layer again; where it holds another one of the model, as a tied head its embedding, it gets the new one."""
        cls = self._class_of(layer)
        held = {key: self.made[id(vars(layer)[key])] for key in config if id(vars(layer).get(key)) in self.made}
        return cls(**{**config, **held}) if held else cls.from_config(config)

    def _pair(self, layer, new):
        """Remember the new layer, and those inside of it where both are models of one class."""
        self.made[id(layer)] = new
        if not isinstance(layer, keras.Model):
            self.pairs.append((new, layer))
            return new
        kept = [inner for inner in layer.layers if id(inner) not in self._dropped]
        for new_inner, inner in zip(new.layers, kept, strict=True):
            if id(inner) not in self.made:
                self._pair(inner, new_inner)
        return new


def hand_over(teacher, student, pairs, *, values=None):
    """Give the student's layers the teacher's weights; return the `Transfer`.

    Args:
        teacher: The `keras.Model` that the student was made of.
        student: The new `keras.Model`.
        pairs: [(student layer, teacher layer)], as `Rebuilding` remembers them.
        values: A function of a pair whose shapes differ, that gives the student layer's new weights and says in words
            what they are.
    """
    partners = {id(new): (new, old) for new, old in pairs if old.weights}
    whole = {new: old for new, old in partners.values() if _shapes(new) == _shapes(old)}
    parts = {path: partners[id(new)] for path, new in walk(student) if id(new) in partners and new not in whole}
    rows = transfer_weights(teacher, student, layers=whole).rows if whole else [_row(*part) for part in parts.items()]
    teacher_paths = {id(layer): path for path, layer in reversed(list(walk(teacher, inside=True)))}
    table = []
    for row in rows:
        if row.student in parts:
            new, old = parts[row.student]
            arrays, how = values(new, old)
            new.set_weights(arrays)
            row = dataclasses.replace(row, teacher=teacher_paths[id(old)], how=how)
        table.append(row)
    return Transfer(tuple(table), frozen=False)


def _row(path, pair):
    return LayerTransfer(path, type(pair[0]).__name__, pair[0].count_params(), None, "")


def walk(model, prefix="", *, inside=False):
    """`(path, layer)` of the layers of a model and of those in nested models: "encoder/block_0".

    With `inside`, of the layers that other layers hold too.
    """
    for layer in model.layers if isinstance(model, keras.Model) else sublayers(model):
        yield prefix + layer.name, layer
        if inside or isinstance(layer, keras.Model):
            yield from walk(layer, f"{prefix}{layer.name}/", inside=inside)


def _shapes(layer):
    return [tuple(weight.shape) for weight in layer.weights]
