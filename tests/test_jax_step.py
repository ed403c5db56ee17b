"""The step on the JAX backend: the same losses and weights as on TensorFlow, and the same guards.

A Keras backend is chosen once a process, so all cases run in one process for each backend, which is this file as a
program; the tests compare what the two have written. To run them: `pip install jax`, then
`pytest tests/test_jax_step.py`.
"""

import functools
import importlib.util
import os
import subprocess
import sys
import traceback

import keras
import numpy as np
import pytest
import tensorflow as tf

if __name__ != "__main__" and importlib.util.find_spec("jax") is None:
    pytest.skip("jax is not installed: pip install jax", allow_module_level=True)

from conftest import crossentropy, dense_model

import keras_kd
from keras_kd.outputs.precomputed import PrecomputedBatch
from keras_kd.outputs.top_classes import TopClasses

ALIKE, ON_JAX = {}, {}  # the cases by name: those that both backends run, and those of JAX alone


def case(cases):
    """Put a function under its name; the arrays that it returns, in a dict, are what the tests see."""

    def put(function):
        cases[function.__name__] = function
        return function

    return put


# What the cases share ---------------------------------------------------------------------------------------------


def examples(count=37, classes=3):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, 8)).astype("float32")
    return x, (x @ rng.normal(size=(8, classes))).argmax(axis=-1)


def filled(layer, seed=0, scale=0.4):
    """A layer or model with weights that are the same on both backends; all but 0 for the statistics of BatchNorm."""
    rng = np.random.default_rng(seed)
    for variable in layer.weights:
        values = rng.normal(size=variable.shape) * scale
        variable.assign(np.exp(values) if "moving" in variable.path else values)
    return layer


def distiller_of(teacher, student, *args, optimizer=None, loss=None, metrics=None, fit=None, **options):
    distiller = keras_kd.Distiller(filled(teacher, 1), filled(student, 2), *args, **options)
    for projection in distiller.projections.values():
        filled(projection, 3)
    optimizer = optimizer or keras.optimizers.SGD(0.1, momentum=0.5)
    distiller.compile(optimizer, loss or crossentropy(), metrics=metrics, **(fit or {}))
    return distiller


def trained(distiller, *data, epochs=3, **options):
    """The logs of a training, the weights behind it, and whether the teacher is as it was."""
    teacher = distiller.teacher
    before = [] if teacher is None else teacher.get_weights()
    batch_size = None if isinstance(data[0], tf.data.Dataset) else 16
    logs = distiller.fit(
        *data, epochs=epochs, batch_size=batch_size, shuffle=batch_size is None, verbose=0, **options
    ).history
    if teacher is not None and teacher is not distiller.student:
        np.testing.assert_array_equal(flat(before), flat(teacher.get_weights()))
    weights = [flat(model.get_weights()) for model in (distiller.student, *distiller.projections.values())]
    return {**logs, **{f"weights {i}": values for i, values in enumerate(weights)}}


def flat(weights):
    return np.concatenate([np.ravel(one) for one in [np.zeros(1), *weights]])


def token_model(units, width):
    """Logits for each token; 0 is padding."""
    tokens = keras.Input((6,), dtype="int32")
    hidden = keras.layers.Embedding(10, width, mask_zero=True)(tokens)
    hidden = keras.layers.MultiHeadAttention(2, width // 2, name="attention")(hidden, hidden)
    return keras.Model(tokens, keras.layers.Dense(units, name="logits")(hidden))


# Cases that both backends run ---------------------------------------------------------------------------------------


@case(ALIKE)
def logits():
    distillation_losses = [keras_kd.losses.SoftLabels(4.0), keras_kd.losses.ReverseKL(2.0, weight=0.5)]
    distiller = distiller_of(
        dense_model(32, 3), dense_model(8, 3), distillation_losses, soft_weight=0.7, hard_weight=0.5
    )
    x, y = examples()
    return trained(distiller, x, y, class_weight={0: 1.0, 1: 2.0, 2: 0.5})


@case(ALIKE)
def layers_behind_projections():
    hint = keras_kd.losses.Hint(teacher_layer="hidden_0", student_layer="hidden_0")
    distiller = distiller_of(dense_model(32, 3), dense_model(8, 3), [hint, keras_kd.losses.SoftLabels(2.0)])
    x, y = examples()
    return trained(distiller, x, y, sample_weight=np.linspace(0, 2, 37))


@case(ALIKE)
def masks_and_attention():
    distillation_losses = [
        keras_kd.losses.SoftLabels(2.0),
        keras_kd.losses.SelfAttentionRelations(teacher_layer="attention", student_layer="attention", heads=2),
    ]
    distiller = distiller_of(
        token_model(4, 8), token_model(4, 4), distillation_losses, metrics=[keras_kd.metrics.Agreement(), "accuracy"]
    )
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 10, size=(37, 6)) * (np.arange(6) < rng.integers(2, 7, size=(37, 1)))
    return trained(distiller, tokens, tokens % 4, sample_weight=rng.uniform(size=(37, 6)))


