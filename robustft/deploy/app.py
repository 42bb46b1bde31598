"""`robustft app RUN`: a page to drop images on, and what the model that a run left makes of them.

The zero-shot and the fine-tuned answer side by side, the patches that speak for a class, the mask, the counterfactual
samples, the nearest training images. It works offline, stores nothing, and can be reached from this machine alone
unless --host says otherwise. Ctrl-C ends it.
"""

import argparse
import errno
import ipaddress
import socket
import sys
from collections.abc import Sequence
from contextlib import closing, suppress
from importlib.util import find_spec

from robustft.common import entry, homes, machine
from robustft.common.errors import UserError, install, reason
from robustft.deploy.source import CONFIG_DIR, Source, find

HOST, PORT = "127.0.0.1", 8000
NEAREST = 10_000
PACKAGES = ("starlette", "uvicorn")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0, or 1 with one message for a mistake of the user."""
    return entry.answer(lambda: serve(parse(arguments)))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog=entry.program("app"),
        description=entry.description(__doc__),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", metavar="RUN", help="folder of a run, or its model.safetensors")
    parser.add_argument("--host", default=HOST, help=f"where to listen (default: {HOST}, this machine alone)")
    parser.add_argument("--port", type=int, default=PORT, metavar="N", help=f"default: {PORT}; 0: any that is free")
    parser.add_argument(
        "--nearest",
        type=int,
        default=NEAREST,
        metavar="N",
        help=f"training images to look for the nearest among (default: {NEAREST:,}; 0: read none)",
    )
    parser.add_argument("--config-dir", metavar="DIR", help=CONFIG_DIR)
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps (default: the GPU, if there)")
    return parser.parse_args(arguments)


def serve(arguments: argparse.Namespace) -> int:
    """Answer until it is interrupted; the exit status.

    Raises:
        UserError: an argument that cannot be.
    """
    source = check(arguments)
    with closing(listening(arguments.host, arguments.port)) as place:
        homes.stand_in()
        from robustft.deploy.looking import Looker  # torch and open_clip take seconds to import
        from robustft.deploy.predict import device_of
        from robustft.deploy.server import is_loopback, server

        looker = Looker(source, device_of(arguments.device), arguments.nearest)
        if not is_loopback(arguments.host):
            print("everybody who can reach this machine can use it: there is no password", file=sys.stderr)
        print(f"{address(place)}  (Ctrl-C ends it)", flush=True)
        try:
            with suppress(KeyboardInterrupt):  # the way to end it
                server(looker, arguments.host).run(sockets=[place])
        finally:
            looker.stop()
    return 0


def check(arguments: argparse.Namespace) -> Source:
    """Refuse what can be seen to be wrong before anything is computed; the run's source.

    Raises:
        UserError: names the argument.
    """
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise UserError(f"robustft app needs {' and '.join(missing)}: {install('app')}")
    if not 0 <= arguments.port < 2**16:
        raise UserError(f"--port={arguments.port}: expected a number from 0 to 65535")
    if arguments.nearest < 0:
        raise UserError(f"--nearest={arguments.nearest}: expected a whole number, 0 or more")
    machine.refuse_device(arguments.device)
    source = find(arguments.run, arguments.config_dir)
    source.described  # noqa: B018 -- refused now, if it is no model of ours
    return source


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens there.

    Raises:
        UserError: it cannot be.
    """
    try:
        kind, *_, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(place[:2], family=socket.AddressFamily(kind))
    except (socket.gaierror, UnicodeError) as error:
        raise UserError(f"--host={host}: no address or name of this machine") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(f"--port={port}: taken by another program. Give another, or 0 for any") from error
        if error.errno == errno.EADDRNOTAVAIL:
            raise UserError(f"--host={host}: not an address of this machine") from error
        raise UserError(f"--host={host} --port={port}: cannot listen there ({reason(error)})") from error


def address(place: socket.socket) -> str:
    """Where a browser finds it."""
    host, port = place.getsockname()[:2]
    found = ipaddress.ip_address(host.partition("%")[0])
    if found.is_unspecified:
        host = socket.gethostname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


if __name__ == "__main__":
    sys.exit(main())
