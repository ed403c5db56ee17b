"""Every loss under test, one row each, and the values that published code gives for it."""

from typing import NamedTuple

import formulas
import keras
import numpy as np
from conftest import dense_model

import keras_kd

ROWS, COLUMNS = np.arange(4)[:, None], np.arange(5)
STUDENT = 2 * np.sin(1 + 5 * ROWS + COLUMNS)
TEACHER = 3 * np.cos(2 + 5 * ROWS + COLUMNS)
LABELS = np.array([0, 2, 4, 1])
# Features of 4 examples at 3 x 2 positions, 5 channels.
GRIDS = tuple(wave(np.arange(4 * 3 * 2 * 5.0)).reshape(4, 3, 2, 5) for wave in (np.cos, lambda n: np.sin(0.7 * n)))

# Queries of 4 texts of 3 tokens, 2 heads, 6 and 4 wide; and attention scores of 2 heads over 3 tokens.
QUERIES = np.cos(0.3 * np.arange(144.0)).reshape(4, 3, 2, 6), np.sin(0.7 * np.arange(96.0)).reshape(4, 3, 2, 4)
SCORES = tuple(wave(np.arange(72.0)).reshape(4, 2, 3, 3) for wave in (np.cos, np.sin))


def opposite(scale):
    """Logits of ±scale, the student's being the opposite."""
    teacher = np.array([[scale, 0.0, -scale]])
    return teacher, -teacher


def scaled(scale):
    """Features of that size, for losses that compare directions or examples."""
    return scale * TEACHER, scale * STUDENT


def classifier(width):
    return dense_model(width, 5)


def grid_classifier(width):
    """A classifier with a layer `grid` that gives `(batch, 3, 2, width)`."""
    layers = [keras.layers.Dense(6 * width, "relu"), keras.layers.Reshape((3, 2, width), name="grid")]
    return keras.Sequential([keras.Input((8,)), *layers, keras.layers.Flatten(), keras.layers.Dense(5)])


