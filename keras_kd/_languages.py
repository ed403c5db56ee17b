"""Languages and other entries of a batch: where they are read, and the entry of a table for each language."""

import tensorflow as tf

from keras_kd._assertions import require_all


class LanguageTable:
    """Languages in an order, looked up for the examples of a batch.

    Args:
        languages: All str or all int (which XLA can compile and strings it cannot), each once, at least one.
        argument: What they are called in the messages: "weights" for the keys of an argument `weights`.
    """

    def __init__(self, languages, argument):
        if isinstance(languages, (str, bytes)):
            raise TypeError(f"{argument} must hold languages, got the single {languages!r}.")
        self.languages = tuple(languages)
        kinds = {type(language) for language in self.languages}
        if not (kinds <= {str} or kinds <= {int}):
            raise TypeError(f"{argument} must hold languages that are all str or all int, got {list(self.languages)}.")
        if not self.languages or len(set(self.languages)) < len(self.languages):
            raise ValueError(f"{argument} must hold different languages, at least one, got {list(self.languages)}.")
        self.argument = argument
        self.dtype = tf.string if kinds == {str} else tf.int64

    def __len__(self):
        return len(self.languages)

    def positions(self, languages):
        """The position of each language in the table, int32 of the same shape; -1 for an unknown language."""
        known = tf.constant(self.languages, self.dtype)
        matches = self.as_known(languages)[..., None] == known
        positions = tf.argmax(tf.cast(matches, tf.int32), axis=-1, output_type=tf.int32)
        return tf.where(tf.reduce_any(matches, axis=-1), positions, -1)

    def known_positions(self, languages, counted=True):
        """The positions, ≥ 0 where `counted`: a language that is not in the table is an error that names it.

        ValueError in eager execution, `tf.errors.InvalidArgumentError` in a graph; XLA drops the assertion, and
        the position is -1.
        """
        languages = self.as_known(languages)
        positions = self.positions(languages)
        listed = ", ".join(str(language) for language in sorted(self.languages))
        message = f"{self.argument} must have an entry for each language in the batch; it has {listed}, not"
        return require_all((positions >= 0) | ~tf.convert_to_tensor(counted), message, languages, positions)

    def lookup(self, values, languages, default=None):
        """The value of each language, given those of the table; the default, or an error, for an unknown language."""
        if default is None:
            return tf.gather(values, self.known_positions(languages))
        positions = self.positions(languages)
        return tf.where(positions >= 0, tf.gather(values, tf.maximum(positions, 0)), default)

    def as_known(self, languages):
        """Languages of a batch in the table's dtype; TypeError where one is text and the other numbers."""
        languages = tf.convert_to_tensor(languages)
        if (languages.dtype == tf.string) != (self.dtype == tf.string):
            raise TypeError(
                f"{self.argument} holds the languages {list(self.languages)[:5]}, but those of the batch are "
                f"{languages.dtype.name}."
            )
        return tf.cast(languages, self.dtype)


def languages_of(x, language_key, user):
    """The languages of a batch `x`, `(batch,)`: its entry of that name.

    Raises:
        ValueError: `x` is no dict that holds the entry; `user` names what needs it.
    """
    return tf.reshape(entry_of(x, language_key, f"{user} needs each example's language"), (-1,))


def entry_of(x, entry, need):
    """An entry of a batch `x`; ValueError, which begins with the `need`, if `x` is no dict that holds it."""
    if not isinstance(x, dict) or entry not in x:
        found = f"the entries {sorted(x)}" if isinstance(x, dict) else f"a {type(x).__name__}"
        raise ValueError(
            f"{need}: x must be a dict with the entry {entry!r}, got {found}. Models read the entries that they have "
            "inputs for; this may be another entry."
        )
    return x[entry]
