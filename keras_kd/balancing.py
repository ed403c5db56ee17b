"""Automatic weights of the losses: found while training, in place of a search for λ and the losses' weights."""

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="keras_kd")
class UncertaintyBalance(keras.layers.Layer):
    """Balance by uncertainty: each loss is divided by a variance that is learnt with the student.

    `L = Σ exp(−sᵢ) Lᵢ + ½ sᵢ`, `sᵢ = log σᵢ²`. At the best sᵢ the factor is `exp(−sᵢ) = 1 / (2 Lᵢ)`: losses of any
    size come to count alike, and one that falls counts more. The factors start at 1 and follow at the optimizer's pace.
    A cross-entropy that cannot fall to 0 is held down; that need not be the better student: compare with fixed weights.

    The factors stand beside the weights that are set by hand: `L = hard_weight · b₀ L_raw + soft_weight · Σ wᵢ bᵢ Lᵢ +
    penalty + regularization`. The logs of `fit` show them at the end of each epoch, `soft_labels_balance` for a loss
    called `soft_labels`. The distiller trains and saves them, and leaves them out when the student is exported. One
    object serves one distiller.

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

    def setup(self, names):
        """Make the variables for losses of these names; once."""
        if self.built and self.loss_names != names:
            raise ValueError(f"balance belongs to a distiller with the losses {self.loss_names}. Make a new one.")
        if not self.built:
            self.loss_names, self.built = names, True
            self.log_variances = self.add_weight(
                shape=(len(names),), initializer="zeros", dtype="float32", autocast=False, name="log_variances"
            )

    def factors(self):
        """A factor for each loss, `(losses,)`."""
        return ops.exp(-self.log_variances)

    def penalty(self, present):
        """What is added to the loss; `present` is a list of bool, whether each loss is there."""
        return 0.5 * sum(self.log_variances[i] for i, is_present in enumerate(present) if is_present)
