"""``flmm plan``: what a run needs, what it will take and how long, before anything runs or is fetched."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flmm_plugin import files
from flmm_plugin.cli.model_options import positive
from flmm_plugin.cli.output import aligned
from flmm_plugin.errors import UnknownArgument
from flmm_plugin.needs import Need, listing, missing, size_text
from flmm_plugin.suggestions import did_you_mean

if TYPE_CHECKING:
    from flmm_plugin.cli.plan_memory import HeadsSize, Line, ModelSize
    from flmm_plugin.cli.plan_time import Stage

_EXAMPLES = """\
examples:
  flmm plan --model flmm_deepseekvl --tasks mme,refcoco_seg         before lmms_eval with the same words
  flmm plan --model flmm_llava:heads=none,load_in_4bit=true --tasks flmm_qa --batch-size 8 --device A100
  flmm plan flmm_deepseekvl data.root=/data epochs=4                before flmm train with the same words
  flmm plan table1 --backbones deepseek-vl-1.3b,llava-1.5-7b        before flmm reproduce with the same words
  flmm plan flmm_deepseekvl --json                                  for scripts

What is read: configurations (a few kilobytes from the hub, if they are not here) and the sizes that hub and data
sources state. No weights and no data are loaded or fetched, and nothing runs.
Memory is arithmetic, shown term by term. Time comes from earlier runs on such a device (measured.jsonl in FLMM_CACHE,
by default ~/.cache/flmm); where there is none, it is an estimate, and the line says from what. ? is what nobody states.

exit status: 0 everything is here, 1 something is missing, 2 a name or an argument does not exist
"""

#: Phrases of a sample where nobody has counted them.
_PHRASES = 5


@dataclass(frozen=True)
class Work:
    """One model at work.

    Attributes:
        title: Name of what runs, for a person.
        device: Name of the device, such as ``cuda (H100)``.
        room: Bytes of its memory, None where they are not known.
        memory: What is kept in it, part by part.
        stages: What is done, one after the other.
        cache: Bytes of a feature cache on the disk, 0 without one.
        notes: What else to know, one line each.
    """

    title: str
    device: str
    room: int | None
    memory: list[Line]
    stages: list[Stage]
    cache: int = 0
    notes: tuple[str, ...] = ()

    @property
    def peak(self) -> int:
        """Bytes of all parts of the memory."""
        return sum(line.size for line in self.memory)

    @property
    def seconds(self) -> float:
        """Seconds of the stages that are known."""
        return sum(stage.seconds or 0 for stage in self.stages)

    @property
    def whole(self) -> bool:
        """Tell whether the seconds of every stage are known."""
        return all(stage.seconds is not None for stage in self.stages)


@dataclass(frozen=True)
class Plan:
    """Everything that a command needs, and its work.

    Attributes:
        needs: Everything that must be there, whether here or not.
        works: Models at work, one after the other.
        folder: Folder on the disk that takes what is fetched.
    """

    needs: list[Need]
    works: list[Work]
    folder: Path


def add_subcommand(commands: Any) -> None:
    """Add ``plan`` to the parser of ``flmm``."""
    parser = commands.add_parser(
        "plan",
        help="what a run needs, takes and costs, before anything runs",
        description="Say what is there and what is missing, gigabytes to fetch and on the disk, GPU memory and time.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("what", nargs="?", metavar="RECIPE|TABLE", help="a training recipe, or table1, table2, ...")
    parser.add_argument("changes", nargs="*", metavar="key=value", help="keys of the recipe to change")
    parser.add_argument("--model", metavar="MODEL[:ARGS]", help="as for lmms_eval, --model_args behind a colon")
    parser.add_argument("--model-args", "--model_args", metavar="ARGS", help="name=value,name=value")
    parser.add_argument("--tasks", metavar="TASK,...", help="as for lmms_eval; of a table, these of its tasks alone")
    parser.add_argument("--backbones", nargs="+", metavar="MODEL[:ARGS]", help="models of a table")
    parser.add_argument("--limit", type=positive, metavar="N", help="documents per task")
    parser.add_argument(
        "--batch-size", "--batch_size", type=positive, default=1, metavar="N",
        help="documents per pass (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--device", help="cpu, cuda, or another machine's GPU, such as H100 (default: as here)")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Plan and print; 0 if everything is here, else 1.

    Raises:
        UnknownArgument: A model, task, recipe, table or device that does not exist.
    """
    plan = plan_of(args)
    print(json.dumps(as_json(plan), indent=1) if args.json else as_text(plan))
    return 1 if missing(plan.needs) else 0


