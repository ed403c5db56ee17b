"""What is taken from Keras's insides is still there and still means what we think: a new Keras shows here first."""

import ast
import pathlib

import keras
import numpy as np
import sacrebleu
import tensorflow as tf
import tensorflow_datasets as tfds
from conftest import crossentropy, dense_model

import keras_kd
from keras_kd import _keras_private as private


def test_call_model_passes_training_only_where_it_is_known():
    class Bare(keras.Model):
        def call(self, inputs):
            return inputs + 1.0

    class Knowing(keras.Model):
        def call(self, inputs, training=None):
            return inputs + (10.0 if training else 0.0)

    ones = tf.ones((1, 2))
    assert float(private.call_model(Bare(), ones, training=True)[0, 0]) == 2.0
    assert float(private.call_model(Knowing(), ones, training=True)[0, 0]) == 11.0
    assert float(private.call_model(Knowing(), ones, training=False)[0, 0]) == 1.0


def test_functional_graph_of_every_kind_of_model():
    class Subclassed(keras.Model):
        pass

    functional = keras.Model(inputs := keras.Input((2,)), keras.layers.Dense(3)(inputs))
    assert private.functional_graph(functional) is functional
    assert private.functional_graph(dense_model(4, 3)).output.shape == (None, 3)
    assert private.functional_graph(keras.Sequential([keras.layers.Dense(3)])) is None
    assert private.functional_graph(Subclassed()) is None

    class WithItsOwnCall(keras.Model):
        def call(self, inputs, training=None, mask=None):
            return -super().call(inputs)

    assert private.functional_graph(WithItsOwnCall(functional.inputs, functional.outputs)) is None


def test_the_output_of_a_nested_model_is_found_inside_it():
    inner, outer = dense_model(4, 3), keras.Input((8,))
    operation, index, _ = private.producer(keras.Model(outer, inner(outer)).output)
    assert operation is inner
    assert private.producer(private.nested_output(operation, index))[0] is inner.get_layer("logits")
    assert private.nested_output(inner.get_layer("logits"), 0) is None


def test_the_folder_for_files_fetched_by_hand(tmp_path):
    manager = tfds.download.DownloadManager(download_dir=tmp_path, manual_dir=tmp_path / "manual")
    assert pathlib.Path(private.manual_folder(manager)) == tmp_path / "manual"


def test_the_calls_of_a_graph_stand_in_the_order_they_run():
    inputs = keras.Input((2,))
    hidden = keras.layers.Dense(2, name="hidden")(inputs)
    model = keras.Model(inputs, hidden + inputs)
    (first, (given,), (made,)), (_, operands, (result,)) = private.graph_calls(model)
    assert first is model.get_layer("hidden") and given is inputs and made is hidden
    assert operands[0] is hidden and operands[1] is inputs and result is model.outputs[0]


def test_masks_travel_with_tensors():
    embedded = keras.layers.Embedding(5, 2, mask_zero=True)(np.array([[1, 0]]))
    np.testing.assert_array_equal(private.get_mask(embedded), [[True, False]])
    tensor = private.set_mask(tf.ones((1, 2)), tf.constant([[False, True]]))
    np.testing.assert_array_equal(private.get_mask(tensor), [[False, True]])


def test_loss_weights_can_be_seen():
    model = dense_model(4, 3)
    model.compile("sgd", "mse", loss_weights=0.5)
    assert private.has_loss_weights(model)
    unweighted = dense_model(4, 3)
    unweighted.compile("sgd", "mse")
    assert not private.has_loss_weights(unweighted)


def test_the_arguments_of_a_call_have_names():
    embedding = keras.layers.ReversibleEmbedding(5, 2)
    arguments = private.call_arguments(embedding, (1,), {"reverse": True})
    assert list(arguments.items()) == [("self", embedding), ("inputs", 1), ("reverse", True)]


def test_the_compiled_loss_can_be_seen_and_replaced():
    model = dense_model(4, 3)
    model.compile("sgd", "sparse_categorical_crossentropy")
    assert private.sparse_label_options(private.loss_argument(model)) == (True, None)
    model.compile("sgd", crossentropy(ignore_class=-1))
    assert private.sparse_label_options(private.loss_argument(model)) == (True, -1)
    assert private.loss_function(private.loss_argument(model))[1]["from_logits"] is True
    assert not private.has_loss_weights(model)
    model.fit(np.zeros((4, 8)), np.zeros(4), verbose=0)
    replaced = []

    class Zero:
        def __call__(self, y_true, y_pred, sample_weight=None):
            return 0.0 * tf.reduce_sum(y_pred)

    private.replace_compiled_losses(model, lambda loss: replaced.append(loss) or Zero())
    assert len(replaced) == 1 and isinstance(replaced[0], keras.losses.SparseCategoricalCrossentropy)
    assert float(model.compute_loss(y=np.zeros(4), y_pred=tf.ones((4, 3)))) == 0.0
    model.compile("sgd", {"logits": "sparse_categorical_crossentropy", "other": None})
    loss = private.loss_argument(model)
    assert private.sparse_label_options(loss["logits"]) == (True, None)
    assert private.sparse_label_options(loss["other"]) == (False, None)
    unlabelled = dense_model(4, 3)
    unlabelled.compile("sgd", None)
    assert private.loss_argument(unlabelled) is None


def test_xla_support_is_asked_of_every_layer():
    inner = dense_model(4, 3)
    model = keras.Sequential([keras.Input((8,)), inner])
    assert private.supports_jit(model)
    inner.layers[0].supports_jit = False
    assert not private.supports_jit(model)


