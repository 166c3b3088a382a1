"""How good the baselines of `run_evals` become with the rows that they are fitted on, beside a trained SAE on SmolLM2.

    sae-workbench demo                      # once: trains the SAE in demo_sae
    python benchmarks/baselines.py demo_sae
"""
import sys, time
from sae_workbench import SAE, TokenContexts, get_eval_everything_config, run_evals
from sae_workbench.activations.example_data import load_smollm2, offline_text

ROWS = 1024, 4096, 8192, 16384

def main(folder: str):
    sae, model = SAE.load_from_disk(folder), load_smollm2()
    contexts = TokenContexts(offline_text('test'), model.tokenizer, 128)
    def scores(m): return f"{m['reconstruction_quality']['explained_variance']:8.3f} {m['model_performance_preservation']['ce_loss_score']:12.3f}"
    print(f"{'':18} {'rows':>6} {'EV':>8} {'CE recovered':>12} {'seconds':>8}")
    for rows in (None, *ROWS):
        options = dict(baselines=False) if rows is None else dict(baseline_rows=rows)
        start = time.time()
        metrics, _ = run_evals(sae, contexts, model, None, get_eval_everything_config(8, 2, 2, **options))
        took = f'{time.time() - start:8.0f}'
        if rows is None: print(f"{'SAE':18} {'':6} {scores(metrics)} {took}")
        for name, m in metrics.baselines.items(): print(f'{name:18} {rows:6} {scores(m)} {took}', flush=True)

if __name__ == '__main__': main(*sys.argv[1:])
