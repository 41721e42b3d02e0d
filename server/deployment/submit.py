"""Send a run to the sites, follow it to its end, and say how it ended."""

from __future__ import annotations

import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from wardround.common.errors import RunFailed
from wardround.common.places import project_file
from wardround.common.pretrained import weights_digest
from wardround.common.settings.model import ModelSettings
from wardround.common.settings.tree import Settings
from wardround.common.wire.roster import roster_fingerprint
from wardround.common.wire.signing import payload_digest
from wardround.server.compose import compose
from wardround.server.deployment import superlink
from wardround.server.deployment.folder import (
    RegisteredSite,
    ServerFolder,
    signing_key,
)
from wardround.server.deployment.follow import (
    RunEnd,
    RunWatch,
    follow,
)
from wardround.server.deployment.plan import keep_plan, plan_id, roster_of
from wardround.server.deployment.signing_request import (
    forget_run,
    request_run,
    take_signed_run,
)
from wardround.server.deployment.status import is_held
from wardround.server.deployment.ticket import leave_ticket, write_ticket
from wardround.server.display import display
from wardround.server.run_folder import RunFolder

_STOP_SECONDS, _LOOK_SECONDS = 20.0, 0.2


def submit(
    overrides: Sequence[str],
    folder: ServerFolder,
    *,
    resume: Path | None = None,
    sites: Sequence[str] = (),
) -> RunEnd:
    """Run one federation over the registered sites.

    Args:
        resume: a run folder whose settings are submitted again, in place of `overrides`.
        sites: names of the sites that take part; all registered ones if empty.

    Raises:
        ValueError: bad input; nothing was started.
        RunFailed: the SuperLink does not run, or was lost.
        KeyboardInterrupt: interrupted; the run was stopped.
    """
    settings, chosen = _prepared(overrides, folder, resume, sites)
    return _run(folder, settings, chosen, lambda: start(folder, settings, chosen))


def request(
    overrides: Sequence[str],
    folder: ServerFolder,
    file: Path,
    *,
    resume: Path | None = None,
    sites: Sequence[str] = (),
) -> None:
    """Write what the coordinator has to sign for such a run; nothing is started.

    Args:
        file: where the request goes; the others as of `submit`.

    Raises:
        ValueError: bad input.
        OSError: a file cannot be written.
    """
    settings, chosen = _prepared(overrides, folder, resume, sites)
    if not chosen:
        raise ValueError(
            "--unsigned is for a server with registered sites; here is nothing to be signed."
        )
    draft = request_run(folder, settings, chosen, file)
    plan = payload_digest(draft.plan)[:12]
    display().say(f"{settings.cell}: {_roster_told(chosen)}")
    display().say(
        f"{settings.cell}: plan {plan} waits for its signature; the request is {file}"
    )


def submit_signed(file: Path, folder: ServerFolder) -> RunEnd:
    """Run the federation of a request that was signed on another machine. Raises as `submit` does."""
    draft = take_signed_run(folder, file)
    RunFolder(Path(draft.settings.run_dir)).check_owner(draft.settings)

    def start_draft() -> str:
        keep_plan(Path(draft.settings.run_dir), draft.plan)
        run_id = _start(folder, draft.settings, {"ticket": leave_ticket(folder, draft)})
        forget_run(folder, draft)
        return run_id

    return _run(folder, draft.settings, draft.sites, start_draft)


def _prepared(
    overrides: Sequence[str],
    folder: ServerFolder,
    resume: Path | None,
    wanted: Sequence[str],
) -> tuple[Settings, dict[str, RegisteredSite]]:
    """The settings of a run and its sites by name, found to go together. Raises ValueError."""
    settings = (
        settings_to_resume(resume, overrides)
        if resume
        else settings_to_submit(overrides)
    )
    RunFolder(Path(settings.run_dir)).check_owner(settings)
    chosen = choose_sites(folder, wanted, settings.num_clients)
    registered = folder.sites()
    sites = {name: registered[name] for name in chosen}
    roster_of(sites)  # refuses one key under two names
    return settings, sites


