"""A teacher that is the average of the student over time."""

import math

import keras
import tensorflow as tf

from keras_kd._checks import require_count, require_distiller, require_number, require_tensorflow


class MeanTeacher(keras.callbacks.Callback):
    """Callback that makes the teacher of a `Distiller` the exponential moving average of its student.

    After step n = 1, 2, … of the optimizer, for each weight: `teacher ← d · teacher + (1 − d) · student`, with
    `d = min(decay, 1 − 1 / (n + 1))`, as in the authors' code: the plain mean of the student and the teacher's initial
    weights at first, the exponential average from step decay / (1 − decay) on. Statistics of BatchNormalization are
    averaged like weights, since the teacher runs in inference mode; integer weights are copied.

    This is the only case in which keras_kd changes a teacher's weights: pass a model of its own,
    `keras.models.clone_model(student)`, with any weights. The average is kept in float32.

    With gradient accumulation the teacher moves when the student does. With `steps_per_execution=k` it moves once per k
    steps, with the product of the k decays, from the student after the last of them.

    To continue exactly where training stopped, save both: `distiller.save("d.keras")`, which holds the step, and
    `teacher.save_weights("t.weights.h5")`, the average.

    Args:
        decay: d in [0, 1), the share of the old average; 0.99 to 0.9999 is usual.
        warmup_steps: Steps ≥ 0 in which d may be below `decay`. None: those of the formula, decay / (1 − decay). 0:
            none, for a teacher that is already trained.

    Raises:
        TypeError: An argument is not a number; `fit` is called on another model than a `keras_kd.Distiller`.
        ValueError: An argument is out of range. When `fit` begins: teacher and student differ in their weights' number
            or shapes, or share some; a weight of the teacher is in half precision; the teacher's outputs are cached.

    Example:

    >>> student = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
    >>> teacher = keras.models.clone_model(student)
    >>> distiller = keras_kd.Distiller(teacher, student, keras_kd.losses.SoftLabels(temperature=1.0))
    >>> distiller.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1))
    >>> x, y = np.random.rand(64, 8), np.random.randint(-1, 3, 64)  # -1: unlabelled
    >>> mean_teacher = keras_kd.teachers.MeanTeacher(decay=0.99)
    >>> history = distiller.fit(x, y, verbose=0, callbacks=[mean_teacher])
    >>> [round(mean_teacher.decay_at(step), 3) for step in (1, 2, 9, 98, 99, 1000)]
    [0.5, 0.667, 0.9, 0.99, 0.99, 0.99]

    Reference: Tarvainen and Valpola, "Mean teachers are better role models: Weight-averaged consistency targets improve
    semi-supervised deep learning results", NeurIPS 2017 (https://arxiv.org/abs/1703.01780), and its code,
    https://github.com/CuriousAI/mean-teacher.
    """

    def __init__(self, decay=0.999, *, warmup_steps=None):
        super().__init__()
        self.decay = require_number(decay, "decay", at_least=0.0, hint="0.99 to 0.9999 is usual.")
        if self.decay >= 1.0:
            raise ValueError(f"decay must be < 1, got {decay!r}: at 1 the teacher never changes.")
        formula_steps = math.floor(self.decay / (1.0 - self.decay))  # n / (n + 1) <= decay
        given = formula_steps if warmup_steps is None else require_count(warmup_steps, "warmup_steps", at_least=0)
        self.warmup_steps = min(formula_steps, given)

    def decay_at(self, step):
        """d after step n = 1, 2, … of the optimizer."""
        step = require_count(step, "step", at_least=1)
        return step / (step + 1) if step <= self.warmup_steps else self.decay

    def on_train_begin(self, logs=None):
        teacher, student = _teacher_and_student(self.model)
        pairs = _paired_weights(teacher, student)
        iterations = self.model.optimizer.iterations
        self._step = tf.Variable(tf.cast(iterations, tf.int64), trainable=False)

        @tf.function
        def average():
            step = tf.cast(self.model.optimizer.iterations, tf.int64)
            kept = self._kept(tf.cast(self._step, tf.float32), tf.cast(step, tf.float32))
            for old, new in pairs:
                old.assign(_average(old, new, kept))
            self._step.assign(step)

        self._average = average

    def on_train_batch_end(self, batch, logs=None):
        self._average()

    def _kept(self, done, step):
        """The product of the decays of steps `done + 1` to `step`; 1 if there was none."""
        # The product of n / (n + 1) over the warm-up's part of these steps is (done + 1) / (end + 1).
        end = tf.clip_by_value(float(self.warmup_steps), done, step)
        return (done + 1.0) / (end + 1.0) * tf.pow(self.decay, step - end)


def _teacher_and_student(distiller):
    require_tensorflow("MeanTeacher")
    if require_distiller(distiller, "MeanTeacher").learns_from_precomputed_outputs:
        raise ValueError(
            "MeanTeacher changes the teacher during training, but the data contain its earlier outputs. Call fit with "
            "data without teacher outputs, and without cache=."
        )
    teacher, student = distiller.teacher, distiller.student
    teacher_variables = {id(variable) for variable in teacher.weights}
    shared = [variable.path for variable in student.weights if id(variable) in teacher_variables]
    if student is teacher or shared:
        what = f"shares {len(shared)} weights with" if student is not teacher else "is the same model as"
        raise ValueError(
            f"the student {what} {teacher.name!r}: training one would change the other. Give each model weights of its "
            "own, for instance with keras.models.clone_model."
        )
    return teacher, student


def _paired_weights(teacher, student):
    way_out = "MeanTeacher needs a teacher of the student's architecture: keras.models.clone_model(student)."
    counts = len(teacher.weights), len(student.weights)
    if counts[0] != counts[1]:
        raise ValueError(f"the teacher has {counts[0]} weights, the student {counts[1]}. {way_out}")
    pairs = list(zip(teacher.weights, student.weights, strict=True))
    for old, new in pairs:
        if old.shape != new.shape:
            raise ValueError(f"teacher weight {old.path!r} is {old.shape}, student {new.path!r} {new.shape}. {way_out}")
        if old.dtype in ("float16", "bfloat16"):
            raise ValueError(
                f"teacher weight {old.path!r} is {old.dtype}, too coarse for the small steps of an average. Build the "
                "teacher with a policy whose variables are float32, for instance mixed_float16."
            )
    return pairs


def _average(old, new, kept):
    """`kept · old + (1 − kept) · new` in the dtype of `old`; for integers, `new`."""
    new = tf.cast(new, old.dtype)
    if not new.dtype.is_floating:
        return new
    kept = tf.cast(kept, new.dtype)
    return kept * tf.convert_to_tensor(old) + (1.0 - kept) * new
