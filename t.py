# from the pages alone: README "Use one", load_and_share, steering
from sae_workbench import SAE, attach, intervene, latent_page, load_model, search, run_evals
from sae_workbench.activations.tokens import encode_texts
print(search('gpt2 small layer 8 resid').head(3).to_string())
sae = SAE.load_from_disk('../t1/my_sae'); print(sae)
model = load_model('HookedTransformer', 'smollm2', device='cpu'); print(type(model))
import inspect
texts = open('../t1/mytext.txt').read().splitlines()[:64]
tokens = model.to_tokens(texts)[:, :48]; print(tokens.shape)
print(inspect.signature(latent_page))
from sae_workbench import latent_stats, TextLatents
stats = latent_stats(TextLatents(sae, model, tokens))
from sae_workbench import interesting_latents