@case(ALIKE)
def several_outputs_and_labels_that_are_missing():
    def model(width):
        x = keras.Input((8,), name="x")
        hidden = keras.layers.Dense(width, "relu")(x)
        return keras.Model(x, {name: keras.layers.Dense(3, name=name)(hidden) for name in ("a", "b")})

    losses = {"a": crossentropy(ignore_class=-1), "b": crossentropy()}
    distillation_losses = [keras_kd.losses.SoftLabels(2.0, output="b"), keras_kd.losses.DecoupledKD(output="a")]
    x, y = examples(32)  # Keras weighs the losses of each output by rows on JAX alone: here the batches are even
    labels = {"a": np.where(np.arange(32) % 3 == 0, -1, y), "b": y}
    return trained(distiller_of(model(16), model(4), distillation_losses, loss=losses), x, labels)


@case(ALIKE)
def normalization_regularizers_and_metrics():
    def model(width):
        return keras.Sequential(
            [
                keras.Input((8,)),
                keras.layers.Dense(width, kernel_regularizer="l2", activity_regularizer="l2"),
                keras.layers.BatchNormalization(),
                keras.layers.Dense(3),
            ]
        )

    metrics = keras_kd.metrics
    distiller = distiller_of(
        model(16),
        model(4),
        metrics=["accuracy", metrics.MeanKL(), metrics.ExpectedCalibrationError(), metrics.MacroF1(3)],
    )
    x, y = examples()
    logs = trained(distiller, x, y, validation_data=(x[::-1], y[::-1], np.linspace(0, 1, 37)))
    evaluated = distiller.evaluate(x, y, verbose=0)
    return {**logs, "evaluate": evaluated, "predict": distiller.predict(x, verbose=0)}


@case(ALIKE)
def schedules_by_step():
    ramps = [
        keras_kd.LambdaRamp(0.0, 1.0, ramp_steps=7),
        keras_kd.LambdaRamp(4.0, 1.0, ramp_steps=7, temperature_of="soft_labels"),
    ]
    return trained(distiller_of(dense_model(32, 3), dense_model(8, 3)), *examples(), callbacks=ramps)


@case(ALIKE)
def accumulated_gradients_and_several_steps_a_call():
    optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)
    distiller = distiller_of(dense_model(32, 3), dense_model(8, 3), optimizer=optimizer, fit={"steps_per_execution": 2})
    return trained(distiller, *examples())


@case(ALIKE)
def balanced_by_uncertainty():
    distiller = distiller_of(dense_model(32, 3), dense_model(8, 3), balance=keras_kd.UncertaintyBalance())
    return trained(distiller, *examples())


@case(ALIKE)
def outputs_that_the_batches_bring_along():
    x, y = examples()
    logits, hidden = (np.random.default_rng(i).normal(size=(37, n)).astype("float32") for i, n in enumerate((3, 5)))
    data = tf.data.Dataset.from_tensor_slices((PrecomputedBatch(x, logits, {"hidden": hidden}), y)).batch(16)
    distillation_losses = [
        keras_kd.losses.SoftLabels(2.0),
        keras_kd.losses.Hint(teacher_layer="hidden", student_layer="hidden_0"),
    ]
    distiller = keras_kd.Distiller(None, filled(dense_model(5, 3), 2), distillation_losses)
    distiller.compile(keras.optimizers.SGD(0.1), crossentropy(), metrics=[keras_kd.metrics.Agreement()])
    return trained(distiller, data)


