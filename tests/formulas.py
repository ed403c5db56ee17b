"""The formulas of the losses in float64 NumPy, one value per row; nothing is taken from the package."""

import math

import numpy as np


def log_softmax(logits):
    logits = np.asarray(logits, "float64")
    shifted = logits - np.max(logits, axis=-1, keepdims=True)
    return shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True))


def softmax(logits):
    return np.exp(log_softmax(logits))


def kl(p, q):
    """Σ p log(p / q), 0 log 0 being 0."""
    return np.sum(np.where(p > 0, p * np.log(np.where(p > 0, p, 1.0) / np.where(p > 0, q, 1.0)), 0.0), axis=-1)


def soft_labels(teacher, student, temperature):
    """In log space, for large logits too."""
    teacher, student = log_softmax(teacher / temperature), log_softmax(student / temperature)
    return temperature**2 * np.sum(np.exp(teacher) * (teacher - student), axis=-1)


def approximate_likelihood_matching(teacher, student, targets, groups, temperature):
    """By example; `targets` and `groups` are of (teacher, student), token by token and group by group."""
    values = []
    for row in range(len(teacher)):
        likelihoods = [{}, {}]
        for side, logits in enumerate((teacher, student)):
            for position, (target, group) in enumerate(zip(targets[side][row], groups[side][row], strict=True)):
                p = softmax(logits[row, position])[target] if group >= 0 else 1.0
                likelihoods[side][group] = likelihoods[side].get(group, 1.0) * p
        shared = [group for group in likelihoods[0] if group in likelihoods[1] and group >= 0]
        terms = []
        for group in shared:
            p, q = (side[group] ** (1 / temperature) for side in likelihoods)
            terms.append(temperature * (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))))
        values.append(np.mean(terms) if terms else 0.0)
    return np.array(values)


def standardized(logits):
    return (logits - logits.mean(-1, keepdims=True)) / (logits.std(-1, ddof=1, keepdims=True) + 1e-7)


def jensen_shannon(teacher, student, beta, temperature):
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    m = beta * p + (1 - beta) * q
    return temperature**2 * (beta * kl(p, m) + (1 - beta) * kl(q, m))


def skewed(first, second, alpha, temperature):
    p, q = softmax(first / temperature), softmax(second / temperature)
    return temperature**2 * kl(p, alpha * p + (1 - alpha) * q)


def split(probabilities, labels):
    """(true class, rest) and the distribution over the rest, 0 at the true class."""
    true = np.eye(probabilities.shape[-1], dtype=bool)[labels]
    true_probabilities = probabilities[true].reshape(labels.shape)
    others = np.where(true, 0.0, probabilities)
    return np.stack([true_probabilities, 1 - true_probabilities], axis=-1), others / others.sum(-1, keepdims=True)


def decoupled_kd(teacher, student, labels, alpha, beta, temperature):
    (p, p_others), (q, q_others) = (split(softmax(z / temperature), labels) for z in (teacher, student))
    return temperature**2 * (alpha * kl(p, q) + beta * kl(p_others, q_others))


def normalized_kd(teacher, student, labels, gamma, temperature):
    p, q = split(softmax(teacher), labels)[0][..., 0], split(softmax(student), labels)[0][..., 0]
    p_others, q_others = (split(softmax(z / temperature), labels)[1] for z in (teacher, student))
    cross_entropy = -np.sum(p_others * np.log(np.where(q_others > 0, q_others, 1.0)), axis=-1)
    return -p * np.log(q) + gamma * temperature**2 * cross_entropy


def binary_soft_labels(teacher, student, temperature):
    p, q = (1 / (1 + np.exp(-z / temperature)) for z in (teacher, student))
    return temperature**2 * np.mean(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)), axis=-1)


def universal_logit_distillation(teacher, student, temperature):
    p, q = (np.sort(softmax(z / temperature), axis=-1)[..., ::-1] for z in (teacher, student))
    ranks = max(p.shape[-1], q.shape[-1])
    p, q = (np.concatenate([x, np.zeros((*x.shape[:-1], ranks - x.shape[-1]))], axis=-1) for x in (p, q))
    return np.abs(p - q).sum(axis=-1)


