"""`from sae_workbench import SAE` costs little more than `import torch`, and reaches for nothing else."""
import json
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ['transformer_lens', 'transformers', 'datasets', 'wandb', 'plotly', 'ipywidgets', 'anywidget', 'huggingface_hub', 'pandas']
MOST = 1.5   # times the cost of torch alone

SCRIPT = '''
import json, resource, sys
sockets = []
sys.addaudithook(lambda event, args: sockets.append(event) if event.startswith('socket.') else None)
def spent(): r = resource.getrusage(resource.RUSAGE_SELF); return r.ru_utime + r.ru_stime
start = spent()
{statement}
print(json.dumps(dict(seconds=spent() - start, modules=sorted(sys.modules), sockets=sockets)))
'''


def measure(statement: str) -> dict:
    "CPU seconds, modules and socket events of an import in a fresh interpreter"
    done = subprocess.run([sys.executable, '-c', SCRIPT.format(statement=statement)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_nothing_heavy_and_no_network():
    seen = measure('from sae_workbench import SAE')
    assert not set(HEAVY) & set(seen['modules'])
    assert not seen['sockets']


def test_costs_little_more_than_torch():
    ours, torch = [], []
    for _ in range(7):   # in turns, so that both meet the same noise; it ends when three or more agree
        torch.append(measure('import torch')['seconds'])
        ours.append(measure('from sae_workbench import SAE')['seconds'])
        ratio = statistics.median(ours) / statistics.median(torch)
        if len(ours) >= 3 and ratio <= MOST:
            break
    assert ratio <= MOST, f'{ratio:.2f} times import torch: {ours} against {torch}'


def test_the_measure_sees_what_it_looks_for():
    seen = measure('import socket; socket.socket().close(); import plotly')
    assert seen['sockets'] and 'plotly' in seen['modules']
