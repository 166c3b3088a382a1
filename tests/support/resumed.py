"""A run that is cut off anywhere goes on to the bit"""
from pathlib import Path

import torch
from sae_workbench import SAETrainer, load_checkpoint, save_checkpoint


def goes_on_to_the_bit(make, cuts, folder: Path) -> SAETrainer:
    "Train as a whole, and cut off after some yields of its steps and resumed by another trainer: the same weights. The whole run's trainer"
    whole = make()
    whole.fit()
    for cut in cuts:
        first, second = make(), make()
        steps = first.steps()
        for _ in range(cut): next(steps)
        save_checkpoint(folder/str(cut), first, first.data_provider)
        load_checkpoint(folder/str(cut), second, second.data_provider)
        second.fit()
        found = second.sae.state_dict()
        for k, t in whole.sae.state_dict().items(): assert torch.equal(t, found[k]), (cut, k)
    return whole
