"""A distiller whose losses do without the logits learns what one with logits learns."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import crossentropy, strategy_of

import keras_kd
from keras_kd.large_vocabulary import fused_loss, heads
from keras_kd.large_vocabulary.fusion import LastLayer
from keras_kd.outputs.precomputed import PrecomputedBatch
from keras_kd.outputs.top_classes import TopClasses
from keras_kd.steps import loss_terms

RNG = np.random.default_rng(0)
EXAMPLES, LENGTH, VOCABULARY = 11, 6, 53
TOKENS = RNG.integers(1, VOCABULARY, (EXAMPLES, LENGTH))
TOKENS[::2, 4:] = 0  # padding
LABELS = RNG.integers(0, VOCABULARY, (EXAMPLES, LENGTH))


@pytest.fixture(autouse=True)
def chunked(monkeypatch):
    """Few tokens, which would be taken at once, are taken in chunks of 16."""
    monkeypatch.setattr(loss_terms, "fused_loss", functools.partial(fused_loss, chunk_bytes=4 * VOCABULARY * 16))


def token_model(width, *, tied=False, name=None, units=VOCABULARY, **last):
    """Tokens in, a distribution over the vocabulary for each of them out; padding is masked."""
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    if tied:
        embedding = keras.layers.ReversibleEmbedding(units, width, mask_zero=True, name="embedding", **last)
    else:
        embedding = keras.layers.Embedding(units, width, mask_zero=True, name="embedding")
    hidden = keras.layers.Dense(width, "tanh", name="hidden")(embedding(tokens))
    if tied:
        return keras.Model(tokens, embedding(hidden, reverse=True), name=name)
    return keras.Model(tokens, keras.layers.Dense(units, name="logits", **last)(hidden), name=name)


def with_opinions(*pair):
    """The models with weights that make their distributions far from flat."""
    rng = np.random.default_rng(3)
    for model in pair:
        model.set_weights([rng.normal(size=weight.shape) for weight in model.get_weights()])
    return pair


def models(**options):
    return with_opinions(token_model(9, **options), token_model(5, **options))


def trained(
    fuse_logits,
    *,
    distillation_losses=None,
    loss=None,
    pair=None,
    data=None,
    weights=None,
    labels=LABELS,
    teacher_of=lambda teacher: teacher,
    strategy=None,
    balance=None,
    **compiled,
):
    """The student's weights and the logs after two epochs."""
    keras.utils.set_random_seed(3)
    with (strategy or tf.distribute.get_strategy()).scope():
        teacher, student = (pair or models)()
        distiller = keras_kd.Distiller(
            teacher_of(teacher),
            student,
            distillation_losses() if distillation_losses else keras_kd.losses.SoftLabels(2.0, weight=0.5),
            soft_weight=0.7,
            hard_weight=0.9,
            fuse_logits=fuse_logits,
        )
        distiller.compile(keras.optimizers.SGD(0.5), crossentropy() if loss is None else loss(), **compiled)
    if data is None:
        arrays = (TOKENS, labels) if weights is None else (TOKENS, labels, weights)
        data = tf.data.Dataset.from_tensor_slices(arrays if labels is not None else (TOKENS,)).batch(4)
    history = distiller.fit(data, epochs=2, verbose=0)
    return distiller, student.get_weights(), history.history


def assert_same(*, atol=1e-5, fused_options=None, **options):
    """Weights and logs are those of the dense form."""
    _, dense, dense_logs = trained(False, **options)
    _, fused, fused_logs = trained(True, **options, **(fused_options or {}))
    start = (options.get("pair") or models)()[1].get_weights()
    assert max(np.abs(a - b).max() for a, b in zip(start, dense, strict=True)) > 100 * atol  # something was learnt
    for a, b in zip(dense, fused, strict=True):
        np.testing.assert_allclose(b, a, atol=atol)
    assert sorted(dense_logs) == sorted(fused_logs)
    for name, values in dense_logs.items():
        np.testing.assert_allclose(fused_logs[name], values, rtol=10 * atol, err_msg=name)


