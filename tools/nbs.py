"""Run notebooks and keep their outputs in the files, so that the site and GitHub show figures and results.

Each notebook runs in a process of its own, from the same random state. Progress bars, warnings and long texts are not kept.

    python tools/nbs.py                          every notebook, in the sidebar's order
    python tools/nbs.py nbs/saes/topk.ipynb ...  only these
"""
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sidebar import ROOT, listed

LONGEST = 4000   # characters of text that an output may have
PLOTLY, WIDGET = 'application/vnd.plotly.v1+json', 'application/vnd.jupyter.widget-view+json'
ENVIRONMENT = dict(IN_TEST='1', PLOTLY_RENDERER='plotly_mimetype', PYTHONHASHSEED='0')
DEFAULTS = dict(HF_HUB_OFFLINE='1', OMP_NUM_THREADS='1')
SCRATCH = re.compile(re.escape(tempfile.gettempdir()) + r'(/tmp\w+)?')   # another one in every run


def worth_keeping(output: dict) -> bool:
    "Whether an output belongs in the file"
    if output['output_type'] == 'stream':
        return output['name'] == 'stdout' and '\r' not in ''.join(output['text']) and len(''.join(output['text'])) <= LONGEST
    data = output.get('data', {})
    return WIDGET not in data and (PLOTLY in data or len(''.join(data.get('text/plain', ''))) <= LONGEST)


def tidy(cell: dict) -> None:
    "Drop the outputs that are not kept; a figure needs no text beside it, and temporary folders need no name"
    if cell['cell_type'] != 'code':
        return
    cell['outputs'] = [out for out in cell.get('outputs', []) if worth_keeping(out)]
    for out in cell['outputs']:
        if PLOTLY in out.get('data', {}):
            out['data'] = {PLOTLY: out['data'][PLOTLY]}
        for texts, key in ((out, 'text'), (out.get('data', {}), 'text/plain')):
            if key in texts:
                texts[key] = SCRATCH.sub('…', ''.join(texts[key])).splitlines(keepends=True)


def skip(cell: dict) -> bool:
    "Cells that are not run; they keep the outputs they have"
    return cell['cell_type'] != 'code' or 'eval: false' in cell['source'] or 'nbdev_export(' in cell['source']


def run(path: Path) -> None:
    "Run one notebook in this process and write it back, cleaned"
    import torch
    from execnb.nbio import read_nb, write_nb
    from execnb.shell import CaptureShell
    from nbdev.clean import clean_nb
    torch.manual_seed(0)
    sys.path.insert(0, str(ROOT))
    notebook, shell = read_nb(path), CaptureShell(path)
    os.chdir(path.parent)
    shell.run_all(notebook, exc_stop=True, preproc=skip)
    for cell in notebook.cells:
        tidy(cell)
    clean_nb(notebook)
    write_nb(notebook, path)


def main() -> int:
    if len(sys.argv) == 3 and sys.argv[1] == '--here':
        run(Path(sys.argv[2]))
        return 0
    failed = 0
    for name in sys.argv[1:] or listed():
        start = time.time()
        path = (Path.cwd() if len(sys.argv) > 1 else ROOT)/name
        with tempfile.TemporaryDirectory() as scratch:
            env = DEFAULTS | os.environ | ENVIRONMENT | dict(TMPDIR=scratch)
            done = subprocess.run([sys.executable, __file__, '--here', str(path)], env=env)
        failed += done.returncode != 0
        print(f"{name}: {time.time() - start:.1f}s{' FAILED' if done.returncode else ''}", flush=True)
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
