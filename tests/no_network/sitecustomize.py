"""Python imports this first where this folder is on PYTHONPATH: whoever asks the network for anything ends there.

The project's ``conftest.py`` sets that path for all tests, and so for the kernels in which they execute the lessons. It
ends the process, because an exception might be caught by the very library that asks. Loopback is free, Jupyter works
through it.
"""

import os
import socket
import sys

HOME = {"localhost", "127.0.0.1", "::1", "0.0.0.0", "::", "", None, socket.gethostname()}
HOST = {"socket.connect": 1, "socket.sendto": 1, "socket.sendmsg": 1}  # where in the arguments of an event it stands
HOST |= {"socket.getaddrinfo": 0, "socket.gethostbyname": 0, "socket.gethostbyaddr": 0}


def forbid_network(event, arguments):
    if event not in HOST:
        return
    if event == "socket.connect" and arguments[0].type == socket.SOCK_DGRAM:
        return  # nothing is sent: Dask asks the system that way which address this machine has
    host = arguments[HOST[event]]
    if isinstance(host, tuple):  # an address of IPv4 or IPv6; those of other families stay on this machine
        host = host[0]
    elif event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        return
    host = host.decode() if isinstance(host, bytes) else host
    if host not in HOME and not str(host).startswith("127."):
        os.write(2, f"\nThe network was asked: {event} {host}\n".encode())
        os._exit(86)


sys.addaudithook(forbid_network)