def test_labels_and_soft_labels_over_padded_tokens():
    assert_same()


def test_the_logits_of_few_tokens_are_held(monkeypatch):
    monkeypatch.setattr(loss_terms, "fused_loss", fused_loss)
    assert_same()


def test_tied_embeddings():
    assert_same(pair=lambda: models(tied=True))


def test_embeddings_of_two_directions():
    assert_same(pair=lambda: models(tied=True, tie_weights=False))


def test_a_last_layer_inside_a_nested_model_before_a_cast():
    def nested(width):
        inner = token_model(width, name=f"inner_{width}")
        tokens = keras.Input((None,), dtype="int32")
        return keras.Model(tokens, keras.layers.Activation("linear", dtype="float32")(inner(tokens)))

    assert_same(pair=lambda: with_opinions(nested(9), nested(5)))


def test_one_distribution_per_example(data):
    x, _ = data

    def model(width):
        return keras.Sequential([keras.Input((8,)), keras.layers.Dense(width), keras.layers.Dense(VOCABULARY)])

    labels = RNG.integers(0, VOCABULARY, (len(x), 1))
    assert_same(
        pair=lambda: with_opinions(model(9), model(5)), data=tf.data.Dataset.from_tensor_slices((x, labels)).batch(8)
    )


def test_sample_weights():
    assert_same(weights=RNG.uniform(size=(EXAMPLES, 1)).astype("float32"))


@pytest.mark.parametrize("reduction", ["sum", "mean_with_sample_weight"])
def test_reductions(reduction):
    assert_same(
        loss=lambda: crossentropy(reduction=reduction),
        distillation_losses=lambda: keras_kd.losses.SoftLabels(2.0, reduction=reduction),
        weights=RNG.uniform(size=(EXAMPLES, LENGTH)).astype("float32"),
        atol=1e-4 if reduction == "sum" else 1e-5,
    )


def test_labels_that_the_loss_ignores():
    labels = np.where(RNG.uniform(size=LABELS.shape) < 0.4, 7, LABELS)
    assert_same(loss=lambda: crossentropy(ignore_class=7), labels=labels)


def test_unlabelled_data():
    assert_same(labels=None)


@pytest.mark.parametrize(
    "distillation_loss",
    [
        keras_kd.losses.JensenShannon,
        keras_kd.losses.BinarySoftLabels,
        keras_kd.losses.DecoupledKD,
        keras_kd.losses.NormalizedKD,
    ],
)
def test_other_losses_over_logits(distillation_loss):
    """One over distributions, one over classes by themselves, two with labels; the others: `test_large_vocabulary`."""
    labels = np.where(RNG.uniform(size=LABELS.shape) < 0.4, -1, LABELS)
    assert_same(distillation_losses=distillation_loss, labels=labels, loss=lambda: crossentropy(ignore_class=-1))


def test_losses_over_layers_together_with_it():
    assert_same(
        distillation_losses=lambda: [
            keras_kd.losses.Hint(teacher_layer="hidden", student_layer="hidden", weight=2.0),
            keras_kd.losses.SoftLabels(2.0),
        ]
    )


def test_under_xla():
    assert_same(fused_options={"jit_compile": True})


def test_over_replicas_with_uneven_batches():
    weights = RNG.uniform(size=(EXAMPLES, LENGTH)).astype("float32")
    assert_same(weights=weights, fused_options={"strategy": strategy_of(2)})


@pytest.mark.parametrize("fuse_logits", [False, True])
def test_half_precision(fuse_logits):
    def in_bfloat16():
        keras.config.set_dtype_policy("mixed_bfloat16")
        pair = models()
        keras.config.set_dtype_policy("float32")
        return pair

    for exact, rounded in zip(trained(False)[1], trained(fuse_logits, pair=in_bfloat16)[1], strict=True):
        np.testing.assert_allclose(rounded, exact, atol=0.01)


