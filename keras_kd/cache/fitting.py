"""What `fit(cache=...)` trains on."""

from keras_kd.cache.growing import attach_growing
from keras_kd.cache.stored import open_cache, require_batches


def cached(dataset, cache, teacher, student, objectives):
    """The dataset with the teacher's signals beside each example, which are stored while it is read for the first time.

    Args:
        dataset: A batched `tf.data.Dataset`.
        cache: A folder, or `{"path": folder, ...}` with arguments of `cache_signals`.
        teacher: A built `keras.Model`; None, if the cache is finished.
        student, objectives: Those of the distiller.
    """
    require_batches(dataset)
    options = dict(cache) if isinstance(cache, dict) else {"path": cache}
    if teacher is None:
        return open_cache(options["path"]).attach(dataset)
    if teacher is student:
        raise ValueError("cache= keeps what a teacher says, but the teacher is the student, which learns meanwhile.")
    return attach_growing(teacher, dataset, options.pop("path"), signals=objectives, **options)
