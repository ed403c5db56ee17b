"""What `fit(cache=...)` trains on."""

from keras_kd.cache.caching import require_stored_as
from keras_kd.cache.growing import attach_growing
from keras_kd.cache.stored import open_teacher_cache, require_batches


def cached(dataset, cache, teacher, student, distillation_losses):
    """The dataset with the teacher's outputs beside each example, which are stored while it is read for the first time.

    Args:
        dataset: A batched `tf.data.Dataset`.
        cache: A folder, or `{"path": folder, ...}` with arguments of `cache_teacher_outputs`.
        teacher: A built `keras.Model`; None, if the cache is finished: what arguments there are beside its folder are
            then compared with how it was stored.
        student, losses: Those of the distiller.
    """
    require_batches(dataset)
    options = dict(cache) if isinstance(cache, dict) else {"path": cache}
    if teacher is student:
        raise ValueError("cache= keeps what a teacher says, but the teacher is the student, which learns meanwhile.")
    folder = options.pop("path")
    if teacher is not None:
        return attach_growing(teacher, dataset, folder, outputs=distillation_losses, **options)
    finished = open_teacher_cache(folder)
    options.pop("shard_bytes", None)
    if options:
        require_stored_as(finished, **options)
    return finished.attach(dataset)
