"""Rows a second from a cache on disk, in order and shuffled over all shards, and while it is written.

    python benchmarks/cache.py [--rows 200000] [--d-in 512] [--dtype float32] [--folder DIR]

The files have just been written and read once, so they come from the page cache: this is the cost of the order, not of the disk. On a disk that
is slower than the page cache, random rows cost more, because each of them reads whole pages. The best of three epochs is printed."""
import argparse, tempfile, time

def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--rows', type=int, default=200_000)
    ap.add_argument('--d-in', type=int, default=512)
    ap.add_argument('--dtype', default='float32')
    ap.add_argument('--folder', help='where the cache is written; the system\'s temporary folder if left out')
    a = ap.parse_args()
    import torch
    from sae_workbench.activations.cache_format import cache_bytes
    from sae_workbench.activations.cache_read import ShardSource
    from sae_workbench.activations.cache_write import write_cache
    from sae_workbench.activations.sources import TensorSource
    torch.set_num_threads(1)
    x, size = torch.randn(a.rows, a.d_in), cache_bytes(a.rows, a.d_in, a.dtype)

    def show(name, seconds): print(f'{name:>10} {seconds:8.2f} s {a.rows/seconds:12,.0f} rows/s {size/seconds/1e6:10,.0f} MB/s', flush=True)

    with tempfile.TemporaryDirectory(dir=a.folder) as folder:
        start = time.perf_counter()
        write_cache(TensorSource(x, epochs=1), f'{folder}/acts', dtype=a.dtype)
        print(f'{a.rows:,} rows of {a.d_in} {a.dtype}, {size/1e6:,.0f} MB, 4096 rows at a time, one thread')
        show('written', time.perf_counter() - start)
        for name, shuffle in (('in order', False), ('shuffled', True)):
            seconds = []
            for epoch in range(4):   # the first only warms up
                start = time.perf_counter()
                n = sum(len(rows) for rows in ShardSource(f'{folder}/acts', shuffle=shuffle, seed=epoch, epochs=1))
                seconds.append(time.perf_counter() - start)
                assert n == a.rows
            show(name, min(seconds[1:]))

if __name__ == '__main__': main()
