"""Uploads through the real client of the hub to a hub on localhost, whatever goes wrong on the way, and back again."""
import contextlib
import inspect
import io
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from fakehub import TOKEN, FakeHub
from producers import PRODUCERS
from sae_workbench import SAE, NonFiniteError, SAEMetadata, StandardSAE, StandardSAEConfig, TopKSAE, TopKSAEConfig, UploadError, model_card
from sae_workbench import upload_saes_to_huggingface as upload
from sae_workbench.formats.upload import MARK

REPO = 'me/saes'
ROOT = Path(__file__).resolve().parents[2]


def topk(layer: int) -> TopKSAE:
    torch.manual_seed(layer)
    facts = SAEMetadata(model_name='openai-community/gpt2', hook_name=f'blocks.{layer}.hook_resid_pre', dataset_path='me/text', tokenizer_name='gpt2',
                        metrics=dict(explained_variance=.75, l0=4.))
    return TopKSAE(TopKSAEConfig(d_in=8, d_sae=64, k=4, metadata=facts))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    "A hub with nothing in it; waiting takes no time"
    slept = []
    monkeypatch.setattr(time, 'sleep', slept.append)
    with FakeHub() as hub, hub.used_here(tmp_path/'cache'):
        hub.slept = slept
        yield hub


def quiet(saes, repo=REPO, **kw): return upload(saes, repo, show_progress=False, **kw)


def files(hub, repo=REPO) -> list[str]: return sorted(set(hub.repos.get(repo, {})) - {'.gitattributes'})


def puts(hub) -> int: return sum(a.startswith('PUT') for a in hub.asked)


NAMES = ['README.md', 'a/cfg.json', 'a/sae_weights.safetensors', 'b/c/cfg.json', 'b/c/sae_weights.safetensors', 'b/c/sparsity.safetensors']


def test_the_arguments_are_those_of_sae_lens():
    "`inspect.signature` of version 6.54.12; what is ours stands behind"
    v6 = dict(saes_dict=inspect.Parameter.empty, hf_repo_id=inspect.Parameter.empty, hf_revision='main', show_progress=True, add_default_readme=True)
    ours = {p.name: p.default for p in inspect.signature(upload).parameters.values()}
    assert list(ours.items())[:5] == list(v6.items()) and set(list(ours.values())[5:]) == {None}


def test_several_in_one_commit(hub, tmp_path):
    saes, x = dict(a=topk(8), b=topk(9)), torch.randn(5, 8)
    saes['b'].save_pretrained(tmp_path/'nine', log_sparsity=torch.full((64,), -3.))
    assert quiet({'a': saes['a'], 'b/c': tmp_path/'nine'}).endswith('/me/saes/commit/0123456789abcdef0123456789abcdef01234567')
    assert [(key, names) for key, _, names in hub.commits] == [(REPO, NAMES)]
    for path, sae in (('a', saes['a']), ('b/c', saes['b'])):
        back, cfg, sparsity = SAE.from_pretrained_with_cfg_and_sparsity(REPO, path)
        assert torch.equal(back(x), sae(x)) and cfg['metadata'] == sae.cfg.metadata
        assert (sparsity is None) == (path == 'a')


def test_the_cards_code_runs(hub):
    quiet({'layer_8': topk(8)})
    card = hub.repos[REPO]['README.md'].decode()
    code, = re.findall(r'```python\n(.*?)```', card, re.S)
    made = {}
    exec(code, made)
    assert torch.equal(made['reconstruction'], topk(8)(made['x'])) and made['latents'].shape == (1, 8, 64)


def test_the_code_runs_for_every_architecture(hub, tmp_path):
    saes = {}
    for name, write in PRODUCERS.items():
        folder = tmp_path/name.replace(' ', '-')
        saes[folder.name] = SAE.from_pretrained(folder, write(folder), allow_pickle=True)
    quiet(saes)
    for name, sae in saes.items():
        made = {}
        exec(re.findall(r'```python\n(.*?)```', model_card({name: sae.cfg}, REPO), re.S)[0], made)
        assert torch.equal(made['reconstruction'], sae(made['x'])), name


