"""What a finetune on the model's output gains on SmolLM2, beside as many further steps on rows.

    python benchmarks/finetune.py [--tokens 100000] [--share .05] [--lr 1e-4] [--contexts 1] [--keep FOLDER]

Trains the SAE of recipes/smollm2_topk.yaml on more tokens, then copies of it for the share of them again: on rows (the control),
on kl+mse, on kl. CE gap: cross-entropy with the SAE less that of the model alone, on held-out text. FOLDER keeps the first SAE."""
import argparse, copy, time
from pathlib import Path
import torch
from sae_workbench import LanguageModelSAERunnerConfig, LanguageModelSAETrainingRunner, LoggingConfig, SAETrainer, SAETrainerConfig
from sae_workbench import TokenContexts, TrainingSAE, finetune_on_model
from sae_workbench.activations.example_data import load_smollm2, offline_text
from sae_workbench.core.metrics import ReconstructionMetrics
from sae_workbench.training.evaluate import LossMetrics, positions_that_count

HERE, SPECIAL = Path(__file__).parent, True   # special tokens are left out everywhere

def trained(model, train, tokens, keep):
    "The SAE of the recipe, on more tokens; from a folder if it is there"
    if keep and (Path(keep)/'cfg.json').is_file(): return TrainingSAE.load_from_disk(keep)
    cfg = LanguageModelSAERunnerConfig.from_yaml((HERE.parent/'recipes'/'smollm2_topk.yaml').read_text(encoding='utf-8'))
    options = cfg.to_dict() | dict(training_tokens=tokens, lr_decay_steps=tokens//cfg.train_batch_size_tokens//5, exclude_special_tokens=SPECIAL)
    runner = LanguageModelSAETrainingRunner(LanguageModelSAERunnerConfig.from_dict(options), train, model)
    sae = runner.run()
    if keep: sae.save_model(keep)
    return sae

def on_rows(sae, model, contexts, tokens, lr, batch):
    "More steps on rows, each on as many tokens as a step of the finetune"
    from sae_workbench.activations.sources import LanguageModelSource
    source = LanguageModelSource(model, sae.cfg.metadata.hook_name, contexts, batch, exclude_special_tokens=SPECIAL)
    size = batch*(contexts.context_size - 1)
    loop = SAETrainerConfig(tokens, size, lr=lr, lr_decay_steps=tokens//size//2, logger=LoggingConfig(wandb_log_frequency=10**9))
    return SAETrainer(loop, sae, source).fit()

@torch.no_grad()
def measure(saes, model, held_out):
    "CE gap, divergence and explained variance of each, from the same passes"
    losses, hook = LossMetrics(kl=True), next(iter(saes.values())).cfg.metadata.hook_name
    keep_of, quality = positions_that_count(next(iter(saes.values())), model, held_out, SPECIAL), {n: ReconstructionMetrics() for n in saes}
    for tokens in held_out.split(8):
        keep = keep_of(tokens)
        x, _ = losses.update(model, hook, tokens, keep, saes)
        for n, s in saes.items(): quality[n].update(x[keep], s(x[keep]))
    for n in saes:
        m = losses.compute(n)
        yield n, m['ce_loss_with_sae'] - m['ce_loss_without_sae'], m['kl_div_with_sae'], quality[n].compute()['explained_variance']

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--tokens', type=int, default=100_000)
    p.add_argument('--share', type=float, default=.05)
    p.add_argument('--lr', type=float, default=1e-4)
    p.add_argument('--contexts', type=int, default=1, help='in a step')
    p.add_argument('--held-out', type=int, default=24, help='contexts')
    p.add_argument('--losses', default='kl+mse,kl')
    p.add_argument('--keep', default=None)
    o = p.parse_args()
    model, start = load_smollm2(), time.time()
    def text(split): return TokenContexts(offline_text(split), model.tokenizer, 128)
    sae, saes, n = trained(model, offline_text(), o.tokens, o.keep), {}, round(o.share*o.tokens)
    saes['before'] = sae
    print(f"{'':10} {'seconds':>8}\n{'before':10} {time.time() - start:8.0f}", flush=True)
    ways = {'rows': lambda s, c: on_rows(s, model, c, n, o.lr, o.contexts)} | {kind: lambda s, c, kind=kind: finetune_on_model(
        s, model, c, loss=kind, training_tokens=n, lr=o.lr, batch_size_prompts=o.contexts, lr_decay_steps=n//128//o.contexts//2,
        exclude_special_tokens=SPECIAL) for kind in o.losses.split(',')}
    for name, way in ways.items():
        start, contexts = time.time(), text('train')
        contexts.take(900)   # further on in the text
        saes[name] = way(copy.deepcopy(sae), contexts)
        print(f'{name:10} {time.time() - start:8.0f}', flush=True)
    print(f"{'':10} {'CE gap':>8} {'closed':>8} {'KL':>8} {'EV':>8}")
    first = None
    for name, gap, kl, ev in measure(saes, model, text('test').take(o.held_out)):
        first = gap if first is None else first
        print(f'{name:10} {gap:8.4f} {1 - gap/first:8.1%} {kl:8.4f} {ev:8.4f}')

if __name__ == '__main__': main()
