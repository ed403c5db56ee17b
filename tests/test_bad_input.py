"""Each mistake gets an error that names the argument, what was expected, what came and the way out, before training."""

import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import crossentropy, dense_model
from sklearn.linear_model import LogisticRegression

import keras_kd


class Subclassed(keras.Model):
    def __init__(self, units=3):
        super().__init__()
        self.dense = keras.layers.Dense(units)

    def call(self, inputs):
        return self.dense(inputs)


def built(model):
    model(np.zeros((1, 8), "float32"))
    return model


@pytest.mark.parametrize(
    ("teacher", "student", "argument"),
    [(lambda x: x, dense_model(4, 3), "teacher"), (dense_model(4, 3), "student", "student")],
)
def test_models_must_be_keras_models(teacher, student, argument):
    with pytest.raises(TypeError, match=f"{argument} must be a keras.Model, got (function|str)"):
        keras_kd.Distiller(teacher, student)


class TorchModule:
    """Looks like one to who asks for its package."""

    __module__ = "torch.nn.modules.module"


NOT_TEACHERS = {
    "keras file": (pathlib.Path("bert.keras"), r"keras\.saving\.load_model"),
    "h5 file": (pathlib.Path("bert.h5"), r"keras\.saving\.load_model"),
    "weights": (pathlib.Path("bert.weights.h5"), r"model\.load_weights"),
    "folder": (pathlib.Path("runs/bert"), r"keras_kd\.teachers\.from_saved_model"),
    "list": ([dense_model(3), dense_model(3)], r"keras_kd\.teachers\.ensemble.*keras_kd\.teachers\.multi_output"),
    "tuple": ((dense_model(3), dense_model(3)), r"keras_kd\.teachers\.ensemble.*keras_kd\.teachers\.multi_output"),
    "dict": ({"en": dense_model(3)}, r"keras_kd\.teachers\.route_by_language.*keras_kd\.teachers\.multi_output"),
    "function": (lambda x: x, r"keras_kd\.teachers\.from_function\(function"),
    "scikit-learn": (LogisticRegression(), r"keras_kd\.teachers\.from_function\(model\.predict_proba"),
    "torch": (TorchModule(), r'keras_kd\.teachers\.from_function\(lambda x: model\(torch.*gives="logits"'),
    "loaded SavedModel": (tf.Module(), r"keras_kd\.teachers\.from_saved_model"),
    "class": (Subclassed, r"pass a model made with it, Subclassed\("),
    "layer": (keras.layers.Dense(3), r"keras\.Sequential\(\[keras\.Input"),
    "number": (3, r"keras_kd\.teachers makes teachers"),
}


EVERYWHERE = [("list", use) for use in ("assigned", "cache", "fit(cache=)", "cast", "tune")]


@pytest.mark.parametrize(("kind", "use"), [*((kind, "Distiller") for kind in NOT_TEACHERS), *EVERYWHERE])
def test_what_is_no_teacher_is_answered_with_the_function_that_makes_one(kind, use, tmp_path, data):
    value, way_out = NOT_TEACHERS[kind]
    batches = tf.data.Dataset.from_tensor_slices(data[0]).batch(8)
    student = dense_model(4, 3)
    uses = {
        "Distiller": lambda: keras_kd.Distiller(value, student),
        "assigned": lambda: setattr(compiled(), "teacher", value),
        "cache": lambda: keras_kd.cache_teacher_outputs(value, batches, tmp_path / "cache"),
        "fit(cache=)": lambda: keras_kd.Distiller(value, student).fit(batches, cache=tmp_path / "cache"),
        "cast": lambda: keras_kd.teachers.cast(value, "bfloat16"),
        "tune": lambda: keras_kd.tune(
            value, lambda: student, *data, search={"soft_weight": [1.0]}, goal="val_loss", directory=tmp_path / "tune"
        ),
    }
    with pytest.raises(TypeError, match=rf"(?s)^teacher must be a keras\.Model, got .*{way_out}"):
        uses[use]()
    assert not list(tmp_path.iterdir())


