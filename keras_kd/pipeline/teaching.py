"""What teaches in `keras-kd distil`: a model that takes strings, a file of scores, or an encoder with a head."""

import pathlib

import keras
import numpy as np
import tensorflow as tf

from keras_kd._extras import needs_extra
from keras_kd._files import naming_damaged_file
from keras_kd.cache import cache_teacher_outputs, open_teacher_cache
from keras_kd.datasets.rows import File, broken, read_table
from keras_kd.deploy.end_to_end import ANSWERS, LOGITS, TEXT
from keras_kd.outputs.endings import logits_of
from keras_kd.outputs.model_inputs import input_names, input_specs
from keras_kd.teachers import from_saved_model, logistic_head, sentence_encoder
from keras_kd.text import from_keras_hub

_SCORE_FILES = (".csv", ".tsv", ".jsonl", ".gz")
_BATCH = 64
_PRESET = "config.json"  # a folder with it is a preset of KerasHub or Hugging Face
_TEACHER_TOKENS = 512  # at most
VECTOR = "vector"


def open_teacher(settings, class_names):
    """Return the teacher of `settings.teacher`, an object with an attribute and two methods.

    `parameters` is their number, or None. `learn(texts, labels, folder)` comes first. `outputs(texts, folder)` returns
    {"logits": float32 `(texts, classes)`}, of an encoder also {"vector": float32 `(texts, width)`}.

    ValueError or FileNotFoundError, before anything runs, if it is no teacher of these classes.
    """
    path = pathlib.Path(settings.model)
    if not path.exists():
        return EncoderTeacher(settings)
    if path.suffix in _SCORE_FILES:
        return ScoreFile(path, settings.gives, class_names)
    if (path / _PRESET).exists():
        return EncoderTeacher(settings)
    return TextTeacher(path, settings.gives, class_names)


def check_order(predicted, labels, class_names):
    """Raise ValueError if the teacher's outputs seem to have another order than the classes.

    They do where each label is mostly given another class, each of them one, and far more texts would be right so.
    """
    counts = np.zeros((len(class_names), len(class_names)))
    np.add.at(counts, (labels, predicted), 1)
    mostly = counts.argmax(axis=1)  # of each label, the class that the teacher gives most
    right, right_so = counts.trace(), counts[np.arange(len(mostly)), mostly].sum()
    if len(set(mostly)) < len(mostly) or right_so < right + 0.2 * len(labels):
        return
    order = [class_names[place] for place in np.argsort(mostly)]
    raise ValueError(
        f"the teacher agrees with {right / len(labels):.0%} of the labels, and would with {right_so / len(labels):.0%} "
        f"if its outputs had the order {','.join(order)} in place of {','.join(class_names)}. Give its order: "
        f"--labels {','.join(order)}"
    )


class _Trained:
    """A teacher that knows its classes already."""

    def learn(self, texts, labels, folder):
        pass


class TextTeacher(_Trained):
    """A Keras model or SavedModel that takes strings. Its outputs are stored by text, and a stopped run resumes."""

    def __init__(self, path, gives, class_names):
        self.model = _text_model(path, gives)
        self.parameters = self.model.count_params() or None  # a SavedModel does not tell
        classes = self.model.output.shape[-1]
        if classes != len(class_names):
            raise ValueError(
                f"the teacher {path} must give one number for each of the {len(class_names)} classes of the texts, "
                f"{list(class_names)}, got outputs of the shape {tuple(self.model.output.shape)}."
            )

    def outputs(self, texts, folder):
        distinct = np.unique(texts.astype(str)).astype(object)
        dataset = tf.data.Dataset.from_tensor_slices({TEXT: distinct}).batch(_BATCH)
        return {LOGITS: _stored(self.model, dataset, texts, folder)}


class EncoderTeacher:
    """A KerasHub encoder with its tokenizer; a logistic regression on its vectors of the labelled texts is its head."""

    def __init__(self, settings):
        backbone, self.tokenizer = _preset(settings.model)
        self.name, self.prefix = settings.model, settings.prefix
        self.encoder = sentence_encoder(backbone, pooling=settings.pooling)
        self.parameters = self.encoder.count_params()
        self.as_inputs = self.inputs_layer(self.tokenizer, _TEACHER_TOKENS)
        self.head = None

    def inputs_layer(self, tokenizer, length):
        """The layer from strings to the inputs of the encoder, or of a student made of it."""
        has_segments = "segment_ids" in input_names(self.encoder)
        return from_keras_hub(tokenizer, length, prefix=self.prefix, segment_ids=has_segments)

    def learn(self, texts, labels, folder):
        self.head = logistic_head(self._vectors(texts, folder), labels, name=LOGITS)

    def outputs(self, texts, folder):
        vectors = self._vectors(texts, folder)
        return {VECTOR: vectors, LOGITS: self.head(vectors).numpy()}

    def _vectors(self, texts, folder):
        """Stored by text; texts of about one length are read together, and no longer than they are."""
        distinct = np.array(sorted(set(texts), key=len), dtype=object)

        def cut(texts):
            x = self.as_inputs(texts)
            longest = tf.reduce_max(tf.reduce_sum(x["padding_mask"], axis=1))
            return {TEXT: texts, **{name: ids[:, :longest] for name, ids in x.items()}}

        dataset = tf.data.Dataset.from_tensor_slices(distinct).batch(_BATCH).map(cut)
        return _stored(self.encoder, dataset, texts, folder)


