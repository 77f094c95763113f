"""Run a training, an evaluation, a build or a sweep on a Slurm cluster, or as jobs on this machine.

    python -m launch.submit train configs/arc1.yaml lr=1e-4 --nodes 2 --gpus-per-node 8 --partition gpu --time-min 1440
    python -m launch.submit train configs/arc1.yaml --profile configs/cluster/gpu.yaml --dry-run
    python -m launch.submit train configs/debug.yaml --cluster local --tasks-per-node 2 --wait
    python -m launch.submit build arc-agi-2 --out data/arc2 --parts 16 --profile configs/cluster/cpu.yaml
    python -m launch.submit evaluate runs/arc1/checkpoints/best --data data/arc1 --out predictions --parts 8 \\
        --gpus-per-node 1 --partition gpu
    python -m launch.submit sweep configs/sweeps/outer_loops.yaml --gpus-per-node 1 --partition gpu
    python -m launch.submit build arc-agi-2 --out data/arc2 --parts 16 --retry-failed

A training that reaches its time limit, is preempted or loses a node saves a checkpoint, goes back to the queue, and on
from there: its length does not depend on time limits. So does a part of a sweep. Builds, evaluations and sweeps are
arrays of parts; when all have succeeded, a last job merges them, and --retry-failed submits those again that did not.
What is wrong is said before anything is queued. Scripts, logs and the record of what was submitted are in `jobs` in the
run's or output's folder.

Exit codes: 0 submitted; 2 bad configuration or input, or refused by Slurm, and nothing is queued. With --wait, and for
parts on this machine, that of the work: 75 is stopped with the state saved, and the same command goes on.
"""

import argparse
import sys
from collections.abc import Sequence

from data_pipeline.base.command_line import command_parser
from data_pipeline.base.errors import InputError, exit_code
from data_pipeline.base.extras import require
from data_pipeline.base.paths import path_argument, recordable
from launch.jobs import spec
from launch.jobs.cluster import Cluster, load_cluster

_KINDS = {
    "train": ("train a model, on all nodes at once", "CONFIG.yaml [key=value ...]"),
    "evaluate": (
        "predict the test split, in parts",
        "CHECKPOINT --data DIR --out DIR [options of tools.evaluate]",
    ),
    "build": ("build a dataset, in parts", "PRESET --out DIR [options of data_pipeline.build]"),
    "sweep": ("train the runs of a sweep, in parts", "SWEEP.yaml [options of tools.sweep]"),
}


def _parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return the launcher's own options, and what is for the command that the jobs run."""
    parser = command_parser("launch.submit", __doc__)
    parser.allow_abbrev = False
    kinds = parser.add_subparsers(dest="kind", required=True)
    for kind, (text, usage) in _KINDS.items():
        usage = f"python -m launch.submit {kind} {usage} [options below]"
        of_kind = kinds.add_parser(kind, help=text, description=text, usage=usage, allow_abbrev=False)
        add = of_kind.add_argument
        if kind != "train":
            usual = ("one per run", None) if kind == "sweep" else ("8", 8)
            help_text = f"jobs to share the work ({usual[0]})"
            add("--parts", type=int, default=usual[1], metavar="N", help=help_text)
            retry_help = "submit the parts again that did not succeed, and no others"
            add("--retry-failed", action="store_true", help=retry_help)
        add("--dry-run", action="store_true", help="check everything, print what would run, submit nothing")
        add("--wait", action="store_true", help="follow to the end, and exit with the result")
        add = of_kind.add_argument_group("cluster", "values of the profile, or over them").add_argument
        add("--profile", type=path_argument, metavar="FILE", help="such as configs/cluster/gpu.yaml")
        for key, field in Cluster.model_fields.items():
            name, text = f"--{key.replace('_', '-')}", field.description or "as sbatch"
            action = "append" if field.default_factory is list else "store"
            add(name, metavar="VALUE", action=action, default=argparse.SUPPRESS, help=text)
    return parser.parse_known_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, submit, and wait if asked to."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options, rest = _parse(arguments)
    for word in arguments:
        try:
            recordable(word)
        except ValueError as error:
            raise InputError(f"command line: {word}: {error}.") from None
    require("slurm", "launch.submit")
    from launch.jobs import queue

    given = vars(options)
    cluster = load_cluster(options.profile, {key: given[key] for key in Cluster.model_fields if key in given})
    if options.kind == "train":
        asked = spec.training(rest, cluster)
    else:
        of_kind = {"build": spec.build, "evaluate": spec.evaluation, "sweep": spec.sweep}[options.kind]
        asked = of_kind(rest, options.parts, cluster)
    once = ("--dry-run", "--wait", "--retry-failed", "resume=never")
    again = [word for word in arguments if word not in once]
    asked = asked._replace(resubmit=[*again, *(["--retry-failed"] if asked.is_array else [])])
    job_ids = queue.submit(asked, cluster, dry_run=options.dry_run, retry=given.get("retry_failed", False))
    runs_here = asked.is_array and cluster.cluster == "local"
    return queue.wait(asked, job_ids) if options.wait or runs_here else 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