def test_the_backend_variable_is_tensorflows():
    variable = keras.Variable(1.0)
    assert isinstance(private.backend_variable(variable), tf.Variable)


def test_producer():
    inputs, shared = keras.Input((2,)), keras.layers.Dense(2, name="shared")
    once = shared(inputs)
    model = keras.Model(inputs, shared(once))
    operation, index, sources = private.producer(model.output)
    assert (operation, index) == (shared, 0)
    assert sources[0] is once


def test_the_tensors_of_a_layer_in_a_graph():
    inputs, layer = keras.Input((2,)), keras.layers.Dense(3)
    output = layer(inputs)
    ((found_inputs, found_outputs),) = private.graph_tensors(layer)
    assert found_inputs[0] is inputs
    assert found_outputs[0] is output
    layer(np.zeros((1, 2)))
    assert len(private.graph_tensors(layer)) == 1


def test_random_states_are_those_of_dropout():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dropout(0.5), keras.layers.Dense(1)])
    (state,) = private.random_states(model)
    before = state.numpy().copy()
    model(np.ones((1, 2)), training=True)
    assert not np.array_equal(state.numpy(), before)


def test_sublayers_learnable_variables_and_automatic_names():
    normalization, dense = keras.layers.BatchNormalization(), keras.layers.Dense(3)
    model = keras.Sequential([keras.Input((2,)), normalization, dense])
    assert private.sublayers(model)[-2:] == [normalization, dense]
    assert private.sublayers(dense) == []
    model.trainable = False
    assert [v.name for v in private.learnable_variables(model)] == ["gamma", "beta", "kernel", "bias"]
    for layer in (normalization, dense, keras.layers.Conv2D(1, 1), keras.layers.MultiHeadAttention(1, 2)):
        assert layer.name == private.automatic_name(layer)


def test_callbacks_ask_which_way_a_metric_improves():
    for lower_is_better, operation in ((True, keras.ops.less), (False, keras.ops.greater)):
        metric = keras.metrics.MeanMetricWrapper(lambda y_true, y_pred: y_true - y_pred, name="surplus")
        private.set_direction(metric, lower_is_better)
        model = dense_model(4, 3)
        model.compile("sgd", "mse", metrics=[metric])
        stopping = keras.callbacks.EarlyStopping(monitor="surplus")
        model.fit(np.zeros((4, 8)), np.zeros((4, 3)), verbose=0, callbacks=[stopping])
        assert stopping.monitor_op is operation


def test_attention_of_projected_keys_and_values():
    layer = keras.layers.MultiHeadAttention(2, 4)
    rng = np.random.default_rng(0)
    query, value = (tf.constant(rng.normal(size=(2, n, 8)), "float32") for n in (3, 5))
    mask = rng.random((2, 3, 5)) < 0.7
    expected = layer(query, value, attention_mask=mask)
    found = private.attend(layer, query, *private.projected_keys_and_values(layer, value), tf.constant(mask))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_sums_of_statistics_make_the_score_of_a_corpus():
    metric = sacrebleu.metrics.CHRF()
    texts, references = ["a red house", "the sea"], ["the red house", "a sea"]
    sums = np.sum(private.sacrebleu_statistics(metric, texts, [references]), axis=0)
    assert private.sacrebleu_score(metric, sums.tolist()) == metric.corpus_score(texts, [references]).score


def test_what_one_replica_gets_of_a_batch():
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    dataset = tf.data.Dataset.from_tensor_slices(np.zeros((4, 8), "float32")).batch(4)

    class EpochIterator:
        _distributed_dataset = strategy.experimental_distribute_dataset(dataset)

    spec = private.epoch_element_spec(EpochIterator)
    assert private.replica_spec(spec).shape == (None, 8)
    plain = tf.TensorSpec((2,))
    assert private.replica_spec(plain) is plain
    model = dense_model(4, 3)
    model.compile("sgd", "mse")
    seen = []
    model._maybe_symbolic_build = lambda iterator: seen.append(private.epoch_element_spec(iterator))
    model.fit(np.zeros((4, 8)), np.zeros((4, 3)), verbose=0)
    assert [part.shape for part in seen[0]] == [(None, 8), (None, 3)]


# Private names of others -------------------------------------------------------------------------------------------

NAMEDTUPLES = {"_replace", "_asdict", "_fields", "_make"}  # public, in spite of their underscore


def own_names(tree):
    """The underscored names that a module defines itself: functions, classes, and what it assigns."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def private_uses(path, own):
    """Imports from the insides of Keras and TensorFlow, and underscored attributes of objects of theirs."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            yield from (module for module in modules if module.startswith(("keras.src", "tensorflow.python")))
        elif isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            own_object = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            is_super = isinstance(node.value, ast.Call) and ast.unparse(node.value) == "super()"
            if not own_object and not is_super and node.attr not in NAMEDTUPLES | own:
                yield f"{ast.unparse(node)}"


def test_private_names_of_others_are_used_in_one_module():
    """`_compile_metrics` of a distiller: the step, part of that class, reads it through a function beside it."""
    root = pathlib.Path(keras_kd.__file__).parent
    paths = sorted(root.rglob("*.py"))
    own = {name for path in paths for name in own_names(ast.parse(path.read_text())) if name.startswith("_")}
    inherited = {"_compile_loss", "_compile_metrics"}  # the distiller sets these two of Keras's before each compile
    found = {
        f"{path.relative_to(root)}: {use}"
        for path in paths
        if path.name != "_keras_private.py"
        for use in private_uses(path, own - inherited)
    }
    assert found == set()
    assert any(private_uses(root / "_keras_private.py", own))
