"""What `sae_lens.synthetic` makes and measures, for `tests/peer/test_synthetic.py` (run in an environment that has sae-lens):

    PEER/bin/python tests/peer/synthetic.py make [FOLDER]    stores a model and numbers (in `tests/fixtures/synthetic` unless given)
    PEER/bin/python tests/peer/synthetic.py read FOLDER      prints what it sees of a model that we saved
"""
import json
import sys
import warnings
from pathlib import Path
import torch
from safetensors.torch import save_file

OPTIONS = dict(num_features=40, hidden_dim=8, seed=11, bias=.5)
HIERARCHY = dict(total_root_nodes=4, branching_factor=(2, 3), max_depth=2, mutually_exclusive_portion=.7,
                 compensate_probabilities=True, scale_children_by_parent=True)
NUMBERS = ['mean_firing_magnitudes', 'std_firing_magnitudes', 'firing_probabilities']


def config(lib):
    "The same model of either library"
    return lib.SyntheticModelConfig(
        **OPTIONS, hierarchy=lib.HierarchyConfig(**HIERARCHY), orthogonalization=lib.OrthogonalizationConfig(5),
        correlation=lib.LowRankCorrelationConfig(rank=3), std_firing_magnitudes=lib.FoldedNormalMagnitudeConfig(.5, .5),
        mean_firing_magnitudes=lib.LinearMagnitudeConfig(5., 4.))


def seen(model):
    "What decides the rows of a model, as lists"
    g, fd = model.activation_generator, model.feature_dict
    facts = {n: getattr(g, n).tolist() for n in NUMBERS}
    return facts | dict(features=fd.feature_vectors.tolist(), bias=fd.bias.tolist(), hierarchy=model.hierarchy.to_dict(),
                        factor=model.correlation_matrix[0].tolist(), diag=model.correlation_matrix[1].tolist())


class Stored:
    "Gives the rows of a stored code, part by part"
    def __init__(self, code): self.code, self.at = code, 0

    def __call__(self, n):
        self.at += n
        return self.code[self.at - n:self.at]

    sample = __call__


def sae_of(lib, weights):
    "An SAE with these weights"
    d_in, d_sae = weights['W_enc'].shape
    sae = lib.StandardSAE(lib.StandardSAEConfig(d_in=d_in, d_sae=d_sae))
    sae.load_state_dict(weights)
    return sae


def measured(synthetic, sae, model, code):
    "The metrics on a stored code, in parts of 300 rows"
    return synthetic.eval_sae_on_synthetic_data(sae, model.feature_dict, Stored(code), len(code), 300).to_dict()


def make(folder):
    import sae_lens
    from sae_lens import synthetic
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model = synthetic.SyntheticModel(config(synthetic))
    model.save(folder/'model')
    code = model.activation_generator(1000)
    w = dict(W_enc=.4*torch.randn(8, 12), W_dec=.4*torch.randn(12, 8), b_enc=.3*torch.randn(12), b_dec=.1*torch.randn(8))
    w['b_enc'][3] = -100.   # a dead one
    save_file(w | dict(code=code), folder/'inputs.safetensors')
    facts = dict(seen=seen(model), metrics=measured(synthetic, sae_of(sae_lens, w), model, code))
    (folder/'expected.json').write_text(json.dumps(facts) + '\n', encoding='utf-8')


if __name__ == '__main__':
    warnings.simplefilter('ignore')
    what, *rest = sys.argv[1:]
    if what == 'make':
        make(Path(rest[0]) if rest else Path(__file__).parent.parent/'fixtures'/'synthetic')
    else:
        from sae_lens.synthetic import SyntheticModel
        model = SyntheticModel.load_from_disk(rest[0])
        torch.manual_seed(0)
        print(json.dumps(seen(model) | dict(rate=(model.activation_generator(20_000) > 0).float().mean(0).tolist())))
