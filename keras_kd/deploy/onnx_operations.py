"""Operations of TensorFlow that tf2onnx does not know: imported, this registers them with it."""

import numpy as np

from keras_kd._extras import needs_extra

with needs_extra("onnx"):
    from tf2onnx.handler import tf_op


@tf_op("Erfc")
class Erfc:
    """erfc(x) = 1 − erf(x), of which the exact GELU is made: ONNX has erf alone."""

    @classmethod
    def version_9(cls, graph, node, **_):  # the opset that brought erf
        one = graph.make_const(f"{node.name}_one", np.array(1, "float32"))
        erf = graph.make_node("Erf", node.input, shapes=node.output_shapes, dtypes=node.output_dtypes)
        outputs = {"outputs": node.output, "shapes": node.output_shapes, "dtypes": node.output_dtypes}
        graph.remove_node(node.name)
        graph.make_node("Sub", [one.output[0], erf.output[0]], name=node.name, **outputs)
