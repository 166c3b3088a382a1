"""Scripts of SAELens v6 that train: what they write in annotations, read from configs and stores, call on runners"""
import pytest, torch
from sae_workbench import (
    SAE, ActivationsStore, CacheActivationsRunnerConfig, LanguageModelSAERunnerConfig, LanguageModelSAETrainingRunner,
    LoggingConfig, SAETrainer, SAETrainerConfig, StandardTrainingSAE, StandardTrainingSAEConfig, TopKTrainingSAE,
    TopKTrainingSAEConfig, TrainingSAE)
from sae_workbench.saes.topk import TopK


def topk(**kw): return TopKTrainingSAEConfig(**dict(d_in=8, d_sae=32, k=3) | kw)


# Annotations and numbers

def test_subscripted_names_in_annotations():
    "v6's classes are generic: scripts write the SAE's class or config in brackets, and make objects that way too"
    def train(cfg: LanguageModelSAERunnerConfig[TopKTrainingSAEConfig], trainer: SAETrainer[TopKTrainingSAE, TopKTrainingSAEConfig],
              runner: LanguageModelSAETrainingRunner[TopKTrainingSAEConfig], sae: TrainingSAE[TopKTrainingSAEConfig], out: SAE[TopKTrainingSAEConfig]): pass
    cfg = LanguageModelSAERunnerConfig[TopKTrainingSAEConfig](sae=topk())
    assert type(cfg) is LanguageModelSAERunnerConfig and cfg == LanguageModelSAERunnerConfig.from_dict(cfg.to_dict())
    class Mine(LanguageModelSAERunnerConfig[TopKTrainingSAEConfig]): pass
    assert isinstance(Mine(sae=topk()), LanguageModelSAERunnerConfig)


def test_a_whole_number_may_be_written_as_a_float():
    cfg = LanguageModelSAERunnerConfig(sae=topk(d_sae=32.), training_tokens=4e4)
    assert (cfg.training_tokens, type(cfg.training_tokens), type(cfg.sae.d_sae)) == (40_000, int, int)
    assert type(SAETrainerConfig(total_training_samples=1e6, train_batch_size_samples=10).total_training_samples) is int
    cache = CacheActivationsRunnerConfig('data', 'model', 4, 'hook', 8, training_tokens=4e3, context_size=16.)
    assert (cache.training_tokens, cache.context_size) == (4000, 16) and type(cache.context_size) is int


def test_topk_with_sparse_activations():
    x = torch.randn(3, 4, 16)
    f = TopK(3, use_sparse_activations=True)(x)
    assert f.layout == torch.sparse_coo and torch.equal(f.to_dense(), TopK(3)(x))
