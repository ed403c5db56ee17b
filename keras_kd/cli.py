"""The console script `keras-kd`."""

import argparse

from keras_kd._version import __version__


def main(arguments=None):
    """Run `keras-kd`; return the exit code."""
    options = _parser().parse_args(arguments)
    return options.run(options)


def _parser():
    parser = argparse.ArgumentParser(prog="keras-kd", description="Knowledge distillation for Keras 3.")
    parser.add_argument("--version", action="version", version=f"keras-kd {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    demo = commands.add_parser(
        "demo",
        help="distil a multilingual classifier, print it by language, export it",
        description="Trains a teacher on all labels of the embedded data and three students of one size on few labels; "
        "prints accuracy and F1 by language; exports SavedModel and LiteRT int8; checks both. Needs no download.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    demo.add_argument("--seed", type=_seed, default=0, help="0 or more; the same seed gives the same numbers")
    demo.add_argument(
        "--output", default="runs/demo", metavar="FOLDER", help="where report, table, figure and files go"
    )
    demo.add_argument("--quick", action="store_true", help="few languages and steps: shows that it runs, no figures")
    demo.set_defaults(run=_demo)
    return parser


def _seed(text):
    seed = int(text)
    if not 0 <= seed < 2**32:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to 2**32 - 1, got {text}")
    return seed


def _demo(options):
    import keras
    import tensorflow as tf

    from keras_kd.demo.run import FULL, QUICK, run_demo

    tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(options.seed)
    run_demo(options.output, seed=options.seed, setting=QUICK if options.quick else FULL)
    if options.quick:
        print("This was --quick, which shows that everything runs: its scores mean nothing.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
