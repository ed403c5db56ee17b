"""LiteRT files with 4 bits a weight. Its converter writes 8; its runtime reads both."""

import numpy as np

from keras_kd._keras_private import litert_schema

_PRODUCTS = ("FULLY_CONNECTED", "CONV_2D")  # whose kernels take int4 weights and float activations
_LEVELS = np.arange(-7, 8)
_IN_8_BITS = np.round(_LEVELS * 127 / 7)


def with_int4_weights(content):
    """The bytes of a LiteRT file again, with the weights of products that have 15 values in 4 bits each.

    The converter gives q · s, q from -7 to 7, as the integers round(127 q / 7) with the scale 7 s / 127: what it
    rounds here is undone.
    """
    flatbuffers, schema = litert_schema()
    model = flatbuffers.read_model_from_bytearray(bytearray(content))
    for graph in model.subgraphs:
        products = [op for op in graph.operators if flatbuffers.opcode_to_name(model, op.opcodeIndex) in _PRODUCTS]
        weights = {int(op.inputs[1]) for op in products}
        others = {int(index) for op in graph.operators if op not in products for index in op.inputs}
        for index in sorted(weights - others):
            _pack(graph.tensors[index], model.buffers, schema.TensorType)
    return bytes(flatbuffers.convert_object_to_bytearray(model))


def _pack(tensor, buffers, types):
    """Change a tensor of 8-bit integers, and its numbers, to 4 bits where they have as few values."""
    data = buffers[tensor.buffer].data
    if tensor.type != types.INT8 or data is None:
        return
    integers = np.frombuffer(bytes(data), np.int8)
    if not np.isin(integers, _IN_8_BITS).all():
        return
    levels = np.round(integers * (7 / 127)).astype("int8")
    pairs = np.pad(levels, (0, levels.size % 2)) & 15  # the first of two in the low half
    buffers[tensor.buffer].data = (pairs[::2] | (pairs[1::2] << 4)).astype("uint8")
    tensor.type = types.INT4
    tensor.quantization.scale = np.asarray(tensor.quantization.scale, "float32") * np.float32(127 / 7)
