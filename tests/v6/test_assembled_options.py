"A script may put its options together in any way: the converted one has the same, or says that it is not complete"
import itertools
from types import SimpleNamespace
import pytest
from sae_workbench.migrate.migrate import migrate_config

HEAD = '''from sae_lens import LanguageModelSAERunnerConfig
over, yes, lr = dict(lr=2e-3, seed=5), True, 1e-3
def change(x): x['lr'] = 3e-3
class Holder: pass
'''
FIRST = "kw = dict(d_in=64, d_sae=128, lr=lr, seed=1, training_tokens=100_000)\n"
STEPS = [
    "kw['lr'] = 7e-3", "kw['seed'] = lr2 = 9", 'kw.update(lr=1e-2)', 'kw.update(over)', 'kw |= over',
    'kw |= dict(seed=3)', 'kw.update({k: v for k, v in over.items()})', 'for k, v in over.items(): kw[k] = v',
    "kw.pop('seed')", "kw.pop('lr', None)", "gone = kw.pop('lr'); kw['lr'] = gone*2", "kw.setdefault('lr', 5e-3)",
    "kw.setdefault('train_batch_size_tokens', 64)", "if yes: kw['lr'] = 8e-3", 'if yes:\n    kw = dict(kw, seed=11)',
    "del kw['seed']", 'kw = dict(kw, **over)', "kw = {**kw, 'seed': 4}", "kw = kw | {'seed': 6}",
    "b = kw; b['lr'] = 1e-4", "b = c = kw; c['seed'] = 12", "box = [kw]; box[0]['seed'] = 13",
    "box = dict(a=kw); box['a']['seed'] = 13", 'change(kw)', "def change_kw():\n    kw['lr'] = 4e-3\nchange_kw()",
    'def rebind():\n    global kw, lr\n    kw, lr = dict(kw, seed=8), 6e-3\nrebind()',
    'change(x=kw) if not yes else change(kw)', "(alias := kw)['seed'] = 14",
    "try:\n    kw['seed'] = 15\n    raise KeyError\nexcept KeyError as e: kw['lr'] = 1e-5",
    "with open(__import__('os').devnull) as f: kw['seed'] = 16", "while kw['seed'] < 20: kw['seed'] = 20",
    '[kw.update(seed=s) for s in (1, 2)]', "key = 'lr'; kw[key] = 2e-5", "kw['lr'] *= 2",
    "h = Holder(); h.kw = kw; h.kw['seed'] = 17", "kw.__setitem__('seed', 18)",
    'kw.clear(); kw.update(d_in=64, d_sae=128)', "for d in (kw, over): d['seed'] = 19",
    "for lr in (1e-6, 1e-7): pass\nkw['lr'] = lr", 'lr = 5e-6', "match over:\n    case {'seed': s}: kw['seed'] = s",
    'f = lambda: kw.update(seed=21)\nf()', 'kw = (kw if yes else over)',
    "setattr(Holder, 'kw', kw); Holder.kw['seed'] = 22", "from copy import copy as lr\nlr = 3e-7\nkw['lr'] = lr",
    "kw.update([('seed', 23)])", "kw.update(dict(zip(['seed'], [24])))", "def change(x): x['seed'] = 25\nchange(kw)",
    "globals()['kw']['seed'] = 26", 'exec("kw[\'seed\'] = 27")']
LAST = [
    'cfg = LanguageModelSAERunnerConfig(**kw)',
    'cfg = LanguageModelSAERunnerConfig(**dict(kw, use_cached_activations=False))',
    'def make():\n    return LanguageModelSAERunnerConfig(**kw)\ncfg = make()',
    'cfg = [LanguageModelSAERunnerConfig(**dict(kw, lr=lr)) for lr in (1e-8,)][0]',
    'cfg = (lambda lr: LanguageModelSAERunnerConfig(**dict(kw, lr=lr)))(2e-8)']
NAMES = 'lr', 'seed', 'training_tokens', 'train_batch_size_tokens'

def asked(script:str)->dict:
    "The options that the old script gives"
    old = script.replace('from sae_lens import LanguageModelSAERunnerConfig', '')
    names = dict(LanguageModelSAERunnerConfig=lambda **kw: SimpleNamespace(kw=dict(kw)))
    exec(old, names)
    return names['cfg'].kw

