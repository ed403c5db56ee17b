"""A training loop as one writes it by hand, without a library, on TensorFlow and on JAX."""

import keras
from keras import ops

TEMPERATURE = 4.0


def with_layers(model, names):
    """The model as one that gives its logits, then the features of the named layers."""
    return keras.Model(model.input, [model.output, *(model.get_layer(name).output for name in names)])


def distillation_loss(y, teacher, student):
    """L = cross-entropy of the labels + T² KL(p ‖ q) + Σ mean squared difference of features: the mean over the batch.

    Args:
        teacher, student: Logits, then features.
    """
    teacher, student = keras.tree.flatten(teacher), keras.tree.flatten(student)
    logits, *features = student
    hard = ops.mean(keras.losses.sparse_categorical_crossentropy(y, logits, from_logits=True))
    log_p, log_q = (ops.log_softmax(one[0] / TEMPERATURE, axis=-1) for one in (teacher, student))
    soft = TEMPERATURE**2 * ops.mean(ops.sum(ops.exp(log_p) * (log_p - log_q), axis=-1))
    pairs = zip(teacher[1:], features, strict=True)
    return hard + soft + sum(ops.mean(ops.square(of_teacher - of_student)) for of_teacher, of_student in pairs)


class TensorFlowLoop:
    """`forward` runs the teacher alone on every batch of a dataset, `train` a whole step; each compiled, once a batch.

    Args:
        teacher, student: Models made by `with_layers`.
        jit_compile: As Keras does by itself where there is a GPU.
    """

    def __init__(self, teacher, student, jit_compile=False):
        import tensorflow as tf

        optimizer = keras.optimizers.Adam()
        optimizer.build(student.trainable_variables)

        def on_one(x, y):
            answers = teacher(x, training=False)
            with tf.GradientTape() as tape:
                loss = distillation_loss(y, answers, student(x, training=True))
            gradients = tape.gradient(loss, student.trainable_variables)
            optimizer.apply_gradients(zip(gradients, student.trainable_variables, strict=True))
            return loss

        step = tf.function(on_one, jit_compile=jit_compile)
        self._step = tf.function(lambda iterator: step(*next(iterator)))
        self._forward = tf.function(lambda x: teacher(x, training=False), jit_compile=jit_compile)

    def forward(self, batches):
        """Run the teacher on batches that are tensors already."""
        for x, _ in batches:
            answers = self._forward(x)
        return ops.convert_to_numpy(keras.tree.flatten(answers)[0])

    def train(self, dataset):
        """The loss of every batch of an epoch."""
        iterator = iter(dataset)
        losses = [self._step(iterator) for _ in range(len(dataset))]
        return [float(loss) for loss in losses]


class JaxLoop:
    """The same on JAX."""

    def __init__(self, teacher, student, jit_compile=True):
        import jax

        optimizer = keras.optimizers.Adam()
        optimizer.build(student.trainable_variables)
        self._teacher = teacher

        def loss_of(trained, others, x, y, answers):
            predicted, others = student.stateless_call(trained, others, x, training=True)
            return distillation_loss(y, answers, predicted), others

        def forward(of_teacher, x):
            return teacher.stateless_call(*of_teacher, x, training=False)[0]

        def step(state, of_teacher, x, y):
            trained, others, of_optimizer = state
            answers = forward(of_teacher, x)
            (loss, others), gradients = jax.value_and_grad(loss_of, has_aux=True)(trained, others, x, y, answers)
            trained, of_optimizer = optimizer.stateless_apply(of_optimizer, gradients, trained)
            return loss, (trained, others, of_optimizer)

        self._forward, self._step = jax.jit(forward), jax.jit(step, donate_argnums=0)
        self._state = [
            [jax.numpy.copy(v.value) for v in variables]
            for variables in (student.trainable_variables, student.non_trainable_variables, optimizer.variables)
        ]

    def forward(self, batches):
        of_teacher = self._of_teacher()
        for x, _ in batches:
            answers = self._forward(of_teacher, x)
        return ops.convert_to_numpy(keras.tree.flatten(answers)[0])

    def train(self, dataset):
        of_teacher, losses = self._of_teacher(), []
        for x, y in dataset.as_numpy_iterator():
            loss, self._state = self._step(self._state, of_teacher, x, y)
            losses.append(loss)
        return [float(loss) for loss in losses]

    def _of_teacher(self):
        """The teacher's values as they are now: `keras.distillation` gives their arrays up to its step and gets new."""
        teacher = self._teacher
        return [[v.value for v in of_one] for of_one in (teacher.trainable_variables, teacher.non_trainable_variables)]


def loop(teacher, student, layers, jit_compile=False):
    """The loop of the backend that Keras runs on; `layers` as of a `Task`."""
    kinds = {"tensorflow": TensorFlowLoop, "jax": JaxLoop}
    if keras.config.backend() not in kinds:
        raise ValueError(f"the benchmark runs on {sorted(kinds)}, but Keras's backend is {keras.config.backend()}.")
    of_teacher, of_student = (with_layers(m, [pair[i] for pair in layers]) for i, m in enumerate((teacher, student)))
    return kinds[keras.config.backend()](of_teacher, of_student, jit_compile)
