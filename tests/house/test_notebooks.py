"""Every notebook is a test item of its own."""
import json

import nbrun
import pytest
from sidebar import ROOT, module_of, on_disk

# Tutorials and guides take longest: first, so that two workers end together.
NOTEBOOKS = sorted(on_disk(), key=lambda name: module_of(ROOT/name) is not None)


@pytest.mark.parametrize('name', NOTEBOOKS)
def test_notebook(name):
    problem = nbrun.run(ROOT/name)
    if problem:
        pytest.fail(f'{name}\n{problem}', pytrace=False)


def write_notebook(path, *cells):
    cells = [dict(cell_type='code', execution_count=None, id=str(i), metadata={}, outputs=[], source=[c]) for i, c in enumerate(cells)]
    path.write_text(json.dumps(dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)), encoding='utf-8')
    return path


def test_a_failing_cell_is_reported(tmp_path):
    problem = nbrun.run(write_notebook(tmp_path/'bad.ipynb', 'x = 1', 'assert x == 2, "x is not two"'))
    assert 'AssertionError: x is not two' in problem and 'site-packages' not in problem


def test_a_dying_process_is_reported(tmp_path):
    problem = nbrun.run(write_notebook(tmp_path/'dies.ipynb', 'import os', 'os._exit(7)'))
    assert problem == 'the process that ran it ended with exit code 7'
