"""Python, dict, JSON, YAML and the command line make the same config, whatever its options are"""
import dataclasses
import importlib
import pkgutil
import shlex
import subprocess
import sys
from functools import reduce
from operator import or_
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import sae_workbench
import sae_workbench.saes  # the architectures register themselves
from sae_workbench.activations.cache_runner import CacheActivationsRunnerConfig
from sae_workbench.activations.models import LOADERS
from sae_workbench.activations.pretokenize import PretokenizeRunnerConfig
from sae_workbench.analysis.evals import EvalConfig
from sae_workbench.core.config import DTYPES, Config, ConfigMeta, Device, Dtype, Name, PlainDict
from sae_workbench.core.errors import ConfigError
from sae_workbench.core.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY
from sae_workbench.apps.cli import command_line, parse_config
from sae_workbench.saes.base import SAEMetadata
from sae_workbench.synthetic.firing_magnitudes import MagnitudeConfig
from sae_workbench.synthetic.firing_probabilities import FiringProbabilityConfig
from sae_workbench.synthetic.hierarchy import HierarchyConfig
from sae_workbench.synthetic.synthetic_model import LowRankCorrelationConfig, OrthogonalizationConfig, SyntheticModelConfig
from sae_workbench.synthetic.synthetic_sae_runner import SyntheticSAERunnerConfig
from sae_workbench.training.config import (CompileMode, FolderName, LanguageModelSAERunnerConfig, LoggingConfig, ModelClass, SAETrainerConfig,
                                           Schedule, StoreDevice)
from sae_workbench.training.optim import SCHEDULES

ARCHITECTURES = list(SAE_TRAINING_CLASS_REGISTRY)
CLASSES = list(dict.fromkeys([*(cfg for _, cfg in SAE_CLASS_REGISTRY.values()), *(cfg for _, cfg in SAE_TRAINING_CLASS_REGISTRY.values()),
                              LoggingConfig, SAETrainerConfig, LanguageModelSAERunnerConfig,
                              CacheActivationsRunnerConfig, PretokenizeRunnerConfig, EvalConfig,
                              *FiringProbabilityConfig.generators.values(), *MagnitudeConfig.generators.values(), HierarchyConfig,
                              OrthogonalizationConfig, LowRankCorrelationConfig, SyntheticModelConfig, SyntheticSAERunnerConfig]))
NOTED = {'training_architecture', 'training_architecture_details'}   # written by to_dict, for inference

TEXT = st.one_of(st.text(), st.sampled_from(['on', 'no', 'None', '1e-5', '12:30', '2026-11-24', '007', '~', 'true', "it's", 'a: b', '- a']))
FINITE = st.floats(allow_nan=False, allow_infinity=False)
PLAIN = st.recursive(st.one_of(st.none(), st.booleans(), st.integers(), FINITE, TEXT),
                     lambda x: st.one_of(st.lists(x, max_size=3), st.dictionaries(TEXT, x, max_size=3)), max_leaves=5)
DEVICES = st.sampled_from(['cpu', 'cuda', 'cuda:1', 'mps'])
KNOWN = [(Dtype, st.sampled_from(list(DTYPES))), (Device, DEVICES), (StoreDevice, st.one_of(DEVICES, st.just('with_model'))),
         (Name, TEXT.filter(bool)), (PlainDict, st.dictionaries(TEXT, PLAIN, max_size=3)), (FolderName, st.sampled_from(['.', '/'])),
         (Schedule, st.sampled_from([*SCHEDULES, 'CosineAnnealing'])), (ModelClass, st.sampled_from(list(LOADERS))),
         (CompileMode, st.sampled_from(['default', 'reduce-overhead'])),
         (SAEMetadata, st.dictionaries(TEXT.filter(lambda k: k not in NOTED | {'self'}), PLAIN, max_size=3).map(lambda d: SAEMetadata(**d)))]


def bounds(notes) -> dict:
    "What an annotation says of the smallest and the largest number"
    return {k: getattr(m, k) for n in notes for m in getattr(n, 'metadata', ()) for k in ('ge', 'gt', 'le', 'lt') if hasattr(m, k)}


