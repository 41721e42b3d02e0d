"""Object trees of messages, with limits on their size.

A message travels as a tree of objects. The id of each object is the SHA-256 of its content.
Flower's own store keeps one graph for all messages: it trusts the first tree that names an object
and builds later trees from it. So a sender can damage another sender's tree, or make its own grow
without limit: two trees of a few kilobytes, each naming an object of the other a thousand times,
stand for a million objects. Here each message keeps its own tree, and messages share only the
content of objects.
"""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass
from typing import Any

from flwr.supercore.object_store import NoObjectInStoreError, ObjectStore

from wardround.common.wire.objects import is_id

MOST_OBJECTS = 1 << 13
"""Limit for one message: 20 GiB of tensors, in pieces of 5 MiB with two objects each."""
MOST_DEPTH = 5
"""Levels of a message: message, content, record, array, chunk."""


def ids_of(tree: Any) -> list[str]:
    """Return the ids of a tree's objects, each once, the root first.

    Args:
        tree: Flower's ObjectTree, from an untrusted sender.

    Raises:
        ValueError: the tree has more than MOST_OBJECTS nodes or more than MOST_DEPTH levels; an
            id is not a SHA-256; or an object that occurs more than once has children.
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
    """Add a node. Raises ValueError as `ids_of` does."""
    object_id = node.object_id
    is_parent = bool(node.children)
    if not is_id(object_id):
        raise ValueError("an object's id is not a SHA-256")
    if object_id in has_children and (is_parent or has_children[object_id]):
        raise ValueError("an object that has children stands in a tree twice")
    has_children[object_id] = is_parent


@dataclass
class _StoredObject:
    """One object."""

    num_messages: int = 0
    """Number of messages whose trees name it."""
    content: bytes | None = None
    """None until it has arrived."""


@dataclass(frozen=True)
class _Message:
    """The objects of one message."""

    run_id: int
    tree: Any
    ids: tuple[str, ...]


class TreeStore(ObjectStore):
    """A Flower object store in memory. A message keeps the tree with which it arrived.

    Nothing in it recurses. The cost of a call grows with the number of objects of the message.
    """

    def __init__(self) -> None:
        self._messages: dict[str, _Message] = {}
        """Messages by the id of their root, which is the message id."""
        self._objects: dict[str, _StoredObject] = {}
        self._lock = threading.RLock()

    def preregister(self, run_id: int, object_tree: Any) -> list[str]:
        """Register a message; return the ids of its objects that have not arrived yet.

        Raises:
            ValueError: as `ids_of` does, or the message exists with another tree.
        """
        ids = ids_of(object_tree)
        root = object_tree.object_id
        with self._lock:
            if root not in self._messages:
                message = _Message(run_id, object_tree, tuple(ids))
                self._messages[root] = message
                for object_id in ids:
                    stored = self._objects.setdefault(object_id, _StoredObject())
                    stored.num_messages += 1
            elif self._messages[root].tree != object_tree:
                raise ValueError("the message exists with another tree")
            return [
                object_id
                for object_id in ids
                if self._objects[object_id].content is None
            ]

    def get_object_tree(self, object_id: str) -> Any:
        """Return the tree of a message. Raises NoObjectInStoreError if there is no such message."""
        with self._lock:
            message = self._messages.get(object_id)
            if message is None:
                raise NoObjectInStoreError(f"there is no message {object_id}")
            return message.tree

    def is_message(self, object_id: str) -> bool:
        """Return True if there is a message with this id."""
        with self._lock:
            return object_id in self._messages

    def put(self, object_id: str, object_content: bytes) -> None:
        """Store the content of an object.

        Raises:
            ValueError: its SHA-256 is not its id.
            NoObjectInStoreError: no message's tree names it.
        """
        if hashlib.sha256(object_content).hexdigest() != object_id:
            raise ValueError("an object's SHA-256 is not its id")
        with self._lock:
            if object_id not in self._objects:
                raise NoObjectInStoreError(f"no message has an object {object_id}")
            self._objects[object_id].content = object_content

    def get(self, object_id: str) -> bytes | None:
        """Return an object's content; empty if it has not arrived, None if no message's tree
        names it."""
        with self._lock:
            stored = self._objects.get(object_id)
            if stored is None:
                return None
            if stored.content is None:
                return b""
            return stored.content

    def delete(self, object_id: str) -> None:
        """Delete a message, and the objects that no other message has."""
        with self._lock:
            message = self._messages.pop(object_id, None)
            if message is None:
                return
            for part in message.ids:
                stored = self._objects[part]
                stored.num_messages -= 1
                if stored.num_messages == 0:
                    del self._objects[part]

    def delete_objects_in_run(self, run_id: int) -> None:
        """Delete all messages of a run."""
        with self._lock:
            messages = list(self._messages.items())
            for root, message in messages:
                if message.run_id == run_id:
                    self.delete(root)

    def clear(self) -> None:
        """Delete everything."""
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
    """Replaces Flower's ObjectStoreFactory: it always returns the same store in memory."""

    def __init__(self, database: str = "") -> None:
        """Args: database: name of a database, which Flower passes; not used, the store is in
        memory."""
        self._store = TreeStore()

    def store(self) -> TreeStore:
        """Return the store."""
        return self._store
