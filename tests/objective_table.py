"""Every objective under test, one row each, and the values that published code gives for it."""

from typing import NamedTuple

import formulas
import numpy as np

import keras_kd

ROWS, COLUMNS = np.arange(4)[:, None], np.arange(5)
STUDENT = 2 * np.sin(1 + 5 * ROWS + COLUMNS)
TEACHER = 3 * np.cos(2 + 5 * ROWS + COLUMNS)
LABELS = np.array([0, 2, 4, 1])


class Row(NamedTuple):
    """One objective under test: how it is made, its formula, and which laws do not hold for it.

    Attributes:
        make: Called with the options that all objectives share.
        formula: Of teacher and student (and labels, if `labelled`), one value a row.
        labelled: It needs labels.
        least_is_zero: It is 0 where teacher and student are equal; a cross-entropy is not.
        saturates: Far out its gradient tends to 0, by its formula.
        of_sequences: It takes sequences.
    """

    make: object
    formula: object
    labelled: bool = False
    least_is_zero: bool = True
    saturates: bool = False
    of_sequences: bool = True


# One row an objective. Every law below runs on each.
OBJECTIVES = {
    "soft_labels": Row(
        lambda **o: keras_kd.SoftLabels(temperature=3.0, **o), lambda t, s: formulas.soft_labels(t, s, temperature=3.0)
    ),
    "soft_labels of standardized logits": Row(
        lambda **o: keras_kd.SoftLabels(temperature=3.0, standardize=True, **o),
        lambda t, s: formulas.soft_labels(formulas.standardized(t), formulas.standardized(s), temperature=3.0),
        saturates=True,
    ),
    "reverse_kl": Row(
        lambda **o: keras_kd.ReverseKL(temperature=3.0, **o),
        lambda t, s: formulas.soft_labels(s, t, temperature=3.0),
        saturates=True,
    ),
    "jensen_shannon": Row(
        lambda **o: keras_kd.JensenShannon(beta=0.3, temperature=2.0, **o),
        lambda t, s: formulas.jensen_shannon(t, s, beta=0.3, temperature=2.0),
        saturates=True,
    ),
    "skew_kl": Row(
        lambda **o: keras_kd.SkewKL(alpha=0.2, temperature=2.0, **o),
        lambda t, s: formulas.skewed(t, s, alpha=0.2, temperature=2.0),
        saturates=True,
    ),
    "skew_reverse_kl": Row(
        lambda **o: keras_kd.SkewReverseKL(alpha=0.2, temperature=2.0, **o),
        lambda t, s: formulas.skewed(s, t, alpha=0.2, temperature=2.0),
        saturates=True,
    ),
    "decoupled_kd": Row(
        lambda **o: keras_kd.DecoupledKD(alpha=0.5, beta=2.0, temperature=3.0, **o),
        lambda t, s, labels: formulas.decoupled_kd(t, s, labels, alpha=0.5, beta=2.0, temperature=3.0),
        labelled=True,
    ),
    "normalized_kd": Row(
        lambda **o: keras_kd.NormalizedKD(gamma=1.5, temperature=2.0, **o),
        lambda t, s, labels: formulas.normalized_kd(t, s, labels, gamma=1.5, temperature=2.0),
        labelled=True,
        least_is_zero=False,
    ),
    "dist": Row(
        lambda **o: keras_kd.DIST(beta=0.5, gamma=2.0, temperature=2.0, **o),
        lambda t, s: formulas.dist(t, s, beta=0.5, gamma=2.0, temperature=2.0),
        saturates=True,
        of_sequences=False,
    ),
    "logits_mse": Row(lambda **o: keras_kd.LogitsMSE(**o), lambda t, s: np.mean((t - s) ** 2, axis=-1)),
    "binary_soft_labels": Row(
        lambda **o: keras_kd.BinarySoftLabels(temperature=2.0, **o),
        lambda t, s: formulas.binary_soft_labels(t, s, temperature=2.0),
    ),
    "hint": Row(
        lambda **o: keras_kd.Hint("logits", "logits", **o), lambda t, s: np.mean((t - s) ** 2, axis=-1)
    ),
}


PUBLISHED = {
    "mdistiller kd_loss, T=1": (lambda: keras_kd.SoftLabels(1.0), 3.0153552029),
    "mdistiller kd_loss, T=2": (lambda: keras_kd.SoftLabels(2.0), 4.4667952945),
    "mdistiller kd_loss, T=4": (lambda: keras_kd.SoftLabels(4.0), 5.1712414437),
    "logit-standardization-KD, T=2": (lambda: keras_kd.SoftLabels(2.0, standardize=True), 1.423974538),
    "logit-standardization-KD, T=4": (lambda: keras_kd.SoftLabels(4.0, standardize=True), 1.4605970807),
    "TRL generalized_jsd_loss, beta=1": (lambda: keras_kd.ReverseKL(), 3.656431448),
    "TRL generalized_jsd_loss, beta=0 of the mixture": (lambda: keras_kd.JensenShannon(0.0), 3.0153552029),
    "TRL generalized_jsd_loss, beta=0.1": (lambda: keras_kd.JensenShannon(0.1), 0.2205717646),
    "TRL generalized_jsd_loss, beta=0.5": (lambda: keras_kd.JensenShannon(0.5), 0.521504901),
    "TRL generalized_jsd_loss, beta=0.9": (lambda: keras_kd.JensenShannon(0.9), 0.2337388565),
    "TRL generalized_jsd_loss, beta=1 of the mixture": (lambda: keras_kd.JensenShannon(1.0), 3.656431448),
    "DistiLLM skew KL with the teacher's entropy": (lambda: keras_kd.SkewKL(alpha=0.1), 1.7502323748),
    "DistiLLM skewed_reverse_kl": (lambda: keras_kd.SkewReverseKL(alpha=0.1), 1.7708414842),
    "DIST_KD dist_kd, beta=gamma=1": (lambda: keras_kd.DIST(), 3.2319026274),
    "DIST_KD dist_kd, inter": (lambda: keras_kd.DIST(beta=1.0, gamma=0.0), 1.5904751656),
    "DIST_KD dist_kd, intra": (lambda: keras_kd.DIST(beta=0.0, gamma=1.0), 1.6414274618),
    "DIST_KD dist_kd, tau=4, times tau squared": (lambda: keras_kd.DIST(temperature=4.0), 57.8163427805),
    "mdistiller dkd_loss": (lambda: keras_kd.DecoupledKD(alpha=1.0, beta=8.0, temperature=4.0), 38.7887341721),
    "mdistiller dkd_loss, tckd": (lambda: keras_kd.DecoupledKD(1.0, 0.0, temperature=4.0), 1.1396709001),
    "mdistiller dkd_loss, nckd": (lambda: keras_kd.DecoupledKD(0.0, 1.0, temperature=4.0), 4.706132909),
    "cls_KD nkd, T=1": (lambda: keras_kd.NormalizedKD(gamma=1.5, temperature=1.0), 5.2379145867),
    "cls_KD nkd, T=2": (lambda: keras_kd.NormalizedKD(gamma=1.5, temperature=2.0), 12.4484287312),
}
