"""The private parts of Flower that Wardround uses. These tests fail if Flower changes them."""

from __future__ import annotations

import inspect
from typing import Any

import grpc  # type: ignore[import-untyped]
import pytest
from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID
from flwr.proto import fleet_pb2, message_pb2
from flwr.proto.fleet_pb2_grpc import FleetStub
from flwr.server.superlink.fleet.grpc_rere.fleet_servicer import FleetServicer
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME
from flwr.supercore.object_store import ObjectStore
from flwr.superlink import config_loader
from flwr.superlink.cli import flower_superlink as _function
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.grid import HttpGrid

from wardround.common.credentials import new_key, pem_of, public_line
from wardround.server.deployment.calls import METHODS
from wardround.server.deployment.servicer import OwnMessages
from wardround.server.deployment.trees import TreeStore, TreeStores


def test_flower_looks_up_the_four_replaced_parts_in_this_module() -> None:
    module: Any = inspect.getmodule(_function)
    assert module is not None
    source = inspect.getsource(module)
    assert "NodeAuthServerInterceptor(self.state_factory)" in source
    for name in (
        "NodeAuthServerInterceptor",
        "FleetServicer",
        "generic_create_grpc_server",
    ):
        assert callable(getattr(module, name))
        assert source.count(f"{name}(") >= 1
    assert "ObjectStoreFactory(database)" in inspect.getsource(config_loader)
    given = inspect.signature(FleetServicer.__init__).parameters
    needed = {"state_factory", "objectstore_factory", "enable_supernode_auth"}
    assert needed <= set(given)


def test_the_link_state_has_the_parts_that_registrar_and_servicer_use() -> None:
    store: Any = TreeStores(FLWR_IN_MEMORY_DB_NAME)
    manager = NoOpFederationManager()
    state = LinkStateFactory(FLWR_IN_MEMORY_DB_NAME, manager, store).state()
    assert isinstance(state, InMemoryLinkState)
    key = pem_of(public_line(new_key("node")))
    node_id = state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, key, 0)
    assert state.get_node_id_by_public_key(key) == node_id
    (node,) = state.get_node_info(node_ids=[node_id])
    assert node.status == "registered"
    assert node.public_key == key
    assert node.last_activated_at == ""
    state.delete_node(NOOP_FLWR_AID, node_id)
    assert state.get_node_id_by_public_key(key) is None
    # A deleted node can be registered again.
    del state.node_public_key_to_node_id[key]
    again = state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, key, 0)
    assert again != node_id
    assert state.message_ins_id_to_message_res_id == {}
    session = state.start_session(1)
    assert state._object_push_sessions[session].root_object_ids == set()
    state._cleanup_push_session(session, cleanup_messages=False)
    assert session not in state._object_push_sessions
    state._on_push_session_expired({"0" * 64})  # without sessions it has no effect
    state.object_store.delete("0" * 64)


def test_our_object_store_has_every_method_of_flowers() -> None:
    assert isinstance(TreeStores().store(), ObjectStore)
    asked = {name for name in vars(ObjectStore) if not name.startswith("_")}
    assert asked <= set(vars(TreeStore))


def test_every_method_of_the_fleet_api_is_offered_and_guarded_or_refused() -> None:
    """A new method of Flower is refused until somebody has checked it."""
    stub = FleetStub(grpc.insecure_channel("localhost:1"))
    methods = {name for name in vars(stub) if name[0].isupper()}
    refused = {"RegisterNode", "UnregisterNode", "GetRun", "GetFab"}
    assert methods == set(METHODS) | refused
    assert not refused & set(METHODS)
    own = {name for name in vars(OwnMessages) if name[0].isupper()}
    assert set(METHODS) - own == {"DeactivateNode"}  # only the sender can be checked


@pytest.mark.parametrize(
    ("message", "fields"),
    [
        (fleet_pb2.PullMessagesResponse, {"messages_list", "message_object_trees"}),
        (
            fleet_pb2.PushMessagesRequest,
            {"node", "messages_list", "message_object_trees"},
        ),
        (fleet_pb2.PushMessagesResponse, {"objects_to_push", "session_id"}),
        (
            message_pb2.PushObjectRequest,
            {"node", "run_id", "object_id", "object_content", "session_id"},
        ),
        (
            message_pb2.PullObjectResponse,
            {"object_found", "object_available", "object_content"},
        ),
        (
            message_pb2.Metadata,
            {"src_node_id", "dst_node_id", "reply_to_message_id", "created_at", "ttl"},
        ),
    ],
)
def test_messages_have_the_fields_that_are_checked(
    message: Any, fields: set[str]
) -> None:
    assert fields <= {field.name for field in message.DESCRIPTOR.fields}


def test_the_grid_of_a_server_app_has_a_runtime_client() -> None:
    assert "_runtime_client" in inspect.getsource(HttpGrid)
