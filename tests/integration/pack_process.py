"""Packs planned shards in a process of its own, so that a test can watch it from outside.

Takes the stream's settings and the references of the shards as JSON; prints, behind ``RESULT``, what each
shard measured, or the error.
"""

import json
import sys
from dataclasses import asdict

from include.log_rollup.errors import RollupError
from include.log_rollup.packing import pack_shard
from include.log_rollup.plan import ShardRef
from include.log_rollup.streams import Stream
from log_rollup_plugin.hook import PooledS3Hook
from log_rollup_plugin.operators import PACKING_CONTROL_CONNECTIONS


def main(settings: str, shards: str) -> int:
    """Pack; 0 if all went well, 1 after an error of the pipeline."""
    stream = Stream.model_validate_json(settings)
    try:
        for shard in json.loads(shards):
            hook = PooledS3Hook.for_stream(stream, stream.max_connections, PACKING_CONTROL_CONNECTIONS)
            print("RESULT", json.dumps(asdict(pack_shard(hook, stream, ShardRef(**shard)))), flush=True)
    except RollupError as error:
        print("RESULT", f"{type(error).__name__}: {error}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