def test_the_cards_facts(hub):
    import yaml
    quiet({'layer_8': topk(8), 'layer_9': topk(9)})
    card = hub.repos[REPO]['README.md'].decode()
    front = yaml.safe_load(card.split('---')[1])
    assert front == dict(license='unknown', library_name='sae_workbench', tags=['sparse-autoencoder', 'sae_workbench', 'saelens'], base_model=['openai-community/gpt2'], datasets=['me/text'])
    for fact in ('`layer_8`', '`layer_9`', '`blocks.9.hook_resid_pre`', '| tokenizer | gpt2 |', '| 0.75 | 4 |'):
        assert fact in card


@pytest.mark.parametrize('where', ['GET whoami', 'POST create', 'POST preupload', 'POST batch', 'PUT objects', 'POST commit', 'GET tree', 'POST validate-yaml'])
@pytest.mark.parametrize('what', [503, 429, 'drop', 'lose'])
def test_what_passes_is_waited_for(hub, where, what):
    once = (where, what) == ('POST commit', 'lose')   # a commit whose answer was lost is there, and is not made again
    hub.faults = {where: [what]*(2 - once)}
    quiet({'a': topk(8)}, 'saes' if 'whoami' in where else REPO)
    assert files(hub) == NAMES[:3] and len(hub.commits) == 1 and hub.slept and not hub.faults[where]
    assert torch.equal(SAE.from_pretrained(REPO, 'a').W_dec, topk(8).W_dec)


@pytest.mark.parametrize('where', ['PUT objects', 'POST commit', 'POST batch', 'GET tree'])
@pytest.mark.parametrize('what', [503, 'drop', 400])
def test_an_interrupted_upload_changes_nothing_and_can_be_finished(hub, where, what):
    quiet({'a': topk(8)})
    before, sent = dict(hub.repos[REPO]), puts(hub)
    hub.faults = {where: [what]*9999}
    with pytest.raises(UploadError, match='It is there whole or not at all. Run the same again'):
        quiet({'b': topk(9), 'c': topk(10)})
    assert hub.repos[REPO] == before and len(hub.commits) == 1
    arrived = len(hub.objects)
    hub.faults, asked = {}, len(hub.asked)
    quiet({'b': topk(9), 'c': topk(10)})
    again = sum(a.startswith('PUT') for a in hub.asked[asked:])
    assert again == len(hub.objects) - arrived and files(hub)[1:] == sorted(f'{i}/{n}' for i in 'abc' for n in ('cfg.json', 'sae_weights.safetensors'))
    if where == 'POST commit':
        assert again == 0 and sent
    assert hub.repos[REPO]['README.md'].decode().count('hook_resid_pre` |') == 3


def test_a_killed_upload_can_be_finished(hub, tmp_path):
    "The program is killed when the first large file, or the commit, is on its way"
    topk(8).save_pretrained(tmp_path/'a')
    for where in ('PUT objects', 'POST commit'):
        script = f"from sae_workbench import upload_saes_to_huggingface as u; u({{'a': r'{tmp_path/'a'}'}}, '{REPO}', show_progress=False)"
        env = os.environ | dict(HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN, HF_HUB_DISABLE_XET='1', HF_HOME=str(tmp_path/'home'), PYTHONPATH=str(ROOT))
        program = subprocess.Popen([sys.executable, '-c', script], env=env, stderr=subprocess.DEVNULL)
        hub.faults = {where: [program.kill]}
        assert program.wait(120) == -9 and not hub.faults[where] and files(hub) == [] and not hub.commits
    asked = len(hub.asked)
    quiet({'a': tmp_path/'a'})
    assert not any(a.startswith('PUT') for a in hub.asked[asked:])   # it had arrived when the commit was killed
    assert torch.equal(SAE.from_pretrained(REPO, 'a').W_dec, topk(8).W_dec)


def test_the_same_again_makes_no_commit(hub):
    quiet({'a': topk(8)})
    quiet({'a': topk(8)})
    assert len(hub.commits) == 1


