"""How a model predicts the next token: step by step with a cache, anew at each step, or through KerasHub."""

import contextlib
import sys
import typing

import keras
import tensorflow as tf

from keras_kd._keras_private import call_model
from keras_kd.outputs.endings import logits_of, output_activations
from keras_kd.outputs.model_inputs import input_names, input_specs, own_entries
from keras_kd.sequences.search import repeated

# The inputs with the tokens that a model continues, each with the name of their padding mask.
TARGETS = {
    "target_ids": "target_padding_mask",
    "decoder_token_ids": "decoder_padding_mask",
    "token_ids": "padding_mask",
}


@typing.runtime_checkable
class StepModel(typing.Protocol):
    """A model that predicts one token after the other, and keeps what it has computed: keys and values, for instance.

    Any `keras.Model` with these two methods is one: `keras_kd.sequences.Transformer` is an example. Both are called in
    a graph of TensorFlow, without training. Tensors are nested in dicts, lists and tuples as you like, and have the
    batch first: a search repeats rows, and puts them in another order.
    """

    def start_decoding(self, inputs, max_length):
        """Return what the steps need: `(context, state)`.

        Args:
            inputs: As the `Generator` was called.
            max_length: Positions that follow, the start id or the prompt included: an int.

        Returns:
            `context`, nested tensors `(batch, ...)` that stay as they are, such as what the encoder returned, and
            `state`, nested tensors `(batch, ...)` whose shapes stay, such as the cache.
        """
        ...

    def decode_step(self, ids, position, context, state):
        """Return `(logits, state)`: the logits, `(batch, vocabulary)`, of the token after `ids`.

        Args:
            ids: The tokens at `position`, `(batch,)` int32.
            position: A scalar int32, 0 for the start id, one more at each step.
            context, state: As `start_decoding` and the step before returned them.
        """
        ...


def decoder_of(model, use_cache):
    """The decoder of a model: with its own cache if it has one and `use_cache` is True."""
    if use_cache and isinstance(model, StepModel):
        return _Stepwise(model)
    if use_cache and _is_keras_hub(model):
        return _KerasHub(model)
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"model must be a keras.Model, or have the methods of keras_kd.sequences.StepModel, got "
            f"{type(model).__name__}: {model!r:.200}."
        )
    return _Recomputing(model)


class _Stepwise:
    """Runs a `StepModel`: one step for each token, those of the prompt included."""

    def __init__(self, model):
        self.model = model

    def target_of(self, inputs):
        """The name of the input that holds the prompt."""
        return _first_present(inputs)

    def run(self, search, inputs, prompt, seed):
        context, state = self.model.start_decoding(inputs, prompt.ids.shape[1])
        context = repeated(context, search.rows)

        def next_logits(ids, index, state):
            return self.model.decode_step(ids[:, index - 1], index - 1, context, state)

        return search.run(next_logits, state, prompt._replace(first=tf.constant(1)), seed)