def _run(
    folder: ServerFolder,
    settings: Settings,
    sites: Mapping[str, RegisteredSite],
    start_run: Callable[[], str],
) -> RunEnd:
    """Start a run and follow it to its end. Args: start_run: returns Flower's run id. Raises as `submit`."""
    run = RunFolder(Path(settings.run_dir))
    if not superlink.is_up(folder):
        raise superlink.SuperLinkError(superlink.not_running(folder))
    for warning in warnings_of(settings):
        display().say(f"WARNING: {warning}")
    if sites:
        display().say(f"{settings.cell}: {_roster_told(sites)}")
    if run.approvals():
        run.write_approvals({})  # of an earlier start: nobody was asked by this one
    watch = RunWatch(
        run, settings
    )  # before the start: what is written from now on is this run's
    with deferred_interrupts() as interrupted:
        run_id = start_run()
    try:
        if interrupted:
            raise KeyboardInterrupt
        return follow(folder, run_id, watch, sorted(sites))
    except KeyboardInterrupt:
        _stop(folder, run_id, run)
        raise


def start(
    folder: ServerFolder, settings: Settings, sites: Mapping[str, RegisteredSite]
) -> str:
    """Leave a ticket for the server app and start it; returns Flower's run id.

    Args:
        sites: those that take part, by name; none on a server without node keys, whose nodes are told the
            settings and taken at their word.
    """
    if sites:
        config = {"ticket": write_ticket(folder, settings, sites, signing_key(folder))}
    else:
        config = {"settings": settings.to_json()}
    return _start(folder, settings, config)


def _start(folder: ServerFolder, settings: Settings, config: Mapping[str, str]) -> str:
    """Send the server app out with its run config; returns Flower's run id."""
    with tempfile.TemporaryDirectory(prefix="wardround-") as temporary:
        app = stage_app(Path(temporary) / "app")
        run_id = superlink.start_run(folder, app, config)
    folder.remember_run(run_id, settings.run_dir)
    display().say(
        f"{settings.cell}: run {run_id} started; run folder: {settings.run_dir}"
    )
    if plan := plan_id(Path(settings.run_dir)):
        display().say(
            f"{settings.cell}: plan {plan[:12]}; its sites decide: wardround-site plan {plan[:12]}"
        )
    return run_id


def _roster_told(sites: Mapping[str, RegisteredSite]) -> str:
    return f"roster of {len(sites)} sites: {roster_fingerprint(roster_of(sites))}"


def stage_app(target: Path) -> Path:
    """Fill the new folder `target` with the app that Flower bundles; returns it.

    It names the server app and holds no code: a server runs what is installed on its own machine.

    Raises:
        ValueError: this installation lacks a part.
    """
    target.mkdir()
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copyfile(project_file(name), target / name)
    return target


def warnings_of(settings: Settings) -> list[str]:
    """What a coordinator should know before sites begin: what they could learn of each other, whatever the
    wire does, and what will cost rounds."""
    strategy = settings.strategy
    warnings = {
        "with two sites, each can work out the other's update from the model that comes back. Take three or "
        "more.": settings.num_clients == 2,
        "strategy.min_sites is 1: a round with one answer hands that site's tensors to all the others. Set "
        "strategy.min_sites=3 or more.": strategy.on_missing == "continue"
        and strategy.min_sites < 2,
        "train.head_init=per_site: the mean of heads that are drawn apart is shorter than each of them, by "
        "about the root of their number, and learning starts from there (docs/collapse.md). Set "
        "train.head_init=shared.": settings.train.head_init == "per_site"
        and settings.num_clients > 1,
    }
    return [text for text, holds in warnings.items() if holds]


def settings_to_submit(overrides: Sequence[str]) -> Settings:
    """Compose a deployment, its paths made absolute: the server app works in another folder.

    Raises:
        ValueError: as `compose` does, or another engine is asked for.
    """
    engines = [text for text in overrides if text.startswith("engine=")]
    if any(text != "engine=deployment" for text in engines):
        raise ValueError(
            f"'{engines[-1]}' is for simulations; submit runs over real sites. Leave engine=... out, or use: "
            "wardround simulate"
        )
    settings = compose(
        [*overrides, *(() if engines else ("engine=deployment",))]
    ).settings
    model, files = (
        settings.model,
        {"path": settings.data.path, "test_path": settings.data.test_path},
    )
    absolute: Any = {
        key: _absolute(file) for key, file in files.items() if file is not None
    }
    if model.source == "hub" and Path(model.name).is_dir():
        model = replace(model, name=str(Path(model.name).absolute()))
    data, run_dir = replace(settings.data, **absolute), _absolute(settings.run_dir)
    return replace(settings, data=data, model=_pinned(model), run_dir=run_dir)


