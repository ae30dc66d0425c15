"""Code that runs as a user without rights: root, as whom tests often run, may read and write everything."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NOBODY = 54321  # a number that no user of /etc/passwd has


@contextmanager
def common_ground() -> Iterator[Path]:
    """Yield a folder that other users can enter, unlike those of pytest."""
    folder = Path(tempfile.mkdtemp(prefix="popatlas-test-"))
    folder.chmod(0o777)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def as_stranger(function: Callable[[], Any]) -> Any:
    """Call a function as a user who has no rights and is not in /etc/passwd; return what it returns, as JSON can hold it.

    The process is forked: modules that are imported here are there too, wherever their files are.
    """
    if os.geteuid() != 0:
        return function()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            answer = {"result": function()}
        except BaseException:
            answer = {"error": traceback.format_exc()}
        with os.fdopen(writing, "w") as pipe:
            json.dump(answer, pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        answer = json.load(pipe)
    os.waitpid(child, 0)
    assert "error" not in answer, answer["error"]
    return answer["result"]
