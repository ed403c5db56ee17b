"""Time that `import keras_kd` adds to importing Keras and TensorFlow: fresh processes, in turn.

Run it as `python benchmarks/import_time.py [runs]`.
"""

import statistics
import subprocess
import sys
import time

WITHOUT, WITH = "import keras, tensorflow", "import keras, tensorflow, keras_kd"


def seconds(code):
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    return time.perf_counter() - start


def main(runs=7):
    seconds(WITH)  # fills the file cache
    pairs = [(seconds(WITHOUT), seconds(WITH)) for _ in range(runs)]
    without, with_package = (statistics.median(times) for times in zip(*pairs, strict=True))
    extra = sorted(b - a for a, b in pairs)
    print(f"keras and tensorflow {without:.2f} s, with keras_kd {with_package:.2f} s (medians of {runs})")
    print(f"extra: median {statistics.median(extra):.2f} s, from {extra[0]:.2f} to {extra[-1]:.2f} s")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
