"""The network between the machines of a training run: its interface, and lost connections.

gloo does not notice that another machine has lost its power or its network: a process in a
collective would wait until its timeout of half an hour. The operating system can check a connection
on which no data is sent (TCP keep-alive). This module enables keep-alive for the connections that
are opened when the processes join.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from recurra.errors import ConfigError

INTERFACE = "GLOO_SOCKET_IFNAME"
"""Environment variable that names the network interface of gloo."""
LOST_AFTER = "RECURRA_LOST_AFTER"
"""Environment variable that replaces `DEFAULT_LOST_AFTER`."""
DEFAULT_LOST_AFTER = 60
"""Seconds without an answer after which a connection counts as lost."""
MAX_LOST_AFTER = 24 * 60 * 60
_NUM_PROBES = 4
_ELSEWHERE = "192.0.2.1"
"""An address outside of every local network (RFC 5737)."""


def lost_after() -> int:
    """Return the number of seconds without an answer after which a connection counts as lost.

    Raises:
        ConfigError: the environment variable RECURRA_LOST_AFTER is not an integer from 1 to the
            number of seconds in a day.
    """
    text = os.environ.get(LOST_AFTER) or str(DEFAULT_LOST_AFTER)
    is_number = text.isascii() and text.isdigit() and len(text) < 10
    if not (is_number and 1 <= int(text) <= MAX_LOST_AFTER):
        raise ConfigError(
            f"environment variable {LOST_AFTER} is {text[:20]!r}; it must be a number of seconds"
            f" from 1 to {MAX_LOST_AFTER}"
        )
    return int(text)


@contextmanager
def keep_alive_enabled() -> Iterator[None]:
    """Enable TCP keep-alive for the connections that are opened in the context.

    If the other machine does not answer for about `lost_after()` seconds, the operating system ends
    the connection, and a process in a collective gets an error. The function finds connections on
    Linux only; on other systems, the timeout of the collective applies.

    Raises:
        ConfigError: as in `lost_after`.
    """
    seconds = lost_after()
    before = _connections()
    yield
    for inode, descriptor in _connections().items():
        if inode not in before:
            _keep_alive(descriptor, seconds)


def choose_interface(host: str) -> None:
    """Let gloo use the network interface that reaches a host, unless the user has chosen one.

    The function sets the environment variable GLOO_SOCKET_IFNAME. Without it, gloo announces the
    address to which the host name of this machine resolves, which is 127.0.1.1 on many machines.

    Args:
        host: name or IPv4 address of the machine with the first process.
    """
    if os.environ.get(INTERFACE):
        return
    name = interface_towards(host)
    if name is not None:
        os.environ[INTERFACE] = name


def interface_towards(host: str) -> str | None:
    """Return the name of the network interface that reaches a host, or None if it is not known.

    On many machines, their own name is an address that only they can reach (127.0.1.1). The
    interface is then that of the default route, if there is one, because other machines use it.

    Args:
        host: a name or an IPv4 address.
    """
    if sys.platform != "linux":
        return None
    address = _own_address(host)
    if address is not None and address.startswith("127."):
        address = _own_address(_ELSEWHERE) or address
    with suppress(OSError):
        for _, name in socket.if_nameindex():
            if address is not None and _address_of(name) == address:
                return name
    return None


def _own_address(host: str) -> str | None:
    """Return the IPv4 address from which this machine reaches a host, or None without a route."""
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        # `connect` sends no packet on a UDP socket: the system only selects a route.
        probe.connect((host, 9))
        address: str = probe.getsockname()[0]
        return address
    return None


def _address_of(interface: str) -> str | None:
    """Return the IPv4 address of a network interface, or None if it has none."""
    import fcntl

    get_address = 0x8915  # SIOCGIFADDR, see netdevice(7)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            request = struct.pack("256s", interface.encode()[:15])
            return socket.inet_ntoa(fcntl.ioctl(probe.fileno(), get_address, request)[20:24])
        except OSError:
            return None


def _connections() -> dict[str, int]:
    """Return a file descriptor of every open socket of this process, by the socket's inode."""
    folder = Path("/proc/self/fd")
    if not folder.is_dir():
        return {}
    found = {}
    for entry in folder.iterdir():
        with suppress(OSError):  # The descriptor with which the directory was listed is closed.
            target = os.readlink(entry)
            if target.startswith("socket:"):
                found[target] = int(entry.name)
    return found


def _keep_alive(descriptor: int, seconds: int) -> None:
    """Check a TCP connection while it is idle, and end it after this time without an answer."""
    with socket.socket(fileno=os.dup(descriptor)) as connection:
        if connection.family not in (socket.AF_INET, socket.AF_INET6):
            return
        if connection.type != socket.SOCK_STREAM:
            return
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _tcp_options(seconds).items():
            connection.setsockopt(socket.IPPROTO_TCP, option, value)


def _tcp_options(seconds: int) -> dict[int, int]:
    """Return the options of tcp(7) that end a connection after this time without an answer."""
    if sys.platform != "linux":
        return {}
    probe = max(seconds // (_NUM_PROBES + 1), 1)
    return {
        socket.TCP_KEEPIDLE: probe,
        socket.TCP_KEEPINTVL: probe,
        socket.TCP_KEEPCNT: _NUM_PROBES,
        # In milliseconds; it also limits the time for which sent data is not acknowledged.
        socket.TCP_USER_TIMEOUT: seconds * 1000,
    }
