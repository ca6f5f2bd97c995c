# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Packs rows by an executor of datatrove, where one machine is outgrown: a task for each file, with a log of its own.

    pip install "transformers-valley[scale]"
    python examples/pack_with_datatrove.py rows.jsonl -o packed --media-root clips --model path/to/valley --tasks 64

Tasks run on this machine, `--workers` at a time; with `--slurm PARTITION` as a job array of Slurm, in which all
folders have to be the same on every node. The same command goes on where it was stopped.
"""

import argparse
from dataclasses import dataclass
from typing import Any

from datatrove.executor import LocalPipelineExecutor, SlurmPipelineExecutor

from transformers_valley import ValleyVideoProcessor
from transformers_valley.checkpoint import find_checkpoint
from transformers_valley.data import load_rows
from transformers_valley.data.card import write_packed_card
from transformers_valley.data.frames import PackSettings, list_shards
from transformers_valley.video_decoding import available_cores


@dataclass
class PackPart:
    """A step of a pipeline that needs no documents: the rank is the number of the file that it makes."""

    files: list[str]
    output: str
    media_root: str | None
    settings: PackSettings

    def __call__(self, documents: Any, rank: int = 0, world_size: int = 1) -> None:
        # Here, since a task of Slurm gets this class without the names around it.
        from transformers_valley.data import load_rows
        from transformers_valley.data.packing import pack

        rows = load_rows(self.files, self.media_root)
        pack(rows, self.output, self.settings, num_shards=world_size, part=(rank, world_size), workers=1)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+")
    parser.add_argument("--output", "-o", required=True)
    parser.add_argument("--media-root")
    parser.add_argument("--model")
    parser.add_argument("--tasks", type=int, required=True, help="tasks, and files to write")
    parser.add_argument("--workers", type=int, help="tasks at a time; by default one for each core, in Slurm all")
    parser.add_argument("--logs", help="folder of the logs, by default OUTPUT.logs")
    parser.add_argument("--slurm", metavar="PARTITION")
    parser.add_argument("--time", default="24:00:00", help="of a task in Slurm")
    args = parser.parse_args(argv)

    processor = ValleyVideoProcessor()  # as a new Valley samples
    if args.model:
        processor = find_checkpoint(args.model).load_processor().video_processor
    load_rows(args.files, args.media_root)  # once into the cache, before many tasks read it
    step = PackPart(args.files, args.output, args.media_root, PackSettings.of(processor))
    # Which files are there, the folder tells, and not the logs, which may be those of another folder.
    logs = args.logs or f"{args.output.rstrip('/')}.logs"
    common = {"pipeline": [step], "tasks": args.tasks, "logging_dir": logs, "skip_completed": False}
    if args.slurm:
        workers = args.workers or -1
        SlurmPipelineExecutor(partition=args.slurm, time=args.time, job_name="pack", workers=workers, **common).run()
    else:
        LocalPipelineExecutor(workers=args.workers or available_cores(), **common).run()
        list_shards(args.output)  # an error if files are missing
        write_packed_card(args.output)


if __name__ == "__main__":
    main()
