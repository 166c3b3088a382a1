"""Whether two states of the code train the same SAEs, to the bit.

    python benchmarks/same_bits.py                  # against the stored sums (same torch, same kind of processor)
    python benchmarks/same_bits.py --against REV    # against another revision, in a worktree of it
    python benchmarks/same_bits.py --store          # write the sums of this state

Every architecture is trained under every normalisation for 40 steps on rows whose scale and mean are not those of a unit
normal, with latents that are dead and revived, and with gradients that are clipped. Compared are the SHA-256 sums of the trained
weights, of what the trainer remembers, of the inference form's weights, and of its latents and outputs, in a pass with gradients and in
one without. Steps go once through the sparse way, where there is one, and once through the dense formula. Bits depend on the
processor's vector instructions and on torch; sums stored elsewhere are refused, and `--against` works everywhere.
"""
import argparse
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve()
SUMS = HERE.with_suffix('.json')
STEPS, ROWS, D_IN, D_SAE = 40, 64, 16, 64
NORMALISATIONS = 'none', 'expected_average_only_in', 'constant_norm_rescale', 'layer_norm'
VARIANTS = dict(   # `quiet` lowers the biases, so that few latents are active from the start
    topk=[dict(k=4), dict(k=4, rescale_acts_by_decoder_norm=True, apply_b_dec_to_input=True)],
    abstopk=[dict(k=4)],
    standard=[dict(l1_coefficient=.02), dict(l1_coefficient=.02, quiet=.5), dict(l1_coefficient=.02, lp_norm=.5, l1_warm_up_steps=10)],
    jumprelu=[dict(l0_coefficient=.1, jumprelu_init_threshold=.1), dict(l0_coefficient=.1, pre_act_loss_coefficient=1e-3, quiet=.5),
              dict(l0_coefficient=.1, jumprelu_sparsity_loss_mode='tanh', quiet=.5),
              dict(l0_coefficient=.1, l0_warm_up_steps=10, pre_act_loss_coefficient=1e-3, jumprelu_sparsity_loss_mode='tanh')],
    batchtopk=[dict(k=4), dict(k=2.5, apply_b_dec_to_input=True, topk_threshold_lr=.1)],
    gated=[dict(l1_coefficient=.02), dict(l1_coefficient=.02, quiet=.5)],
    matching_pursuit=[dict(max_iterations=4)],
    matryoshka_batchtopk=[dict(k=4, matryoshka_widths=[8, 24, 64]), dict(k=4, matryoshka_widths=[16, 64], use_matryoshka_aux_loss=True)],
)


def machine() -> str:
    "What the bits depend on besides the code"
    import torch
    return f'torch {torch.__version__.split("+")[0]}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} thread'


