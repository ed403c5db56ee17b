"""The fused losses over hidden states and heads: the dense form's values and gradients, without its arrays."""

import gc
import json
import pathlib
import weakref

import formulas
import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import strategy_of
from tensorflow.python.framework.ops import gradient_registry

import keras_kd
from keras_kd.large_vocabulary import Head, TopClasses, fused_loss

TOKENS, VOCABULARY = 37, 101
REFERENCE = pathlib.Path(__file__).parents[2] / "shared" / "reference" / "losses.json"
LOSSES = [
    keras_kd.losses.SoftLabels(temperature=2.0),
    keras_kd.losses.SoftLabels(temperature=2.0, standardize=True),
    keras_kd.losses.ReverseKL(temperature=3.0),
    keras_kd.losses.JensenShannon(beta=0.3),
    keras_kd.losses.SkewKL(alpha=0.1),
    keras_kd.losses.SkewReverseKL(alpha=0.1),
    keras_kd.losses.LogitsMSE(),
]


def head(width, seed, tokens=TOKENS, vocabulary=VOCABULARY):
    rng = np.random.default_rng(seed)
    arrays = (rng.normal(size=shape) for shape in ((tokens, width), (width, vocabulary), (vocabulary,)))
    return Head(*(array.astype("float32") for array in arrays))


def logits(head):
    return np.float64(head.hidden) @ np.float64(head.kernel) + np.float64(head.bias)


TEACHER, STUDENT = head(5, seed=1), head(7, seed=2)
RNG = np.random.default_rng(3)
LABELS = RNG.integers(-1, VOCABULARY, TOKENS)
LABELS[:3] = -1
SOFT, HARD = (RNG.uniform(size=TOKENS).astype("float32") for _ in range(2))


def chunks_of(tokens):
    """Eight tokens a chunk are the fewest; 37 are not divided by it."""
    return 4 * VOCABULARY * tokens


def fused(distillation_loss=LOSSES[0], student=STUDENT, teacher=TEACHER, **options):
    """The loss and its gradients of hidden states, kernel and bias; the total is tripled, so upstream is not 1."""
    options = {"labels": LABELS, "soft_weights": SOFT, "hard_weights": HARD, "chunk_bytes": chunks_of(16)} | options

    def step(*parts):
        with tf.GradientTape() as tape:
            tape.watch(parts)
            loss = fused_loss(distillation_loss, teacher, Head(*parts, *student[len(parts) :]), **options)
            total = 3.0 * loss.total
        return loss, tape.gradient(total, parts)

    parts = [tf.constant(part) for part in student[:3] if part is not None]
    return tf.function(step, jit_compile=options.get("jit_compile", False))(*parts)


def dense(distillation_loss=LOSSES[0], student=STUDENT, teacher=TEACHER, labels=LABELS):
    """The same from the logits of all tokens."""
    parts = [tf.constant(part) for part in student[:3]]
    with tf.GradientTape() as tape:
        tape.watch(parts)
        student_logits = tf.matmul(parts[0], parts[1]) + parts[2]
        soft = distillation_loss.call(tf.constant(logits(teacher), "float32"), student_logits)
        hard = -tf.gather(tf.nn.log_softmax(student_logits), np.maximum(labels, 0), batch_dims=1)
        hard = tf.where(labels >= 0, hard, 0.0)
        total = 3.0 * tf.reduce_sum(SOFT * soft + HARD * hard)
    return (total / 3.0, soft, hard), tape.gradient(total, parts)


def assert_close(actual, expected, tolerance=1e-5):
    """Relative to the largest entry."""
    for one, other in zip(actual, expected, strict=True):
        one, other = np.asarray(one, "float64"), np.asarray(other, "float64")
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance * np.abs(other).max())


