"""`minires report`: one HTML page with the findings of a sweep."""

from pathlib import Path
from typing import Any

from minires.arrays.text import say


def add_parser(subparsers: Any) -> None:
    """Add the command to the command line."""
    parser = subparsers.add_parser(
        "report",
        help="one HTML page with the findings of a sweep",
        description="Write one self-contained HTML file: verdicts on the paper's claims, figures, "
        "tables, sliders. The sweep need not be finished.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="the folder of a sweep")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the page (DIR/report.html)")
    parser.add_argument(
        "--png", type=Path, metavar="FOLDER", help="also write the figures as PNG files"
    )
    parser.add_argument(
        "--rows",
        type=Path,
        metavar="FOLDER",
        help="write all numbers as a few small files for a repository, and no page. Later "
        "`minires report FOLDER` makes the page from them; `minires sweep --out FOLDER` goes on",
    )
    parser.set_defaults(run=run)


def run(options: Any) -> int:
    """Carry out the command.

    Raises   ValueError for options that do not fit each other
    """
    from minires.arrays.files import complete
    from minires.study.figures import write_pngs
    from minires.study.pretrained_findings import is_pretrained

    if is_pretrained(options.folder):
        from minires.study.pretrained_findings import load, save_rows
        from minires.study.pretrained_report import draw_all, write_page
    else:
        from minires.study.figures import draw_all
        from minires.study.report import write_page
        from minires.study.store import load_sweep as load
        from minires.study.store import save_rows
    sweep = load(options.folder)
    if options.rows:
        if options.out or options.png:
            raise ValueError("--rows writes no page and no pictures: leave --out and --png out")
        save_rows(sweep, options.rows)
        size = sum(path.stat().st_size for path in options.rows.glob("*.*"))
        say(f"{options.rows}: {size / 1e6:.2f} MB")
        return 0
    panels = draw_all(sweep)
    out = options.out or options.folder / "report.html"
    with complete(out, "w") as file:
        file.write(write_page(sweep, panels, options.folder))
    if options.png:
        write_pngs(panels, options.png)
    say(f"{out}: {out.stat().st_size / 1e6:.1f} MB")
    return 0