def values(tp, notes=()):
    "Values of a field's type"
    for known, strategy in KNOWN:
        if tp == known:
            return strategy
    if get_origin(tp) is Annotated:
        return values(get_args(tp)[0], get_args(tp)[1:])
    if get_origin(tp) in (Union, UnionType):
        return reduce(or_, map(values, get_args(tp)))
    if get_origin(tp) is Literal:
        return st.sampled_from(get_args(tp))
    if get_origin(tp) in (tuple, list):
        return st.lists(values(get_args(tp)[0]), max_size=3).map(get_origin(tp))
    if isinstance(tp, ConfigMeta):
        rules = getattr(tp, 'generators', {}).values() if tp.__abstractmethods__ else ()
        return st.one_of(map(configs, rules)) if rules else configs(tp)
    at = bounds(notes)
    if tp is int:
        return st.integers(at.get('ge', -3), 10**6)
    if tp is float:
        low, high = (next((float(at[k]) for k in pair if k in at), default) for pair, default in ((('ge', 'gt'), -1e9), (('le', 'lt'), 1e9)))
        return st.one_of(st.floats(low, high, exclude_min='gt' in at, exclude_max='lt' in at),
                         st.sampled_from([x for x in (1e-5, .1, 3e-4, .05, 1/3) if low < x < high]))
    return {bool: st.booleans(), str: TEXT, NoneType: st.none()}[tp]


@st.composite
def configs(draw, cls):
    "Configs of a class, a few options of which have been written"
    if cls.__name__ == 'TrainingSAEConfig':
        cls = SAE_TRAINING_CLASS_REGISTRY[draw(st.sampled_from(ARCHITECTURES))][1]
    fields, hints = dataclasses.fields(cls), get_type_hints(cls, include_extras=True)
    needed = [f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING]
    optional = [f.name for f in fields if f.name not in needed]
    names = needed + (draw(st.lists(st.sampled_from(optional), unique=True, max_size=6)) if optional else [])
    given = {n: draw(values(hints[n])) for n in names}
    if cls.__name__ == 'TemporalSAEConfig':   # its width must be a multiple of two other options
        given['d_sae'] = 512*draw(st.integers(1, 9))
    if 'n_layers' in given:   # which share the latents equally
        given['n_layers'] = draw(st.integers(1, 9))
        given['d_sae'] = given['n_layers']*draw(st.integers(1, 99))
    if cls.__name__.startswith('MatryoshkaBatchTopKTraining'):   # nested widths ascend
        given['matryoshka_widths'] = sorted(draw(st.sets(st.integers(1, given['d_sae']), min_size=1, max_size=3)))
    try:
        return cls(**given)
    except ConfigError:
        assume(False)   # these options do not go together