def likeliest(k):
    """The teacher's k likeliest tokens of every position, as a dataset that brings them along."""
    log_p = keras.ops.convert_to_numpy(keras.ops.log_softmax(models()[0](TOKENS)))
    classes = np.argsort(-log_p, axis=-1)[..., :k]
    top = TopClasses.of(classes, np.take_along_axis(log_p, classes, axis=-1), VOCABULARY)
    return tf.data.Dataset.from_tensor_slices((PrecomputedBatch(TOKENS, top, {}), LABELS)).batch(4)


def test_a_teacher_whose_most_likely_tokens_are_in_the_batch():
    assert_same(data=likeliest(8), teacher_of=lambda teacher: None)


@pytest.mark.parametrize("cached", [False, True])
def test_evaluate_gives_the_same_loss_without_logits(cached):
    options = {"data": likeliest(8), "teacher_of": lambda teacher: None} if cached else {}
    losses = []
    labels = np.where(RNG.uniform(size=LABELS.shape) < 0.4, 7, LABELS)
    weights = RNG.uniform(size=(EXAMPLES, 1)).astype("float32")
    for fuse in (False, True):
        distiller, *_ = trained(fuse, loss=lambda: crossentropy(ignore_class=7), **options)
        losses.append(distiller.evaluate(TOKENS, labels, sample_weight=weights, batch_size=4, verbose=0))
    np.testing.assert_allclose(*losses, rtol=1e-5)


def largest_array_for(function):
    """Elements of the largest array that a traced function computes for its result."""
    graph = function.graph
    pending = [tensor.op for tensor in tf.nest.flatten(function.structured_outputs)] + list(
        function.graph.control_outputs
    )
    pending += [op for op in graph.get_operations() if op.op_def.is_stateful]
    seen, largest = set(), 0
    while pending:
        op = pending.pop()
        if op in seen:
            continue
        seen.add(op)
        largest = max([largest, *(tensor.shape.num_elements() or 0 for tensor in op.outputs if tensor.shape.rank)])
        pending += [tensor.op for tensor in op.inputs] + list(op.control_inputs)
    return largest


@pytest.mark.parametrize("fuse_logits", [True, False])
def test_the_logits_are_not_computed(fuse_logits, monkeypatch):
    examples, length, vocabulary = 8, 128, 211
    distiller = keras_kd.Distiller(
        token_model(9, units=vocabulary), token_model(5, units=vocabulary), fuse_logits=fuse_logits
    )
    distiller.compile("sgd", crossentropy())
    batch = tf.ones((examples, length), "int32"), tf.ones((examples, length), "int32")
    distiller.evaluate(*batch, verbose=0)  # which builds it
    in_full = examples * length * vocabulary
    monkeypatch.setattr(heads, "CHUNK_BYTES", 4 * 100 * vocabulary)
    monkeypatch.setattr(loss_terms, "fused_loss", functools.partial(fused_loss, chunk_bytes=4 * 100 * vocabulary))
    for step in (distiller.train_step, distiller.test_step):
        function = tf.function(step).get_concrete_function(batch)
        assert (largest_array_for(function) < in_full) == fuse_logits


def test_a_second_fit_and_a_second_evaluate_reuse_the_functions_of_the_first():
    """Keras's container of losses is never built where logits are not, which is no reason to trace anew."""
    teacher, student = models()
    distiller = keras_kd.Distiller(teacher, student, keras_kd.losses.SoftLabels(2.0), fuse_logits=True)
    distiller.compile("adam", crossentropy())
    unlabelled, labelled = (tf.data.Dataset.from_tensor_slices(data).batch(4) for data in (TOKENS, (TOKENS, LABELS)))
    distiller.fit(unlabelled, verbose=0)
    functions = [distiller.train_function]
    for _ in range(2):
        history = distiller.fit(labelled, validation_data=labelled, verbose=0).history
        assert history["hard_loss"][0] > 0 and history["val_loss"][0] > 0
        functions.append(distiller.train_function)
    assert functions[0] is functions[1] is functions[2]
    function = distiller.test_function
    distiller.evaluate(labelled, verbose=0)
    assert distiller.test_function is function


