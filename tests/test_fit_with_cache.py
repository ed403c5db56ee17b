"""`fit(cache=folder)`: the first epoch runs the teacher, later ones read what it said, and the numbers are the same."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import crossentropy, dense_model

import keras_kd


class Counting(keras.Model):
    """A teacher that counts its passes."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.passes = tf.Variable(0, trainable=False)
        self.built = True

    def call(self, inputs):
        self.passes.assign_add(1)
        return self.model(inputs)


def distiller_of(teacher, distillation_losses=None):
    keras.utils.set_random_seed(5)
    distiller = keras_kd.Distiller(teacher, dense_model(4, 3), distillation_losses or keras_kd.losses.SoftLabels(2.0))
    distiller.compile(keras.optimizers.Adam(0.01), crossentropy(), metrics=["accuracy"])
    return distiller


def dataset_of(x, y, seed=7):
    return tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(x), seed=seed).batch(8)


def test_the_teacher_runs_once_and_the_numbers_are_those_of_a_live_teacher(data, tmp_path):
    x, y = data
    teacher = Counting(dense_model(16, 3))
    live = distiller_of(teacher)
    of_live = live.fit(dataset_of(x, y), epochs=3, verbose=0).history
    passes = int(teacher.passes)
    cached = distiller_of(teacher)
    cache = {"path": tmp_path / "outputs", "dtype": "float32"}
    of_cached = cached.fit(dataset_of(x, y), epochs=3, cache=cache, verbose=0).history
    assert passes == 15
    assert int(teacher.passes) - passes == 5
    for name, values in of_live.items():
        np.testing.assert_allclose(of_cached[name], values, rtol=1e-5, err_msg=name)
    for a, b in zip(live.get_weights(), cached.get_weights(), strict=True):
        np.testing.assert_allclose(b, a, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"top_k": 2}])
def test_numbers_do_not_depend_on_whether_the_cache_was_there(data, tmp_path, options):
    teacher, histories = dense_model(16, 3), []
    for _ in range(2):
        cache = {"path": tmp_path / "outputs", **options}
        distiller = distiller_of(teacher)
        histories.append(distiller.fit(dataset_of(*data), epochs=2, cache=cache, verbose=0).history)
    assert histories[0] == histories[1]


def test_a_finished_cache_needs_no_teacher(data, tmp_path):
    teacher = dense_model(16, 3)
    distiller_of(teacher).fit(dataset_of(*data), cache=tmp_path / "outputs", verbose=0)
    assert keras_kd.open_teacher_cache(tmp_path / "outputs", teacher=teacher).examples == len(data[0])
    history = distiller_of(None).fit(dataset_of(*data), cache=str(tmp_path / "outputs"), verbose=0).history
    assert np.isfinite(history["soft_labels"])


@pytest.mark.parametrize(
    ("options", "differs"),
    [
        ({"preprocessing": "words"}, "preprocessing"),
        ({"key": "id"}, "key"),
        ({"padding": 1}, "padding"),
        ({"top_k": 1}, "output"),
        ({"sampled": 4}, "output"),
        ({"dtype": "float32"}, "output"),
        ({"dtype": "int8"}, "layer hidden_0"),
    ],
)
def test_a_finished_cache_without_a_teacher_is_compared_with_what_is_asked_for(data, tmp_path, options, differs):
    distillation_losses = [
        keras_kd.losses.SoftLabels(1.0),
        keras_kd.losses.Hint(teacher_layer="hidden_0", student_layer="hidden_0"),
    ]
    stored = {"path": tmp_path / "outputs", "preprocessing": "characters", "shard_bytes": 1000}
    distiller_of(dense_model(16, 3), distillation_losses).fit(dataset_of(*data), cache=stored, verbose=0)
    student = distiller_of(None, distillation_losses)
    student.fit(dataset_of(*data), cache=stored, verbose=0)
    with pytest.raises(ValueError, match=f"of other settings.*\n(.*\n)*.*{differs}"):
        student.fit(dataset_of(*data), cache=stored | options)


