"""What `fit(cache=...)` trains on."""

from keras_kd.cache.growing import attach_growing
from keras_kd.cache.signals import require_stored_as
from keras_kd.cache.stored import open_cache, require_batches


def cached(dataset, cache, teacher, student, objectives):
    """The dataset with the teacher's signals beside each example, which are stored while it is read for the first time.

    Args:
        dataset: A batched `tf.data.Dataset`.
        cache: A folder, or `{"path": folder, ...}` with arguments of `cache_signals`.
        teacher: A built `keras.Model`; None, if the cache is finished: what arguments there are beside its folder are
            then compared with how it was stored.
        student, objectives: Those of the distiller.
    """
    require_batches(dataset)
    options = dict(cache) if isinstance(cache, dict) else {"path": cache}
    if teacher is student:
        raise ValueError("cache= keeps what a teacher says, but the teacher is the student, which learns meanwhile.")
    folder = options.pop("path")
    if teacher is not None:
        return attach_growing(teacher, dataset, folder, signals=objectives, **options)
    finished = open_cache(folder)
    options.pop("shard_bytes", None)
    if options:
        require_stored_as(finished, **options)
    return finished.attach(dataset)
