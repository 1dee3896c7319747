"""Runs steps of an hour in a process of its own, with whatever version of the pipeline is on its sys.path.

Takes the bucket, the references of the shards (of an earlier call, or ``null``) and the names of the steps;
prints, behind ``RESULT``, the references and the error that ended it, if one did.
"""

import json
import sys
from dataclasses import asdict

from include.log_rollup.errors import RollupError
from include.log_rollup.hour.plan import ShardRef
from tests.support.hour_on_server import Pipeline, stream_on


def main(bucket: str, shards: str, *steps: str) -> None:
    """Run the steps until one fails."""
    # The plain client is only for tests that look; none does here.
    pipeline = Pipeline(stream_on(bucket), None, bucket)
    refs = [ShardRef(**shard) for shard in json.loads(shards) or ()]
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
    print("RESULT", json.dumps({"refs": [asdict(ref) for ref in refs], "error": error}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
