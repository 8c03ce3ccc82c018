"""Where compiled functions are kept: one folder per state of the source.

Numba notices an edit to a function's own file but not to a file that it calls into, so a cache beside the
sources would run old code after an edit or an upgrade. The folder's name holds a digest of all our sources:
another state of the code is another folder.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

PACKAGES = ("models", "sim")
COMPILERS = (b"numba", b"models.compiled")
KEPT_FOLDERS = 6


def source_digest() -> str:
    """A digest of the text of every Python file beside one that may hold compiled functions.

    Beside: constants of the neighbours (numbers of transports, say) are frozen into what was compiled.
    """
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for folder in sorted({path.parent for package in PACKAGES for path in (root / package).rglob("*.py")}):
        texts = {path: path.read_bytes() for path in sorted(folder.glob("*.py"))}
        if any(name in text for text in texts.values() for name in COMPILERS):
            for path, text in texts.items():
                digest.update(str(path.relative_to(root)).encode() + text)
    return digest.hexdigest()[:16]


def use() -> None:
    """Point Numba at this source's folder, unless the user has set NUMBA_CACHE_DIR; forget the oldest ones."""
    try:
        import numba
    except ModuleNotFoundError:
        return  # a machine that measures kernels, and compiles nothing of ours

    if os.environ.get("NUMBA_CACHE_DIR"):
        return
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spindle"
    folder = base / source_digest()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.utime(folder)
        others = sorted(base.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
    except OSError:
        return  # no place to write: Numba falls back to its own
    numba.config.CACHE_DIR = str(folder)  # type: ignore[attr-defined]
    for old in others[KEPT_FOLDERS:]:
        shutil.rmtree(old, ignore_errors=True)


def is_warm() -> bool:
    """Whether an earlier run has left compiled functions for this state of the source."""
    import numba

    folder = numba.config.CACHE_DIR  # type: ignore[attr-defined]
    return bool(folder) and any(Path(folder).rglob("fluid_core*.nbi"))
