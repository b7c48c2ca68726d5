"""Which addresses lead to the machine that one is on."""

from ipaddress import ip_address


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine can reach an address to listen on."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
