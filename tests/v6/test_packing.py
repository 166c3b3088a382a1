"""Contexts equal those of sae-lens 6 (tests/fixtures/make_packing.py wrote the table)."""
import json
from pathlib import Path
import numpy as np
import pytest
from sae_workbench.activations.tokens import Packer, one_context

TABLE = json.loads((Path(__file__).parents[1]/'fixtures'/'packing.json').read_text(encoding='utf-8'))

def contexts(seqs, size, begin_batch, begin_sequence, separator, one_each):
    seqs = [np.array(s, dtype=np.int64) for s in seqs]
    if one_each: return [c.tolist() for s in seqs for c in one_context(s, size, begin_batch if begin_sequence is None else begin_sequence)]
    packer = Packer(size, begin_batch, begin_sequence, separator)
    return [c.tolist() for s in seqs for c in packer.add(s)]

@pytest.mark.parametrize('i', range(len(TABLE['sequences'])))
def test_packing(i):
    cases = [c for c in TABLE['cases'] if c[0] == i]
    assert len(cases) > 100
    for _, *args, expected in cases: assert contexts(TABLE['sequences'][i], *args) == expected, args
