"""The command line's side of a run on many hosts: its flags, and how a verb begins and ends among others."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import traceback

# Errors whose message is a sentence for the user. Any other is a mistake in the code, whose call stack is wanted.
SENTENCES = (ValueError, OSError, RuntimeError, ArithmeticError, ImportError)


def add_flags(sub: argparse.ArgumentParser) -> None:
    """Adds the flags of a verb that runs on many hosts."""
    group = sub.add_argument_group(
        "many hosts",
        "The same command on every host. SLURM, GKE and `mpirun` are found without flags, a TPU VM with "
        "DSBS_DISTRIBUTED=1; flags win, then JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.",
    )
    group.add_argument("--coordinator_address", metavar="HOST:PORT", help="where process 0 is reached")
    group.add_argument("--num_processes", type=int, metavar="N", help="how many processes there are")
    group.add_argument("--process_id", type=int, metavar="I", help="which of them this is, from 0")
    for name, default, help in (
        ("initialization", 300, "to wait for the other processes at the start"),
        ("heartbeat", 100, "of silence after which a process is held to be gone, and the others end"),
    ):
        group.add_argument(
            f"--{name}_timeout", type=int, default=default, metavar="SECONDS", help=f"{help} (default: %(default)s)"
        )


def joined(arguments: argparse.Namespace) -> contextlib.AbstractContextManager[bool]:
    """Joins the other processes of the run, if there are others; gives whether this is the one that prints."""
    from dsbs_jax.sharding import distributed

    def tell(error: BaseException) -> None:
        if isinstance(error, SENTENCES) and not os.environ.get("DSBS_TRACEBACK"):
            print(f"dsbs: {distributed.process_name()}: {error}", file=sys.stderr)
        elif isinstance(error, Exception):
            traceback.print_exception(error)

    flags = ("coordinator_address", "num_processes", "process_id", "initialization_timeout", "heartbeat_timeout")
    return distributed.joined(tell, **{name: getattr(arguments, name) for name in flags})
