"""Fill time and peak memory of the mixing buffer, for 25k to 400k rows of 512 float32.

    python benchmarks/buffer.py [--peer PYTHON] [--sizes 25000,50000,...] [--repeats 3]

Every measurement runs in a fresh process; of --repeats measurements the shortest times and the largest peak are shown.
--peer names an interpreter that has sae-lens; its buffer then runs beside ours on the same rows
(up to --peer-max rows, because its fill time grows faster than the buffer)."""
import argparse, json, os, subprocess, sys, time

D, PORTION, BATCH = 512, 2048, 2048   # width, rows a model batch brings, rows in a training batch

def status(key):
    with open('/proc/self/status', encoding='utf-8') as f: return next(int(l.split()[1]) for l in f if l.startswith(key + ':')) * 1024

def measure(lib, size):
    import torch
    torch.set_num_threads(1)
    x = torch.randn(PORTION, D)
    def rows():
        while True: yield x.clone()
    if lib == 'ours':
        from sae_workbench.activations.buffer import MixingBuffer
        make = lambda n=size: MixingBuffer(rows(), n, BATCH, 0.5)
    else:
        from sae_lens.training.mixing_buffer import mixing_buffer
        make = lambda n=size: mixing_buffer(n, BATCH, rows(), 0.5)
    warm = make(2 * BATCH)
    for _ in range(4): next(warm)
    del warm
    try: open('/proc/self/clear_refs', 'w', encoding='utf-8').write('5')   # forget the peak of the imports
    except OSError: pass
    base, t = status('VmRSS'), time.perf_counter()
    batches = make()
    next(batches)
    fill, t, n = time.perf_counter() - t, time.perf_counter(), max(1, 2 * size // BATCH)
    for _ in range(n): next(batches)
    serve = (time.perf_counter() - t) / (n * BATCH) * 1e6
    peak = (status('VmHWM') - base) / (size * D * 4)
    return dict(lib=lib, rows=size, fill_s=round(fill, 3), us_per_row=round(serve, 2), peak=round(peak, 2))

def child(python, lib, size):
    env = os.environ | {'MALLOC_MMAP_THRESHOLD_': str(2**20)}   # freed portions go back to the system: the peak is what is held
    out = subprocess.run([python, __file__, '--one', lib, str(size)], capture_output=True, text=True, env=env)
    if out.returncode: sys.exit(out.stderr)
    return json.loads(out.stdout.splitlines()[-1])

def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--peer', help='a Python interpreter with sae-lens')
    ap.add_argument('--sizes', default='25000,50000,100000,200000,400000')
    ap.add_argument('--peer-max', type=int, default=100_000)
    ap.add_argument('--repeats', type=int, default=1)
    ap.add_argument('--one', nargs=2, help=argparse.SUPPRESS)
    a = ap.parse_args()
    if a.one: print(json.dumps(measure(a.one[0], int(a.one[1])))); return
    print(f"{'buffer':>8} {'rows':>8} {'fill, s':>9} {'serve, µs/row':>14} {'peak / logical size':>20}")
    for size in map(int, a.sizes.split(',')):
        for lib, python in [('ours', sys.executable)] + ([('peer', a.peer)] if a.peer and size <= a.peer_max else []):
            runs = [child(python, lib, size) for _ in range(a.repeats)]
            r = {k: (max if k == 'peak' else min)(run[k] for run in runs) for k in runs[0]}
            print(f"{r['lib']:>8} {r['rows']:>8} {r['fill_s']:>9.3f} {r['us_per_row']:>14.2f} {r['peak']:>20.2f}",
                  flush=True)

if __name__ == '__main__': main()
