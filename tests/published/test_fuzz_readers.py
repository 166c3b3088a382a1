"""Files of every format, changed at random: what cannot be read is a LoadError, and nothing else happens.

The long run: `SAE_FUZZ_SECONDS=600 python -m pytest -m slow tests/published/test_fuzz_readers.py`
"""
import copy
import json
import math
import os
import pickle
import random
import resource
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from producers import PRODUCERS, put
from safetensors.torch import load_file

from sae_workbench import SAE, LoadError
from sae_workbench.formats.layouts import FORMATS

WILD = [None, True, False, -1, 0, 1, 7, 10**9, 10**12, 10**30, -0.5, 1e308, math.nan, math.inf, '', 'x', 'topk', '../../etc/passwd', 'x'*5000,
        [], [1, 2], {}, {'value': 3}, {'k': {'k': 1}}, '\udc80', 3.5, '99.0.0', 'float8', 'blocks.3.hook_z']
DTYPES = [torch.int64, torch.bool, torch.float16, torch.float64, torch.bfloat16, torch.complex64, torch.float8_e4m3fn, torch.uint8]


class Evil:
    "What a pickle can do"
    def __init__(self, mark: Path): self.mark = mark
    def __reduce__(self): return Path.touch, (self.mark,)


def leaves(node, at=()):
    "Every place in a nest of dicts and lists"
    for k, v in node.items() if isinstance(node, dict) else enumerate(node):
        yield (*at, k)
        if isinstance(v, (dict, list)):
            yield from leaves(v, (*at, k))


def change_config(rng: random.Random, file: Path) -> None:
    "Another value for a key, or one key less or more"
    data = json.loads(file.read_text(encoding='utf-8'))
    for _ in range(rng.choice([1, 1, 2, 4])):
        if not (places := list(leaves(data))):
            break
        *path, last = rng.choice(places)
        node = data
        for k in path:
            node = node[k]
        what = rng.random()
        if what < .2 and isinstance(node, dict):
            node.pop(last)
        elif what < .3 and isinstance(node, dict):
            node[f'{last}_'] = node[last]
        else:
            node[last] = copy.deepcopy(rng.choice(WILD))
    file.write_text(json.dumps(data, ensure_ascii=True), encoding='utf-8')


def read(file: Path) -> dict:
    if file.suffix == '.npz':
        return {k: torch.from_numpy(v) for k, v in np.load(file).items()}
    return load_file(file) if file.suffix == '.safetensors' else torch.load(file, weights_only=True)


def change_tensors(rng: random.Random, file: Path) -> None:
    "One tensor missing, renamed, of another shape or dtype, or not a number; or one more"
    data = read(file)
    key = rng.choice(list(data))
    t = data[key]
    if not isinstance(t, torch.Tensor):
        data[key] = rng.choice(WILD)
    else:
        dtype = rng.choice(DTYPES)
        bad = [None, t.reshape(-1), t[None], t.new_zeros(0), t.new_zeros([s + 1 for s in t.shape]), t.double()*math.nan, t.double()*math.inf,
               t.T.contiguous(), t.to(dtype) if dtype != torch.float8_e4m3fn else t.float().to(dtype), t.flatten()[0], t*1e38, -t]
        changed = rng.choice(bad)
        data.pop(key)
        if rng.random() < .1:
            data[rng.choice(['W_enc', 'scaling_factor', 'x', '../x', 'log_threshold', ''])] = t
        elif changed is not None:
            data[key] = changed
    if file.suffix == '.npz':
        data = {k: v.float() if v.dtype in (torch.bfloat16, torch.float8_e4m3fn) else v for k, v in data.items()}
    put(file, data)


def change_bytes(rng: random.Random, file: Path) -> None:
    "Cut, flip, insert or replace"
    data = bytearray(file.read_bytes())
    what = rng.randrange(5)
    at = rng.randrange(len(data)) if rng.random() < .5 else rng.randrange(min(len(data), 300))
    if what == 0:
        data = data[:at]
    elif what == 1:
        for _ in range(rng.choice([1, 1, 5, 50])):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif what == 2:
        data[at:at] = rng.randbytes(rng.choice([1, 8, 100]))
    elif what == 3:
        data[at:at + 8] = rng.choice([b'\xff'*8, b'\0'*8, rng.randbytes(8), b'99999999'])
    else:
        data = data*2
    file.write_bytes(bytes(data))