@case(ALIKE)
def likeliest_classes_that_the_batches_bring_along():
    x, y = examples()
    classes = np.stack([y, (y + 1) % 3], axis=-1).astype("int32")
    log_p = np.log(np.float32([[0.6, 0.3]] * 37))

    def precomputed(x, y, classes, log_p):
        return PrecomputedBatch(x, TopClasses.of(classes, log_p, 3), {}), y

    data = tf.data.Dataset.from_tensor_slices((x, y, classes, log_p)).batch(16).map(precomputed)
    distiller = keras_kd.Distiller(None, filled(dense_model(5, 3), 2))
    distiller.compile(keras.optimizers.SGD(0.1), crossentropy())
    return trained(distiller, data)


@case(ALIKE)
def one_model_that_teaches_itself():
    x = keras.Input((8,))
    hidden = keras.layers.Dense(8, "relu")(x)
    deep = keras.layers.Dense(3, name="deep")(keras.layers.Dense(8, "relu")(hidden))
    model = keras.Model(x, {"shallow": keras.layers.Dense(3, name="shallow")(hidden), "deep": deep})
    distiller = keras_kd.Distiller(
        filled(model), model, keras_kd.losses.SoftLabels(output="shallow", teacher_output="deep")
    )
    distiller.compile(keras.optimizers.SGD(0.1), {"shallow": crossentropy(), "deep": crossentropy()})
    x, y = examples(32)
    return trained(distiller, x, {"shallow": y, "deep": y})


@case(ALIKE)
def frozen_layers_that_both_models_share():
    shared = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8, "relu"), keras.layers.BatchNormalization()])
    shared.trainable = False
    models = [keras.Sequential([keras.Input((8,)), shared, keras.layers.Dense(3)]) for _ in range(2)]
    return trained(distiller_of(*models), *examples())


@case(ALIKE)
def teacher_that_changes_after_the_step_was_compiled():
    distiller = distiller_of(dense_model(32, 3), dense_model(8, 3))
    trained(distiller, *examples())
    filled(distiller.teacher, 4)
    return trained(distiller, *examples())


# Cases of JAX alone -----------------------------------------------------------------------------------------------


@case(ON_JAX)
def constants():
    """How many numbers the step holds as constants, beside a teacher of 4,600 weights."""
    import jax

    from keras_kd.steps.jax import WithTeacher

    distiller = distiller_of(dense_model(64, 64, 3), dense_model(8, 3))
    distiller.fit(*examples(), verbose=0)
    state = distiller._get_jax_state(*[True] * 4)
    weights = [variable.value for variable in distiller._untracked_variables()]
    traced = jax.make_jaxpr(distiller.train_step)(state, WithTeacher(examples(), weights))
    by_itself = jax.make_jaxpr(distiller.train_step)(state, examples())
    return {name: sum(map(np.size, of.consts)) for name, of in {"fit": traced, "alone": by_itself}.items()}