def test_nothing_is_sent_that_is_not_sound(hub, tmp_path):
    bad, cut = topk(8), topk(9).save_pretrained(tmp_path/'cut')
    with torch.no_grad():
        bad.W_dec[0, 0] = float('inf')
    with pytest.raises(NonFiniteError, match='b: the topk SAE has NaN or infinity in W_dec'):
        quiet({'a': topk(8), 'b': bad})
    weights = cut/'sae_weights.safetensors'
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(OSError, match='b: .*not a whole safetensors file'):
        quiet({'a': topk(8), 'b': cut})
    with pytest.raises(OSError, match='b: .*no such folder'):
        quiet({'a': topk(8), 'b': tmp_path/'nowhere'})
    assert not hub.asked


def test_no_token(hub, tmp_path, monkeypatch):
    monkeypatch.delenv('HF_TOKEN')
    monkeypatch.setattr(SAE, 'from_pretrained_with_cfg_and_sparsity', lambda *a, **k: pytest.fail('an SAE was read'))
    for sae in (tmp_path/'nowhere', topk(8).save_pretrained(tmp_path/'there')):
        with pytest.raises(UploadError, match='no token for the hub: log in'):
            quiet({'a': sae})
    assert not hub.asked


def test_refused(hub):
    with pytest.raises(UploadError, match='does not know the token'):
        quiet({'a': topk(8)}, token='hf_wrong')
    quiet({'a': topk(8)}, token=TOKEN)
    hub.readonly = (REPO,)
    with pytest.raises(UploadError, match='the token may not write there'):
        quiet({'b': topk(8)})
    assert not hub.slept and len(hub.commits) == 1


def test_a_readme_of_ones_own_is_kept(hub):
    quiet({'a': topk(8)}, add_default_readme=False)
    assert 'README.md' not in files(hub)
    quiet({'a': topk(9)})
    ours = hub.repos[REPO]['README.md']
    assert MARK.encode() in ours
    hub.repos[REPO]['README.md'] = mine = ours.replace(MARK.encode(), b'mine')
    quiet({'b': topk(9)})
    assert hub.repos[REPO]['README.md'] == mine and 'b/cfg.json' in files(hub)


def test_nothing_stays_of_an_sae_that_is_replaced(hub, tmp_path):
    topk(8).save_pretrained(tmp_path/'a', log_sparsity=torch.zeros(64))
    quiet({'a': tmp_path/'a', 'b': tmp_path/'a'})
    quiet({'a': topk(9)})
    assert SAE.from_pretrained_with_cfg_and_sparsity(REPO, 'a')[2] is None
    assert [f for f in files(hub) if 'sparsity' in f] == ['b/sparsity.safetensors']


def test_other_files_of_the_repository_do_no_harm(hub):
    hub.repos[REPO] = {'old/cfg.json': b'{"d_in": 8}', 'odd/cfg.json': b'[', 'cfg.json': b'{}', 'notes.txt': b'x'}
    quiet({'a': topk(8)})
    assert hub.repos[REPO]['README.md'].decode().count('hook_resid_pre` |') == 1 and len(hub.repos[REPO]) == 7


def test_a_branch(hub):
    quiet({'a': topk(8)})
    quiet({'b': topk(9)}, hf_revision='v2')
    assert files(hub) == NAMES[:3] and 'b/cfg.json' in files(hub, f'{REPO}@v2')
    assert torch.equal(SAE.from_pretrained(REPO, 'b', revision='v2').W_dec, topk(9).W_dec)


def test_push_to_hub(hub):
    topk(8).push_to_hub('saes')   # without an owner it is the user's
    assert torch.equal(SAE.from_pretrained(REPO, 'blocks.8.hook_resid_pre').W_dec, topk(8).W_dec)
    StandardSAE(StandardSAEConfig(d_in=8, d_sae=16)).push_to_hub(REPO, 'other', private=True)
    assert SAE.from_pretrained(REPO, 'other').cfg.architecture() == 'standard'


def test_progress(hub):
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        upload({'a': topk(8), 'b': topk(9)}, REPO)
    assert 'checking SAEs' in said.getvalue()
