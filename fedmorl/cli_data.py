"""The commands `fedmorl data card` and `fedmorl data verify`: what a log holds, and whether it is whole."""

import argparse
from pathlib import Path

from fedmorl.notebook import RunError

SUMMARY = "describe an offline log (card), or check that it is whole (verify)"
EXAMPLES = """\
A log is the HDF5 file that OfflineDataset.save writes. Both commands read all of it and check every field and
the content hash; a broken one gets one sentence and exit status 1.

  fedmorl data card _build/data/csma_ca_10.h5
  fedmorl data verify _build/data/csma_ca_10.h5
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `fedmorl data`."""
    parser.add_argument("what", choices=("card", "verify"), help="card: describe it; verify: check it, say one line")
    parser.add_argument("path", type=Path, metavar="PATH", help="a log, .h5")


def command(options: argparse.Namespace) -> int:
    """`fedmorl data`."""
    from fedmorl.data import DatasetError, OfflineDataset

    try:
        log = OfflineDataset.load(options.path)
    except DatasetError as error:
        raise RunError(str(error)) from None
    if options.what == "verify":
        print(f"{options.path}: whole, {log.n_transitions} transitions, content {log.content_hash[:12]}")
        return 0
    from fedmorl.data.card import card

    print(card(log))
    return 0
