"""What keras_kd takes from the insides of Keras, TensorFlow and sacreBLEU: `tests/test_keras_private.py` pins each.

They have no public name for these: whether `call` takes `training`, the mask that travels with a tensor, the losses
in `compile(loss=...)`, the `tf.Variable` of a `keras.Variable`, what one replica gets of a batch. Elsewhere, keras_kd
only overrides the hooks of `keras.Model` that a subclass has to, as `_maybe_symbolic_build`.
"""

import contextlib
import inspect
import weakref

import keras
import tensorflow as tf
from keras.src import backend
from keras.src.backend.common.variables import AutocastScope
from keras.src.losses.loss import reduce_weighted_values
from keras.src.losses.losses import LossFunctionWrapper
from keras.src.models.functional import Functional
from keras.src.trainers.trainer import model_supports_jit
from keras.src.utils import naming
from tensorflow.python.distribute.values import PerReplicaSpec
from tensorflow.python.framework.ops import gradient_registry


def call_model(model, inputs, training):
    """Call a model in training or inference mode, also one whose `call` has no `training` argument."""
    if model._call_has_training_arg:
        return model(inputs, training=training)
    return model(inputs)


def functional_graph(model):
    """The functional model that a functional or built sequential model is, or None for any other model.

    A subclass with a `call` of its own is another model: its graph does not tell what it computes.
    """
    if type(model).call not in (Functional.call, keras.Sequential.call):
        return None
    if isinstance(model, keras.Sequential):
        return model._functional
    return model if isinstance(model, Functional) else None


def get_mask(tensor):
    """The Keras mask of a tensor, `(batch, length)` bool, or None."""
    return backend.get_keras_mask(tensor)


def set_mask(tensor, mask):
    """Attach a Keras mask to a tensor and return the tensor."""
    backend.set_keras_mask(tensor, mask)
    return tensor


def loss_argument(model):
    """What the model was compiled with as `loss`, in its structure, names looked up; None without a loss."""
    if model._compile_loss is None:
        return None
    return keras.tree.map_structure(
        lambda loss: keras.losses.get(loss) if isinstance(loss, str) else loss, model._compile_loss._user_loss
    )


def has_loss_weights(model):
    """Whether the model was compiled with `loss_weights`."""
    return model._compile_loss is not None and model._compile_loss._user_loss_weights is not None


def has_metrics(model):
    """Whether the model was compiled with metrics that Keras updates."""
    return model._compile_metrics is not None


def replace_compiled_losses(model, wrap):
    """Replace each loss of `compile(loss=...)` by `wrap(loss)`; does nothing where it is done already."""
    compile_loss = model._compile_loss
    if compile_loss is not None and compile_loss.built:
        compile_loss._flat_losses = [entry._replace(loss=wrap(entry.loss)) for entry in compile_loss._flat_losses]


def loss_function(loss):
    """The function of a loss and its keyword arguments, for Keras's own losses in any of their forms."""
    if isinstance(loss, LossFunctionWrapper):
        return loss.fn, loss._fn_kwargs
    return loss, {}


def reduce_values(values, sample_weight, mask, reduction, dtype):
    """What `keras.losses.Loss` makes of one value per sample or token, with weights and a mask or None."""
    return reduce_weighted_values(values, sample_weight, mask, reduction, dtype)


def sparse_label_options(loss):
    """`(True, ignore_class)` if the loss is sparse categorical cross-entropy in any form, else `(False, None)`."""
    function, options = loss_function(loss)
    return function is keras.losses.sparse_categorical_crossentropy, options.get("ignore_class")


def backend_variable(variable):
    """The backend's own variable, e.g. `tf.Variable`, of a `keras.Variable`."""
    return variable._value


def epoch_element_spec(epoch_iterator):
    """Shapes and dtypes of the batches that the iterator of `fit`'s epochs hands out, without drawing a batch."""
    return epoch_iterator._distributed_dataset.element_spec


def replica_spec(spec):
    """What one replica gets of a spec that is per replica; any other spec as it is."""
    return spec._value_specs[0] if isinstance(spec, PerReplicaSpec) else spec


def producer(tensor):
    """The operation that made a symbolic tensor, the tensor's index among its outputs, and the operation's inputs."""
    operation, node_index, tensor_index = tensor._keras_history
    return operation, tensor_index, operation._inbound_nodes[node_index].input_tensors


def graph_tensors(layer):
    """`(inputs, outputs)` of each symbolic call of a layer; none for the layers of a subclassed model."""
    return [(node.input_tensors, node.output_tensors) for node in layer._inbound_nodes]


def graph_calls(model):
    """The calls of a functional model in the order they run: `[(operation, input tensors, output tensors)]`."""
    nodes = functional_graph(model)._nodes_by_depth
    in_order = [node for depth in sorted(nodes, reverse=True) for node in nodes[depth] if not node.is_input]
    return [(node.operation, node.input_tensors, node.outputs) for node in in_order]


def nested_output(operation, tensor_index):
    """The tensor inside a functional model that is the operation's output of this index; None if it is none."""
    graph = functional_graph(operation) if isinstance(operation, keras.Model) else None
    return None if graph is None else keras.tree.flatten(graph.output)[tensor_index]


def supports_jit(model):
    """Whether XLA can compile every layer of a model."""
    return model_supports_jit(model)


