"""`Generator`: sequences that a model generates, in batches, as one compiled function."""

import functools

import keras
import tensorflow as tf

from keras_kd._checks import require_count, require_flag, require_tensorflow
from keras_kd.sequences.decoders import TARGETS, decoder_of
from keras_kd.sequences.search import Greedy, Prompt, Sampling, Search


class Generator:
    """Generate sequences with a model: translations, answers, continuations.

    The whole loop is one graph of TensorFlow, which stops once every sequence has ended. The model runs in inference
    mode, with the weights that it has when it is called.

    | model | what is computed for a token |
    |---|---|
    | with the methods of `StepModel`, as `Transformer` | one step with cached keys and values |
    | `CausalLM` or `Seq2SeqLM` of KerasHub | one step with KerasHub's cache |
    | any causal Keras model that returns logits, `(batch, length, vocabulary)` | the whole sequence anew |

    Inputs are told apart by their names. The tokens to continue are called `"target_ids"`, `"decoder_token_ids"` or
    `"token_ids"`; their padding mask, if the model takes one, `"target_padding_mask"`, `"decoder_padding_mask"` or
    `"padding_mask"`. All other inputs, such as `"source_ids"`, are passed on as they are. Names of a subclassed model
    are those of the inputs that it is called with.

    The pad id is never generated, unless it is the end id.

    Args:
        model: The model.
        search: `Greedy()`, `BeamSearch()` or `Sampling()`. None: `Greedy()`.
        max_length: New tokens of a sequence ≥ 1; one that has not ended by then is cut.
        start_id: The id that each sequence begins with. None: the inputs hold a prompt, the tokens to continue.
        end_id: The id that ends a sequence.
        pad_id: The id after the end of a sequence, and after a prompt or a source that is shorter than others.
        use_cache: False: every model computes the whole sequence anew.
        jit_compile: Whether XLA compiles the graph, anew for each shape of inputs.

    Call arguments:
        inputs: A dict of the model's inputs, `(batch, ...)`. A prompt is `(batch, length)`, padded at its end, with one
            token or more in each row; it has the length that its padding mask tells, or ends where only pad ids follow.

    Returns:
        `Hypotheses`: `ids` int32 `(batch, n_best, max_length)`, `scores` float32 `(batch, n_best)`, `lengths` int32
        `(batch, n_best)`, whatever the dtype policy of the model.

    Raises:
        TypeError: An argument of another type.
        ValueError: A number out of its range; an end id that is no token of the model; inputs that lack one of the
            model's, have no prompt where there is no `start_id`, or one where there is; a prompt without tokens; more
            positions than the model has.

    Example:

    >>> keras.utils.set_random_seed(0)
    >>> model = keras_kd.sequences.Transformer(20, layers=1, width=8, heads=2, feed_forward=16)
    >>> generator = keras_kd.sequences.Generator(model, max_length=5, start_id=1, end_id=2)
    >>> hypotheses = generator({"source_ids": np.array([[5, 6, 2], [7, 2, 0]])})
    >>> hypotheses.ids.shape, hypotheses.scores.shape
    (TensorShape([2, 1, 5]), TensorShape([2, 1]))
    """

    def __init__(
        self, model, search=None, *, max_length, end_id, start_id=None, pad_id=0, use_cache=True, jit_compile=False
    ):
        require_tensorflow("Generator")
        if not isinstance(search, Search | None):
            raise TypeError(f"search must be Greedy(), BeamSearch() or Sampling(), got {search!r}.")
        self.model = model
        self.search = search or Greedy()
        self.max_length = require_count(max_length, "max_length", at_least=1)
        self.start_id = None if start_id is None else require_count(start_id, "start_id", at_least=0)
        self.end_id = require_count(end_id, "end_id", at_least=0)
        self.pad_id = require_count(pad_id, "pad_id", at_least=0)
        self._decoder = decoder_of(model, require_flag(use_cache, "use_cache"))
        self._seeds = keras.random.SeedGenerator(self.search.seed) if isinstance(self.search, Sampling) else None
        jit_compile = require_flag(jit_compile, "jit_compile")
        # One graph serves sources of all lengths; the number of positions hangs on the length of a prompt.
        options = {"jit_compile": jit_compile, "reduce_retracing": start_id is not None}
        # Of one partial function for each generator, or TensorFlow would count their traces as those of one function.
        self._compiled = tf.function(functools.partial(self._run), autograph=False, **options)

    def __call__(self, inputs):
        inputs = self._checked(inputs)
        seed = self._seeds.next() if self._seeds else tf.zeros((2,), tf.int32)
        return self._compiled(inputs, tf.cast(seed, tf.int32))

    def _run(self, inputs, seed):
        return self._decoder.run(self.search, inputs, self._prompt(inputs), seed)

    def _prompt(self, inputs):
        if self.start_id is None:
            ids = tf.cast(inputs[self._decoder.target_of(inputs)], tf.int32)
            lengths = self._prompt_lengths(inputs)
        else:
            batch = tf.shape(tf.nest.flatten(inputs)[0])[0]
            ids, lengths = tf.fill((batch, 1), self.start_id), tf.ones((batch,), tf.int32)
        ids = tf.pad(ids, [[0, 0], [0, self.max_length]], constant_values=self.pad_id)
        return Prompt(ids, lengths, tf.reduce_min(lengths), self.max_length, self.end_id, self.pad_id)

    def _prompt_lengths(self, inputs):
        """Given tokens of each row, `(batch,)`."""
        target = self._decoder.target_of(inputs)
        ids = inputs[target]
        is_token = tf.cast(inputs.get(TARGETS[target], ids != self.pad_id), tf.int32)
        return tf.reduce_max(is_token * (1 + tf.range(tf.shape(ids)[1])), axis=1)

    def _checked(self, inputs):
        """The inputs as tensors; ValueError or TypeError for those that the search cannot begin with."""
        if not isinstance(inputs, dict):
            raise TypeError(f"inputs must be a dict of the model's inputs by name, got {type(inputs).__name__}.")
        inputs = tf.nest.map_structure(tf.convert_to_tensor, inputs)
        target = self._decoder.target_of(inputs)
        if self.start_id is None and target not in inputs:
            raise ValueError(f"inputs must hold a prompt, {target!r}, as there is no start_id; got {sorted(inputs)}.")
        if self.start_id is not None and target in inputs:
            raise ValueError(
                f"inputs must not hold {target!r} where there is a start_id. Leave it out, or make the generator "
                "without start_id to continue it."
            )
        if self.start_id is None and tf.executing_eagerly() and tf.reduce_any(self._prompt_lengths(inputs) < 1):
            raise ValueError(f"inputs must hold a token or more in each row of {target!r}, got a row of padding only.")
        return inputs
