"""`popatlas status`: who is done, who failed, why, and what to do."""

from __future__ import annotations

import argparse
import json

from popatlas.cli.arguments import Subparsers, given_path

SHOWN = 50  # scans whose registration has to be looked at


def add_parser(subparsers: Subparsers) -> None:
    """Add the verb `status`."""
    parser = subparsers.add_parser(
        "status",
        help="show the state of each scan at each stage",
        description="Show how many scans are ok, failed, excluded, unavailable or pending at each stage, and why. A failed "
        "channel or page leaves the scan in the group results, and so does a registration that has to be looked at. Exit "
        "code 3: something failed.",
    )
    parser.add_argument("out_dir", type=given_path, help="output folder of a run")
    parser.add_argument("--json", action="store_true", help="print JSON")


def main(args: argparse.Namespace) -> int:
    """Print the ledger's summary; 0 when no scan failed at any stage, 3 otherwise."""
    from popatlas.cohort.ledger import incomplete, left_out, read_ledger, summary
    from popatlas.cohort.remarks import read_remarks, remark_lines

    ledger = read_ledger(args.out_dir)
    counts, out, lacking = summary(ledger), left_out(ledger).to_dict("records"), incomplete(ledger).to_dict("records")
    code = 3 if (ledger["state"] == "failed").any() else 0
    if args.json:
        found = {"left_out": out, "incomplete": lacking, "remarks": read_remarks(args.out_dir).to_dict("records")}
        print(json.dumps({"stages": counts.to_dict("index"), **found}, indent=2))
        return code
    print(counts.to_string())
    for row in [*out, *lacking]:
        place = ", ".join(part for part in (row["stage"], row["code"]) if part)
        print(f"\n{row['state']:11} {row['scan']}  (at {place})\n  {row['reason']}")
        if row["log"]:
            print(f"  log: {args.out_dir / row['log']}")
    if lines := list(remark_lines(args.out_dir, SHOWN)):
        print("", *lines, sep="\n")
    groups = [name for name in ("group/metrics.parquet", "report/index.html") if (args.out_dir / name).is_file()]
    print(f"\ngroup results: {', '.join(groups) or 'none yet'}")
    return code
