"""transfer_weights and every_kth_block: who gets what, Δw, freezing, reports; nothing changes when it is refused."""

import warnings

import keras
import numpy as np
import pytest
from conftest import dense_model, strategy_of
from keras import layers

from keras_kd.transfer import every_kth_block, transfer_weights
from keras_kd.transfer.layers import layer_tree, walk


def sequential(shape, *stack, name=None):
    return keras.Sequential([keras.Input(shape), *stack], name=name)


def randomized(model, seed=7):
    """The model with random numbers in all its weights: zeros and ones of fresh biases and scales prove nothing."""
    rng = np.random.default_rng(seed)
    model.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in model.weights])
    return model


def routes(transfer):
    return {row.student: row.teacher for row in transfer.rows}


def how(transfer):
    return {row.student: row.how for row in transfer.rows}


def assert_equal_weights(first, second):
    """Bit for bit; lists of arrays, or layers."""
    first, second = (value if isinstance(value, list) else value.get_weights() for value in (first, second))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


def state(model):
    """Weights and flags, to compare before and after."""
    flags = [(layer.name, layer.trainable) for layer in model._flatten_layers()]
    return model.get_weights(), flags, [weight.trainable for weight in model.weights]


def assert_unchanged(model, before):
    weights, *flags = state(model)
    assert_equal_weights(weights, before[0])
    assert flags == list(before[1:])


def refused(error, message, teacher, student, **options):
    """The call raises, and leaves both models as they were, warnings or not."""
    before = state(teacher), state(student)
    with pytest.raises(error, match=message):
        transfer_weights(teacher, student, **options)
    assert_unchanged(teacher, before[0])
    assert_unchanged(student, before[1])


@keras.saving.register_keras_serializable("test_transfer")
class Block(layers.Layer):
    """A transformer block as one composite layer, with a weight of its own."""

    def __init__(self, width=8, hidden=12, **options):
        super().__init__(**options)
        self.attention = layers.MultiHeadAttention(2, 4, name="attention")
        self.norm = layers.LayerNormalization(name="norm")
        self.up = layers.Dense(hidden, "gelu", name="up")
        self.down = layers.Dense(width, name="down")
        self.dropout = layers.Dropout(0.1)

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones", name="scale")
        self.attention.build(shape, shape)
        self.norm.build(shape)
        self.up.build(shape)
        self.down.build((*shape[:-1], self.up.units))

    def call(self, x):
        x = self.norm(x + self.scale * self.attention(x, x))
        return x + self.dropout(self.down(self.up(x)))


def composite_encoder(depth, name="block_{}", hidden=12):
    return sequential((5, 8), *[Block(hidden=hidden, name=name.format(i)) for i in range(depth)])


def flat_encoder(depth, name="block_{}"):
    """A functional encoder: four flat layers a block, with the block's number in their names, and other numbers too."""
    x = inputs = keras.Input((5, 8))
    for i in range(depth):
        block = name.format(i)
        attention = layers.MultiHeadAttention(2, 4, name=f"{block}_attention")(x, x)
        x = layers.LayerNormalization(name=f"{block}_norm")(x + layers.Dropout(0.1)(attention))
        hidden = layers.Dense(12, "gelu", name=f"{block}_dense_1")(x)
        x = x + layers.Dense(8, name=f"{block}_dense_2")(hidden)
    return keras.Model(inputs, x)


def nested_encoder(depth):
    """An encoder inside a model, of blocks that are models."""

    def block(i):
        x = keras.Input((5, 8))
        return keras.Model(x, x + layers.Dense(8, "gelu", name="ffn")(x), name=f"block_{i}")

    return sequential((5, 8), sequential((5, 8), *map(block, range(depth)), name="encoder"))


# Matching


def test_layers_match_by_name_wherever_they_stand():
    teacher = randomized(sequential((4,), *[layers.Dense(4, name=name) for name in "abc"]))
    student = sequential((4,), *[layers.Dense(4, name=name) for name in "cab"])
    transfer = transfer_weights(teacher, student)
    assert routes(transfer) == {"c": "c", "a": "a", "b": "b"}
    assert set(how(transfer).values()) == {"by name"}
    for name in "abc":
        assert_equal_weights(student.get_layer(name), teacher.get_layer(name))


def test_the_rest_matches_by_shape_and_order():
    """By hand: (4, 6) and (6, 6) come in this order in both; of the teacher's two (6, 6) the first is taken."""
    teacher = randomized(sequential((4,), *[layers.Dense(n, name=f"t{i}") for i, n in enumerate((6, 6, 6, 3))]))
    student = sequential((4,), layers.Dense(6, name="s0"), layers.Dense(6, name="s1"), layers.Dense(3, name="s2"))
    transfer = transfer_weights(teacher, student, strict=True)
    assert routes(transfer) == {"s0": "t0", "s1": "t1", "s2": "t3"}
    assert set(how(transfer).values()) == {"by shape and order"}
    assert_equal_weights(student.layers[1], teacher.layers[1])


def test_a_name_comes_before_shape_and_order():
    teacher = randomized(sequential((4,), layers.Dense(4, name="a"), layers.Dense(4, name="b")))
    student = sequential((4,), layers.Dense(4, name="b"), layers.Dense(4, name="x"))
    transfer = transfer_weights(teacher, student)
    assert (routes(transfer), how(transfer)["x"]) == ({"b": "b", "x": "a"}, "by shape and order")


