"""Which addresses this node may connect to on behalf of a user. Pure: the sockets are in ``fetchers.http.wire``.

What is judged is the address that a connection really has, never a name: names can be made to point anywhere,
and an address can be written in many ways (decimal, octal, mapped into IPv6).
"""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from fnmatch import fnmatchcase
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from ingest.errors import EgressDenied
from ingest.sections import Egress

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

#: Instance metadata hands out the node's own credentials. Most clouds have it at 169.254.169.254, which is link-local;
#: these are the services elsewhere: AWS over IPv6 (of instances and of pods), GCP and Scaleway over IPv6, Alibaba,
#: Oracle's older one, Azure's wire server.
_METADATA: tuple[Network, ...] = (
    *(ip_network(text) for text in ("fd00:ec2::/32", "fd20:ce::254/128", "fd00:42::42/128")),
    *(ip_network(text) for text in ("100.100.100.200/32", "192.0.0.192/32", "168.63.129.16/32")),
)
_LINK_LOCAL: tuple[Network, ...] = (ip_network("169.254.0.0/16"), ip_network("fe80::/10"))
#: IPv6 addresses that end in the IPv4 address which they lead to: compatible, translated (SIIT), by NAT64.
_ENDS_IN_IPV4: tuple[Network, ...] = (ip_network("::/96"), ip_network("::ffff:0:0:0/96"), ip_network("64:ff9b::/96"))
#: Not global either, whatever Python's table says: site-local addresses of old, NAT64 within a network (RFC 8215).
_LOCAL: tuple[Network, ...] = (ip_network("fec0::/10"), ip_network("64:ff9b:1::/48"))
_NUMERIC_HOST = re.compile(r"[0-9a-fA-FxX.]+")


def parse_address(text: str) -> Address | None:
    """A literal IP address, in any form that the system's resolver takes, as what it leads to. None for a name.

    Brackets and a zone are allowed, IPv4 inside IPv6 is taken out, ``2130706433`` and ``0177.1`` are 127.0.0.1.
    """
    text = text.strip("[]").partition("%")[0]
    try:
        address = ip_address(text)
    except ValueError:
        try:
            return ip_address(socket.inet_aton(text)) if _NUMERIC_HOST.fullmatch(text) else None
        except OSError:
            return None
    if isinstance(address, IPv6Address):
        if int(address) > 1 and _within(address, _ENDS_IN_IPV4):  # :: and ::1 are what they are
            return IPv4Address(int(address) & 0xFFFFFFFF)
        return address.ipv4_mapped or address.sixtofour or address
    return address


def is_private(address: Address) -> bool:
    """Whether it is an address of this machine or of a private network: anything that the Internet does not route."""
    return not address.is_global or address.is_multicast or _within(address, _LOCAL)


class Policy:
    """``[egress]`` of ingest.toml, ready to judge.

    ``allow`` holds host names (globs such as ``*.corp``), addresses and CIDR blocks. A name opens private addresses;
    link-local and metadata addresses open only to an address or block that lies within theirs, so that neither ``*``
    nor ``0.0.0.0/0`` does it by accident.
    """

    def __init__(self, egress: Egress) -> None:
        self._strict = egress.strict
        self._networks = [network for entry in egress.allow if (network := _network(entry)) is not None]
        self._hosts = [entry.lower().rstrip(".") for entry in egress.allow if _network(entry) is None]

    def check(self, uri: str, host: str, address: Address, *, from_public: bool) -> None:
        """Raises :class:`EgressDenied` where a request for ``uri`` may not go to ``host`` at ``address``.

        ``from_public``: a public address redirected there, and its owner must not choose among private ones.
        """
        where = str(address) if host.strip("[]") == str(address) else f"{host} ({address})"
        if _within(address, (*_LINK_LOCAL, *_METADATA)):
            if not any(address in net and _is_part(net, (*_LINK_LOCAL, *_METADATA)) for net in self._networks):
                raise EgressDenied(
                    uri,
                    f"{where} is a link-local or cloud metadata address, where nodes keep their credentials; "
                    f'refused unless [egress] allow = ["{address}"] in ingest.toml on the data node names it',
                )
            return
        if not is_private(address) or self._allows(host, address):
            return
        if from_public:
            raise EgressDenied(
                uri,
                f"a public server redirects to the private address {where}; "
                f'permit it with [egress] allow = ["{host}"] in ingest.toml on the data node',
            )
        if self._strict:
            raise EgressDenied(
                uri,
                f"{where} is a private address and [egress] strict is set; "
                f'permit it with [egress] allow = ["{host}"] in ingest.toml on the data node',
            )

    def _allows(self, host: str, address: Address) -> bool:
        name = host.lower().rstrip(".")
        return _within(address, self._networks) or any(fnmatchcase(name, glob) for glob in self._hosts)


class Trail:
    """The hops of one request: the source's own host, then wherever redirects lead."""

    def __init__(self, policy: Policy, uri: str) -> None:
        self._policy, self._uri = policy, uri
        self._from_public = False
        self._at_public = False

    def visit(self, host: str, address: Address) -> None:
        """We are connected to ``address`` for ``host``, and have sent nothing yet. Raises :class:`EgressDenied`."""
        self._at_public = not is_private(address)
        self._policy.check(self._uri, host, address, from_public=self._from_public)

    def approach(self, host: str, *, proxied: bool) -> None:
        """About to connect for ``host``: a literal address is judged before a packet leaves, a name once connected.

        Behind a proxy a name stays unjudged and counts as public. Raises :class:`EgressDenied`.
        """
        address = parse_address(host)
        if address is not None:
            self.visit(host, address)
        elif proxied:
            self._at_public = True

    def redirected(self) -> None:
        """The host that was visited last sends us on."""
        self._from_public = self._from_public or self._at_public


def _network(entry: str) -> Network | None:
    try:
        return ip_network(entry, strict=False)
    except ValueError:
        return None


def _within(address: Address, networks: Sequence[Network]) -> bool:
    return any(address in network for network in networks)


def _is_part(inner: Network, outer: Sequence[Network]) -> bool:
    return any(inner.version == net.version and inner.subnet_of(net) for net in outer)  # type: ignore[arg-type]  # same version
