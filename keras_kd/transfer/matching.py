"""Which student layer gets the weights of which teacher layer, where no map says so."""

import collections
import functools
import typing

from keras_kd.transfer.layers import difference, walk, without_models

SHARED = "is the teacher's own layer"


class Match(typing.NamedTuple):
    """A student node, the teacher node whose weights it gets, and how the two were found."""

    student: object
    teacher: object
    how: str


def match_layers(student_root, teacher_root, *, from_back=False):
    """Match the layers of two models, by name first, then by shape and order.

    Layers match if their classes are equal and their weights have equal names and shapes, in this order. Nested models
    are walked into. A composite layer is matched whole; if it finds no partner, its parts are matched, unless it is one
    of Keras's own layers.

    1. By name: the same name, in both models only once. Of names inside names ("encoder/block_0/ffn") the longest ends
       in common count. Names that Keras makes itself ("dense_1") are no names: they depend on what was made before.
    2. By shape and order: among the rest, the longest sequence of layers that both models have in the same order, at
       the earliest teacher layers, or at the latest if `from_back`.

    Returns:
        The matches in the student's order, and a function that says why a student node has none.
    """
    matches = {}
    students, teachers = list(without_models([student_root])), list(without_models([teacher_root]))
    seen_students, seen_teachers = dict.fromkeys(students), dict.fromkeys(teachers)  # in the order they came up
    by_order = functools.partial(_longest_common_order, from_back=from_back)
    passes = ((SHARED, _same_layers), ("by name", _matching_namesakes), ("by shape and order", by_order))
    while True:
        for how, pairs in passes:
            found = pairs(students, teachers)
            matches.update({student: Match(student, teacher, how) for student, teacher in found.items()})
            taken = set(found.values())
            students = [node for node in students if node not in found]
            teachers = [node for node in teachers if node not in taken]
        parts_of_students, parts_of_teachers = _opened(students), _opened(teachers)
        if (parts_of_students, parts_of_teachers) == (students, teachers):
            break
        students, teachers = parts_of_students, parts_of_teachers
        seen_students.update(dict.fromkeys(students))
        seen_teachers.update(dict.fromkeys(teachers))
    why_not = functools.partial(
        _why_not, students=list(seen_students), teachers=list(seen_teachers), free_teachers=set(teachers)
    )
    return [matches[node] for node in walk(student_root) if node in matches], why_not


def _why_not(student, students, teachers, free_teachers):
    """Why this student node has found no partner, of all nodes that came up."""
    if student.unfit:
        return f"{student.unfit}: hand over the weights before that"
    namesake = _namesakes(students, teachers).get(student)
    if namesake is not None:
        why = difference(student, namesake)
        if why or namesake.class_name != student.class_name:
            return why or f"the teacher's layer of this name is of class {namesake.class_name}"
    fitting = [node for node in teachers if node.signature == student.signature]
    free = [node for node in fitting if node in free_teachers]
    if free:
        return f"{free[0].path!r} would fit, but stands in another order among the layers"
    if fitting:
        return "each teacher layer of this class and shape is taken"
    same_class = [node for node in teachers if type(node.layer) is type(student.layer)]
    if not same_class:
        return f"the teacher has no {student.class_name}"
    unfit = [node for node in same_class if node.unfit]
    if unfit:
        return f"the teacher's {unfit[0].path!r} {unfit[0].unfit}"
    if len(same_class) == 1:
        return difference(student, same_class[0])
    return f"no {student.class_name} of the teacher has weights of these shapes"


def _opened(nodes):
    """The nodes, with each composite layer replaced by what is inside it."""
    for_each = ([node] if node.is_keras_layer or not node.children else without_models(node.children) for node in nodes)
    return [part for parts in for_each for part in parts]


def _same_layers(students, teachers):
    by_weight = {id(teacher.weights[0]): teacher for teacher in teachers}
    pairs = {student: by_weight.get(id(student.weights[0])) for student in students}
    return {s: t for s, t in pairs.items() if t is not None and list(map(id, s.weights)) == list(map(id, t.weights))}


def _matching_namesakes(students, teachers):
    pairs = _namesakes(students, teachers)
    return {s: t for s, t in pairs.items() if s.signature is not None and s.signature == t.signature}


def _namesakes(students, teachers):
    """{student node: teacher node of the same name}, longest common ends of the path first."""
    found = {}
    for length in range(max((len(node.names) for node in students), default=0), 0, -1):
        student_ends, teacher_ends = _unique_ends(students, length), _unique_ends(teachers, length)
        for end in student_ends.keys() & teacher_ends.keys():
            found.setdefault(student_ends[end], teacher_ends[end])
    return found


def _unique_ends(nodes, length):
    ends = [(node.names[-length:], node) for node in nodes if len(node.names) >= length]
    counts = collections.Counter(end for end, _ in ends)
    return {end: node for end, node in ends if counts[end] == 1}


def _longest_common_order(students, teachers, from_back):
    """{student node: teacher node}: a longest common subsequence by signature, at the earliest teacher layers."""
    if from_back:
        students, teachers = students[::-1], teachers[::-1]
    fits = [[s.signature is not None and s.signature == t.signature for t in teachers] for s in students]
    # length[i][j]: of the longest common subsequence of students[i:] and teachers[j:]
    length = [[0] * (len(teachers) + 1) for _ in range(len(students) + 1)]
    for i in reversed(range(len(students))):
        for j in reversed(range(len(teachers))):
            rest = max(length[i + 1][j], length[i][j + 1])
            length[i][j] = length[i + 1][j + 1] + 1 if fits[i][j] else rest
    found, i, j = {}, 0, 0
    while i < len(students) and j < len(teachers):
        if fits[i][j]:
            found[students[i]] = teachers[j]
            i, j = i + 1, j + 1
        elif length[i + 1][j] >= length[i][j + 1]:
            i += 1
        else:
            j += 1
    return found