@case(ON_JAX)
def hyperparameters():
    """How often the step is traced while callbacks change every hyperparameter."""

    class Turn(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            for hyperparameter in self.model.hyperparameters.values():
                hyperparameter.assign(1.0 + epoch)

    distiller = distiller_of(dense_model(32, 3), dense_model(8, 3))
    traces = []
    reader = distiller._live.pairing.read_student
    distiller._live.pairing.read_student = lambda *args, **options: traces.append(1) or reader(*args, **options)
    x, y = examples(32)
    logs = distiller.fit(x, y, batch_size=16, epochs=3, verbose=0, callbacks=[Turn()]).history
    return {"traces": len(traces), "soft_weight": logs["soft_weight"], "loss": logs["loss"]}


def failing(distiller, data, x, y, *, bad_step):
    """What a bad batch raises, and whether the step before it is the last that was learnt from."""
    data_before = tf.data.Dataset.from_tensor_slices((x, y)).batch(16)
    distiller.fit(data_before, verbose=0)
    before, raised = None, "nothing"
    clean = data.take(bad_step)
    if bad_step:
        copy = keras_kd.Distiller(distiller.teacher, filled(dense_model(8, 3), 2))
        copy.compile(keras.optimizers.SGD(0.1, momentum=0.5), crossentropy())
        copy.fit(data_before, verbose=0)
        copy.fit(clean, verbose=0)
        before = flat(copy.student.get_weights())
    else:
        before = flat(distiller.student.get_weights())
    try:
        distiller.fit(data, verbose=0)
    except ValueError as error:
        raised = str(error)
    same = bool(np.array_equal(before, flat(distiller.student.get_weights())))
    after = distiller.fit(data_before, verbose=0).history["loss"][0]
    return {"raised": raised, "same": same, "after": np.isfinite(after), "steps": int(distiller.optimizer.iterations)}


@case(ON_JAX)
def teacher_nan():
    x, y = examples(32)
    bad = np.tile(x, (6, 1))
    bad[3 * 16 + 2] = np.nan
    data = tf.data.Dataset.from_tensor_slices((bad, np.tile(y, 6))).batch(16)
    return failing(distiller_of(dense_model(32, 3), dense_model(8, 3)), data, x, y, bad_step=3)


@case(ON_JAX)
def teacher_nan_within_one_call():
    x, y = examples(32)
    bad = np.tile(x, (2, 1))
    bad[16] = np.nan
    data = tf.data.Dataset.from_tensor_slices((bad, np.tile(y, 2))).batch(16)
    distiller = distiller_of(dense_model(32, 3), dense_model(8, 3), fit={"steps_per_execution": 4})
    return failing(distiller, data, x, y, bad_step=1)


@case(ON_JAX)
def label_out_of_range():
    x, y = examples(32)
    bad = y.copy()
    bad[-1] = 3
    data = tf.data.Dataset.from_tensor_slices((x, bad)).batch(16)
    return failing(distiller_of(dense_model(32, 3), dense_model(8, 3)), data, x, y, bad_step=1)


@case(ON_JAX)
def label_out_of_range_on_one_batch():
    distiller = distiller_of(dense_model(32, 3), dense_model(8, 3))
    x, y = examples(16)
    before = flat(distiller.student.get_weights())
    try:
        distiller.train_on_batch(x, keras.ops.convert_to_tensor(y + 3))  # arrays are checked before the step
    except ValueError as error:
        raised = str(error)
    same = bool(np.array_equal(before, flat(distiller.student.get_weights())))
    return {"raised": raised, "same": same, "after": np.isfinite(distiller.train_on_batch(x, y)[0])}


@case(ON_JAX)
def refused():
    """What `compile` says to what needs TensorFlow."""
    by_language = keras_kd.losses.ByLanguage(keras_kd.losses.SoftLabels(2.0), weights={1: 1.0}, language_key="language")
    messages = {}
    for name, options in {
        "loss": {"distillation_losses": by_language},
        "metric": {"metrics": [keras_kd.metrics.MacroF1ByLanguage(3, [1, 2], language_key="language")]},
    }.items():
        try:
            distiller_of(dense_model(32, 3), dense_model(8, 3), **options)
        except ValueError as error:
            messages[name] = str(error)
    return messages


@case(ON_JAX)
def refused_beside_the_step():
    """What is said where outputs are stored, and by `evaluate`."""
    x, y = examples()
    teacher, dataset = dense_model(32, 3), tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    messages = {}
    for name, call in {
        "cache_teacher_outputs": lambda: keras_kd.cache_teacher_outputs(teacher, dataset, "never made"),
        "fit": lambda: distiller_of(teacher, dense_model(8, 3)).fit(dataset, cache="never made"),
        "evaluate": lambda: keras_kd.evaluate({"teacher": teacher}, (x, y)),
    }.items():
        try:
            call()
        except RuntimeError as error:
            messages[name] = str(error)
    return messages


@case(ON_JAX)
def uncompiled():
    """The same training with and without `jax.jit`."""
    models = (dense_model(32, 3), dense_model(8, 3))
    by_mode = {
        name: trained(distiller_of(*models, fit=mode), *examples())["weights 0"]
        for name, mode in {"jit": {}, "eager": {"run_eagerly": True}, "no jit": {"jit_compile": False}}.items()
    }
    return by_mode


def on_four_devices(make_distribution):
    """The same training on one device and on four: weights, losses, and how a kernel lies on the devices."""

    def train():
        losses = [
            keras_kd.losses.SoftLabels(2.0),
            keras_kd.losses.RelationalKD(1.0, 2.0),
        ]  # on the scale of soft labels
        distiller = distiller_of(dense_model(32, 4), dense_model(8, 4), losses)
        result = trained(distiller, *examples(32, classes=4))
        return result, len(distiller.student.layers[0].kernel.value.sharding.device_set)

    one, _ = train()
    keras.distribution.set_distribution(make_distribution([f"cpu:{index}" for index in range(4)]))
    try:
        four, devices = train()
    finally:
        keras.distribution.set_distribution(None)
    return {"one": one["weights 0"], "four": four["weights 0"], "loss": [one["loss"], four["loss"]], "devices": devices}


@case(ON_JAX)
def data_parallel():
    return on_four_devices(lambda devices: keras.distribution.DataParallel(devices=devices))


@case(ON_JAX)
def model_parallel():
    def distribution(devices):
        layouts = keras.distribution.LayoutMap(keras.distribution.DeviceMesh((2, 2), ["data", "model"], devices))
        layouts[".*kernel"] = (None, "model")
        return keras.distribution.ModelParallel(layout_map=layouts, batch_dim_name="data")

    return on_four_devices(distribution)


@case(ON_JAX)
def half_precision():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        distiller = distiller_of(dense_model(32, 3), dense_model(8, 3))
        return {"loss": trained(distiller, *examples(), epochs=5)["loss"], "scales": distiller.optimizer.name}
    finally:
        keras.config.set_dtype_policy("float32")


@case(ON_JAX)
def evaluation():
    """How often the teacher runs in `evaluate`, and what `predict` gives beside the student's own."""
    distiller = distiller_of(dense_model(32, 3), dense_model(8, 3))
    runs = []
    reader = distiller._live.pairing.read_teacher
    distiller._live.pairing.read_teacher = lambda x: runs.append(1) or reader(x)
    x, y = examples()
    distiller.evaluate(x, y, verbose=0)
    difference = distiller.predict(x, verbose=0) - distiller.student.predict(x, verbose=0)
    return {"runs": len(runs), "difference": np.abs(difference).max()}


@case(ON_JAX)
def saved(path="distiller.keras"):
    """The loss of the epoch that follows, of a distiller and of the same one saved and loaded."""
    student = keras.Sequential(
        [keras.Input((8,)), keras.layers.Dense(8), keras.layers.Dropout(0.5), keras.layers.Dense(3)]
    )
    distiller = distiller_of(dense_model(32, 3), student, optimizer=keras.optimizers.Adam(0.01))
    trained(distiller, *examples())
    distiller.save(path)
    loaded = keras_kd.load_distiller(path, distiller.teacher)
    return {"loss": [trained(one, *examples(), epochs=1)["loss"] for one in (distiller, loaded)]}


# The two processes --------------------------------------------------------------------------------------------------


def main(out):
    """Run the cases of the backend in use, and write what they return: `{case/key: array}`."""
    results = {}
    for name, function in {**ALIKE, **(ON_JAX if keras.backend.backend() == "jax" else {})}.items():
        keras.utils.clear_session(free_memory=False)
        keras.utils.set_random_seed(1)
        try:
            results |= {f"{name}/{key}": np.asarray(value) for key, value in function().items()}
        except Exception:
            results[f"{name}/error"] = np.asarray(traceback.format_exc())
    np.savez(out, **results)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """`results(backend, case)`: what the case returned on that backend."""
    folder = tmp_path_factory.mktemp("backends")
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    processes = {
        backend: subprocess.Popen(
            [sys.executable, os.path.abspath(__file__), str(folder / f"{backend}.npz")],
            env={**os.environ, "KERAS_BACKEND": backend, **flags},
            cwd=folder,
        )
        for backend in ("tensorflow", "jax")
    }
    assert [process.wait() for process in processes.values()] == [0, 0]
    written = {backend: np.load(folder / f"{backend}.npz") for backend in processes}

    def of_case(backend, name):
        found = {
            key.partition("/")[2]: values for key, values in written[backend].items() if key.startswith(f"{name}/")
        }
        assert "error" not in found, str(found["error"])
        return found

    return of_case


@pytest.fixture
def on_jax(results):
    return functools.partial(results, "jax")


# The tests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALIKE)
def test_losses_metrics_and_weights_are_those_of_tensorflow(results, name):
    expected, got = results("tensorflow", name), results("jax", name)
    assert sorted(got) == sorted(expected)
    for key, values in expected.items():
        np.testing.assert_allclose(got[key], values, rtol=1e-5, atol=1e-5, err_msg=key)


@pytest.mark.parametrize("name", ALIKE)
def test_something_is_learnt_in_each_of_these_cases(results, name):
    loss = results("jax", name)["loss"]
    assert abs(loss[-1] - loss[0]) > 1e-3


def test_the_teachers_weights_are_no_constants_of_the_step(on_jax):
    counts = on_jax("constants")
    assert counts["fit"] < 10
    assert counts["alone"] > 4600  # so are they seen where they are constants


def test_hyperparameters_turn_without_a_new_trace(on_jax):
    hyperparameters = on_jax("hyperparameters")
    assert hyperparameters["traces"] == 1
    np.testing.assert_allclose(hyperparameters["soft_weight"], [1.0, 2.0, 3.0])
    assert hyperparameters["loss"][2] > 2 * hyperparameters["loss"][0]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("teacher_nan", "the teacher's output holds NaN or infinite values in training batch 5 "),
        ("teacher_nan_within_one_call", "the teacher's output holds NaN or infinite values in training batch 3 "),
        ("label_out_of_range", "y holds a label outside the student's classes in training batch 3 "),
        ("label_out_of_range_on_one_batch", "y holds a label outside the student's classes in training batch 0 "),
    ],
)
def test_from_a_bad_batch_on_nothing_is_learnt_and_it_is_named(on_jax, name, says):
    outcome = on_jax(name)
    assert says in str(outcome["raised"])
    assert outcome["same"]
    assert outcome["after"]  # the next fit is as any other


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("loss", "['soft_labels'] go by language, which needs the tensorflow backend"),
        ("metric", "go by language, which needs the tensorflow backend"),
    ],
)
def test_what_needs_tensorflow_is_refused(on_jax, what, says):
    assert says in str(on_jax("refused")[what])


