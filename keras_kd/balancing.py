"""Automatic weights of the losses: found while training, in place of a search for λ and the losses' weights."""

import keras
from keras import ops

from keras_kd._checks import require_count, require_number

_LARGEST = 100.0


class Balance(keras.layers.Layer):
    """Base class: a factor for `L_raw` and for each loss, beside the weights that are set by hand.

    `L = hard_weight · b₀ L_raw + soft_weight · Σ wᵢ bᵢ Lᵢ + penalty + regularization`. The logs of `fit` show the
    factors at the end of each epoch, `soft_labels_balance` for a loss called `soft_labels`. The distiller trains
    and saves them, and leaves them out when the student is exported. One object serves one distiller.

    A subclass makes its variables in `build_for(count)`, and gives the factors, `(losses,)`, in `current()`. One whose
    factors follow from more than its own variables extends `factors`.

    Attributes:
        needs_gradients: Whether `factors` is given the gradient norms of the losses.
    """

    needs_gradients = False

    def setup(self, names):
        """Make the variables for losses of these names; once."""
        if self.built and self.loss_names != names:
            raise ValueError(f"balance belongs to a distiller with the losses {self.loss_names}. Make a new one.")
        if not self.built:
            self.loss_names, self.built = names, True
            self.build_for(len(names))

    def require_supported(self, replicas, jit_compile):
        """Raise ValueError for a number of replicas, or for XLA, that the balance does not run with."""

    def factors(self, norms, step):
        """A factor for each loss, `(losses,)`, in a step of training.

        Args:
            norms: Where `needs_gradients`, a function that gives the norms of the losses' gradients, `(losses,)`.
            step: The number of steps gone by, a scalar integer tensor.
        """
        return self.current()

    def penalty(self, present):
        """What is added to the loss; `present` is a list of bool, whether each loss is there."""
        return 0.0


@keras.saving.register_keras_serializable(package="keras_kd")
class UncertaintyBalance(Balance):
    """Balance by uncertainty: each loss is divided by a variance that is learnt with the student.

    `L = Σ exp(−sᵢ) Lᵢ + ½ sᵢ`, `sᵢ = log σᵢ²`. At the best sᵢ the factor is `exp(−sᵢ) = 1 / (2 Lᵢ)`: losses of any
    size come to count alike, and one that falls counts more. The factors start at 1 and follow at the optimizer's pace.
    A cross-entropy that cannot fall to 0 is held down; that need not be the better student: compare with fixed weights.

    Args:
        name: Name of the layer.

    Example:

    >>> teacher, student = (keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)]) for _ in range(2))
    >>> distiller = keras_kd.Distiller(teacher, student, balance=keras_kd.UncertaintyBalance())
    >>> distiller.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    >>> history = distiller.fit(np.random.rand(32, 8), np.random.randint(0, 3, 32), verbose=0).history
    >>> sorted(name for name in history if name.endswith("balance"))
    ['hard_loss_balance', 'soft_labels_balance']

    Reference: Kendall, Gal and Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and
    Semantics", CVPR 2018 (https://arxiv.org/abs/1705.07115), equation 10.
    """

    def build_for(self, count):
        self.log_variances = self.add_weight(
            shape=(count,), initializer="zeros", dtype="float32", autocast=False, name="log_variances"
        )

    def current(self):
        return ops.exp(-self.log_variances)

    def penalty(self, present):
        return 0.5 * sum(self.log_variances[i] for i, is_present in enumerate(present) if is_present)


@keras.saving.register_keras_serializable(package="keras_kd")
class GradientNormBalance(Balance):
    """Balance by gradient norm: every loss pulls at the student's weights equally hard.

    `bᵢ = mean(g) / gᵢ`, gᵢ being a moving average of the norm of the gradient of loss i, with respect to all that is
    trained. The norms are measured every so many steps, which costs one backward pass for each loss; in between the
    factors stay. A loss whose gradient vanishes is not blown up: its factor is 100 at most.

    Not for several replicas, each of which sees its own part of the batch only.

    Args:
        every: Steps ≥ 1 from one measurement to the next. 1 with `jit_compile=True`: XLA cannot leave one out.
        momentum: Share in [0, 1) of the old average in the new one.
        options: Of `keras.layers.Layer`, `name` for instance.

    Raises:
        TypeError, ValueError: An argument is of the wrong kind or out of range. `compile` raises ValueError under a
            `tf.distribute` strategy with several replicas, and for `jit_compile=True` with `every` > 1.

    Reference: the aim is that of Chen et al., "GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep
    Multitask Networks", ICML 2018 (https://arxiv.org/abs/1711.02257); here the factors follow from the norms, with no
    loss of their own and no regard to how fast each loss falls (their α = 0).
    """

    needs_gradients = True

    def __init__(self, every=10, *, momentum=0.9, **options):
        super().__init__(**options)
        self.every = require_count(every, "every", at_least=1)
        self.momentum = require_number(momentum, "momentum", at_least=0.0)
        if self.momentum >= 1.0:
            raise ValueError(f"momentum must be < 1, got {momentum!r}.")

    def require_supported(self, replicas, jit_compile):
        if keras.backend.backend() != "tensorflow":
            raise ValueError(
                f"balance={self.name!r} needs KERAS_BACKEND=tensorflow, the tensorflow backend. On "
                f"{keras.backend.backend()}, use keras_kd.UncertaintyBalance()."
            )
        if self.every > 1 and jit_compile:
            raise ValueError(f"every={self.every} of the balance does not run under jit_compile=True. Use 1.")
        if replicas > 1:
            raise ValueError(
                f"balance={self.name!r} needs the gradients of the whole batch, but each of {replicas} replicas sees "
                "its own part. Use keras_kd.UncertaintyBalance()."
            )

    def build_for(self, count):
        self.norms = self.add_weight(
            shape=(count,), initializer="zeros", dtype="float32", trainable=False, autocast=False, name="norms"
        )

    def factors(self, norms, step):
        measured, kept = (lambda: self._averaged(norms())), (lambda: ops.convert_to_tensor(self.norms))
        self.norms.assign(measured() if self.every == 1 else ops.cond(ops.equal(step % self.every, 0), measured, kept))
        return self.current()

    def _averaged(self, norms):
        momentum = ops.where(self.norms > 0, self.momentum, 0.0)  # the first measurement counts in full
        averaged = momentum * self.norms + (1.0 - momentum) * norms
        return ops.where(ops.isfinite(averaged), averaged, self.norms)  # float16 may overflow for a step

    def current(self):
        norms = ops.convert_to_tensor(self.norms)
        known = norms > 0
        mean = ops.divide_no_nan(ops.sum(norms), ops.sum(ops.cast(known, "float32")))
        return ops.where(known, ops.minimum(ops.divide_no_nan(mean, norms), _LARGEST), 1.0)

    def get_config(self):
        return {**super().get_config(), "every": self.every, "momentum": self.momentum}