def quickly(n: int): return settings(max_examples=n, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize('cls', CLASSES, ids=lambda c: c.__name__)
def test_every_config_reads_back_as_it_was(cls):
    @quickly(60)
    @given(configs(cls))
    def reads_back(cfg):
        for back in (cls.from_dict(cfg.to_dict()), cls.from_json(cfg.to_json()), cls.from_yaml(cfg.to_yaml())):
            assert back == cfg
            assert repr(back) == repr(cfg)   # to the bit: 0.0 is not -0.0, 1 is not 1.0
    reads_back()


def test_every_config_class_of_the_package_is_among_them():
    for module in pkgutil.walk_packages(sae_workbench.__path__, 'sae_workbench.'):
        importlib.import_module(module.name)

    def below(cls): return {s for c in cls.__subclasses__() for s in {c} | below(c)}
    ours = {c for c in below(Config) if c.__module__.startswith('sae_workbench') and dataclasses.is_dataclass(c) and '<locals>' not in c.__qualname__}
    assert {c for c in ours if not c.__abstractmethods__ and not c.__name__.startswith('_')} <= set(CLASSES)


def test_what_other_readers_see_in_our_yaml_is_the_same():
    yaml = pytest.importorskip('yaml')

    @quickly(100)
    @given(configs(LanguageModelSAERunnerConfig))
    def same(cfg): assert yaml.safe_load(cfg.to_yaml()) == cfg.to_dict()
    same()


def sayable(value: Any) -> bool:
    "Whether a command line can hold a value: the text None and the value None look the same there, and a list has to have something in it"
    if isinstance(value, dict):
        return all(map(sayable, value.values()))
    return value not in ([], ()) and not (isinstance(value, str) and value in ('None', 'True', 'False'))


@quickly(25)
@given(configs(LanguageModelSAERunnerConfig))
def test_a_command_line_makes_the_same_config(cfg):
    assume(sayable(cfg.to_dict()))
    line = command_line(cfg)
    back = parse_config(shlex.split(shlex.join(line)))
    assert back == cfg and repr(back) == repr(cfg)


@quickly(20)
@given(configs(LanguageModelSAERunnerConfig), st.floats(1e-6, 1, exclude_max=True))
def test_a_copy_with_another_rate_is_the_config_with_that_rate(cfg, lr):
    assume(type(cfg.lr_end) is not float)   # it was worked out from lr
    copy = dataclasses.replace(cfg, lr=lr)
    assert copy.lr_end == lr/10
    assert dataclasses.replace(copy, lr=cfg.lr) == cfg


def program(*args, **kw):
    return subprocess.run([sys.executable, '-m', 'sae_workbench.llm_sae_training_runner', *args], capture_output=True, text=True, timeout=300, **kw)


def test_the_program_prints_a_config_that_it_reads_again(tmp_path):
    (tmp_path/'run.yaml').write_text('sae: {architecture: topk, d_in: 8, d_sae: 16, k: 4}\nlr: 1e-3\ntraining_tokens: 2_000_000\n', encoding='utf-8')
    first = program('--config', 'run.yaml', '--lr', '1e-4', '--sae.k', '3', '--print-config', cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    (tmp_path/'printed.yaml').write_text(first.stdout, encoding='utf-8')
    assert program('--config', 'printed.yaml', '--print-config', cwd=tmp_path).stdout == first.stdout
    cfg = LanguageModelSAERunnerConfig.load(tmp_path/'printed.yaml')
    assert (cfg.lr, cfg.lr_end, cfg.sae.k, cfg.training_tokens) == (1e-4, 1e-5, 3, 2_000_000)


def test_the_program_refuses_misspelt_keys(tmp_path):
    (tmp_path/'run.yaml').write_text('sae: {architecture: topk, d_in: 8, d_sae: 16, k: 4}\nlearning_rate: 1e-3\n', encoding='utf-8')
    for args, says in ((['--config', 'run.yaml'], 'learning_rate: not an option'),
                       (['--d_in', '8', '--d_sae', '16', '--training_tokes', '5'], "did you mean 'training_tokens'"),
                       (['--d_in', '8', '--d_sae', '16', '--expansion_factor', '5'], 'set the width itself')):
        result = program(*args, cwd=tmp_path)
        assert result.returncode == 2
        assert says in result.stderr and 'Traceback' not in result.stderr


def test_help_explains_every_option_and_imports_no_model():
    heavy = "import sys, sae_workbench.apps.cli as c\ntry: c.parse_config(['--architecture', 'topk', '--help'])\nexcept SystemExit: pass\n" \
            "print(*(m for m in ('transformers', 'transformer_lens', 'datasets', 'wandb', 'plotly') if m in sys.modules), file=sys.stderr)"
    result = subprocess.run([sys.executable, '-c', heavy], capture_output=True, text=True, timeout=300)
    assert result.stderr.strip() == ''
    for part, cls in (('', LanguageModelSAERunnerConfig), ('sae.', SAE_TRAINING_CLASS_REGISTRY['topk'][1]), ('logger.', LoggingConfig)):
        for f in dataclasses.fields(cls):
            if f.name not in ('sae', 'logger'):
                assert f"--{part}{f.name.replace('_', '-')}" in result.stdout, f.name
