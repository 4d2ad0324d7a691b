"""The command line's side of labelling: its flags, and what each of them asks for."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Sequence

# Exit codes of a labelling that can go on: after a signal, and after limits or rows that came to nothing for now.
_UNFINISHED = {"SIGINT": 130, "SIGTERM": 143}
_INCOMPLETE = 3


def add_flags(sub: argparse.ArgumentParser) -> None:
    """Adds the flags of `dsbs label`."""
    sub.add_argument("--dataset", required=True, help="a name such as cqa, or a gin file of your own")
    sub.add_argument("--teacher", required=True, help="gin file that says whom to ask, by path or name (teachers/vllm)")
    sub.add_argument("--split", default="train", help="default: %(default)s; what is held out of train is in it")
    sub.add_argument("--output", help="folder for the labellings of this dataset (default: labels/DATASET)")
    sub.add_argument("--prompt", help="prompt file (default: the one that comes with the dataset)")
    sub.add_argument("--max-cost", type=float, help="stop before more than this is spent (needs Prices)")
    sub.add_argument("--max-requests", type=int, help="stop before more than this many requests are sent")
    sub.add_argument("--shard", default="0/1", help="I/N: label every N-th row, from row I; join with --merge")
    sub.add_argument("-n", type=int, default=2, help="for --dry-run: how many rows (default: %(default)s)")
    sub.add_argument("--report", action="store_true", help="judge what was labelled: text, report.json, report.html")
    instead = sub.add_mutually_exclusive_group()
    instead.add_argument("--dry-run", action="store_true", help="print exactly what would be sent; send nothing")
    instead.add_argument("--estimate", action="store_true", help="print requests, tokens and money; send nothing")
    instead.add_argument(
        "--merge",
        nargs="*",
        metavar="FOLDER",
        help="join shards into the labelled rows; send nothing. FOLDERs: labellings that other machines made",
    )


def run(arguments: argparse.Namespace, flags: Sequence[str], bindings: Sequence[str]) -> int:
    """Does what the flags say; returns 0 where all is labelled, 3 where something is left to do, 130 or 143 after a
    signal.

    Args:
      arguments: of `add_flags`, with `gin_file` and `data_dir`.
      flags: bindings of the other flags.
      bindings: as after `--gin.`.

    Raises:
      ValueError, OSError: whatever is wrong, in a sentence.
    """
    from dsbs_jax import gin_config
    from dsbs_jax.data.label_card import summary
    from dsbs_jax.data.label_folder import take_journals
    from dsbs_jax.data.labelling import LabelConfig, Labelling

    index, _, count = arguments.shard.partition("/")
    if not (index.isdecimal() and count.isdecimal()):
        raise ValueError(f"--shard is {arguments.shard!r}; it must be I/N, e.g. 0/4.")
    part = int(count) > 1 and arguments.merge is None
    if part and arguments.report:
        raise ValueError("--report judges all rows: give it with --merge, when every shard is labelled.")
    own = {
        "LABELS_DIR": arguments.output or f"labels/{pathlib.Path(arguments.dataset).stem}",
        "SPLIT": arguments.split,
        "PROMPT": arguments.prompt,
        "MAX_COST": arguments.max_cost,
        "MAX_REQUESTS": arguments.max_requests,
        "LabelConfig.shard": (int(index), int(count)),
    }
    given = [f"{name}={value!r}" for name, value in own.items() if value is not None]
    files = ["runs/train", "runs/label", gin_config.dataset_file(arguments.dataset), arguments.teacher]
    config = gin_config.parse([*files, *arguments.gin_file], [*flags, *given, *bindings], LabelConfig)()
    labelling = Labelling(config)
    if arguments.dry_run:
        print(labelling.dry_run(arguments.n))
        return 0
    if arguments.estimate:
        print(labelling.estimate().text())
        return 0
    asked = None
    if arguments.merge is not None:
        take_journals(labelling.folder, labelling.identity, arguments.merge)
    else:
        asked = labelling.ask()
        print(asked.text())
        if asked.stopped in _UNFINISHED:
            # Whoever sent a signal wants an end; `--merge` writes what there is.
            return _UNFINISHED[asked.stopped]
    if part:
        print(f"Shard {arguments.shard} lies in {labelling.folder}/journal; join all shards with --merge.")
    else:
        card = labelling.written() if asked is not None and asked.nothing_new else None
        if card is not None:
            print("Nothing is new: the labelled rows are those of the last run. (--merge writes them again.)")
        print(summary(card or labelling.write()))
        if arguments.report:
            print(labelling.report())
        print(f"Labelled rows: {labelling.folder}")
    return 0 if asked is None or asked.complete else _INCOMPLETE
