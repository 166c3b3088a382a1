"""Runs on whitened activations, by sae-lens and by ours: `PYTHONPATH=ROOT PEER/bin/python compare_whitening.py`"""
import sys
import warnings

import sae_lens
import sae_workbench
import torch
from sae_lens.config import SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer

D, ROWS = 8, 64
RUN = dict(total_training_samples=30*ROWS, train_batch_size_samples=ROWS, lr=1e-3, lr_end=1e-4, n_batches_for_norm_estimate=5)
ARCHITECTURES = dict(Standard={}, Gated={}, JumpReLU={}, TopK=dict(k=4), BatchTopK=dict(k=4),
                     MatryoshkaBatchTopK=dict(k=4, matryoshka_widths=[8, 16, 32]))


def batches():
    g = torch.Generator().manual_seed(0)
    mix = torch.randn(D, D, generator=g)
    return [torch.randn(ROWS, D, generator=g) @ mix + 1 for _ in range(35)]


def cases():
    for arch, options in ARCHITECTURES.items():
        for subtract in (True, False):
            for rescale in (True, False)[:1 + ('TopK' in arch)]:
                own = dict(rescale_acts_by_decoder_norm=rescale) if 'TopK' in arch else {}
                yield arch, dict(d_in=D, d_sae=32, normalize_activations='covariance_whitening', apply_b_dec_to_input=subtract, **options, **own)


def main():
    warnings.simplefilter('ignore')
    count = 0
    for arch, cfg in cases():
        torch.manual_seed(0)
        theirs, ours = (getattr(lib, f'{arch}TrainingSAE')(getattr(lib, f'{arch}TrainingSAEConfig')(**cfg)) for lib in (sae_lens, sae_workbench))
        ours.load_state_dict(theirs.state_dict())
        SAETrainer(SAETrainerConfig(**RUN, logger=sae_lens.LoggingConfig(log_to_wandb=False)), theirs, iter(batches())).fit()
        sae_workbench.SAETrainer(sae_workbench.SAETrainerConfig(**RUN), ours, iter(batches())).fit()
        for k, v in theirs.state_dict().items(): torch.testing.assert_close(ours.state_dict()[k], v, rtol=1e-4, atol=1e-5, msg=f'{arch} {cfg} {k}', check_dtype=False)
        for k in ('normalize_activations', 'rescale_acts_by_decoder_norm'): assert getattr(ours.cfg, k, None) == getattr(theirs.cfg, k, None), (arch, k)
        count += 1
    print(f'{count} whitened runs are equal')


if __name__ == '__main__': sys.exit(main())