def symbolic_result(function, inputs):
    """What `function(inputs)` gives for symbolic inputs: tensors of static shapes, without a trace in any graph."""
    return backend.compute_output_spec(function, inputs)


def random_states(model):
    """The states of the random generators of a model, those of Dropout for instance, which Keras does not save."""
    return [generator.state for layer in model._flatten_layers() for generator in layer._seed_generators]


ATTENTION_LAYERS = (keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention)


def attention_call(layer, args, kwargs):
    """The arguments of an attention layer's `_compute_attention` by name: projected query, key and value, mask."""
    bound = inspect.signature(type(layer)._compute_attention).bind(layer, *args, **kwargs)
    return {"attention_mask": None, "use_causal_mask": False, **bound.arguments}


def projected_keys_and_values(layer, inputs):
    """What a `MultiHeadAttention` attends to, of inputs (batch, length, width): each (batch, length, heads, size)."""
    return layer._key_dense(inputs), layer._value_dense(inputs)


def attend(layer, query, key, value, mask):
    """What a `MultiHeadAttention` returns for a query, (batch, length, width), of projected keys and values."""
    attended, _ = layer._compute_attention(layer._query_dense(query), key, value, mask)
    return layer._output_dense(attended)


def call_arguments(layer, args, kwargs):
    """The arguments that were given to a layer's `call`, by name."""
    return inspect.signature(type(layer).call).bind(layer, *args, **kwargs).arguments


def sublayers(layer):
    """The layers that a layer or model holds itself, in the order of their weights."""
    return layer._flatten_layers(include_self=False, recursive=False)


class BuildHook(keras.layers.Layer):
    """A base class of layers with work to do once their weights are there: `after_build`, which may add some."""

    def _post_build(self):
        super()._post_build()
        self.after_build()


@contextlib.contextmanager
def unlocked(layer):
    """Let a built layer get more weights and layers inside."""
    layer._tracker.unlock()
    try:
        yield
    finally:
        layer._tracker.lock()


def without_autocast():
    """A context in which variables are read in their own dtype, also inside of a layer that computes in half."""
    return AutocastScope(None)


def learnable_variables(model):
    """The variables that were made to be learnt, also those frozen now; not the statistics of BatchNormalization."""
    return [variable for layer in model._flatten_layers() for variable in layer._trainable_variables]


def automatic_name(layer):
    """The name that Keras gives to the first layer of this class: "dense" for a Dense."""
    return naming.to_snake_case(type(layer).__name__)


def set_direction(metric, lower_is_better):
    """Tell callbacks with `mode="auto"`, such as EarlyStopping, which way a metric improves."""
    metric._direction = "down" if lower_is_better else "up"


def sentencepiece_proto(tokenizer):
    """The serialized model that a `tensorflow_text.SentencepieceTokenizer` was made with."""
    return tokenizer._model_resource._model


def manual_folder(download_manager):
    """TensorFlow Datasets' folder for files fetched by hand; its public name raises where the folder is empty."""
    return download_manager._manual_dir


def allow_text_operations(converter):
    """Let a `tf.lite.TFLiteConverter` keep the operations of tensorflow-text, and run them while it calibrates."""
    from tensorflow_text.core.pybinds import tflite_registrar

    converter.allow_custom_ops = True
    converter.target_spec._experimental_custom_op_registerers = list(tflite_registrar.SELECT_TFTEXT_OPS)


def text_interpreter(content):
    """A LiteRT interpreter, of the bytes of a file, that has the operations of tensorflow-text."""
    from tensorflow.lite.python.interpreter import InterpreterWithCustomOps
    from tensorflow_text.core.pybinds import tflite_registrar

    return InterpreterWithCustomOps(custom_op_registerers=tflite_registrar.SELECT_TFTEXT_OPS, model_content=content)


def litert_schema():
    """The module that reads the bytes of a LiteRT file into objects and writes these, and its enums of tensor types."""
    from tensorflow.lite.python import schema_py_generated as schema
    from tensorflow.lite.tools import flatbuffer_utils

    return flatbuffer_utils, schema


def release_custom_gradient(tensor):
    """Let go of the graph that holds `tensor`, a result of `tf.custom_gradient`, once nothing else refers to it.

    For each call in a graph TensorFlow registers the gradient for good, and with it the tensors of the graph: a process
    that trains many models would keep all their graphs. Here the graph itself holds the gradient, and the registry a
    function that finds it there. Does nothing for a tensor that belongs to no graph.
    """
    graph = None if tf.executing_eagerly() else tensor.graph
    if graph is None:
        return
    name = tensor.op.get_attr("_gradient_op_type").decode()
    entry = gradient_registry._registry[name]
    if not hasattr(graph, "custom_gradients"):
        graph.custom_gradients = {}
    graph.custom_gradients[name] = entry["type"]
    entry["type"] = lambda operation, *gradients: operation.graph.custom_gradients[name](operation, *gradients)
    weakref.finalize(graph, gradient_registry._registry.pop, name, None)


def sacrebleu_statistics(metric, texts, streams):
    """What each text adds to the sums that a sacreBLEU metric is computed of: a list of numbers for each text."""
    return metric._extract_corpus_statistics(texts, streams)


def sacrebleu_score(metric, sums):
    """A sacreBLEU metric's score, 0 to 100, of summed statistics."""
    return metric._compute_score_from_stats(sums).score