def test_it_is_the_default_where_the_vocabulary_is_large():
    for units, is_fused in ((100, False), (20_000, True)):
        models = [keras.Sequential([keras.Input((2,)), keras.layers.Dense(units)]) for _ in range(2)]
        assert (keras_kd.Distiller(*models)._live.fusion is not None) == is_fused
        assert keras_kd.Distiller(*models, fuse_logits=False)._live.fusion is None


def test_metrics_get_logits_unless_fuse_logits_is_true():
    distiller, _, logs = trained(None, metrics=["accuracy"])
    assert "accuracy" in logs
    assert distiller.evaluate(TOKENS, LABELS, verbose=0)[0] > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": ["accuracy"]}, "metrics of compile"),
        ({"metrics": [keras_kd.metrics.Agreement()]}, "metrics of compile"),
        ({"loss": lambda: "mse"}, "SparseCategoricalCrossentropy"),
        ({"loss": keras.losses.SparseCategoricalCrossentropy}, "SparseCategoricalCrossentropy"),
        ({"distillation_losses": keras_kd.losses.DIST}, "token by token"),
        (
            {"distillation_losses": lambda: [keras_kd.losses.SoftLabels(), keras_kd.losses.ReverseKL()]},
            "token by token",
        ),
        (
            {"distillation_losses": keras_kd.losses.DecoupledKD, "loss": lambda: crossentropy(ignore_class=7)},
            "needs labels",
        ),
        ({"pair": lambda: models(activation="softmax")}, "Dense without activation"),
        ({"pair": lambda: models(activity_regularizer="l2")}, "Dense without activation"),
        ({"pair": lambda: models(tied=True, logit_soft_cap=3.0)}, "Dense without activation"),
    ],
)
def test_fuse_logits_is_refused_with_the_reason_where_logits_are_needed(changes, message):
    with pytest.raises(ValueError, match=f"fuse_logits=True is not possible: .*{message}"):
        trained(True, **changes)


def test_balance_needs_logits():
    distiller = keras_kd.Distiller(*models(), fuse_logits=True, balance=keras_kd.UncertaintyBalance())
    with pytest.raises(ValueError, match="balance"):
        distiller.compile("sgd", crossentropy())


def test_the_switch_is_checked_and_saved(tmp_path):
    with pytest.raises(ValueError, match="fuse_logits must be one of"):
        keras_kd.Distiller(*models(), fuse_logits="yes")
    distiller, _, _ = trained(True)
    distiller.save(tmp_path / "d.keras")
    teacher = models()[0]
    assert keras_kd.load_distiller(tmp_path / "d.keras", teacher)._live.fusion is not None


def test_nan_of_the_teacher_stops_the_step():
    def broken(teacher):
        teacher.get_layer("hidden").bias.assign(np.full(9, np.nan, "float32"))
        return teacher

    with pytest.raises(ValueError, match="teacher's output holds NaN"):
        trained(True, teacher_of=broken)


def test_a_label_outside_the_vocabulary_stops_the_step():
    with pytest.raises(ValueError, match="outside the student's"):
        trained(True, labels=np.full_like(LABELS, VOCABULARY))


def test_a_layer_that_makes_two_outputs_is_no_last_layer():
    shared, x = keras.layers.Dense(5), keras.Input((4,))
    middle = shared(keras.layers.Dense(3)(x))
    assert LastLayer.of(keras.Model(x, shared(keras.layers.Dense(3)(middle)))) is None
    assert LastLayer.of(keras.Model(x, shared(keras.layers.Dense(3)(x)))).layer is shared
