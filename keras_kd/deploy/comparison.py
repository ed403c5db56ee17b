"""How the outputs of a file differ from those of the model that it was made of: numbers, classes, vectors, strings."""

import collections

import numpy as np

_TIE = 1e-5  # two neighbours whose cosines differ by less are equally near


class Comparison:
    """How the outputs of two models differ, summed over batches of {output name: array}."""

    def __init__(self):
        self.largest, self.total, self.numbers = 0.0, 0.0, 0
        self.same, self.places = collections.Counter(), collections.Counter()
        self.vectors = collections.defaultdict(list)

    def add(self, expected, given):
        for name, output in expected.items():
            if output.dtype == object:  # strings
                self._count(name, given[name] == output)
                continue
            difference = np.abs(given[name].astype(np.float64) - output)
            self.largest = max(self.largest, float(difference.max()))
            self.total += float(difference.sum())
            self.numbers += difference.size
            if name in self.vectors or _are_unit_vectors(output):
                self.vectors[name].append((output, given[name]))
            elif has_classes(output):
                self._count(name, given[name].argmax(axis=-1) == output.argmax(axis=-1))

    def _count(self, name, equal):
        self.same[name] += int(equal.sum())
        self.places[name] += equal.size

    def summary(self):
        pairs = [map(np.concatenate, zip(*batches, strict=True)) for batches in self.vectors.values()]
        cosines, neighbours = zip(*(_likeness(*pair) for pair in pairs), strict=True) if pairs else ((), ())
        shares = [self.same[name] / self.places[name] for name in self.places]
        return {
            "max_difference": self.largest,
            "mean_difference": self.total / max(1, self.numbers),
            "agreement": min([*shares, *filter(lambda share: share is not None, neighbours)], default=None),
            "cosine": min(cosines, default=None),
        }


def _are_unit_vectors(output):
    """Whether these are vectors of length 1, such as sentence embeddings; not distributions, which have no sign."""
    if output.ndim != 2 or output.shape[1] < 2:
        return False
    return bool((np.abs(np.linalg.norm(output, axis=-1) - 1) < 1e-2).all() and output.min() < 0)


def _likeness(expected, given):
    """Of vectors, (examples, width): the mean cosine, and the share of examples whose nearest neighbour is the same."""
    expected, given = (v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-12) for v in (expected, given))
    cosine = float((expected * given).sum(axis=1).mean())
    if len(expected) < 3:
        return cosine, None
    similarity, of_given = (v @ v.T - 3.0 * np.eye(len(v), dtype=v.dtype) for v in (expected, given))
    found = np.take_along_axis(similarity, of_given.argmax(axis=1)[:, None], axis=1)[:, 0]
    return cosine, float((found >= similarity.max(axis=1) - _TIE).mean())


def has_classes(output):
    """Whether an output chooses something: strings, or numbers whose last axis has two places or more."""
    return output.dtype == object or (output.ndim > 1 and output.shape[-1] > 1)
