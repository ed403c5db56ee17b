"""Distiller: one teacher pass, one student pass, one sum."""

import functools
import inspect

import keras

from keras_kd._checks import require_choice, require_model, require_teacher
from keras_kd._files import naming_damaged_file
from keras_kd._hyperparameters import Hyperparameter, scalar_value
from keras_kd._keras_private import functional_graph, random_states, symbolic_result
from keras_kd.balancing import UncertaintyBalance
from keras_kd.cache.building import cached, require_cacheable
from keras_kd.large_vocabulary.fusion import Fusion
from keras_kd.losses.base import loss_from_config
from keras_kd.losses.keras_losses import loss_list
from keras_kd.outputs.pairing import Pairing
from keras_kd.outputs.precomputed import PrecomputedBatch, PrecomputedTeacher, precomputed_spec
from keras_kd.outputs.reader import output_names
from keras_kd.steps import Step, data_checks
from keras_kd.steps.loss_terms import chosen_terms
from keras_kd.steps.observers import Observers

# What the steps are traced with.
_FIXED = {"student", "distillation_losses", "balance", "fuse_logits", "projections"}
_FIT = inspect.signature(keras.Model.fit)


def _checking_data(name):
    """The method of `keras.Model` of this name, which first refuses data that Keras would drop or misread."""
    signature = inspect.signature(getattr(keras.Model, name))

    @functools.wraps(getattr(keras.Model, name))
    def method(self, x=None, y=None, *args, **kwargs):
        data_checks.require_usable(self, x, y, signature.bind(self, x, y, *args, **kwargs).arguments)
        return getattr(super(Distiller, self), name)(x, y, *args, **kwargs)

    return method


