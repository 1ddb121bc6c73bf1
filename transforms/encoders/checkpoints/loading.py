"""Loads models and tokenizers of transformers from a directory, and turns errors into a JobError.

Importing this file does not import transformers.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unisono.transforms.base.errors import JobError
from unisono.transforms.encoders.checkpoints.formats import first_line

# What transformers raises for a configuration or files that it cannot use.
_REFUSALS = (OSError, ValueError, RuntimeError, KeyError, ImportError)

_quiet_lock = threading.RLock()


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keeps the progress bars and log lines of transformers off the terminal while a checkpoint loads.

    The library has one setting for the whole process. The lock makes sure that a second thread neither sees nor
    restores the setting of the first.
    """
    from transformers.utils import logging

    with _quiet_lock:
        level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            yield
        finally:
            logging.set_verbosity(level)
            if bars:
                logging.enable_progress_bar()


@contextlib.contextmanager
def loading(key: str, what: str) -> Iterator[None]:
    """Runs its body quietly, and turns an error of transformers into a JobError.

    Args:
        key: the job-file key that the error message names.
        what: what is being loaded, for the error message.

    Raises:
        JobError: the body raised something that transformers raises for files it cannot use.
    """
    try:
        with quiet_transformers():
            yield
    except _REFUSALS as error:
        raise JobError(f"{key}: {what} cannot be loaded ({first_line(error)})") from error


def load_model(key: str, directory: Path, model_class: Any, not_needed: tuple[str, ...] = (), **options: Any) -> Any:
    """Loads a model of transformers in float32, and checks that the file holds every weight.

    transformers would fill missing weights with random values.

    Args:
        key: the job-file key that the error messages name.
        directory: a checkpoint as `save_pretrained` writes it.
        model_class: a class with a method `from_pretrained`.
        not_needed: beginnings of the names of weights that may be missing.
        options: further arguments for `from_pretrained`.

    Raises:
        JobError: the checkpoint cannot be loaded, or a weight is missing.
    """
    with loading(key, str(directory)):
        model, report = model_class.from_pretrained(
            directory,
            dtype="float32",
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **options,
        )
    if missing := sorted(name for name in report["missing_keys"] if not name.startswith(not_needed)):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise JobError(f"{key}: the weights in {directory} lack {missing[0]}{more}; copy the whole checkpoint")
    return model


def load_tokenizer(key: str, directory: Path) -> Any:
    """Loads the tokenizer of a checkpoint.

    Args:
        key: the job-file key that the error messages name.
        directory: a checkpoint as `save_pretrained` writes it.

    Raises:
        JobError: it cannot be loaded.
    """
    import transformers

    with loading(key, f"the tokenizer in {directory}"):
        return transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True)
