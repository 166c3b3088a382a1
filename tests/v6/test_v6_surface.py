"""All that the public modules of sae-lens 6.54 define, with parameters and defaults: it is here too, or the guide says what is different.

`tests/fixtures/make_v6_surface.py` wrote down what the peer has. A difference is written as
`path.name` (not here), `path.Class.member` (not here), `path.function(p)` (takes no p) or `path.function(p=default)` (another default).
"""
import ast
import dataclasses
import inspect
import json
from fnmatch import fnmatchcase
from functools import cache
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from sae_workbench.core.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY

ROOT = Path(__file__).parents[2]
SURFACE = json.loads((ROOT/'tests'/'fixtures'/'v6_surface.json').read_text(encoding='utf-8'))['modules']
KNOWN = [json.loads(line) for line in (ROOT/'nbs'/'guides'/'v6_differences.jsonl').read_text(encoding='utf-8').splitlines()]
CALLED_BY_PLACE = 8   # a script may leave out the names of so many arguments


def here(module: str, name: str):
    "What a script gets that changed its import; None if there is nothing"
    try: return getattr(__import__(module.replace('sae_lens', 'sae_workbench'), fromlist=[name]), name)
    except (ImportError, AttributeError): return None


def split(parameter: str) -> tuple[str, str]:
    name, _, default = parameter.lstrip('*').partition('=')
    return name, default


def same(default: str, ours) -> bool:
    "Whether a default is the same; a list and a tuple are"
    value = ast.literal_eval(default)
    if isinstance(value, list): value, ours = tuple(value), tuple(ours) if isinstance(ours, (list, tuple)) else ours
    return value == ours and (value is None) == (ours is None)


