"""Starts `dsbs` as several processes on this machine, as a cluster would on several hosts.

    python scripts/launch_local.py --processes 2 --devices 2 -- train --gin_file datasets/bestiary ...

Each process gets its own number and, on a machine without accelerators, `--devices` simulated devices. Lines come with
the number of their process before them; the result, on standard output, comes without. SIGTERM and SIGINT are passed on
to all. The launcher ends with the first exit code that is not 0, as the processes end each other; `--grace` seconds
after the first, whatever is left is killed.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import IO


def main() -> int:
    """Runs the processes; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--processes", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--devices", type=int, help="simulated CPU devices of each; none given: the machine's own")
    parser.add_argument("--grace", type=float, default=300.0, help="seconds (default: %(default)s)")
    parser.add_argument("words", nargs="+", metavar="WORD", help="after --: what stands behind `dsbs`")
    arguments = parser.parse_args()
    address = f"127.0.0.1:{_free_port()}"
    processes = [_start(arguments, address, number) for number in range(arguments.processes)]
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda signum, _: [process.send_signal(signum) for process in processes])
    readers = [
        threading.Thread(target=_copy, args=(number, source, sink))
        for number, process in enumerate(processes)
        for source, sink in ((process.stdout, sys.stdout), (process.stderr, sys.stderr))
    ]
    for reader in readers:
        reader.start()
    code = _wait(processes, arguments.grace)
    for reader in readers:
        reader.join()
    return code


def _start(arguments: argparse.Namespace, address: str, number: int) -> subprocess.Popen[str]:
    environment = os.environ | {
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": str(arguments.processes),
        "JAX_PROCESS_ID": str(number),
        "PYTHONUNBUFFERED": "1",
    }
    if arguments.devices is not None:
        flag = f"--xla_force_host_platform_device_count={arguments.devices}"
        environment |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flag}"}
    process = subprocess.Popen(
        [sys.executable, "-m", "dsbs_jax", *arguments.words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        # A Ctrl-C in the terminal comes from the launcher alone, and once.
        start_new_session=True,
    )
    print(f"[launcher] process {number} is {process.pid}", file=sys.stderr, flush=True)
    return process


def _wait(processes: list[subprocess.Popen[str]], grace: float) -> int:
    """The first exit code that is not 0, by time; 0 if there is none."""
    code, deadline = 0, float("inf")
    left = dict(enumerate(processes))
    while left:
        for number, process in list(left.items()):
            if process.poll() is None:
                continue
            del left[number]
            print(f"[launcher] process {number} ended with {process.returncode}", file=sys.stderr, flush=True)
            # By a signal: as a shell tells it.
            code = code or (process.returncode if process.returncode >= 0 else 128 - process.returncode)
            deadline = min(deadline, time.monotonic() + grace)
        if time.monotonic() > deadline:
            for process in left.values():
                process.kill()
        time.sleep(0.05)
    return code


def _copy(number: int, source: IO[str] | None, sink: IO[str]) -> None:
    assert source is not None
    for line in source:
        sink.write(line if sink is sys.stdout else f"[{number}] {line}")
        sink.flush()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


if __name__ == "__main__":
    sys.exit(main())
