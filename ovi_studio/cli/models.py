"""`ovi-studio models`: which weights there are, fetched, checked, removed, and where they lie."""

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovi_studio.assets import nano_card
from ovi_studio.cli import models_import
from ovi_studio.cli.console import TerminalLine, minutes, print_line, say, size_text
from ovi_studio.errors import InvalidInputError, WeightsError
from ovi_studio.variants import VARIANTS, Variant, get_variant
from ovi_studio.weights.catalog import SOURCES, Slot, Source, adapter_source, find, slots

if TYPE_CHECKING:
    from ovi_studio.weights.download import DownloadEvent
    from ovi_studio.weights.inventory import InstalledAdapter
    from ovi_studio.weights.store import Store

BUILT_IN = "inside the package, needs no download"
UNTRAINED = "untrained: expect noise"


def add_parser(commands: Any) -> None:
    """Declares `ovi-studio models` and its own commands."""
    parser = commands.add_parser(
        "models",
        help="fetch, check and remove model weights",
        description="Fetch, check and remove model weights.",
        epilog="NAME is a model or an adapter that `models list` names, or a part that `models show` names.",
        allow_abbrev=False,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="COMMAND")

    def add(name: str, function: Any, text: str) -> argparse.ArgumentParser:
        verb: argparse.ArgumentParser = verbs.add_parser(
            name, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False
        )
        verb.set_defaults(run=function)
        return verb

    def json_too(verb: argparse.ArgumentParser) -> None:
        verb.add_argument("--json", action="store_true", help="print JSON")

    json_too(add("list", run_list, "which models there are, how much of each is here, and imported adapters"))

    show = add("show", run_show, "the parts of a model: where each is from, its licence, whether it is here")
    show.add_argument("name", metavar="MODEL", help=", ".join(VARIANTS))
    json_too(show)

    fetch = add("download", run_download, "fetch all that a model needs and is not here; running it again resumes")
    fetch.add_argument("names", nargs="+", metavar="NAME", help="models, or single parts")
    fetch.add_argument("--parallel", type=int, metavar="N", help="files at a time, 1 to 16 (default: 4)")
    json_too(fetch)

    models_import.add_parser(verbs)

    verify = add("verify", run_verify, "read weights again and compare their checksums")
    verify.add_argument("names", nargs="*", metavar="NAME", help="models or parts (default: all that is here)")
    json_too(verify)

    remove = add("remove", run_remove, "delete weights; of linked files, the links")
    remove.add_argument("names", nargs="+", metavar="NAME", help="models (except what others share) or parts")
    remove.add_argument("--yes", action="store_true", help="do not ask")

    where = add("where", run_where, "where weights, cache and settings lie")
    where.add_argument("--set", dest="folder", metavar="FOLDER", help="keep weights there from now on; moves no files")
    where.add_argument("--reset", action="store_true", help="keep weights in the usual place again")
    json_too(where)


# --- list, show, where ------------------------------------------------------------------------------------


def run_list(arguments: argparse.Namespace) -> int:
    """Prints every model with how much of it is here, what a model can do without, and every adapter."""
    from ovi_studio.weights.inventory import installed_adapters  # noqa: PLC0415

    store = _store()
    rows = [_summary(store, variant) for variant in VARIANTS.values()]
    optional = _optional_parts(store)
    adapters = installed_adapters(store)
    if arguments.json:
        data = {
            "folder": str(store.folder),
            "models": rows,
            "optional": optional,
            "adapters": [_adapter(each) for each in adapters],
        }
        print_line(json.dumps(data))
        return 0
    for row in rows:
        state = BUILT_IN if row["state"] == "built in" else f"{row['state']:8} {_amount(row)}"
        if row["state"] == "partial":
            state += f", lacks {', '.join(row['missing'])}"
        print_line(f"{row['name']:12} {state}")
    for part in optional:
        print_line(f"{part['name']:12} {part['state']:8} {_amount(part)}, optional: {part['note']}")
    for adapter in adapters:
        wish = adapter.distillation
        asks = f", asks for {wish.num_inference_steps} steps in one pass" if wish else ""
        print_line(f"{'adapter':12} {adapter.id}, {size_text(adapter.size)}{asks}")
    return 0