def digest(value) -> str:
    "The SHA-256 of tensors and plain data, in a fixed order"
    import torch
    h = hashlib.sha256()

    def add(x):
        if isinstance(x, torch.Tensor):
            x = x.detach().to_dense() if x.is_sparse else x.detach()
            h.update(f'{x.dtype}{tuple(x.shape)}'.encode() + x.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(x, dict):
            for k in sorted(x, key=str):
                h.update(str(k).encode())
                add(x[k])
        elif isinstance(x, (list, tuple)):
            for y in x:
                add(y)
        else:
            h.update(repr(x).encode())
    add(value)
    return h.hexdigest()[:16]


def run(architecture: str, normalisation: str, dense: bool, quiet: float = 0., **options) -> dict[str, str]:
    "Train one, and sum up what there is afterwards"
    import torch
    from sae_workbench import SAETrainer, SAETrainerConfig
    from sae_workbench.training.callbacks import Callback
    from sae_workbench.core.registry import SAE_TRAINING_CLASS_REGISTRY
    cls, config = SAE_TRAINING_CLASS_REGISTRY[architecture]
    if dense:   # a subclass may have changed any formula, so it takes the dense way
        parent = cls
        cls = type(cls.__name__, (parent,), dict(decode=lambda self, latents: parent.decode(self, latents)))
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(1)
    directions = torch.randn(D_SAE, D_IN, generator=g)
    codes = lambda n: torch.rand(n, D_SAE, generator=g) * (torch.rand(n, D_SAE, generator=g) < .05)
    batches = [3*codes(ROWS) @ directions + .5 for _ in range(STEPS + 8)]
    sae = cls(config(d_in=D_IN, d_sae=D_SAE, normalize_activations=normalisation, **options))
    with torch.no_grad():
        for bias in (p for name, p in sae.named_parameters() if name in ('b_enc', 'b_gate')):
            bias -= quiet
            bias[:6] -= 50   # these are dead from the start
    cfg = SAETrainerConfig(STEPS*ROWS, ROWS, lr=5e-3, lr_warm_up_steps=5, lr_decay_steps=10, dead_feature_window=5,
                           feature_sampling_window=7, n_batches_for_norm_estimate=8)
    dead = []

    class Count(Callback):
        def after_step(self, trainer): dead.append(int(trainer.dead_neurons.sum()))
    trainer = SAETrainer(cfg, sae, iter(batches), callbacks=[Count()])
    trainer.fit()
    inference = sae.to_inference()
    x = batches[0].clone().requires_grad_()
    latents = inference.encode(x)
    out = inference(x)
    out.square().sum().backward()
    with torch.no_grad():
        quick = inference.encode(batches[1]), inference(batches[1]), inference.decode(inference.encode(batches[1]))
    return dict(dead=str(max(dead)), trained=digest(dict(sae.state_dict())), statistics=digest([dead, trainer.statistics.state_dict()]), inference=digest(dict(inference.state_dict())),
                passes=digest([latents, out, x.grad, *quick]))


def everything() -> dict[str, dict[str, str]]:
    "The sums of all runs"
    import torch
    torch.set_num_threads(1)
    return {f'{architecture} {options} {normalisation} {"dense" if dense else "as is"}': run(architecture, normalisation, dense, **options)
            for architecture, variants in VARIANTS.items() for options in variants for normalisation in NORMALISATIONS for dense in (False, True)}


def of_revision(rev: str) -> dict:
    "The sums of another revision: this file, run on that revision's package"
    with tempfile.TemporaryDirectory() as folder:
        tree = pathlib.Path(folder)/'tree'
        subprocess.run(['git', 'worktree', 'add', '-q', '--detach', str(tree), rev], cwd=HERE.parents[1], check=True)
        try:
            done = subprocess.run([sys.executable, str(HERE), '--print'], env=dict(os.environ, PYTHONPATH=str(tree)), check=True, stdout=subprocess.PIPE)
            return json.loads(done.stdout)
        finally:
            subprocess.run(['git', 'worktree', 'remove', '--force', str(tree)], cwd=HERE.parents[1], check=True)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--against', metavar='REV', help='a revision of this repository')
    p.add_argument('--store', action='store_true', help=f'write {SUMS.name}')
    p.add_argument('--print', action='store_true', help=argparse.SUPPRESS)
    a = p.parse_args()
    import torch
    torch.set_num_threads(1)
    now = dict(machine=machine(), sums=everything())
    if a.print:
        return print(json.dumps(now))
    if a.store:
        return print(SUMS.write_text(json.dumps(now, indent=1) + '\n', encoding='utf-8') and f'{SUMS.name} written')
    then = of_revision(a.against) if a.against else json.loads(SUMS.read_text(encoding='utf-8'))
    if then['machine'] != now['machine']:
        sys.exit(f"the sums are of another machine ({then['machine']}, here {now['machine']}): use --against")
    other = [f'{run}: {", ".join(k for k in got if got[k] != then["sums"].get(run, {}).get(k))}' for run, got in now['sums'].items() if got != then['sums'].get(run)]
    print(*other, f"{len(now['sums']) - len(other)} of {len(now['sums'])} runs are equal to the bit ({now['machine']})", sep='\n')
    sys.exit(bool(other))


if __name__ == '__main__':
    main()
