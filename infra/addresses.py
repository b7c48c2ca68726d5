"""Which addresses of the network the platform may call on behalf of a caller."""

from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052


def is_public(address: str) -> bool:
    """Whether the address is one of the internet's, and not of this machine or its networks.

    An IPv6 address that leads to an IPv4 address (mapped, 6to4, NAT64) is judged by that.
    """
    ip = ip_address(address.partition("%")[0])
    ip = _carried(ip) or ip
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def _carried(ip: IPv4Address | IPv6Address) -> IPv4Address | None:
    if isinstance(ip, IPv4Address):
        return None
    if ip in _NAT64:
        return IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour
