"""HOST:PORT as it is written."""


def joined(host: str, port: int) -> str:
    """An IPv6 address stands in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
