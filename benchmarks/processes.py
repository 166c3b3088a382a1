"""How much sooner several processes make a step than one: the same trainer alone and under torchrun, in turns, each time in fresh processes.

    python benchmarks/processes.py
    python benchmarks/processes.py --processes 2 --shape 768x24576 --batch 4096 --rounds 5

Every process computes with one thread, so the processes need as many free cores. They exchange gradients through gloo, by way of this
machine's memory; between GPUs it would be NCCL, which has not been measured. A round is the median of `--steps` steps on the clock on the wall.
"""
import argparse
import os
import statistics
import subprocess
import sys
import time

import torch

from sae_workbench import SAETrainer, SAETrainerConfig, TensorSource, TopKTrainingSAE, TopKTrainingSAEConfig


def measure(a) -> None:
    "Print the milliseconds of a step of this process, or of those that it is one of"
    torch.manual_seed(0)
    d_in, d_sae = map(int, a.shape.split('x'))
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=d_in, d_sae=d_sae, k=32))
    times = []

    class Clock:
        def after_step(self, trainer): times.append(time.perf_counter())
    trainer = SAETrainer(SAETrainerConfig((a.steps + 3)*a.batch, a.batch, lr=1e-4), sae, TensorSource(torch.randn(4*a.batch, d_in), rows=a.batch), callbacks=[Clock()])
    trainer.fit()
    if trainer.team.is_first:
        print(1e3*statistics.median(b - a for a, b in zip(times[2:], times[3:])))


def run(processes: int) -> float:
    "Milliseconds of a step of so many processes"
    torchrun = ['-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', str(processes)]
    env = dict(os.environ, OMP_NUM_THREADS='1')
    done = subprocess.run([sys.executable, *(torchrun if processes > 1 else []), *sys.argv, '--measure'], env=env, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.split()[-1])


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--shape', default='576x4608')
    for name, default in dict(processes=2, batch=4096, rounds=3, steps=10).items():
        p.add_argument(f'--{name}', type=int, default=default)
    p.add_argument('--measure', action='store_true', help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.measure:
        return measure(a)
    rounds = []
    for _ in range(a.rounds):
        rounds.append((run(1), run(a.processes)))
        print(f"one process {rounds[-1][0]:.0f} ms a step, {a.processes} processes {rounds[-1][1]:.0f} ms", flush=True)
    ratios = sorted(one/many for one, many in rounds)
    print(f"topk {a.shape}, batch {a.batch}: {a.processes} processes are {statistics.median(ratios):.2f} times as fast ({ratios[0]:.2f} to {ratios[-1]:.2f})")


if __name__ == '__main__':
    main()