class _Recomputing:
    """Runs a model over the whole sequence for each token. The model is causal and returns logits."""

    def __init__(self, model):
        self.model = model
        self.names = input_names(model)
        self.specs = input_specs(model) or {}
        self.activations = output_activations(model) or ["linear"]
        self.target = next((name for name in TARGETS if name in self.specs), None)
        if self.specs and not self.target:
            raise ValueError(
                f"model must have an input named one of {list(TARGETS)} for the tokens it continues, got "
                f"{sorted(self.specs)}. Name its keras.Input so, or give it the methods of "
                "keras_kd.sequences.StepModel."
            )

    def target_of(self, inputs):
        return self.target or _first_present(inputs)

    def run(self, search, inputs, prompt, seed):
        target, total = self.target_of(inputs), prompt.ids.shape[1]
        others = repeated({name: x for name, x in inputs.items() if name != target}, search.rows)
        room = self._room(target, total)

        def next_logits(ids, index, state):
            ids = tf.pad(ids, [[0, 0], [0, room - total]], constant_values=prompt.pad)
            mask = tf.zeros_like(ids, bool) | (tf.range(room) < index)
            return self._logits({**others, target: ids, TARGETS[target]: mask})[:, index - 1], state

        return search.run(next_logits, (), prompt, seed)

    def _room(self, target, total):
        """The length that the model takes, of `total` or more."""
        room = self.specs[target].shape[1] if self.specs else None
        if room is not None and room < total:
            raise ValueError(
                f"max_length must leave the model's {room} positions room for the prompt, got {total} positions. "
                "Choose a smaller max_length."
            )
        return room or total

    def _logits(self, inputs):
        if self.specs:
            missing = sorted(set(self.specs) - set(inputs))
            if missing:
                raise ValueError(f"inputs must hold the model's inputs {sorted(self.specs)}, got none for {missing}.")
            inputs = {name: tf.cast(inputs[name], spec.dtype) for name, spec in self.specs.items()}
            inputs = own_entries(inputs, self.names)
        logits = call_model(self.model, inputs, training=False)
        if not isinstance(logits, tf.Tensor) or len(logits.shape) != 3:
            raise ValueError(
                "model must return one tensor of logits, (batch, length, vocabulary), got "
                f"{tf.nest.map_structure(lambda x: tuple(x.shape), logits)}."
            )
        return logits if self.activations != ["softmax"] else logits_of(logits, "softmax")


class _KerasHub:
    """Runs a `CausalLM` or `Seq2SeqLM` of KerasHub: its own `generate_step`, in which the search is the sampler.

    KerasHub's samplers return no scores, but for one; and its beams go on past the end of a sequence.
    """

    def __init__(self, model):
        self.model = model
        self.positions = model.backbone.get_config().get("max_sequence_length")

    def target_of(self, inputs):
        return "decoder_token_ids" if _is_keras_hub(self.model, "Seq2SeqLM") else "token_ids"

    def run(self, search, inputs, prompt, seed):
        target = self.target_of(inputs)
        is_given = tf.range(prompt.ids.shape[1]) < prompt.lengths[:, None]
        inputs = {**inputs, target: prompt.ids, TARGETS[target]: is_given}
        self._check_lengths(inputs)
        if target == "decoder_token_ids":
            inputs.setdefault("encoder_padding_mask", inputs["encoder_token_ids"] != prompt.pad)
        return _generate(self.model, inputs, lambda *step: search.run(*step[:2], prompt._replace(first=step[2]), seed))

    def _check_lengths(self, inputs):
        longest = max(inputs[name].shape[1] or 0 for name in ("encoder_token_ids", *TARGETS) if name in inputs)
        if self.positions and longest > self.positions:
            raise ValueError(
                f"inputs and max_length must fit into the model's {self.positions} positions, got {longest}. Cut the "
                "inputs, or choose a smaller max_length."
            )


def _is_keras_hub(model, name="CausalLM"):
    """Whether a model is of a class of `keras_hub.models`, which need not be installed; all decoders are `CausalLM`."""
    return "keras_hub.models" in sys.modules and isinstance(model, getattr(sys.modules["keras_hub.models"], name))


def _generate(model, inputs, run):
    """What `run(next_logits, state, first)` returns, called as the sampler of a KerasHub model."""
    found = []

    def sampler(next, prompt, cache=(), index=0, **others):
        def next_logits(ids, index, state):
            logits, _, state = next(ids, state, index)
            return logits, state

        found.append(run(next_logits, cache, index))
        return prompt

    with _sampler_of(model, sampler):
        model.generate_step(inputs)
    return found[0]


@contextlib.contextmanager
def _sampler_of(model, sampler):
    own = model.sampler
    model.sampler = sampler
    try:
        yield
    finally:
        model.sampler = own


def _first_present(inputs):
    """The name of the input that holds tokens to continue."""
    return next((name for name in TARGETS if name in inputs), "target_ids")
