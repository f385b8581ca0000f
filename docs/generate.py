"""Writes the generated parts of the pages from the code: `make docs`.

    python docs/generate.py            write what is stale
    python docs/generate.py --check    write nothing; exit code 1 if a page is stale

A page takes a part between `<!-- generated: NAME -->` and `<!-- end -->`; what stands around it is written by hand.
Where the code has something that no text explains, both fail and say what it is.
"""

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

from generator import api, command_line, failures, frames, metrics, sdk, settings, states
from generator.markdown import gaps

DOCS = Path(__file__).resolve().parent

PARTS: dict[str, Callable[[], str]] = {
    "methods": api.methods,
    "shapes": api.shapes,
    "settings": settings.settings,
    "variables": settings.variables,
    "errors": failures.rpc_errors,
    "other-errors": failures.other_errors,
    "http-statuses": failures.http_statuses,
    "commands": command_line.commands,
    "common-options": command_line.common_options,
    "exit-codes": command_line.exit_codes,
    "job-exit-codes": command_line.job_exit_codes,
    "state-diagram": states.diagram,
    "states": states.states,
    "events": states.events,
    "stop-reasons": states.stop_reasons,
    "end-causes": states.end_causes,
    "waiting-reasons": states.waiting_reasons,
    "failure-classes": states.failure_classes,
    "metrics": metrics.metrics,
    "frames": frames.all_frames,
    "sdk": sdk.names,
    "sdk-others": sdk.others,
    "enqueue-options": sdk.options,
}
_PLACE = re.compile(r"(<!-- generated: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the generated parts of the documents.")
    parser.add_argument("--check", action="store_true", help="only say which pages are stale")
    check = parser.parse_args().check
    texts = {name: part() for name, part in PARTS.items()}
    used: set[str] = set()

    def filled(match: re.Match[str]) -> str:
        used.add(match[2])
        return f"{match[1]}\n{texts[match[2]]}\n\n{match[3]}"

    stale = False
    for path in sorted(DOCS.rglob("*.md")):
        found = path.read_text(encoding="utf-8")
        wanted = _PLACE.sub(filled, found)
        if wanted != found:
            stale = True
            sys.stdout.write(f"{'stale' if check else 'wrote'}: {path.relative_to(DOCS.parent)}\n")
            if not check:
                path.write_text(wanted, encoding="utf-8")
    missing = [*gaps, *(f"no page has the part {name}" for name in PARTS if name not in used)]
    for line in dict.fromkeys(missing):
        sys.stderr.write(f"{line}\n")
    return 1 if missing or (check and stale) else 0


if __name__ == "__main__":
    sys.exit(main())
