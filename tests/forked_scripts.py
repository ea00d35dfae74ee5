"""Scripts under `lorakit run` that are forked: the Python that each runs in has imported its libraries already.

A forked `lorakit run` imports this. It then does all that it does but to begin Python anew; of what that Python would
do, `sitecustomize` first, this does the same. TRL is the script's own to import, as its trainers are attended then.
"""

from __future__ import annotations

import atexit
import importlib
import os
import runpy
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

from lorakit.plugins import default_plugins, vocabulary
from lorakit.running import command


class ForkedPython:
    """What `lorakit run` asks of a `subprocess.Popen`."""

    def __init__(self, words: Sequence[str], env: Mapping[str, str]) -> None:
        assert words[0] == sys.executable and words[1].endswith(".py")
        sys.stdout.flush()
        sys.stderr.flush()
        self._pid = os.fork()
        if self._pid == 0:
            _python(words[1:], env)

    def send_signal(self, number: int) -> None:
        os.kill(self._pid, number)

    def wait(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])


def _python(words: Sequence[str], env: Mapping[str, str]) -> NoReturn:
    """Run a script to its end, as the interpreter does that has just begun."""
    # what the process before it would do at its end, such as to remove the run's folder
    atexit._clear()
    os.environ.clear()
    os.environ.update(env)
    for name in [one for one in sys.modules if one.partition(".")[0] in ("trl", "sitecustomize")]:
        del sys.modules[name]
    sys.path[:0] = env["PYTHONPATH"].split(os.pathsep)
    importlib.import_module("sitecustomize")
    sys.argv = list(words)
    sys.path.insert(0, str(Path(words[0]).parent.resolve()))
    code = 0
    try:
        runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException as error:
        sys.last_type, sys.last_value, sys.last_traceback = type(error), error, error.__traceback__
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


# the environment says which there are
default_plugins.cache_clear()
vocabulary.cache_clear()
vars(command)["subprocess"] = SimpleNamespace(Popen=ForkedPython)