def test_a_path_may_be_a_str():
    with pytest.raises(TypeError, match=r"got str: 'runs/bert'.*keras_kd\.teachers\.from_saved_model"):
        keras_kd.Distiller("runs/bert", dense_model(4, 3))


def test_an_unbuilt_teacher_is_refused():
    with pytest.raises(ValueError, match=r"teacher .* is not built, so it holds no trained weights. Call it once"):
        keras_kd.Distiller(Subclassed(), dense_model(4, 3))


def test_an_unbuilt_student_that_cannot_be_built_is_refused():
    with pytest.raises(ValueError, match=r"student .* is not built, .* the teacher, a Subclassed, shows none. Give"):
        keras_kd.Distiller(built(Subclassed()), Subclassed())
    with pytest.raises(ValueError, match=r"could not be built for the teacher's input \(None, 8\)"):
        keras_kd.Distiller(dense_model(4, 3), keras.Sequential([keras.layers.Conv2D(4, 3), keras.layers.Dense(3)]))


def test_class_counts_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"same number of classes.*\(None, 5\).*\(None, 3\)"):
        keras_kd.Distiller(dense_model(4, 5), dense_model(4, 3))


def test_class_counts_of_subclassed_models_are_checked_before_anything_is_learnt(data):
    student = built(Subclassed())
    distiller = keras_kd.Distiller(built(Subclassed(5)), student)
    distiller.compile("sgd", crossentropy())
    weights = student.get_weights()
    with pytest.raises(ValueError, match="same number of classes"):
        distiller.fit(*data, verbose=0)
    np.testing.assert_array_equal(student.get_weights()[0], weights[0])


@pytest.mark.parametrize(("side", "names"), [("teacher", ("nobody", "hidden_0")), ("student", ("hidden_0", "nobody"))])
def test_unknown_layers_are_refused_and_the_known_ones_listed(side, names):
    with pytest.raises(ValueError, match=rf"{side}_layer='nobody' is not a layer .* \['hidden_0', 'logits'\]"):
        keras_kd.Distiller(dense_model(4, 3), dense_model(4, 3), keras_kd.losses.Hint(*names))


def test_unknown_layers_of_a_subclassed_model_are_refused():
    with pytest.raises(
        ValueError, match=r"teacher_layer='nobody' is not a layer of the teacher; its layers are \['dense'"
    ):
        keras_kd.Distiller(built(Subclassed()), dense_model(4, 3), keras_kd.losses.Hint("nobody", "hidden_0"))


def test_a_layer_that_is_used_twice_is_refused():
    inputs, shared = keras.Input((8,)), keras.layers.Dense(8, name="shared")
    teacher = keras.Model(inputs, keras.layers.Dense(3)(shared(shared(inputs))))
    with pytest.raises(ValueError, match=r"'shared' is called 2 times in the teacher\. Name one that is called once"):
        keras_kd.Distiller(teacher, dense_model(4, 3), keras_kd.losses.Hint("shared", "hidden_0"))


@pytest.mark.parametrize("argument", ["soft_weight", "hard_weight"])
@pytest.mark.parametrize(("value", "error"), [(-1.0, ValueError), (float("nan"), ValueError), ("1", TypeError)])
def test_weights_must_be_numbers_that_are_not_negative(argument, value, error):
    with pytest.raises(error, match=f"{argument} must be >= 0.*got {value!r}"):
        keras_kd.Distiller(dense_model(4, 3), dense_model(4, 3), **{argument: value})


