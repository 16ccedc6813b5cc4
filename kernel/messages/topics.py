"""Topics: which processes subscribed to which patterns. A topic is words separated by dots.

Used by the publication subsystem to find the subscribers of a topic. In a pattern `*` stands for one word, and a final
`#` for any number of words, or none (as in AMQP topic exchanges). This module never sends a message.
"""

from __future__ import annotations

from ipc.errors import InvalidCall, NotFound
from kernel.core.process import Process

ONE, REST = "*", "#"
MAX_WORDS = 32


class _TopicNode:
    """A node of the tree: the subscribers of one pattern, and by their next word the nodes of longer patterns."""

    __slots__ = ("next", "subscribers")

    def __init__(self) -> None:
        self.next: dict[str, _TopicNode] = {}
        self.subscribers: dict[Process, None] = {}  # in the order of their subscription


class Topics:
    """A tree of words. The cost of a lookup grows with the words of the topic, not with the number of patterns."""

    def __init__(self) -> None:
        self._root = _TopicNode()
        self._patterns: dict[Process, set[str]] = {}

    def subscribe(self, process: Process, pattern: str) -> None:
        """Subscribe `process` to the topics that `pattern` matches.

        Raises `InvalidCall` for an empty word, a wildcard inside a word, and a `#` that is not the last word.
        """
        words = _words(pattern)
        for place, word in enumerate(words):
            if (ONE in word or REST in word) and (word not in (ONE, REST) or (word == REST and place < len(words) - 1)):
                raise InvalidCall(f"pattern {pattern!r}: {ONE} and {REST} must be whole words, and {REST} the last one")
        node = self._root
        for word in words:
            node = node.next.setdefault(word, _TopicNode())
        node.subscribers[process] = None
        self._patterns.setdefault(process, set()).add(pattern)

    def unsubscribe(self, process: Process, pattern: str) -> None:
        """Undo `subscribe`. Raises `NotFound` if there is no such subscription."""
        patterns = self._patterns.get(process, set())
        if pattern not in patterns:
            known = ", ".join(sorted(patterns)) or "none"
            raise NotFound(f"process {process.pid} has no subscription to {pattern!r}; it has: {known}")
        patterns.discard(pattern)
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

    def subscribers(self, topic: str) -> list[Process]:
        """The processes with a pattern that matches `topic`, each once. Raises `InvalidCall`."""
        words = _words(topic)
        if any(ONE in word or REST in word for word in words):
            raise InvalidCall(f"topic {topic!r}: wildcards are for subscriptions; publish to one topic")
        found: dict[Process, None] = {}
        level = [self._root]
        for word in words:
            following: list[_TopicNode] = []
            for node in level:
                found.update(_rest(node))
                following += [node.next[key] for key in (word, ONE) if key in node.next]
            level = following
        for node in level:
            found.update(node.subscribers)
            found.update(_rest(node))
        return list(found)

    def process_ended(self, process: Process) -> None:
        for pattern in tuple(self._patterns.get(process, ())):
            self.unsubscribe(process, pattern)


def _rest(node: _TopicNode) -> dict[Process, None]:
    """The subscribers of the pattern of `node` with `#` added, which matches the same topics and all longer ones."""
    rest = node.next.get(REST)
    return rest.subscribers if rest is not None else {}


def _words(text: str) -> list[str]:
    words = text.split(".")
    if len(words) > MAX_WORDS or not all(words):
        raise InvalidCall(f"{text[:80]!r} is no topic or pattern: use 1 to {MAX_WORDS} words separated by dots")
    return words
