"""The protocol between `benches/cpu.rs` and a peer's worker.

The first line of standard input is the pairs' lengths in tokens, as JSON. The worker answers
"ready BATCH", and each further line with the milliseconds that all pairs took: CPU time on one
thread, wall time on several. Pairs are sorted by length and padded, in batches of the size that was
fastest in a trial.
"""

import json
import sys
import time

SIZES = (1, 2, 4, 8, 16, 32)


def serve(prepare, score, threads=1, start=None):
    """Answers rounds until the input ends.

    `prepare(lengths)` makes a padded batch of pairs, the longest first; `score(batch, state)` scores
    it. `start()`, if given, is timed too, and makes the state that a round's batches share.
    """
    clock = time.process_time if threads == 1 else time.perf_counter
    lengths = sorted(json.loads(sys.stdin.readline()), reverse=True)

    def batches(size):
        return [prepare(lengths[at : at + size]) for at in range(0, len(lengths), size)]

    def run(batches):
        started = clock()
        state = start() if start else None
        for batch in batches:
            score(batch, state)
        return (clock() - started) * 1e3

    choices = {size: batches(size) for size in SIZES if size < 2 * len(lengths)}
    for made in choices.values():
        run(made[-1:])
    trials = {size: run(made) for size, made in choices.items()}
    # The two that were fastest run again, since one run may have been disturbed.
    for size in sorted(trials, key=trials.get)[:2]:
        trials[size] = min(trials[size], run(choices[size]))
    best = min(trials, key=trials.get)
    print("trials in ms:", {size: round(time) for size, time in trials.items()}, file=sys.stderr)
    print(f"ready {best}", flush=True)
    for _ in sys.stdin:
        print(run(choices[best]), flush=True)
