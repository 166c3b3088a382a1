"""A custom SAE as the v6 documentation teaches it runs here after its import is changed"""
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from sae_workbench import (SAE, LoggingConfig, SAEConfig, SAETrainer, SAETrainerConfig, SyntheticSource, TrainCoefficientConfig, TrainingSAE,
                           TrainingSAEConfig, TrainStepInput, register_sae_class, register_sae_training_class)


@dataclass
class OffsetSAEConfig(SAEConfig):
    offset: float = 0.1

    @classmethod
    def architecture(cls) -> str: return "offset"


class OffsetSAE(SAE[OffsetSAEConfig]):
    b_enc: nn.Parameter

    def __init__(self, cfg: OffsetSAEConfig, use_error_term: bool = False):
        super().__init__(cfg, use_error_term)

    def initialize_weights(self) -> None:
        super().initialize_weights()
        self.b_enc = nn.Parameter(torch.zeros(self.cfg.d_sae, dtype=self.dtype, device=self.device))

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        hidden_pre = self.hook_sae_acts_pre(self.process_sae_in(x) @ self.W_enc + self.b_enc)
        return self.hook_sae_acts_post(self.activation_fn(hidden_pre - self.cfg.offset))

    def decode(self, feature_acts: torch.Tensor) -> torch.Tensor:
        out = self.hook_sae_recons(feature_acts @ self.W_dec + self.b_dec)
        return self.reshape_fn_out(self.run_time_activation_norm_fn_out(out), self.d_head)


@dataclass
class OffsetTrainingSAEConfig(TrainingSAEConfig):
    offset: float = 0.1
    penalty: float = 0.05

    @classmethod
    def architecture(cls) -> str: return "offset"


class OffsetTrainingSAE(TrainingSAE[OffsetTrainingSAEConfig]):
    b_enc: nn.Parameter

    def initialize_weights(self) -> None:
        super().initialize_weights()
        self.b_enc = nn.Parameter(torch.zeros(self.cfg.d_sae, dtype=self.dtype, device=self.device))

    def get_coefficients(self): return {"penalty": TrainCoefficientConfig(value=self.cfg.penalty, warm_up_steps=5), "fixed": 1.0}

    def encode_with_hidden_pre(self, x):
        hidden_pre = self.hook_sae_acts_pre(self.process_sae_in(x) @ self.W_enc + self.b_enc)
        return self.hook_sae_acts_post(self.activation_fn(hidden_pre - self.cfg.offset)), hidden_pre

    def calculate_aux_loss(self, step_input: TrainStepInput, feature_acts, hidden_pre, sae_out):
        return step_input.coefficients["penalty"] * feature_acts.sum(-1).mean() * step_input.coefficients["fixed"]

    def process_state_dict_for_saving_inference(self, state_dict):
        super().process_state_dict_for_saving_inference(state_dict)
        state_dict["b_enc"].add_(0.0)


register_sae_class("offset", OffsetSAE, OffsetSAEConfig)
register_sae_training_class("offset", OffsetTrainingSAE, OffsetTrainingSAEConfig)


@pytest.mark.parametrize('normalize', ['none', 'expected_average_only_in', 'layer_norm', 'constant_norm_rescale'])
def test_custom_sae(tmp_path, normalize):
    torch.manual_seed(0)
    sae = OffsetTrainingSAE(OffsetTrainingSAEConfig(d_in=32, d_sae=64, normalize_activations=normalize))
    cfg = SAETrainerConfig(total_training_samples=256*60, train_batch_size_samples=256, lr=3e-3, n_batches_for_norm_estimate=3, logger=LoggingConfig(log_to_wandb=False))
    trainer = SAETrainer(cfg=cfg, sae=sae, data_provider=SyntheticSource())
    first = trainer.step(next(trainer.data_provider)).losses
    assert set(first) == {'mse_loss', 'aux_loss'}
    trained = trainer.fit()
    trained.save_inference_model(tmp_path)
    back, x = SAE.load_from_disk(tmp_path), next(trainer.data_provider)
    assert type(back) is OffsetSAE and back.cfg.offset == 0.1
    torch.testing.assert_close(back(x), trained(x))
    assert (back(x) - x).pow(2).sum() < 0.6 * (x - x.mean(0)).pow(2).sum()
    trained.save_model(tmp_path/'checkpoint')
    assert type(TrainingSAE.load_from_disk(tmp_path/'checkpoint')) is OffsetTrainingSAE


def test_its_config_is_checked():
    with pytest.raises(ValueError, match="penalty='much': must be a number"): OffsetTrainingSAEConfig(d_in=8, d_sae=8, penalty='much')
    with pytest.raises(ValueError, match="did you mean 'penalty'"): OffsetTrainingSAEConfig(d_in=8, d_sae=8, penlty=1.)