def test_the_order_is_kept_and_as_many_layers_as_possible_match():
    """Dense, Embedding-like order: the teacher has 1D norms in another place; the longest common order has 3 layers."""
    teacher = sequential((4,), layers.LayerNormalization(), *[layers.Dense(4) for _ in range(3)])
    student = sequential((4,), *[layers.Dense(4) for _ in range(3)], layers.LayerNormalization(name="last_norm"))
    with pytest.warns(UserWarning, match=r"\['last_norm'\]"):
        transfer = transfer_weights(teacher, student)
    assert len(transfer.transferred) == 3
    assert "'layer_normalization' would fit, but stands in another order" in how(transfer)["last_norm"]


def test_names_that_keras_makes_are_no_names():
    """`dense_1` is the teacher's second layer and, because another layer was made before, the student's first."""
    teacher = randomized(sequential((4,), layers.Dense(4), layers.Dense(4), layers.Dense(4)))
    keras.utils.clear_session()
    layers.Dense(1)
    student = sequential((4,), layers.Dense(4), layers.Dense(4))
    assert [layer.name for layer in student.layers] == ["dense_1", "dense_2"]
    transfer = transfer_weights(teacher, student)
    assert routes(transfer) == {"dense_1": "dense", "dense_2": "dense_1"}
    assert set(how(transfer).values()) == {"by shape and order"}


def test_a_name_that_is_not_unique_does_not_count():
    class Twins(keras.Model):
        def __init__(self):
            super().__init__()
            self.first, self.second = layers.Dense(4, name="twin"), layers.Dense(4, name="twin")

        def call(self, x):
            return self.second(self.first(x))

    models = [Twins(), Twins()]
    for model in models:
        model(np.zeros((1, 4)))
    transfer = transfer_weights(randomized(models[0]), models[1])
    assert [row.how for row in transfer.rows] == ["by shape and order"] * 2
    assert_equal_weights(models[1], models[0])


def test_equal_shapes_are_not_enough_the_class_counts():
    teacher = sequential((5, 4), layers.EinsumDense("abc,cd->abd", (5, 4), bias_axes="d", name="x"))
    student = sequential((5, 4), layers.Dense(4, name="x"))
    with pytest.warns(UserWarning):
        transfer = transfer_weights(teacher, student)
    assert how(transfer) == {"x": "the teacher's layer of this name is of class EinsumDense"}


def test_equal_shapes_of_other_weights_are_not_enough():
    teacher = sequential((4,), layers.LayerNormalization(center=False, name="norm"))
    student = sequential((4,), layers.LayerNormalization(scale=False, name="norm"))
    with pytest.warns(UserWarning):
        transfer = transfer_weights(teacher, student)
    assert how(transfer) == {"norm": "weights differ: student beta (4,), teacher gamma (4,)"}


@pytest.mark.parametrize(
    ("shape", "make"),
    [
        ((6,), lambda: layers.Embedding(9, 4)),
        ((6, 3), lambda: layers.Conv1D(4, 3)),
        ((6, 6, 3), lambda: layers.Conv2D(4, 3)),
        ((6, 6, 3), lambda: layers.DepthwiseConv2D(3)),
        ((6, 3), lambda: layers.LayerNormalization()),
        ((6, 3), lambda: layers.BatchNormalization()),
        ((6, 3), lambda: layers.GroupNormalization(3)),
        ((6, 3), lambda: layers.EinsumDense("abc,cd->abd", (None, 4))),
        ((6, 3), lambda: layers.Bidirectional(layers.LSTM(4))),
        ((6, 3), lambda: layers.GRU(4)),
        ((6, 3), lambda: layers.PReLU()),
    ],
    ids=lambda value: type(value()).__name__ if callable(value) else "",
)
def test_layers_of_every_kind_are_handed_over_with_all_their_weights(shape, make):
    teacher, student = randomized(sequential(shape, make())), sequential(shape, make())
    (row,) = transfer_weights(teacher, student, strict=True).rows
    assert (row.layer_class, row.parameters) == (type(teacher.layers[0]).__name__, teacher.count_params())
    assert_equal_weights(student, teacher)


def test_batch_normalization_brings_its_moving_statistics():
    teacher = sequential((3,), layers.BatchNormalization())
    teacher.set_weights([np.full(3, value, "float32") for value in (2.0, 3.0, 4.0, 25.0)])  # γ, β, mean, variance
    student = sequential((3,), layers.BatchNormalization(epsilon=1e-12))
    transfer_weights(teacher, student)
    np.testing.assert_allclose(student.predict(np.full((1, 3), 9.0), verbose=0), 2 * (9 - 4) / 5 + 3, rtol=1e-6)


def test_multi_head_attention_goes_whole_or_not_at_all():
    """The narrow one differs in its values only; its queries and keys would fit, but mean nothing alone."""

    def attention(value_dim):
        x = keras.Input((5, 8))
        return keras.Model(x, layers.MultiHeadAttention(2, 4, value_dim, name="attention")(x, x))

    teacher, student, narrow = randomized(attention(4)), attention(4), attention(3)
    (row,) = transfer_weights(teacher, student).rows
    assert row.parameters == 3 * (8 * 8 + 8) + 8 * 8 + 8
    x = np.random.default_rng(0).normal(size=(2, 5, 8))
    np.testing.assert_array_equal(student(x), teacher(x))
    message = r"1 of .* 1 layers .*\n.*shapes differ: student kernel \(8, 2, 3\), teacher kernel \(8, 2, 4\)"
    refused(ValueError, message, teacher, narrow, strict=True)


