"""The address that distinguishes clients without an identity."""

import ipaddress

from sanic import Request

__all__ = ["client_address"]

_IPV6_NETWORK_BITS = 64  # one client has as many addresses as it likes below this


def client_address(request: Request) -> str:
    """Return the address of a client, as a proxy reports it that Sanic trusts; of IPv6 the network."""
    text = request.client_ip.strip("[]")
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return text
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, _IPV6_NETWORK_BITS), strict=False))
