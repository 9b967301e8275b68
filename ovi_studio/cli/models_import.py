"""`ovi-studio models import`: weights that are on this machine already, found and linked instead of downloaded."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovi_studio.cli.console import TerminalLine, print_line, size_text
from ovi_studio.errors import InvalidInputError, WeightsError
from ovi_studio.variants import VARIANTS
from ovi_studio.weights.catalog import RELEASED, slots

if TYPE_CHECKING:
    from ovi_studio.weights.importing import Found
    from ovi_studio.weights.store import Store
    from ovi_studio.weights.survey import Survey


def add_parser(verbs: Any) -> None:
    """Declares `import` among the commands of `ovi-studio models`."""
    parser = verbs.add_parser(
        "import",
        help="use weights that are on this machine already; they are linked, not copied",
        description="Look for weights of Ovi in a folder: upstream's ckpts, a diffusers folder, ComfyUI models, a hub "
        "cache, or one file; LoRAs too. What is whole is linked; if something is broken, nothing is.",
        allow_abbrev=False,
    )
    parser.add_argument("folder", metavar="FOLDER", help="where to look; a file is fine too")
    parser.add_argument(
        "--as",
        dest="variant",
        choices=RELEASED,
        metavar="MODEL",
        help=f"what a transformer is whose name does not tell: {', '.join(RELEASED)}",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Surveys the folder, reports, and links what can be taken."""
    from ovi_studio.folders import app_folders  # noqa: PLC0415
    from ovi_studio.weights.importing import adopt, plan_adoption  # noqa: PLC0415
    from ovi_studio.weights.store import Store  # noqa: PLC0415
    from ovi_studio.weights.survey import known_transformers, survey  # noqa: PLC0415

    if not arguments.folder:
        raise InvalidInputError("There is no folder named.", "Give one, or `.` for the folder you are in.")
    store = Store(app_folders().weights)
    known = known_transformers(store)
    seen = survey(Path(arguments.folder).expanduser(), arguments.variant, known, skip=store.folder)
    taken, left = plan_adoption(part for part in seen.found if not part.in_doubt)
    problem = _problem(arguments, seen)
    if problem is None:
        line = TerminalLine()
        for name, part in taken.items():
            line.write(f"reading {name} for its checksum ({size_text(part.size)})")
            adopt(part, store)
        line.write("")
    missing = _missing(store, taken) if problem is None else {}
    outranked = _outranked(store, taken) if problem is None else {}
    if arguments.json:
        data = _as_data(seen, taken, left, linked=problem is None)
        print_line(json.dumps(data | {"missing": missing, "outranked": outranked}))
    else:
        _report(seen, taken, left)
        for variant, names in missing.items():
            for name in names:
                print_line(f"missing  {name}, for {variant}: ovi-studio models download {name}")
        for name, other in outranked.items():
            print_line(f"note     {name} is not used as long as {other} is here: ovi-studio models remove {other}")
    if problem is not None:
        raise problem
    return 0


def _problem(arguments: argparse.Namespace, seen: "Survey") -> WeightsError | None:
    """Why nothing may be linked; None where all is well."""
    doubtful = [part for part in seen.found if part.in_doubt]
    if seen.broken:
        files = sum(len(part.files) for part in seen.broken)
        return WeightsError(
            f"Nothing was linked, for {files} of the files cannot be used: {seen.broken[0].reason}",
            "Mend or move what is broken, or import the others by their own folders.",
        )
    if doubtful:
        return WeightsError(
            f"Nothing was linked, for {doubtful[0].files[0]} does not tell which of the three models it is.",
            f"Say it with --as: {', '.join(RELEASED)}.",
        )
    if not seen.found:
        return WeightsError(f"There are no weights of Ovi in {arguments.folder}.", "Give another folder.")
    served = {part.variants for part in seen.found if part.kind == "transformer"}
    if arguments.variant and (arguments.variant,) not in served:
        return WeightsError(
            f"Nothing was linked, for no transformer here can be {arguments.variant}.",
            "Leave --as out: their names tell what they are.",
        )
    return None


def _missing(store: "Store", taken: "dict[str, Found]") -> dict[str, list[str]]:
    """Names of the sources still to fetch, by the models that have their transformer now."""
    from ovi_studio.weights.inventory import readiness  # noqa: PLC0415

    names = [name for name in RELEASED if (name,) in {part.variants for part in taken.values()}]
    return {name: [source.name for source in readiness(VARIANTS[name], store).missing] for name in names}


def _outranked(store: "Store", taken: "dict[str, Found]") -> dict[str, str]:
    """What is linked now without effect, because another source that is here comes first: which one."""
    outranked = {}
    for name, part in taken.items():
        for slot in slots(VARIANTS[part.variants[0]]):
            if slot.kind == part.kind and store.filled_by(slot).name != name:
                outranked[name] = store.filled_by(slot).name
    return outranked


def _as_data(seen: "Survey", taken: "dict[str, Found]", left: "list[Found]", *, linked: bool) -> dict[str, Any]:
    def data(part: "Found") -> dict[str, Any]:
        return {
            "kind": part.kind,
            "what": part.title,
            "files": [str(file) for file in part.files],
            "models": list(part.variants),
            "bytes": part.size,
        }

    return {
        "linked": linked,
        "found": [{"name": name, **data(part)} for name, part in taken.items()],
        "in_doubt": [data(part) for part in seen.found if part.in_doubt],
        "doubles": [data(part) for part in left],
        "broken": [{"files": [str(file) for file in part.files], "reason": part.reason} for part in seen.broken],
        "unused": [{"files": [str(file) for file in part.files], "reason": part.reason} for part in seen.unused],
    }


def _report(seen: "Survey", taken: "dict[str, Found]", left: "list[Found]") -> None:
    for name, part in taken.items():
        print_line(f"found    {name}: {part.title}, {size_text(part.size)}, {part.files[0]}")
    for part in left:
        print_line(f"double   {part.title}, {part.files[0]}")
    for part in seen.found:
        if part.in_doubt:
            print_line(f"in doubt {part.title}, {size_text(part.size)}, {part.files[0]}")
    for broken in seen.broken:
        print_line(f"broken   {broken.reason}")
    if seen.unused:
        print_line(f"unused   {len(seen.unused)} other weights; --json lists them")