def change_header(rng: random.Random, file: Path) -> None:
    "A safetensors header that says something else"
    if file.suffix != '.safetensors':
        return change_bytes(rng, file)
    raw = file.read_bytes()
    size = int.from_bytes(raw[:8], 'little')
    header = json.loads(raw[8:8 + size])
    entry = header[rng.choice(list(header))]
    what = rng.randrange(4)
    if what == 0:
        entry['shape'] = rng.choice([[10**12], [2**62, 4], [-1], [], [0], ['x'], [2**31, 2**31]])
    elif what == 1:
        entry['data_offsets'] = rng.choice([[0, 10**12], [0, 0], [-5, 5], [8, 4], [0]])
    elif what == 2:
        entry['dtype'] = rng.choice(['F64', 'I8', 'BF16', 'F8_E4M3', 'Q4', '', 'BOOL'])
    else:
        header['__metadata__'] = rng.choice([{'values': '{'}, {'values': '[1]'}, {'values': '['*9999}, {'x': 'y'}, {'values': '{"k": -1}'}])
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, 'little') + text + raw[8 + size:])


def change(rng: random.Random, folder: Path, mark: Path) -> None:
    "One change to one file"
    file = rng.choice([p for p in folder.rglob('*') if p.is_file()])
    what = rng.random()
    if what < .04:
        file.unlink()
    elif what < .08:
        file.write_bytes(pickle.dumps({'W_enc': Evil(mark)}))
    elif what < .12:
        torch.save({'W_enc': Evil(mark), 'b_enc': torch.zeros(16)}, file.open('wb'))
    elif what < .35:
        change_bytes(rng, file)
    elif file.suffix in ('.json', '.yaml'):
        change_config(rng, file)
    else:
        rng.choice([change_tensors, change_header])(rng, file)


def attempt(name: str, seed: int, good: Path, path: str, scratch: Path) -> bool:
    "Whether an SAE that was changed still loads; fails on anything but a LoadError"
    rng, mark = random.Random(f'{name}-{seed}'), scratch/'code-was-run'
    folder = scratch/'sae'
    shutil.copytree(good, folder)
    try:
        change(rng, folder, mark)
        kw = {} if rng.random() < .3 else dict(converter=name.split()[0])
        sae, cfg, _ = SAE.from_pretrained_with_cfg_and_sparsity(folder, path, allow_pickle=True, dtype=rng.choice(['float32', None]), **kw)
        json.dumps(cfg)
        assert all(t.isfinite().all() for t in sae.state_dict().values())
        return True
    except LoadError:
        return False
    finally:
        assert not mark.exists(), 'a pickle ran code'
        shutil.rmtree(folder)


def memory() -> float: return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024   # MB at most so far


@pytest.fixture
def good(tmp_path, request):
    torch.manual_seed(0)
    path = PRODUCERS[request.param](tmp_path/'good')
    return request.param, tmp_path/'good', path, tmp_path


each = pytest.mark.parametrize('good', PRODUCERS, indirect=True)


def test_every_format_has_a_producer():
    assert {n for n, (cls, _) in FORMATS.items() if cls.weights and cls.__module__.startswith('sae_workbench')} == {p.split()[0] for p in PRODUCERS}


@each
@pytest.mark.filterwarnings('ignore')
def test_unchanged_it_loads_and_says_what_it_is(good):
    name, folder, path, _ = good
    sae = SAE.from_pretrained(folder, path, allow_pickle=True)
    assert sae.cfg.d_in == 8*len(getattr(sae.cfg, 'd_views', [8]))
    named = SAE.from_pretrained(folder, path, allow_pickle=True, converter=name.split()[0])
    assert all(torch.equal(v, named.state_dict()[k]) for k, v in sae.state_dict().items())


@each
@pytest.mark.filterwarnings('ignore')
def test_changed(good):
    name, folder, path, scratch = good
    SAE.from_pretrained(folder, path, allow_pickle=True)   # an old torch reads no pickles, which is said here
    before = memory()
    loaded = sum(attempt(name, seed, folder, path, scratch) for seed in range(60))
    assert 0 < loaded < 60   # some changes do no harm, most do
    assert memory() - before < 300


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')
def test_changed_for_long(tmp_path):
    made = {f: PRODUCERS[f](tmp_path/f) for f in PRODUCERS}
    end, seed, early = time.time() + float(os.environ.get('SAE_FUZZ_SECONDS', 600)), 1000, None
    while time.time() < end:
        for name, path in made.items():
            attempt(name, seed, tmp_path/name, path, tmp_path)
        seed += 1
        early = early or (memory() if seed == 1050 else None)
    print(f'{(seed - 1000)*len(made)} files, {memory():.0f} MB at most')
    assert early is None or memory() - early < 300
