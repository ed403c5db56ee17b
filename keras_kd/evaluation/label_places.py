"""Where the labels of a scatter plot go, so that none covers another label or a dot."""

import math

_GAPS = (3, 7, 14, 24, 38, 56, 80, 110, 150, 200, 260)  # between dot and label, points
_ANGLES = (0, 180, 90, 270, 45, 135, 315, 225, 22, 158, 338, 202, 67, 113, 293, 247)  # the best first, degrees
_FREE = 1.5  # left between a label and what is next to it, points


def place_labels(dots, sizes, bounds, lines=()):
    """Return the lower left corner of each label, (x, y), near its dot.

    A label takes the nearest free place; where there is none at all, the one that covers least. All in points.

    Args:
        dots: (x, y, radius) of each dot.
        sizes: (width, height) of each label.
        bounds: (left, bottom, right, top), within which labels stay.
        lines: (left, bottom, right, top) of each upright or level line that had better stay free.
    """
    labels = []
    for dot, size in zip(dots, sizes, strict=True):
        places = [_place(dot, size, gap, math.radians(angle)) for gap in _GAPS for angle in _ANGLES]
        labels.append(min(places, key=lambda place: _covered(place, dots, [*labels, *lines], bounds)))  # the first
    return [label[:2] for label in labels]


def distance(dot, label):
    """From the rim of a dot (x, y, radius) to a label (left, bottom, right, top); below 0 where they overlap."""
    x, y, radius = dot
    left, bottom, right, top = label
    return math.hypot(max(left - x, 0, x - right), max(bottom - y, 0, y - top)) - radius


def _place(dot, size, gap, angle):
    """The label (left, bottom, right, top) that touches the circle around the dot at an angle."""
    (x, y, radius), (width, height) = dot, size
    across, up = math.cos(angle), math.sin(angle)
    left = x + (radius + gap) * across - width * (1 - across) / 2
    bottom = y + (radius + gap) * up - height * (1 - up) / 2
    return left, bottom, left + width, bottom + height


def _covered(place, dots, boxes, bounds):
    """How much a label would cover: 0 for a free place."""
    left, bottom, right, top = place
    area = (right - left) * (top - bottom)
    outside = area - _shared(place, bounds, 0)
    of_boxes = sum(_shared(place, box, _FREE) for box in boxes)
    of_dots = sum(area for dot in dots if distance(dot, place) < _FREE)
    return (outside if outside > 1e-6 else 0) + of_boxes + of_dots


def _shared(one, other, margin):
    """The area that two boxes share, one of them grown by a margin."""
    width = min(one[2], other[2]) - max(one[0], other[0]) + margin
    height = min(one[3], other[3]) - max(one[1], other[1]) + margin
    return max(width, 0) * max(height, 0)