def test_nested_models_are_walked_into():
    """The names around a layer differ; the common end of the path, "block_1/ffn", finds it."""

    def model(name, order):
        blocks = [sequential((4,), layers.Dense(4, name="ffn"), name=f"block_{i}") for i in order]
        return sequential((4,), sequential((4,), *blocks, name=name), layers.Dense(2))

    teacher, student = randomized(model("big_encoder", (0, 1, 2))), model("small_encoder", (2, 1))
    transfer = transfer_weights(teacher, student, strict=True)
    assert routes(transfer) == {
        "small_encoder/block_2/ffn": "big_encoder/block_2/ffn",
        "small_encoder/block_1/ffn": "big_encoder/block_1/ffn",
        student.layers[-1].name: teacher.layers[-1].name,
    }
    assert [row.how for row in transfer.rows] == ["by name", "by name", "by shape and order"]
    assert_equal_weights(student.layers[0].layers[1], teacher.layers[0].layers[1])


def test_subclassed_models_and_their_own_weights():
    class WithToken(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(4)
            self.token = self.add_weight(shape=(4,), name="token")

        def call(self, x):
            return self.dense(x) + self.token

    teacher, student = WithToken(), WithToken()
    for model in (teacher, student):
        model(np.zeros((1, 4)))
    transfer = transfer_weights(randomized(teacher), student, freeze=True, strict=True)
    assert [(row.student, row.parameters) for row in transfer.rows] == [("(own weights)", 4), (student.dense.name, 20)]
    assert_equal_weights(student, teacher)
    assert (student.trainable, student.trainable_weights) == (True, [])


def test_a_composite_layer_goes_whole_and_else_in_the_parts_that_match():
    teacher, student = randomized(composite_encoder(1)), composite_encoder(1)
    assert routes(transfer_weights(teacher, student)) == {"block_0": "block_0"}
    narrow = composite_encoder(1, hidden=6)
    with pytest.warns(UserWarning, match=r"2 of the student's 5 layers.*\['block_0/up', 'block_0/down'\]"):
        transfer = transfer_weights(teacher, narrow)
    got = ["block_0 (own weights)", "block_0/attention", "block_0/norm"]
    assert [row.student for row in transfer.transferred] == got
    assert {row.how for row in transfer.transferred} == {"by name"}
    assert how(transfer)["block_0/up"] == "shapes differ: student kernel (8, 6), teacher kernel (8, 12)"
    np.testing.assert_array_equal(narrow.layers[0].scale, teacher.layers[0].scale)


def test_layers_inside_a_composite_match_flat_ones():
    teacher, student = randomized(composite_encoder(1)), sequential((5, 8), layers.Dense(12, name="up"))
    assert routes(transfer_weights(teacher, student)) == {"up": "block_0/up"}
    assert_equal_weights(student.layers[0], teacher.layers[0].up)


def test_a_layer_used_twice_appears_once():
    inputs, shared = keras.Input((4,)), layers.Dense(4, name="shared")
    student = keras.Model(inputs, shared(shared(inputs)))
    teacher = randomized(sequential((4,), layers.Dense(4, name="shared")))
    assert routes(transfer_weights(teacher, student)) == {"shared": "shared"}


def test_weights_that_two_layers_share_belong_to_the_first():
    """A head that holds the embedding layer, as in masked language models."""

    class TiedHead(layers.Layer):
        def __init__(self, embedding):
            super().__init__(name="head")
            self.embedding, self.dense = embedding, layers.Dense(4, name="dense")

        def build(self, shape):
            self.dense.build(shape)

        def call(self, x):
            return self.dense(x) @ keras.ops.transpose(self.embedding.embeddings)

    def model():
        embedding = layers.Embedding(7, 4, name="tokens")
        return sequential((5,), embedding, TiedHead(embedding))

    teacher, student = randomized(model()), model()
    transfer = transfer_weights(teacher, student, layers={"head": "head"}, freeze=True)
    assert [(row.student, row.parameters) for row in transfer.rows] == [("tokens", 28), ("head", 20)]
    assert_equal_weights(student.layers[1].dense, teacher.layers[1].dense)
    assert not np.array_equal(student.layers[0].get_weights()[0], teacher.layers[0].get_weights()[0])
    assert [weight.trainable for weight in student.layers[0].weights] == [True]  # it got nothing, so it is not frozen


def test_the_random_state_of_dropout_stays():
    def model(seed):
        return sequential((4,), layers.Dropout(0.5, seed=seed), layers.Dense(4))

    teacher, student = model(1), model(2)
    before = student.layers[0].seed_generator.state.numpy()
    transfer = transfer_weights(teacher, student, strict=True)
    assert [row.layer_class for row in transfer.rows] == ["Dense"]
    np.testing.assert_array_equal(student.layers[0].seed_generator.state, before)


@pytest.mark.parametrize("change", [lambda layer: layer.enable_lora(2), lambda layer: layer.quantize("int8")])
@pytest.mark.parametrize("side", ["teacher", "student"])
def test_lora_and_quantized_layers_are_reported_and_left_alone(side, change):
    models = {name: dense_model(4, 3) for name in ("teacher", "student")}
    change(models[side].get_layer("hidden_0"))
    before = state(models["student"])[0][: len(models["student"].get_layer("hidden_0").weights)]
    with pytest.warns(UserWarning):
        transfer = transfer_weights(**models)
    assert [row.student for row in transfer.transferred] == ["logits"]
    assert any(words in how(transfer)["hidden_0"] for words in ("uses LoRA", "is quantized (int8)"))
    assert_equal_weights(models["student"].get_layer("hidden_0"), before)
    refused(ValueError, "uses LoRA|is quantized", **models, layers={"hidden_0": "hidden_0"})


# The explicit map, and the last k


def test_an_explicit_map_hands_over_just_what_it_names():
    teacher, student = randomized(dense_model(8, 8, 3)), dense_model(8, 8, 3)
    before = student.get_layer("hidden_1").get_weights()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what was not asked for is not missed
        transfer = transfer_weights(teacher, student, layers={"hidden_0": "hidden_1"})
    assert routes(transfer) == {"hidden_0": "hidden_1", "hidden_1": None, "logits": None}
    assert how(transfer) == {
        "hidden_0": "by the given map",
        "hidden_1": "not in the given map",
        "logits": "not in the given map",
    }
    assert_equal_weights(student.get_layer("hidden_0"), teacher.get_layer("hidden_1"))
    assert_equal_weights(student.get_layer("hidden_1"), before)


def test_an_explicit_map_takes_paths_unique_names_layers_and_other_classes():
    teacher = randomized(nested_encoder(3))
    student = sequential((5, 8), *[layers.EinsumDense("abc,cd->abd", (5, 8), bias_axes="d") for _ in range(3)])
    first, second, third = student.layers
    source = teacher.layers[0].layers[2].layers[-2]
    wanted = {first.name: "encoder/block_1/ffn", second: "block_1", third: source}
    if source.name != "ffn":
        wanted[third] = "encoder/block_2/ffn"
    transfer = transfer_weights(teacher, student, layers=wanted, strict=True)
    assert list(routes(transfer).values()) == ["encoder/block_1/ffn", "encoder/block_1", "encoder/block_2/ffn"]
    assert_equal_weights(second, teacher.layers[0].layers[1])


@pytest.mark.parametrize(
    ("mapping", "error", "message"),
    [
        (
            {"nobody": "logits"},
            ValueError,
            r"layers: 'nobody' is not a layer of the student .*\['hidden_0', 'logits'\]",
        ),
        (
            {"logits": "nobody"},
            ValueError,
            r"layers: 'nobody' is not a layer of the teacher .*\['hidden_0', 'hidden_1'",
        ),
        (
            {"logits": "hidden_1"},
            ValueError,
            r"'logits' cannot get .* 'hidden_1': shapes differ: student kernel \(8, 3\), teacher kernel \(8, 8\)",
        ),
        (
            {layers.Dense(3, name="logits"): "logits"},
            ValueError,
            "layers: the given Dense 'logits' is not a layer of the student",
        ),
        ({"logits": 3}, TypeError, "layers must name layers by str or be layers, got int: 3"),
        (["logits"], TypeError, r"layers must be a dict \{student layer: teacher layer\}, got list"),
        ({}, ValueError, "layers must name at least one layer"),
    ],
)
@pytest.mark.parametrize("strict", [False, True])
def test_bad_maps_are_refused_always(mapping, error, message, strict):
    refused(error, message, dense_model(8, 8, 3), dense_model(8, 3), layers=mapping, strict=strict)


def test_maps_that_are_ambiguous_or_write_twice_are_refused():
    teacher, student = nested_encoder(2), nested_encoder(2)
    refused(
        ValueError,
        r"'ffn' is the name of several .* \['encoder/block_0/ffn', ",
        teacher,
        student,
        layers={"ffn": "ffn"},
    )
    twice = {"encoder/block_0": "encoder/block_0", "encoder/block_0/ffn": "encoder/block_1/ffn"}
    refused(ValueError, "'encoder/block_0/ffn' would get weights twice", teacher, student, layers=twice)
    again = {"block_0": "block_0", "encoder/block_0": "encoder/block_1"}
    refused(ValueError, "'encoder/block_0' would get weights twice", teacher, student, layers=again)


def test_the_last_k_matching_layers_come_from_the_end_of_the_teacher():
    """Four equal teacher layers, three equal student layers: from the back, s2 <- t3, s1 <- t2."""
    teacher = randomized(sequential((4,), *[layers.Dense(4, name=f"t{i}") for i in range(4)], layers.Dense(2)))
    student = sequential((4,), *[layers.Dense(4, name=f"s{i}") for i in range(3)], layers.Dense(3, name="head"))
    before = student.layers[0].get_weights()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        transfer = transfer_weights(teacher, student, last=2)
    assert routes(transfer) == {"s0": None, "s1": "t2", "s2": "t3", "head": None}
    assert how(transfer)["s0"] == "matches, but stands before the last 2"
    assert_equal_weights(student.layers[2], teacher.layers[3])
    assert_equal_weights(student.layers[0], before)


def test_strict_with_last_looks_at_the_layers_from_the_first_of_them_on():
    teacher = sequential((4,), *[layers.Dense(4, name=name) for name in "abcd"])
    student = sequential((4,), *[layers.Dense(4, name=name) for name in "ab"])
    assert len(transfer_weights(teacher, student, last=1, strict=True).transferred) == 1
    headed = sequential((4,), layers.Dense(4, name="a"), layers.Dense(3, name="head"))
    refused(ValueError, r"(?s)strict=True: 1 of .*'head' \(Dense\)", teacher, headed, last=1, strict=True)


@pytest.mark.parametrize(
    ("last", "error", "message"),
    [
        (0, ValueError, "last must be >= 1, got 0"),
        (-1, ValueError, "last must be >= 1, got -1"),
        (1.0, TypeError, "last must be a whole number >= 1, got 1.0"),
        (True, TypeError, "last must be a whole number >= 1, got True"),
        (3, ValueError, r"last must be <= 2, .* got 3; they are \['hidden_0', 'logits'\]"),
    ],
)
def test_last_must_be_a_number_of_layers_that_match(last, error, message):
    refused(error, message, dense_model(4, 3), dense_model(4, 3), last=last)


# Every k-th block


def blocks_after(encoder, positions, x):
    """The output of the given blocks of a composite encoder, one after the other."""
    for position in positions:
        x = encoder.layers[position](x)
    return x


@pytest.mark.parametrize(
    ("options", "taken"), [({}, (0, 2)), ({"offset": 1}, (1, 3)), ({"k": 3}, (0, 3)), ({"k": 1}, (0, 1))]
)
def test_every_kth_block_of_composite_layers_gives_the_outputs_of_those_blocks(options, taken):
    teacher, student = randomized(composite_encoder(4)), composite_encoder(2)
    mapping = every_kth_block(teacher, student, **options)
    assert mapping == {f"block_{i}": f"block_{position}" for i, position in enumerate(taken)}
    transfer_weights(teacher, student, layers=mapping, strict=True)
    x = np.random.default_rng(0).normal(size=(2, 5, 8)).astype("float32")
    np.testing.assert_array_equal(student(x), blocks_after(teacher, taken, x))


def test_every_second_block_of_flat_layers_gives_the_outputs_of_those_blocks():
    teacher, student = randomized(flat_encoder(4)), flat_encoder(2)
    mapping = every_kth_block(teacher, student, k=2)
    parts = ("attention", "norm", "dense_1", "dense_2")
    assert mapping == {f"block_{i}_{part}": f"block_{2 * i}_{part}" for i in range(2) for part in parts}
    transfer_weights(teacher, student, layers=mapping, strict=True)
    x = np.random.default_rng(0).normal(size=(2, 5, 8)).astype("float32")
    expected = x  # by the teacher's own layers, block 0 and block 2
    for block in ("block_0", "block_2"):
        attention, norm, up, down = (teacher.get_layer(f"{block}_{part}") for part in parts)
        expected = norm(expected + attention(expected, expected))
        expected = expected + down(up(expected))
    np.testing.assert_array_equal(student(x), expected)


def test_every_second_block_of_nested_models():
    teacher, student = randomized(nested_encoder(4)), nested_encoder(2)
    mapping = every_kth_block(teacher, student)
    assert mapping == {"encoder/block_0": "encoder/block_0", "encoder/block_1": "encoder/block_2"}
    transfer = transfer_weights(teacher, student, layers=mapping, strict=True)
    assert [row.layer_class for row in transfer.rows] == ["Functional", "Functional"]
    x = np.ones((1, 5, 8), "float32")
    np.testing.assert_array_equal(student(x), blocks_after(teacher.layers[0], (0, 2), x))


def test_blocks_that_keras_named_are_taken_in_the_order_they_were_made():
    """The teacher's are "tiny_block", "tiny_block_1", …, "tiny_block_11"; the student's go on from there."""

    class TinyBlock(layers.Layer):
        def build(self, shape):
            self.scale = self.add_weight(shape=(shape[-1],), name="scale")

        def call(self, x):
            return x * self.scale

    teacher, student = (sequential((2,), *[TinyBlock() for _ in range(depth)]) for depth in (12, 6))
    taken = ["tiny_block", *[f"tiny_block_{i}" for i in (2, 4, 6, 8, 10)]]
    assert list(every_kth_block(teacher, student).values()) == taken
    assert list(every_kth_block(teacher, student)) == [f"tiny_block_{i}" for i in range(12, 18)]


def test_other_numbers_in_names_do_not_distract():
    """Neither "embed2d" nor "conv1d", nor the names "dense", "dense_1", … that Keras makes."""

    def model(depth):
        inputs = keras.Input((5, 8))
        x = layers.Conv1D(8, 1)(layers.Dense(8, name="embed2d")(inputs))
        x = flat_encoder(depth, "encoder_layer_{}")(x)
        for _ in range(3):
            x = layers.Dense(8)(x)
        return keras.Model(inputs, x)

    mapping = every_kth_block(model(4), model(2))
    assert {name.split("/")[-1].split("_")[2] for name in mapping} == {"0", "1"}
    assert len(mapping) == 8


def test_patterns_name_the_blocks_where_there_are_several_kinds_or_places():
    def model(depth, first="encoder", second="decoder"):
        stacks = [
            sequential((4,), *[layers.Dense(4, name=f"block_{i}") for i in range(depth)], name=name)
            for name in (first, second)
        ]
        return sequential((4,), *stacks)

    teacher, student = model(4), model(2)
    with pytest.raises(
        ValueError, match=r"'block_\{\}' is found in several places of the .*\['decoder/', 'encoder/'\]"
    ):
        every_kth_block(teacher, student)
    expected = {"decoder/block_0": "decoder/block_0", "decoder/block_1": "decoder/block_2"}
    assert every_kth_block(teacher, student, pattern="decoder/block_{}") == expected
    renamed = model(2, "encoder", "writer")
    expected = {"writer/block_0": "decoder/block_0", "writer/block_1": "decoder/block_2"}
    assert every_kth_block(teacher, renamed, pattern=("decoder/block_{}", "writer/block_{}")) == expected
    flat_teacher, flat_student = (
        sequential((4,), *[layers.Dense(4, name=f"{kind}_{i}") for kind in ("enc", "dec") for i in range(depth)])
        for depth in (4, 2)
    )
    with pytest.raises(ValueError, match=r"several kinds of numbered blocks are found: \['\w+_\{\}', '\w+_\{\}'\]"):
        every_kth_block(flat_teacher, flat_student)
    assert every_kth_block(flat_teacher, flat_student, pattern="dec_{}") == {"dec_0": "dec_0", "dec_1": "dec_2"}


@pytest.mark.parametrize(
    ("depth", "options", "error", "message"),
    [
        (3, {"k": 2, "offset": 1}, ValueError, r"the teacher has 3 blocks 'block_\{\}', .* 2 student blocks .* need 4"),
        (1, {}, ValueError, "no numbered blocks are found that both models have"),
        (4, {"k": 0}, ValueError, "k must be >= 1, got 0"),
        (4, {"k": 2.0}, TypeError, "k must be a whole number"),
        (4, {"k": 2, "offset": 2}, ValueError, "offset must be < k = 2, got 2"),
        (4, {"offset": -1}, ValueError, "offset must be >= 0"),
        (4, {"pattern": "layer_{}"}, ValueError, r"pattern='layer_\{\}' fits no layer of the teacher; they are \['blo"),
        (4, {"pattern": "block"}, ValueError, 'pattern must have one "{}" where the number stands'),
        (4, {"pattern": 3}, TypeError, "pattern must be a str"),
        (4, {"pattern": ("block_{}",)}, TypeError, "pattern must be a str .* or a pair"),
    ],
)
def test_every_kth_block_refuses(depth, options, error, message):
    teacher, student = (sequential((4,), *[layers.Dense(4, name=f"block_{i}_x") for i in range(n)]) for n in (depth, 2))
    with pytest.raises(error, match=message):
        every_kth_block(teacher, student, **options)


def test_a_block_that_lacks_a_part_is_refused():
    teacher = sequential((4,), *[layers.Dense(4, name=f"block_{i}_up") for i in range(4)])
    student = sequential((4,), layers.Dense(4, name="block_0_up"), layers.Dense(4, name="block_0_gate"))
    with pytest.raises(ValueError, match=r"no part that ends in '_gate' as .* 'block_0_gate' .* \['block_0_up'\]"):
        every_kth_block(teacher, student)


# w_S = w_T + Δw


def wide(name="wide"):
    return sequential((100,), layers.Dense(300, name=name), layers.BatchNormalization(), name=f"model_{name}")


def test_noise_is_gaussian_of_the_given_scale_and_seeded():
    """30,300 draws: mean within 5 standard errors (5·0.02/√30300 = 0.0006), deviation within 2 %, 68.3 % within 1 σ."""
    teacher, first, second, third = randomized(wide()), wide(), wide(), wide()
    for student, seed in ((first, 0), (second, 0), (third, 1)):
        transfer_weights(teacher, student, noise=0.02, seed=seed)
    assert_equal_weights(first, second)
    assert not np.array_equal(first.get_weights()[0], third.get_weights()[0])
    delta = np.concatenate(
        [(a - b).ravel() for a, b in zip(first.get_weights()[:2], teacher.get_weights()[:2], strict=True)]
    )
    assert abs(delta.mean()) < 6e-4
    assert delta.std() == pytest.approx(0.02, rel=0.02)
    assert np.mean(np.abs(delta) < 0.02) == pytest.approx(0.683, abs=0.015)


def test_noise_spares_the_statistics_of_batch_normalization():
    teacher, student = randomized(wide()), wide()
    student.trainable = False  # does not make the weights statistics
    transfer_weights(teacher, student, noise=10.0, seed=0)
    gamma, beta, mean, variance = student.layers[1].get_weights()
    assert_equal_weights([mean, variance], teacher.layers[1].get_weights()[2:])
    assert np.abs(gamma - teacher.layers[1].get_weights()[0]).mean() > 1
    assert np.abs(beta - teacher.layers[1].get_weights()[1]).mean() > 1


def test_noise_without_a_seed_follows_the_random_seed_of_keras():
    teacher, students = randomized(dense_model(4, 3)), [dense_model(4, 3) for _ in range(3)]
    for student in students:
        if student is not students[1]:
            keras.utils.set_random_seed(5)
        transfer_weights(teacher, student, noise=0.1)
    assert_equal_weights(students[0], students[2])
    assert not np.array_equal(students[0].get_weights()[0], students[1].get_weights()[0])


def test_given_arrays_are_added_exactly():
    teacher, student = randomized(dense_model(4, 3)), dense_model(4, 3)
    rng = np.random.default_rng(0)
    delta = [rng.normal(size=(8, 4)).astype("float32"), rng.normal(size=4).astype("float32")]
    transfer_weights(teacher, student, delta={"hidden_0": delta})
    expected = [w + d for w, d in zip(teacher.get_layer("hidden_0").get_weights(), delta, strict=True)]
    assert_equal_weights(student.get_layer("hidden_0"), expected)
    assert_equal_weights(student.get_layer("logits"), teacher.get_layer("logits"))


@pytest.mark.parametrize(
    ("delta", "error", "message"),
    [
        ([np.zeros(3)], TypeError, "delta must be a dict {student layer: list of arrays}, got list"),
        ({"nobody": []}, ValueError, "delta: 'nobody' is not a layer of the student"),
        ({"hidden_0": []}, ValueError, r"'hidden_0' gets no weights from the teacher; .* \['logits'\]"),
        (
            {"logits": np.zeros((4, 3))},
            TypeError,
            r"delta\['logits'\] must be a list of arrays, one a weight, got ndarray",
        ),
        (
            {"logits": [np.zeros((4, 3))]},
            ValueError,
            r"one array for each of \['kernel \(4, 3\)', 'bias \(3,\)'\], got the shapes \[\(4, 3\)\]",
        ),
        ({"logits": [np.zeros((4, 3)), np.zeros((1, 3))]}, ValueError, r"got the shapes \[\(4, 3\), \(1, 3\)\]"),
        ({"logits": [np.zeros((4, 3)), ["a"] * 3]}, TypeError, "must hold arrays of real numbers"),
        ({"logits": [np.zeros((4, 3)), 1j * np.ones(3)]}, TypeError, "must hold arrays of real numbers.*complex"),
        ({"logits": [np.full((4, 3), np.nan), np.zeros(3)]}, ValueError, "must hold finite numbers"),
    ],
)
def test_bad_arrays_are_refused(delta, error, message):
    refused(error, message, dense_model(4, 3), dense_model(4, 3), delta=delta, layers={"logits": "logits"})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"noise": -0.1}, ValueError, "noise must be >= 0, got -0.1. It is the standard deviation"),
        ({"noise": "much"}, TypeError, "noise must be >= 0 .a number., got 'much'"),
        ({"noise": float("nan")}, ValueError, "noise must be >= 0, got nan"),
        ({"noise": 0.1, "seed": -1}, ValueError, "seed must be >= 0, got -1"),
        ({"noise": 0.1, "seed": 1.5}, TypeError, "seed must be a whole number"),
        ({"noise": 0.1, "delta": {"logits": []}}, ValueError, "noise and delta exclude each other"),
        ({"last": 1, "layers": {"logits": "logits"}}, ValueError, "layers and last exclude each other"),
    ],
)
def test_bad_options_are_refused(options, error, message):
    refused(error, message, dense_model(4, 3), dense_model(4, 3), **options)


