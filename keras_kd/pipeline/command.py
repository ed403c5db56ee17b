"""The commands `keras-kd init` and `keras-kd distil`."""

import pathlib
import sys

from keras_kd.pipeline.settings import entries, read_settings, write_example


def add_commands(commands):
    """Add both to the subparsers of `keras-kd`; the default `run` of each takes options and returns the exit code."""
    init = commands.add_parser("init", help="write a commented settings file for `distil`")
    init.add_argument("settings", nargs="?", default="run.toml", metavar="run.toml", help="the file to write")
    init.set_defaults(run=_init)
    distil = commands.add_parser(
        "distil",
        help="distil a student from files of texts, measure and export it",
        description="Reads texts, labels and languages; runs the teacher once; trains a student of a given size; "
        "exports and compares it; measures it by language. What was stopped resumes in the same folder.",
    )
    distil.add_argument("settings", nargs="?", metavar="run.toml", help="a file that `keras-kd init` writes")
    for section, field, kind in entries():
        distil.add_argument(
            f"--{field.name.replace('_', '-')}",
            dest=field.name,
            type=kind,
            choices=field.metadata.get("choices"),
            metavar=None if "choices" in field.metadata else kind.__name__.upper(),
            help=f"[{section}] {field.metadata['help']} (default: {field.default})",
        )
    distil.set_defaults(run=_distil)


def _init(options):
    path = pathlib.Path(options.settings)
    if path.exists():
        print(f"keras-kd init: {path} is there already; give another name.", file=sys.stderr)
        return 2
    write_example(path)
    print(f"{path} is written. Change it for your files, then: keras-kd distil {path}")
    return 0


def _distil(options):
    flags = {field.name: getattr(options, field.name) for _, field, _ in entries()}
    try:
        settings = read_settings(options.settings, **flags)
        from keras_kd.pipeline.run import distil  # it imports TensorFlow Datasets

        distil(settings)
    except (OSError, TypeError, ValueError) as error:
        print(f"keras-kd distil: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nkeras-kd distil: stopped. The same command goes on from here.", file=sys.stderr)
        return 130
    return 0
