"""Train the same SAE with SAELens and with this library, on the same activations in the same order, and compare.

    python benchmarks/sae_lens_side_by_side.py --peer /path/to/venv-with-sae-lens/bin/python

The activations of SmolLM2-135M after layer 10 are made once, by this library. Each library then trains in its own interpreter,
with its own SAETrainer, from the same initial weights, and saves the SAE. This library loads both folders and measures both SAEs
on held-out text. `--keep FOLDER` keeps the activations, so that a second run starts at the training.

The two runs agree to rounding for some twenty steps. Then a rounding difference decides for the first time which of two latents
is among the k largest, and from there on they are two samples of the same process, as two runs of one library on different
processors would be. So one pair of runs says little about a difference of a few thousandths; `--seeds 3` trains from three
initial weights in three orders and prints the mean and the standard error of the difference.

`--dtype float64` takes the rounding away, and with it the chance: it prints how far the losses of the two libraries are apart over
all steps of the run, and how far the weights at its end. (The activations are then scaled before training, because SAELens sums
the norms for its own scaling in float32.)"""
import argparse, importlib, json, os, subprocess, sys, tempfile, time
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file

HOOK = 'blocks.10.hook_resid_post'
ROWS = ('explained_variance', 'ce_loss_score', 'ce_loss_with_sae', 'l0', 'dead_latents', 'seconds')


def make_activations(folder, tokens):
    "Activations and held-out contexts"
    from sae_workbench import capture
    from sae_workbench.activations.example_data import load_smollm2, offline_text
    from sae_workbench.activations.tokens import TokenContexts
    model = load_smollm2()
    contexts = TokenContexts(offline_text('train'), model.tokenizer, context_size=128).take(-(-tokens//128))
    with torch.no_grad(): acts = torch.cat([capture(model, [HOOK], ids)[HOOK].flatten(0, 1) for ids in contexts.split(16)])[:tokens]
    save_file({'acts': acts}, folder/'acts.safetensors')
    save_file({'contexts': TokenContexts(offline_text('test'), model.tokenizer, context_size=128, epochs=1).take(32, wrap=False)}, folder/'held_out.safetensors')


def make_weights(folder, seed):
    "The initial weights of a seed, the same for both libraries"
    from sae_workbench import TopKTrainingSAE, TopKTrainingSAEConfig
    torch.manual_seed(seed)
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=576, d_sae=4608, k=32))
    save_file({k: t.contiguous() for k, t in sae.state_dict().items()}, folder/f'initial_{seed}.safetensors')


def names(library):
    "The same names from either library"
    lib = importlib.import_module(library)
    find = {n: lib for n in ('TopKTrainingSAE', 'TopKTrainingSAEConfig', 'LoggingConfig', 'SAETrainer', 'SAETrainerConfig')}
    if library == 'sae_lens':
        find |= {'SAETrainer': importlib.import_module('sae_lens.training.sae_trainer'), 'SAETrainerConfig': importlib.import_module('sae_lens.config')}
    return [getattr(module, name) for name, module in find.items()]


def record(trainer):
    "A list that will hold the loss and the number of dead latents of every step"
    name = 'step' if hasattr(trainer, 'step') else '_train_step'   # ours, SAELens'
    train_step, log = getattr(trainer, name), []
    def wrapped(*args, **kwargs):
        dead = int(trainer.dead_neurons.sum())
        out = train_step(*args, **kwargs)
        log.append((out.loss.item(), dead))
        return out
    setattr(trainer, name, wrapped)
    return log


def worker(library, folder, batch, lr, threads, seed, dtype):
    "Train with one library and save the SAE for inference"
    torch.set_num_threads(threads)
    SAEClass, SAEConfig, LoggingConfig, SAETrainer, SAETrainerConfig = names(library)
    acts = load_file(folder/'acts.safetensors')['acts']
    acts = acts[torch.randperm(len(acts), generator=torch.Generator().manual_seed(seed))].to(getattr(torch, dtype))
    steps, scaled = len(acts)//batch, dtype == 'float64'
    if scaled: acts *= 576**0.5 / acts.norm(dim=-1).mean()
    sae = SAEClass(SAEConfig(d_in=576, d_sae=4608, k=32, dtype=dtype, normalize_activations='none' if scaled else 'expected_average_only_in'))
    sae.load_state_dict({k: t.to(acts.dtype) for k, t in load_file(folder/f'initial_{seed}.safetensors').items()})
    cfg = SAETrainerConfig(total_training_samples=steps*batch, train_batch_size_samples=batch, lr=lr, lr_end=lr/10, lr_warm_up_steps=steps//20, lr_decay_steps=steps//5,
                           dead_feature_window=40, n_batches_for_norm_estimate=4, logger=LoggingConfig(log_to_wandb=False))
    def batches():
        while True: yield from acts[:steps*batch].split(batch)
    begin = time.perf_counter()
    trainer = SAETrainer(cfg=cfg, sae=sae, data_provider=batches())
    log = record(trainer)
    trainer.fit()
    seconds = time.perf_counter() - begin
    save_file({'steps': torch.tensor(log, dtype=torch.float64)}, folder/f'{library}_{seed}_log.safetensors')
    sae.save_inference_model(str(folder/f'{library}_{seed}'))
    print('RESULT', json.dumps(dict(seconds=seconds, version=importlib.import_module(library).__version__)))