@pytest.mark.parametrize(
    ("distillation_losses", "error", "message"),
    [
        (
            "soft_labels",
            TypeError,
            r"losses must be a keras_kd.losses.DistillationLoss, a keras.losses.Loss or a list of them, got str",
        ),
        ([], ValueError, r"losses must be at least one"),
        ([keras_kd.losses.SoftLabels(), keras_kd.losses.SoftLabels()], ValueError, r"each with its own name.*name="),
        (keras_kd.losses.SoftLabels(name="loss"), ValueError, r"each with its own name.*hold 'loss' twice"),
        (keras_kd.losses.SoftLabels(name="soft"), ValueError, r"each with its own name.*hold 'soft_weight' twice"),
        (
            keras_kd.losses.SoftLabels(reduction="none"),
            ValueError,
            r"\['soft_labels'\] have reduction=None. Use 'sum_over",
        ),
    ],
)
def test_losses_must_be_losses_with_names_of_their_own(distillation_losses, error, message):
    """Also where a name would hide what else stands in the logs: the loss, or λ (`soft_weight`)."""
    with pytest.raises(error, match=message):
        keras_kd.Distiller(dense_model(4, 3), dense_model(4, 3), distillation_losses)


def test_sigmoid_endings_are_refused():
    message = r"soft_labels compares distributions over classes, but the teacher ends in sigm"
    for student in (dense_model(4, 3), built(Subclassed())):
        with pytest.raises(ValueError, match=message):
            keras_kd.Distiller(dense_model(4, 3, last="sigmoid"), student)


@pytest.mark.parametrize("softmax", [keras.layers.Softmax(axis=1), lambda logits: keras.ops.softmax(logits, axis=1)])
def test_a_softmax_over_another_axis_is_refused(softmax):
    inputs = keras.Input((4, 3))
    teacher = keras.Model(inputs, softmax(keras.layers.Dense(3)(inputs)))
    student = keras.Model(inputs, keras.layers.Dense(3)(inputs))
    with pytest.raises(
        ValueError, match=r"over the last axis, but the teacher ends in softmax over axis 1. Move the cl"
    ):
        keras_kd.Distiller(teacher, student)


def test_a_model_that_would_imitate_itself_is_refused():
    with pytest.raises(ValueError, match=r"one model, and soft_labels compares each of its outputs with itself.*clone"):
        keras_kd.Distiller(model := dense_model(4, 3), model)


