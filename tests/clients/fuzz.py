"""GET /openapi.json, held to by schemathesis: what it documents is what the server does."""

import os
import pathlib
import re
import subprocess
import sys
import tempfile

from common import Server, check

# Paths that are not called, with the reason.
LEFT_OUT = {
    "/admin/drain": "it would end the server",
}
# Replaced by the rules of the same names in fuzz_rules.py, which have exceptions.
REPLACED = "not_a_server_error,positive_data_acceptance,negative_data_rejection"
EXAMPLES = 25


@check("schemathesis")
def schemathesis_finds_nothing():
    folder = pathlib.Path(__file__).parent
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", Server.base + "/openapi.json",
        "--exclude-checks", REPLACED, "--max-examples", str(EXAMPLES), "--seed", "1", "--generation-deterministic",
        "--continue-on-failure", "--no-color",
    ]  # fmt: skip
    for path in LEFT_OUT:
        command += ["--exclude-path", path]
    environment = os.environ | {"SCHEMATHESIS_HOOKS": "fuzz_rules", "PYTHONPATH": str(folder)}
    with tempfile.TemporaryDirectory() as scratch:
        done = subprocess.run(command, cwd=scratch, env=environment, capture_output=True, text=True, timeout=900)
    print(done.stdout, file=sys.stderr)
    counted = re.search(r"(\d+) generated", done.stdout)
    assert counted and int(counted[1]) > 500, done.stdout[-2000:] + done.stderr[-2000:]
    assert done.returncode == 0, done.stdout[done.stdout.rfind("SUMMARY") :]
