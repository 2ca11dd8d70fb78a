"""Keeps TensorFlow's native log lines out of what a user reads."""

import contextlib
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def muted() -> Iterator[None]:
    """Drops what native code writes to stderr; Python exceptions pass through as ever.

    TensorFlow 2.21 logs about processor features, CUDA and each conversion before or beside its own
    log level, straight to file descriptor 2.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - a device, not a path
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)


def load_tensorflow() -> None:
    """Imports TensorFlow quietly; whoever imports it later finds it loaded.

    One core computes an operation: what is to use all of them is cut into rows, one part for each
    core. Operations that are cut themselves would wait for one another. Graphs are run as they are
    traced: optimizing that of a training step takes 0.7 s of the 2.8 s that its first call needs,
    and no time off the later ones (from block_6, alpha 0.35, 96 px; others were not measured).
    """
    with muted():
        import tensorflow as tf

        with contextlib.suppress(RuntimeError):  # raised if it has been at work before
            tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
        tf.constant(0)  # the first operation looks for devices and logs about them
