"""Compiled programs kept on disk: a restart, a resume and the next run of a sweep compile nothing that is there."""

from __future__ import annotations

import os
import pathlib

import jax


def keep_compilations(folder: str | os.PathLike[str] | None = None) -> pathlib.Path:
    """Turns on JAX's persistent compilation cache; call it before the first compilation.

    Args:
      folder: where; None takes what JAX was told (JAX_COMPILATION_CACHE_DIR), else `~/.cache/dsbs_jax/compiled`.

    Returns:
      The folder.
    """
    told = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    path = pathlib.Path(folder or told or pathlib.Path.home() / ".cache" / "dsbs_jax" / "compiled")
    jax.config.update("jax_compilation_cache_dir", str(path))
    return path
