"""What every test, and every process that a test starts, finds in its environment."""
import os
import signal
import threading

import pytest
from oldest import lacks

os.environ['IN_TEST'] = '1'
if threading.current_thread() is threading.main_thread():   # a shell that starts the suite with & has it ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
for name, value in dict(OMP_NUM_THREADS='1', HF_HUB_OFFLINE='1', TOKENIZERS_PARALLELISM='false', WANDB_MODE='offline',
                        PLOTLY_RENDERER='plotly_mimetype').items():
    os.environ.setdefault(name, value)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item):
    return (yield from skipped_if_too_old())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    return (yield from skipped_if_too_old())


def skipped_if_too_old():
    "Go on with a test, and skip it where it fails for what an old version cannot do"
    try:
        return (yield)
    except (Exception, pytest.fail.Exception) as e:
        if why := lacks(str(e)):
            pytest.skip(why)
        raise