@pytest.mark.parametrize("distillation_loss", LOSSES, ids=lambda distillation_loss: f"{distillation_loss.name}")
def test_values_and_gradients_are_those_of_the_dense_form(distillation_loss):
    expected, expected_gradients = dense(distillation_loss)
    actual, gradients = fused(distillation_loss)
    assert_close(actual, expected)
    assert_close(gradients, expected_gradients)


def test_xla_gives_the_same():
    expected, expected_gradients = dense()
    actual, gradients = fused(jit_compile=True)
    assert_close(actual, expected)
    assert_close(gradients, expected_gradients)


def test_values_are_those_of_the_formulas_in_float64():
    loss, _ = fused()
    soft = formulas.soft_labels(logits(TEACHER), logits(STUDENT), 2.0)
    hard = -formulas.log_softmax(logits(STUDENT))[np.arange(TOKENS), np.maximum(LABELS, 0)] * (LABELS >= 0)
    assert_close(loss, (np.sum(SOFT * soft + HARD * hard), soft, hard))


def test_the_chunk_size_does_not_change_the_result():
    expected = fused(chunk_bytes=2**30)
    for tokens in (1, 32):
        actual = fused(chunk_bytes=chunks_of(tokens))
        assert_close(actual[0], expected[0], 1e-6)
        assert_close(actual[1], expected[1], 1e-6)


@pytest.mark.parametrize("constant", [False, True])
def test_a_second_step_gives_the_same_as_the_first(constant):
    """Logits and sums are written to in place: where TensorFlow may fold them into constants, these have to stay."""
    variables = [tf.Variable(part) for part in STUDENT[:3]]

    @tf.function
    def step():
        teacher = TEACHER._replace(hidden=tf.constant(TEACHER.hidden))
        parts = [tf.constant(part) for part in STUDENT[:3]] if constant else variables
        with tf.GradientTape() as tape:
            tape.watch(parts)
            total = fused_loss(LOSSES[0], teacher, Head(*parts), LABELS, chunk_bytes=chunks_of(16)).total
        return tape.gradient(total, parts)

    expected = fused(soft_weights=1.0, hard_weights=1.0)[1]
    for _ in range(3):
        assert_close([3.0 * gradient for gradient in step()], expected)


def test_an_assigned_temperature_takes_effect_at_the_next_step():
    """What XLA compiles reads no variable: the temperature has to be handed to it in every step."""
    distillation_loss = keras_kd.losses.SoftLabels(temperature=1.0)
    step = tf.function(
        lambda hidden: (
            fused_loss(distillation_loss, TEACHER, STUDENT._replace(hidden=hidden), chunk_bytes=chunks_of(16)).soft
        )
    )
    for temperature in (1.0, 3.0):
        distillation_loss.temperature.assign(temperature)
        expected = formulas.soft_labels(logits(TEACHER), logits(STUDENT), temperature)
        assert_close([step(tf.constant(STUDENT.hidden))], [expected])


def traced_total():
    """A traced function from hidden states and kernel to the total."""

    @tf.function
    def total(hidden, kernel):
        return fused_loss(LOSSES[0], TEACHER, Head(hidden, kernel), LABELS, chunk_bytes=chunks_of(16)).total

    return total


def test_a_tape_around_a_traced_step_finds_the_gradient():
    parts = [tf.constant(part) for part in STUDENT[:2]]
    gradients = []
    for total in (traced_total(), traced_total().python_function):
        with tf.GradientTape() as tape:
            tape.watch(parts)
            value = total(*parts)
        gradients.append(tape.gradient(value, parts))
    assert_close(*gradients)


def test_a_graph_ends_with_the_last_that_refers_to_it():
    """TensorFlow by itself keeps the graph of a custom gradient, and the variables that it reads, for good."""
    total = traced_total()
    graph = weakref.ref(total.get_concrete_function(*STUDENT[:2]).graph)
    registered = len(gradient_registry.list())
    del total
    gc.collect()
    assert graph() is None and len(gradient_registry.list()) < registered


