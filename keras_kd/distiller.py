"""Distiller: one teacher pass, one student pass, one sum."""

import functools

import keras

from keras_kd._checks import require_choice, require_model, require_number
from keras_kd._keras_private import functional_graph, random_states, symbolic_result
from keras_kd.balancing import Balance
from keras_kd.cache.building import cached
from keras_kd.losses.base import scalar_value, scalar_variable
from keras_kd.losses.keras_losses import loss_list
from keras_kd.outputs.pairing import Pairing
from keras_kd.outputs.precomputed import PrecomputedBatch, PrecomputedTeacher, precomputed_spec
from keras_kd.outputs.reader import output_names
from keras_kd.steps import Step, data_checks
from keras_kd.steps.observers import Observers


@keras.saving.register_keras_serializable(package="keras_kd")
class Distiller(Step, keras.Model):
    """Trains a student on labels and on what a teacher says: `L = hard_weight · L_raw + soft_weight · Σ wᵢ Lᵢ`.

    `L_raw` is the loss given to `compile`, on the labels; each `Lᵢ` is a loss, for instance `SoftLabels`; wᵢ is
    the loss's weight; `soft_weight` is the λ of the formula. Regularization losses of the student are added.
    A step runs the teacher once, in inference mode and outside the gradient tape, and the student once.

    Everything else is the student's: `distiller(x)`, `predict` and `evaluate` give what the student alone gives,
    `export` exports it, and `evaluate` never runs the teacher. The teacher comes out as it went in: weights,
    `trainable` flags and BatchNorm statistics. It is no part of the distiller's weights, checkpoints, copies or saved
    file; after `keras.saving.load_model(path)`, hand it in again: `distiller.teacher = teacher`.

    Works as `keras.Model.fit` does: sample and class weights, masks, several outputs, dict inputs, metrics,
    `steps_per_execution`, `jit_compile`, gradient accumulation, mixed precision, `tf.distribute` strategies.
    Unlabelled data: compile with `loss=None`, or leave `y` out; for partly labelled data, give the unlabelled
    examples label -1 and `loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)`.

    The logs of `fit` show `loss` (L), `hard_loss` (L_raw), each loss under its own name (Lᵢ, without its
    weight) and, at the end of an epoch, `soft_weight`. Those of `evaluate` show `loss`, which is the student's own
    (L_raw and regularization), and the metrics.

    Probabilities taken for logits are the commonest mistake: where an output is known to end in softmax, losses
    over distributions take its log, which gives the same softened distributions. It is known of functional and
    sequential models, from the last layer or activation; subclassed models must give logits, and so must a model that
    hides its softmax in a `Lambda`. An output that ends in sigmoid, or in a softmax over another axis than the last, is
    refused.

    Args:
        teacher: A built `keras.Model`, or None to hand it in before `fit`: `distiller.teacher = teacher`. Teacher and
            student get the same `x`; of a dict, each model reads the entries that have the names of its inputs. The
            student itself, where an output of it teaches another: see `teacher_output` of `DistillationLoss`.
        student: A `keras.Model`, the one that is trained. If it is not built yet, it is built for the teacher's input.
        losses: An `DistillationLoss` or a list of them; `SoftLabels()` if not given. A `keras.losses.Loss` or a
            `keras.distillation.DistillationLoss` will do as well: see `KerasLoss`.
        soft_weight: λ ≥ 0, kept in the variable `distiller.soft_weight`, which callbacks may change without retracing.
        hard_weight: Factor ≥ 0 of `L_raw`, kept in the variable `distiller.hard_weight`.
        balance: `UncertaintyBalance()` or `GradientNormBalance()`, which find a further factor for each loss while
            training; None: no such factors.
        fuse_logits: Whether soft labels (or what else goes token by token) and the cross-entropy are computed from the
            last layers' inputs, without the logits, which for a large vocabulary are most of a step's memory. Both
            models have to be functional, with one output from a `Dense` or a `ReversibleEmbedding`; `compile` has to
            have no metrics, and the loss `SparseCategoricalCrossentropy(from_logits=True)` or None. True: always, or
            a ValueError says why not; False: never; None: where it can be had and there are 16,384 classes or more.
        name: Name of the model.

    Raises:
        TypeError: teacher or student is not a `keras.Model`, a loss is not an `DistillationLoss`, a weight not a number.
        ValueError: A model is unbuilt and cannot be built; class counts or other shapes do not fit; an unknown layer;
            a negative weight; a student made outside the active `tf.distribute` scope; two losses of one name.
            `fit` raises it for an empty dataset, labels out of range, a teacher that shares trainable weights with the
            student, and a batch on which the teacher gives NaN or infinite values.

    Example:

    >>> teacher = keras.Sequential([keras.Input((8,)), keras.layers.Dense(64, "relu"), keras.layers.Dense(3)])
    >>> student = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
    >>> distiller = keras_kd.Distiller(teacher, student, keras_kd.losses.SoftLabels(temperature=4.0), soft_weight=0.5)
    >>> distiller.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    >>> history = distiller.fit(np.random.rand(64, 8), np.random.randint(0, 3, 64), verbose=0)
    >>> sorted(history.history)
    ['accuracy', 'hard_loss', 'loss', 'soft_labels', 'soft_weight']

    Reference: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015
    (https://arxiv.org/abs/1503.02531).
    """

    def __init__(
        self,
        teacher,
        student,
        distillation_losses=None,
        *,
        soft_weight=1.0,
        hard_weight=1.0,
        balance=None,
        fuse_logits=None,
        name=None,
    ):
        require_model(student, "student")
        super().__init__(name=name, dtype=student.dtype_policy, autocast=False)  # the student casts its own inputs
        self.distillation_losses = loss_list(distillation_losses)
        self.soft_weight = scalar_variable(require_number(soft_weight, "soft_weight", at_least=0.0), "soft_weight")
        self.hard_weight = scalar_variable(require_number(hard_weight, "hard_weight", at_least=0.0), "hard_weight")
        self.balance = _built_balance(balance, self.distillation_losses)
        self.fuse_logits = require_choice(fuse_logits, "fuse_logits", [True, False, None])
        self._loss_variables = [v for o in self.distillation_losses for v in o.hyperparameters().values()]
        self.projections = {}
        if teacher is not None:
            _require_built_teacher(teacher)
        _build_student(student, teacher)
        self.require_in_scope(student)
        self.student = student
        self.output_names = output_names(student) or None
        self._live_pairing = Pairing(self.distillation_losses, student)
        self._precomputed_pairing = None
        self._logged_hyperparameters = {"soft_weight": None}
        self._observers = Observers()
        self.hard_loss_tracker = keras.metrics.Mean(name="hard_loss")
        self.distillation_loss_trackers = [keras.metrics.Mean(name=loss.name) for loss in self.distillation_losses]
        self.built = student.built
        if teacher is not None:
            self.teacher = teacher

    # The teacher -------------------------------------------------------------------------------------------------

    @property
    def teacher(self):
        """The teacher, or None. Assign it after loading a saved distiller; it is checked against the student."""
        return self._live_pairing.teacher

    @teacher.setter
    def teacher(self, teacher):
        _require_built_teacher(teacher)
        self._live_pairing = self._checked_pairing(teacher)
        self.train_function = self.test_function = None

    @property
    def learns_from_precomputed_outputs(self):
        """Whether the data of the last `fit` brought the teacher's outputs along."""
        return self._precomputed_pairing is not None

    def pairing_of(self, x):
        """The outputs of a batch, or of a spec of one: the live teacher's, or those that the batch brings along."""
        if isinstance(x, PrecomputedBatch) and self._precomputed_pairing is None:
            return self._pairing(PrecomputedTeacher(x))
        precomputed = isinstance(x, PrecomputedBatch) or (
            self.teacher is None and self._precomputed_pairing is not None
        )
        return self._precomputed_pairing if precomputed else self._live_pairing

    def _pairing(self, teacher):
        return Pairing(self.distillation_losses, self.student, teacher, fuse_logits=self.fuse_logits)

    def _checked_pairing(self, teacher):
        """The outputs of a teacher and of the student; makes the projections that the losses ask for."""
        pairing = self._pairing(teacher)
        widths = {}
        for loss, pair in pairing.symbolic_pairs():
            self._fit_projection(loss, pair, widths)
            loss.check_shapes(tuple(pair.teacher.shape), tuple(self.project(pair).shape))
        return pairing

    def __setattr__(self, name, value):
        # Keras tracks, and so trains and saves, every layer that is set on a model: the teacher goes round it.
        if name == "teacher":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def __dir__(self):
        # Keras saves what it finds in dir(model): the teacher is not ours to save.
        return [name for name in super().__dir__() if name != "teacher"]

    # The student's face ------------------------------------------------------------------------------------------

    def call(self, inputs, training=None):
        return self.student(self._live_pairing.inputs_of_student(inputs), training=training)

    def fit(self, x=None, y=None, *args, cache=None, **kwargs):
        """Train the student, as `keras.Model.fit` trains a model.

        Args:
            x, y, args, kwargs: As of `keras.Model.fit`. `x` may be a dataset whose batches bring the teacher's outputs
                along: see `keras_kd.cache_teacher_outputs`.
            cache: A folder for the teacher's outputs of a `tf.data.Dataset` `x`: what is not stored there yet is stored
                before training, as `keras_kd.cache_teacher_outputs` does it, and the student learns from the stored
                outputs. Or `{"path": folder, ...}` with the arguments `key`, `padding`, `preprocessing`, `top_k`,
                `sampled`, `dtype` and `shard_bytes` of `cache_teacher_outputs`. Examples are known by their content:
                augment the dataset that `cache_teacher_outputs` returns instead, or give ids, `key="id"`. With a
                finished cache no teacher is needed; the arguments are then compared with how it was stored.

        Returns:
            The `History`.
        """
        data_checks.require_batches(x)
        data_checks.require_labels_in_range(self, y)
        if cache is not None:
            x = cached(x, cache, self, verbose=kwargs.get("verbose", 1))
        spec = precomputed_spec(x)
        if spec is None:
            self._live_pairing.require_teacher()
            self._precomputed_pairing = None
        elif self._precomputed_pairing is None or not self._precomputed_pairing.teacher.reads(spec):
            self._precomputed_pairing = self._checked_pairing(PrecomputedTeacher(spec))
        return super().fit(x, y, *args, **kwargs)

    @functools.wraps(keras.Model.export)
    def export(self, *args, **kwargs):
        return self.student.export(*args, **kwargs)

    def build(self, input_shape):
        if not self.student.built:
            self.student.build(input_shape)
        self.built = True

    # Knobs, outputs and losses -----------------------------------------------------------------------------------

    @property
    def hyperparameters(self):
        """Every variable that a callback may change while training, by name.

        `{"soft_weight": λ, "hard_weight": …, "soft_labels_weight": w, "soft_labels_temperature": T, …}`
        """
        hyperparameters = {"soft_weight": self.soft_weight, "hard_weight": self.hard_weight}
        for loss in self.distillation_losses:
            hyperparameters |= {f"{loss.name}_{name}": v for name, v in loss.hyperparameters().items()}
        return hyperparameters

    def project(self, pair):
        """A pair's student output, behind its projection where it has one."""
        projection = self.projections.get(pair.projection)
        return pair.student if projection is None else projection(pair.student)

    def log_hyperparameter(self, name):
        """Show a hyperparameter in the logs of each epoch, beside `soft_weight`, which is always there."""
        if name not in self.hyperparameters:
            raise ValueError(
                f"{name!r} is not a hyperparameter of this distiller; its hyperparameters are {sorted(self.hyperparameters)}."
            )
        self._logged_hyperparameters = dict.fromkeys([*self._logged_hyperparameters, name])

    def hyperparameter_logs(self):
        """The values of the logged hyperparameters by name, and the factors of the losses where they are balanced."""
        logs = {name: scalar_value(self.hyperparameters[name]) for name in self._logged_hyperparameters}
        if self.balance is None:
            return logs
        factors = keras.ops.convert_to_numpy(self.balance.current())
        return logs | {f"{n}_balance": float(f) for n, f in zip(self.balance.loss_names, factors, strict=True)}

    def _fit_projection(self, loss, pair, widths):
        """Make the projection that a loss asks for, unless there is one already.

        Args:
            widths: `{name of a projection: (features of the teacher, of the student)}`, of the pairs so far.
        """
        teacher_shape, student_shape = tuple(pair.teacher.shape), tuple(pair.student.shape)
        if pair.projection not in self.projections:
            projection = loss.make_projection(teacher_shape, student_shape)
            if projection is None:
                return
            projection.build(student_shape)
            self.projections[pair.projection] = projection
        made_for = widths.setdefault(pair.projection, (teacher_shape[-1], student_shape[-1]))
        if made_for != (teacher_shape[-1], student_shape[-1]):
            raise ValueError(
                f"{loss.name} has one projection, from {made_for[1]} features to {made_for[0]}, but one of its "
                f"pairs has {student_shape} in the student and {teacher_shape} in the teacher. Take one loss for "
                "each width, each with its own name=."
            )

    # Saving ------------------------------------------------------------------------------------------------------

    def get_config(self):
        return {
            "name": self.name,
            "student": keras.saving.serialize_keras_object(self.student),
            "losses": [keras.saving.serialize_keras_object(loss) for loss in self.distillation_losses],
            "soft_weight": scalar_value(self.soft_weight),
            "hard_weight": scalar_value(self.hard_weight),
            "balance": self.balance and keras.saving.serialize_keras_object(self.balance),
            "fuse_logits": self.fuse_logits,
            "teaches_itself": self._live_pairing.of_itself,
            "projections": {
                name: keras.saving.serialize_keras_object(layer) for name, layer in self.projections.items()
            },
        }

    def save_own_variables(self, store):
        for index, variable in enumerate(self._own_state()):
            store[str(index)] = variable.numpy()

    def load_own_variables(self, store):
        for index, variable in enumerate(self._own_state()):
            variable.assign(store[str(index)])

    def _own_state(self):
        """What is saved beside the student, the optimizer and the projections: the hyperparameters, and where Dropout stands."""
        return [*self.hyperparameters.values(), *random_states(self.student)]

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """Rebuild a distiller without its teacher; assign `distiller.teacher` before `fit`."""
        config = dict(config)
        projections, teaches_itself = config.pop("projections"), config.pop("teaches_itself")
        deserialize = keras.saving.deserialize_keras_object
        student = deserialize(config.pop("student"), custom_objects=custom_objects)
        distillation_losses = [deserialize(o, custom_objects=custom_objects) for o in config.pop("losses")]
        config["balance"] = config["balance"] and deserialize(config["balance"], custom_objects=custom_objects)
        distiller = cls(student if teaches_itself else None, student, distillation_losses, **config)
        distiller.projections = {name: deserialize(layer) for name, layer in projections.items()}
        return distiller