def plan_of(args: argparse.Namespace) -> Plan:
    """Return the plan that a command line asks for.

    Raises:
        UnknownArgument: As `run`.
    """
    from flmm_plugin.training.recipe import recipes

    if args.what is None:
        if not args.model or not args.tasks:
            raise UnknownArgument(
                "say what to plan: --model MODEL --tasks TASK,..., a recipe, or table1 --backbones MODEL ... "
                "(flmm plan --help)"
            )
        return _of_models([args.model], args.tasks.split(","), args)
    if args.model:
        raise UnknownArgument(f"{args.what} and --model are two plans; give one of them")
    if args.what in recipes() or Path(args.what).is_file():
        return _of_recipe(args)
    if args.what.lower().startswith("table"):
        return _of_table(args)
    from flmm_plugin.reports.table_layouts import TABLE_NAMES

    known = (*recipes(), *(f"table{name}" for name in TABLE_NAMES))
    hint = did_you_mean(args.what, known) or "."
    raise UnknownArgument(f"there is no recipe or table {args.what!r}{hint} There are: {', '.join(known)}")


def _of_table(args: argparse.Namespace) -> Plan:
    from flmm_plugin.cli.reproduce import chosen_tasks, specs_of
    from flmm_plugin.reports.table_layouts import layouts_of

    tasks = chosen_tasks(layouts_of([args.what]), args.tasks)
    if not args.backbones:
        raise UnknownArgument("name the models of the table: --backbones MODEL[:ARGS] ... (flmm list)")
    return _of_models(specs_of(args.backbones), tasks, args)


def _of_models(specs: Sequence[str], tasks: Sequence[str], args: argparse.Namespace) -> Plan:
    """Plan evaluations inside lmms-eval."""
    import flmm_plugin.cli.plan_time as plan_time
    from flmm_plugin.adapters.lmms_eval.exit_status import check_tasks
    from flmm_plugin.adapters.lmms_eval.preflight import Asked, check_model, survey
    from flmm_plugin.adapters.lmms_eval.task_folder import task_index
    from flmm_plugin.options import arguments_of

    asked = []
    for spec in specs:
        name, _, given = spec.partition(":")
        arguments = {**arguments_of(given), **arguments_of(args.model_args or "")}
        plan_time.device_of(args.device or arguments.get("device"))
        asked.append(Asked(name, arguments, list(tasks), None, batch_size=args.batch_size))
        check_model(asked[-1])
    manager = task_index(asked[0].model)
    check_tasks(manager.all_tasks, list(tasks))
    needs: dict[tuple[str, str], Need] = {}
    works = []
    for one in asked:
        found = survey(replace(one, manager=manager))
        needs.update({(need.kind, need.what): need for need in found.needs})
        works.append(_evaluation(one.model, found, args))
    folders = (need.folder for need in needs.values() if need.kind == "data" and need.folder)
    return Plan(list(needs.values()), works, next(folders, files.cache_folder()))


def _evaluation(name: str, found: Any, args: argparse.Namespace) -> Work:
    """Plan one model's tasks; `found` is a `flmm_plugin.adapters.lmms_eval.preflight.Survey`."""
    import flmm_plugin.cli.plan_memory as plan_memory
    import flmm_plugin.cli.plan_time as plan_time
    from flmm_plugin.measured import measurements
    from flmm_plugin.tasks.split_sizes import documents_of

    arguments = found.arguments
    device, published = plan_time.device_of(args.device or arguments.device)
    size = plan_memory.model_size(arguments.pretrained, arguments.options)
    heads = None
    if found.grounds:
        heads = plan_memory.heads_size(arguments.pretrained, size, arguments.heads, arguments.grounding.get("sam"))
    known = measurements()
    stages = []
    for task, (_, config) in found.tasks.items():
        documents = None if task in found.on_scenes else documents_of(task)
        if args.limit is not None:
            documents = args.limit if documents is None else min(args.limit, documents)
        options = config.get("generation_kwargs") or {}
        reads_only = options.get("flmm_ground") or options.get("flmm_given_text")
        writes = 0 if reads_only else min(int(options.get("max_new_tokens") or 64), plan_memory.ANSWER_TOKENS)
        stages.append(
            plan_time.stage(
                task, documents, model=arguments.pretrained, device=device, size=size,
                heads=heads if task in found.grounds else None, batch=args.batch_size, known=known, writes=writes,
            )
        )  # fmt: skip
    notes = (
        [f"{', '.join(found.on_scenes)}: read from the embedded model's synthetic scenes"] if found.on_scenes else []
    )
    lines, remarks = _memory(size, heads, args.batch_size, device, grounds=bool(found.grounds))
    return Work(
        f"{name} ({arguments.pretrained})", device, None if published is None else published.memory, lines, stages,
        notes=(*notes, *remarks),
    )  # fmt: skip


