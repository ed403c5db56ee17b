"""The losses of a step, from the outputs of a teacher, live or precomputed, and of the student."""


class LossTerms:
    """What a step needs of a teacher and a student: their outputs, and the losses computed from the logits.

    Args:
        distiller: The distiller, compiled.
        pairing: The `Pairing` of the two models.

    Attributes:
        builds_compiled_loss: Whether a traced step builds the loss of `compile`.
    """

    builds_compiled_loss = True

    def __init__(self, distiller, pairing):
        self.distiller, self.pairing = distiller, pairing

    def read_teacher(self, x):
        """The teacher's `ModelOutputs` for a batch; None for a student that teaches itself."""
        return self.pairing.read_teacher(x)

    def training(self, teacher, student, batch, tape):
        """L_raw or None, each Lᵢ, and the sum that is minimized."""
        return self.distiller.dense_losses(self.pairing, teacher, student, batch, tape)

    def testing(self, student, batch):
        """L_raw and regularization of a batch that is not trained on."""
        return self.distiller.compute_loss(batch.x, batch.y, student.prediction, batch.sample_weight, training=False)


class Connection:
    """A student and a teacher, live or precomputed.

    Args:
        pairing: The `Pairing` of the two models.
        fusion: How the losses could be computed without the logits, a `Fusion`; None if they cannot.

    Attributes:
        terms: The `LossTerms` of the step, chosen in `compile`.
    """

    def __init__(self, pairing, fusion=None):
        self.pairing, self.fusion, self.terms = pairing, fusion, None
