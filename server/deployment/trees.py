"""Trees of objects: read within bounds, and kept as they came.

A message travels as a tree of objects, and each object's id is the SHA-256 of its content. Flower's
own store keeps one graph for all messages: it believes the first tree that names an object, and puts
later trees together from what it believes. So whoever sends a tree can make another's tree wrong, or
its own grow without end: two trees of a few kilobytes, each of which names an object of the other a
thousand times, stand for a million objects. Here each message keeps the tree that it came with, and
messages share contents alone.
"""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass
from typing import Any

from flwr.supercore.object_store import NoObjectInStoreError, ObjectStore

from wardround.common.wire.objects import is_id

MOST_OBJECTS = 1 << 13
"""Of one message: 20 GiB of tensors, in pieces of 5 MiB with two objects each."""
MOST_DEPTH = 5
"""Message, content, record, array, chunk."""


def ids_of(tree: Any) -> list[str]:
    """The ids of a tree's objects, each once, its root first.

    Args:
        tree: Flower's ObjectTree; whoever sent it may be up to anything.

    Raises:
        ValueError: the tree holds more than MOST_OBJECTS nodes, or more than MOST_DEPTH of them below each
            other; an id is no SHA-256; or an object that stands in it more than once has children.
    """
    has_children: dict[str, bool] = {}
    num_nodes = 1
    level = [tree]
    for _ in range(MOST_DEPTH):
        below: list[Any] = []
        for node in level:
            num_nodes += len(node.children)
            if num_nodes > MOST_OBJECTS:
                raise ValueError(f"a tree holds more than {MOST_OBJECTS} objects")
            _note(node, has_children)
            below.extend(node.children)
        level = below
    if level:
        raise ValueError(f"a tree is more than {MOST_DEPTH} objects deep")
    return list(has_children)


def _note(node: Any, has_children: dict[str, bool]) -> None:
    """Take a node in. Raises ValueError as `ids_of` does."""
    object_id, is_parent = node.object_id, bool(node.children)
    if not is_id(object_id):
        raise ValueError("an object's id is no SHA-256")
    if object_id in has_children and (is_parent or has_children[object_id]):
        raise ValueError("an object that has children stands in a tree twice")
    has_children[object_id] = is_parent


@dataclass
class _Kept:
    """One object."""

    num_messages: int = 0
    """Whose trees name it."""
    content: bytes | None = None
    """None until it has come."""


@dataclass(frozen=True)
class _Message:
    """One message's objects."""

    run_id: int
    tree: Any
    ids: tuple[str, ...]


class TreeStore(ObjectStore):
    """An object store of Flower's, in memory: a message has the tree it came with, and no other.

    Nothing in it recurses, and each call costs as much as the message has objects.
    """

    def __init__(self) -> None:
        self._messages: dict[str, _Message] = {}
        """By the id of its root, which is the message's own."""
        self._objects: dict[str, _Kept] = {}
        self._lock = threading.RLock()

    def preregister(self, run_id: int, object_tree: Any) -> list[str]:
        """Make room for a message's objects; returns the ids of those that have not come yet.

        Raises:
            ValueError: as `ids_of` does, or the message is there with another tree.
        """
        ids = ids_of(object_tree)
        root = object_tree.object_id
        with self._lock:
            if root not in self._messages:
                self._messages[root] = _Message(run_id, object_tree, tuple(ids))
                for object_id in ids:
                    self._objects.setdefault(object_id, _Kept()).num_messages += 1
            elif self._messages[root].tree != object_tree:
                raise ValueError("a message is there already, with another tree")
            return [
                object_id
                for object_id in ids
                if self._objects[object_id].content is None
            ]

    def get_object_tree(self, object_id: str) -> Any:
        """The tree that a message came with. Raises NoObjectInStoreError for what is no message here."""
        with self._lock:
            if object_id not in self._messages:
                raise NoObjectInStoreError(f"there is no message {object_id}")
            return self._messages[object_id].tree

    def is_message(self, object_id: str) -> bool:
        """Whether a message is there under this id."""
        with self._lock:
            return object_id in self._messages

    def put(self, object_id: str, object_content: bytes) -> None:
        """Keep an object's content.

        Raises:
            ValueError: it is not what its id says.
            NoObjectInStoreError: no message's tree names it.
        """
        if hashlib.sha256(object_content).hexdigest() != object_id:
            raise ValueError("an object is not what its id says")
        with self._lock:
            if object_id not in self._objects:
                raise NoObjectInStoreError(f"no message has an object {object_id}")
            self._objects[object_id].content = object_content

    def get(self, object_id: str) -> bytes | None:
        """An object's content; empty if it has not come yet, None if no message's tree names it."""
        with self._lock:
            kept = self._objects.get(object_id)
            if kept is None:
                return None
            return kept.content or b""

    def delete(self, object_id: str) -> None:
        """Let go of a message, and of the objects that no other message has."""
        with self._lock:
            message = self._messages.pop(object_id, None)
            if message is None:
                return
            for part in message.ids:
                self._objects[part].num_messages -= 1
                if self._objects[part].num_messages == 0:
                    del self._objects[part]

    def delete_objects_in_run(self, run_id: int) -> None:
        """Let go of all messages of a run."""
        with self._lock:
            for root, message in list(self._messages.items()):
                if message.run_id == run_id:
                    self.delete(root)

    def clear(self) -> None:
        """Let go of everything."""
        with self._lock:
            self._messages.clear()
            self._objects.clear()

    def __contains__(self, object_id: str) -> bool:
        with self._lock:
            return object_id in self._objects

    def __len__(self) -> int:
        with self._lock:
            return len(self._objects)


class TreeStores:
    """Stands for Flower's ObjectStoreFactory: one store in memory, for whoever asks."""

    def __init__(self, database: str = "") -> None:
        """Args: database: Flower's name of the state in memory; there is no other here."""
        self._store = TreeStore()

    def store(self) -> TreeStore:
        """The store."""
        return self._store