# Freezing


def layers_for_freezing():
    inputs = keras.Input((8,))
    x = layers.BatchNormalization(name="norm")(layers.Dense(6, "relu", name="kept")(inputs))
    return keras.Model(inputs, layers.Dense(3, name="head")(layers.Dense(6, "relu", name="middle")(x)))


@pytest.mark.parametrize("fitted_before", [False, True])
def test_frozen_layers_stay_bit_equal_in_training_and_the_others_move(data, fitted_before):
    """Also where the student was fitted before: its old training step must not go on."""
    x, y = data
    teacher, student = randomized(layers_for_freezing()), layers_for_freezing()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    student.compile("adam", loss)
    if fitted_before:
        student.fit(x, y, verbose=0)
    transfer = transfer_weights(teacher, student, layers={"kept": "kept", "norm": "norm"}, freeze=True)
    assert transfer.frozen
    assert [layer.trainable for layer in student.layers] == [True, False, False, True, True]
    before = {layer.name: layer.get_weights() for layer in student.layers}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras asks to compile again
        student.fit(x, y, epochs=2, verbose=0)
    for name in ("kept", "norm"):
        assert_equal_weights(student.get_layer(name), teacher.get_layer(name))
    for name in ("middle", "head"):
        assert not np.array_equal(student.get_layer(name).get_weights()[0], before[name][0])
    student.compile("adam", loss)
    student.fit(x, y, verbose=0)
    assert_equal_weights(student.get_layer("kept"), teacher.get_layer("kept"))