def _memory(
    size: ModelSize | None, heads: HeadsSize | None, batch: int, device: str, *, grounds: bool, trains: bool = False
) -> tuple[list[Line], list[str]]:
    """Return the parts of the memory, and what they leave out."""
    from flmm_plugin.cli.plan_memory import memory

    if size is None:
        return [], ["nothing is known of the size of this model: its configuration is not here"]
    remarks = [] if size.layers else ["its configuration is not here: KV cache and activations are left out"]
    if size.layers and size.tokens_from == "assumed":
        remarks.append(f"{size.image_tokens:,} tokens for a picture are assumed")
    if grounds and heads is None:
        remarks.append("the numbers of the heads are not known: heads and SAM are left out")
    return memory(size, heads, batch=batch, on_gpu=device.startswith("cuda"), trains=trains), remarks


def _of_recipe(args: argparse.Namespace) -> Plan:
    """Plan a training."""
    import flmm_plugin.cli.plan_memory as plan_memory
    import flmm_plugin.cli.plan_time as plan_time
    from flmm_plugin import bundled, files
    from flmm_plugin.data.root import data_root
    from flmm_plugin.heads.sam import OFFICIAL_FILES
    from flmm_plugin.heads.sam_files import sam_need
    from flmm_plugin.hub_files import weights_need
    from flmm_plugin.measured import measurements
    from flmm_plugin.tasks.data_needs import recipe_needs
    from flmm_plugin.tasks.split_sizes import samples_of
    from flmm_plugin.training.recipe import read_recipe

    recipe = read_recipe(args.what, args.changes)
    name, backbone, refiner = Path(args.what).stem, recipe.backbone, recipe.heads.refiner
    device, published = plan_time.device_of(args.device)
    root = recipe.data.root
    own_data = root is not None and bundled.is_data_root(str(root))
    needs = [weights_need(backbone.pretrained, backbone.revision)]
    if refiner.enabled and refiner.checkpoint is not None and not bundled.is_model(refiner.checkpoint):
        of_meta = {file: variant for variant, file in OFFICIAL_FILES.items()}
        is_here = Path(refiner.checkpoint).is_file()
        needs.append(sam_need(refiner.checkpoint if is_here else of_meta.get(refiner.checkpoint, refiner.checkpoint)))
    needs += recipe_needs(recipe, name)
    size = plan_memory.model_size(backbone.pretrained, backbone)
    sam = str(refiner.sam) if refiner.enabled and isinstance(refiner.sam, str) else "none"
    own_heads = "auto" if bundled.is_model(backbone.pretrained) else "new"
    heads = plan_memory.heads_size(backbone.pretrained, size, own_heads, sam)
    counts = [
        min(recipe.data.scenes if own_data else samples_of(part.dataset, part.split, part.by), part.limit or 10**9)
        for part in recipe.data.parts
    ]
    samples = sum(counts)
    steps = recipe.epochs * -(-samples // recipe.batch_size)
    passes = min(recipe.steps or steps, steps) * recipe.batch_size
    reads = samples if recipe.cache.enabled else passes
    each: dict[str, Any] = {"model": backbone.pretrained, "device": device, "heads": None, "writes": 0}
    each |= {"batch": recipe.batch_size, "known": measurements()}
    stages = [plan_time.stage("train: LMM", reads, size=size, **each)]
    cache = 0
    if heads is not None:
        cells = heads.sam_cells
        of_sam = plan_memory.ModelSize(heads.sam_encoder, "float32", 4, "", cells - plan_memory.TEXT_TOKENS)
        grid = recipe.heads.decoder.upsample_to**2
        # Forward and backward; in a U-Net, which halves its grid three times, a weight meets about a 16th of the cells.
        of_heads = plan_memory.ModelSize(heads.parameters, "float32", 4, "", 3 * grid * _PHRASES // 16)
        if heads.sam_encoder:
            stages.append(plan_time.stage("train: SAM", reads, size=of_sam, grows=False, **each))
        stages.append(plan_time.stage("train: heads", passes, size=of_heads, grows=False, **each))
        if recipe.cache.enabled and size is not None:
            kept = plan_memory.cache_bytes(size, heads, samples, _PHRASES * samples, samples)
            cache = sum(kept.values())
            if recipe.cache.cap_gb is not None:
                cache = min(cache, int(recipe.cache.cap_gb * 1e9))
    lines, remarks = _memory(size, heads, 1, device, grounds=True, trains=True)
    remarks.append(f"{samples:,} samples, {recipe.epochs} epochs; validations are not counted")
    if cache:
        capped = "" if recipe.cache.cap_gb is None else f", capped at {recipe.cache.cap_gb:g} GB"
        remarks.append(
            f"feature cache: before compression, {_PHRASES} phrases a sample assumed{capped}; "
            f"flmm train {args.what} --estimate measures it"
        )
    title = f"flmm train {name} ({backbone.pretrained})"
    room = None if published is None else published.memory
    folder = files.cache_folder() if own_data else data_root(root)
    return Plan(needs, [Work(title, device, room, lines, stages, cache, tuple(remarks))], folder)


def as_text(plan: Plan) -> str:
    """Write a plan for a terminal."""
    gone = missing(plan.needs)
    here = [need for need in plan.needs if need.here]
    lines = [f"here: {', '.join(f'{need.kind} {need.what}' for need in here)}"] if here else []
    lines.append("missing:" if gone else "nothing is missing")
    if gone:
        lines.append(listing(gone))
    cache = sum(work.cache for work in plan.works)
    fetched, unstated = _bytes(gone, "size")
    kept, unknown = _bytes(gone, "space")
    lines.append(f"to fetch: {size_text(fetched)}{unstated}")
    with_cache = f", {size_text(cache)} of it for features" if cache else ""
    lines.append(f"on the disk afterwards: {size_text(kept + cache)}{unknown}{with_cache}; {_free(plan.folder)}")
    for work in plan.works:
        lines += ["", *_work_lines(work)]
    if len(plan.works) > 1:
        lines += ["", f"in all: {_time(plan.works)}"]
    return "\n".join(lines)


def _work_lines(work: Work) -> Iterator[str]:
    from flmm_plugin.cli.plan_time import duration

    yield f"{work.title} on {work.device}"
    if work.memory:
        room = "" if work.room is None else f" of {size_text(work.room)}"
        too_much = "; IT DOES NOT FIT" if work.room is not None and work.peak > work.room else ""
        yield f"memory: about {size_text(work.peak)}{room}{too_much}"
        rows = [[line.name, size_text(line.size), line.arithmetic] for line in work.memory]
        yield from (f"  {row}" for row in aligned(rows).splitlines())
    yield f"time: {_time([work])}"
    rows = [
        [
            stage.name,
            f"{'?' if stage.documents is None else f'{stage.documents:,}'} x",
            "?" if stage.each is None else f"{stage.each:.3g} s",
            duration(stage.seconds),
            stage.source,
        ]
        for stage in work.stages
    ]
    yield from (f"  {row}" for row in (aligned(rows).splitlines() if rows else ()))
    yield from (f"note: {note}" for note in work.notes)


def _time(works: Sequence[Work]) -> str:
    """Write the time of works, and whether it was measured."""
    from flmm_plugin.cli.plan_time import duration

    stages = [stage for work in works for stage in work.stages]
    total = duration(sum(work.seconds for work in works))
    least = "" if all(work.whole for work in works) else "at least "
    measured = sum(stage.measured for stage in stages)
    if stages and measured == len(stages):
        return f"{least}{total}, from measurements on such a device"
    some = f"{measured} of {len(stages)} stages were measured" if measured else "nothing was measured on such a device"
    return f"{least}{total}, an estimate: {some}"


def _bytes(needs: Sequence[Need], which: str) -> tuple[int, str]:
    """Return the sum of sizes (``size``) or of places on the disk (``space``), and words about what is not stated."""
    sizes = [need.size if which == "size" or need.space is None else need.space for need in needs]
    unstated = sum(one is None for one in sizes)
    words = f" and {unstated} part{'s' if unstated > 1 else ''} whose size nobody states" if unstated else ""
    return sum(one or 0 for one in sizes), words


def _free(folder: Path) -> str:
    """Say how much room the disk of a folder has, which need not exist yet."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return f"{size_text(shutil.disk_usage(place).free)} are free for {folder}"


def as_json(plan: Plan) -> dict[str, Any]:
    """Return a plan as plain data, sizes in bytes and times in seconds."""
    gone = missing(plan.needs)
    return {
        "needs": [_need_json(need) for need in plan.needs],
        "fetch_bytes": _bytes(gone, "size")[0],
        "disk_bytes": _bytes(gone, "space")[0] + sum(work.cache for work in plan.works),
        "unstated": sum(need.size is None for need in gone),
        "works": [
            {
                **asdict(work),
                "memory_bytes": work.peak,
                "seconds": work.seconds if work.whole else None,
                "stages": [{**asdict(stage), "seconds": stage.seconds} for stage in work.stages],
            }
            for work in plan.works
        ],
    }


def _need_json(need: Need) -> Mapping[str, Any]:
    names = ("kind", "what", "here", "size", "space", "source", "licence", "command", "users")
    return {name: getattr(need, name) for name in names} | {"by_hand": not need.here and need.bring is None}
