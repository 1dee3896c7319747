"""Packs planned shards, or rolls a whole hour up, in a process of its own that a test can watch, limit and kill.

Prints, behind ``RESULT``, what each shard measured, or the error.
"""

import argparse
import json
import sys
from dataclasses import asdict

from include.log_rollup.errors import RollupError
from include.log_rollup.hour.plan import ShardRef
from include.log_rollup.steps import packer
from include.log_rollup.streams import Stream
from tests.support.hour_on_server import Pipeline


def main() -> int:
    """Do what is asked for; 0 if all went well, 1 after an error of the pipeline."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("settings", help="of the stream, as JSON")
    parser.add_argument("--shards", help="references of planned shards as JSON; without them, the whole hour")
    parser.add_argument(
        "--copy-in-parts-above", type=int, help="bytes; so that a test does without objects of 5 GiB"
    )
    arguments = parser.parse_args()
    if arguments.copy_in_parts_above:
        packer.LARGEST_COPY_BYTES = packer.COPY_RANGE_BYTES = arguments.copy_in_parts_above
    stream = Stream.model_validate_json(arguments.settings)
    # No client of its own: what it does here goes through the hook alone.
    pipeline = Pipeline(stream, None, stream.raw.bucket)
    try:
        if arguments.shards is None:
            refs = pipeline.plan().shards
        else:
            refs = [ShardRef(**shard) for shard in json.loads(arguments.shards)]
        for ref in refs:
            print("RESULT", json.dumps(asdict(pipeline.pack(ref))), flush=True)
        if arguments.shards is None:
            pipeline.validate()
            pipeline.complete()
    except RollupError as error:
        print("RESULT", f"{type(error).__name__}: {error}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