@keras.saving.register_keras_serializable(package="keras_kd")
class Distiller(Step, keras.Model):
    """Trains a student on labels and on its teacher's outputs: `L = hard_weight · L_raw + soft_weight · Σ wᵢ Lᵢ`.

    `L_raw` is the loss of `compile`, on the labels; each `Lᵢ` is a distillation loss, `keras_kd.losses.SoftLabels` for
    instance, and wᵢ its weight; `soft_weight` is the λ of the formula. The student's regularization losses are added.
    Each step runs the teacher once, in inference mode and outside the gradient tape, and the student once.

    Everything else is the student's: `distiller(x)`, `predict`, `evaluate` and `export` are those of the student alone,
    and `evaluate` does not run the teacher. The teacher is never changed: neither its weights nor its `trainable` flags
    nor its BatchNormalization statistics. It is no part of the distiller's weights, checkpoints, copies or saved file:
    see `keras_kd.load_distiller`.

    `fit` works as `keras.Model.fit` does: sample and class weights, masks, several outputs, dict inputs, metrics,
    `steps_per_execution`, `jit_compile`, gradient accumulation, mixed precision, `tf.distribute` strategies. For
    unlabelled data, compile with `loss=None` or leave `y` out. For partly labelled data, give unlabelled examples the
    label -1 and compile with `keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)`.

    The logs of `fit` hold `loss` (L), `hard_loss` (L_raw), each distillation loss under its name (Lᵢ, without its
    weight) and, at the end of an epoch, `soft_weight`. Those of `evaluate` hold `loss`, which is the student's own
    (L_raw and regularization), and the metrics.

    Losses over distributions need logits. Where an output is known to end in softmax, they take its log, which gives
    the same softened distributions. The ending is known for functional and sequential models; a subclassed model, or
    one that hides its softmax in a `Lambda`, must give logits, and there is a warning if its first batch looks like
    probabilities. Outputs that end in sigmoid, or in a softmax over another axis than the last, are refused.

    Outputs are paired by name where both models have the same names, else by position. Tokens that are padding stay out
    of every loss over tokens: by the Keras mask, by an input called `padding_mask`, as KerasHub's models have it, or by
    the mask that the self-attention got.

    `soft_weight`, `hard_weight` and the weights and temperatures of the losses may be assigned at any time,
    `distiller.soft_weight = 0.5`, without a new trace. They are no weights of the model, so that early stopping with
    `restore_best_weights=True` leaves them alone; files and checkpoints hold them.

    Args:
        teacher: A built `keras.Model`; `keras_kd.teachers` makes one of other things. None to assign it before `fit`,
            `distiller.teacher = teacher`, or for data with precomputed outputs. Teacher and student get the same `x`;
            of a dict, each model reads the entries that have the names of its inputs. The student itself, where one of
            its outputs teaches another: see `teacher_output` of `keras_kd.losses.DistillationLoss`.
        student: The `keras.Model` to train. If it is not built yet, it is built for the teacher's input.
        distillation_losses: A `keras_kd.losses.DistillationLoss` or a list of them; `SoftLabels()` by default. A
            `keras.losses.Loss` or a `keras.distillation.DistillationLoss` works as well: see
            `keras_kd.losses.KerasLoss`.
        soft_weight: λ ≥ 0.
        hard_weight: Factor ≥ 0 of `L_raw`.
        balance: `UncertaintyBalance()`, which finds a further factor for each loss while training; None for no such
            factors.
        fuse_logits: Whether losses that go token by token, and the cross-entropy, are computed from the inputs of the
            last layers, without the logits, which for a large vocabulary are most of a step's memory. Both models must
            be functional, with one output from a `Dense` or a `ReversibleEmbedding`; `compile` must have no metrics,
            and the loss `SparseCategoricalCrossentropy(from_logits=True)` or None. True: always, or a ValueError gives
            the reason; False: never; None: where it is possible and there are 16,384 classes or more.
        name: Name of the model.

    Raises:
        TypeError: Teacher or student is no `keras.Model`, a loss no `DistillationLoss`; a weight or labels no numbers.
        ValueError: A model is unbuilt and cannot be built; class counts or other shapes do not fit; an unknown layer;
            a negative weight; a student made outside the active `tf.distribute` scope; two losses of one name.
            `fit` raises it for an empty dataset, a list of batches, labels out of range, weights without labels, shared
            trainable weights, and a batch on which the teacher gives NaN or infinite values.

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

    soft_weight = Hyperparameter(at_least=0.0)
    hard_weight = Hyperparameter(at_least=0.0)

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
        self.distillation_losses = tuple(loss_list(distillation_losses))
        self.soft_weight = soft_weight
        self.hard_weight = hard_weight
        self.balance = _built_balance(balance, self.distillation_losses)
        self.fuse_logits = require_choice(fuse_logits, "fuse_logits", [True, False, None])
        self.projections = {}
        if teacher is not None:
            require_teacher(teacher)
        _build_student(student, teacher)
        self.require_in_scope(student)
        self.student = student
        self.output_names = output_names(student) or None
        self._live = chosen_terms(self, Pairing(self.distillation_losses, student))
        self._precomputed = None
        self._logged_hyperparameters = {"soft_weight": None}
        self._observers = Observers()
        self.hard_loss_tracker = keras.metrics.Mean(name="hard_loss")
        self.distillation_loss_trackers = [keras.metrics.Mean(name=loss.name) for loss in self.distillation_losses]
        self.built = student.built
        if teacher is not None:
            self.teacher = teacher
        for loss in self.distillation_losses:
            loss.mark_in_use()
        self._is_made = True

    # The teacher -------------------------------------------------------------------------------------------------

    @property
    def teacher(self):
        """The teacher, or None. Assign it after loading a saved distiller; it is checked against the student."""
        return self._live.pairing.teacher

    @teacher.setter
    def teacher(self, teacher):
        require_teacher(teacher)
        self._live = self._connected(teacher)
        self.train_function = self.test_function = None

    @property
    def learns_from_precomputed_outputs(self):
        """Whether the data of the last `fit` held precomputed teacher outputs."""
        return self._precomputed is not None

    def terms_of(self, x):
        """The `LossTerms` for a batch, or for a spec of one: of precomputed outputs or of the live teacher."""
        if isinstance(x, PrecomputedBatch) and self._precomputed is None:
            return self._connected(PrecomputedTeacher(x))
        is_precomputed = isinstance(x, PrecomputedBatch) or (self.teacher is None and self._precomputed is not None)
        return self._precomputed if is_precomputed else self._live

    def _connected(self, teacher):
        """The `LossTerms` of a teacher and the student; makes the projections that the losses need."""
        fusion = Fusion.wanted(self.fuse_logits, self.distillation_losses, self.student, teacher)
        hooks = None if fusion is None else fusion.hooks()
        pairing = Pairing(self.distillation_losses, self.student, teacher, hooks=hooks)
        projections, widths = dict(self.projections), {}
        for loss, pair in pairing.symbolic_pairs():
            _fit_projection(loss, pair, projections, widths)
            loss.check_shapes(tuple(pair.teacher.shape), tuple(self.project(pair, projections).shape))
        if len(projections) > len(self.projections):
            self._set_projections(projections)
        return chosen_terms(self, pairing, fusion)

    def __setattr__(self, name, value):
        if name in _FIXED and self.__dict__.get("_is_made"):
            raise AttributeError(
                f"{name} of a distiller cannot be replaced, since its steps are traced with it. Make a new Distiller; "
                f"what can be assigned is teacher, {', '.join(self.hyperparameters)}."
            )
        if name == "teacher":
            # Keras tracks, and so trains and saves, every layer that is set on a model: the teacher bypasses that.
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def _set_projections(self, projections):
        """Track them in the order of their names: the optimizer's state must not depend on the order of the losses."""
        super().__setattr__("projections", dict(sorted(projections.items())))

    def __dir__(self):
        # Keras saves the layers that it finds in dir(model): no teacher, and the projections by name (see below).
        return [name for name in super().__dir__() if name not in ("teacher", "projections")]

    # As the student -------------------------------------------------------------------------------------------

    def call(self, inputs, training=None):
        return self.student(self._live.pairing.student_inputs(inputs), training=training)

    def fit(self, x=None, y=None, *args, cache=None, **kwargs):
        """Train the student, as `keras.Model.fit` trains a model.

        Args:
            x, y, args, kwargs: As in `keras.Model.fit`. `x` may also be a dataset of `keras_kd.PrecomputedBatch`es: see
                `keras_kd.cache_teacher_outputs`.
            cache: A folder for the teacher's outputs on the dataset `x`. If it holds none yet, the teacher runs over
                `x` once and stores them; then, and in later calls, the student learns from the folder. Examples are
                found by their content; give augmented data ids, `cache={"path": folder, "key": "id", "top_k": 50}`,
                whose further entries are arguments of `keras_kd.cache_teacher_outputs`. With a finished cache no
                teacher is needed; those entries are then compared with how it was stored.

        Returns:
            The `History`.
        """
        arguments = _FIT.bind(self, x, y, *args, **kwargs).arguments
        if cache is not None:
            require_cacheable(x, cache)  # before the other checks, which know no way out of what cannot be stored
        data_checks.require_usable(self, x, y, arguments)
        if cache is not None:
            x = cached(x, cache, self, verbose=arguments.get("verbose", 1))
        spec = precomputed_spec(x)
        if spec is None:
            self._live.pairing.require_teacher()
            self._precomputed = None
        elif self._precomputed is None or not self._precomputed.pairing.teacher.reads(spec):
            self._precomputed = self._connected(PrecomputedTeacher(spec))
        return super().fit(x, y, *args, **kwargs)

    evaluate = _checking_data("evaluate")
    train_on_batch = _checking_data("train_on_batch")
    test_on_batch = _checking_data("test_on_batch")

    @functools.wraps(keras.Model.export)
    def export(self, *args, **kwargs):
        return self.student.export(*args, **kwargs)

    def build(self, input_shape):
        if not self.student.built:
            self.student.build(input_shape)
        self.built = True

    # Hyperparameters and projections --------------------------------------------------------------------------------

    @property
    def hyperparameters(self):
        """Every variable that a callback may change while training, by name.

        `{"soft_weight": λ, "hard_weight": …, "soft_labels_weight": w, "soft_labels_temperature": T, …}`
        """
        hyperparameters = {"soft_weight": self.soft_weight, "hard_weight": self.hard_weight}
        for loss in self.distillation_losses:
            hyperparameters |= {f"{loss.name}_{name}": v for name, v in loss.hyperparameters().items()}
        return hyperparameters

    def project(self, pair, projections=None):
        """A pair's student output, after its projection where it has one, of its own by default."""
        projection = (self.projections if projections is None else projections).get(pair.projection)
        return pair.student if projection is None else projection(pair.student)

    def log_hyperparameter(self, name):
        """Show a hyperparameter in the logs of each epoch, beside `soft_weight`, which is always there."""
        if name not in self.hyperparameters:
            raise ValueError(
                f"{name!r} is no hyperparameter of this distiller, which has {sorted(self.hyperparameters)}."
            )
        self._logged_hyperparameters = dict.fromkeys([*self._logged_hyperparameters, name])

    def hyperparameter_logs(self):
        """The values of the logged hyperparameters by name, and the factors of the losses where they are balanced."""
        logs = {name: scalar_value(self.hyperparameters[name]) for name in self._logged_hyperparameters}
        if self.balance is None:
            return logs
        factors = keras.ops.convert_to_numpy(self.balance.factors())
        return logs | {f"{n}_balance": float(f) for n, f in zip(self.balance.loss_names, factors, strict=True)}

    # Saving ------------------------------------------------------------------------------------------------------

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        return {
            "name": self.name,
            "student": serialize(self.student),
            "distillation_losses": [serialize(loss) for loss in self.distillation_losses],
            "soft_weight": scalar_value(self.soft_weight),
            "hard_weight": scalar_value(self.hard_weight),
            "balance": self.balance and serialize(self.balance),
            "fuse_logits": self.fuse_logits,
            "teaches_itself": self._live.pairing.is_self_taught,
            "projections": {name: serialize(layer) for name, layer in self.projections.items()},
        }

    def save_own_variables(self, store):
        for name, variable in self._own_state().items():
            store[name] = variable.numpy()

    def load_own_variables(self, store):
        state, stored = self._own_state(), set(store.keys())
        if set(state) != stored:
            raise ValueError(
                "the file was saved by a distiller with other losses, projections or random layers: only the file has "
                f"{sorted(stored - set(state))}, only this distiller has {sorted(set(state) - stored)}. Make the "
                "distiller as the saved one was, or load it with keras_kd.load_distiller."
            )
        for name, variable in state.items():
            variable.assign(store[name])

    def _own_state(self):
        """What is saved besides student and optimizer, by name: hyperparameters, projections, random states."""
        state = {**self.hyperparameters}
        for name, layer in self.projections.items():
            state |= {f"projection.{name}.{variable.name}": variable for variable in layer.weights}
        return state | {f"random_state.{i}": variable for i, variable in enumerate(random_states(self.student))}

    def save(self, filepath, *args, **kwargs):
        """Save the distiller, without its teacher, as a `.keras` file: see `load_distiller`."""
        data_checks.require_keras_file(filepath)
        return super().save(filepath, *args, **kwargs)

    def load_weights(self, filepath, *args, **kwargs):
        """Load weights that `save_weights` or a backup wrote; a damaged file is named."""
        with naming_damaged_file(filepath):
            return super().load_weights(filepath, *args, **kwargs)

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """Rebuild a distiller without its teacher; assign `distiller.teacher` before `fit`."""
        config = dict(config)
        projections, teaches_itself = config.pop("projections"), config.pop("teaches_itself")
        deserialize = keras.saving.deserialize_keras_object
        student = deserialize(config.pop("student"), custom_objects=custom_objects)
        distillation_losses = [loss_from_config(one, custom_objects) for one in config.pop("distillation_losses")]
        config["balance"] = config["balance"] and deserialize(config["balance"], custom_objects=custom_objects)
        distiller = cls(student if teaches_itself else None, student, distillation_losses, **config)
        distiller._set_projections({name: deserialize(layer) for name, layer in projections.items()})
        return distiller


