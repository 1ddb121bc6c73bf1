"""Optional libraries: whether they are installed, and which extra of this package brings a missing one."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence

from unisono.transforms.base.errors import JobError

# Libraries whose name in `pip install` differs from their name in `import`.
_PIP_NAMES = {
    "PIL": "pillow",
    "google.cloud.storage": "google-cloud-storage",
    "open_clip": "open_clip_torch",
    "sentence_transformers": "sentence-transformers",
    "skimage": "scikit-image",
}


def is_installed(library: str) -> bool:
    """Says whether a library can be imported, without importing it."""
    try:
        return importlib.util.find_spec(library) is not None
    except ModuleNotFoundError:  # a parent package is missing, such as `google` of `google.cloud.storage`
        return False


def require(library: str, extra: str, key: str, what: str = "") -> None:
    """Checks that one optional library is installed, without importing it.

    Args:
        library: its import name, such as `skimage`.
        extra: the extra of this package that brings it, such as `image`.
        key: the job-file key that asks for it; the error message starts with it.
        what: the value under `key` that needs the library, such as `lite`. Empty means that the key itself needs it.

    Raises:
        JobError: the library is not installed.
    """
    require_all({extra: (library,)}, key, what)


def require_all(libraries: Mapping[str, Sequence[str]], key: str, what: str = "") -> None:
    """Checks that optional libraries are installed, without importing them.

    Args:
        libraries: import names, by the extra that brings them.
        key: as in `require`.
        what: as in `require`.

    Raises:
        JobError: a library is not installed. The one message names every missing library and every extra to install.
    """
    missing = {extra: [name for name in names if not is_installed(name)] for extra, names in libraries.items()}
    extras = [extra for extra, names in missing.items() if names]
    if not extras:
        return
    names = list(dict.fromkeys(_PIP_NAMES.get(name, name) for extra in extras for name in missing[extra]))
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    raise JobError(
        f"{key}: {what + ' ' if what else ''}needs {listed}, which {'is' if len(names) == 1 else 'are'} not installed; "
        f"pip install 'unisono[{','.join(extras)}]'"
    )