def test_without_freeze_what_was_handed_over_is_trained(data):
    teacher, student = randomized(dense_model(4, 3)), dense_model(4, 3)
    assert not transfer_weights(teacher, student).frozen
    student.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    student.fit(*data, verbose=0)
    assert not np.array_equal(student.get_weights()[0], teacher.get_weights()[0])


# Partial matches, reports


def test_strict_raises_and_lists_what_found_no_partner_and_why():
    teacher = randomized(dense_model(8, 8, 5))
    student = sequential((8,), layers.Dense(8), layers.LayerNormalization(), layers.Dense(3, name="logits"))
    norm = student.layers[1].name
    message = (
        rf"(?s)strict=True: 2 of the student's 3 layers .*'{norm}' \(LayerNormalization\): the teacher has no "
        r"LayerNormalization\n  'logits' \(Dense\): shapes differ: student kernel \(8, 3\), teacher kernel \(8, 5\)\n"
        r"Nothing was changed"
    )
    refused(ValueError, message, teacher, student, strict=True, freeze=True)
    refused(
        ValueError, "'not_mapped'|not in the given map", teacher, student, layers={"dense": "hidden_0"}, strict=True
    )


def test_a_partial_match_warns_and_names_what_is_missing():
    teacher, student = randomized(dense_model(8, 5)), dense_model(8, 3)
    with pytest.warns(UserWarning, match=r"1 of the student's 2 layers .* found no partner .*\['logits'\]") as caught:
        transfer = transfer_weights(teacher, student)
    assert caught[0].filename == __file__
    assert [row.student for row in transfer.missing] == ["logits"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refused(UserWarning, "found no partner", randomized(teacher, 8), student, freeze=True)
        transfer_weights(dense_model(8, 5), dense_model(8, 5))


@pytest.mark.parametrize(
    ("teacher_layers", "why"),
    [
        ([layers.Dense(8)], "each teacher layer of this class and shape is taken"),
        ([layers.Dense(8), layers.Dense(5), layers.Dense(6)], "no Dense of the teacher has weights of these shapes"),
    ],
)
def test_the_reasons_are_the_right_ones(teacher_layers, why):
    student = sequential(
        (8,), layers.Dense(8), layers.Dense(8, name="x") if "taken" in why else layers.Dense(3, name="x")
    )
    with pytest.warns(UserWarning):
        transfer = transfer_weights(sequential((8,), *teacher_layers), student)
    assert how(transfer)["x"] == why


def test_the_table_tells_every_layer(capsys):
    teacher, student = dense_model(16, 16, 5), dense_model(16, 3)
    with pytest.warns(UserWarning):
        transfer = transfer_weights(teacher, student, freeze=True)
    lines = [" ".join(line.split()) for line in str(transfer).splitlines() if line.strip()]
    assert lines[0] == "1 of 2 layers got the teacher's weights: 144 of 195 parameters, frozen"
    assert lines[1] == "student layer class parameters teacher layer how, or why not"
    assert lines[3:] == [
        "hidden_0 Dense 144 hidden_0 by name",
        "logits Dense 51 – shapes differ: student kernel (16, 3), teacher kernel (16, 5)",
    ]
    assert repr(transfer) == "Transfer(transferred=1, missing=1, frozen=True)"
    assert capsys.readouterr().out == ""
    print(transfer)
    printed = capsys.readouterr().out
    assert "hidden_0" in printed and "by name" in printed


def test_brackets_in_names_are_no_markup():
    teacher, student = (sequential((4,), layers.Dense(4, name="[bold]x")) for _ in range(2))
    assert "[bold]x" in str(transfer_weights(teacher, student))


# Nothing of the user's is lost


def test_the_teacher_stays_as_it_is():
    teacher, student = randomized(layers_for_freezing()), layers_for_freezing()
    teacher.get_layer("middle").trainable = False
    before = state(teacher)
    transfer_weights(teacher, student, noise=0.1, seed=0, freeze=True, strict=True)
    assert_unchanged(teacher, before)
    assert student.trainable_weights == []


def test_layers_shared_with_the_teacher_are_left_alone():
    shared = layers.Dense(8, name="shared")
    teacher = randomized(sequential((8,), shared, layers.Dense(3, name="head")))
    student = sequential((8,), shared, layers.Dense(3, name="head"))
    before = state(teacher)
    transfer = transfer_weights(teacher, student, noise=0.1, freeze=True, strict=True)
    assert_unchanged(teacher, before)
    assert how(transfer) == {"shared": "is the teacher's own layer", "head": "by name"}
    refused(ValueError, "holds weights of the teacher", teacher, student, layers={"shared": "shared"})
    refused(ValueError, "student must be another model than the teacher", teacher, teacher)


def test_an_error_while_writing_undoes_what_was_written(monkeypatch):
    teacher, student = randomized(dense_model(4, 3)), dense_model(4, 3)
    kernel = type(student.weights[0])
    assign, count = kernel.assign, []

    def failing(self, value):
        count.append(self)
        if len(count) == 3:
            raise RuntimeError("out of memory")
        return assign(self, value)

    before = state(student)
    monkeypatch.setattr(kernel, "assign", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        transfer_weights(teacher, student, freeze=True)
    assert_unchanged(student, before)


@pytest.mark.parametrize(("role", "bad"), [("teacher", lambda x: x), ("student", "student")])
@pytest.mark.parametrize("function", [transfer_weights, every_kth_block])
def test_what_is_no_model_is_refused(function, role, bad):
    with pytest.raises(TypeError, match=f"{role} must be a keras.Model, got"):
        function(**{"teacher": dense_model(4, 3), "student": dense_model(4, 3), role: bad})


@pytest.mark.parametrize("function", [transfer_weights, every_kth_block])
@pytest.mark.parametrize("role", ["teacher", "student"])
def test_unbuilt_models_and_models_without_weights_are_refused(function, role):
    for model, message in (
        (keras.Sequential([layers.Dense(3)]), "is not built, so it holds no weights. Call it once on a batch, or give"),
        (sequential((3,), layers.ReLU()), "must have layers with weights, got none"),
    ):
        with pytest.raises(ValueError, match=rf"{role} '\w+' {message}"):
            function(**{"teacher": dense_model(4, 3), "student": dense_model(4, 3), role: model})


# Dtypes and tf.distribute


def test_values_are_cast_to_the_students_dtype():
    half, whole = dense_model(4, 3, dtype="bfloat16"), dense_model(4, 3)
    transfer_weights(randomized(half), whole)
    for ours, theirs in zip(whole.weights, half.weights, strict=True):
        assert (ours.dtype, theirs.dtype) == ("float32", "bfloat16")
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy().astype("float32"))
    transfer_weights(randomized(whole), half, noise=0.0)
    np.testing.assert_allclose(half.get_weights()[0].astype("float32"), whole.get_weights()[0], rtol=2**-8)
    mixed = dense_model(4, 3, dtype="mixed_bfloat16")
    transfer_weights(whole, mixed, strict=True)
    assert_equal_weights(mixed, whole)


@pytest.mark.parametrize(("value", "message"), [(1e6, r"values up to 1e\+06"), (np.nan, "NaN")])
def test_values_that_do_not_fit_are_refused(value, message):
    teacher, student = dense_model(4, 3), dense_model(4, 3, dtype="float16")
    teacher.layers[1].kernel.assign(np.full((4, 3), value))
    refused(
        ValueError,
        rf"the teacher's 'logits' would bring {message} into .* 'logits', of dtype float16",
        teacher,
        student,
    )


def test_a_student_under_a_strategy_gets_the_weights_on_every_replica():
    strategy = strategy_of(2)
    teacher = randomized(layers_for_freezing())
    with strategy.scope():
        student = layers_for_freezing()
    transfer_weights(teacher, student, strict=True, freeze=True)
    for ours, theirs in zip(student.weights, teacher.weights, strict=True):
        for copy in strategy.experimental_local_results(ours.value):
            np.testing.assert_array_equal(copy.numpy(), theirs.numpy())
    back = layers_for_freezing()
    transfer_weights(student, back, strict=True)
    assert_equal_weights(back, teacher)


def test_the_tree_lists_layers_inside_layers():
    assert [node.path for node in walk(layer_tree(composite_encoder(1), "student"))][:6] == [
        "",
        "block_0",
        "block_0 (own weights)",
        "block_0/attention",
        "block_0/attention/query",
        "block_0/attention/key",
    ]
