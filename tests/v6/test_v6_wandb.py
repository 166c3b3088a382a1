"""What sae-lens 6.54 sends to W&B, by name: sweeps, reports and plots look for these"""
import json
import sys
from pathlib import Path

import pytest
import sae_workbench
from peer.wandb_keys import Wandb, sent

KEYS = json.loads((Path(__file__).parents[1]/'fixtures'/'v6_wandb_keys.json').read_text(encoding='utf-8'))
NOT_SENT = {'reconstruction_quality/explained_variance_legacy'}   # the guide says so: an evaluation has the one number that does not depend on batches


@pytest.fixture(scope='module')
def ours():
    with pytest.MonkeyPatch.context() as m:
        m.setitem(sys.modules, 'wandb', wandb := Wandb())
        return dict(sent(sae_workbench, wandb), uploaded=wandb.files)


@pytest.mark.parametrize('name', KEYS)
def test_all_keys_of_v6_are_sent(ours, name):
    assert set(KEYS[name]) - NOT_SENT <= set(ours[name])


def test_the_table_is_whole():
    assert all(len(keys) > 10 for keys in KEYS.values()) and NOT_SENT <= set(KEYS['evaluation'])


def test_what_is_uploaded_was_written_by_the_run(ours):
    "The results of a run on a model, and of one on synthetic data"
    assert len(ours['uploaded']) == 2 and all({'cfg.json', 'sae_weights.safetensors'} <= set(files) for files in ours['uploaded'])


def test_the_artifact_has_v6s_name(monkeypatch, tmp_path):
    "A slash, as in the names of models on the hub, becomes two underscores"
    from sae_workbench import LoggingConfig, SAETrainer, SAETrainerConfig, SyntheticSource, TopKTrainingSAE, TopKTrainingSAEConfig, SAEMetadata
    from sae_workbench.training.wandb_log import WandBLogger
    monkeypatch.setitem(sys.modules, 'wandb', wandb := Wandb())
    meta = SAEMetadata(model_name='google/gemma-2b', hook_name='blocks.6.hook_resid_post')
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=8, d_sae=16, k=2, metadata=meta))
    (tmp_path/'cfg.json').write_text('{}', encoding='utf-8')
    logger = WandBLogger(LoggingConfig(wandb_project='mine'), folder=tmp_path)
    SAETrainer(SAETrainerConfig(64, 64), sae, SyntheticSource(16, 8, batch_size=64), callbacks=[logger]).fit()
    assert wandb.artifacts == [('sae_google__gemma-2b_blocks.6.hook_resid_post_16', ['final_model'])]