def test_two_losses_of_one_step_do_not_share_their_sums():
    @tf.function
    def step(kernel):
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(kernel)
            one, other = (
                fused_loss(distillation_loss, TEACHER, STUDENT._replace(kernel=kernel), chunk_bytes=chunks_of(16)).total
                for distillation_loss in (LOSSES[0], LOSSES[2])
            )
        return tape.gradient(one, kernel), tape.gradient(other, kernel)

    actual = step(tf.constant(STUDENT.kernel))
    weights = {"labels": None, "soft_weights": 1.0}
    expected = [fused(distillation_loss, **weights)[1][1] / 3.0 for distillation_loss in (LOSSES[0], LOSSES[2])]
    assert_close(actual, expected)


def test_the_vocabulary_may_be_the_first_axis_of_the_kernel_and_the_bias_be_none():
    teacher, student = (side._replace(bias=np.zeros(VOCABULARY, "float32")) for side in (TEACHER, STUDENT))
    expected, (hidden_gradient, kernel_gradient, _) = dense(student=student, teacher=teacher)

    def tied(side):
        return Head(side.hidden, side.kernel.T, None, vocabulary_first=True)

    actual, gradients = fused(student=tied(student), teacher=tied(teacher))
    assert_close(actual, expected)
    assert_close(gradients, (hidden_gradient, tf.transpose(kernel_gradient)))


def test_tokens_may_be_in_sequences_of_unknown_number():
    expected, (hidden_gradient, *_) = dense()

    @tf.function(input_signature=[tf.TensorSpec((None, None, 7)), tf.TensorSpec((None, None, 5))])
    def step(student, teacher):
        shape = tf.shape(student)[:2]
        labels, soft, hard = (
            tf.reshape(tf.constant(values)[: tf.reduce_prod(shape)], shape) for values in (LABELS, SOFT, HARD)
        )
        with tf.GradientTape() as tape:
            tape.watch(student)
            loss = fused_loss(
                LOSSES[0],
                TEACHER._replace(hidden=teacher),
                STUDENT._replace(hidden=student),
                labels,
                soft_weights=soft,
                hard_weights=hard,
                chunk_bytes=chunks_of(16),
            )
        return loss, tape.gradient(loss.total, student)

    loss, gradient = step(STUDENT.hidden[None], TEACHER.hidden[None])
    assert loss.soft.shape == (1, TOKENS)
    assert_close((loss.total, loss.soft[0], loss.hard[0]), expected)
    assert_close([3.0 * gradient[0]], [hidden_gradient])
    loss, gradient = step(STUDENT.hidden[None, :9], TEACHER.hidden[None, :9])  # few enough to be taken at once
    assert_close((loss.soft[0], loss.hard[0]), [values[:9] for values in expected[1:]])
    assert_close([3.0 * gradient[0]], [hidden_gradient[:9]])


def test_tokens_of_weight_zero_and_negative_labels_are_skipped():
    soft, hard = SOFT.copy(), HARD.copy()
    soft[20:] = hard[20:] = 0
    loss, (hidden_gradient, *_) = fused(soft_weights=soft, hard_weights=hard)
    expected, _ = dense()
    np.testing.assert_allclose(loss.total, np.sum(soft * expected[1] + hard * expected[2]), rtol=1e-5)
    np.testing.assert_array_equal(hidden_gradient[20:], 0.0)
    np.testing.assert_array_equal(loss.hard[:3], 0.0)


def test_without_labels_there_is_no_crossentropy():
    loss, _ = fused(labels=None)
    assert loss.hard is None
    np.testing.assert_allclose(loss.total, np.sum(SOFT * dense()[0][1]), rtol=1e-5)


def test_the_gradient_of_a_weight_is_its_tokens_value():
    weight = tf.constant(0.5)
    with tf.GradientTape() as tape:
        tape.watch(weight)
        loss = fused_loss(LOSSES[0], TEACHER, STUDENT, soft_weights=weight)
    np.testing.assert_allclose(tape.gradient(loss.total, weight), np.sum(dense()[0][1]), rtol=1e-5)