def test_hidden_states_that_losses_ask_for_are_kept(data, tmp_path):
    distillation_losses = [
        keras_kd.losses.Hint(teacher_layer="hidden_0", student_layer="hidden_0"),
        keras_kd.losses.SoftLabels(2.0),
    ]
    distiller = distiller_of(dense_model(16, 3), distillation_losses)
    history = distiller.fit(dataset_of(*data), epochs=2, cache=tmp_path / "outputs", verbose=0).history
    assert history["hint"][1] < history["hint"][0]
    assert keras_kd.open_teacher_cache(tmp_path / "outputs").names == ["output", "layer hidden_0"]


def test_fewer_steps_than_the_dataset_has_and_validation(data, tmp_path):
    x, y = data
    teacher = Counting(dense_model(16, 3))
    distiller = distiller_of(teacher)
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    options = {"cache": tmp_path / "outputs", "verbose": 0, "validation_data": (x, y)}
    history = distiller.fit(dataset.repeat(2), epochs=5, steps_per_epoch=2, **options).history
    assert len(history["val_loss"]) == 5
    assert int(teacher.passes) == 5


def test_examples_may_go_by_an_id(data, tmp_path):
    x, y = data
    inputs = {"x": keras.Input((8,), name="x")}
    teacher = keras.Model(inputs, keras.layers.Dense(3)(inputs["x"]))
    student = keras.Model(inputs, keras.layers.Dense(3)(inputs["x"]))
    distiller = keras_kd.Distiller(teacher, student)
    distiller.compile("sgd", crossentropy())
    dataset = tf.data.Dataset.from_tensor_slices(({"x": x, "id": np.arange(len(x))}, y)).batch(8)
    distiller.fit(dataset, epochs=2, cache={"path": tmp_path / "outputs", "key": "id"}, verbose=0)
    assert keras_kd.open_teacher_cache(tmp_path / "outputs").examples == len(x)


def test_another_teacher_is_refused(data, tmp_path):
    distiller_of(dense_model(16, 3)).fit(dataset_of(*data), cache=tmp_path / "outputs", verbose=0)
    with pytest.raises(ValueError, match="another teacher"):
        distiller_of(dense_model(16, 3)).fit(dataset_of(*data), cache=tmp_path / "outputs", verbose=0)


def test_what_does_not_fit_is_refused(data, tmp_path):
    distiller = distiller_of(dense_model(16, 3))
    with pytest.raises(TypeError, match=r"batched tf\.data\.Dataset"):
        distiller.fit(*data, cache=tmp_path / "outputs")
    with pytest.raises(TypeError, match="epochs"):
        distiller.fit(dataset_of(*data), cache={"path": tmp_path / "outputs", "epochs": 3})
    with pytest.raises(FileNotFoundError, match="path"):
        distiller_of(None).fit(dataset_of(*data), cache=tmp_path / "outputs")
    student = dense_model(4, 3)
    itself = keras_kd.Distiller(
        student, student, keras_kd.losses.Hint(teacher_layer="logits", student_layer="hidden_0")
    )
    itself.compile("sgd", crossentropy())
    with pytest.raises(ValueError, match="learns"):
        itself.fit(dataset_of(*data), cache=tmp_path / "outputs")


def test_a_teacher_that_changes_is_refused(data, tmp_path):
    distiller = distiller_of(dense_model(4, 3))
    with pytest.raises(ValueError, match="MeanTeacher changes the teacher"):
        distiller.fit(
            dataset_of(*data), cache=tmp_path / "outputs", callbacks=[keras_kd.teachers.MeanTeacher()], verbose=0
        )
    distiller.fit(dataset_of(*data), callbacks=[keras_kd.teachers.MeanTeacher()], verbose=0)
