"""gRPC's own view of a process: its servers, channels and sockets, as grpc.channelz.v1 tells it."""

import grpc.aio
from worldtree_runtime.settings import SettingsError

SERVICE_NAME = "grpc.channelz.v1.Channelz"


def add_channelz(server: grpc.aio.Server) -> None:
    """Raises SettingsError where it is not installed."""
    try:
        # here, as whoever doesn't ask for it need not have it
        from grpc_channelz.v1 import channelz
    except ImportError as error:
        raise SettingsError("channelz needs the extra channelz: pip install 'worldtree-server[channelz]'") from error
    channelz.add_channelz_servicer(server)
