"""Runs steps of an hour in a process of its own, with the version of the pipeline that is first on ``sys.path``.

Arguments: the bucket, the references of the planned shards as JSON (``null`` if there are none yet), and the names
of the steps. After the word ``RESULT`` it prints the result of :func:`run_steps` as JSON.
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


def main(bucket: str, shards: str, *steps: str) -> None:
    """Run the steps and print the result."""
    # The steps do not use the plain client.
    pipeline = Pipeline(stream_on(bucket), None, bucket)
    print("RESULT", json.dumps(run_steps(pipeline, json.loads(shards), steps)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
