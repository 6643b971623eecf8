"""Connections that are checked while they are idle, and the network interface of gloo."""

import os
import socket
import sys

import pytest

from recurra.errors import ConfigError
from recurra.runtime import network

linux = pytest.mark.skipif(sys.platform != "linux", reason="sockets are listed on Linux only")


@pytest.fixture
def listening():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()


@linux
def test_keep_alive_enabled_applies_to_connections_of_the_block(listening, monkeypatch):
    monkeypatch.setenv("RECURRA_LOST_AFTER", "20")
    with socket.create_connection(listening) as before:
        with network.keep_alive_enabled():
            inside = socket.create_connection(listening)
        with inside, socket.create_connection(listening) as after:
            kept = [s.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) for s in (before, after)]
            assert kept == [0, 0]
            assert inside.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            options = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
            values = [
                inside.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in options
            ]
            assert values == [4, 4, 4, 20_000]
            # The connection is still usable: only a copy of its descriptor was closed.
            assert inside.send(b"x") == 1


@linux
def test_keep_alive_enabled_leaves_other_sockets_alone():
    with network.keep_alive_enabled():
        pair = socket.socketpair()
        datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for opened in (*pair, datagrams):
        with opened:
            assert opened.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "a minute", "1000000", "9" * 5000])
def test_lost_after_invalid_value_is_an_error(monkeypatch, text):
    monkeypatch.setenv("RECURRA_LOST_AFTER", text)
    with (
        pytest.raises(ConfigError, match=r"RECURRA_LOST_AFTER is .* must be a number of seconds"),
        network.keep_alive_enabled(),
    ):
        raise AssertionError("the block must not run")


def test_lost_after_default_is_a_minute(monkeypatch):
    monkeypatch.delenv("RECURRA_LOST_AFTER", raising=False)
    assert network.lost_after() == 60


@linux
def test_lost_after_longest_time_is_accepted_by_the_system(listening, monkeypatch):
    monkeypatch.setenv("RECURRA_LOST_AFTER", str(network.MAX_LOST_AFTER))
    with network.keep_alive_enabled():
        inside = socket.create_connection(listening)
    with inside:
        assert inside.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1


@pytest.fixture
def isolated(monkeypatch):
    """A machine without a default route."""
    found = network._own_address
    monkeypatch.setattr(
        network, "_own_address", lambda host: None if host == network._ELSEWHERE else found(host)
    )


@linux
def test_interface_towards_loopback_without_other_networks_is_its_name(isolated):
    assert network.interface_towards("127.0.0.1") == "lo"
    assert network.interface_towards("no such host") is None


@linux
def test_interface_towards_own_name_that_is_loopback_is_that_of_the_default_route(monkeypatch):
    """Other machines cannot reach 127.0.1.1, the address of a machine's own name on Debian."""
    own = {"first-machine": "127.0.0.1", network._ELSEWHERE: "10.0.0.7"}
    interfaces = {"lo": "127.0.0.1", "eth3": "10.0.0.7"}
    monkeypatch.setattr(network, "_own_address", own.get)
    monkeypatch.setattr(network, "_address_of", interfaces.get)
    monkeypatch.setattr(socket, "if_nameindex", lambda: list(enumerate(interfaces)))
    assert network.interface_towards("first-machine") == "eth3"


@linux
def test_choose_interface_keeps_the_choice_of_the_user(monkeypatch, isolated):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    network.choose_interface("127.0.0.1")
    assert os.environ["GLOO_SOCKET_IFNAME"] == "eth7"
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "")
    network.choose_interface("no such host")
    assert os.environ["GLOO_SOCKET_IFNAME"] == ""
    network.choose_interface("127.0.0.1")
    assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"