def run_show(arguments: argparse.Namespace) -> int:
    """Prints what a model is made of."""
    store, variant = _store(), get_variant(arguments.name)
    parts = [
        _part(store, variant, slot, source)
        for slot in slots(variant)
        for source in slot.choices
        if not source.imported or store.listing(source).files
    ]
    summary = _summary(store, variant)
    if arguments.json:
        print_line(json.dumps({**summary, "parts": parts}))
        return 0
    print_line(f"{variant.name}: {variant.title}. {variant.description}")
    print_line(BUILT_IN if not parts else f"{summary['state']}, {_amount(summary)}")
    if not variant.trained:
        print_line(UNTRAINED)
    elif not parts:
        for name, known in nano_card()["knows"].items():
            print_line(f"  {name}: {', '.join(known)}")
    for part in parts:
        print_line("")
        role = f"instead of {part['instead_of']}" if part["instead_of"] else "optional" if part["optional"] else ""
        print_line(
            f"{part['name']} ({part['kind'].replace('_', ' ').replace('vae', 'VAE')}{', ' if role else ''}{role})"
        )
        print_line(f"  {part['state']:8} {_amount(part)}")
        print_line(f"  from     {' '.join(filter(None, (part['page'], *part['files'])))}")
        print_line(
            f"  licence  {part['license']}, {part['license_link']}{' (to be accepted)' if part['gated'] else ''}"
        )
        if part["note"]:
            print_line(f"  note     {part['note']}")
    return 0


def run_where(arguments: argparse.Namespace) -> int:
    """Prints the folders; with `--set` or `--reset`, changes that of the weights first."""
    from ovi_studio.folders import HOME_VARIABLE, app_folders, set_weights_folder  # noqa: PLC0415

    if arguments.folder is not None and arguments.reset:
        raise InvalidInputError("--set and --reset exclude each other.", "Give one of them.")
    if arguments.folder == "":
        raise InvalidInputError("--set needs a folder.", "Name one; `models where --reset` goes back to the usual one.")
    folders = app_folders()
    if arguments.folder is not None or arguments.reset:
        before = folders.weights
        folders = set_weights_folder(None if arguments.reset else Path(arguments.folder))
        if before != folders.weights and before.is_dir():
            say(f"what is in {before} stays there: move its content to {folders.weights} to take it along")
    data = {name: str(getattr(folders, name)) for name in ("weights", "data", "cache", "settings")}
    if arguments.json:
        print_line(json.dumps(data))
        return 0
    for name, path in data.items():
        print_line(f"{name:9} {path}")
    say(f"{HOME_VARIABLE} moves all of them, `models where --set` the weights alone")
    return 0


def _summary(store: "Store", variant: Variant) -> dict[str, Any]:
    """How much of what a model needs is here, over the sources that fill its slots."""
    parts = [_part(store, variant, slot, store.filled_by(slot)) for slot in slots(variant) if not slot.optional]
    states = {part["state"] for part in parts} or {"built in"}
    present = sum(part["bytes_present"] for part in parts)
    state = states.pop() if len(states) == 1 else "partial"
    return {
        "name": variant.name,
        "state": state,
        "bytes_present": present,
        "bytes_total": sum(part["bytes_total"] for part in parts),
        "exact": all(part["exact"] for part in parts),
        "missing": [part["name"] for part in parts if part["state"] != "present"],
        "trained": variant.trained,
    }


def _optional_parts(store: "Store") -> list[dict[str, Any]]:
    """What models share and can do without, once each."""
    found = {slot.choices[0].name: (slot, variant) for variant in VARIANTS.values() for slot in slots(variant)}
    return [_part(store, variant, slot, store.filled_by(slot)) for slot, variant in found.values() if slot.optional]


