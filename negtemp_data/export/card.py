"""The dataset card of an export: what is in it, how it was made, what to know before training.

The same for the same export: no dates, no paths. Nothing that a prompt or a model wrote gets in.
"""

from importlib import resources
from pathlib import Path

from negtemp_data import __version__
from negtemp_data.engine.catalogue import CATALOGUE
from negtemp_data.export.base import Format
from negtemp_data.export.request import ExportRequest, ExportResult
from negtemp_data.jobspec import Job, judges_with_engines
from negtemp_data.storage import Output, Totals, render_card


def write_card(folder: Path, request: ExportRequest, result: ExportResult, totals: Totals) -> None:
    """Writes README.md into the export's folder.

    Args:
        folder: Where to.
        request: What was exported, and how.
        result: What came of it.
        totals: What the run's committed shards hold.
    """
    job = request.format.job
    text = render_card(
        resources.files(__package__).joinpath("card.md.j2").read_text(encoding="utf-8"),
        job,
        request=request,
        result=result,
        totals=totals,
        options=_list_options(request.format),
        columns=[(field.name, str(field.type)) for field in request.format.schema],
        model_notes=_note_models(job, request.output),
        version=__version__,
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def _list_options(chosen: Format) -> dict[str, str]:
    return {
        name: ", ".join(value) if isinstance(value, tuple) else str(value)
        for name, value in vars(chosen).items()
        # What a format has computed from its options is not one.
        if name in type(chosen).__dataclass_fields__ and name != "job"  # type: ignore[attr-defined]
    }


def _note_models(job: Job, output: Output) -> dict[str, str]:
    """Revision, licence and limits of each model, by name."""
    fingerprint = output.read_fingerprint()
    revisions = {job.generate.model: fingerprint.model}
    for path, judge in judges_with_engines(job.verify.judge):
        revisions[judge.model] = fingerprint.judges.get(path, "unknown")
    notes = {}
    for model, revision in revisions.items():
        entry = CATALOGUE.get(model)
        known = f"{entry.licence}. {entry.note}" if entry else "see where the model comes from."
        notes[model] = f"revision {revision}; licence: {known}"
    if job.generate.lora is not None:
        notes[job.generate.lora] = f"LoRA adapter of the generator, revision {fingerprint.adapter}."
    return notes