def load_distiller(path, teacher=None, *, custom_objects=None):
    """Load a distiller that `distiller.save(path)` wrote, and give it its teacher again.

    `fit` then goes on where it stopped: student, optimizer, λ, temperatures and step are as saved.

    Args:
        path: A `.keras` file.
        teacher: The teacher, a built `keras.Model`; the file does not hold it. Leave it out for a model that teaches
            itself, or to assign it later: `distiller.teacher = teacher`.
        custom_objects: As in `keras.saving.load_model`, for the student's own classes.

    Raises:
        TypeError: The file holds another kind of model.
        ValueError: The file is damaged, or the teacher does not fit the student.
    """
    try:
        with naming_damaged_file(path):
            distiller = keras.saving.load_model(path, custom_objects=custom_objects)
    except TypeError as error:
        raise _without_config(error) from None
    if not isinstance(distiller, Distiller):
        raise TypeError(f"path must hold a saved Distiller, but {path} holds a {type(distiller).__name__}.")
    if teacher is not None:
        distiller.teacher = teacher
    return distiller


def _without_config(error):
    """The error that Keras shows at the end of a page that holds the whole configuration; itself if there is none."""
    cause = error
    while cause.__cause__ is not None or cause.__context__ is not None:
        cause = cause.__cause__ or cause.__context__
        if "register_keras_serializable(package=" in str(cause):
            return TypeError(str(cause))
    *_, last = str(error).partition("Exception encountered: ")
    return TypeError(last) if last else error


