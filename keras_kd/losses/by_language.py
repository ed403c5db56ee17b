"""A loss with a temperature and a weight for each language."""

import keras
from keras import ops

from keras_kd._checks import require_number
from keras_kd._keras_private import get_mask, set_mask
from keras_kd._languages import LanguageTable
from keras_kd.losses.base import DistillationLossWrapper, TemperatureLoss, with_rank


@keras.saving.register_keras_serializable(package="keras_kd")
class ByLanguage(DistillationLossWrapper):
    """A loss whose temperature, weight, or both depend on the language of each example.

    `L = mean over the batch of w_l · L_i(T_l)`, l being the example's language. The languages are an entry of a dict
    `x`: strings or integers `(batch,)`, not necessarily an input of a model. Integers run under XLA, strings do not.

    `keras_kd.datasets.weigh_by_language` weighs the loss on the labels by language: it multiplies the sample weights,
    and so those of this loss as well.

    Args:
        loss: Any loss for `weights`; for `temperatures` one whose value is T² times a function of logits / T, as are
            all divergences.
        temperatures: `{language: T > 0}`, in place of the loss's own; or None.
        weights: `{language: w ≥ 0}`. None: 1 for all.
        language_key: The entry of `x` with the languages.

    Call arguments:
        languages: Each example's language, `(batch,)`; the others are those of the loss.

    Raises:
        TypeError: Languages are not all str or all int.
        ValueError: Neither `temperatures` nor `weights` is given, or their languages differ; a value is out of range;
            the loss has no temperature, or is not T² times a function of logits / T. While training: a language has no
            entry; raised before its batch changes a weight.

    Example:

    >>> loss = keras_kd.losses.ByLanguage(
    ...     keras_kd.losses.SoftLabels(temperature=4.0),
    ...     temperatures={"en": 4.0, "sw": 1.0},
    ...     weights={"en": 1.0, "sw": 3.0},
    ... )
    >>> teacher, student = np.array([[2.0, 0.0], [2.0, 0.0]]), np.zeros((2, 2))
    >>> round(float(loss(teacher, student, languages=np.array(["en", "sw"]))), 4)
    0.7341
    """

    def __init__(self, loss, *, temperatures=None, weights=None, language_key="language"):
        super().__init__(loss)
        self.temperatures, self.weights, self.language_key = temperatures, weights, language_key
        if temperatures is None and weights is None:
            raise ValueError("give temperatures, weights or both: without them nothing depends on the language.")
        if temperatures is not None and weights is not None and set(temperatures) != set(weights):
            differing = sorted(map(str, set(temperatures) ^ set(weights)))
            raise ValueError(f"temperatures and weights must have the same languages; only one has {differing}.")
        scales = isinstance(loss, TemperatureLoss) and loss.scales_with_temperature
        if temperatures is not None and not scales:
            raise ValueError(
                f"temperatures need a loss whose value is T² times a function of logits / T, and {self.name} is "
                "not one. Give weights alone, or take keras_kd.losses.SoftLabels for instance."
            )
        if loss.reduction == "mean_with_sample_weight":
            raise ValueError("loss must not divide by the sample weights: use reduction='sum_over_batch_size'.")
        languages = list(weights if temperatures is None else temperatures)
        self._table = LanguageTable(languages, "temperatures" if weights is None else "weights")
        self._weights = [
            require_number((weights or {}).get(one, 1.0), f"weights[{one!r}]", at_least=0.0) for one in languages
        ]
        self._temperatures = temperatures and [
            require_number(temperatures[one], f"temperatures[{one!r}]", above=0.0) for one in languages
        ]

    def __call__(self, teacher, student, sample_weight=None, *, languages=None, **kwargs):
        """The mean over the batch; `labels=` and `mask=` as of the wrapped loss."""
        if languages is None:
            raise ValueError(f"{self.name} needs each example's language, got none. Pass languages=....")
        positions = self._table.known_positions(languages)
        factor = self._by_example(self._weights, positions)
        if self._temperatures is not None:
            # T² f(z / T) is (T / T₀)² times the loss at its own T₀, of logits z T₀ / T.
            ratio = self._by_example(self._temperatures, positions) / ops.cast(self.loss.temperature, self.dtype)
            teacher, student = (self._divided(output, ratio) for output in (teacher, student))
            factor = factor * ops.square(ratio)
        rank = self.value_rank(len(student.shape))
        weight = with_rank(factor, rank)
        if sample_weight is not None:
            weight = weight * with_rank(ops.cast(ops.convert_to_tensor(sample_weight), self.dtype), rank)
        return self.loss(teacher, student, weight, **kwargs)

    def _by_example(self, values, positions):
        by_example = ops.take(ops.convert_to_tensor(values, dtype=self.dtype), ops.maximum(positions, 0), axis=0)
        return ops.where(positions >= 0, by_example, float("nan"))  # under XLA, which drops the error

    def _divided(self, output, ratio):
        logits = ops.cast(ops.convert_to_tensor(output), self.dtype)
        return set_mask(logits / with_rank(ratio, len(logits.shape)), get_mask(output))

    def get_config(self):
        # Lists of pairs, for the keys of a dict become strings in a file.
        pairs = [table and [list(pair) for pair in table.items()] for table in (self.temperatures, self.weights)]
        tables = dict(zip(("temperatures", "weights"), pairs, strict=True))
        return {**super().get_config(), **tables, "language_key": self.language_key}

    @classmethod
    def from_config(cls, config):
        tables = {name: config[name] and dict(map(tuple, config[name])) for name in ("temperatures", "weights")}
        return super().from_config({**config, **tables})
