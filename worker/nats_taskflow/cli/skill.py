"""`taskflow skill print|install`: what an LLM agent should know of flows.

It has the form that coding agents read (SKILL.md).
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import click
from click.exceptions import Exit

from nats_taskflow.cli import exit_codes
from nats_taskflow.cli.command import Group

NAME = "nats-taskflow"


def skill_text() -> str:
    """Return the skill."""
    return files("nats_taskflow").joinpath(".agents", "skills", NAME, "SKILL.md").read_text(encoding="utf-8")


@click.group(cls=Group)
def skill() -> None:
    """Teach an LLM agent to use flows: the skill that comes with this version."""


@skill.command("print")
def print_skill() -> None:
    """Print the skill."""
    click.echo(skill_text(), nl=False)


@skill.command()
@click.option(
    "--folder",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".claude/skills"),
    show_default=True,
    help="The folder of skills: .agents/skills for other agents, ~/.claude/skills for all projects.",
)
@click.option("--force", is_flag=True, help="Replace one that is different.")
def install(*, folder: Path, force: bool) -> None:
    """Write the skill to DIR/nats-taskflow/SKILL.md. One that is there and different is left alone, unless --force."""
    from nats_taskflow.config.paths import expand_or_refuse
    from nats_taskflow.files import partial_name, publish_file

    place = expand_or_refuse(folder) / NAME / "SKILL.md"
    wanted = skill_text()
    try:
        present = place.read_text(encoding="utf-8", errors="replace") if place.exists() else None
        if present == wanted:
            click.echo(f"{place} is up to date", err=True)
            return
        if present is not None and not force:
            click.echo(f"taskflow: {place} is there and different (edited, or of another version); --force replaces it", err=True)
            raise Exit(exit_codes.CONFLICT)
        place.parent.mkdir(parents=True, exist_ok=True)
        with partial_name(place) as part:
            part.write_text(wanted, encoding="utf-8")
            part.chmod(0o644)  # it is no secret, and agents of others may read it
            publish_file(part, place)
    except OSError as failure:
        click.echo(f"taskflow: {place} cannot be written: {(failure.strerror or 'unknown').lower()}", err=True)
        raise Exit(exit_codes.IO_ERROR) from failure
    click.echo(place)
