"""Handwritten digits: a teacher and a student of dense layers, all labels, with and without a transferred layer.

python examples/digits.py
"""

import argparse

import keras
import numpy as np
from sklearn.datasets import load_digits

import keras_kd
from keras_kd import losses


def main(options):
    images, labels = load_digits(return_X_y=True)
    images = images.astype("float32") / 16
    train, test = (images[:1000], labels[:1000]), (images[1000:], labels[1000:])
    rows = [accuracies(train, test, seed, options) for seed in options.seeds]
    for name in rows[0]:
        values = 100 * np.array([row[name] for row in rows])
        print(f"{name:<28} {values.mean():.1f} ± {values.std():.1f}")


def accuracies(train, test, seed, options):
    """Return {model: accuracy on the test digits}; all students start from the same weights."""
    keras.utils.set_random_seed(seed)
    teacher = trained(network(512, 32), train, options.epochs)
    models = {"teacher": teacher}
    for name in ("labels only", "distilled", "distilled after transfer"):
        keras.utils.set_random_seed(seed)
        models[name] = student = network(8, 32)
        if name == "distilled after transfer":
            keras_kd.transfer_weights(teacher, student, layers={"logits": "logits"})
        learner = student
        if name != "labels only":
            learner = keras_kd.Distiller(
                teacher, student, losses.SoftLabels(temperature=4.0), soft_weight=options.soft_weight
            )
        trained(learner, train, options.epochs)
    return {name: (model.predict(test[0], verbose=0).argmax(-1) == test[1]).mean() for name, model in models.items()}


def network(*widths):
    hidden = [keras.layers.Dense(width, "relu") for width in widths]
    return keras.Sequential([keras.Input((64,)), *hidden, keras.layers.Dense(10, name="logits")])


def trained(model, data, epochs):
    model.compile(keras.optimizers.Adam(0.003), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(*data, epochs=epochs, batch_size=32, verbose=0)
    return model


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--soft-weight", type=float, default=0.1, help="λ")
    parser.add_argument("--epochs", type=int, default=30)
    main(parser.parse_args())
