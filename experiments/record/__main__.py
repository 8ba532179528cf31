r"""
# Make the record

Runs what the [protocol](protocol.html) lists and is not recorded yet, part by part. Stop it at any
moment and start it again: a run that was interrupted goes on, and what is recorded needs no run any
more, for a record outlives the weights.

    python -m experiments.record --out records/2026-11-21_seed_table

On a processor without bf16, `--precision auto` computes what is missing in fp32, and the page marks
it; a run that was interrupted goes on in the precision it began in, so say it each time.
"""

import tempfile
from datetime import date
from pathlib import Path

from distillation import runs
from distillation.data import cifar10
from distillation.errors import ConfigError, unknown
from distillation.precision import resolve_precision
from experiments.command_line import Parser, run_main
from experiments.record.check import check
from experiments.record.front import differences, publish
from experiments.record.making import Maker
from experiments.record.plan import keys
from experiments.record.protocol import FULL, GROUPS, SMOKE, Scale
from experiments.record.subset import write_subset
from experiments.record.training import Runs

PROJECT = Path(__file__).resolve().parents[2]
# What a record can be computed in
COMPUTED = ("fp32", "bf16", "auto")
RECORDS, README = PROJECT / "records", PROJECT / "README.md"


def _parse(arguments: list[str] | None):
    parser = Parser(description="Make, go on with, or check the record.", allow_abbrev=False)
    parser.add_argument("--out", metavar="FOLDER", help="the record (else the newest in records/)")
    parser.add_argument("--data", help="folder or archive of the images")
    parser.add_argument(
        "--images", metavar="TEXT", help="what the page says of them, such as 'a JPEG copy'"
    )
    parser.add_argument("--runs", metavar="ROOT", help="root of the run store (else ./logs)")
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="GROUP",
        help=f"of {', '.join(GROUPS)}; or one part, such as small_0",
    )
    parser.add_argument(
        "--precision",
        metavar="NAME",
        help="compute what is missing in fp32, bf16 or auto (else in the protocol's)",
    )
    parser.add_argument("--check", metavar="FOLDER", help="compute a record's page again, compare")
    parser.add_argument("--smoke", action="store_true", help="rehearse all of it in minutes")
    options = parser.parse_args(arguments)
    options.only = options.only or []
    for name in options.only:
        known = {*GROUPS, *keys(SMOKE if options.smoke else FULL)}
        if name not in known:
            raise ConfigError(unknown("group or part", name, known))
    if options.precision:
        if options.precision not in COMPUTED:
            raise ConfigError(unknown("precision", options.precision, COMPUTED))
        options.precision = resolve_precision(options.precision)
    making = (options.smoke, options.out, options.only, options.images, options.precision)
    if options.check and any(making):
        raise ConfigError("--check only looks; give it alone")
    return options


def main(arguments: list[str] | None = None):
    """
    ## Make the record, check one, or rehearse
    """
    options = _parse(arguments)
    if options.check:
        return _report(Path(options.check))
    if options.smoke:
        return _rehearse(options)
    folder = Path(options.out) if options.out else _newest()
    store = Runs(runs.root(options.runs), options.data)
    print("\n" + _maker(folder, store, FULL, options).make())
    if folder.resolve() == _newest():
        publish(folder, README)
    return _report(folder)


def _rehearse(options):
    """
    ### The whole protocol on a few images, in a folder that is thrown away
    """
    train, test = cifar10(options.data)
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        write_subset(train, test, place / "data")
        folder = Path(options.out) if options.out else place / "record"
        store = Runs(runs.root(place / "logs"), str(place / "data"))
        print("\n" + _maker(folder, store, SMOKE, options).make())
        _report(folder)


def _maker(folder: Path, store: Runs, scale: Scale, options) -> Maker:
    return Maker(folder, store, scale, set(options.only), options.images, options.precision)


def _report(folder: Path) -> None:
    wrong = check(folder)
    # The newest record stands on the front page as well
    if folder.resolve() == _newest():
        wrong += differences(folder, README)
    for line in wrong:
        print(line)
    if wrong:
        raise SystemExit(1)
    print(f"{folder.name}: every figure is what its runs say")


def _newest() -> Path:
    """The newest record that is here, or one of today"""
    there = sorted(RECORDS.glob("*_seed_table"))
    return there[-1] if there else RECORDS / f"{date.today().isoformat()}_seed_table"


#
if __name__ == "__main__":
    run_main(main)
