"""The package as such: its public names, which module may import which, how long an import takes."""

import ast
import configparser
import importlib.metadata
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import dense_model

import keras_kd
from keras_kd import cli

ROOT = pathlib.Path(keras_kd.__file__).parent

PUBLIC_NAMES = [
    "Distiller",
    "LambdaRamp",
    "PrecomputedBatch",
    "UncertaintyBalance",
    "__version__",
    "cache",
    "cache_teacher_outputs",
    "datasets",
    "deploy",
    "evaluate",
    "evaluate_embeddings",
    "export",
    "large_vocabulary",
    "load_distiller",
    "losses",
    "metrics",
    "open_teacher_cache",
    "outputs",
    "sequences",
    "students",
    "teachers",
    "text",
    "transfer",
    "transfer_weights",
    "tune",
]

# What only the outermost modules may import. Everything else knows nothing of the distiller.
OUTER = {"keras_kd.distiller", "keras_kd.callbacks", "keras_kd.tuning", "keras_kd.demo.run", "keras_kd.cli"}
MAY_IMPORT_OUTER = {"keras_kd", "keras_kd.tuning", "keras_kd.demo.run", "keras_kd.cli", "keras_kd.pipeline.run"}


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


# Imported beside the requirements: JAX where Keras runs on it, a smaller interpreter where there is one.
OPTIONAL = {"keras_kd.steps.jax": {"jax"}, "keras_kd.outputs.top_classes": {"jax"}}
OPTIONAL |= {"keras_kd.deploy.runtimes": {"ai_edge_litert"}}


def distributions_of(options, section, name):
    """The distributions that an option of setup.cfg lists, extras within extras resolved."""
    return {re.match(r"[\w.-]+", line)[0].replace("_", "-") for line in options[section][name].split("\n") if line}


def third_party_imports(path):
    """`(package, extra or None)` of each import: the extra that a `with needs_extra(...)` around it names."""

    def walk(node, extra):
        if isinstance(node, ast.With):
            calls = [item.context_expr for item in node.items if isinstance(item.context_expr, ast.Call)]
            extra = next((c.args[0].value for c in calls if getattr(c.func, "id", "") == "needs_extra"), extra)
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], extra) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.partition(".")[0], extra
        for child in ast.iter_child_nodes(node):
            yield from walk(child, extra)

    for package, extra in walk(ast.parse(path.read_text()), None):
        if package not in sys.stdlib_module_names and package != "keras_kd":
            yield package, extra


def test_each_import_is_a_requirement_or_names_its_extra():
    options = configparser.ConfigParser()
    options.read(ROOT.parent / "setup.cfg", encoding="utf-8")
    distributions = importlib.metadata.packages_distributions()
    wrong, seen = [], set()
    for module, path in modules():
        for package, extra in third_party_imports(path):
            if package in OPTIONAL.get(module, ()):
                continue
            section, name = ("options.extras_require", extra) if extra else ("options", "install_requires")
            listed = distributions_of(options, section, name)
            if not listed & {name.replace("_", "-") for name in distributions.get(package, [package])}:
                wrong.append(f"{module} imports {package}, which {name} does not list")
            seen.add(extra)
    assert not wrong
    assert {"demo", "plot", "tune"} <= seen


EVALUATED = (np.zeros((4, 8), "float32"), np.array([0, 1, 2, 0]))
NEED_EXTRAS = {
    "cldr_names": ("babel", "demo", lambda: keras_kd.datasets.cldr_names(languages=("en", "de"))),
    "tune": (
        "keras_tuner",
        "tune",
        lambda: keras_kd.tune(None, None, None, search={}, goal="val_loss", directory="never made"),
    ),
    "trim_vocabulary": (
        "sentencepiece",
        "students",
        lambda: keras_kd.students.count_pieces(b"", ["text"]),
    ),
    "demo without babel": ("babel", "demo", lambda: cli.main(["demo", "--quick"])),
    "demo without matplotlib": ("matplotlib", "demo", lambda: cli.main(["demo", "--quick"])),
}


def block(monkeypatch, package):
    """Let every import of the package fail, as if it were not installed."""
    for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)


@pytest.mark.parametrize("function", NEED_EXTRAS)
def test_a_missing_extra_is_named_before_anything_runs(function, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    package, extra, call = NEED_EXTRAS[function]
    block(monkeypatch, package)
    message = rf"{package} is needed here and not installed: pip install 'keras-kd\[{extra}\]'"
    if function.startswith("demo"):
        assert call() == 1
        assert re.search(message, capsys.readouterr().err)
    else:
        with pytest.raises(ImportError, match=message):
            call()
    assert not list(tmp_path.iterdir())


def test_a_figure_without_matplotlib_names_its_extra(monkeypatch):
    evaluation = keras_kd.evaluate({"m": dense_model(3)}, EVALUATED)
    block(monkeypatch, "matplotlib")
    with pytest.raises(ImportError, match=r"pip install 'keras-kd\[plot\]'"):
        evaluation.plot()


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


def test_the_repository_holds_no_large_files():
    repository = ROOT.parent
    git = shutil.which("git")
    listed = git and subprocess.run(
        [git, "ls-files", "-z"], cwd=repository, capture_output=True, text=True, check=False
    )
    if not listed or listed.returncode or not listed.stdout:
        pytest.skip("git does not list the files of this folder")
    tracked = [repository / name for name in listed.stdout.split("\0") if name]
    assert not [path.name for path in tracked if path.is_file() and path.stat().st_size > 1_000_000]
