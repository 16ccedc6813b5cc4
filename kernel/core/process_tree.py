"""Process trees: a task's first process and all its living descendants, and how many there may be.

`Lifecycle.start` checks the tree before it makes a process, and `ProcessExit` removes the process when it ends. A
detached process leaves its parent but not its tree, so a program cannot escape its limits by detaching. It belongs to
the generation of the process that spawned it, because it has no living ancestors: an agent may start its own successor
any number of times. A tree never looks at the processes themselves: it counts them, so that a spawn costs the same in a
tree of any size.
"""

from __future__ import annotations

from ipc.errors import LimitExceeded

MOST_PROCESSES = 150_000  # alive in one tree, unless a limit says otherwise: a quarter of the daemon's stays for others
MOST_GENERATIONS = 64  # below the first process of a tree, unless a limit says otherwise


class ProcessTree:
    """The tree of process `root`. `alive` counts its living processes, of which there may be `most`.

    `deepest` is the last generation that may exist, where the first process of the task is generation 0. A process
    whose own limits are stricter than those of its task has a tree of its own inside the `outer` tree, and its
    descendants count in both.
    """

    __slots__ = ("alive", "deepest", "first", "most", "outer", "root")

    def __init__(self, root: int, first: int = 0, outer: ProcessTree | None = None) -> None:
        self.root = root
        self.first = first  # the generation of `root`
        self.outer = outer
        self.alive = 0
        self.most = MOST_PROCESSES
        self.deepest = first + MOST_GENERATIONS

    def add(self) -> None:
        """Count a process that starts."""
        tree: ProcessTree | None = self
        while tree is not None:
            tree.alive += 1
            tree = tree.outer

    def remove(self) -> None:
        """Undo `add` for a process that has ended."""
        tree: ProcessTree | None = self
        while tree is not None:
            tree.alive -= 1
            tree = tree.outer

    def check(self, generation: int) -> None:
        """Raises `LimitExceeded` if the tree may have no further process, or none in `generation`."""
        tree: ProcessTree | None = self
        while tree is not None:
            if tree.alive >= tree.most:
                raise LimitExceeded(
                    f"process {tree.root} and its descendants reached their limit of {tree.most} living processes; "
                    "wait until some have ended, or set the limit `processes` higher",
                    limit="process processes",
                    maximum=tree.most,
                    wanted=tree.alive + 1,
                )
            if generation > tree.deepest:
                raise LimitExceeded(
                    f"process {tree.root} reached its limit of {tree.deepest - tree.first} generations of descendants; "
                    "if the program means to go deeper, set the limit `depth` higher",
                    limit="process depth",
                    maximum=tree.deepest - tree.first,
                    wanted=generation - tree.first,
                )
            tree = tree.outer