def correlation(first, second, axis):
    first, second = (x - x.mean(axis, keepdims=True) for x in (first, second))
    return (first * second).sum(axis) / np.sqrt((first**2).sum(axis) * (second**2).sum(axis))


def dist(teacher, student, beta, gamma, temperature):
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    between_examples = 1 - correlation(p, q, axis=0).mean()
    return temperature**2 * (beta * (1 - correlation(p, q, axis=-1)) + gamma * between_examples)


def unit(vectors, axis=-1):
    """Of length 1; zeros stay zeros."""
    norms = np.sqrt(np.sum(vectors**2, axis=axis, keepdims=True))
    return vectors / np.where(norms > 0, norms, 1.0)


def cosine_features(teacher, student):
    return 1 - np.sum(unit(teacher) * unit(student), axis=-1)


def attention_transfer(teacher, student, p):
    """One value per position: `(batch, positions..., channels)`."""
    teacher, student = (np.mean(np.abs(output) ** p, axis=-1) for output in (teacher, student))
    positions = tuple(range(1, teacher.ndim))
    return (unit(teacher, positions) - unit(student, positions)) ** 2


def huber(difference):
    size = np.abs(difference)
    return np.where(size < 1, size**2 / 2, size - 0.5)


def relational_kd(teacher, student, distance, angle):
    """From the difference of every two examples; `to[i, j]` is the vector from i to j."""

    def distances_and_angles(features):
        to = features[None] - features[:, None]
        distances = np.sqrt(np.sum(to**2, axis=-1))
        return distances / distances[distances > 0].mean(), unit(to) @ np.swapaxes(unit(to), 1, 2)

    pairs, triples = map(np.subtract, distances_and_angles(teacher), distances_and_angles(student))
    return distance * huber(pairs).mean(axis=-1) + angle * huber(triples).mean(axis=(-2, -1))


def similarity_preserving(teacher, student):
    teacher, student = (unit(features @ features.T) for features in (teacher, student))
    return np.mean((teacher - student) ** 2, axis=-1)


def correlation_congruence(teacher, student, gamma, order):
    def kernel(features):
        cosines = unit(features) @ unit(features).T
        powers = [(2 * gamma) ** p / math.factorial(p) * cosines**p for p in range(order + 1)]
        return np.exp(-2 * gamma) * sum(powers)

    return np.mean((kernel(teacher) - kernel(student)) ** 2, axis=-1)


def contrastive_kd(teacher, student, temperature, symmetric):
    logits = unit(student) @ unit(teacher).T / temperature
    one_way, other_way = -np.diag(log_softmax(logits)), -np.diag(log_softmax(logits.T))
    return (one_way + other_way) / 2 if symmetric else one_way


def attention_relations(output, heads, mask=None):
    """(batch, length, heads, dim) -> (batch, relation heads, length, length), padding hidden."""
    output = output.reshape(*output.shape[:2], heads, -1)
    scores = np.einsum("bqhd,bkhd->bhqk", output, output) / np.sqrt(output.shape[-1])
    return softmax(scores if mask is None else np.where(mask[:, None, None, :], scores, -np.inf))


def self_attention_relations(teacher, student, heads, mask=None):
    """One value per token."""
    return kl(*(attention_relations(output, heads, mask) for output in (teacher, student))).mean(1)


def calibration_error(labels, probabilities, weights=None, bins=15):
    """The formula of Guo et al. (2017), bin by bin, in float64."""
    weights = np.ones(len(labels)) if weights is None else weights.astype("float64")
    confidence, right = probabilities.max(axis=-1), probabilities.argmax(axis=-1) == labels
    error = 0.0
    for b in range(bins):
        w = weights * (confidence > b / bins) * (confidence <= (b + 1) / bins)
        if w.sum() > 0:
            error += w.sum() * abs((w * right).sum() / w.sum() - (w * confidence).sum() / w.sum())
    return error / weights.sum()
