"""Writes the generated parts of the pages, and the keywords of a job's options, from the code: `make docs`.

    python docs/generate.py            write what is stale
    python docs/generate.py --check    write nothing; exit code 1 if a page is stale

A page takes a part between `<!-- generated: NAME -->` and `<!-- end -->`; what stands around it is written by hand.
Where the code has something that no text explains, both fail and say what it is.
"""

import argparse
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from generator import api, command_line, failures, frames, keywords, metrics, sdk, settings, states
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
    "enqueue-options": keywords.options,
}
_PLACE = re.compile(r"(<!-- generated: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the generated parts of the documents.")
    parser.add_argument("--check", action="store_true", help="only say which pages are stale")
    check = parser.parse_args().check
    # The code first: what the command line has, and its page says, follows from it.
    stale = _written(keywords.files(), check=check)
    texts = {name: part() for name, part in PARTS.items()}
    used: set[str] = set()

    def filled(match: re.Match[str]) -> str:
        used.add(match[2])
        return f"{match[1]}\n{texts[match[2]]}\n\n{match[3]}"

    pages = {path: _PLACE.sub(filled, path.read_text(encoding="utf-8")) for path in sorted(DOCS.rglob("*.md"))}
    stale = _written(pages, check=check) or stale
    missing = [*gaps, *(f"no page has the part {name}" for name in PARTS if name not in used)]
    for line in dict.fromkeys(missing):
        sys.stderr.write(f"{line}\n")
    return 1 if missing or (check and stale) else 0


def _written(files: Mapping[Path, str], *, check: bool) -> bool:
    """Write what is stale, unless this is only a check. Whether anything was."""
    stale = {
        path: text for path, text in files.items() if not path.exists() or path.read_text(encoding="utf-8") != text
    }
    for path, text in stale.items():
        sys.stdout.write(f"{'stale' if check else 'wrote'}: {path.relative_to(DOCS.parent)}\n")
        if not check:
            path.write_text(text, encoding="utf-8")
    return bool(stale)


if __name__ == "__main__":
    sys.exit(main())