def test_a_teacher_that_the_student_would_train_is_refused(data):
    """One that shares layers with the student; shared layers that are frozen leave the teacher as it is."""
    teacher = dense_model(4, 3)
    student = keras.Model(teacher.inputs, keras.layers.Dense(3)(teacher.layers[0].output))
    distiller = keras_kd.Distiller(teacher, student)
    distiller.compile("sgd", crossentropy())
    with pytest.raises(ValueError, match=r"teacher and student share 2 trainable weights .*hidden_0/kernel"):
        distiller.fit(*data, verbose=0)
    teacher.layers[0].trainable = False
    weights = teacher.get_weights()
    distiller = keras_kd.Distiller(teacher, student)
    distiller.compile("sgd", crossentropy())
    distiller.fit(*data, verbose=0)
    for before, after in zip(weights, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


def test_a_missing_teacher_is_refused_and_can_still_be_handed_in(data):
    """Also one that brings a projection, whose weights the optimizer has to know."""
    distiller = keras_kd.Distiller(None, dense_model(6, 3), keras_kd.losses.Hint("hidden_0", "hidden_0"))
    distiller.compile("adam", crossentropy())
    assert distiller.evaluate(*data, verbose=0) > 0
    with pytest.raises(ValueError, match=r"the distiller has no teacher. Assign it before fit, distiller.teacher = te"):
        distiller.fit(*data, verbose=0)
    distiller.teacher = dense_model(9, 3)
    assert np.isfinite(distiller.fit(*data, verbose=0).history["hint"][0])


def test_an_unknown_output_is_refused():
    inputs = keras.Input((8,))
    heads = {"topic": keras.layers.Dense(3)(inputs), "tone": keras.layers.Dense(3)(inputs)}
    model = keras.Model(inputs, heads)
    with pytest.raises(ValueError, match=r"output='style' is not an output of the teacher; it has \['tone', 'topic'\]"):
        keras_kd.Distiller(model, keras.models.clone_model(model), keras_kd.losses.SoftLabels(output="style"))


def test_different_numbers_of_outputs_are_refused():
    inputs = keras.Input((8,))
    teacher = keras.Model(inputs, [keras.layers.Dense(3)(inputs), keras.layers.Dense(3)(inputs)])
    with pytest.raises(ValueError, match=r"the teacher has 2 and the student 1. Name one with output="):
        keras_kd.Distiller(teacher, dense_model(4, 3))


def compiled(**options):
    distiller = keras_kd.Distiller(dense_model(4, 3), dense_model(4, 3))
    distiller.compile("adam", crossentropy(), **options)
    return distiller


@pytest.mark.parametrize(
    ("options", "value"),
    [
        ({}, np.inf),
        ({"jit_compile": True}, np.nan),
        ({"run_eagerly": True}, np.nan),
        ({"jit_compile": True, "steps_per_execution": 5}, np.nan),
    ],
)
def test_a_teacher_that_gives_nan_or_inf_stops_at_the_batch_and_nothing_is_learnt_from_it(data, value, options):
    """Batches of 8; the fourth, number 3, holds the example on which the teacher fails and the student does not.

    Neither weights, which momentum and decay move without a gradient, nor BatchNorm statistics follow that example.
    """

    class FailsOnLargeValues(keras.layers.Layer):
        def call(self, inputs):
            return keras.ops.where(inputs > 90.0, value, inputs)

    x, y = data
    x = x.copy()
    x[25, 0] = 100.0
    inputs = keras.Input((8,))
    teacher = keras.Model(inputs, keras.layers.Dense(3)(FailsOnLargeValues()(inputs)))

    def student_after(rows, **options):
        keras.utils.set_random_seed(2)
        student = keras.Sequential([keras.Input((8,)), keras.layers.BatchNormalization(), keras.layers.Dense(3)])
        distiller = keras_kd.Distiller(teacher, student)
        distiller.compile(keras.optimizers.AdamW(0.1, weight_decay=0.1), crossentropy(), **options)
        if rows == 24:
            distiller.fit(x[:24], y[:24], batch_size=8, shuffle=False, verbose=0)
            return distiller.student
        with pytest.raises(ValueError, match=r"teacher's output holds NaN or infinite values in training batch 3 "):
            distiller.fit(x, y, batch_size=8, shuffle=False, verbose=0)
        return distiller.student

    stopped, before = student_after(37, **options), student_after(24)
    for ours, expected in zip(stopped.get_weights(), before.get_weights(), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-6)


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_labels_out_of_range_are_refused_before_training(data, shape):
    x, y = data
    distiller = compiled()
    weights = distiller.student.get_weights()
    with pytest.raises(ValueError, match=r"y holds labels outside the student's 3 classes: \[-1, 7\].*ignore_class=-1"):
        distiller.fit(x, np.where(y == 0, 7, np.where(y == 1, -1, y)).reshape(shape), verbose=0)
    for before, after in zip(weights, distiller.student.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({}, tf.Tensor),
        ({"jit_compile": True}, tf.data.Dataset),
        ({"run_eagerly": True}, tf.data.Dataset),
        ({"steps_per_execution": 3}, tf.data.Dataset),
    ],
)
def test_labels_out_of_range_in_a_batch_stop_there_and_train_no_weight(data, options, kind):
    """Batches of 8; the third, number 2, holds label 7."""
    x, y = data[0], np.where(np.arange(37) == 20, 7, data[1])[:, None]

    def fit(rows):
        keras.utils.set_random_seed(2)
        distiller = compiled(**options)
        if kind is tf.Tensor:
            arguments, more = (tf.constant(x[:rows]), tf.constant(y[:rows])), {"batch_size": 8, "shuffle": False}
        else:
            arguments, more = (tf.data.Dataset.from_tensor_slices((x[:rows], y[:rows])).batch(8),), {}
        if rows == 37:
            with pytest.raises(ValueError, match=r"y holds a label outside the student's classes in training batch 2 "):
                distiller.fit(*arguments, **more, verbose=0)
        else:
            distiller.fit(*arguments, **more, verbose=0)
        return distiller.student.get_weights()

    for stopped, before in zip(fit(rows=37), fit(rows=16), strict=True):
        np.testing.assert_allclose(stopped, before, atol=1e-6)


