"""What the training monitor costs: the CPU time of a step with it, as a ratio to that without it.

    python benchmarks/monitor.py
    python benchmarks/monitor.py --shape 256x2048 --batch 512 --steps 100 --memory

Two trainers with the same weights take turns in one process, some steps each; the ratio is the median over the rounds. The monitored one has
its widget, which redraws in its own thread; there is no browser, so what the browser draws is not in it. Both log every tenth step, as by
default. `--memory` draws an hour's worth of redraws from a log of 100,000 lines, fast-forwarded, and says how much memory that took.
Ratios hold on a shared machine; milliseconds do not.
"""
import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch

from sae_workbench import LogMonitor, SAETrainer, SAETrainerConfig, TopKTrainingSAE, TopKTrainingSAEConfig, TrainingMonitor


def trainer(d_in, d_sae, batch, k=32):
    torch.manual_seed(0)
    x = torch.randn(batch, d_in)
    return SAETrainer(SAETrainerConfig(10**9, batch, lr=1e-5), TopKTrainingSAE(TopKTrainingSAEConfig(d_in=d_in, d_sae=d_sae, k=k)), iter(lambda: x, None))


def cost(a):
    "Ratios of the time with the monitor to that without"
    shape = [int(n) for n in a.shape.split('x')]
    plain, watched = trainer(*shape, a.batch), trainer(*shape, a.batch)
    monitor = TrainingMonitor(watched)
    runs = dict(plain=plain.steps(), watched=watched.steps())

    def timed(name):
        start = time.process_time()   # of all threads, the redrawing one too; on a shared machine the clock says little
        for _ in range(a.steps):
            next(runs[name])
        return 1e3*(time.process_time() - start)/a.steps

    for name in runs:
        timed(name)
    monitor.widget()
    time.sleep(5)   # the figures are made
    rounds = []
    for i in range(a.rounds):
        order = ('plain', 'watched') if i % 2 else ('watched', 'plain')
        t = {}
        for name in order:
            monitor.view.redrawing.every = 1. if name == 'watched' else 10**6   # no redraws in the other's turn
            if name == 'watched':
                monitor.view.redrawing.begin()
            t[name] = timed(name)
        rounds.append(t)
    ratio = [r['watched']/r['plain'] for r in rounds]
    ms = {n: statistics.median(r[n] for r in rounds) for n in runs}
    r = monitor.view.redrawing
    print(f"{a.shape}, batch {a.batch}: {ms['plain']:.1f} ms of CPU a step, {ms['watched']:.1f} with the monitor; "
          f"ratio {statistics.median(ratio):.3f} ({min(ratio):.3f} to {max(ratio):.3f}); {r.calls} redraws")


def memory(lines=100_000, redraws=3600):
    "Grow a log while its monitor redraws"
    import psutil
    me = psutil.Process()
    with tempfile.TemporaryDirectory() as folder, open(Path(folder)/'log.jsonl', 'w', buffering=1 << 16, encoding='utf-8') as log:
        names = [f'losses/{n}' for n in ('overall_loss', 'mse_loss', 'l1_loss')] + ['metrics/l0', 'metrics/explained_variance', 'sparsity/dead_features']

        def write(a, b):
            for s in range(a, b):
                values = {n: 1/(1 + s) + i for i, n in enumerate(names)}
                log.write(json.dumps({'step': 10*s, 'seconds': s/10, 'density': [s % 7]*28, 'details/n_training_samples': 40_960*(s + 1)} | values) + '\n')
            log.flush()
        monitor, seen, per = LogMonitor(folder), [], lines//redraws + 1
        monitor.widget()
        monitor.redrawing.every = 10**6
        for i in range(redraws):
            write(i*per, (i + 1)*per)
            monitor.redrawing.draw()
            if i in (redraws//10, redraws//2, redraws - 1):
                seen.append(me.memory_info().rss/2**20)
        start = time.thread_time()
        monitor.redrawing.draw()
        took = time.thread_time() - start
        monitor.close()
    print(f"{redraws} redraws, {monitor.logs[0].history.lines:,} lines: {seen[0]:.0f} MiB after a tenth, {seen[1]:.0f} after half, {seen[2]:.0f} at the end; "
          f"a redraw takes {1e3*took:.0f} ms")


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--shape', default='768x24576')
    parser.add_argument('--batch', type=int, default=1024)
    parser.add_argument('--steps', type=int, default=20)
    parser.add_argument('--rounds', type=int, default=6)
    parser.add_argument('--memory', action='store_true')
    a = parser.parse_args()
    torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS', 1)))
    memory() if a.memory else cost(a)