def attention_classifier(width):
    """A classifier with a self-attention of 2 heads over 4 tokens, `attention`."""
    inputs = keras.Input((8,))
    tokens = keras.layers.Dense(width)(keras.layers.Reshape((4, 2))(inputs))
    attended = keras.layers.MultiHeadAttention(2, width // 2, name="attention")(tokens, tokens)
    return keras.Model(inputs, keras.layers.Dense(5)(keras.layers.Flatten()(attended)))


def undecided(scale):
    """Logits of ±scale, the teacher between two classes, the student sure of one."""
    return np.array([[scale, scale, -scale, -scale]]), np.array([[scale, 0.0, 0.0, -scale]])


class Row(NamedTuple):
    """One loss under test: how it is made, its formula, and which laws do not hold for it.

    Attributes:
        make: Called with the options that all losses share.
        formula: Its formula in NumPy, of teacher and student (and labels, if `labelled`): one value per row.
        labelled: It needs labels.
        least_is_zero: It is 0 where teacher and student are equal; a cross-entropy is not.
        saturates: Far out its gradient tends to 0, by its formula.
        sequences: It takes sequences.
        refusal: The error message for masked sequences otherwise.
        refused: Shapes of teacher and student that do not fit.
        any_positions: It compares outputs with different steps or positions, without broadcasting.
        outputs: The outputs of teacher and student that it is tested on.
        far: Gives outputs of a size at which it must be finite; the student's is wrong.
        model: Makes a model of 8 inputs, 5 classes and a given width to train with it.
        part: What is compared of a layer of this model: see `keras_kd.outputs.hooks`.
    """

    make: object
    formula: object
    labelled: bool = False
    least_is_zero: bool = True
    saturates: bool = False
    sequences: bool = True
    refusal: str = r"\(batch, classes\), but the student gives \(2, 4, 5\)"
    refused: tuple = (((4, 5), (4, 1, 5)), ((4, 5), (4, 4)))
    any_positions: bool = False
    outputs: tuple = (TEACHER, STUDENT)
    far: object = opposite
    model: object = classifier
    part: str = "output"


# Options of the losses that compare one vector per example, and of those that relate the examples of a batch.
VECTOR_OPTIONS = {
    "sequences": False,
    "refusal": r"\(batch, features\), but the teacher gives .* the student \(2, 4, 5\)",
    "refused": (((4, 5), (4, 4)), ((4, 2, 5), (4, 2, 5))),
}
RELATION_OPTIONS = {
    "sequences": False,
    "refusal": r"relates whole examples, but the outputs are of masked tokens: the student gives \(2, 4, 5\)",
    "any_positions": True,
    "refused": (((4, 5), (4,)), ((4, 5), (3, 5))),
    "far": scaled,
    "saturates": True,
}


# One row per loss. Every law of `test_losses.py` runs on each.
LOSSES = {
    "soft_labels": Row(
        lambda **o: keras_kd.losses.SoftLabels(temperature=3.0, **o),
        lambda t, s: formulas.soft_labels(t, s, temperature=3.0),
    ),
    "soft_labels of standardized logits": Row(
        lambda **o: keras_kd.losses.SoftLabels(temperature=3.0, standardize=True, **o),
        lambda t, s: formulas.soft_labels(formulas.standardized(t), formulas.standardized(s), temperature=3.0),
        saturates=True,
    ),
    "reverse_kl": Row(
        lambda **o: keras_kd.losses.ReverseKL(temperature=3.0, **o),
        lambda t, s: formulas.soft_labels(s, t, temperature=3.0),
        saturates=True,
    ),
    "jensen_shannon": Row(
        lambda **o: keras_kd.losses.JensenShannon(beta=0.3, temperature=2.0, **o),
        lambda t, s: formulas.jensen_shannon(t, s, beta=0.3, temperature=2.0),
        saturates=True,
    ),
    "skew_kl": Row(
        lambda **o: keras_kd.losses.SkewKL(alpha=0.2, temperature=2.0, **o),
        lambda t, s: formulas.skewed(t, s, alpha=0.2, temperature=2.0),
        saturates=True,
    ),
    "skew_reverse_kl": Row(
        lambda **o: keras_kd.losses.SkewReverseKL(alpha=0.2, temperature=2.0, **o),
        lambda t, s: formulas.skewed(s, t, alpha=0.2, temperature=2.0),
        saturates=True,
    ),
    "decoupled_kd": Row(
        lambda **o: keras_kd.losses.DecoupledKD(alpha=0.5, beta=2.0, temperature=3.0, **o),
        lambda t, s, labels: formulas.decoupled_kd(t, s, labels, alpha=0.5, beta=2.0, temperature=3.0),
        labelled=True,
    ),
    "normalized_kd": Row(
        lambda **o: keras_kd.losses.NormalizedKD(gamma=1.5, temperature=2.0, **o),
        lambda t, s, labels: formulas.normalized_kd(t, s, labels, gamma=1.5, temperature=2.0),
        labelled=True,
        least_is_zero=False,
    ),
    "dist": Row(
        lambda **o: keras_kd.losses.DIST(beta=0.5, gamma=2.0, temperature=2.0, **o),
        lambda t, s: formulas.dist(t, s, beta=0.5, gamma=2.0, temperature=2.0),
        saturates=True,
        sequences=False,
    ),
    "logits_mse": Row(lambda **o: keras_kd.losses.LogitsMSE(**o), lambda t, s: np.mean((t - s) ** 2, axis=-1)),
    "binary_soft_labels": Row(
        lambda **o: keras_kd.losses.BinarySoftLabels(temperature=2.0, **o),
        lambda t, s: formulas.binary_soft_labels(t, s, temperature=2.0),
    ),
    "hint": Row(lambda **o: keras_kd.losses.Hint("logits", "logits", **o), lambda t, s: np.mean((t - s) ** 2, axis=-1)),
    "hint of outputs": Row(lambda **o: keras_kd.losses.Hint(**o), lambda t, s: np.mean((t - s) ** 2, axis=-1)),
    "cosine_features": Row(
        lambda **o: keras_kd.losses.CosineFeatures(**o), formulas.cosine_features, far=scaled, saturates=True
    ),
    "attention_transfer": Row(
        lambda weight=1e3, **o: keras_kd.losses.AttentionTransfer("grid", "grid", p=1.5, weight=weight, **o),
        lambda t, s: formulas.attention_transfer(t, s, p=1.5),
        saturates=True,
        outputs=GRIDS,
        far=lambda scale: tuple(scale * grid for grid in GRIDS),
        refused=(((4, 5), (4, 5)), ((4, 3, 2, 5), (4, 3, 3, 5)), ((4, 6, 5), (4, 3, 2, 5))),
        model=grid_classifier,
    ),
    "self_attention_relations": Row(
        lambda **o: keras_kd.losses.SelfAttentionRelations("attention", "attention", of="query", heads=2, **o),
        lambda t, s: formulas.self_attention_relations(t, s, heads=2),
        saturates=True,
        sequences=False,
        refusal=r"\(batch, length, heads, dim\), but the teacher's layer 'attention' gives \(2, 4, 5\)",
        outputs=QUERIES,
        far=lambda scale: tuple(scale * queries for queries in QUERIES),
        refused=(((4, 3, 2), (4, 3, 2)), ((4, 3, 2, 6), (4, 2, 2, 4)), ((4, 3, 1, 6), (4, 3, 1, 5))),
        model=attention_classifier,
        part="query",
    ),
    "attention_maps": Row(
        lambda **o: keras_kd.losses.AttentionMaps("attention", "attention", **o),
        lambda t, s: np.mean((t - s) ** 2, axis=(1, 3)),
        sequences=False,
        refusal=r"\(batch, heads, queries, keys\), but the teacher's layer 'attention' gives \(2, 4, 5\)",
        outputs=SCORES,
        far=lambda scale: tuple(scale * scores for scores in SCORES),
        refused=(((4, 3, 3), (4, 3, 3)), ((4, 4, 3, 3), (4, 2, 3, 3)), ((4, 2, 3, 3), (4, 2, 3, 4))),
        model=attention_classifier,
        part="scores",
    ),
    "hint with a shared projection": Row(
        lambda **o: keras_kd.losses.Hint(["logits"], ["logits"], shared_projection=True, **o),
        lambda t, s: np.mean((t - s) ** 2, axis=-1),
    ),
    "relational_kd": Row(
        lambda **o: keras_kd.losses.RelationalKD(distance=2.0, angle=3.0, **o),
        lambda t, s: formulas.relational_kd(t, s, distance=2.0, angle=3.0),
        **RELATION_OPTIONS,
    ),
    "similarity_preserving": Row(
        lambda **o: keras_kd.losses.SimilarityPreserving(**o), formulas.similarity_preserving, **RELATION_OPTIONS
    ),
    "correlation_congruence": Row(
        lambda **o: keras_kd.losses.CorrelationCongruence(gamma=0.7, order=3, **o),
        lambda t, s: formulas.correlation_congruence(t, s, gamma=0.7, order=3),
        **RELATION_OPTIONS,
    ),
    "contrastive_kd": Row(
        lambda **o: keras_kd.losses.ContrastiveKD(temperature=0.5, **o),
        lambda t, s: formulas.contrastive_kd(t, s, temperature=0.5, symmetric=True),
        least_is_zero=False,
        saturates=True,
        far=scaled,
        **VECTOR_OPTIONS,
    ),
    "contrastive_kd one way": Row(
        lambda **o: keras_kd.losses.ContrastiveKD(temperature=0.5, symmetric=False, **o),
        lambda t, s: formulas.contrastive_kd(t, s, temperature=0.5, symmetric=False),
        least_is_zero=False,
        saturates=True,
        far=scaled,
        **VECTOR_OPTIONS,
    ),
    "universal_logit_distillation": Row(
        lambda **o: keras_kd.losses.UniversalLogitDistillation(temperature=2.0, **o),
        lambda t, s: formulas.universal_logit_distillation(t, s, temperature=2.0),
        saturates=True,
        refused=(((4, 5), (4, 1, 5)), ((4, 2, 2, 5), (4, 2, 2, 5))),
        any_positions=True,
        far=undecided,
    ),
    "soft_labels through a vocabulary map": Row(
        lambda **o: keras_kd.losses.VocabularyMap(keras_kd.losses.SoftLabels(temperature=3.0, **o), range(5)),
        lambda t, s: formulas.soft_labels(t, s, temperature=3.0),
        far=scaled,
    ),
    "decoupled_kd through a vocabulary map": Row(
        lambda **o: keras_kd.losses.VocabularyMap(
            keras_kd.losses.DecoupledKD(alpha=0.5, beta=2.0, temperature=3.0, **o), range(5)
        ),
        lambda t, s, labels: formulas.decoupled_kd(t, s, labels, alpha=0.5, beta=2.0, temperature=3.0),
        labelled=True,
        far=lambda scale: (scale * TEACHER[:1], scale * STUDENT[:1]),
    ),
}


PUBLISHED = {
    "mdistiller kd_loss, T=1": (lambda: keras_kd.losses.SoftLabels(1.0), 3.0153552029),
    "mdistiller kd_loss, T=2": (lambda: keras_kd.losses.SoftLabels(2.0), 4.4667952945),
    "mdistiller kd_loss, T=4": (lambda: keras_kd.losses.SoftLabels(4.0), 5.1712414437),
    "logit-standardization-KD, T=2": (lambda: keras_kd.losses.SoftLabels(2.0, standardize=True), 1.423974538),
    "logit-standardization-KD, T=4": (lambda: keras_kd.losses.SoftLabels(4.0, standardize=True), 1.4605970807),
    "TRL generalized_jsd_loss, beta=1": (lambda: keras_kd.losses.ReverseKL(), 3.656431448),
    "TRL generalized_jsd_loss, beta=0 of the mixture": (lambda: keras_kd.losses.JensenShannon(0.0), 3.0153552029),
    "TRL generalized_jsd_loss, beta=0.1": (lambda: keras_kd.losses.JensenShannon(0.1), 0.2205717646),
    "TRL generalized_jsd_loss, beta=0.5": (lambda: keras_kd.losses.JensenShannon(0.5), 0.521504901),
    "TRL generalized_jsd_loss, beta=0.9": (lambda: keras_kd.losses.JensenShannon(0.9), 0.2337388565),
    "TRL generalized_jsd_loss, beta=1 of the mixture": (lambda: keras_kd.losses.JensenShannon(1.0), 3.656431448),
    "DistiLLM skew KL with the teacher's entropy": (lambda: keras_kd.losses.SkewKL(alpha=0.1), 1.7502323748),
    "DistiLLM skewed_reverse_kl": (lambda: keras_kd.losses.SkewReverseKL(alpha=0.1), 1.7708414842),
    "DIST_KD dist_kd, beta=gamma=1": (lambda: keras_kd.losses.DIST(), 3.2319026274),
    "DIST_KD dist_kd, inter": (lambda: keras_kd.losses.DIST(beta=1.0, gamma=0.0), 1.5904751656),
    "DIST_KD dist_kd, intra": (lambda: keras_kd.losses.DIST(beta=0.0, gamma=1.0), 1.6414274618),
    "DIST_KD dist_kd, tau=4, times tau squared": (lambda: keras_kd.losses.DIST(temperature=4.0), 57.8163427805),
    "mdistiller dkd_loss": (lambda: keras_kd.losses.DecoupledKD(alpha=1.0, beta=8.0, temperature=4.0), 38.7887341721),
    "mdistiller dkd_loss, tckd": (lambda: keras_kd.losses.DecoupledKD(1.0, 0.0, temperature=4.0), 1.1396709001),
    "mdistiller dkd_loss, nckd": (lambda: keras_kd.losses.DecoupledKD(0.0, 1.0, temperature=4.0), 4.706132909),
    "cls_KD nkd, T=1": (lambda: keras_kd.losses.NormalizedKD(gamma=1.5, temperature=1.0), 5.2379145867),
    "mdistiller rkd_loss": (lambda: keras_kd.losses.RelationalKD(), 0.1437843306),
    "mdistiller rkd_loss, distance": (lambda: keras_kd.losses.RelationalKD(distance=1.0, angle=0.0), 0.0024960977),
    "mdistiller rkd_loss, angle": (  # differences of cosines near 1, of which float32 keeps six digits
        lambda: keras_kd.losses.RelationalKD(distance=0.0, angle=1.0, dtype="float64"),
        0.0016276378,
    ),
    "cls_KD nkd, T=2": (lambda: keras_kd.losses.NormalizedKD(gamma=1.5, temperature=2.0), 12.4484287312),
}
