"""What is searched: a range or a list of choices for each name, checked before anything runs."""

import dataclasses
import math

from keras_kd._checks import require_number

LEARNING_RATE = "learning_rate"


@dataclasses.dataclass(frozen=True)
class Range:
    """All values between two bounds; what `(low, high)` stands for in the `search` of `keras_kd.tune`.

    Args:
        low, high: The bounds, low < high; both can be drawn.
        log: Whether values are drawn evenly in their logarithm, as fits figures that matter by their order of
            magnitude. Unless given: where low > 0 and high / low ≥ 10.

    Raises:
        TypeError, ValueError: A bound is no finite number, low ≥ high, or `log` goes with a bound ≤ 0.

    Example:

    >>> keras_kd.tuning.Range(1e-4, 1e-2).log, keras_kd.tuning.Range(1.0, 8.0).log
    (True, False)
    """

    low: float
    high: float
    log: bool | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self):
        low, high = (require_number(getattr(self, end), end) for end in ("low", "high"))
        if low >= high:
            raise ValueError(f"low must be < high, got {low:g} and {high:g}. For a fixed value, give a list of one.")
        if self.log not in (None, True, False):
            raise TypeError(f"log must be True, False or None, got {self.log!r}.")
        if self.log and low <= 0:
            raise ValueError(f"log=True needs bounds > 0, got low={low:g}.")
        log = (low > 0 and high / low >= 10) if self.log is None else self.log
        for name, value in (("low", low), ("high", high), ("log", log)):
            object.__setattr__(self, name, value)

    size = math.inf  # different values
    ticks = ()

    @property
    def smallest(self):
        return self.low

    def declare(self, hyperparameters, name):
        """Add it to KerasTuner's `HyperParameters`."""
        hyperparameters.Float(name, self.low, self.high, sampling="log" if self.log else "linear")

    def draw(self, generator):
        """A value, from a `numpy.random.Generator`."""
        if self.log:
            return min(self.high, self.low * (self.high / self.low) ** generator.random())
        return self.low + (self.high - self.low) * generator.random()

    def content(self):
        """As it stands in the record's file."""
        return {"low": self.low, "high": self.high, "log": self.log}


@dataclasses.dataclass(frozen=True)
class Choices:
    """Some values, in rising order: neighbours in the list are neighbours to the search."""

    values: tuple[float, ...]
    log = False

    @property
    def ticks(self):
        return self.values

    @property
    def size(self):
        return len(self.values)

    @property
    def smallest(self):
        return self.values[0]

    def declare(self, hyperparameters, name):
        """Add it to KerasTuner's `HyperParameters`."""
        hyperparameters.Choice(name, list(self.values))

    def draw(self, generator):
        """A value, from a `numpy.random.Generator`."""
        return self.values[generator.integers(len(self.values))]

    def content(self):
        """As it stands in the record's file."""
        return list(self.values)


class Space(dict):
    """`{name: Range or Choices}`."""

    @property
    def size(self):
        """How many different sets of values there are, infinite where there is a range."""
        return math.prod(part.size for part in self.values())

    def first_values(self):
        """The smallest value of each, to try out with what the search was given."""
        return {name: part.smallest for name, part in self.items()}

    def draw(self, generator):
        """Some values, from a `numpy.random.Generator`."""
        return {name: part.draw(generator) for name, part in self.items()}

    def content(self):
        """As it stands in the record's file."""
        return {name: part.content() for name, part in self.items()}


def read_search(search, hyperparameters):
    """Return the `Space` that `search` describes.

    Args:
        search: `{name: (low, high), Range or list of choices}`.
        hyperparameters: The names of the distiller's hyperparameters.

    Raises:
        TypeError, ValueError: a name is unknown, a range or a choice is out of bounds or of another kind.
    """
    if not isinstance(search, dict) or not search:
        raise TypeError(
            "search must be a dict that names at least one value to search, for instance "
            f'{{"soft_weight": (0.1, 10.0)}}, got {search!r}.'
        )
    known = [*hyperparameters, LEARNING_RATE]
    unknown = [name for name in search if name not in known]
    if unknown:
        raise ValueError(f"search names {unknown}, which this distiller does not have. It has {known}.")
    return Space({name: _read_part(part, f"search[{name!r}]", name) for name, part in search.items()})


def _read_part(part, argument, name):
    if isinstance(part, tuple) and len(part) == 2:
        try:
            part = Range(*part)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{argument}: {error}") from None
    if isinstance(part, Range):
        _require_allowed(part.low, argument, name)
        return part
    if not isinstance(part, list) or not part:
        raise TypeError(
            f"{argument} must be a range, (low, high) or keras_kd.tuning.Range, or a list of choices, got {part!r}."
        )
    values = sorted(_require_allowed(value, argument, name) for value in part)
    if len(set(values)) < len(values):
        raise ValueError(f"{argument} must list different choices, got {part!r}.")
    return Choices(tuple(values))


def _require_allowed(value, argument, name):
    if name == LEARNING_RATE or name.endswith("_temperature"):
        return require_number(value, argument, above=0.0)
    return require_number(value, argument, at_least=0.0 if name.endswith("_weight") else None)
