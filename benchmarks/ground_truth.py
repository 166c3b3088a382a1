"""How many of 512 known features in 128 dimensions TopK and standard SAEs find, and what the features' relations do to it.

    python benchmarks/ground_truth.py [--seeds 3] [--steps 400] [--kinds independent,zipf,correlated,hierarchical]

One thread. `recovered` is the share of features to which some latent has a cosine above 0.9, `MMCS` the mean of the largest
cosines, `F1` how well the matched latents fire on held-out rows, `L0` what the SAE uses there (the truth has about 5)."""
import argparse, time
import torch
from sae_workbench import SAETrainer, SAETrainerConfig, StandardTrainingSAE, StandardTrainingSAEConfig, SyntheticSource
from sae_workbench import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_workbench.activations.synthetic import grouped, trees, zipf
from sae_workbench.core.dictionaries import firing_scores, match, mmcs, recovered

N, D_IN, D_SAE, BATCH, HELD_OUT = 512, 128, 768, 512, 10**6

def forest():
    parents, p = trees(N, p_root=.021, p_child=.3, branching=3)
    return dict(parents=parents, p_active=p)

KINDS = {
    'independent': lambda: dict(p_active=.01),
    'zipf': lambda: dict(p_active=zipf(N, .27, .7)),
    'correlated': lambda: dict(p_active=.01, correlation=grouped(N, 4, .8)),
    'hierarchical': forest,
}
SAES = {
    'topk': lambda: TopKTrainingSAE(TopKTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=5)),
    'standard': lambda: StandardTrainingSAE(StandardTrainingSAEConfig(
        d_in=D_IN, d_sae=D_SAE, l1_coefficient=.8, l1_warm_up_steps=50)),
}

def train(kind, sae, seed, steps):
    source = SyntheticSource(N, D_IN, batch_size=BATCH, seed=seed, **KINDS[kind]())
    torch.manual_seed(seed)
    loop = SAETrainerConfig(steps*BATCH, BATCH, lr=1e-2, lr_decay_steps=steps//4, dead_feature_window=100)
    trainer, start = SAETrainer(loop, SAES[sae](), source), time.perf_counter()
    return trainer.fit().to_inference(), source, time.perf_counter() - start

@torch.no_grad()
def measure(sae, source):
    rows, codes = zip(*(source.batch(HELD_OUT + i) for i in range(20)))
    acts, code = sae.encode(torch.cat(rows)), torch.cat(codes)
    f1 = firing_scores(acts, code, match(sae.W_dec, source.features)[0])['f1'].nanmean().item()
    return dict(recovered=recovered(sae.W_dec, source.features), mmcs=mmcs(sae.W_dec, source.features), f1=f1,
                l0=(acts != 0).sum(1).float().mean().item())

def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--seeds', type=int, default=3)
    ap.add_argument('--steps', type=int, default=400)
    ap.add_argument('--kinds', default=','.join(KINDS))
    a = ap.parse_args()
    torch.set_num_threads(1)
    print(f"{'features':>14} {'SAE':>9} {'seed':>5} {'recovered':>10} {'MMCS':>6} {'F1':>6} {'L0':>6} {'seconds':>8}")
    for kind in a.kinds.split(','):
        for sae in SAES:
            for seed in range(a.seeds):
                trained, source, s = train(kind, sae, seed, a.steps)
                m = measure(trained, source)
                print(f"{kind:>14} {sae:>9} {seed:>5} {m['recovered']:>10.1%} {m['mmcs']:>6.3f} {m['f1']:>6.3f} "
                      f"{m['l0']:>6.1f} {s:>8.1f}", flush=True)

if __name__ == '__main__': main()
