"""The student of `keras-kd distil`: of bytes, or made of the layers of an encoder that teaches."""

import keras
import numpy as np

from keras_kd.deploy.end_to_end import LOGITS
from keras_kd.losses import CosineFeatures, SoftLabels
from keras_kd.pipeline.settings import LAYERS
from keras_kd.pipeline.teaching import VECTOR, EncoderTeacher
from keras_kd.students import compress_encoder, student_for
from keras_kd.text import ByteEncoder

STUDENT = "student"


def open_learner(settings, teacher, texts, classes):
    """Return the student's parts: an object with the two attributes and three methods of `ByteLearner`.

    Args:
        settings: The `Settings`.
        teacher: What `open_teacher` returned.
        texts: {language: list of str}, the training texts.
        classes: Number of classes.

    Raises:
        ValueError: A size that no such student has; layers of a teacher that is no encoder.
    """
    if settings.student.family != LAYERS:
        return ByteLearner(settings, classes)
    if not isinstance(teacher, EncoderTeacher):
        raise ValueError(
            f"student.family must be ngrams or cnn with the teacher {settings.teacher.model}: {LAYERS!r} are those of "
            "a KerasHub encoder."
        )
    return LayersLearner(settings, teacher, texts)


class ByteLearner:
    """A student that starts from nothing and reads bytes.

    Attributes:
        tokenizer: The layer from strings to its inputs.
        learning_rate: The usual one.
    """

    learning_rate = 0.002

    def __init__(self, settings, classes):
        student, length = settings.student, settings.student.length or 256
        self.tokenizer = ByteEncoder(length)
        self._model = student_for(student.size_mb, classes, family=student.family, length=length, name=STUDENT)
        self._temperature = settings.training.temperature

    def model(self):
        """The model that trains, from inputs to a dict of outputs; the teacher has learned before."""
        logits = keras.layers.Identity(name=LOGITS)(self._model.output)
        return keras.Model(self._model.input, {LOGITS: logits}, name=STUDENT)

    def losses(self):
        """The distillation losses."""
        return [SoftLabels(self._temperature, output=LOGITS, teacher_output=LOGITS)]

    def shipped(self, model):
        """The model that ships, from inputs to logits."""
        return keras.Model(model.input, model.output[LOGITS], name=STUDENT)


class LayersLearner(ByteLearner):
    """A student of some of the teacher's layers, under the head of the teacher: it learns where texts are placed."""

    learning_rate = 0.0005

    def __init__(self, settings, teacher, texts):
        student = settings.student
        prefixed = {language: [teacher.prefix + text for text in given] for language, given in texts.items()}
        options = {"layers": student.layers, "codes": student.codes, "seed": settings.training.seed}
        made = compress_encoder(teacher.encoder, teacher.tokenizer, prefixed, student.size_mb, **options)
        self._encoder, tokenizer = made
        self.tokenizer = teacher.inputs_layer(tokenizer, student.length or 64)
        self._teacher, self._training = teacher, settings.training
        self._temperature = settings.training.temperature

    def model(self):
        head = keras.layers.Dense.from_config(self._teacher.head.get_config())
        vector = self._encoder.output
        logits = head(vector)
        head.set_weights(self._teacher.head.get_weights())
        head.trainable = False
        return keras.Model(self._encoder.input, {VECTOR: vector, LOGITS: logits}, name=STUDENT)

    def losses(self):
        vectors = CosineFeatures(output=VECTOR, teacher_output=VECTOR, weight=self._training.vector_weight)
        return [vectors, *super().losses()]


def texts_by_language(split):
    """{language: list of str} of a split."""
    return {language: split.texts[split.languages == language].tolist() for language in np.unique(split.languages)}