def compared(label: str, parameters: list[str], f) -> list[str]:
    "The parameters of v6 that a function of ours takes differently"
    try: ours = {n: p for n, p in inspect.signature(f).parameters.items() if n not in ('self', 'cls')}
    except ValueError: return []
    kinds, found = [p.kind for p in ours.values()], []
    for i, (name, default) in enumerate(map(split, parameters)):
        if name not in ours:
            if inspect.Parameter.VAR_KEYWORD not in kinds: found.append(f'{label}({name})')
        elif i < CALLED_BY_PLACE and not parameters[i].startswith('*') and list(ours).index(name) != i: found.append(f'{label}({name})')
        elif default and ours[name].default is inspect.Parameter.empty: found.append(f'{label}({name}={default})')
        elif default not in ('', '…') and not dataclasses.is_dataclass(f) and not same(default, ours[name].default):
            found.append(f'{label}({name}={default})')
    names = [n for n, _ in map(split, parameters)]
    needed = [n for n, p in ours.items() if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return found + [f'{label}(without {n})' for n in needed if n not in names and not [f for f in found if f.startswith(label)]]


def defaults(label: str, parameters: list[str], cls) -> list[str]:
    "The fields of a dataclass that have another default than in v6"
    fields, found = {f.name: f for f in dataclasses.fields(cls)}, []
    for name, default in map(split, parameters):
        if default in ('', '…') or name not in fields: continue
        f = fields[name]
        ours = f.default if f.default is not dataclasses.MISSING else f.default_factory() if f.default_factory is not dataclasses.MISSING else f
        if not same(default, ours): found.append(f'{label}({name}={default})')
    return found


@cache
def examples() -> dict:
    "An object of each class whose objects have attributes that the class does not show"
    from sae_workbench import ActivationsStore, SAETrainer, SAETrainerConfig, StandardSAE, StandardSAEConfig, TopKTrainingSAEConfig
    from sae_workbench import CacheActivationsRunner, CacheActivationsRunnerConfig, PretokenizeRunner, PretokenizeRunnerConfig
    from sae_workbench import LanguageModelSAERunnerConfig, LanguageModelSAETrainingRunner, SAEMetadata, TopKTrainingSAE
    from sae_workbench import MultiSAETrainingRunner, MultiSAETrainingRunnerConfig
    from sae_workbench import synthetic as s
    from sae_workbench.activations.example_data import toy_model
    from sae_workbench.saes.abstopk import AbsTopK
    from sae_workbench.saes.batchtopk import BatchTopK
    from sae_workbench.saes.topk import TopK
    from sae_workbench.training.optim import CoefficientScheduler
    size, made = dict(d_in=4, d_sae=8), {}
    for registry in (SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY):
        for cls, config in registry.values():
            if not cls.__module__.startswith('sae_workbench.'): continue
            options = {f.name: f.default for f in dataclasses.fields(config)}
            more = dict(k=2) if 'k' in options else {}
            more |= dict(matryoshka_widths=[4, 8]) if 'matryoshka_widths' in options else {}
            more |= {n: v for n, v in dict(d_out=4, n_layers=2).items() if n in options}
            more |= dict(n_heads=1, bottleneck_factor=1, tied_weights=False) if 'bottleneck_factor' in options else {}
            made[cls.__name__] = cls(config(**size, **more))
    made |= dict(SAE=made['StandardSAE'], TrainingSAE=made['StandardTrainingSAE'], TopK=TopK(2), AbsTopK=AbsTopK(2), BatchTopK=BatchTopK(2.))
    model, texts = toy_model(2, 4), [dict(text='some words of a text ' * 9)] * 9
    sae = StandardSAE(StandardSAEConfig(**size, metadata=SAEMetadata(
        model_name='toy', hook_name='blocks.0.hook_resid_post', context_size=8, prepend_bos=True)))
    made['ActivationsStore'] = ActivationsStore.from_sae(model, sae, texts, train_batch_size_tokens=8)
    train = SAETrainerConfig(total_training_samples=8, train_batch_size_samples=8)
    made['SAETrainer'] = SAETrainer(train, TopKTrainingSAE(TopKTrainingSAEConfig(k=2, **size)), iter([torch.ones(8, 4)]))
    made['LanguageModelSAETrainingRunner'] = LanguageModelSAETrainingRunner(LanguageModelSAERunnerConfig(
        sae=TopKTrainingSAEConfig(k=2, **size), hook_name='blocks.0.hook_resid_post', training_tokens=8, train_batch_size_tokens=8, context_size=8,
        store_batch_size_prompts=2, output_path=None, checkpoint_path=None, device='cpu'), override_dataset=texts, override_model=model)
    made['MultiSAETrainingRunner'] = several = MultiSAETrainingRunner(MultiSAETrainingRunnerConfig(
        saes=dict(a=TopKTrainingSAEConfig(k=2, **size)), hook_names='blocks.0.hook_resid_post', training_tokens=8, train_batch_size_tokens=8,
        context_size=8, store_batch_size_prompts=2, output_path=None, checkpoint_path=None), override_dataset=texts, override_model=model)
    made['MultiSAETrainingRunnerConfig'] = several.cfg
    made['CacheActivationsRunner'] = CacheActivationsRunner(CacheActivationsRunnerConfig(
        dataset_path='', model_name='toy', model_batch_size=2, hook_name='blocks.0.hook_resid_post', d_in=4, training_tokens=8, context_size=8,
        new_cached_activations_path='cache'), override_dataset=texts, override_model=model)
    made |= dict(PretokenizeRunner=PretokenizeRunner(PretokenizeRunnerConfig()), SAEMetadata=SAEMetadata(), CoefficientScheduler=CoefficientScheduler(2, 1.))
    options = s.SyntheticModelConfig(num_features=4, hidden_dim=4, hierarchy=s.HierarchyConfig(total_root_nodes=1, branching_factor=2, max_depth=1))
    synthetic = s.SyntheticModel(options)
    made |= dict(FeatureDictionary=synthetic.feature_dict, ActivationGenerator=synthetic.activation_generator, SyntheticModel=synthetic, SyntheticActivationIterator=s.SyntheticActivationIterator(synthetic.feature_dict, synthetic.activation_generator, 2),
                 Hierarchy=synthetic.hierarchy, HierarchyNode=s.HierarchyNode(0),
                 SyntheticSAERunner=s.SyntheticSAERunner(s.SyntheticSAERunnerConfig(synthetic_model=options, sae=TopKTrainingSAEConfig(k=2, **size), training_samples=8, batch_size=8)))
    return made


def of_class(path: str, known: dict, cls) -> list[str]:
    "What a class of ours lacks, or takes differently"
    if not isinstance(cls, type): return [path]
    if issubclass(cls, torch.autograd.Function): return []   # torch calls what these define
    found, family = [], {c.__name__ for c in cls.__mro__}
    found += [f'{path}({base})' for base in known['bases'] if base not in family]
    made = examples().get(cls.__name__)
    fields = {f.name for f in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else set()
    for name, parameters in known['members'].items():
        if not name: found += compared(f'{path}', parameters, cls)
        elif name in fields: continue
        elif not (hasattr(cls, name) or hasattr(made, name) or name in getattr(cls, '__annotations__', {})): found.append(f'{path}.{name}')
        elif parameters is not None and callable(getattr(cls, name, None)): found += compared(f'{path}.{name}', parameters, getattr(cls, name))
    return found + (defaults(path, known['members'][''], cls) if fields else [])


def of_module(module: str) -> list[str]:
    known, found = SURFACE[module], []
    for name in known.get('names', '').split():
        if here(module, name) is None: found.append(f'{module}.{name}')
    for name, parameters in known.get('functions', {}).items():
        f = here(module, name)
        found += [f'{module}.{name}'] if f is None else compared(f'{module}.{name}', parameters, f)
    for name, members in known.get('classes', {}).items():
        cls = here(module, name)
        if cls is not None and [*members['members']] == ['', '__call__'] and not isinstance(cls, type): continue   # what annotations name
        found += [f'{module}.{name}'] if cls is None else of_class(f'{module}.{name}', members, cls)
    return found


WITHOUT_HOOKED = int(version('transformer_lens').split('.')[0]) > 3   # which v6 does not know


@cache
def found(module: str) -> tuple[str, ...]:
    "The differences of a module"
    names = of_module(module)
    return tuple(n for n in names if not (WITHOUT_HOOKED and n.endswith('.HookedSAETransformer')))


def explained(difference: str) -> bool: return any(fnmatchcase(difference, pattern) for row in KNOWN for pattern in row['in_v6'])


@pytest.mark.parametrize('module', SURFACE)
def test_what_is_different_is_in_the_guide(module):
    assert not [d for d in found(module) if not explained(d)]


def test_the_guide_names_no_difference_that_is_gone():
    all_found = [d for module in SURFACE for d in found(module)]
    stale = [pattern for row in KNOWN for pattern in row['in_v6'] if not any(fnmatchcase(d, pattern) for d in all_found)]
    assert not stale


def test_differences_would_be_found():
    "Each kind, on names of ours that are right"
    def f(sae, features, name='list', *, more=None): pass
    assert compared('f', ['sae', 'features', "name='list'", '*more=None'], f) == []
    assert compared('f', ['features', 'sae', "name='temporary'", '*less=None'], f) == ['f(features)', 'f(sae)', "f(name='temporary')", 'f(less)']
    assert compared('f', ['sae'], f) == ['f(without features)']
    from sae_workbench import LoggingConfig, TopKTrainingSAE
    lacks = of_class('L', dict(bases=[], members={'': ['log_to_wandb=True'], 'run_name': None, 'log': ['trainer']}), LoggingConfig)
    assert lacks == ['L.log', 'L(log_to_wandb=True)']
    members = {'': ['cfg'], 'W_enc': None, 'nothing': None, 'encode': ['x', 'y']}
    assert of_class('T', dict(bases=['SAE', 'Nobody'], members=members), TopKTrainingSAE) == ['T(Nobody)', 'T.nothing', 'T.encode(y)']
