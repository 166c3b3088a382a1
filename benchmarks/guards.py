"""What checkpoints and guards cost: steps with both against steps with neither, in turns, in one process.

    python benchmarks/guards.py
    python benchmarks/guards.py --shape 768x24576 --rounds 20 --steps 5 --every 1000

A step of the run with guards is `SAETrainer.one_step` with the callback `Guards` and with every look for NaN; the other run has these looks
replaced by nothing. Steps are measured in processor time. Checkpoints are written in full and timed on the clock on the wall, apart,
because a round has few steps: their cost is that of one checkpoint in every `--every` steps. Both runs have the same weights and batches, and take turns; the ratio is that of the medians, and the quartiles
of the rounds' own ratios are shown. On a shared machine single rounds scatter by more than what is measured here.
"""
import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from sae_workbench import SAETrainer, SAETrainerConfig, TensorSource, TopKTrainingSAE, TopKTrainingSAEConfig
from sae_workbench.training.checkpoint import save_checkpoint
from sae_workbench.training.guards import Guards
from sae_workbench.training.optim import clip_and_step


def nothing(*args): pass


def bare(cfg, sae, data, callbacks) -> SAETrainer:
    "A trainer that looks for nothing"
    trainer = SAETrainer(cfg, sae, data, callbacks=callbacks)
    trainer.feed.check = trainer.state.check_weights = nothing
    adam = trainer.state.optim.adam
    trainer.state.optim.step = lambda check: clip_and_step(adam)
    return trainer


def make(make_trainer, d_in, d_sae, batch, callbacks):
    torch.manual_seed(0)
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=d_in, d_sae=d_sae, k=32))
    data = TensorSource(torch.randn(batch*4, d_in), rows=batch)
    trainer = make_trainer(SAETrainerConfig(10**9, batch, lr=1e-5), sae, data, callbacks=callbacks)
    for _ in range(2):
        trainer.one_step()
    return trainer


def seconds(trainer, steps: int) -> float:
    begin = time.process_time()   # of this process only: other programs disturb it less than the clock on the wall
    for _ in range(steps):
        trainer.one_step()
    return (time.process_time() - begin)/steps


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--shape', default='768x24576')
    for name, default in dict(batch=2048, rounds=6, steps=2, every=1000).items():
        p.add_argument(f'--{name}', type=int, default=default)
    a = p.parse_args()
    shape = tuple(map(int, a.shape.split('x')))
    runs = dict(bare=make(bare, *shape, a.batch, []), guarded=make(SAETrainer, *shape, a.batch, [Guards()]))
    rounds = [{k: seconds(runs[k], a.steps) for k in (list(runs) if i % 2 else list(runs)[::-1])} for i in range(a.rounds)]
    step = {k: statistics.median(r[k] for r in rounds) for k in runs}
    quartiles = statistics.quantiles([r['guarded']/r['bare'] for r in rounds], n=4)
    with tempfile.TemporaryDirectory() as tmp:
        begin = time.perf_counter()
        save_checkpoint(Path(tmp)/'checkpoint', runs['guarded'])
        saving = time.perf_counter() - begin
    share = saving/a.every/step['bare']
    print(f"topk {a.shape}, batch {a.batch}, threads {torch.get_num_threads()}: {1e3*step['bare']:.0f} ms a step without, "
          f"{1e3*step['guarded']:.0f} ms with guards")
    print(f"guards: ratio {step['guarded']/step['bare']:.3f} (quartiles of rounds {quartiles[0]:.3f} to {quartiles[2]:.3f})")
    print(f"a checkpoint: {saving:.1f} s, {100*share:.2f} % of the time if there is one in {a.every:,} steps")
    print(f"together: {100*(step['guarded']/step['bare'] - 1 + share):.2f} %")


if __name__ == '__main__':
    main()
