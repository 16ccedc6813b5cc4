"""Entry point of the transformers driver: `python -P -m kernel.drivers.transformers FD PARENT_PID`.

The kernel starts it with one end of a socket pair, whose descriptor is FD. The driver loads one model, runs its
sequences until `Stop`, and exits when the kernel does. It never writes to standard output; the kernel logs its standard
error.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import warnings
from contextlib import suppress

from ipc.errors import LlmosError, MissingExtra, ProtocolError, to_wire
from kernel.drivers.child import KernelLink, die_with_parent
from kernel.drivers.protocol import Load, Loaded, LoadFailed, Loading, Stop
from kernel.drivers.transformers import file_checks, supported
from kernel.drivers.transformers.options import parse
from kernel.drivers.transformers.source import locate
from kernel.lib import failpoints


def main() -> None:
    """Run one driver. It talks to the kernel over the inherited socket and dies with its parent."""
    descriptor, parent = int(sys.argv[1]), int(sys.argv[2])
    die_with_parent(parent)
    failpoints.arm()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the daemon's terminal reaches this process too
    link = KernelLink(socket.socket(fileno=descriptor))
    message = link.inbox.get()
    if isinstance(message, Stop):
        return
    try:
        if not isinstance(message, Load):
            raise ProtocolError(f"the first message must be Load, not {type(message).__name__}")
        run(link, message)
    except LlmosError as error:
        link.send(LoadFailed(to_wire(error)))


def run(link: KernelLink, message: Load) -> None:
    """Load the model and run its sequences until `Stop`. Raises `ConfigError`, or any error of `weights.load`."""
    options, source = parse(message.options), locate(message.model)
    supported.check_family(message.model, file_checks.check(source))
    quiet_libraries()
    share_the_cores()
    # A load makes half a million objects that live as long as the process. To collect garbage meanwhile would take most
    # of a second.
    gc.disable()
    link.send(Loading("starting"))
    pin_to_cores(message.cores)
    try:
        from kernel.drivers.transformers.engine_builder import engine
        from kernel.drivers.transformers.weights import load
    except ImportError as error:
        raise MissingExtra(
            f"local models need torch and transformers ({error}): pip install 'llmosd[local]'", extra="local"
        ) from error
    model = load(message, source, options, lambda stage: link.send(Loading(stage)))
    gc.collect()  # frees the unpacked weights
    gc.freeze()
    gc.enable()
    serving = engine(link, model, options, message)
    memory = model.memory
    link.send(Loaded(model.context, model.facts, memory.geometry.token_bytes, memory.budget, model.identity))
    serving.run()


def quiet_libraries() -> None:
    """Turn off the libraries' progress bars and advice on standard error. Call it before they are imported."""
    os.environ |= {
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TQDM_DISABLE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
    }
    warnings.simplefilter("ignore")


def share_the_cores() -> None:
    """Make torch's threads spin at their barriers for microseconds, then sleep. Call it before torch is imported.

    By default GNU's threads spin for milliseconds. Measured on two cores, first with one sequence, then with 16, and
    compared with threads that sleep immediately: on an idle machine a short spin is 1.6 and 1.2 times as fast. While
    another process keeps one core busy, a short spin is half and four fifths as fast, but the default is 3 and 7 times
    slower.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")


def pin_to_cores(cores: list[int]) -> None:
    """Run only on the processors in `cores`, if any, and if the system can do it. Call it before threads start."""
    if cores and hasattr(os, "sched_setaffinity"):
        with suppress(OSError):
            os.sched_setaffinity(0, cores)


if __name__ == "__main__":
    main()
