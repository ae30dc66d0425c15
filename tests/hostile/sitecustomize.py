"""For Python processes that find this folder in PYTHONPATH: notes each use of a network, and hides the user from itself.

POPATLAS_TEST_SPY names the file of the notes; with POPATLAS_TEST_STRANGER /etc/passwd does not know the user.
"""

import os
import pwd
import sys
from pathlib import Path

INTERNET = (2, 10)  # AF_INET, AF_INET6
ASKS = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.getnameinfo", "socket.sendto")


def _spy(event: str, args: tuple) -> None:
    connects = event == "socket.connect" and int(args[0].family) in INTERNET
    opens = event == "socket.__new__" and int(args[1]) in INTERNET and sys.argv[1:2] == ["step"]
    if event in ASKS or connects or opens:  # Snakemake looks whether this machine has IPv6, steps do not
        with Path(os.environ["POPATLAS_TEST_SPY"]).open("a") as notes:
            notes.write(f"{' '.join(sys.argv[:4])}: {event} {args[1:]!r}\n")


def _unknown(number: int) -> None:
    raise KeyError(f"getpwuid(): uid not found: {number}")


if os.environ.get("POPATLAS_TEST_SPY"):
    sys.addaudithook(_spy)
if os.environ.get("POPATLAS_TEST_STRANGER"):
    pwd.getpwuid = _unknown
