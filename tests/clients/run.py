"""Runs the peers' own clients and contracts against a Podium that serves ms-marco-MiniLM-L-12-v2.

    podium serve --precision f32 --primary ../shared/data/models/ms-marco-MiniLM-L-12-v2
    python -m venv CLIENTS && CLIENTS/bin/pip install -r tests/clients/requirements.txt
    CLIENTS/bin/python tests/clients/run.py http://127.0.0.1:8080 [NAME ...]

Nothing but the base address differs from how each client is used against its own service. Prints `ok`, `FAILED` or
`skipped` and the name of each check; names choose checks by their beginning (`pinned_vllm`, `pinned_infinity` need a
server with that pin, `repository_` one with a repository). Ends with 1 if a check failed.
"""

import os
import sys
import traceback

# Nobody but the server under test is called.
os.environ |= {
    "DO_NOT_TRACK": "1",
    "HAYSTACK_TELEMETRY_ENABLED": "False",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
}

import common

# Each registers its checks.
import official, gateway, frameworks, bodies, open_inference, contracts, fuzz  # noqa: E401, F401


def chosen(name, names):
    # What needs a server with a pin (`[wire.pins] rerank = "vllm"`, or "infinity") runs only where it is named.
    return name.startswith(tuple(names)) if names else not name.startswith(("pinned_", "repository_"))


def main():
    base, *names = sys.argv[1:] or [common.Server.base]
    common.Server.base = base.rstrip("/")
    passed, failed, skipped = 0, 0, 0
    for check in common.CHECKS:
        if not chosen(check.name, names):
            continue
        if check.missing:
            skipped += 1
            print(f"skipped {check.name}: no package {', '.join(check.missing)}", flush=True)
            continue
        try:
            check.run()
            passed += 1
            print(f"ok      {check.name}", flush=True)
        except Exception as error:
            failed += 1
            print(f"FAILED  {check.name}: {type(error).__name__}: {error}", flush=True)
            traceback.print_exc()
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