@pytest.mark.parametrize("what", ["cache_teacher_outputs", "fit", "evaluate"])
def test_what_runs_on_tensorflow_alone_says_so(on_jax, what):
    assert "runs on Keras's tensorflow backend, but the backend is 'jax'" in str(
        on_jax("refused_beside_the_step")[what]
    )


def test_a_step_that_is_not_compiled_does_the_same(on_jax):
    weights = on_jax("uncompiled")
    np.testing.assert_allclose(weights["eager"], weights["jit"], atol=1e-6)
    np.testing.assert_allclose(weights["no jit"], weights["jit"], atol=1e-6)


@pytest.mark.parametrize("name", ["data_parallel", "model_parallel"])
def test_four_devices_do_the_same_as_one(on_jax, name):
    result = on_jax(name)
    assert result["devices"] == 4
    np.testing.assert_allclose(result["four"], result["one"], atol=1e-6)
    np.testing.assert_allclose(*result["loss"], rtol=1e-6)


def test_it_trains_in_half_precision(on_jax):
    loss = on_jax("half_precision")["loss"]
    assert np.all(np.isfinite(loss))
    assert loss[-1] < loss[0]


def test_evaluate_and_predict_are_the_students(on_jax):
    assert on_jax("evaluation")["runs"] == 0
    assert on_jax("evaluation")["difference"] == 0


def test_a_loaded_distiller_goes_on_as_the_saved_one(on_jax):
    one, loaded = on_jax("saved")["loss"]
    np.testing.assert_array_equal(one, loaded)


if __name__ == "__main__":
    main(sys.argv[1])