def _pinned(model: ModelSettings) -> ModelSettings:
    """The model with the SHA-256 of its weights, which sites hold their own file against."""
    if model.sha256 is not None:
        return model
    try:
        # Weights in several files have no single hash.
        return replace(model, sha256=weights_digest(model))
    except ValueError:
        return model  # a model that is not there is told when it is built


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def settings_to_resume(run_dir: Path, overrides: Sequence[str]) -> Settings:
    """The settings of a run folder, wherever that stands now.

    Raises:
        ValueError: it holds no run, or a simulated one, or overrides are given too.
    """
    if overrides:
        raise ValueError(
            f"--resume takes the settings from '{run_dir}', but there is also '{overrides[0]}'. Leave "
            "it out; to go on with more rounds, submit the first command again with another num_rounds."
        )
    settings = RunFolder(run_dir).settings()
    if settings is None:
        raise ValueError(
            f"'{run_dir}' holds no run (it has no settings.json). Check --resume."
        )
    if settings.engine.is_simulated:
        raise ValueError(
            f"'{run_dir}' holds a simulation. Go on with: wardround simulate, as it was started."
        )
    return replace(settings, run_dir=str(run_dir.absolute()))


def choose_sites(
    folder: ServerFolder, wanted: Sequence[str], num_clients: int
) -> list[str]:
    """Names of the sites that take part, as many as `num_clients`; none on a server without node keys.

    Raises:
        ValueError: a wanted site is not registered, or there are fewer or more than `num_clients`.
    """
    registered = folder.sites()
    if unknown := [name for name in wanted if name not in registered]:
        raise ValueError(
            f"no site '{unknown[0]}' is registered; there are: {', '.join(registered) or 'none'}. Let it in "
            f"with: wardround server invite {unknown[0]}"
        )
    chosen = list(dict.fromkeys(wanted)) or list(registered)
    if not chosen and folder.is_insecure:
        return []
    what = "sites are chosen" if wanted else "sites are registered"
    named = f"num_clients is {num_clients} but {len(chosen)} {what} ({', '.join(chosen) or 'none'})"
    if len(chosen) < num_clients:
        smaller = f", or set num_clients={len(chosen)}" if chosen else ""
        raise ValueError(
            f"{named}. Let more in with: wardround server invite SITE{smaller}."
        )
    if len(chosen) > num_clients:
        raise ValueError(
            f"{named}. Set num_clients={len(chosen)}, or name those that take part with --site."
        )
    return sorted(chosen)


@contextmanager
def deferred_interrupts() -> Iterator[list[int]]:
    """Collect Ctrl-C and SIGTERM in the list given, so that a run is never started and its number lost."""
    collected: list[int] = []
    kinds = (signal.SIGINT, signal.SIGTERM)
    before = {
        kind: signal.signal(kind, lambda number, _: collected.append(number))
        for kind in kinds
    }
    try:
        yield collected
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


def _stop(folder: ServerFolder, run_id: str, run: RunFolder) -> None:
    display().say(f"stopping run {run_id} …")
    try:
        superlink.stop_run(folder, run_id)
    except RunFailed as error:
        display().say(f"the run could not be stopped: {error}")
        return
    until = time.monotonic() + _STOP_SECONDS
    while is_held(run) and time.monotonic() < until:
        time.sleep(_LOOK_SECONDS)
    # Where its process was ended before it could say so.
    if run.status()["state"] == "running" and not is_held(run):
        run.write_status(
            "stopped",
            "stopped by the coordinator; --resume goes on from the last whole round",
        )
    display().say(
        f"stopped. To go on from the last whole round: wardround submit --resume {run.path}"
    )