def check(script:str)->bool: # Whether it was converted in full
    "The converted script gives the same options, unless it says that something is missing"
    kw, m = asked(script), migrate_config(script, from_version=5)
    if not m.complete: return False
    names = {}
    exec(m.script, names)
    for name in NAMES:
        if name in kw: assert getattr(names['cfg'], name)==kw[name], f'{name}\n{script}\n{m.script}'
    assert (names['cfg'].sae.d_in, names['cfg'].sae.d_sae)==(kw['d_in'], kw['d_sae'])==(64, 128), script
    return True

def test_one_step():
    complete = {s for s in STEPS if check(f'{HEAD}{FIRST}{s}\n{LAST[0]}\n')}
    followed = {"kw['lr'] = 7e-3", 'kw.update(lr=1e-2)', 'kw.update(over)', 'kw |= over', "kw.pop('seed')",
                "del kw['seed']", "kw.setdefault('lr', 5e-3)", "kw['lr'] *= 2", 'lr = 5e-6', "kw = {**kw, 'seed': 4}"}
    assert followed <= complete
    assert not complete & {'change(kw)', 'for k, v in over.items(): kw[k] = v', "if yes: kw['lr'] = 8e-3"}

@pytest.mark.parametrize('last', LAST)
def test_two_steps(last):
    checked = 0
    for k, (a, b) in enumerate(itertools.product(STEPS, STEPS)):
        script = f'{HEAD}{FIRST}{a}\n{b}\n{last}\n'
        if k%23 != LAST.index(last): continue   # a part of them, another for each ending
        try: asked(script)
        except Exception: continue               # the two do not go together
        check(script)
        checked += 1
    assert checked > 50

def test_unknown_contents_stay():
    script = f'{HEAD}{FIRST}kw.update(load())\n{LAST[0]}\n'
    m = migrate_config(script, from_version=5)
    assert '    **kw,\n' in m.script and '**kw' in m.code and not m.complete and m.config is None
    assert '**kw' in [c.option for c in m.changes]

@pytest.mark.parametrize('script, said', [
    ('from transformer_lens import HookedTransformer', 'transformer_lens.HookedTransformer'),
    ('import transformer_lens as tl, transformer_lens.utils', 'transformer_lens.utils'),
    ('from transformer_lens.components import Attention', 'transformer_lens.components'),
    ('import sae_lens.toolkit.x', 'import sae_lens.toolkit.x'),
    ('make = partial(LanguageModelSAERunnerConfig, lr=1e-3)', 'LanguageModelSAERunnerConfig'),
    ("setattr(cfg, 'lr', 1e-3)", "setattr(cfg, 'lr', 0.001)"),
    ('cfg = replace(cfg, lr=1e-3)', 'replace(cfg, lr=0.001)'),
    ("cfg.__dict__['lr'] = 1e-3", 'cfg.__dict__')])
def test_what_cannot_run_or_be_read_is_flagged(script, said):
    m = migrate_config('from sae_lens import LanguageModelSAERunnerConfig\n'
                       f'cfg = LanguageModelSAERunnerConfig(d_in=64, d_sae=128)\n{script}\n')
    assert not m.complete and said in [c.option for c in m.changes]

def test_a_nested_config_that_was_not_read():
    m = migrate_config('from sae_lens import *\ncfg = LanguageModelSAERunnerConfig('
                       'sae=StandardTrainingSAEConfig(d_in=3, **kw), lr_warm_up_steps=3)\n')
    assert not m.complete and 'StandardTrainingSAEConfig(d_in=3, **kw)' in m.script

def test_a_dictionary_alone():
    assert migrate_config('kw = dict(d_in=64, d_sae=128, lr=1e-3)\nkw.update(lr=2e-3)\n').config.lr==2e-3
    for change in ('kw.update(over)', 'change(kw)', 'for k in over: kw[k] = over[k]', "if yes: kw['lr'] = 1"):
        assert not migrate_config(f'kw = dict(d_in=64, d_sae=128, lr=1e-3)\n{change}\n').complete, change