def load_distiller(path, teacher=None, *, custom_objects=None):
    """Load a distiller that `distiller.save(path)` wrote, and hand it its teacher again.

    `fit` then goes on where it stopped: student, optimizer, λ, temperatures and step are as saved.

    Args:
        path: A `.keras` file.
        teacher: The teacher, a built `keras.Model`; the file does not hold it. Leave it out for a model that teaches
            itself, or to hand it in later: `distiller.teacher = teacher`.
        custom_objects: As in `keras.saving.load_model`, for the student's own classes.

    Raises:
        TypeError: The file holds another kind of model.
        ValueError: The teacher does not fit the student.
    """
    distiller = keras.saving.load_model(path, custom_objects=custom_objects)
    if not isinstance(distiller, Distiller):
        raise TypeError(f"path must hold a saved Distiller, but {path} holds a {type(distiller).__name__}.")
    if teacher is not None:
        distiller.teacher = teacher
    return distiller


def _built_balance(balance, distillation_losses):
    if balance is None:
        return None
    if not isinstance(balance, Balance):
        raise TypeError(
            f"balance must be a keras_kd.UncertaintyBalance or GradientNormBalance, or None, got {balance!r}."
        )
    balance.setup(["hard_loss", *(loss.name for loss in distillation_losses)])
    return balance


def _require_built_teacher(teacher):
    if not require_model(teacher, "teacher").built:
        raise ValueError(
            f"teacher {teacher.name!r} is not built, so it holds no trained weights. Call it once on a batch, or give "
            "it a keras.Input, and load its weights first."
        )


def _build_student(student, teacher):
    """Build an unbuilt student for the teacher's input, the only one that is known before `fit`."""
    if student.built:
        return
    way_out = "Give the student a keras.Input, or call it once on a batch."
    graph = None if teacher is None else functional_graph(teacher)
    if graph is None:
        shown_by = "no teacher is given" if teacher is None else f"the teacher, a {type(teacher).__name__}, shows none"
        raise ValueError(
            f"student {student.name!r} is not built, and there is no input to build it for: {shown_by}. {way_out}"
        )
    try:
        symbolic_result(student, graph.input)
    except Exception as error:
        shapes = keras.tree.map_structure(lambda tensor: tensor.shape, graph.input)
        raise ValueError(
            f"student {student.name!r} is not built and could not be built for the teacher's input {shapes}: {error}. "
            f"{way_out}"
        ) from error