def test_a_label_beyond_the_vocabulary_gives_nan():
    loss, _ = fused(labels=np.full(TOKENS, VOCABULARY))
    assert np.isnan(loss.hard).all()


def test_no_gradient_flows_to_the_teacher():
    kernel = tf.constant(TEACHER.kernel)
    with tf.GradientTape() as tape:
        tape.watch(kernel)
        loss = fused_loss(LOSSES[0], TEACHER._replace(kernel=kernel), STUDENT)
    assert tape.gradient(loss.total, kernel) is None


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_computed_in_float32(dtype):
    """What is left of the rounding is that of the inputs and of the gradients."""
    halves = [keras.ops.cast(part, dtype) for part in STUDENT[:3]]
    rounded = Head(*[np.asarray(keras.ops.cast(part, "float32")) for part in halves])
    expected, expected_gradients = dense(student=rounded)
    actual, gradients = fused(student=Head(*halves))
    assert_close(actual, expected)
    assert [gradient.dtype for gradient in gradients] == [dtype] * 3
    assert_close(gradients, expected_gradients, 0.01)


def test_top_tokens_are_a_teacher_whose_other_tokens_share_the_rest():
    log_probabilities = formulas.log_softmax(logits(TEACHER))
    ids = np.argsort(-log_probabilities, axis=-1)[:, :8]
    top = np.take_along_axis(log_probabilities, ids, axis=-1)
    decoded = np.repeat(np.log((1 - np.exp(top).sum(-1, keepdims=True)) / (VOCABULARY - 8)), VOCABULARY, axis=-1)
    np.put_along_axis(decoded, ids, top, axis=-1)
    as_head = Head(decoded.astype("float32"), np.eye(VOCABULARY, dtype="float32"), np.zeros(VOCABULARY, "float32"))
    for distillation_loss in LOSSES[0], LOSSES[2]:
        expected, expected_gradients = dense(distillation_loss, teacher=as_head)
        actual, gradients = fused(distillation_loss, teacher=TopClasses.of(ids, top, VOCABULARY))
        assert_close(actual, expected)
        assert_close(gradients, expected_gradients)


def published():
    """Teacher and student logits of the reference file, and its value for the two most probable tokens."""
    if not REFERENCE.exists():
        pytest.skip("needs shared/reference/losses.json")
    content = json.loads(REFERENCE.read_text())
    value = next(entry for entry in content["values"] if entry["name"].startswith("sparse top-2"))
    i, j = np.meshgrid(range(4), range(5), indexing="ij")
    return 3 * np.cos(2 + 5 * i + j), 2 * np.sin(1 + 5 * i + j), value


def test_top_tokens_give_the_published_value():
    """The published code lumps the other tokens together on both sides. By the chain rule of KL that is less by the
    teacher's rest times the divergence, among the other tokens, of the uniform distribution from the student's."""
    teacher, student, value = published()
    log_probabilities = formulas.log_softmax(teacher)
    ids = np.argsort(-log_probabilities, axis=-1)[:, :2]
    top = np.take_along_axis(log_probabilities, ids, axis=-1)
    others = np.take_along_axis(student, np.argsort(-log_probabilities, axis=-1)[:, 2:], axis=-1)
    among_others = formulas.kl(np.full(others.shape, 1 / 3), formulas.softmax(others))
    eye = np.eye(student.shape[-1])
    distillation_loss = keras_kd.losses.SoftLabels(temperature=1.0)
    total = fused_loss(distillation_loss, TopClasses.of(ids, top, 5), Head(student, eye)).total
    lumped = total - np.sum((1 - np.exp(top).sum(-1)) * among_others)
    np.testing.assert_allclose(lumped, value["missing_mass_uniform_tail"], rtol=1e-6)
    total = fused_loss(distillation_loss, Head(teacher, eye), Head(student, eye)).total
    np.testing.assert_allclose(total, value["full"], rtol=1e-6)