def _part(store: "Store", variant: Variant, slot: Slot, source: Source) -> dict[str, Any]:
    """A part as JSON data. Before the hub was asked, the bytes are what arithmetic expects, and not exact."""
    status = store.status(source)
    exact = status.bytes_total > 0
    originals = [os.path.realpath(store.path(source, file.path)) for file in store.listing(source).files]
    return {
        "name": source.name,
        "kind": source.kind,
        "optional": slot.optional,
        "instead_of": "" if source is slot.choices[0] else slot.choices[0].name,
        "state": status.state.value,
        "bytes_present": status.bytes_present,
        "bytes_total": status.bytes_total if exact else source.expected_bytes(variant),
        "exact": exact,
        "page": source.page,
        "files": originals if source.imported else list(source.patterns),
        "license": source.license.name,
        "license_link": source.license.link,
        "gated": source.gated,
        "note": source.note,
    }


def _adapter(adapter: "InstalledAdapter") -> dict[str, Any]:
    return {
        "id": adapter.id,
        "name": adapter.name,
        "path": str(adapter.path),
        "bytes": adapter.size,
        "distillation": None if adapter.distillation is None else dataclasses.asdict(adapter.distillation),
    }


def _amount(row: dict[str, Any]) -> str:
    about = "" if row["exact"] else "about "
    total = f"{about}{size_text(row['bytes_total'])}" if row["bytes_total"] else "size unknown"
    return total if row["state"] in {"present", "missing"} else f"{size_text(row['bytes_present'])} of {total}"


# --- download ---------------------------------------------------------------------------------------------


def run_download(arguments: argparse.Namespace) -> int:
    """Fetches sources, with a line that follows them on a terminal, or as JSON lines."""
    from ovi_studio.weights.download import PARALLEL_FILES, download, to_json  # noqa: PLC0415

    parallel = PARALLEL_FILES if arguments.parallel is None else arguments.parallel
    if not 1 <= parallel <= 16:
        raise InvalidInputError(f"--parallel {parallel} is out of range.", "Give a number from 1 to 16.")
    store = _store()
    sources = _to_download(store, arguments.names)
    line = TerminalLine()
    try:
        for event in download(sources, store, parallel_files=parallel):
            if arguments.json:
                print_line(json.dumps(to_json(event)))
            else:
                _show(event, line)
    except KeyboardInterrupt:
        say("stopped; running it again resumes")
        raise
    finally:
        line.write("")
    return 0


def _to_download(store: "Store", names: Sequence[str]) -> list[Source]:
    """The sources named, and for every model named, one for each of its slots that none of them fills."""
    found = [_find(store, name) for name in names]
    sources = [item for item in found if isinstance(item, Source)]
    for source in sources:
        if source.imported:
            raise InvalidInputError(
                f"{source.name} is made of links to files of your own: there is nothing to download.",
                "Give the files: ovi-studio models import FOLDER.",
            )
    for variant in (item for item in found if isinstance(item, Variant)):
        if not slots(variant):
            say(f"{variant.name}: {BUILT_IN}")
        for slot in slots(variant):
            if not slot.optional and not any(source in sources for source in slot.choices):
                sources.append(store.filled_by(slot))
    return sources


def _show(event: "DownloadEvent", line: TerminalLine) -> None:
    from ovi_studio.weights import download  # noqa: PLC0415

    match event:
        case download.WaitingForOther(source):
            line.say(f"another process is fetching {source}: waiting for it")
        case download.DownloadStarted(files, done, total, folder) if files:
            line.say(f"{files} files, {size_text(total - done)} to fetch into {folder}")
        case download.Retrying(file, problem, _):
            line.say(f"{file}: {problem}; trying again")
        case download.DownloadProgress(done, total, speed, left):
            pace = "" if speed is None or left is None else f", {size_text(speed)}/s, {minutes(left)} left"
            line.write(f"{size_text(done)} of {size_text(total)}{pace}" if done < total else "checking")
        case download.FileFinished(source, path, size, _):
            line.say(f"{source}: {path}, {size_text(size)}, verified")
        case download.DownloadFinished(sources) if sources:
            line.say(f"present: {', '.join(sources)}")
        case _:
            pass


