"""Holds the figures of `podium compare` to those of `ir_measures` (pip install ir_measures).

    podium compare SET_DIR ... --primary DIR --json report.json --runs runs
    python3 tests/clients/measures.py report.json runs SET_DIR ...
"""

import json
import pathlib
import sys

import ir_measures
from ir_measures import AP, RR, R, nDCG

MEASURES = [nDCG @ 10, RR @ 10, AP, R @ 10]


def qrels(folder):
    for line in (folder / "qrels.tsv").read_text().splitlines():
        query, document, grade = line.split("\t")[0], line.split("\t")[-2], line.split("\t")[-1]
        if grade.lstrip("-").isdigit():
            yield ir_measures.Qrel(query, document, int(grade))


def main():
    report, runs, *sets = map(pathlib.Path, sys.argv[1:])
    rows = {}
    for row in json.loads(report.read_text())["rows"]:
        name = row["way"] + (f" + first stage, {row['fused']:.2f}" if row["fused"] is not None else "")
        rows["".join(c if c.isalnum() else "-" for c in name.replace(" + first stage, ", "+fused-"))] = row
    worst, compared, skipped = 0.0, 0, 0
    for name, row in rows.items():
        if row["way"].startswith("budget"):
            continue
        found, ties = [], False
        for folder in sets:
            run = list(ir_measures.read_trec_run(str(runs / folder.name / f"{name}.run")))
            ties |= len({(line.query_id, line.score) for line in run}) < len(run)
            values = ir_measures.calc_aggregate(MEASURES, list(qrels(folder)), run)
            found.append([values[measure] for measure in MEASURES])
        for place, values in enumerate(found):
            worst = max(worst, abs(values[0] - row["by_set"][place]))
        for place, ours in enumerate([row["ndcg"], *row["others"]]):
            # ir_measures has RR with a cutoff from another provider than trec_eval, with an order of ties of its own.
            if ties and MEASURES[place] == RR @ 10:
                skipped += 1
                continue
            worst = max(worst, abs(sum(values[place] for values in found) / len(found) - ours))
        compared += 1
    print(f"{compared} ways on {len(sets)} sets: at most {worst:.1e} apart; RR@10 of {skipped} with ties left out")
    sys.exit(worst > 1e-6 or compared == 0)


main()
