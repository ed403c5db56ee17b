"""`Transformer`: a small encoder-decoder that decodes step by step with cached keys and values."""

import keras
import numpy as np
from keras import ops

from keras_kd._checks import require_count, require_number
from keras_kd._keras_private import attend, projected_keys_and_values, set_mask


@keras.saving.register_keras_serializable(package="keras_kd")
class Transformer(keras.Model):
    """An encoder-decoder Transformer for sequences of ids: a translator, for instance.

    Layer normalization comes before each sublayer and once more at the end of the encoder and of the decoder. Positions
    are sinusoidal, so that sequences may have any length. One matrix holds the embeddings of source and target and the
    weights of the logits. Id 0 is padding: it is not attended to, and the logits carry a Keras mask, so that losses
    leave it out.

    It is a functional model and a `StepModel`. By default, it has the sizes of "Transformer-Tiny", which Wu et al.
    train on the 29,000 sentences of Multi30k; that one normalizes after each sublayer. Students of translation models
    usually keep the encoder deep and the decoder shallow, because only the decoder runs for each token.

    Args:
        vocabulary_size: Ids, 0 for padding included, ≥ 2; source and target share them.
        layers: Layers of the encoder ≥ 1.
        decoder_layers: Layers of the decoder ≥ 1; None: as many as the encoder has.
        width: Width of the embeddings and hidden states: an even multiple of `heads`.
        heads: Attention heads ≥ 1.
        feed_forward: Units of the hidden layer of each feed-forward network ≥ 1.
        dropout: Of the embeddings and of the output of each sublayer, in [0, 1).
        name: Name of the model.
        dtype: Dtype or policy of all layers. None: the global policy.

    Call arguments:
        inputs: A dict: `"source_ids"`, `(batch, source length)` int, and `"target_ids"`, `(batch, target length)` int,
            which begins with a start id: the logits at a position are those of the next token.

    Returns:
        Logits, `(batch, target length, vocabulary_size)`.

    Raises:
        TypeError: An argument of another type.
        ValueError: A number out of its range; a width that is odd or no multiple of `heads`.

    Example:

    >>> model = keras_kd.sequences.Transformer(10_000, layers=4, decoder_layers=2)
    >>> model({"source_ids": np.array([[5, 6, 2]]), "target_ids": np.array([[1, 7]])}).shape
    TensorShape([1, 2, 10000])
    >>> model.count_params()
    2208000

    Reference:
        [Vaswani et al., 2017](https://arxiv.org/abs/1706.03762); Wu et al., 2021, "Good for Misconceived Reasons", ACL,
        for the sizes; [Kasai et al., 2021](https://arxiv.org/abs/2006.10369) for deep encoders and shallow decoders
    """

    def __init__(
        self,
        vocabulary_size,
        *,
        layers=4,
        decoder_layers=None,
        width=128,
        heads=4,
        feed_forward=256,
        dropout=0.1,
        name=None,
        dtype=None,
    ):
        counts = {"layers": layers, "decoder_layers": layers if decoder_layers is None else decoder_layers}
        counts |= {"width": width, "heads": heads, "feed_forward": feed_forward}
        counts = {argument: require_count(value, argument, at_least=1) for argument, value in counts.items()}
        vocabulary_size = require_count(vocabulary_size, "vocabulary_size", at_least=2)
        dropout = require_number(dropout, "dropout", at_least=0.0)
        if dropout >= 1.0:
            raise ValueError(f"dropout must be < 1, got {dropout!r}.")
        if width % heads or width % 2:
            raise ValueError(f"width must be even and a multiple of heads, got width={width} and heads={heads}.")

        policy = keras.dtype_policies.get(dtype)
        normal = keras.initializers.RandomNormal(stddev=width**-0.5)
        block = {"width": width, "heads": heads, "feed_forward": feed_forward, "dropout": dropout, "dtype": policy}
        self.token_embedding = keras.layers.ReversibleEmbedding(
            vocabulary_size, width, embeddings_initializer=normal, dtype=policy, name="token_embedding"
        )
        self.positions = SinusoidalPositions(dtype=policy, name="positions")
        self.embedding_dropout = keras.layers.Dropout(dropout, dtype=policy, name="embedding_dropout")
        self.encoder_blocks = [EncoderBlock(**block, name=f"encoder_{i}") for i in range(counts["layers"])]
        self.encoder_norm = keras.layers.LayerNormalization(dtype=policy, name="encoder_norm")
        self.decoder_blocks = [DecoderBlock(**block, name=f"decoder_{i}") for i in range(counts["decoder_layers"])]
        self.decoder_norm = keras.layers.LayerNormalization(dtype=policy, name="decoder_norm")

        inputs = {name: keras.Input((None,), dtype="int32", name=name) for name in ("source_ids", "target_ids")}
        encoded, source_mask = self._encoded(inputs["source_ids"])
        x = self._embedded(inputs["target_ids"])
        for layer in self.decoder_blocks:
            x = layer(x, encoded, source_mask)
        logits = PaddingMask(dtype=policy, name="logits")(self._logits(x), inputs["target_ids"])
        super().__init__(inputs=inputs, outputs=logits, name=name)
        self.dtype_policy = policy
        self.sizes = {"vocabulary_size": vocabulary_size, **counts, "dropout": dropout}

    def _embedded(self, ids, start=0):
        return self.embedding_dropout(self.positions(self.token_embedding(ids), start=start))

    def _encoded(self, source_ids):
        """What the decoder reads of the source, `(batch, source length, width)`, and its padding mask."""
        mask = ops.not_equal(source_ids, 0)
        x = self._embedded(source_ids)
        for layer in self.encoder_blocks:
            x = layer(x, mask)
        return self.encoder_norm(x), mask

    def _logits(self, x):
        return self.token_embedding(self.decoder_norm(x), reverse=True)

    def start_decoding(self, inputs, max_length):
        """Encode `inputs["source_ids"]`; see `StepModel`."""
        if "source_ids" not in inputs:
            raise ValueError(f"inputs must hold 'source_ids', got {sorted(inputs)}.")
        encoded, source_mask = self._encoded(inputs["source_ids"])
        memories = [block.cross_attention_memory(encoded) for block in self.decoder_blocks]
        cache = [block.empty_cache(encoded, max_length) for block in self.decoder_blocks]
        return {"memories": memories, "source_mask": source_mask}, cache

    def decode_step(self, ids, position, context, state):
        """Return the logits of the token after `ids`, and the new state; see `StepModel`."""
        x, caches = self._embedded(ids[:, None], start=position), []
        for block, memory, cache in zip(self.decoder_blocks, context["memories"], state, strict=True):
            x, cache = block.step(x, position, memory, context["source_mask"], cache)
            caches.append(cache)
        return self._logits(x)[:, 0], caches

    def get_config(self):
        return {**self.sizes, "name": self.name, "dtype": keras.dtype_policies.serialize(self.dtype_policy)}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        return cls(**config)