# --- verify, remove ---------------------------------------------------------------------------------------


def run_verify(arguments: argparse.Namespace) -> int:
    """Reads weights again; a damaged file is an error."""
    from ovi_studio.weights.inventory import adapter_ids  # noqa: PLC0415
    from ovi_studio.weights.store import Finding  # noqa: PLC0415

    store = _store()
    everything = (*SOURCES.values(), *map(adapter_source, adapter_ids(store)))
    sources = _named(store, arguments.names) if arguments.names else everything
    bad: dict[str, int] = {}
    here = [source for source in sources if store.listing(source).files]
    if not here:
        say("there is nothing to verify")
    for source in here:
        for path, finding in store.verify(source):
            if finding is not Finding.INTACT:
                bad[source.name] = bad.get(source.name, 0) + 1
            found = {"source": source.name, "path": str(path), "finding": finding.value}
            print_line(json.dumps(found) if arguments.json else f"{finding.value:8} {path}")
    if bad:
        fetched = [source.name for source in here if source.name in bad and not source.imported]
        remedies = [f"Fetch them anew: ovi-studio models download {' '.join(fetched)}."] if fetched else []
        if len(fetched) < len(bad):
            remedies.append("What is imported, mend and import again: ovi-studio models import FOLDER.")
        raise WeightsError(
            f"{sum(bad.values())} files are missing or damaged, of {', '.join(bad)}.", " ".join(remedies)
        )
    return 0


def run_remove(arguments: argparse.Namespace) -> int:
    """Deletes weights, after asking."""
    store = _store()
    paths = {source: store.removable(source) for source in _named(store, arguments.names, shared=False)}
    here = [source for source, ours in paths.items() if ours]
    if not here:
        say("there is nothing to delete")
        return 0
    files = [path for source in here for path in paths[source]]
    links = " (of linked files only the links)" if any(path.is_symlink() for path in files) else ""
    names, size = ", ".join(source.name for source in here), sum(path.lstat().st_size for path in files)
    if not arguments.yes and not _agreed(f"Delete {names}, {size_text(size)}{links}? [y/N] "):
        raise InvalidInputError("Nothing was deleted.", "Answer y, or give --yes.")
    freed = sum(store.remove(source) for source in here)
    say(f"deleted {names}, {size_text(freed)}{links}")
    return 0


def _find(store: "Store", name: str) -> Variant | Source:
    from ovi_studio.weights.inventory import adapter_ids  # noqa: PLC0415

    return find(name, adapter_ids(store))


def _named(store: "Store", names: Sequence[str], *, shared: bool = True) -> list[Source]:
    """The sources named, and those of the models named: with or without the ones that other models use too."""

    def of(variant: Variant) -> Iterator[Source]:
        for slot in slots(variant):
            if shared or slot.kind == "transformer":
                yield from slot.choices

    found = [_find(store, name) for name in names]
    for variant in (item for item in found if isinstance(item, Variant)):
        if not slots(variant):
            say(f"{variant.name}: {BUILT_IN}")
    sources = (source for item in found for source in ((item,) if isinstance(item, Source) else of(item)))
    return list(dict.fromkeys(sources))


def _agreed(question: str) -> bool:
    if sys.stdin is None or not sys.stdin.isatty():
        return False
    print(question, end="", file=sys.stderr, flush=True)  # noqa: T201
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def _store() -> "Store":
    """The store in force."""
    from ovi_studio.folders import app_folders  # noqa: PLC0415
    from ovi_studio.weights.store import Store  # noqa: PLC0415

    return Store(app_folders().weights)
