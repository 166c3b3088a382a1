"""Run one notebook as `nbdev_test` does, in a process of its own that starts with the heavy imports done.

A server process imports them once (`nbpreload`) and forks a child for each notebook. pytest's own process is not
forked: it may have threads.
"""
import contextlib
import io
import multiprocessing
import os
import re
import tempfile
from functools import lru_cache
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


@lru_cache(maxsize=None)
def server():
    "The multiprocessing context of the server; before Python 3.12 the server finds modules by PYTHONPATH only"
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['nbpreload'])
    os.environ['PYTHONPATH'] = os.pathsep.join(filter(None, [str(ROOT), str(HERE), os.environ.get('PYTHONPATH')]))
    return context


def in_child(notebook: Path, send, scratch: str) -> None:
    "Run the notebook and send what went wrong, or an empty text"
    import torch
    from nbdev.test import test_nb
    os.environ['TMPDIR'] = tempfile.tempdir = scratch
    torch.set_num_threads(1)
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        good, _ = test_nb(notebook, skip_flags=['notest'], basepath=ROOT)
    send.send('' if good else readable(errors.getvalue()))


def readable(traceback: str) -> str:
    "A traceback without the frames of the machinery that ran the cell"
    frame = r'  File "[^"]*site-packages/(?:nbdev|execnb|IPython)/[^\n]*\n(?:    [^\n]*\n)*'
    return re.sub(frame, '', traceback).strip()


def run(notebook: Path, timeout: float = 900) -> str:
    "What went wrong in a notebook; empty if nothing did. Its temporary files go with it"
    context = server()
    receive, send = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        process = context.Process(target=in_child, args=(notebook, send, scratch))
        process.start()
        send.close()
        try:
            return receive.recv() if receive.poll(timeout) else f'no result after {timeout:.0f} s'
        except EOFError:
            process.join(10)
            return f'the process that ran it ended with exit code {process.exitcode}'
        finally:
            process.join(10)
            if process.is_alive():
                process.kill()
                process.join()
