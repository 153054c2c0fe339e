"""Append a user and rank 50,000 cached records in each request; print the memory of the process and of the users.

    python benchmarks/growing_requests.py

A request appends a row to a 64-wide table of users (GrowableEmbedding) and to its Adam state, takes the pool of records
from a ByteLimitedCache, which computes it anew after 1,000 requests, and recommends 10 of them. The printed memory is
what was added after 100 warm-up requests. "rows": the users' rows with their Adam state. "rest": resident minus rows.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from gru4rec_fast.data import Vocabulary
from gru4rec_fast.models import ByteLimitedCache, CandidatePool, recommend
from gru4rec_fast.nn import GrowableEmbedding, SessionNetwork
from gru4rec_fast.profiling import memory_meter

WIDTH = 64
MIB = 2**20


def main() -> None:
    """Make the requests, and print a line after each tenth of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--records", type=int, default=50_000)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    vocabulary = Vocabulary(np.arange(2 * options.records))
    network = SessionNetwork(len(vocabulary), [WIDTH], seed=0).eval()
    users = GrowableEmbedding(1, WIDTH)
    optimizer = torch.optim.Adam(users.parameters())
    users(torch.zeros(1, dtype=torch.int64)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    requests_made = 0
    cache = ByteLimitedCache(16 * MIB, time_to_live=1000, clock=lambda: requests_made)
    rng = np.random.default_rng(0)

    def new_pool() -> CandidatePool:
        return CandidatePool(vocabulary, rng.choice(len(vocabulary), options.records, replace=False))

    def request() -> None:
        users.append_rows(1, optimizer=optimizer)
        pool = cache.get_or_compute("recent records", new_pool)
        recommend(network, vocabulary, [[requests_made % len(vocabulary)]], k=10, candidates=pool)

    for _ in range(100):
        request()
        requests_made += 1
    baseline, started = memory_meter().read()[0], time.perf_counter()
    for tenth in range(1, 11):
        for _ in range(options.requests // 10):
            request()
            requests_made += 1
        resident = memory_meter().read()[0] - baseline
        rows = 3 * 4 * WIDTH * (len(users.weight) - 101)  # float32: a weight and two moments; 101 rows are older
        per_request = (time.perf_counter() - started) / (tenth * (options.requests // 10))
        print(
            f"{requests_made - 100:8,} requests: rows {rows / MIB:6.1f} MiB, resident {resident / MIB:6.1f} MiB, "
            f"rest {(resident - rows) / MIB:5.1f} MiB; {1000 * per_request:.2f} ms a request",
            flush=True,
        )
    print(cache.statistics())


if __name__ == "__main__":
    main()
