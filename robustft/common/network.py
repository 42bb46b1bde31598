"""Whether a server answers: asked before something would wait for it for minutes."""

import ssl
from functools import cache
from http.client import HTTPException
from threading import Thread
from urllib.error import HTTPError, URLError
from urllib.parse import urlparse
from urllib.request import Request, build_opener, getproxies, proxy_bypass


@cache
def reachable(url: str, seconds: float = 2.0) -> bool:
    """Say whether a server answers at ``url``, asked once per process: see ``answers``."""
    return answers(url, seconds)


def answers(url: str, seconds: float = 2.0) -> bool:
    """Ask now whether anything answers at ``url``, through the user's proxies (``HTTPS_PROXY``, ``NO_PROXY`` …).

    Any answer will do, a refusal too. A SOCKS proxy is taken to reach it: only the proxy knows.

    Args:
        seconds: how long to wait, for the name's address, the connection and the answer together.
    """
    proxies, place = getproxies(), urlparse(url)
    proxy = proxies.get(place.scheme, proxies.get("all"))
    if proxy and not proxy_bypass(place.netloc) and (place.scheme not in proxies or proxy.startswith("socks")):
        return True
    answered: list[bool] = []
    # In a thread, since nothing limits how long the system looks for the address of a name.
    thread = Thread(target=lambda: answered.append(_ask(url, seconds)), daemon=True)
    thread.start()
    thread.join(seconds)
    return any(answered)


def _ask(url: str, seconds: float) -> bool:
    try:
        build_opener().open(Request(url, method="HEAD"), timeout=seconds).close()  # urlopen keeps the first proxies
    except HTTPError as error:
        return error.code not in (502, 503, 504)  # a proxy speaks of a server that it cannot reach
    except URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # it is there; certificates are for those who send something
    except (OSError, HTTPException, ValueError):
        return False
    return True