def _built_balance(balance, distillation_losses):
    if balance is None:
        return None
    if not isinstance(balance, UncertaintyBalance):
        raise TypeError(f"balance must be a keras_kd.UncertaintyBalance or None, got {balance!r}.")
    balance.setup(["hard_loss", *(loss.name for loss in distillation_losses)])
    return balance


def _fit_projection(loss, pair, projections, widths):
    """Add the projection that a loss needs to `projections`, unless it is there already; note its two widths."""
    teacher_shape, student_shape = tuple(pair.teacher.shape), tuple(pair.student.shape)
    if pair.projection not in projections:
        projection = loss.make_projection(teacher_shape, student_shape)
        if projection is None:
            return
        projection.build(student_shape)
        projections[pair.projection] = projection
    pair_widths = (student_shape[-1], teacher_shape[-1])
    made_for = widths.setdefault(pair.projection, pair_widths)
    if made_for != pair_widths:
        raise ValueError(
            f"{loss.name} has one projection, from {made_for[0]} features to {made_for[1]}, but one of its pairs has "
            f"{student_shape} in the student and {teacher_shape} in the teacher. Use one loss per width, each named."
        )


def _build_student(student, teacher):
    """Build an unbuilt student for the teacher's input, the only one that is known before `fit`."""
    if student.built:
        return
    refused, way_out = f"student {student.name!r} is not built", "Give it a keras.Input, or call it once on a batch."
    graph = None if teacher is None else functional_graph(teacher)
    if graph is None:
        shown_by = "no teacher is given" if teacher is None else f"the teacher, a {type(teacher).__name__}, shows none"
        raise ValueError(f"{refused}, and there is no input to build it for: {shown_by}. {way_out}")
    try:
        symbolic_result(student, graph.input)
    except Exception as error:
        shapes = keras.tree.map_structure(lambda tensor: tensor.shape, graph.input)
        raise ValueError(
            f"{refused}, and could not be built for the teacher's input {shapes}: {error}. {way_out}"
        ) from error