def run_worker(python, library, folder, seed, a):
    "Train in another interpreter"
    cmd = [python, __file__, '--worker', library, '--seed', str(seed), '--keep', str(folder), '--batch', str(a.batch), '--lr', str(a.lr), '--threads', str(a.threads), '--dtype', a.dtype]
    env = os.environ | {'HF_HUB_OFFLINE': '1'}
    if library == 'sae_lens': env.pop('PYTHONPATH', None)
    done = subprocess.run(cmd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    if done.returncode: sys.exit(f'{library} failed:\n{done.stderr[-3000:]}')
    return json.loads(next(l for l in done.stdout.splitlines() if l.startswith('RESULT')).removeprefix('RESULT '))


def train_both(folder, seed, a):
    "Train with both; what each reports, by library"
    make_weights(folder, seed)
    python = {'sae_lens': a.peer, 'sae_workbench': sys.executable}
    results = {lib: run_worker(python[lib], lib, folder, seed, a) for lib in (python if seed % 2 == 0 else reversed(python))}
    return {lib: results[lib] for lib in python}


def compare_exactly(folder, seed, a):
    "Train with both in float64, and print how far apart they are"
    libs = train_both(folder, seed, a)
    logs = [load_file(folder/f'{lib}_{seed}_log.safetensors')['steps'] for lib in libs]
    weights = [load_file(folder/f'{lib}_{seed}'/'sae_weights.safetensors') for lib in libs]
    gap = ((logs[0][:, 0] - logs[1][:, 0]).abs()/logs[0][:, 0]).max()
    apart = max((weights[0][k] - weights[1][k]).abs().max()/weights[0][k].abs().max() for k in weights[0])
    print(f'seed {seed}, {len(logs[0])} steps, {logs[0][-1, 0]:.4f} the last loss, up to {int(logs[0][:, 1].max())} dead latents '
          f'(the same in both at every step: {torch.equal(logs[0][:, 1], logs[1][:, 1])}). Largest relative difference of a loss {gap:.0e}, of a weight {apart:.0e}')


def compare(model, folder, seed, a):
    "Train with both, print both, and return what was measured"
    from sae_workbench import SAE, evaluate_sae
    contexts, python = load_file(folder/'held_out.safetensors')['contexts'], train_both(folder, seed, a)
    found = {}
    for lib, result in python.items():
        found[lib] = evaluate_sae(SAE.load_from_disk(folder/f'{lib}_{seed}'), model, contexts, HOOK) | result
    print(f"\nseed {seed:<17}" + ''.join(f"{lib + ' ' + found[lib]['version']:>24}" for lib in python))
    for k in ROWS: print(f'{k:22}' + ''.join(f'{found[lib][k]:24.4f}' for lib in python), flush=True)
    return found


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--peer', help='the Python of an environment that has sae-lens')
    p.add_argument('--tokens', type=int, default=200_000)
    p.add_argument('--batch', type=int, default=512)
    p.add_argument('--lr', type=float, default=3e-3)
    p.add_argument('--seeds', type=int, default=1, help='how many pairs of runs')
    p.add_argument('--dtype', choices=['float32', 'float64'], default='float32', help='float64 shows that the steps are the same to the end')
    p.add_argument('--threads', type=int, default=os.cpu_count())
    p.add_argument('--keep', type=Path, help='folder for activations and SAEs; a temporary one if not given')
    p.add_argument('--worker', help=argparse.SUPPRESS)
    p.add_argument('--seed', type=int, help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.worker: return worker(a.worker, a.keep, a.batch, a.lr, a.threads, a.seed, a.dtype)
    if not a.peer: p.error('--peer is needed')
    from sae_workbench.activations.example_data import load_smollm2
    with tempfile.TemporaryDirectory() as tmp:
        folder = (a.keep or Path(tmp)).absolute(); folder.mkdir(parents=True, exist_ok=True)
        if not (folder/'held_out.safetensors').exists():
            begin = time.perf_counter(); make_activations(folder, a.tokens)
            print(f'{a.tokens:,} activations: {time.perf_counter() - begin:.0f} s', flush=True)
        if a.dtype == 'float64':
            for seed in range(a.seeds): compare_exactly(folder, seed, a)
            return 0
        model = load_smollm2()
        pairs = [compare(model, folder, seed, a) for seed in range(a.seeds)]
    gaps = torch.tensor([[pair['sae_workbench'][k] - pair['sae_lens'][k] for k in ('explained_variance', 'ce_loss_score')] for pair in pairs])
    error = gaps.std(0)/len(gaps)**0.5 if len(gaps) > 1 else gaps.new_full((2,), float('nan'))
    print('\nsae_workbench less sae_lens: ' + ', '.join(f'{name} {gap:+.4f} (standard error {e:.4f})' for name, gap, e in zip(('explained variance', 'CE loss recovered'), gaps.mean(0), error)))
    return 0


if __name__ == '__main__': sys.exit(main())
