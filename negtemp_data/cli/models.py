"""`negtemp models`: the built-in models."""

import click

from negtemp_data.cli.options import json_option, print_json
from negtemp_data.engine.catalogue import CATALOGUE, cached_path, resolve_model
from negtemp_data.errors import ModelError


@click.command(epilog="Example:  negtemp models --prepare smollm2-135m-instruct")
@click.option("--prepare", metavar="NAME", help="Make this model ready for use now.")
@json_option
def command(prepare: str | None, as_json: bool) -> None:
    """List the models that need no download, and whether they are ready.

    Any Hugging Face id and any local folder is a model too.
    """
    if prepare is not None:
        model = resolve_model(prepare, lambda text: click.echo(text, err=True))
        click.echo(model.path)
        return
    rows = []
    for entry in CATALOGUE.values():
        try:
            path = cached_path(entry)
            state = "ready" if path.is_dir() else "converted at first use (30 s)"
        except ModelError:
            path, state = None, f"needs the package {entry.package}"
        rows.append(
            {
                "name": entry.name,
                "description": entry.description,
                "licence": entry.licence,
                "state": state,
                "path": str(path) if path else None,
            }
        )
    if as_json:
        print_json(rows)
        return
    for row in rows:
        click.echo(f"{row['name']}  [{row['state']}]\n    {row['description']}, {row['licence']}")