@pytest.mark.parametrize("structure", [dict, list])
def test_labels_out_of_range_of_one_output_are_refused(data, structure):
    x, y = data
    inputs = keras.Input((8,))
    heads = {"a": keras.layers.Dense(3, name="a")(inputs), "b": keras.layers.Dense(9, name="b")(inputs)}
    outputs, wrong = (heads, {"a": y + 6, "b": y}) if structure is dict else (list(heads.values()), [y + 6, y])
    distiller = keras_kd.Distiller(keras.models.clone_model(keras.Model(inputs, outputs)), keras.Model(inputs, outputs))
    distiller.compile("sgd", {"a": crossentropy(), "b": crossentropy()})
    with pytest.raises(ValueError, match=r"y holds labels outside the student's 3 classes: \[6, 7, 8\]"):
        distiller.fit(x, wrong, verbose=0)
    labels = wrong if structure is dict else tuple(wrong)
    with pytest.raises(ValueError, match=r"y holds a label outside the student's classes in training batch 0 "):
        distiller.fit(tf.data.Dataset.from_tensor_slices((x, labels)).batch(8), verbose=0)


@pytest.mark.parametrize(
    "empty",
    [
        lambda x, y: (x[:0], y[:0]),
        lambda x, y: (tf.data.Dataset.from_tensor_slices((x[:0], y[:0])).batch(8),),
        lambda x, y: (tf.data.Dataset.from_tensor_slices((x, y)).filter(lambda x, y: False).batch(8),),
    ],
    ids=["arrays", "dataset", "filtered dataset"],
)
@pytest.mark.parametrize("method", ["fit", "evaluate"])
def test_an_empty_dataset_is_refused(data, empty, method):
    with pytest.raises(ValueError, match=r"x is an empty dataset"):
        getattr(compiled(), method)(*empty(*data), verbose=0)


# Arguments of fit that Keras would drop or misread ------------------------------------------------------------------


def ready(loss=None, **compiled):
    distiller = keras_kd.Distiller(dense_model(6, 3), dense_model(4, 3))
    distiller.compile("sgd", crossentropy() if loss is None else loss, **compiled)
    return distiller


@pytest.mark.parametrize("method", ["fit", "evaluate", "train_on_batch", "test_on_batch"])
@pytest.mark.parametrize("weights", ["sample_weight", "class_weight"])
def test_weights_without_labels_are_refused(data, method, weights):
    if weights == "class_weight" and method in ("evaluate", "test_on_batch"):
        pytest.skip("takes no class weights")
    value = np.ones(len(data[0])) if weights == "sample_weight" else {0: 1.0}
    with pytest.raises(ValueError, match=rf"{weights} needs y, got y=None.*compiled with loss=None"):
        getattr(ready(), method)(data[0], **{weights: value})


def test_the_way_out_weighs_unlabelled_examples(data):
    x, y = data
    weight = np.where(np.arange(len(x)) < 5, 2.0, 0.0).astype("float32")
    distiller = keras_kd.Distiller(dense_model(6, 3), dense_model(4, 3))
    distiller.compile(keras.optimizers.SGD(0.0), None)
    weighted = distiller.fit(x, y, sample_weight=weight, batch_size=64, verbose=0).history["soft_labels"][0]
    first = distiller.fit(x[:5], y[:5], verbose=0).history["soft_labels"][0]
    assert weighted == pytest.approx(first * 2.0 * 5 / len(x), rel=1e-5)


@pytest.mark.parametrize("method", ["fit", "evaluate"])
@pytest.mark.parametrize(
    "make", [lambda x, y: [(x, y), (x, y)], lambda x, y: [(x, y)], lambda x, y: [x, y], lambda x, y: ((x, y),)]
)
def test_a_list_of_batches_is_refused(data, method, make):
    with pytest.raises(ValueError, match=r"x must hold an array for each of the student's 1 inputs.*tf.data.Dataset"):
        getattr(ready(), method)(make(*data))


