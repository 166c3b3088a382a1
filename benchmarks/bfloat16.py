"""Explained variance of small SAEs trained with float32 and with bfloat16 weights, here and in sae-lens.

    python benchmarks/bfloat16.py [--peer PYTHON] [--seeds 3] [--steps 1500] [--norms none,layer_norm,...]

48 synthetic features in 32 dimensions, 96 latents, learning rate 3e-4, activations in the dtype of the weights (sae-lens's
gated SAE takes no others). The same rows, options and initial
weights for both libraries; explained variance on 5,120 held-out rows. --peer names an interpreter that has sae-lens."""
import argparse, subprocess, sys, tempfile
from itertools import islice, product
from pathlib import Path
import torch

BATCH = 256
OPTIONS = {'standard': dict(l1_coefficient=.3, l1_warm_up_steps=100), 'gated': dict(l1_coefficient=.4, l1_warm_up_steps=100),
           'jumprelu': dict(l0_coefficient=.2, l0_warm_up_steps=100, jumprelu_bandwidth=.5), 'topk': dict(k=3)}
NAMES = dict(standard='Standard', gated='Gated', jumprelu='JumpReLU', topk='TopK')

def make(lib, arch, dtype, norm, weights):
    cls, config = (getattr(lib, f'{NAMES[arch]}TrainingSAE{end}') for end in ('', 'Config'))
    sae = cls(config(d_in=32, d_sae=96, dtype=dtype, normalize_activations=norm, **OPTIONS[arch]))
    with torch.no_grad():
        for name in ('W_enc', 'W_dec'): getattr(sae, name).copy_(weights[name])
    return sae

def train(lib, sae, rows, steps):
    "Train on rows with the library's own trainer"
    if lib.__name__ == 'sae_lens':
        from sae_lens.config import LoggingConfig, SAETrainerConfig
        from sae_lens.training.sae_trainer import SAETrainer
    else: from sae_workbench import LoggingConfig, SAETrainer, SAETrainerConfig
    cfg = SAETrainerConfig(total_training_samples=steps*BATCH, train_batch_size_samples=BATCH, lr=3e-4, lr_end=3e-5,
                           lr_decay_steps=steps//5, n_batches_for_norm_estimate=10, logger=LoggingConfig(log_to_wandb=False))
    return SAETrainer(cfg=cfg, sae=sae, data_provider=iter(rows.split(BATCH))).fit()

@torch.no_grad()
def explained(sae, x):
    error = x - sae(x).float()
    return 1 - (error.pow(2).sum()/(x - x.mean(0)).pow(2).sum()).item()

def child(lib, folder):
    "All runs of one library on the rows of a folder"
    lib = __import__(lib)
    torch.set_num_threads(1)
    task = torch.load(folder/'task.pt')
    out = {}
    for key in task['runs']:
        arch, dtype, norm, seed = key
        t = task['data'][seed]
        sae = make(lib, arch, dtype, norm, t['weights'])
        out[key] = explained(train(lib, sae, t['rows'].to(sae.dtype), task['steps']), t['test'])
    torch.save(out, folder/f'{lib.__name__}.pt')

def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--peer', help='a Python interpreter with sae-lens')
    ap.add_argument('--seeds', type=int, default=3)
    ap.add_argument('--steps', type=int, default=1500)
    ap.add_argument('--norms', default='none')
    ap.add_argument('--child', nargs=2, help=argparse.SUPPRESS)
    a = ap.parse_args()
    if a.child: return child(a.child[0], Path(a.child[1]))
    from sae_workbench import SyntheticSource
    folder, data = Path(tempfile.mkdtemp()), []
    for seed in range(a.seeds):
        source = SyntheticSource(seed=seed)
        W = torch.nn.functional.normalize(torch.randn(96, 32, generator=torch.Generator().manual_seed(seed)), dim=-1)/10
        data.append(dict(rows=torch.cat([*islice(source, a.steps + 10)]), weights=dict(W_dec=W, W_enc=W.T),
                         test=torch.cat([source.batch(10**6 + i)[0] for i in range(20)])))
    runs = list(product(NAMES, ('float32', 'bfloat16'), a.norms.split(','), range(a.seeds)))
    torch.save(dict(data=data, runs=runs, steps=a.steps), folder/'task.pt')
    libs = {'sae_workbench': sys.executable} | ({'sae_lens': a.peer} if a.peer else {})
    found = {}
    for lib, python in libs.items():
        done = subprocess.run([python, __file__, '--child', lib, str(folder)], capture_output=True, text=True)
        if done.returncode: sys.exit(done.stderr)
        found[lib] = torch.load(folder/f'{lib}.pt')
    print(f"{'normalisation':>26} {'SAE':>9} {'library':>14} {'float32':>8} {'bfloat16':>9}   difference, seed by seed")
    for norm in a.norms.split(','):
        for arch in NAMES:
            for lib in libs:
                ev = [[found[lib][arch, d, norm, s] for s in range(a.seeds)] for d in ('float32', 'bfloat16')]
                mean = [sum(v)/a.seeds for v in ev]
                gaps = ' '.join(f'{low - full:+.4f}' for full, low in zip(*ev))
                print(f'{norm:>26} {arch:>9} {lib:>14} {mean[0]:>8.4f} {mean[1]:>9.4f}   {gaps}')

if __name__ == '__main__': main()
