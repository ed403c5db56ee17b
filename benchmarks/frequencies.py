"""What the ids of the likeliest words take, if the code uses that some are more common than others."""

import collections
import gzip
import itertools
import re

import numpy as np
import tensorflow as tf

from keras_kd.cache.packing import Ascending, Graded

WORD = r"\w+|[^\w\s]"


def words_of(path):
    """The words and signs of a file of captions, each line ended by one of its own."""
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").lower().split("\n")
    return [word for line in lines if line for word in [*re.findall(WORD, line), "\n"]]


def texts(folder, test):
    """All words and signs of the texts to train on, or to test on."""
    captions_of = "test_2016_flickr" if test else "train"
    yield from (word for path in sorted((folder / "multi30k").glob(f"{captions_of}.*.gz")) for word in words_of(path))
    name = "test" if test else "train"
    for path in [*sorted(folder.glob(f"umsab/*/{name}_text.txt")), *sorted(folder.glob(f"sib200/*/{name}.tsv"))]:
        lines = path.read_text("utf-8").split("\n")
        yield from re.findall(WORD, "\n".join(line.split("\t")[-1] for line in lines))


def likeliest_by_pairs(folder, k=50, samples=4000):
    """The k likeliest words after words of the tests `(samples, k)`, likeliest first, and how many words there are.

    p(w | v) = max(n(v, w) − 0.75, 0) / n(v) + (what is left) · n(w) / n; ids go by n(w).
    """
    train = list(texts(folder, test=False))
    counts = collections.Counter(train).most_common()
    ids = {word: number for number, (word, _) in enumerate(counts)}
    after = collections.defaultdict(collections.Counter)
    for word, following in itertools.pairwise(train):
        after[ids[word]][ids[following]] += 1
    alone = np.array([count for _, count in counts]) / len(train)
    words = [ids[word] for word in texts(folder, test=True) if word in ids]
    sets = []
    for word in np.random.default_rng(0).choice(words, samples):
        pairs = after[word]
        total = max(pairs.total(), 1)
        left = 0.75 * len(pairs) / total if pairs else 1.0
        p = {other: max(count - 0.75, 0.0) / total + left * alone[other] for other, count in pairs.items()}
        p = {other: left * alone[other] for other in range(k)} | p
        sets.append(sorted(p, key=p.get, reverse=True)[:k])
    return np.array(sets, "int32"), len(ids)


def ids_by_frequency(folder):
    """Bytes the 50 ids of a word take: coded alike, graded, by how often each was there; how many fit into some bytes.

    By known frequencies, Σ −log₂ of the probability that each word is there, or is not, by its share of other examples:
    what an arithmetic coder comes near to that takes words as independent.
    """
    sets, count = likeliest_by_pairs(folder)
    sets, train = sets[len(sets) // 2 :], sets[: len(sets) // 2]
    share = (np.bincount(train.reshape(-1), minlength=count) + 25 / count) / (len(train) + 0.5)
    share = np.clip(share, 1e-12, 1 - 1e-9)
    each_by_itself = -np.log2(1 - share).sum() + np.log2((1 - share) / share)[sets].sum(axis=-1)
    whole = Graded(50, count, 200)
    bits = whole.bits(tf.constant(sets)).numpy()
    report = {"words": count, "sets": len(sets), "Ascending": Ascending(50, count).bytes}
    report |= {
        "Graded, mean": float(bits.mean() / 8),
        "by known frequencies, mean": float(each_by_itself.mean() / 8),
    }
    for size in (90, 75, 60, 45):
        fitting = Graded(50, count, size).fitting(tf.constant(sets)).numpy()
        report[f"in {size} bytes"] = {"all 50, %": float(100 * (fitting == 50).mean()), "mean": float(fitting.mean())}
    return report
