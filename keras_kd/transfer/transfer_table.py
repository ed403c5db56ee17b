"""What `transfer_weights` did: one row a student layer, and the table."""

import dataclasses

from keras_kd._tables import plain_text


@dataclasses.dataclass(frozen=True)
class LayerTransfer:
    """What became of one student layer.

    Attributes:
        student: path of the student layer: "encoder/block_0/ffn".
        layer_class: the name of its class.
        parameters: the number of numbers in its weights.
        teacher: path of the teacher layer whose weights it got; None if it got none.
        how: "by name", "by shape and order", "by the given map" or "is the teacher's own layer"; else why it got none.
    """

    student: str
    layer_class: str
    parameters: int
    teacher: str | None
    how: str


@dataclasses.dataclass(frozen=True, repr=False)
class Transfer:
    """What each student layer got; made by `keras_kd.transfer_weights`. `print(transfer)` shows the table.

    Attributes:
        rows: a `LayerTransfer` for each student layer with weights, in the order of the student's layers.
        frozen: whether the layers that got weights were frozen.
    """

    rows: tuple[LayerTransfer, ...]
    frozen: bool

    @property
    def transferred(self):
        """The rows of the layers that got weights."""
        return tuple(row for row in self.rows if row.teacher is not None)

    @property
    def missing(self):
        """The rows of the layers that got none; `row.how` says why."""
        return tuple(row for row in self.rows if row.teacher is None)

    def __repr__(self):
        return f"Transfer(transferred={len(self.transferred)}, missing={len(self.missing)}, frozen={self.frozen})"

    def __str__(self):
        return plain_text(self)

    def __rich__(self):
        from rich import box
        from rich.table import Table
        from rich.text import Text

        look = {"title_justify": "left", "title_style": "bold", "box": box.SIMPLE_HEAD, "padding": (0, 1)}
        table = Table(title=f"\n{self._summary()}", **look)
        for heading in ("student layer", "class", "parameters", "teacher layer", "how, or why not"):
            table.add_column(heading, justify="right" if heading == "parameters" else "left", overflow="fold")
        for row in self.rows:
            cells = (row.student, row.layer_class, f"{row.parameters:,}", row.teacher or "–", row.how)
            table.add_row(*map(Text, cells), style=None if row.teacher else "yellow")
        return table

    def print(self, *, console=None):
        """Print the table to a `rich.console.Console`; None is standard output."""
        import rich.console

        (console or rich.console.Console()).print(self)

    def _summary(self):
        got, all_rows = self.transferred, self.rows
        numbers = [sum(row.parameters for row in rows) for rows in (got, all_rows)]
        frozen = ", frozen" if self.frozen else ""
        return (
            f"{len(got)} of {len(all_rows)} layers got the teacher's weights: "
            f"{numbers[0]:,} of {numbers[1]:,} parameters{frozen}"
        )
