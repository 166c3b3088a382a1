"""Synthetic models and metrics against sae-lens: stored answers, and a live comparison of files
(`SAE_LENS_PYTHON=PEER/bin/python pytest -m slow tests/peer/test_synthetic.py`)"""
import json
import os
import subprocess
from pathlib import Path

import pytest
import sae_workbench
import torch
from fakehub import FakeHub
from peer.synthetic import config, measured, sae_of, seen
from safetensors.torch import load_file
from sae_workbench import synthetic

ROOT = Path(__file__).parents[1]
FIXTURES = ROOT/'fixtures'/'synthetic'
EXPECTED = json.loads((FIXTURES/'expected.json').read_text(encoding='utf-8'))
PYTHON = os.environ.get('SAE_LENS_PYTHON')


def close(ours, theirs, at=''):
    "Numbers are equal up to rounding, all else exactly"
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), at
        for k, v in theirs.items():
            close(ours[k], v, f'{at}/{k}')
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs), at
        for i, v in enumerate(theirs):
            close(ours[i], v, f'{at}/{i}')
    else:
        assert ours == (pytest.approx(theirs, abs=2e-5, rel=2e-5) if type(theirs) is float else theirs), at


def test_a_config_makes_the_same_model():
    close(seen(synthetic.SyntheticModel(config(synthetic))), EXPECTED['seen'])


def test_a_model_of_sae_lens_loads():
    close(seen(synthetic.SyntheticModel.load_from_disk(FIXTURES/'model')), EXPECTED['seen'])


def test_what_we_save_is_what_sae_lens_saves(tmp_path):
    synthetic.SyntheticModel.load_from_disk(FIXTURES/'model').save(tmp_path)
    names = sorted(p.name for p in (FIXTURES/'model').iterdir())
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    for n in names:
        if n.endswith('.json'):
            assert json.loads((tmp_path/n).read_text(encoding='utf-8')) == json.loads((FIXTURES/'model'/n).read_text(encoding='utf-8'))
        else:
            ours, theirs = load_file(tmp_path/n), load_file(FIXTURES/'model'/n)
            assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in theirs)


def test_metrics_are_the_same_numbers():
    weights = load_file(FIXTURES/'inputs.safetensors')
    code, model = weights.pop('code'), synthetic.SyntheticModel.load_from_disk(FIXTURES/'model')
    close(measured(synthetic, sae_of(sae_workbench, weights), model, code), EXPECTED['metrics'])


V6 = """ActivationGenerator ActivationsModifier ActivationsModifierInput ClassificationMetrics ClassificationMetricsCalculator
ConstantFiringProbabilityConfig ConstantMagnitudeConfig CorrelationMatrixInput CorrelationMatrixStats DeadLatentsCalculator
ExponentialMagnitudeConfig FeatureDictionary FeatureDictionaryInitializer FiringProbabilityConfig FoldedNormalMagnitudeConfig
Hierarchy HierarchyConfig HierarchyNode L0Calculator LinearFiringProbabilityConfig LinearMagnitudeConfig
LowRankCorrelationConfig LowRankCorrelationMatrix MagnitudeConfig OrthogonalizationConfig RUNNER_CONFIG_FILENAME
RandomFiringProbabilityConfig SYNTHETIC_MODEL_CONFIG_FILENAME SYNTHETIC_MODEL_HIERARCHY_FILENAME
SYNTHETIC_MODEL_WEIGHTS_FILENAME ShrinkageCalculator SuperpositionStats SyntheticActivationIterator SyntheticDataEvalResult
SyntheticModel SyntheticModelConfig SyntheticSAERunner SyntheticSAERunnerConfig SyntheticSAERunnerResult
ZipfianFiringProbabilityConfig compute_classification_metrics compute_correlation_matrix_stats
compute_low_rank_correlation_matrix_stats compute_superposition_stats cosine_similarities
create_correlation_matrix_from_correlations eval_sae_on_synthetic_data feature_uniqueness find_best_feature_ordering
find_best_feature_ordering_across_saes find_best_feature_ordering_from_sae generate_hierarchy generate_magnitudes
generate_random_correlation_matrix generate_random_correlations generate_random_low_rank_correlation_matrix
get_firing_probability_class get_magnitude_class hierarchy_modifier init_sae_to_match_feature_dict linear_firing_probabilities
mean_correlation_coefficient orthogonal_initializer orthogonalize_embeddings plot_sae_feature_similarity
random_firing_probabilities register_firing_probability register_magnitude train_toy_sae
upload_synthetic_model_to_huggingface zipfian_firing_probabilities""".split()


def test_all_names_of_sae_lens_are_there():
    "`sae_lens.synthetic.__all__` of version 6.54.12"
    assert sorted(synthetic.__all__) == sorted(V6)


def test_submodules_of_sae_lens():
    from sae_workbench.synthetic.initialization import init_sae_to_match_feature_dict
    from sae_workbench.synthetic.stats import compute_superposition_stats
    assert compute_superposition_stats is synthetic.compute_superposition_stats
    assert init_sae_to_match_feature_dict is synthetic.init_sae_to_match_feature_dict


def test_a_model_goes_to_the_hub_and_comes_back(tmp_path):
    model = synthetic.SyntheticModel.load_from_disk(FIXTURES/'model')
    with FakeHub() as hub, hub.used_here(tmp_path/'cache'):
        synthetic.upload_synthetic_model_to_huggingface(model, 'me/bench', 'small')
        assert 'README.md' in hub.repos['me/bench']
        close(seen(synthetic.SyntheticModel.load_from_source('me/bench:small')), EXPECTED['seen'])


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON, reason='SAE_LENS_PYTHON does not name a python that has sae-lens')
def test_sae_lens_loads_what_we_save(tmp_path):
    model = synthetic.SyntheticModel(config(synthetic))
    model.save(tmp_path)
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    done = subprocess.run([PYTHON, ROOT/'peer'/'synthetic.py', 'read', tmp_path], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = json.loads(done.stdout.splitlines()[-1])
    rate = torch.tensor(theirs.pop('rate'))
    close(seen(model), theirs)
    torch.manual_seed(0)
    n = 20_000
    ours = (model.activation_generator(n) > 0).float().mean(0)   # two samples of one distribution: five standard errors
    p = (ours + rate)/2
    assert ((ours - rate).abs() <= 5*(2*p*(1 - p)/n).sqrt() + 1e-9).all()
