"""The console script `keras-kd`."""

import argparse
import sys

from keras_kd._extras import needs_extra
from keras_kd._quiet import quiet
from keras_kd._version import __version__
from keras_kd.deploy import command as deploy
from keras_kd.evaluation import command as evaluation
from keras_kd.pipeline import command as pipeline


def main(arguments=None):
    """Run `keras-kd`; return the exit code."""
    parser = argparse.ArgumentParser(prog="keras-kd", description="Knowledge distillation for Keras 3.")
    parser.add_argument("--version", action="version", version=f"keras-kd {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    demo = commands.add_parser(
        "demo",
        help="distil a multilingual classifier, print it by language, export it",
        description="Trains a teacher on all labels of the embedded data and three students of one size on few labels; "
        "prints accuracy and F1 by language; exports a SavedModel and a LiteRT int8 file and checks both. Needs no "
        "download.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    demo.add_argument("--seed", type=_seed, default=0, help="0 or more; the same seed gives the same numbers")
    demo.add_argument(
        "--output", default="runs/demo", metavar="FOLDER", help="folder for report, table, figure and exported files"
    )
    demo.add_argument("--quick", action="store_true", help="few languages and steps, to see that it runs")
    demo.set_defaults(run=_demo)
    for folder in (pipeline, deploy, evaluation):
        folder.add_commands(commands)
    options = parser.parse_args(arguments)
    return options.run(options)


def _seed(text):
    seed = int(text)
    if not 0 <= seed < 2**32:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to 2**32 - 1, got {text}")
    return seed


def _demo(options):
    try:
        with quiet(), needs_extra("demo"):  # before a model is trained
            import babel  # noqa: F401
            import matplotlib  # noqa: F401
    except ImportError as error:
        print(f"keras-kd demo: {error}", file=sys.stderr)
        return 1
    import keras
    import tensorflow as tf

    from keras_kd.demo.run import FULL, QUICK, run_demo

    with quiet():  # the first use of devices looks for GPUs
        tf.config.list_logical_devices()
    tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(options.seed)
    if options.quick:
        print("--quick: everything runs, but the scores mean nothing.")
    run_demo(options.output, seed=options.seed, setting=QUICK if options.quick else FULL)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
