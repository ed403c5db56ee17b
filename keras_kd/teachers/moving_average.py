"""A teacher that is the student itself: its average over time, or its former generation."""

import math

import keras
import tensorflow as tf

from keras_kd._checks import require_count, require_distiller, require_model, require_number, require_tensorflow


class MeanTeacher(keras.callbacks.Callback):
    """Makes the teacher of a `Distiller` the exponential moving average of its student.

    Behind each step of the optimizer, for each weight: `teacher ← d · teacher + (1 − d) · student`, with
    `d = min(decay, 1 − 1 / (n + 1))` behind step n = 1, 2, …, as in the authors' code: the plain mean of the student at
    first (and of the teacher's initial weights, which so fade), the exponential average from step decay / (1 − decay)
    on. The statistics of BatchNormalization are averaged like the weights, as the teacher runs in inference mode;
    integer weights are copied.

    This is the one case in which keras_kd changes a teacher's weights: hand in a model of its own,
    `keras.models.clone_model(student)`, which may start from any weights. Nothing else is changed: its `trainable`
    flags stay, and the average is kept in float32 however the models compute.

    A step is one of the optimizer: with gradient accumulation the teacher moves when the student does. With
    `steps_per_execution=k` it moves once for k steps, `d` being the product of the k decays: it forgets as fast, but
    sees the student of the last of these steps only, and teaches unchanged through them.

    The step is read off `optimizer.iterations` and the average is the teacher's weights: nothing else is kept. To go on
    exactly where training stopped, keep both: `distiller.save("d.keras")` and `teacher.save_weights("t.weights.h5")`.

    Args:
        decay: Share in [0, 1) of the average that stays, a step; 0.99 to 0.9999 is usual.
        warmup_steps: Steps ≥ 0 in which d may be below `decay`; None: as many as the formula has,
            decay / (1 − decay); 0: none, for a teacher that is worth keeping from the start.

    Raises:
        TypeError: An argument is not a number; `fit` is called on another model than a `keras_kd.Distiller`.
        ValueError: An argument is out of range. When `fit` begins: teacher and student differ in their weights' number
            or shapes, or share some; a weight of the teacher is of half precision; the teacher's outputs are stored.

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
        """d behind the optimizer's step n = 1, 2, …"""
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
        """The product of the decays behind the steps `done + 1` to `step`: 1 where there was none."""
        # n / (n + 1) over the warm-up's share of these steps leaves the ends: (done + 1) / (end + 1).
        end = tf.clip_by_value(float(self.warmup_steps), done, step)
        return (done + 1.0) / (end + 1.0) * tf.pow(self.decay, step - end)


def born_again(teacher, make_student, fit, *, generations=3):
    """Born-again networks: each generation's student is the teacher of the next.

    ```
    teacher ─► student 1 ─► student 2 ─► … ─► student n
    ```

    Students of the teacher's own architecture often end up better than it. Averaged, the generations form the paper's
    ensemble: see `keras_kd.teachers.ensemble`.

    Args:
        teacher: A trained `keras.Model`, the teacher of the first generation.
        make_student: Called without arguments once a generation; returns a new, untrained `keras.Model`.
        fit: Called as `fit(teacher, student)` once a generation; trains the student in place. Losses, optimizer,
            callbacks and data are all its own choice.
        generations: How many students, at least 1.

    Returns:
        The trained students in a list, the last generation at its end.

    Raises:
        TypeError: `teacher` or what `make_student` returns is no `keras.Model`, or `make_student` or `fit` cannot be
            called.
        ValueError: `generations` is below 1; a student is an earlier model or shares weights with one, so that training
            it would change that one.

    Example:

    >>> x, y = np.random.rand(64, 8), np.random.randint(0, 3, 64)
    >>> teacher = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
    >>> def fit(teacher, student):
    ...     distiller = keras_kd.Distiller(teacher, student, keras_kd.losses.SoftLabels(temperature=1.0))
    ...     distiller.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    ...     distiller.fit(x, y, verbose=0)
    >>> students = keras_kd.teachers.born_again(teacher, lambda: keras.models.clone_model(teacher), fit, generations=2)
    >>> [student.predict(x, verbose=0).shape for student in students]
    [(64, 3), (64, 3)]

    Reference: Furlanello et al., "Born-Again Neural Networks", ICML 2018 (https://arxiv.org/abs/1805.04770).
    """
    require_model(teacher, "teacher")
    for value, argument in ((make_student, "make_student"), (fit, "fit")):
        if not callable(value):
            raise TypeError(f"{argument} must be callable, got {type(value).__name__}: {value!r}.")
    students = []
    for generation in range(1, require_count(generations, "generations", at_least=1) + 1):
        student = require_model(make_student(), "what make_student returns")
        for earlier in (teacher, *students):
            _require_apart(earlier, student, f"the student of generation {generation}")
        fit(students[-1] if students else teacher, student)
        students.append(student)
    return students


def _require_apart(teacher, student, role):
    """Raise ValueError if training the student would change the teacher."""
    of_teacher = {id(variable) for variable in teacher.weights}
    shared = [variable.path for variable in student.weights if id(variable) in of_teacher]
    if student is teacher or shared:
        what = f"shares {len(shared)} weights with" if student is not teacher else "is the same model as"
        raise ValueError(
            f"{role} {what} {teacher.name!r}: training one would change the other. Give each model weights of its own, "
            "for instance with keras.models.clone_model."
        )


def _teacher_and_student(distiller):
    require_tensorflow("MeanTeacher")
    if require_distiller(distiller, "MeanTeacher").learns_from_precomputed_outputs:
        raise ValueError(
            "MeanTeacher changes the teacher while the student learns, but the data bring along what the teacher said "
            "before. Give fit data without outputs, and no cache=."
        )
    _require_apart(distiller.teacher, distiller.student, "the student")
    return distiller.teacher, distiller.student


def _paired_weights(teacher, student):
    """The weights of both models side by side, after checking that they fit."""
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
    """`kept · old + (1 − kept) · new` in the dtype of `old`; of weights that cannot be averaged, `new`."""
    new = tf.cast(new, old.dtype)
    if not new.dtype.is_floating:
        return new
    kept = tf.cast(kept, new.dtype)
    return kept * tf.convert_to_tensor(old) + (1.0 - kept) * new