def test_it_runs_in_the_replicas_of_a_strategy():
    strategy = strategy_of(2)
    chunked = {"chunk_bytes": chunks_of(16)}
    with strategy.scope():
        kernel = tf.Variable(STUDENT.kernel)

    @tf.function
    def step():
        def of_replica():
            with tf.GradientTape() as tape:
                total = fused_loss(LOSSES[0], TEACHER, STUDENT._replace(kernel=kernel), LABELS, **chunked).total
            return total, tape.gradient(total, kernel)

        return strategy.run(of_replica)

    totals, gradients = step()
    expected = fused_loss(LOSSES[0], TEACHER, STUDENT, LABELS).total
    assert_close(strategy.experimental_local_results(totals), [expected] * 2)
    one, other = strategy.experimental_local_results(gradients)
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def largest_array(function):
    """Elements of the largest tensor in a traced function and in all that it calls."""
    definition = function.graph.as_graph_def(add_shapes=True)
    nodes = [*definition.node, *(node for part in definition.library.function for node in part.node_def)]
    shapes = [tf.TensorShape(shape) for node in nodes for shape in node.attr["_output_shapes"].list.shape]
    return max(shape.num_elements() or 0 for shape in shapes if shape.rank is not None)


def test_no_array_of_tokens_by_vocabulary_is_made():
    tokens, vocabulary = 512, 1009
    teacher, student = (head(width, seed, tokens, vocabulary) for width, seed in ((5, 1), (7, 2)))

    def graph_of(total):
        def step(hidden):
            with tf.GradientTape() as tape:
                tape.watch(hidden)
                loss = total(hidden)
            return tape.gradient(loss, hidden)

        return tf.function(step).get_concrete_function(tf.TensorSpec(student.hidden.shape))

    chunk = 32
    as_chunks = graph_of(
        lambda hidden: (
            fused_loss(LOSSES[0], teacher, student._replace(hidden=hidden), chunk_bytes=4 * chunk * vocabulary).total
        )
    )
    whole = graph_of(lambda hidden: LOSSES[0](logits(teacher), hidden @ student.kernel))
    assert largest_array(as_chunks) == chunk * vocabulary
    assert largest_array(whole) == tokens * vocabulary  # so the count sees them where they are


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"loss": keras_kd.losses.DIST()},
            TypeError,
            "loss must be a keras_kd.losses.DistillationLoss that has a value for each",
        ),
        ({"loss": keras_kd.losses.DecoupledKD()}, ValueError, "decoupled_kd needs labels"),
        ({"student": STUDENT.hidden}, TypeError, "student must be a keras_kd.large_vocabulary.Head"),
        ({"teacher": TEACHER.hidden}, TypeError, "teacher must be a keras_kd.large_vocabulary.Head or TopClasses"),
        ({"chunk_bytes": 0}, ValueError, "chunk_bytes must be >= 1"),
        ({"student": STUDENT._replace(kernel=STUDENT.kernel.T)}, ValueError, "vocabulary_first"),
        ({"student": STUDENT._replace(bias=np.zeros(3))}, ValueError, "bias"),
        ({"teacher": head(5, 1, vocabulary=99)}, ValueError, "one vocabulary"),
        ({"teacher": head(5, 1, tokens=36)}, ValueError, "as many tokens"),
        ({"labels": LABELS[1:]}, ValueError, "labels"),
        ({"teacher": TopClasses.of(np.zeros((TOKENS, 2)), np.zeros((TOKENS, 2)), 99)}, ValueError, "one vocabulary"),
    ],
)
def test_bad_arguments_are_refused(changes, error, message):
    arguments = {"loss": LOSSES[0], "teacher": TEACHER, "student": STUDENT} | changes
    with pytest.raises(error, match=message):
        fused_loss(**arguments)
