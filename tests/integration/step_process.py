"""Runs steps of hours with the version of the pipeline that is first on ``sys.path``.

Each line of standard input is a JSON object with ``bucket``, ``refs`` (the references of the planned shards, or
null) and ``steps`` (names). For each line, it prints ``RESULT`` and the result of :func:`run_steps` as JSON.
"""

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from include.log_rollup.errors import RollupError
from include.log_rollup.hour.plan import ShardRef
from tests.support.hour_on_server import Pipeline, stream_on


def run_steps(
    pipeline: Pipeline, shards: Iterable[Mapping[str, Any]] | None, steps: Iterable[str]
) -> dict[str, Any]:
    """Run steps until one fails; returns the references of the shards and the error, if any."""
    refs = [ShardRef(**shard) for shard in shards or ()]
    error = None
    try:
        for step in steps:
            if step == "plan":
                refs = pipeline.plan().shards
            elif step == "pack":
                for ref in refs:
                    pipeline.pack(ref)
            else:
                getattr(pipeline, step)()
    except RollupError as failure:
        error = f"{type(failure).__name__}: {failure}"
    return {"refs": [asdict(ref) for ref in refs], "error": error}


def main() -> None:
    """Run the steps of each line."""
    for line in sys.stdin:
        request = json.loads(line)
        # The steps do not use the plain client.
        pipeline = Pipeline(stream_on(request["bucket"]), None, request["bucket"])
        print("RESULT", json.dumps(run_steps(pipeline, request["refs"], request["steps"])), flush=True)


if __name__ == "__main__":
    main()