@keras.saving.register_keras_serializable(package="keras_kd")
class SinusoidalPositions(keras.layers.Layer):
    """Embeddings times √width, plus sin(p · f) and cos(p · f) at position p, f = 10000^(−2i / width)."""

    def get_config(self):  # Keras's own way leaves out a dtype policy that was an argument
        return super().get_config()

    def call(self, embeddings, start=0):
        length, width = ops.shape(embeddings)[1], embeddings.shape[-1]
        frequencies = (10000.0 ** (-np.arange(0, width, 2) / width)).astype("float32")
        positions = ops.cast(start + ops.arange(length, dtype="int32"), "float32")
        angles = positions[:, None] * frequencies
        encoding = ops.concatenate([ops.sin(angles), ops.cos(angles)], axis=-1)
        return embeddings * width**0.5 + ops.cast(encoding, self.compute_dtype)

    def compute_output_spec(self, embeddings, start=0):
        return keras.KerasTensor(embeddings.shape, self.compute_dtype)


@keras.saving.register_keras_serializable(package="keras_kd")
class PaddingMask(keras.layers.Layer):
    """Logits as they are, with a Keras mask that is False where the id is 0."""

    def get_config(self):  # as above
        return super().get_config()

    def call(self, logits, ids):
        return set_mask(ops.copy(logits), ops.not_equal(ids, 0))

    def compute_output_spec(self, logits, ids):
        return keras.KerasTensor(logits.shape, logits.dtype)


