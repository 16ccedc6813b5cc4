"""Topics: which processes subscribed to which patterns. A topic is words separated by dots.

Used by the publication subsystem to find the subscribers of a topic. In a pattern `*` stands for one word, and a final
`#` for any number of words, or none (as in AMQP topic exchanges). This module never sends a message.
"""

from __future__ import annotations

from collections.abc import Iterator

from ipc.errors import InvalidCall, LimitExceeded, NotFound
from kernel.core.process import Process
from kernel.lib.wording import quoted

ONE, REST = "*", "#"
MAX_WORDS = 32
MAX_PATTERN = 1024  # characters
OF_PROCESS = 4096  # patterns of one process
OF_ALL = 2_000_000  # words in the patterns of all processes; 32 characters count as a further word
NODES = 1024  # nodes that a search visits before it lets other work go on
NAMED = 20  # patterns that an error names


class _TopicNode:
    """A node of the tree: the subscribers of one pattern, and by their next word the nodes of longer patterns."""

    __slots__ = ("next", "subscribers")

    def __init__(self) -> None:
        self.next: dict[str, _TopicNode] = {}
        self.subscribers: dict[Process, None] = {}  # in the order of their subscription


class Topics:
    """A tree of words. A search visits the nodes that match the topic so far, and no others."""

    def __init__(self) -> None:
        self._root = _TopicNode()
        self._words = 0  # in the patterns of all processes, each counted by `_weight`
        self._patterns: dict[Process, set[str]] = {}

    def subscribe(self, process: Process, pattern: str) -> None:
        """Subscribe `process` to the topics that `pattern` matches.

        Raises `InvalidCall` for an empty word, a wildcard inside a word, and a `#` that is not the last word, and
        `LimitExceeded`.
        """
        words = _words(pattern)
        for place, word in enumerate(words):
            if (ONE in word or REST in word) and (word not in (ONE, REST) or (word == REST and place < len(words) - 1)):
                raise InvalidCall(f"pattern {pattern!r}: {ONE} and {REST} must be whole words, and {REST} the last one")
        patterns = self._patterns.get(process, set())
        if pattern in patterns:
            return
        weight = _weight(pattern)
        _check_count(f"process {process.pid} would have", "patterns", len(patterns) + 1, OF_PROCESS)
        _check_count("the patterns of all processes would have", "words", self._words + weight, OF_ALL)
        self._words += weight
        node = self._root
        for word in words:
            node = node.next.setdefault(word, _TopicNode())
        node.subscribers[process] = None
        self._patterns.setdefault(process, set()).add(pattern)

    def unsubscribe(self, process: Process, pattern: str) -> None:
        """Undo `subscribe`. Raises `NotFound` if there is no such subscription."""
        patterns = self._patterns.get(process, set())
        if pattern not in patterns:
            names = sorted(patterns)
            known = (", ".join(map(quoted, names[:NAMED])) or "none") + f" and {len(names) - NAMED} more" * (
                len(names) > NAMED
            )
            raise NotFound(f"process {process.pid} has no subscription to {quoted(pattern)!r}; it has: {known}")
        patterns.discard(pattern)
        self._words -= _weight(pattern)
        if not patterns:
            del self._patterns[process]
        path = [self._root]
        words = pattern.split(".")
        for word in words:
            path.append(path[-1].next[word])
        del path[-1].subscribers[process]
        for place in range(len(words), 0, -1):
            node = path[place]
            if node.subscribers or node.next:
                break
            del path[place - 1].next[words[place - 1]]

    def search(self, topic: str) -> Search:
        """The search for the processes with a pattern that matches `topic`. Raises `InvalidCall`."""
        words = _words(topic)
        if any(ONE in word or REST in word for word in words):
            raise InvalidCall(f"topic {topic[:80]!r}: wildcards are for subscriptions; publish to one topic")
        return Search(self._root, words)

    def process_ended(self, process: Process) -> None:
        for pattern in tuple(self._patterns.get(process, ())):
            self.unsubscribe(process, pattern)


class Search:
    """The search for the subscribers of a topic, in steps: a topic of 32 words can match 100,000 patterns.

    `found`: the subscribers so far, each once. Patterns that are added or removed between two steps may count or not.
    """

    __slots__ = ("_steps", "found")

    def __init__(self, root: _TopicNode, words: list[str]) -> None:
        self.found: dict[Process, None] = {}
        self._steps = self._search(root, words)

    def advance(self) -> bool:
        """Do the next step. Returns whether the search is over."""
        return next(self._steps, True)

    def _search(self, root: _TopicNode, words: list[str]) -> Iterator[bool]:
        found, visited = self.found, 0
        level = [root]
        for word in words:
            following: list[_TopicNode] = []
            for node in level:
                visited += 1
                if visited % NODES == 0:
                    yield False
                nodes = node.next
                if nodes:
                    if (rest := nodes.get(REST)) is not None:
                        found.update(rest.subscribers)
                    if (same := nodes.get(word)) is not None:
                        following.append(same)
                    if (any_word := nodes.get(ONE)) is not None:
                        following.append(any_word)
            level = following
        for node in level:
            visited += 1
            if visited % NODES == 0:
                yield False
            found.update(node.subscribers)
            if (rest := node.next.get(REST)) is not None:
                found.update(rest.subscribers)


def _weight(pattern: str) -> int:
    return pattern.count(".") + 1 + len(pattern) // 32


def _check_count(who: str, unit: str, wanted: int, most: int) -> None:
    if wanted > most:
        raise LimitExceeded(
            f"{who} {wanted} {unit}, and the limit is {most}; unsubscribe from some, or use `{ONE}` and `{REST}`",
            limit=f"subscribed {unit}",
            maximum=most,
            wanted=wanted,
        )


def _words(text: str) -> list[str]:
    words = text.split(".")
    if len(words) > MAX_WORDS or not all(words):
        raise InvalidCall(f"{text[:80]!r} is no topic or pattern: use 1 to {MAX_WORDS} words separated by dots")
    return words
