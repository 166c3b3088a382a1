"""How long a training step takes, beside SAELens in the same run.

    python benchmarks/steps.py --peer PEER/bin/python
    python benchmarks/steps.py --peer PEER/bin/python --archs topk --shapes 768x24576 --rounds 7

PEER is a virtual environment of its own with `pip install sae-lens`. Each library runs in its own interpreter, from the same
weights and on the same batches; the steps are interleaved, and the ratio is the median over the rounds. A step is what
`SAETrainer.step` does: forward, losses, backward, clipping, Adam, statistics. ReLU kinds are put into the state of mid-training,
where `--l0` latents are active in a row. Ratios hold on a shared machine; milliseconds do not.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import time

STEMS = dict(topk='TopK', standard='Standard', gated='Gated', jumprelu='JumpReLU')


def build(library, arch, d_in, d_sae, batch, k, l0):
    "A trainer in a mid-training state, and a batch"
    import importlib
    import torch
    lib, stem = importlib.import_module(library), STEMS[arch]
    trainer_config = getattr(importlib.import_module('sae_lens.config' if library == 'sae_lens' else library), 'SAETrainerConfig')
    sae = getattr(lib, f'{stem}TrainingSAE')(getattr(lib, f'{stem}TrainingSAEConfig')(d_in=d_in, d_sae=d_sae, **dict(k=k) if arch == 'topk' else {}))
    g = torch.Generator().manual_seed(0)
    W = torch.nn.functional.normalize(torch.randn(d_sae, d_in, generator=g), dim=-1) * 0.1
    x = torch.randn(batch, d_in, generator=g)
    with torch.no_grad():
        sae.W_dec.copy_(W)
        sae.W_enc.copy_(W.T)
        if l0 and arch != 'topk':
            pre = x[:256] @ W.T
            t = pre.flatten().kthvalue(pre.numel() - l0 * 256).values
            {'standard': lambda: sae.b_enc.fill_(-t), 'gated': lambda: (sae.b_gate.fill_(-t), sae.b_mag.fill_(-t / 2)), 'jumprelu': lambda: sae.threshold.fill_(t)}[arch]()
    trainer = lib.SAETrainer(cfg=trainer_config(total_training_samples=10**9, train_batch_size_samples=batch, lr=1e-7, lr_end=1e-7), sae=sae, data_provider=iter([x]))
    return trainer, x


def worker(library, arch, *numbers):
    "Make steps on request; tell how long they took and what the loss was"
    import torch
    torch.set_num_threads(int(os.environ['OMP_NUM_THREADS']))
    out = os.fdopen(os.dup(1), 'w', buffering=1, encoding='utf-8')
    os.dup2(2, 1)   # what the libraries print goes elsewhere
    trainer, x = build(library, arch, *map(int, numbers))
    for line in sys.stdin:
        start = time.perf_counter()
        for _ in range(int(line)):
            loss = trainer.step(x).loss.item()
            trainer.n_training_steps += 1
        print(json.dumps([1e3 * (time.perf_counter() - start) / int(line), loss]), file=out)


def compare(pythons, arch, shape, a):
    "Median milliseconds of each library, and the median of the ratios"
    env = dict(os.environ, OMP_NUM_THREADS=str(a.threads))
    numbers = [*shape, a.batch, a.k, a.l0]
    procs = {lib: subprocess.Popen([py, __file__, 'worker', lib, arch, *map(str, numbers)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=None if a.verbose else subprocess.DEVNULL, text=True, env=env) for lib, py in pythons.items()}
    def ask(lib, n):
        print(n, file=procs[lib].stdin, flush=True)
        return json.loads(procs[lib].stdout.readline() or sys.exit(f'{lib}: the process ended; --verbose shows why'))
    for lib in procs: ask(lib, 2)
    rounds = [{lib: ask(lib, a.steps) for lib in (list(procs) if i % 2 else list(procs)[::-1])} for i in range(a.rounds)]
    for p in procs.values(): p.stdin.close(); p.wait()
    ms = {lib: statistics.median(r[lib][0] for r in rounds) for lib in procs}
    line = f'{arch:9} {shape[0]:4} x {shape[1]:6}  ' + '  '.join(f'{lib} {t:7.0f} ms' for lib, t in ms.items())
    if len(procs) == 2:
        ratios = sorted(r['sae_lens'][0] / r['sae_workbench'][0] for r in rounds)
        gap = max(abs(r['sae_lens'][1] - r['sae_workbench'][1]) / abs(r['sae_lens'][1]) for r in rounds)
        line += f'  ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})  loss differs by {gap:.0e}'
    print(line, flush=True)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--peer', help='a python that has sae-lens; without it only this library is timed')
    p.add_argument('--archs', default=','.join(STEMS))
    p.add_argument('--shapes', default='576x4608,768x24576')
    for name, default in dict(batch=2048, k=32, l0=64, rounds=5, steps=2, threads=2).items(): p.add_argument(f'--{name}', type=int, default=default)
    p.add_argument('--verbose', action='store_true', help='show what the libraries print')
    a = p.parse_args()
    pythons = dict(sae_workbench=sys.executable) | (dict(sae_lens=a.peer) if a.peer else {})
    for shape in a.shapes.split(','):
        for arch in a.archs.split(','): compare(pythons, arch, tuple(map(int, shape.split('x'))), a)


if __name__ == '__main__':
    worker(*sys.argv[2:]) if sys.argv[1:2] == ['worker'] else main()
