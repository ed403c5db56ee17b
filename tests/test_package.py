"""The package as such: its public names, which module may import which, how long an import takes."""

import ast
import importlib.metadata
import pathlib
import subprocess
import sys

import pytest

import keras_kd

ROOT = pathlib.Path(keras_kd.__file__).parent

PUBLIC_NAMES = [
    "Distiller",
    "GradientNormBalance",
    "LambdaRamp",
    "PrecomputedBatch",
    "UncertaintyBalance",
    "__version__",
    "cache",
    "cache_teacher_outputs",
    "datasets",
    "evaluate",
    "export",
    "large_vocabulary",
    "load_distiller",
    "losses",
    "metrics",
    "open_teacher_cache",
    "outputs",
    "teachers",
    "text",
    "transfer",
    "transfer_weights",
    "tune",
]

# What only the outermost modules may import. Everything else knows nothing of the distiller.
OUTER = {"keras_kd.distiller", "keras_kd.callbacks", "keras_kd.tuning", "keras_kd.demo.run", "keras_kd.cli"}
MAY_IMPORT_OUTER = {"keras_kd", "keras_kd.tuning", "keras_kd.demo.run", "keras_kd.cli"}


def test_public_names_are_pinned():
    assert sorted(keras_kd.__all__) == sorted(PUBLIC_NAMES)
    for name in PUBLIC_NAMES:
        assert getattr(keras_kd, name) is not None


def test_the_version_is_that_of_the_installed_package():
    assert importlib.metadata.version("keras-kd") == keras_kd.__version__


def modules():
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize(("module", "path"), list(modules()), ids=lambda value: str(value) if "." in str(value) else "")
def test_imports_run_one_way(module, path):
    if module in MAY_IMPORT_OUTER:
        return
    wrong = set(imports_of(path)) & OUTER
    assert not wrong, f"{module} must know nothing of {sorted(wrong)}"


def test_keras_insides_are_named_in_one_module_only():
    users = [module for module, path in modules() if any(name.startswith("keras.src") for name in imports_of(path))]
    assert users == ["keras_kd._keras_private"]


def test_importing_is_no_more_than_keras_and_tensorflow():
    """Nothing heavy beyond them is loaded; `benchmarks/import_time.py` measures the time itself."""
    heavy = ["tensorflow_text", "tensorflow_datasets", "matplotlib", "sklearn", "babel", "rich", "scipy", "pandas"]
    heavy += ["keras_tuner"]
    code = (
        "import sys, keras, tensorflow\n"
        "before = set(sys.modules)\n"
        "import keras_kd\n"
        f"print([name for name in {heavy} if name in set(sys.modules) - before])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_module_is_too_long_to_read_in_a_sitting():
    lengths = {module: len(path.read_text().splitlines()) for module, path in modules()}
    assert max(lengths.values()) <= 600, {name: length for name, length in lengths.items() if length > 600}