class _Block(keras.layers.Layer):
    """What both kinds of block hold: self-attention and a feed-forward network, normalized before, added after."""

    def __init__(self, *, width, heads, feed_forward, dropout, **kwargs):
        super().__init__(**kwargs)
        self.sizes = {"width": width, "heads": heads, "feed_forward": feed_forward, "dropout": dropout}
        self.self_attention = self._attention("self_attention")
        self.self_attention_norm = self._normalization("self_attention_norm")
        self.hidden = keras.layers.Dense(feed_forward, "relu", dtype=self.dtype_policy, name="hidden")
        self.feed_forward = keras.layers.Dense(width, dtype=self.dtype_policy, name="feed_forward")
        self.feed_forward_norm = self._normalization("feed_forward_norm")
        self.dropout = keras.layers.Dropout(dropout, dtype=self.dtype_policy, name="dropout")

    def _attention(self, name):
        width, heads = self.sizes["width"], self.sizes["heads"]
        return keras.layers.MultiHeadAttention(heads, width // heads, dtype=self.dtype_policy, name=name)

    def _normalization(self, name):
        return keras.layers.LayerNormalization(dtype=self.dtype_policy, name=name)

    def _with_feed_forward(self, x):
        return x + self.dropout(self.feed_forward(self.hidden(self.feed_forward_norm(x))))

    def compute_output_spec(self, x, *others):
        return keras.KerasTensor(x.shape, self.compute_dtype)

    def get_config(self):
        return {**super().get_config(), **self.sizes}


@keras.saving.register_keras_serializable(package="keras_kd")
class EncoderBlock(_Block):
    """Self-attention to the tokens that are no padding, and a feed-forward network."""

    def call(self, x, padding_mask):
        normed = self.self_attention_norm(x)
        x = x + self.dropout(self.self_attention(normed, normed, attention_mask=padding_mask[:, None]))
        return self._with_feed_forward(x)


@keras.saving.register_keras_serializable(package="keras_kd")
class DecoderBlock(_Block):
    """Self-attention to earlier tokens, attention to the source, and a feed-forward network; also token by token."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.cross_attention = self._attention("cross_attention")
        self.cross_attention_norm = self._normalization("cross_attention_norm")

    def call(self, x, encoded, source_mask):
        normed = self.self_attention_norm(x)
        x = x + self.dropout(self.self_attention(normed, normed, use_causal_mask=True))
        normed = self.cross_attention_norm(x)
        x = x + self.dropout(self.cross_attention(normed, encoded, attention_mask=source_mask[:, None]))
        return self._with_feed_forward(x)

    def cross_attention_memory(self, encoded):
        """Keys and values of the source, each `(batch, source length, heads, width / heads)`."""
        return projected_keys_and_values(self.cross_attention, encoded)

    def empty_cache(self, encoded, max_length):
        """Keys and values of no token yet, each `(batch, max_length, heads, width / heads)`."""
        shape = ops.shape(encoded)[0], max_length, self.sizes["heads"], self.sizes["width"] // self.sizes["heads"]
        return ops.zeros(shape, self.compute_dtype), ops.zeros(shape, self.compute_dtype)

    def step(self, x, position, memory, source_mask, cache):
        """What `call` returns at `position`, `(batch, 1, width)`, and the cache with the keys and values of x."""
        normed = self.self_attention_norm(x)
        new = projected_keys_and_values(self.self_attention, normed)
        cache = tuple(ops.slice_update(old, (0, position, 0, 0), one) for old, one in zip(cache, new, strict=True))
        earlier = (ops.arange(cache[0].shape[1]) <= position)[None, None]
        x = x + attend(self.self_attention, normed, *cache, earlier)
        normed = self.cross_attention_norm(x)
        x = x + attend(self.cross_attention, normed, *memory, source_mask[:, None])
        return self._with_feed_forward(x), cache