def test_lists_of_inputs_are_taken(data):
    x, y = data
    inputs = [keras.Input((8,)), keras.Input((8,))]
    models = [keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Add()(inputs))) for _ in range(2)]
    distiller = keras_kd.Distiller(*models)
    distiller.compile("sgd", crossentropy())
    distiller.fit([x, x], y, verbose=0)
    ready().fit([x], y, verbose=0)


@pytest.mark.parametrize(
    "labels",
    [
        lambda y: np.array(["cat"] * len(y)),
        lambda y: np.array([None] * len(y)),
        lambda y: np.array([b"cat"] * len(y)),
        lambda y: np.array(["cat", *y[1:]], dtype=object),
    ],
)
def test_labels_that_are_no_numbers_are_refused(data, labels):
    x, y = data
    for method in ("fit", "evaluate", "train_on_batch"):
        with pytest.raises(TypeError, match=r"y must hold numbers, got .*StringLookup"):
            getattr(ready(), method)(x, labels(y))


def test_labels_of_a_dataset_that_are_no_numbers_are_refused(data):
    x, y = data
    dataset = tf.data.Dataset.from_tensor_slices((x, np.array(["cat"] * len(y)))).batch(8)
    with pytest.raises(TypeError, match=r"y must hold numbers, got .*string"):
        ready().fit(dataset)


@pytest.mark.parametrize("wrong", [0.5, np.nan, 3, -1])
def test_labels_that_are_no_classes_are_refused(data, wrong):
    x, y = data
    labels = y.astype("float32")
    labels[3] = wrong
    with pytest.raises(ValueError, match="y holds labels outside the student's 3 classes"):
        ready().fit(x, labels)


@pytest.mark.parametrize("path", ["m.h5", "m.hdf5"])
def test_hdf5_files_are_refused_before_training(data, tmp_path, path):
    distiller = ready()
    with pytest.raises(ValueError, match=rf"filepath must end in \.keras, got .*{path}"):
        distiller.save(tmp_path / path)
    before = distiller.get_weights()
    if path == "m.h5":  # Keras's callback refuses the other itself
        with pytest.raises(ValueError, match=r"filepath must end in \.keras, got .*m\.h5"):
            distiller.fit(*data, callbacks=[keras.callbacks.ModelCheckpoint(tmp_path / path)])
    for one, other in zip(before, distiller.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    weights = keras.callbacks.ModelCheckpoint(tmp_path / "m.weights.h5", save_weights_only=True)
    distiller.fit(*data, verbose=0, callbacks=[weights])


@pytest.mark.parametrize(("name", "damage"), [("d.keras", "cut"), ("d.keras", "flipped"), ("d.weights.h5", "cut")])
def test_a_damaged_file_is_named(data, tmp_path, name, damage):
    path = tmp_path / name
    distiller = ready()
    distiller.save(path) if name == "d.keras" else distiller.save_weights(path)
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    else:
        content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}' is damaged.*Save it again, or restore an earlier copy"):
        keras_kd.load_distiller(path) if name == "d.keras" else distiller.load_weights(path)


@pytest.mark.parametrize("where", ["metrics", "weighted_metrics"])
@pytest.mark.parametrize(
    ("loss", "metric"),
    [
        (lambda: keras_kd.losses.SoftLabels(name="accuracy"), "accuracy"),
        (lambda: keras_kd.losses.SoftLabels(), keras.metrics.Mean(name="soft_labels")),
        (lambda: keras_kd.losses.SoftLabels(), keras.metrics.SparseCategoricalAccuracy(name="hard_loss")),
        (lambda: keras_kd.losses.SoftLabels(), keras.metrics.SparseCategoricalAccuracy(name="soft_weight")),
        (lambda: keras_kd.losses.SoftLabels(name="logits_accuracy"), "accuracy"),
    ],
)
def test_a_metric_with_the_name_of_a_loss_is_refused(loss, metric, where):
    distiller = keras_kd.Distiller(dense_model(6, 3), dense_model(4, 3), loss())
    with pytest.raises(ValueError, match=r"metrics has one called .* under which the distiller already logs"):
        distiller.compile("sgd", crossentropy(), **{where: [metric]})
