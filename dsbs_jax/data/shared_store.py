"""A token store on every host of a run: made once where the hosts share a file system, once on each host elsewhere."""

from __future__ import annotations

import os
import pathlib
import socket

import jax

from dsbs_jax.data.prepare import StoreRequest, ensure_store
from dsbs_jax.sharding.agreement import gathered, together


def ensure_store_on_hosts(request: StoreRequest, root: str | os.PathLike[str] | None = None) -> pathlib.Path:
    """`ensure_store` for all processes of a run. Every process calls it; they wait for each other.

    Process 0 makes the store first; then one process of every host that does not see it makes its own.

    Args:
      request: what should be in it.
      root: the folder of all stores on this host; None takes `default_store_root()`.

    Returns:
      The folder of the finished store, as this host names it.

    Raises:
      ValueError, OSError: as `ensure_store` in any process; or the hosts' data or code are not the same.
    """
    index = jax.process_index()
    if jax.process_count() == 1:
        return ensure_store(request, root)
    hosts = gathered("host", socket.gethostname)
    together("store/first", lambda: ensure_store(request, root) if index == 0 else None)
    together("store/each", lambda: ensure_store(request, root) if hosts.index(hosts[index]) == index else None)
    names = gathered("store", lambda: ensure_store(request, root).name)
    for process, name in enumerate(names):
        if name != names[0]:
            raise ValueError(
                f"Process {process} (on {hosts[process]}) would train on the store {name}, process 0 on {names[0]}: "
                "give every host the same data files, vocabulary and version of dsbs_jax."
            )
    return ensure_store(request, root)