def _stored(model, dataset, texts, folder):
    """What a model gives for texts, computed once for each and stored by text in a folder."""
    cache_teacher_outputs(model, dataset, folder, key=TEXT, dtype="float32", verbose=0)
    rows = tf.data.Dataset.from_tensor_slices({TEXT: texts}).batch(1024)
    attached = open_teacher_cache(folder).attach(rows)
    return np.concatenate([batch.prediction for (batch,) in attached.as_numpy_iterator()]).astype("float32")


def _preset(name):
    """The backbone and the tokenizer of a KerasHub preset: a name, a handle such as "hf://...", or a folder."""
    with needs_extra("students"):
        import keras_hub
    if not pathlib.Path(name).exists() and "://" not in name and name not in keras_hub.models.Backbone.presets:
        raise FileNotFoundError(
            "teacher.model must be a .keras file, a SavedModel, a file of scores, or the name or folder of a KerasHub "
            f"preset; nothing is at {name}, and KerasHub has no preset of that name."
        )
    try:
        return keras_hub.models.Backbone.from_preset(name), keras_hub.models.Tokenizer.from_preset(name)
    except Exception as error:  # of KerasHub, its downloads and the files
        raise ValueError(f"teacher.model must be a KerasHub encoder with a tokenizer, got {name}: {error}") from error


class ScoreFile(_Trained):
    """A file with a column of texts and one for the score of each class, from any teacher."""

    parameters = None

    def __init__(self, path, gives, class_names):
        self.path = path
        file = File(path, str(path))
        table = read_table(file)
        missing = [name for name in (TEXT, *class_names) if name not in table.columns]
        if missing:
            raise broken(
                file, 1, f"no column {missing}: it needs {TEXT!r} and one for each class, {list(class_names)}."
            )
        self._rows = {row[TEXT]: _scores(file, line, row, class_names, gives) for line, row in table.rows}

    def outputs(self, texts, folder=None):
        missing = [text for text in texts if text not in self._rows]
        if missing:
            raise ValueError(
                f"{self.path} must hold the scores of every text; {len(missing)} of {len(texts)} are missing, such as "
                f"{missing[0]!r:.80}."
            )
        return {LOGITS: np.array([self._rows[text] for text in texts], "float32")}


def _text_model(path, gives):
    """The model at a path as one functional model from strings, `(batch,)`, to logits, `(batch, classes)`."""
    if path.is_dir():
        model, gives = _saved_model(path, gives), "logits"
    else:
        with naming_damaged_file(path, Exception):
            model = keras.saving.load_model(path, compile=False)
    specs = list((input_specs(model) or {}).values())
    if [spec.dtype for spec in specs] != [tf.string]:
        raise ValueError(
            f"the teacher {path} must be a functional model or SavedModel with one input of strings, got {specs}. Put "
            "its tokenizer before it, keras_kd.deploy.end_to_end_model(model, tokenizer), and save or export that."
        )
    text = keras.Input((), dtype="string", name=TEXT)
    logits = _as_logits(model(text if specs[0].shape.rank == 1 else keras.ops.expand_dims(text, -1)), gives, path)
    named = keras.layers.Identity(name=LOGITS)(logits)  # stored outputs go by names, which Keras would count on
    return keras.Model(text, named, name=model.name)


def _saved_model(path, gives):
    """A SavedModel as a Keras model that gives logits; of one that was exported with labels, its output of them."""
    signature = tf.saved_model.load(str(path)).signatures.get("serving_default")
    has_answers = signature is not None and set(signature.structured_outputs) == set(ANSWERS)
    return from_saved_model(path, **({"output": LOGITS} if has_answers else {"gives": gives}))


def _as_logits(outputs, gives, path):
    if isinstance(outputs, dict) and set(outputs) == set(ANSWERS):
        return outputs[LOGITS]
    if not keras.tree.is_nested(outputs) and len(outputs.shape) == 3 and outputs.shape[1] == 1:
        outputs = keras.ops.reshape(outputs, (-1, outputs.shape[2]))  # as TextVectorization calls bags of words
    if keras.tree.is_nested(outputs) or len(outputs.shape) != 2:
        shapes = keras.tree.map_structure(lambda tensor: tuple(tensor.shape), outputs)
        raise ValueError(f"the teacher {path} must have one output of the shape (batch, classes), got {shapes}.")
    return logits_of(outputs, "softmax") if gives == "probabilities" else outputs


def _scores(file, line, row, class_names, gives):
    try:
        scores = np.array([float(row[name]) for name in class_names])
    except (TypeError, ValueError) as error:
        raise broken(file, line, f"the scores must be numbers, got {[row[name] for name in class_names]}.") from error
    is_distribution = (scores >= 0).all() and abs(scores.sum() - 1) < 0.01
    if not np.isfinite(scores).all() or (gives == "probabilities" and not is_distribution):
        wanted = "probabilities that sum to 1" if gives == "probabilities" else "finite numbers"
        raise broken(file, line, f"the scores must be {wanted}, got {scores.tolist()}.")
    return np.log(np.maximum(scores, 1e-12)) if gives == "probabilities" else scores
